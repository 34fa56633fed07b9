"""p2o.py: the loop's parts, bad input, and whole runs on the real tiny model."""

import contextlib
import dataclasses
import errno
import io
import json
import shutil
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from conftest import ROOT, write_jsonl

import gepa_loop
import grpo
import p2o
import verify
from lab import chaos
from p2o import Config
from support.data import load_questions
from support.errors import UserError, exit_code_of
from support.log import MAX_FAMILIES, by_column, read_lines
from support.messages import as_template
from support.run import Run
from support.seams import check_variants, find, variant
from tiny.problems import FAMILIES
from tools import cli, fit, report
from variants import evolve
from variants.example import advantaged, asked, rewarded

ALL_HINTS = " ".join(family.hints[0] for family in FAMILIES.values())


def small_in(folder):
    """A configuration of seconds: 16 hard questions, two epochs."""
    return cli.parse_config([*chaos.small_run(folder), "--name", "small"])


@pytest.fixture
def small(tmp_path):
    return small_in(tmp_path)


@pytest.fixture(scope="module")
def questions():
    return load_questions(str(ROOT / "tiny" / "train.jsonl"))[:16]


@pytest.fixture
def run(small, tiny_policy):
    """An open run on the tiny policy, for what wants to write into its folder."""
    run = Run(small)
    run.resume(p2o.State(), tiny_policy.model, torch.optim.SGD(tiny_policy.trainable), {"training data": []})
    return run


# ------------------------------------------------------------------------------------------------- the loop's parts


def rollout(question_id, reward, **fields):
    defaults = {"sampled_context": [1], "trained_context": [1], "response_ids": [2], "sampled_logprobs": [-1.0]}
    defaults |= {"truncated": False, "text": ""}
    return grpo.Rollout(question_id=question_id, reward=reward, **(defaults | fields))


def test_hard_questions_are_those_whose_group_failed_or_all_but_one():
    rewards = {"none": [0, 0, 0], "one": [0, 1, 0], "two": [1, 1, 0], "all": [1, 1, 1]}
    rollouts = [rollout(name, float(r)) for name, group in rewards.items() for r in group]
    assert p2o.mine_hard(rollouts, Config()) == ["none", "one"]
    assert p2o.mine_hard(rollouts, Config(near_hard=False)) == ["none"]


def test_a_reward_below_zero_is_a_failure_like_any_other():
    """As a --reward of one's own may give, 1 for right and -1 for wrong."""
    rewards = {"none": [-1, -1, -1, -1], "one": [1, -1, -1, -1], "half": [1, 1, -1, -1]}
    rollouts = [rollout(name, float(r), template="z") for name, group in rewards.items() for r in group]
    assert p2o.mine_hard(rollouts, Config()) == ["none", "one"]
    assert p2o.mine_hard(rollouts, Config(near_hard=False)) == ["none"]
    kept = p2o.choose_rollouts(rollouts, Config(drop_failed_templated=True))
    assert [(r.question_id, r.reward) for r in kept] == [("one", 1.0), ("half", 1.0), ("half", 1.0)]
    # The only bare rollout of the group failed.
    group = [rollout("q", 1.0, template="z"), rollout("q", -1.0)]
    assert p2o.mine_hard(group, Config(mine="bare", leave_one_bare=True)) == ["q"]


def test_on_request_a_bare_rollout_says_whether_a_templated_question_is_still_hard():
    def group(name, templated, bare):
        return [rollout(name, r, template="z") for r in templated] + [rollout(name, r) for r in bare]

    rollouts = (
        group("still", [1.0, 1.0], [0.0]) + group("learned", [0.0, 0.0], [1.0]) + group("no bare", [1.0, 1.0], [])
    )
    assert p2o.mine_hard(rollouts, Config()) == ["learned"]
    assert p2o.mine_hard(rollouts, Config(mine="bare", leave_one_bare=True)) == ["still"]


def test_groups_are_found_by_question_and_may_differ_in_size():
    rollouts = [rollout("a", 1.0), rollout("b", 0.0), rollout("a", 0.0), rollout("a", 0.0)]
    assert [len(group) for group in grpo.groups_of(rollouts)] == [3, 1]
    assert p2o.mine_hard(rollouts, Config(near_hard=False)) == ["b"]


