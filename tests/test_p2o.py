"""p2o.py: the loop's parts, bad input, and whole runs on the real tiny model."""

import dataclasses
import json

import pytest
import torch
from conftest import ROOT

import gepa_loop
import grpo
import p2o
import verify
from p2o import Config
from support.errors import UserError
from tiny.problems import FAMILIES

ALL_HINTS = " ".join(family.hints[0] for family in FAMILIES.values())


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def small(tmp_path):
    """A configuration of seconds: 16 hard questions, two epochs."""
    hard = lines_of(ROOT / "tiny" / "train.jsonl")[:16]
    return Config(
        train_data=write_jsonl(tmp_path / "small.jsonl", hard),
        eval_data=(write_jsonl(tmp_path / "held.jsonl", lines_of(ROOT / "tiny" / "hard.jsonl")[:8]),),
        runs=str(tmp_path / "runs"),
        name="small",
        epochs=2,
        questions_per_batch=8,
        questions_per_update=4,
        gepa_dev_size=8,
        gepa_budget="60",
    )


@pytest.fixture
def run(small):
    return p2o.start_run(small)


# ------------------------------------------------------------------------------------------------- the loop's parts


def rollout(question_id, reward, **fields):
    defaults = {"template": "", "sampled_context": [1], "trained_context": [1], "response_ids": [2]}
    defaults |= {"sampled_logprobs": [-1.0], "truncated": False, "text": ""}
    return grpo.Rollout(question_id=question_id, reward=reward, **(defaults | fields))


def test_hard_questions_are_those_whose_group_failed_or_all_but_one():
    rewards = {"none": [0, 0, 0], "one": [0, 1, 0], "two": [1, 1, 0], "all": [1, 1, 1]}
    rollouts = [rollout(name, float(r)) for name, group in rewards.items() for r in group]
    assert p2o.mine_hard(rollouts, 3, near_hard=True) == ["none", "one"]
    assert p2o.mine_hard(rollouts, 3, near_hard=False) == ["none"]


def test_a_templated_group_is_sampled_templated_and_trained_bare(run):
    problem = run.train[0]
    run.state.templates = {problem.id: [ALL_HINTS] * 5 + [""]}
    rollouts = p2o.sample_groups(run, run.train[:2])
    bare = grpo.chat_ids(run.policy, problem.question)
    templated = grpo.chat_ids(run.policy, gepa_loop.apply_template(ALL_HINTS, problem.question))
    assert [r.sampled_context for r in rollouts[:6]] == [templated] * 5 + [bare]
    assert all(r.trained_context == bare for r in rollouts[:6])
    assert all(r.sampled_context == r.trained_context for r in rollouts[6:])
    for r in rollouts:
        assert r.reward == verify.grade(r.text, {p.id: p for p in run.train}[r.question_id].answer).reward
        expected = grpo.score(run.policy, [r.trained_context], [r.response_ids])[0]
        assert r.old_logprobs == pytest.approx(expected, abs=1e-4)


def test_without_distillation_the_sampled_context_is_trained(run):
    run.cfg = dataclasses.replace(run.cfg, distill=False)
    run.state.templates = {run.train[0].id: [ALL_HINTS] * 6}
    rollouts = p2o.sample_groups(run, run.train[:1])
    assert all(r.trained_context == r.sampled_context for r in rollouts)
    assert all(w == 1 for r in rollouts for w in r.token_weight)


def test_the_ratio_mask_weighs_templated_rollouts_only(run):
    run.cfg = dataclasses.replace(run.cfg, ratio_min=0.9, ratio_max=1.1)
    run.state.templates = {run.train[0].id: [ALL_HINTS] * 6}
    rollouts = p2o.sample_groups(run, run.train[:2])
    assert any(w == 0 for r in rollouts[:6] for w in r.token_weight)
    assert all(w == 1 for r in rollouts[6:] for w in r.token_weight)
    run.cfg = dataclasses.replace(run.cfg, ratio_mask=False)
    assert all(w == 1 for r in p2o.sample_groups(run, run.train[:2]) for w in r.token_weight)


def test_evolution_assigns_templates_to_hard_questions_only(run):
    run.state.hard = [p.id for p in run.train[:12]]
    p2o.evolve_templates(run)
    assert set(run.state.templates) <= set(run.state.hard)
    assert all(len(zs) == 6 for zs in run.state.templates.values())
    assert run.state.gepa_calls >= 60
    record = json.loads((run.folder / "templates" / "epoch-1.json").read_text())
    assert record["candidates"][0] == "" and len(record["dev_scores"]) == len(record["candidates"])
    assert "<html" in (run.folder / "templates" / "epoch-1.html").read_text()


@pytest.mark.parametrize(
    "variant, kinds",
    [({}, {1, 2, 3, 4, 5, 6}), ({"one_template_per_group": True}, {1}), ({"leave_one_bare": True}, None)],
)
def test_variants_of_the_assignment(run, variant, kinds):
    run.cfg = dataclasses.replace(run.cfg, **variant)
    run.state.hard = [p.id for p in run.train[:12]]
    p2o.evolve_templates(run)
    assert run.state.templates
    for templates in run.state.templates.values():
        if kinds is None:
            assert templates[-1] == "" and all(templates[:-1])
        else:
            assert len(set(templates)) in kinds and "" not in templates


