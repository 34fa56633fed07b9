"""SmolLM2-135M-Instruct, the real tokenizer and the real weights: skipped where its package is not installed."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import gepa_loop
import grpo
import p2o
import verify
from real import demo, make_model, measure, rules
from support.data import Question, label, load_questions, repeated
from support.errors import UserError
from tools import cli

# --------------------------------------------------------------------- rules and questions, which need no weights

SAID = {
    "english": "Plants need light and water to grow, and they can be kept in a warm room.",
    "spanish": "Para dormir mejor, es bueno apagar la luz y no comer en la cama.",
    "french": "Pour dormir, il est bon de fermer les yeux et de ne pas manger dans le lit.",
    "german": "Die Sonne scheint, und der Himmel ist blau, weil es nicht regnet.",
    "italian": "Il cielo è blu per la luce del sole, e non si vede come di notte.",
}


@pytest.mark.parametrize("language", SAID)
def test_each_language_is_told_from_the_others(language):
    assert [name for name in SAID if rules.is_written_in(name, SAID[language])] == [language]


@pytest.mark.parametrize("name", rules.RULES)
def test_a_rule_says_what_it_wants_without_being_asked(name):
    """Feedback is all that reflection learns of a rule."""
    question = Question("q", "Why?", name)
    right = {
        "short": "It is.",
        "listed": "1. It is",
        "starred": "**It** **is**",
        "asking": "Is it?",
        "exclaiming": "Oh!",
    }
    reward, feedback = rules.asked_for((SAID | right)[name], question)
    assert reward == 1.0 and feedback.endswith("That is right.")
    reward, feedback = rules.asked_for("This is what it is and that is all of it.", question)
    assert reward == 0.0 and "must" in feedback


def test_the_questions_come_in_two_kinds_with_different_rules_and_none_is_on_both_sides():
    train, held_out = (load_questions(str(ROOT / "real" / f"{name}.jsonl")) for name in ("train", "held-out"))
    assert len(train) == len(held_out) == 76
    assert not {q.text for q in train} & {q.text for q in held_out}
    for part in (train, held_out):
        kinds = {q.columns["kind"]: q.reference for q in part}
        assert len(kinds) == 2 == len(set(kinds.values())) and set(kinds.values()) <= set(rules.RULES)
        assert all(
            (q.text.startswith("How"), q.reference) == (q.columns["kind"] == "how", kinds[q.columns["kind"]])
            for q in part
        )


def test_every_rule_has_words_that_tell_it():
    assert set(rules.TOLD) == set(rules.RULES)


def test_the_line_says_how_good_each_method_is_at_the_end_and_on_the_way(tmp_path):
    def run(*curve):
        return {"curve": [{"rollouts": x, "accuracy": {"held-out": 0.0, "held-out, sampled": y}} for x, y in curve]}

    early, late = run((0, 0.0), (100, 1.0), (200, 1.0)), run((0, 0.0), (100, 0.0), (300, 1.0))
    found = measure.figures_of({"short: GRPO": [late, early], "short: P2O": [early], "german: P2O": []})
    assert found == {
        "at the end": {("short", "GRPO"): [1.0, 1.0], ("short", "P2O"): [1.0]},
        "mean on the way to 200 responses": {("short", "GRPO"): [0.125, 0.75], ("short", "P2O"): [0.75]},
    }
    measure.draw_line(found, {"short": "1.0% of 100"}, tmp_path / "line.png")
    assert (tmp_path / "line.png").stat().st_size > 10_000


def test_without_the_package_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(make_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="make real"):
        make_model.make_model(tmp_path / "model")


# ------------------------------------------------------------------------------------------- the model itself


@pytest.fixture(scope="module")
def smollm2():
    try:
        return str(make_model.make_model())
    except UserError as error:
        pytest.skip(str(error))


def first_layers(model, folder, layers=3):
    """A copy with the first 3 of 30 layers, and all else real: for a run, of which nobody reads what it says."""
    folder.mkdir()
    for file in Path(model).iterdir():
        (folder / file.name).symlink_to(file.resolve())
    (folder / "config.json").unlink()
    config = json.loads((Path(model) / "config.json").read_text()) | {"num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def loaded(smollm2):
    return grpo.load_policy(grpo.PolicyConfig(model=smollm2, temperature=0.7, max_response_tokens=8))


@pytest.fixture
def policy(loaded):
    """To load it takes seconds, so a test that trains it has its adapter taken back."""
    before = [weight.detach().clone() for weight in loaded.trainable]
    yield loaded
    with torch.no_grad():
        for weight, old in zip(loaded.trainable, before, strict=True):
            weight.copy_(old)


ASKED = ["Why is the sky blue?", "How can I sleep better?", "Why do cats purr? Answer in one short sentence, please."]


def test_sampler_and_trainer_agree(policy):
    """The promise is 1e-4 for float32, over prompts of different lengths in one batch."""
    contexts = [grpo.chat_ids(policy, question) for question in ASKED for _ in range(2)]
    samples = grpo.sample(policy, contexts, seed=0)
    trained = grpo.logprobs_of(policy, contexts, [s.response_ids for s in samples])
    for sample, logprobs in zip(samples, trained, strict=True):
        torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(sample.sampled_logprobs), atol=1e-4, rtol=0)


def test_greedy_decoding_is_what_generate_does(policy):
    contexts = [grpo.chat_ids(policy, question) for question in ASKED]
    ours = [s.response_ids for s in grpo.sample(policy, contexts, seed=None)]
    for context, ids in zip(contexts, ours, strict=True):
        ends = {"eos_token_id": policy.stop_ids, "pad_token_id": policy.tokenizer.pad_token_id}
        theirs = policy.model.generate(
            input_ids=torch.tensor([context]), attention_mask=torch.ones(1, len(context)), do_sample=False,
            max_new_tokens=policy.cfg.max_response_tokens, **ends,
        )  # fmt: skip
        assert theirs[0, len(context) :].tolist() == ids


def test_one_update_moves_the_bare_log_prob_of_a_spanish_answer_up(policy):
    """Context distillation on real weights: sampled under a template, trained on the bare question."""
    bare = grpo.chat_ids(policy, ASKED[1])
    templated = grpo.chat_ids(policy, gepa_loop.apply_template("Answer in Spanish.", ASKED[1]))
    answers = [policy.tokenizer(SAID[name]).input_ids for name in ("spanish", "english")]
    rollouts = [
        grpo.Rollout(
            response_ids=ids, sampled_logprobs=[-1.0] * len(ids), truncated=True, text="", question_id="q",
            template="Answer in Spanish.", sampled_context=templated, trained_context=bare, reward=reward,
            advantage=2 * reward - 1,
        )
        for ids, reward in zip(answers, (1.0, 0.0), strict=True)
    ]  # fmt: skip
    cfg = grpo.UpdateConfig(learning_rate=1e-3, ratio_mask=False)
    before = [sum(values) for values in grpo.logprobs_of(policy, [bare] * 2, answers)]
    optimizer = torch.optim.AdamW(policy.trainable, lr=cfg.learning_rate, weight_decay=0.0)
    grpo.score_old(policy, [rollouts], cfg)
    grpo.update_policy(policy, optimizer, rollouts, cfg)
    after = [sum(values) for values in grpo.logprobs_of(policy, [bare] * 2, answers)]
    assert after[0] > before[0] + 0.5 and after[1] < before[1] - 0.5


def test_a_resumed_run_is_the_same_run(smollm2, tmp_path, monkeypatch):
    """Killed after the first epoch and resumed, against one that was not: every number of every line."""
    rows = (ROOT / "real" / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(rows[:4]))
    (tmp_path / "held.jsonl").write_text(rows[4])
    words = [
        "--train-data", str(tmp_path / "train.jsonl"), "--eval-data", str(tmp_path / "held.jsonl"), "--epochs", "2",
        "--questions-per-batch", "4", "--questions-per-update", "2", "--group-size", "2", "--max-response-tokens", "3",
        "--hard-set-min", "4", "--gepa-dev-size", "2", "--gepa-budget", "4", "--gepa-parents", "1",
        "--reflection-tokens", "3", "--temperature", "1.5",
        "--runs", str(tmp_path), "--reward", f"{tmp_path / 'rule.py'}:rule", "--no-sampled-eval", "--threads", "1",
    ]  # fmt: skip
    # Rewards that differ within a group, and never add up to more than one success: both epochs have something to
    # train, and between them templates are searched.
    (tmp_path / "rule.py").write_text("def rule(response, question):\n    return len(response) % 8 / 16, 'be longer'\n")
    cfg = replace(cli.parse_config(demo.words_of(words)), model=first_layers(smollm2, tmp_path / "model"))
    save = p2o.Run.save

    def save_and_copy(run, state):
        save(run, state)
        if state.step == 1:  # the first epoch's only batch: the copy is all that a kill would leave
            shutil.copytree(run.folder, tmp_path / "killed")

    with monkeypatch.context() as patch:
        patch.setattr(p2o.Run, "save", save_and_copy)
        p2o.train(replace(cfg, name="whole"))
    p2o.train(replace(cfg, name="killed", resume=True))
    texts = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "killed"))
    whole, killed = ([json.loads(line) for line in text.splitlines()] for text in texts)
    assert whole == killed
    assert {line["epoch"] for line in whole if line["kind"] == "update" and line["grad_norm"] > 0} == {1, 2}
    assert any(line["kind"] == "evolution" for line in whole)


def test_the_short_form_of_the_demo_is_a_shorter_one_of_the_same():
    whole, short = (cli.parse_config(demo.words_of(words)) for words in ([], ["--short"]))
    assert short.epochs < whole.epochs and short.reward == whole.reward and short.model == whole.model
    assert cli.parse_config(demo.words_of(["--short", "--epochs", "5"])).epochs == 5


# ------------------------------------------------------------------------------------------------- reasoning-gym

SUMS = "gym:chain_sum?min_terms=3&max_terms=3&size=4&seed=1"


def test_without_reasoning_gym_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(
        UserError, match=r"gym:chain_sum\?.*: needs reasoning-gym .*pip install reasoning-gym==0\.1\.25"
    ):
        load_questions(SUMS)


@pytest.fixture(scope="module")
def gym():
    return pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")


def test_a_task_gives_the_same_questions_each_time_and_its_scorer_judges_the_box(gym):
    questions = load_questions(SUMS, unparseable=lambda compared: compared)  # none is compared
    assert [q.text for q in questions] == [q.text for q in load_questions(SUMS)] and label(SUMS) == "chain_sum"
    assert len({q.id for q in questions}) == 4
    q = questions[0]
    said = [
        rf"\boxed{{{q.reference}}}",
        r"\boxed{7777}",
        q.reference,
        rf"\boxed{{{q.reference}}} \boxed{{1}}",
        r"\boxed{x}",
    ]
    verdicts = verify.judge(said, [q] * 5, [False] * 5)
    assert [v.reward for v in verdicts] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert verdicts[0].feedback == f"The answer {q.reference} is right." and "is wrong" in verdicts[1].feedback


def test_seeds_that_lie_close_give_the_same_questions_and_a_run_says_so(gym):
    """reasoning-gym makes question i from seed + i, so of four questions from seed 2 three are those of seed 1."""
    asked = load_questions(SUMS)
    close, apart = (load_questions(SUMS.replace("seed=1", f"seed={seed}")) for seed in (2, 1001))
    assert repeated(asked, {"close": close, "apart": apart}) == [
        "close: 3 of 4 held-out questions are trained, too: it measures memory"
    ]


def test_an_answer_that_is_right_but_not_the_reference_is_paid(gym):
    """Each task's own scorer, since many have more right answers than one: here any way to write a fraction."""
    (q,) = load_questions("gym:countdown?size=1&seed=3")
    other = f"({q.reference})"  # the same expression in brackets
    assert verify.judge([rf"\boxed{{{other}}}"], [q], [False])[0].reward == 1.0


@pytest.mark.parametrize(
    "path, complaint",
    [
        ("gym:chain", "no task 'chain'; there are .*chain_sum"),
        ("gym:chain_sum?terms=3", "does not take these settings .*terms"),
        ("gym:chain_sum?min_terms=0", "does not take these settings"),
    ],
)
def test_what_reasoning_gym_does_not_know_is_refused_in_one_line(gym, path, complaint):
    with pytest.raises(UserError, match=complaint):
        load_questions(path)


def test_the_tiny_model_trains_on_a_task(gym, tmp_path):
    """Its words are few, so most of the question is unknown to it; everything runs all the same."""
    options = [
        "--train-data",
        SUMS,
        "--eval-data",
        SUMS.replace("seed=1", "seed=1001"),
        "--epochs",
        "1",
        "--runs",
        str(tmp_path),
    ]
    options += ["--method", "grpo", "--group-size", "2", "--max-response-tokens", "8"]
    assert p2o.train(cli.parse_config(options))["accuracy"].keys() == {"chain_sum"}