def test_every_question_comes_once_an_epoch_in_a_new_order(questions):
    cfg = Config(questions_per_batch=6, questions_per_update=6)
    batches = [[q.id for q in p2o.choose_questions(questions, p2o.State(), step, cfg)] for step in range(6)]
    epochs = [sum(batches[:3], []), sum(batches[3:], [])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(q.id for q in questions)
    assert epochs[0] != epochs[1]
    assert [len(batch) for batch in batches[:3]] == [6, 6, 4]


def test_the_history_keeps_bare_and_templated_success_apart():
    state = p2o.State()
    p2o.remember_success_rates(state, [rollout("a", 1.0), rollout("a", 0.0), rollout("b", 1.0, template="z")])
    p2o.remember_success_rates(state, [rollout("a", 0.0, template="z"), rollout("a", 1.0)])
    assert state.history == {"a": [0.5, 1.0]} and state.templated == {"b": [1.0], "a": [0.0]}


def test_updates_hold_whole_groups_and_the_last_one_what_is_left():
    rollouts = [rollout(name, 0.0) for name in "aabbbcddee"]
    updates = p2o.split_into_updates(rollouts, Config(questions_per_update=2, questions_per_batch=2))
    assert [[r.question_id for r in part] for part in updates] == [list("aabbb"), list("cdd"), list("ee")]


def test_a_templated_group_is_sampled_templated_and_trained_bare(small, tiny_policy, questions):
    templates = {questions[0].id: [ALL_HINTS] * 5 + [""]}
    rollouts = p2o.sample_groups(tiny_policy, questions[:2], templates, small, seed=0)
    bare = grpo.chat_ids(tiny_policy, questions[0].text)
    templated = grpo.chat_ids(tiny_policy, gepa_loop.apply_template(ALL_HINTS, questions[0].text))
    assert [r.sampled_context for r in rollouts[:6]] == [templated] * 5 + [bare]
    assert all(r.trained_context == bare for r in rollouts[:6])
    assert [r.is_distilled for r in rollouts] == [True] * 5 + [False] * 7
    references = {q.id: q.reference for q in questions}
    for r in rollouts:
        assert r.reward == verify.grade(r.text, references[r.question_id]).reward
    for group in grpo.groups_of(rollouts):
        expected = grpo.group_advantages(torch.tensor([r.reward for r in group]), 6).tolist()
        assert [r.advantage for r in group] == expected


def test_without_distillation_the_sampled_context_is_trained(small, tiny_policy, questions):
    cfg = dataclasses.replace(small, distill=False)
    rollouts = p2o.sample_groups(tiny_policy, questions[:1], {questions[0].id: [ALL_HINTS] * 6}, cfg, seed=0)
    assert all(r.trained_context == r.sampled_context and not r.is_distilled for r in rollouts)


def test_the_ratio_mask_weighs_distilled_rollouts_only(small, tiny_policy, questions):
    def weights(**settings):
        cfg = dataclasses.replace(small, ratio_min=0.9, ratio_max=1.1, **settings)
        rollouts = p2o.sample_groups(tiny_policy, questions[:2], {questions[0].id: [ALL_HINTS] * 6}, cfg, seed=0)
        for r in rollouts:
            r.advantage = 1.0
        grpo.score_old(tiny_policy, [rollouts], cfg)
        return [r.token_weight for r in rollouts]

    found = weights()
    assert any(w == 0 for row in found[:6] for w in row) and found[6:] == [1.0] * 6
    assert weights(ratio_mask=False) == [1.0] * 12


def test_evolution_assigns_templates_to_hard_questions_only(small, run, tiny_policy, questions):
    templates = p2o.evolve_templates(tiny_policy, questions[:12], small, 1, run)
    assert templates and set(templates) <= {q.id for q in questions[:12]}
    assert all(len(zs) == 6 for zs in templates.values())
    record = json.loads((run.folder / "templates" / "epoch-1.json").read_text())
    assert record["candidates"][0] == "" and len(record["dev_scores"]) == len(record["candidates"])
    assert record["assignment"] == templates
    assert record["weights"] == [sum(record["dev_scores"][k]) / len(record["dev_ids"]) for k in record["chosen"]]
    (line,) = run.logged("evolution")
    assert line["metric_calls"] == record["metric_calls"] >= 60


def test_the_summary_sets_the_last_epoch_beside_the_state_before(run):
    for epoch, accuracy in enumerate((0.1, 0.4, 0.3)):
        run.log(
            "epoch", epoch=epoch, accuracy={"hard": accuracy}, rollouts=9 * epoch, gepa_calls=epoch, hard_set=5 - epoch
        )
    summary = run.finish()
    assert (summary["accuracy_before"], summary["accuracy"]) == ({"hard": 0.1}, {"hard": 0.3})
    assert (summary["rollouts"], summary["gepa_calls"], summary["hard_set"]) == (18, 2, 3)
    assert summary == json.loads((run.folder / "summary.json").read_text())


@pytest.mark.parametrize("values", [MAX_FAMILIES, MAX_FAMILIES + 1])
def test_a_column_with_many_values_does_not_sort_questions_into_families(values):
    columns = [{"family": f"f{n}"} for n in range(values)]
    assert ("family" in by_column(columns, [1.0] * values)) == (values == MAX_FAMILIES)


def test_a_system_part_is_sampled_as_a_system_message_and_trained_bare(small, tiny_policy, questions):
    template = as_template({"system": "Be brief.", "template": "Think hard."})
    rollout, _ = p2o.sample_groups(tiny_policy, questions[:1], {questions[0].id: [template] * 2}, small, seed=0)
    text = f"<|system|> Be brief. <|end|> <|user|> Think hard.\n\n{questions[0].text} <|end|> <|assistant|>"
    assert rollout.sampled_context == tiny_policy.tokenizer(text).input_ids
    assert rollout.trained_context == grpo.chat_ids(tiny_policy, questions[0].text)


@pytest.mark.parametrize("option", ["one_template_per_group", "leave_one_bare"])
def test_limits_reach_the_search_and_options_the_assignment(small, run, tiny_policy, questions, option, monkeypatch):
    found, told = evolve.given(questions[:12], ["one", "another"], [[1.0] * 12] * 2), {}
    monkeypatch.setattr(gepa_loop, "evolve", lambda *_, **how: told.update(how) or found)
    assignment = p2o.evolve_templates(tiny_policy, questions[:12], dataclasses.replace(small, **{option: True}), 1, run)
    assert len(assignment) == 12
    for templates in assignment.values():
        assert (len(set(templates)) == 1) == (option == "one_template_per_group")
        assert (templates[-1] == "" and all(templates[:-1])) == (option == "leave_one_bare")
    longest = max(len(grpo.chat_ids(tiny_policy, question.text)) for question in questions[:12])
    assert told["limits"].room == small.max_prompt_tokens - longest and told["limits"].count("Add 7") == 2


def test_too_few_hard_questions_evolve_nothing(small, run, tiny_policy, questions):
    assert p2o.evolve_templates(tiny_policy, questions[:11], small, 1, run) == {}
    assert run.logged("evolution") == []


@pytest.mark.parametrize(
    "candidates, chosen, said",
    [
        ([""], [0], "no template was found that solves more of the dev set than the bare prompt, 50% greedily"),
        (["", "Be brief."], [0], "no template was found"),  # it is no better than none
        (["", "Go on."], [1], "1 template found; the best solves 50% of the dev set, the 1 chosen 50% together"),
        (["Told.", "Told, too."], [0], "2 templates found"),  # by an --evolve of one's own, which need not begin empty
    ],
)
def test_an_evolution_says_whether_it_found_anything(candidates, chosen, said, run, capsys):
    scores = [[1.0, 0.0]] * len(candidates)
    found = gepa_loop.Evolution(candidates, [[None]] * len(candidates), scores, ["a", "b"], [], chosen, 2, 0, None)
    run.log_evolution(1, found, {})
    assert said in capsys.readouterr().out


def test_the_best_template_is_not_the_bare_prompt_and_a_score_below_0_solves_nothing(run, capsys):
    scores = [[3.0, 3.0, -3.0], [-3.0, -3.0, 3.0]]
    run.log_evolution(1, gepa_loop.Evolution(["", "z"], [[None], [0]], scores, ["a"] * 3, [], [0, 1], 2, 0, None), {})
    assert "1 template found; the best solves 33% of the dev set, the 2 chosen 100% together" in capsys.readouterr().out


def test_failed_templated_rollouts_are_dropped_on_request_only():
    rollouts = [rollout(f"q{reward}", reward, template=template) for reward in (0.0, 1.0) for template in ("", "z")]
    assert p2o.choose_rollouts(rollouts, Config()) == rollouts
    kept = p2o.choose_rollouts(rollouts, Config(drop_failed_templated=True))
    assert [(r.reward, r.template) for r in kept] == [(0.0, ""), (1.0, ""), (1.0, "z")]


def test_settings_of_the_loss_reach_it(monkeypatch, fresh_policy):
    settings = {"clip_low": 0.1, "clip_high": 0.28, "dual_clip": 4.0, "aggregation": "seq-mean-token-sum-norm"}
    real, seen = grpo.policy_loss, {}
    monkeypatch.setattr(grpo, "policy_loss", lambda *a, **how: seen.update(how, mask=a[3]) or real(*a, **how))
    context = grpo.chat_ids(fresh_policy, "Add these digits: 7, 9.")
    trained = rollout("a", 1.0, advantage=1.0, sampled_context=context, trained_context=context)
    grpo.update_policy(fresh_policy, torch.optim.SGD(fresh_policy.trainable, lr=0.0), [trained], Config(**settings))
    assert {name: seen[name] for name in settings} == settings
    assert seen["update_size"] == (1, 1, 40) and seen["mask"].tolist() == [[1.0]]


def test_mean_only_advantages_are_not_scaled():
    assert grpo.advantages_of([rollout("a", 1.0), rollout("a", 0.0)], Config(scale_by_std=False)) == [0.5, -0.5]


# ------------------------------------------------------------------------------------------------------------ seams


def test_a_seam_is_filled_in_by_name_behind_the_star_only(tmp_path):
    (tmp_path / "own.py").write_text("def mine(group, policy='own', *, seed):\n    return [len(policy), seed]\n")
    own = variant(
        "advantage", Config(advantage=f"{tmp_path / 'own.py'}:mine", seed=5), None, policy="the run's", other=1
    )
    assert own([rollout("a", 1.0), rollout("a", 0.0)]) == [3.0, 5.0]


@pytest.mark.parametrize(
    "seam, body, complaint",
    [
        ("mine", "def own(group):\n    sum(r.reward for r in group) == 0\n", "it gave None; does it end"),
        ("keep", "def own(group): pass\n", "it gave None"),
        ("loss", "def own(x, a, *, mask):\n    return (-a * x.exp() * mask).mean()\n", "a tensor of shape []; what is"),
        ("loss", "def own(x, a, *, mask):\n    return 1.0\n", "it gave 1.0; what is wanted is a number for each token"),
        ("ratio", "def own(x, old, mask):\n    return (x - old).sum(1)\n", "a tensor of shape [1]"),
        ("select", "def own(order, history, count, rng):\n    return []\n", "it gave []; what is wanted is questions"),
        ("select", "def own(order, history, count, rng):\n    return order[:1] * 2\n", "at least one and none twice"),
        ("select", "def own(order, history, count, rng):\n    return ['a']\n", "questions of the order"),
        ("evolve", "def own(hard, search):\n    return {}\n", "it gave {}; what is wanted is a gepa_loop.Evolution"),
        ("select", "def own(order, history, count, rng):\n    return 3\n", "it gave 3; what is wanted is questions"),
        ("mine", "def own(group):\n    return 'no'\n", "it gave 'no'; what is wanted is yes or no"),
        (
            "mine",
            "def own(group):\n    return [r for r in group if r.reward > 1]\n",
            "it gave []; what is wanted is yes",
        ),
        ("keep", "def own(group):\n    return 0\n", "it gave 0; what is wanted is a list of rollouts"),
        ("keep", "def own(group):\n    return range(len(group))\n", "it gave [0, 1]; what is wanted is a list"),
        ("loss", "def own(x, a):\n    return (-a * x.exp()).detach()\n", "a loss that depends on log_ratio"),
        ("loss", "def own(x, a):\n    return (-a * x.exp()).tolist()\n", "a number for each token"),
        (
            "advantage",
            "import statistics\ndef own(group):\n    a = 1\n    return statistics.mean([])\n",
            "own.py, line 4",
        ),
        ("mine", "def own(group):\n    return group[0].rewrd < 1\n", "AttributeError: 'Rollout' object has no"),
        ("mine", "def own(group, *, polciy):\n    return True\n", "missing 1 required keyword-only argument: 'polciy'"),
        ("keep", "def own(group):\n    yield group[2]\n", "IndexError: list index out of range (/"),
        ("select", "def own(order, history):\n    return order\n", "TypeError: own() takes 2 positional arguments but"),
        ("evolve", "def own(hard, search):\n    return open('/no/such/file')\n", "/no/such/file' (/"),
        ("select", "def own(order, history, count, rng):\n    return set(order)\n", "questions of the order in a list"),
        (
            "mine",
            "import torch\ndef own(group):\n    return torch.tensor(0.3)\n",
            "a tensor of shape []; what is wanted",
        ),
        ("loss", "def own(x, a):\n    return (-a * x.exp()).detach().numpy()\n", "it gave no tensor but a ndarray"),
        (
            "keep",
            "def own(group):\n    group[1].advantage = float('nan')\n    return group\n",
            "it left nan as the adv",
        ),
        (
            "keep",
            "def own(group):\n    group[0].token_weight = [1.0] * 3\n    return group\n",
            "as the token_weight of",
        ),
        (
            "keep",
            "def own(group):\n    group[0].response_ids = [1, 2]\n    return group\n",
            "2 response_ids and 1 sampled_logprobs",
        ),
        (
            "keep",
            "def own(group):\n    group[0].old_logprobs = []\n    return group\n",
            "1 response_ids and 0 old_logp",
        ),
        (
            "evolve",
            "import dataclasses\nfrom variants.evolve import given\ndef own(hard, search):\n"
            "    return dataclasses.replace(given(hard, ['Add.'], [[1, 1]]), candidates=['', 'Add.', 'Count.'])\n",
            "dev_scores of each",
        ),
        (
            "evolve",
            "from variants.evolve import given\ndef own(hard, search):\n    return given(hard, ['Add.'], [[1]])\n",
            "a finite score for each of dev_ids",
        ),
    ],
)
def test_a_function_that_gives_something_else_is_told_so(seam, body, complaint, tmp_path):
    (tmp_path / "own.py").write_text(body)
    function = variant(seam, Config(**{seam: f"{tmp_path / 'own.py'}:own"}), None)
    numbers, at_hand = torch.zeros(1, 2, requires_grad=True), {"mask": torch.ones(1, 2), "clip_low": 0.2}
    inputs = {"ratio": [numbers] * 3, "loss": [numbers] * 2} | dict.fromkeys(
        ("advantage", "mine", "keep"), [rewarded(1, 0)]
    )
    inputs = inputs.get(seam) or [asked("a", "b"), None, None, None][: 4 if seam == "select" else 2]
    with pytest.raises(UserError) as refusal:
        function(*inputs, **(at_hand if seam == "loss" else {}))
    assert complaint in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_line_that_is_told_is_in_the_users_own_file_wherever_one_stands(tmp_path, monkeypatch):
    """A library raises; a file's name may be relative, or lead through a link."""
    (tmp_path / "own.py").write_text("import statistics\ndef own(group):\n    return statistics.mean([])\n")
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("own.py:own", "./own.py:own", "link/own.py:own"):
        with pytest.raises(UserError, match=f"^--mine {name}: StatisticsError: .*own.py, line 3"):
            variant("mine", Config(mine=name), None)([])


def test_too_short_a_prompt_limit_is_told_of_the_questions_and_not_of_the_model(small):
    """The model's own checks look at a prompt cut to that length: a single token has no token in front of it."""
    with pytest.raises(UserError, match="no question fits into --max-prompt-tokens 1$"):
        p2o.train(dataclasses.replace(small, max_prompt_tokens=1))


def test_a_selection_gives_at_most_as_many_questions_as_a_batch_has(tmp_path):
    """The whole order is a natural slip, and an epoch that asks all questions in each batch."""
    (tmp_path / "own.py").write_text("def own(order, history, count, rng):\n    return order\n")
    own = variant("select", Config(select=f"{tmp_path / 'own.py'}:own"), None)
    assert len(own(asked("a", "b"), {}, 2, None)) == 2
    with pytest.raises(UserError, match="what is wanted is a batch of at most 1 questions"):
        own(asked("a", "b"), {}, 1, None)


def test_numbers_that_keep_sets_become_plain(tmp_path):
    """Of a tensor or an array a checkpoint and the transcripts cannot say in JSON what it holds."""
    body = "    group[0].advantage, group[1].advantage = torch.tensor(0.5), np.array([-0.5])\n    return group\n"
    (tmp_path / "own.py").write_text(f"import numpy as np, torch\ndef own(group):\n{body}")
    kept = variant("keep", Config(keep=f"{tmp_path / 'own.py'}:own"), None)(rewarded(1, 0))
    assert json.dumps([r.advantage for r in kept]) == "[0.5, [-0.5]]"


def test_a_generator_is_as_good_as_a_list_and_a_bug_of_ours_keeps_its_traceback(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text("def keep(group):\n    yield from group[:1]\n")
    group = rewarded(1, 0)
    assert variant("keep", Config(keep=f"{tmp_path / 'own.py'}:keep"), None)(group) == group[:1]
    with pytest.raises(AttributeError):
        variant("keep", Config(keep="informative"), None)([1])


def test_what_a_function_of_ones_own_calls_may_run_out_of_memory_or_of_disk(tmp_path):
    """Then it is not the function that is to be mended: a smaller batch is tried, or the run stops resumably."""
    (tmp_path / "own.py").write_text("def own(hard, search):\n    return search(hard)\n")
    own = variant("evolve", Config(evolve=f"{tmp_path / 'own.py'}:own"), None)
    for error in (torch.OutOfMemoryError(), OSError(errno.ENOSPC, "No space left on device"), UserError("no teacher")):
        with pytest.raises(type(error)) as raised:
            own([], Mock(side_effect=error))
        assert raised.value is error


def test_updates_without_a_finite_loss_name_the_function_that_may_be_at_fault(run):
    run.cfg = dataclasses.replace(run.cfg, loss="mine.py:f")
    with pytest.raises(UserError, match=r"usual cure, unless the numbers come from --loss mine.py:f$"):
        for _ in range(3):
            run.log_update(1, {"skipped": 1.0}, [rollout("a", 0.0)])


@pytest.mark.parametrize(
    "option, body",
    [
        (
            "loss",
            "def own(log_ratio, advantages, *, mask):\n    return (-advantages * log_ratio.exp() * mask).mean()\n",
        ),
        ("loss", "def own(log_ratio, advantages, *, logprob):\n    return -advantages * logprob\n"),
        ("ratio", "def own(logprobs, old_logprobs, mask):\n    return (logprobs - old_logprobs) @ mask\n"),
        ("loss", "def own(log_ratio, advantages):\n    return -advantages * (-log_ratio).sqrt()\n"),
        ("ratio", "def own(logprobs, old_logprobs, mask):\n    return logprobs / 0\n"),
        ("evolve", "def own(hard, search, run):\n    return search(hard)\n"),
        ("keep", "def own(group, *, batch):\n    return group\n"),
        ("select", "def own(order, history, count):\n    return order[:count]\n"),
    ],
)
def test_a_function_that_cannot_work_is_refused_before_the_model_is_loaded(small, monkeypatch, tmp_path, option, body):
    """A loss is first called in the first update with contrast: here after an epoch and a search for templates."""
    (tmp_path / "own.py").write_text(body)
    monkeypatch.setattr(grpo, "load_policy", pytest.fail)
    with pytest.raises(UserError, match=f"--{option} .*own.py:own: "):
        p2o.train(dataclasses.replace(small, **{option: f"{tmp_path / 'own.py'}:own"}))
    assert not small.folder.exists()


def test_every_shipped_loss_and_ratio_passes_the_trial():
    for cfg in (
        Config(loss="cispo"), Config(loss="reinforce"), Config(loss="luffy", keep="luffy"),
        Config(loss="gmpo", aggregation="seq-mean-token-mean"), Config(ratio="gspo", aggregation="seq-mean-token-mean"),
        Config(loss="disco", advantage="disco", aggregation="seq-mean-token-mean"),
        Config(ratio="sampler", ratio_mask=False),
    ):  # fmt: skip
        check_variants(cfg)


def test_a_loss_declares_only_what_it_needs(tmp_path):
    """As docs/variants.md has it: the loop hands on more by name."""
    (tmp_path / "own.py").write_text("def loss(log_ratio, advantages, *, mask):\n    return -advantages * mask\n")
    own = variant("loss", Config(loss=f"{tmp_path / 'own.py'}:loss"), None)
    numbers = torch.tensor([[-1.0, -2.0]])
    loss, _ = grpo.policy_loss(numbers, numbers, torch.ones(1), torch.ones(1, 2), loss=own)
    assert loss == -1


MINE = """
import torch

def select(order, history, count, rng):
    return sorted(order, key=lambda q: q.id)[:count]

def reward(response, question):
    return float(len(response) % 2), f"{question.id}: {len(response)} characters"

def advantage(group):
    return [[float(t) for t in range(len(r.response_ids))] for r in group]

def keep(group):
    return group if group[0].question_id.endswith("1") else []

def ratio(logprobs, old_logprobs, mask):
    return (((logprobs - old_logprobs) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)).expand_as(logprobs)

def loss(log_ratio, advantages, **_):
    return -advantages * log_ratio.exp()
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return {
        seam: f"{tmp_path / 'mine.py'}:{seam}" for seam in ("select", "reward", "advantage", "keep", "ratio", "loss")
    }


def test_every_seam_takes_a_function_of_the_users_own(small, mine, tiny_policy, questions):
    cfg = dataclasses.replace(small, **mine)
    chosen = p2o.choose_questions(questions, p2o.State(), 0, cfg)
    assert [q.id for q in chosen] == sorted(q.id for q in questions)[:8]
    rollouts = p2o.sample_groups(tiny_policy, chosen, {}, cfg, seed=0)
    assert all(r.reward == len(r.text) % 2 for r in rollouts)
    assert all(r.advantage == list(map(float, range(len(r.response_ids)))) for r in rollouts)
    assert {r.question_id for r in p2o.choose_rollouts(rollouts, cfg)} == {q.id for q in chosen if q.id.endswith("1")}
    verdict = verify.judge_of(cfg.reward)(["abc"], [questions[0]], [False])[0]
    assert verdict.feedback == f"{questions[0].id}: 3 characters"


def test_a_run_with_every_seam_replaced_goes_to_the_end_and_samples_on_until_an_update_is_full(small, mine):
    summary = p2o.train(dataclasses.replace(small, **mine, group_size=3, soft_clip=True))
    assert summary["rollouts"] == 2 * 16 * 3
    updates = [m for m in read_lines(small.folder / "metrics.jsonl") if m["kind"] == "update"]
    kept = sum(q["id"].endswith("1") for q in read_lines(ROOT / "tiny" / "train.jsonl")[:8])  # --select: these, always
    assert [m["rollouts"] for m in updates] == [2 * kept * 3] * 2  # one update an epoch: a batch alone does not fill it


def test_an_epoch_that_has_trained_nothing_says_so(small, tmp_path):
    """Every rollout left out, in the first epoch only: no update, and the run goes on."""
    (tmp_path / "mine.py").write_text(
        "seen = []\ndef keep(group):\n    seen.append(1)\n    return group if len(seen) > 16 else []\n"
    )
    p2o.train(dataclasses.replace(small, method="grpo", keep=f"{tmp_path / 'mine.py'}:keep"))
    lines = read_lines(small.folder / "metrics.jsonl")
    assert {m["epoch"] for m in lines if m["kind"] == "update"} == {2}
    assert [m["epoch"] for m in lines if m["kind"] == "warning" and "had no update" in m["text"]] == [1]


@pytest.mark.parametrize("name, complaint", [("nobody", "--loss nobody"), ("no.py:loss", "--loss no.py:loss")])
def test_a_seam_that_does_not_exist_gets_one_line(small, name, complaint):
    with pytest.raises(UserError, match=complaint):
        p2o.train(dataclasses.replace(small, loss=name))
    assert not small.folder.exists()


def test_self_reflection_switches_the_adapter_off(fresh_policy):
    with torch.no_grad():
        for name, parameter in fresh_policy.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)  # a ruined policy
    prompt = gepa_loop.reflection_prompt("", [gepa_loop.reflection_record("Add these digits: 1, 2.", "1.", "x")] * 3)
    [(reply, _)] = p2o.reflection_model(fresh_policy, Config(), 1)([prompt], 0)
    [(ruined, _)] = p2o.reflection_model(fresh_policy, Config(reflection="policy"), 1)([prompt], 0)
    assert "```" in reply and "```" not in ruined


def test_another_local_model_reflects_in_its_place(fresh_policy):
    """The divided world's base, beside the united one that is trained."""
    other = str(grpo.TINY / "divided" / "model")
    prompt = gepa_loop.reflection_prompt("", [gepa_loop.reflection_record("Add these digits: 1, 2.", "1.", "x")] * 3)
    cfg = Config(reflection_model=other)
    told = p2o.reflection_model(fresh_policy, cfg, 1)([prompt] * 3, 0)
    itself = grpo.load_policy(grpo.PolicyConfig(model=other))
    assert told == p2o.reflection_model(itself, Config(), 1)([prompt] * 3, 0)
    assert told != p2o.reflection_model(fresh_policy, Config(), 1)([prompt] * 3, 0)
    assert p2o.load_reflector(cfg) is p2o.load_reflector(cfg)  # loaded once
    with pytest.raises(UserError, match="^--reflection-model .*docs: that folder holds no config.json"):
        p2o.load_reflector(Config(reflection_model=str(ROOT / "docs")))


# --------------------------------------------------------------------------------------------------------- whole runs


def test_a_run_leaves_everything_that_the_readme_names(small, capsys):
    summary, folder = p2o.train(small), small.folder
    report.write_report([folder], folder)
    there = ("config.json", "adapter/adapter_model.safetensors", "transcripts.jsonl", "report.html")
    assert all((folder / name).stat().st_size > 0 for name in there)
    assert len(list(folder.glob("templates/*.json"))) == 1
    metrics = read_lines(folder / "metrics.jsonl")
    assert [m["epoch"] for m in metrics if m["kind"] == "epoch"] == [0, 1, 2]
    assert [m["update"] for m in metrics if m["kind"] == "update"] == list(range(1, 9))
    assert summary["rollouts"] == 2 * 16 * 6 == metrics[-1]["rollouts"]
    assert metrics[-1]["logprob_mismatch"] < 1e-3
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert "epoch 2/2" in capsys.readouterr().out

    # Plain peft reads the adapter, and it has learned something.
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model, tokens = AutoModelForCausalLM.from_pretrained(small.model), torch.tensor([[10, 11, 12]])
    before = model(tokens).logits
    after = PeftModel.from_pretrained(model, folder / "adapter")(tokens).logits
    assert after.shape == before.shape and not after.equal(before)


def test_a_batch_is_logged_in_sums():
    """Three groups: contrast in one token of one response; little contrast; none."""
    groups = [advantaged([0.0, 0.0], [0.0, 1.0], length=2), rewarded(0.2, 0.1, question="b"), rewarded(1, 1)]
    groups[0][0].template, groups[0][1].truncated, groups[1][0].well_formed = "Add.", True, False
    groups[1][0].advantage, groups[1][1].advantage = 0.7, -0.7
    run = SimpleNamespace(log=lambda kind, **sums: logged.append((kind, sums)), shown=[])
    logged = []
    Run.log_rollouts(run, 3, groups, asked("q", "b"), (1e-7, 2e-7))
    sums = {"epoch": 3, "rollouts": 6, "groups": 3, "zero_advantage": 1, "small_contrast": 1, "tokens": 8}
    sums |= {"templated": 1, "truncated": 1, "ill_formed": 1, "mismatch": 1e-7, "mismatch_max": 2e-7}
    sums |= {"reward": pytest.approx(2.3), "entropy": pytest.approx(8.0)}  # every token has log-probability -1
    assert logged == [("rollouts", sums)]
    assert [line["reward"] for _, line in run.shown] == [0, 0, 1, 1], "of the first group and the last"


def test_p2o_learns_what_grpo_does_not(tmp_path):
    """The paper's claim, in the tiny world. Two of the six epochs, every other question, groups of four and short
    searches are enough to see it, with smaller updates at a higher rate."""
    lines = (ROOT / "tiny" / "train.jsonl").read_text().splitlines()
    (tmp_path / "half.jsonl").write_text("\n".join(lines[::2]) + "\n")
    files = {"train_data": str(tmp_path / "half.jsonl"), "eval_data": (str(ROOT / "tiny" / "hard.jsonl"),)}
    cfg = Config(
        **files, runs=str(tmp_path), epochs=2, group_size=4, questions_per_batch=16, questions_per_update=8,
        learning_rate=2e-3,
    )  # fmt: skip
    grpo_summary = p2o.train(dataclasses.replace(cfg, method="grpo", name="grpo"))
    p2o_summary = p2o.train(dataclasses.replace(cfg, name="p2o", gepa_budget="100"))
    assert grpo_summary["accuracy"]["hard"] <= 0.05
    assert p2o_summary["accuracy"]["hard"] >= 0.8
    assert grpo_summary["rollouts"] == p2o_summary["rollouts"]


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
        (["--model", str(ROOT / "docs")], "config.json"),
        (["--train-data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--group-size", "1"], "at least 2 rollouts"),
        (["--ratio-min", "5", "--ratio-max", "2"], "0 < ratio-min <= 1 <= ratio-max"),
        (["--hard-set-min", "1000"], "--hard-set-min 1000"),
        (["--hard-set-min", "3"], "--hard-set-min 3"),
        (["--temperature", "0"], "--temperature 0"),
        (["--vllm-memory", "1.5"], "--vllm-memory 1.5"),
        (["--questions-per-update", "64"], "--questions-per-update 64"),
        (["--gepa-budget", "huge"], "heavy_4"),
        (["--gepa-budget", "²"], "--gepa-budget ²: a number"),
        (["--gepa-budget", "9" * 5000], "a number, or one of light"),
        (["--gepa-budget", "-5"], "--gepa-budget -5: a number"),
        (["--gepa-budget", "0"], "scored on 6 dev questions or more"),
        (["--gepa-budget", "6"], "--gepa-budget 6: the first template alone is scored on 6 dev questions or more"),
        (["--seed", str(2**70)], "--seed 1180591620717411303424: at most 4294967295"),
        (["--seed", "-1"], "--seed -1: at least 0"),
        (["--max-response-tokens", str(10**20)], "--max-response-tokens 100000000000000000000: at most 4294967295"),
        (["--sample-batch", "0"], "--sample-batch 0: at least 1"),
        (["--micro-batch-tokens", "0"], "--micro-batch-tokens 0: at least 1"),
        (["--lora-rank", "0"], "--lora-rank 0: at least 1"),
        (["--lora-alpha", "0"], "--lora-alpha 0: at least 1"),
        (["--threads", "-1"], "--threads -1"),
        (["--temperature", "inf"], "--temperature inf: must be positive"),
        (["--temperature", "nan"], "--temperature nan: not a number"),
        (["--clip-high", "nan"], "--clip-high nan: not a number"),
        (["--warmup", "-1"], "--warmup -1.0: a share of all updates, from 0 to 1"),
        (["--warmup", "2"], "--warmup 2.0: a share of all updates, from 0 to 1"),
        (["--decay", "1.5"], "--decay 1.5: a share of all updates, from 0 to 1"),
        (["--learning-rate", "inf"], "--learning-rate inf"),
        (["--max-grad-norm", "-1"], "--max-grad-norm -1.0: must be positive"),
        (["--kl-coef", "inf"], "--kl-coef inf"),
        (["--reflection-temperature", "0"], "--reflection-temperature 0.0: must be positive"),
        (["--teacher-max-calls", "0"], "--teacher-max-calls 0: at least 1"),
        (["--teacher-max-tokens", "0"], "--teacher-max-tokens 0: at least 1"),
        (["--eval-data", "a/test.jsonl", "a/test.jsonl"], "a/test.jsonl: given twice"),
        (["--eval-data", "a", "--eval_data=b"], "--eval-data is given twice, and the second would replace the first"),
        (["--name", ".."], "--name ..: leads out of "),
        (["--name", "."], "--name .: leads out of "),
        (["--name", "a/../../b"], "--name a/../../b: leads out of "),
        (["--name", "/tmp/run"], "--name /tmp/run: leads out of "),
        (["--train-data", str(ROOT / "docs")], "docs: no plain file"),
        (["--reflection-prompt", str(ROOT / "docs")], "docs: cannot be read"),
        (["--gepa-tokens", "-1"], "--gepa-tokens -1"),
        (["--gepa-seed-template", "Add." * 300], "--gepa-seed-template: it has "),
        (["--soft-clip", "--no-ratio-mask"], "soft clip is a ratio mask"),
        (["--clip-low", "1.5"], "clip-low"),
        (["--soft-clip", "--no-distill"], "every template ratio is 1"),
        (["--reflection", "teacher"], "--teacher-url"),
        (["--teacher-url", "http://127.0.0.1:1/v1", "--teacher-model", "m"], "need each other"),
        (["--teacher-url", "http://127.0.0.1:1/v1"], "need each other"),
        (["--reflection", "teacher", "--teacher-url", "http://127.0.0.1:1/v1"], "need each other"),
        (["--reflection", "policy", "--reflection-model", "m"], "not beside --reflection policy"),
        (["--reflection-prompt", "no/such.txt"], "--reflection-prompt no/such.txt: cannot be read"),
        (["--reflection-prompt", str(ROOT / "LICENSE")], "LICENSE: has no <side_info>"),
        (["--method", "grpo", "--leave-one-bare"], "samples no templates"),
        (["--mine", "bare"], "--mine bare needs --leave-one-bare"),
        (["--ratio", "gspo"], "--ratio gspo needs --aggregation seq-mean-token-mean"),
    ],
)
def test_bad_settings_get_one_line_and_exit_code_2(argv, complaint, capsys, tmp_path):
    assert complaint in refused(capsys, "--runs", str(tmp_path / "runs"), *argv)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("ask", [lambda: [""] * 10**15, lambda: torch.empty(10**15)], ids=["Python", "torch on a CPU"])