def updated_with(run, monkeypatch, rollouts):
    """The rollouts and settings that reach the update."""
    seen = {}

    def update(policy, optimizer, rollouts, **settings):
        seen.update(settings, rollouts=rollouts)
        return {"loss": 0.0}

    monkeypatch.setattr(grpo, "update_policy", update)
    p2o.train_on(run, rollouts)
    return seen


def test_failed_templated_rollouts_are_dropped_on_request_only(run, monkeypatch):
    rollouts = [rollout("a", reward, template=template) for reward in (0.0, 1.0) for template in ("", "z")]
    assert updated_with(run, monkeypatch, rollouts)["rollouts"] == rollouts
    run.cfg = dataclasses.replace(run.cfg, drop_failed_templated=True)
    kept = updated_with(run, monkeypatch, rollouts)["rollouts"]
    assert [(r.reward, r.template) for r in kept] == [(0.0, ""), (1.0, ""), (1.0, "z")]


def test_settings_of_the_loss_reach_the_update(run, monkeypatch):
    settings = {"clip_low": 0.1, "clip_high": 0.28, "dual_clip": 4.0, "kl_coef": 0.01, "max_grad_norm": 0.5}
    settings |= {"aggregation": "seq-mean-token-sum-norm", "skip_zero_advantage": False}
    run.cfg = dataclasses.replace(run.cfg, **settings)
    seen = updated_with(run, monkeypatch, [rollout("a", 1.0)])
    assert {name: seen[name] for name in settings} == settings


def test_mean_only_advantages_are_not_scaled(run):
    run.state.templates = {p.id: [ALL_HINTS] * 6 for p in run.train}
    scaled = p2o.sample_groups(run, run.train[:8])
    run.cfg = dataclasses.replace(run.cfg, scale_by_std=False)
    centred = p2o.sample_groups(run, run.train[:8])
    assert [r.reward for r in scaled] == [r.reward for r in centred]
    for i in range(0, 48, 6):
        rewards = [r.reward for r in centred[i : i + 6]]
        assert [r.advantage for r in centred[i : i + 6]] == pytest.approx(
            [x - sum(rewards) / 6 for x in rewards], abs=1e-6
        )
    assert any(a.advantage != b.advantage for a, b in zip(scaled, centred, strict=True))


@pytest.mark.parametrize("variant", [{"soft_clip": True}, {"drop_failed_templated": True, "kl_coef": 0.01}])
def test_variants_run_to_the_end(small, variant):
    assert p2o.train(dataclasses.replace(small, **variant))["rollouts"] == 192


def test_too_few_hard_questions_evolve_nothing(run):
    run.state.hard, run.state.templates = [p.id for p in run.train[:11]], {"old": []}
    p2o.evolve_templates(run)
    assert run.state.templates == {} and run.state.gepa_calls == 0


def test_self_reflection_switches_the_adapter_off(run):
    with torch.no_grad():
        for name, parameter in run.policy.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)  # a ruined policy
    prompt = gepa_loop.reflection_prompt("", [gepa_loop.reflection_record("Add these digits: 1, 2.", "1.", "x")] * 3)
    assert "```" in p2o.reflection_model(run)([prompt], 0)[0]
    run.cfg = dataclasses.replace(run.cfg, reflection="policy")
    assert "```" not in p2o.reflection_model(run)([prompt], 0)[0]


# --------------------------------------------------------------------------------------------------------- whole runs


def test_a_run_leaves_everything_that_the_readme_names(small, capsys):
    summary = p2o.train(small)
    folder = small.folder
    for name in (
        "config.json",
        "metrics.jsonl",
        "adapter/adapter_model.safetensors",
        "transcripts.jsonl",
        "report.html",
    ):
        assert (folder / name).stat().st_size > 0, name
    assert len(list(folder.glob("*.png"))) == 3 and len(list(folder.glob("templates/*.html"))) == 1
    metrics = lines_of(folder / "metrics.jsonl")
    assert [m["epoch"] for m in metrics if m["kind"] == "epoch"] == [0, 1, 2]
    assert [m["update"] for m in metrics if m["kind"] == "update"] == list(range(1, 9))
    assert summary["rollouts"] == 2 * 16 * 6 == metrics[-1]["rollouts"]
    assert metrics[-1]["logprob_mismatch"] < 1e-3
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert "epoch 2/2" in capsys.readouterr().out


def test_the_adapter_loads_with_plain_peft(small):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    p2o.train(dataclasses.replace(small, epochs=1))
    model = AutoModelForCausalLM.from_pretrained(small.model)
    before = model(torch.tensor([[10, 11, 12]])).logits
    after = PeftModel.from_pretrained(model, small.folder / "adapter")(torch.tensor([[10, 11, 12]])).logits
    assert after.shape == before.shape