def test_too_little_memory_gets_one_line_and_exit_code_2(ask, capsys):
    assert exit_code_of(ask) == 2
    assert capsys.readouterr().err.startswith("p2o: out of memory; lower --group-size")
    with pytest.raises(RuntimeError):
        exit_code_of(Mock(side_effect=RuntimeError("a bug of ours")))


def test_reference_answers_that_nobody_can_parse_are_counted_unless_the_reward_is_ones_own(small, tmp_path, capsys):
    rows = [
        {"question": "a", "answer": "12", "pattern": "1."},  # a reward is tried on the first question
        {"question": "b", "answer": "\\\\frac{1}{"},
        {"question": "c", "answer": "x+1"},
    ]
    odd = dataclasses.replace(small, train_data=write_jsonl(tmp_path / "odd.jsonl", rows), method="grpo")
    p2o.prepare(odd)
    assert "1 of 3 reference answers cannot be parsed" in capsys.readouterr().out
    p2o.prepare(dataclasses.replace(odd, reward="pattern"))
    assert "cannot be parsed" not in capsys.readouterr().out


REWARDS = """
import math, torch
lines = ["a"]
not_a_function = 1.0
def raises(response, question): return 1 / (len(question.text) * 0), "x"
def none(response, question): pass
def nan(response, question): return math.nan, "x"
def infinite(response, question): return math.inf, "x"
def a_bool(response, question): return response == question.reference
def a_bool_with_feedback(response, question): return True, "right"
def a_number(response, question): return 1.0
def a_tensor(response, question): return torch.ones(2, 2)
def a_tensor_with_feedback(response, question): return torch.tensor(1.0), "right"
def without_feedback(response, question): return 1.0, None
def four(response, question): return 1.0, "right", True, 2
def of_one_argument(response): return 1.0, "right"
def of_three_arguments(response, question, more): return 1.0, "right"
"""


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("raises", "ZeroDivisionError: .*mine.py, line 5"),
        ("none", "it gave None"),
        ("nan", r"it gave \(nan, 'x'\)"),
        ("infinite", r"it gave \(inf, 'x'\)"),
        ("a_bool", "it gave False"),
        ("a_bool_with_feedback", "it gave .True, 'right'"),
        ("a_number", "it gave 1.0"),
        ("a_tensor", "it gave tensor"),
        ("a_tensor_with_feedback", "it gave .tensor"),
        ("without_feedback", "it gave .1.0, None"),
        ("four", "it gave .1.0, 'right', True, 2"),
        ("of_one_argument", r"TypeError.*function of \(response, question\)"),
        ("of_three_arguments", r"TypeError.*function of \(response, question\)"),
        ("not_a_function", "not_a_function is no function"),
        ("absent", "no such function"),
    ],
)
def test_a_reward_that_is_none_is_refused_before_the_model_is_loaded(small, monkeypatch, tmp_path, name, complaint):
    (tmp_path / "mine.py").write_text(REWARDS)
    monkeypatch.setattr(grpo, "load_policy", pytest.fail)
    with pytest.raises(UserError, match=f"--reward .*mine.py:{name}: .*{complaint}") as refusal:
        p2o.train(dataclasses.replace(small, reward=f"{tmp_path}/mine.py:{name}"))
    assert "\n" not in str(refusal.value) and not small.folder.exists()


def test_a_file_that_cannot_be_run_is_refused_by_its_line(small, tmp_path):
    (tmp_path / "mine.py").write_text("import math\n\nx = math.sqrt(-1)\n")
    with pytest.raises(UserError, match="--reward .*mine.py:f: ValueError: .*mine.py, line 3"):
        p2o.prepare(dataclasses.replace(small, reward=f"{tmp_path}/mine.py:f"))
    (tmp_path / "script.py").write_text("import sys\n\nsys.exit(0)\n")  # else the run would end so, as if it were done
    with pytest.raises(UserError, match="--reward .*script.py:f: SystemExit: 0 .*script.py, line 3"):
        p2o.prepare(dataclasses.replace(small, reward=f"{tmp_path}/script.py:f"))


def test_a_reward_that_fails_in_mid_run_names_the_question_and_the_response(tmp_path, questions):
    (tmp_path / "mine.py").write_text("def f(response, question): return float(response), ''")
    judge = verify.judge_of(f"{tmp_path}/mine.py:f")
    assert judge(["0.5"], questions[:1], [False]) == [verify.Verdict(0.5, "", True)]
    with pytest.raises(UserError, match=f"'no number' to question {questions[1].id}"):
        judge(["0.5", "no number"], questions[:2], [False] * 2)