def test_same_seed_same_numbers_and_another_seed_others(small):
    def metrics(name, seed):
        cfg = dataclasses.replace(small, name=name, seed=seed)
        p2o.train(cfg)
        return (cfg.folder / "metrics.jsonl").read_text()

    assert metrics("a", 1) == metrics("b", 1) != metrics("c", 2)


def test_p2o_learns_what_grpo_does_not(tmp_path):
    """The paper's claim, in the tiny world, on the shipped data: three of the six epochs are enough to see it."""
    cfg = Config(runs=str(tmp_path), epochs=3)
    grpo_summary = p2o.train(dataclasses.replace(cfg, method="grpo", name="grpo"))
    p2o_summary = p2o.train(dataclasses.replace(cfg, name="p2o"))
    assert grpo_summary["accuracy"]["hard"] <= 0.05
    assert p2o_summary["accuracy"]["hard"] >= 0.8
    assert grpo_summary["rollouts"] == p2o_summary["rollouts"]


def test_text_of_models_and_data_is_escaped_in_the_report(small):
    script = "<script>alert(1)</script>"
    p2o.train(dataclasses.replace(small, epochs=1))
    line = {"epoch": 1, "question": script, "reference": script, "template": script, "response": script, "reward": 0.0}
    write_jsonl(small.folder / "transcripts.jsonl", [line])
    evolution = {"candidates": [script], "dev_scores": [[1.0]], "parents": [[None]], "chosen": [0], "metric_calls": 1}
    (small.folder / "templates").mkdir(exist_ok=True)
    (small.folder / "templates" / "epoch-1.json").write_text(json.dumps(evolution))
    from support.report import write_report

    page = write_report([small.folder], small.folder).read_text()
    assert script not in page and "&lt;script&gt;" in page


# ----------------------------------------------------------------------------------------------------------- bad input


def refused(capsys, *argv):
    assert p2o.main(list(argv)) == 2
    out, err = capsys.readouterr()
    assert err.startswith("p2o: ") and err.count("\n") == 1 and not out
    return err


@pytest.mark.parametrize(
    "argv, complaint",
    [
        (["--model", "no/such-model"], "no/such-model"),
        (["--train-data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--group-size", "1"], "at least 2 rollouts"),
        (["--ratio-min", "5", "--ratio-max", "2"], "0 < ratio-min <= 1 <= ratio-max"),
        (["--hard-set-min", "1000"], "--hard-set-min 1000"),
        (["--temperature", "0"], "--temperature 0"),
        (["--questions-per-update", "64"], "--questions-per-update 64"),
        (["--gepa-budget", "huge"], "heavy_4"),
        (["--soft-clip", "--no-ratio-mask"], "soft clip is a kind of ratio mask"),
        (["--clip-low", "1.5"], "clip-low"),
        (["--soft-clip", "--no-distill"], "every ratio is 1"),
        (["--reflection", "teacher"], "--teacher-url"),
        (["--teacher-url", "http://127.0.0.1:1/v1"], "used by --reflection teacher only"),
        (["--method", "grpo", "--leave-one-bare"], "samples no templates"),
    ],
)
def test_bad_settings_get_one_line_and_exit_code_2(argv, complaint, capsys, tmp_path):
    assert complaint in refused(capsys, "--runs", str(tmp_path / "runs"), *argv)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "text, complaint",
    [
        ('{"question": "a", "answer": "1"}\n{"question": "b"}\n', "line 2: no field `answer` (found: question)"),
        ('{"question": "a", "answer": "1"}\n\n{"question": \n', "line 3: not JSON"),
        ("[1]\n", "line 1: no field `question` (found: list)"),
        ("", "holds no problems"),
        ('{"id": 1, "question": "a", "answer": "1"}\n{"id": 1, "question": "b", "answer": "1"}\n', "same `id`"),
    ],
)
def test_bad_data_names_the_line(text, complaint, capsys, tmp_path):
    (tmp_path / "bad.jsonl").write_text(text)
    error = refused(capsys, "--train-data", str(tmp_path / "bad.jsonl"), "--runs", str(tmp_path / "runs"))
    assert complaint in error and "bad.jsonl" in error


def test_reference_answers_that_nobody_can_parse_are_counted_at_load(tmp_path, capsys):
    rows = [
        {"question": "a", "answer": "12"},
        {"question": "b", "answer": "\\\\frac{1}{"},
        {"question": "c", "answer": "x+1"},
    ]
    p2o.load_questions(Config(), write_jsonl(tmp_path / "odd.jsonl", rows))
    assert "1 of 3 reference answers cannot be parsed" in capsys.readouterr().out


def test_a_folder_that_holds_a_run_is_not_written_over(small, capsys):
    small.folder.mkdir(parents=True)
    (small.folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="already holds a run"):
        p2o.train(small)
    assert (small.folder / "config.json").read_text() == "{}"


def test_a_model_folder_without_a_config_is_refused(tmp_path, capsys):
    assert "config.json" in refused(capsys, "--model", str(tmp_path), "--runs", str(tmp_path / "runs"))


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        p2o.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in text


def test_an_unknown_option_ends_with_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        p2o.main(["--group-sise", "4"])
    assert stop.value.code == 2