def test_a_reward_of_all_at_once_is_asked_once_and_checked_one_by_one(tmp_path, questions):
    """Tests in processes of their own, or a judge behind an endpoint, are too slow one after the other."""
    body = """
from support.seams import all_at_once

calls = []

@all_at_once
def f(responses, questions):
    calls.append(len(responses))
    return ((float(text), question.id) for text, question in zip(responses, questions) if text != "none")
"""
    (tmp_path / "mine.py").write_text(body)
    name = f"{tmp_path}/mine.py:f"
    judge, calls = verify.judge_of(name), find("reward", name).__globals__["calls"]
    assert judge(["0.5", "1"], questions[:2], [False] * 2) == [
        verify.Verdict(0.5, questions[0].id), verify.Verdict(1.0, questions[1].id)
    ]  # fmt: skip
    assert calls == [2]
    for text, complaint in [
        ("none", "it gave 1 rewards for 2 responses"),
        ("no number", "ValueError: could not convert .*mine.py, line 9.*; it was asked about 2 responses"),
        ("inf", f"gave \\(inf, '{questions[1].id}'\\) for question {questions[1].id}"),
    ]:
        with pytest.raises(UserError, match=complaint) as refusal:
            judge(["0.5", text], questions[:2], [False] * 2)
        assert "\n" not in str(refusal.value)


def test_numbers_of_numpy_are_rewards(tmp_path, questions):
    text = "import numpy\ndef f(response, question): return numpy.float32(0.5), '', False"
    (tmp_path / "mine.py").write_text(text)
    (verdict,) = verify.judge_of(f"{tmp_path}/mine.py:f")(["x"], questions[:1], [False])
    assert verdict == (0.5, "", False) and type(verdict.reward) is float


def test_a_budget_below_the_dev_set_is_said(small, run, tiny_policy, questions, capsys):
    """Six dev questions of twelve hard ones are allowed for; these sixteen have eight."""
    cfg = dataclasses.replace(small, gepa_budget="8", hard_set_min=12, gepa_dev_size=40)
    p2o.evolve_templates(tiny_policy, questions, cfg, 1, run)
    assert "scoring the first template on 8 dev questions took all of --gepa-budget 8" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--system-prompt", "--gepa-system"])
def test_a_model_without_a_system_role_refuses_what_needs_one(small, tmp_path, option):
    shutil.copytree(small.model, tmp_path / "model")
    raising = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    known = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())["chat_template"]
    (tmp_path / "model" / "chat_template.jinja").write_text(raising + known)
    settings = {"system_prompt": "Be brief."} if option == "--system-prompt" else {"gepa_system": True}
    with pytest.raises(UserError, match=f"{option}: this model's chat template has no system role"):
        p2o.prepare(dataclasses.replace(small, model=str(tmp_path / "model"), **settings))
    policy = grpo.load_policy(grpo.PolicyConfig(model=str(tmp_path / "model")))
    assert grpo.chat_ids(policy, "7?")
    with pytest.raises(UserError, match="a template with a system part.*no system role"):
        grpo.chat_ids(policy, gepa_loop.apply_template(as_template({"system": "Be brief.", "template": ""}), "7?"))


def test_a_folder_that_holds_a_run_is_not_written_over(small):
    small.folder.mkdir(parents=True)
    (small.folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="already holds a run"):
        p2o.train(small)
    assert (small.folder / "config.json").read_text() == "{}"


def test_the_command_line_trains_between_a_forecast_and_a_report_or_calls_a_tool(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(cli, "run_tool", lambda name, argv: said.append((name, argv)))
    monkeypatch.setattr(fit, "foretell", lambda cfg: said.append(("forecast", cfg.name)))
    monkeypatch.setattr(p2o, "train", lambda cfg: said.append(("trained", cfg.name)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    argv = ["--runs", str(tmp_path), "--name", "run"]
    assert p2o.main(argv) == 0
    assert said == [("forecast", "run"), ("trained", "run"), ("report", [str(tmp_path / "run")])]
    assert p2o.main(["eval", "--samples", "4"]) == 0
    assert said[3:] == [("eval", ["--samples", "4"])]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    p2o.main(argv)
    assert said[4:] == [("trained", "run"), ("report", [str(tmp_path / "run")])], "no card, no forecast"


@pytest.mark.parametrize("name", cli.TOOLS)
def test_every_tool_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stop:
        p2o.main([name, "--help"])
    assert stop.value.code == 0 and "--" in capsys.readouterr().out


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        p2o.main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "An iteration that has begun is finished: up to" in text  # a comment of two lines


def test_a_stopped_run_and_a_mistake_have_codes_and_lines_of_their_own(capsys):
    def work(error):
        raise error

    assert exit_code_of(work, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "p2o: stopped; the same command with --resume goes on with the run\n"
    assert exit_code_of(work, UserError("no questions in x.jsonl")) == 2
    assert capsys.readouterr().err == "p2o: no questions in x.jsonl\n"


def test_sigterm_says_what_ctrl_c_says_and_is_what_it_was_afterwards(capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert exit_code_of(lambda: signal.raise_signal(signal.SIGTERM)) == 143
    assert capsys.readouterr().err == "p2o: stopped; the same command with --resume goes on with the run\n"
    assert signal.getsignal(signal.SIGTERM) is before
    codes = []
    thread = threading.Thread(target=lambda: codes.append(exit_code_of(lambda: None)))  # where no signal can be caught
    thread.start()
    thread.join()
    assert codes == [0]


def test_a_fork_of_a_run_ends_at_once_at_sigterm():
    """A worker that its parent ends is not a run that was stopped: it says nothing."""
    program = (
        "import os, signal, time\n"
        "from support.errors import exit_code_of\n"
        "def work():\n"
        "    end, start = os.pipe()\n"
        "    if (child := os.fork()) == 0:\n"
        "        os.write(start, b'x')\n"
        "        [time.sleep(0.01) for _ in range(3000)]\n"
        "        os._exit(1)\n"
        "    os.read(end, 1)\n"
        "    os.kill(child, signal.SIGTERM)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "exit_code_of(work)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (said.stdout, said.stderr) == ("143\n", "")


def test_a_command_that_does_not_train_does_not_promise_to_resume(monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "command", stopped)
    for argv, promised in ((["eval", "--samples", "4"], False), (["fit"], False), (["demo"], True), ([], True)):
        assert p2o.main(argv) == 130
        assert ("--resume" in capsys.readouterr().err) == promised, argv


def test_a_word_that_is_no_command_is_answered_with_those_that_are(capsys):
    assert p2o.main(["evl", "--samples", "4"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("p2o: evl: no such command; there are demo, study") and said.count("\n") == 1


def test_a_demo_that_was_stopped_goes_on_where_it_was(monkeypatch, tmp_path):
    """In the newest of its folders; a run that had not begun is begun."""
    trained = []
    monkeypatch.setattr(p2o, "train", lambda cfg: trained.append((str(cfg.folder.relative_to(tmp_path)), cfg.resume)))
    for name in ("live_report", "write_report", "comparison_table"):
        monkeypatch.setattr(report, name, lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(report, "comparison_table", lambda folders: "")
    for begun in ("demo/grpo", "demo-2/grpo"):
        (tmp_path / begun).mkdir(parents=True)
        (tmp_path / begun / "config.json").write_text("{}")
    cli.demo(["--runs", str(tmp_path), "--resume"])
    assert trained == [("demo-2/grpo", True), ("demo-2/p2o", False)]
    cli.demo(["--runs", str(tmp_path)])
    assert trained[2:] == [("demo-3/grpo", False), ("demo-3/p2o", False)]
    (tmp_path / "m\u00b2-\u00b2").mkdir()  # a digit, and no number to count on from
    with pytest.raises(UserError, match="--name ../m: leads out of"):
        cli.demo(["--runs", str(tmp_path / "runs"), "--name", "../m"])
    cli.demo(["--runs", str(tmp_path), "--name", "m\u00b2-\u00b2"])
    assert trained[4:] == [("m\u00b2-\u00b2-2/grpo", False), ("m\u00b2-\u00b2-2/p2o", False)]


def test_a_broken_pipe_that_is_not_the_screens_is_a_fault():
    with pytest.raises(BrokenPipeError):
        exit_code_of(Mock(side_effect=BrokenPipeError(errno.EPIPE, "a worker is gone")))


def test_output_that_nobody_reads_ends_the_command_without_a_traceback():
    """As in `p2o.py --help | head`."""
    program = "import sys\nfrom support.errors import exit_code_of\nsys.exit(exit_code_of(print, 'x' * 10**7))"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **pipes) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)


def test_a_western_console_prints_what_it_has_no_letters_for(monkeypatch):
    screen = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(screen, encoding="cp1252"))
    assert exit_code_of(lambda: print("the answer is 四, or é", flush=True)) == 0
    assert screen.getvalue().decode("cp1252") == "the answer is ?, or é\n"


def test_the_last_of_two_presets_counts_as_of_any_option_and_a_text_is_none():
    two = cli.parse_config(["--preset", "tiny", "--preset=qwen3-0.6b-8gb", "--name", "as --preset tiny"])
    assert two == dataclasses.replace(p2o.PRESETS["qwen3-0.6b-8gb"], name="as --preset tiny")


def test_an_unknown_option_ends_with_code_2():
    with pytest.raises(SystemExit) as stop:
        p2o.main(["--group-sise", "4"])
    assert stop.value.code == 2
