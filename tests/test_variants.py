"""variants/: every method against its paper's formula, worked by hand or by another's code, and in a run."""

import dataclasses
import importlib.util
import itertools
import json
import math
import random
import re
import shutil
import statistics
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, write_jsonl

import gepa_loop
import grpo
import p2o
import verify
from lab.studies import worlds
from p2o import Config
from support.data import Question, load_questions
from support.errors import UserError
from support.log import read_lines
from support.seams import CALLED_WITH, NOW, check_variants, checked_advantages, find, variant
from tiny.problems import FAMILIES
from tiny.worlds import WORLDS
from tools import study
from variants import advantage, evolve, given, gps, keep, loss, ratio, select, table
from variants.example import advantaged, asked, rewarded

TRL = json.loads((ROOT / "tests" / "data" / "trl_losses.json").read_text())
NAMES = {
    "evolve": ["frozen", "uncovered"],
    "mine": ["bare"],
    "select": ["greso", "mopps", "gps", "unsolved", "unlockable"],
    "advantage": ["rloo", "reinforce_pp", "overlong", "pass_at_k", "lead", "seed_grpo", "dra_grpo", "t_spmo", "s_grpo",
                  "disco", "successes", "spectral"],
    "keep": ["informative", "cppo", "positives", "trained_part", "luffy"],
    "ratio": ["gspo", "sampler"],
    "loss": ["cispo", "gmpo", "reinforce"],
}  # fmt: skip
ALL_HINTS = " ".join(family.hints[0] for family in FAMILIES.values())


# ------------------------------------------------------------------------------------------------- ratios and losses


def ours(name, **settings):
    """(loss, gradient) of TRL's batch under our options."""
    logprobs = torch.tensor(TRL["logprobs"], requires_grad=True)
    old, mask, advantages = (torch.tensor(TRL[key]) for key in ("old_logprobs", "mask", "advantages"))
    cfg = Config(dual_clip=1e6, **settings)
    value, _ = grpo.policy_loss(
        logprobs, old, advantages, mask, clip_low=cfg.clip_low, clip_high=cfg.clip_high, dual_clip=cfg.dual_clip,
        aggregation=cfg.aggregation, update_size=(4, int(mask.sum()), 10),
        ratio=variant("ratio", cfg, grpo.log_importance_ratio), loss=variant("loss", cfg, grpo.surrogate),
    )  # fmt: skip
    value.backward()
    return value.item(), logprobs.grad


EQUAL = {"aggregation": "seq-mean-token-mean"}


@pytest.mark.parametrize(
    "name, settings, factor",
    [
        ("grpo", EQUAL, 1),
        ("dapo", {"clip_high": 0.28}, 1),
        ("dr_grpo", {"aggregation": "seq-mean-token-sum-norm"}, 4),  # TRL divides by the number of rollouts, too
        ("gspo", EQUAL | {"ratio": "gspo", "clip_low": 0.02, "clip_high": 0.02}, 1),
        ("cispo", {"loss": "cispo"}, 1),
        ("gmpo", EQUAL | {"loss": "gmpo", "clip_low": 0.4, "clip_high": 0.4}, 1),
    ],
)
def test_losses_and_gradients_are_those_of_trl(name, settings, factor):
    value, gradient = ours(name, **settings)
    expected = torch.tensor(TRL["cases"][name]["gradient"]) * factor
    assert value == pytest.approx(TRL["cases"][name]["loss"] * factor, abs=1e-5)
    assert torch.allclose(gradient * torch.tensor(TRL["mask"]), expected, atol=1e-5)


def test_disco_is_the_gradient_of_its_objective():
    """On-policy, A log pi with DisCO's A has the gradient of mean s_right - tau log mean exp(s_wrong / tau)."""
    for tau, given_tau in ((10.0, {}), (1.0, {"tau": 1.0})):
        s = torch.tensor([-1.0, -2.0, -0.5, -3.0], requires_grad=True)
        (s[:2].mean() - tau * (s[2:] / tau).exp().mean().log()).backward()
        group = rewarded(1, 1, 0, 0, logprobs=s.tolist())
        group[2].sampled_logprobs, group[2].response_ids = [-0.1, -0.9], [0, 0]  # -0.5 on average
        assert advantage.disco(group, **given_tau) == pytest.approx(s.grad.tolist(), abs=1e-6)


def test_discos_fence_pushes_by_what_the_kl_is_beyond_its_bound():
    """Inside nothing, outside beta (KL - delta) times the gradient of the KL: -1 / 4 for each of four tokens."""
    for log_ratio, push in (([0.1, -0.1, 0.0, 0.0], 0.0), ([-0.1, -0.2, 0.1, 0.0], 1000 * (0.05 - 1e-4))):
        new = torch.tensor([log_ratio], requires_grad=True)
        ones = torch.ones(1, 4)
        grpo.aggregate(loss.disco(new, 0 * ones, logprobs=new, mask=ones), ones, "token-mean").backward()
        assert new.grad[0].tolist() == pytest.approx([-push / 4] * 4, abs=1e-4)


def test_the_samplers_ratio_is_the_products_of_both_ratios():
    new, old, templated = torch.rand(3, 2, 4).log()
    expected = (new - old).exp() * (old - templated).exp()
    found = ratio.sampler(new, old, torch.ones(2, 4), sampled_logprobs=templated).exp()
    assert torch.allclose(found, expected, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------- advantages


def test_rloo_is_grpo_without_the_scale():
    group = rewarded(1, 0, 0, 1, 0)
    centred = grpo.group_advantages(torch.tensor([r.reward for r in group]), 5, scale_by_std=False)
    assert advantage.rloo(group) == pytest.approx((centred * 5 / 4).tolist())


def test_the_overlong_penalty_is_that_of_trl():
    known = TRL["overlong"]
    group = rewarded(*[1] * 5, lengths=known["lengths"])
    shaped = [1 + penalty for penalty in known["penalties"]]
    expected = [(x - statistics.mean(shaped)) / statistics.stdev(shaped) for x in shaped]
    assert advantage.overlong(group, max_response_tokens=40) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("rewards, k", [((1, 0, 0, 0, 0, 0), 3), ((1, 1, 0, 1, 0, 0), 2), ((1, 1, 1, 1, 1, 0), 4)])
def test_pass_at_k_is_the_mean_over_all_subsets(rewards, k):
    subsets = list(itertools.combinations(range(6), k))
    earned = {s: max(rewards[i] for i in s) for s in subsets}
    mean, std = statistics.mean(earned.values()), statistics.pstdev(earned.values())
    expected = [statistics.mean((earned[s] - mean) / (std + 1e-6) for s in subsets if i in s) for i in range(6)]
    assert advantage.pass_at_k(rewarded(*rewards), k=k) == pytest.approx(expected, abs=1e-5)


def test_lead_prefers_the_shorter_right_answer_by_the_papers_amount():
    """Lengths 2 and 4 are z = -1 and 1: rewards exp(0.05), exp(-0.05), -1, -1, and half are right."""
    shaped = [1.0512711, 0.9512294, -1.0, -1.0]
    weight = 0.4 + 1.1 / (1 + 0.0820850)  # exp(10 (0.5 - 0.75))
    expected = [weight * (x - statistics.mean(shaped)) / statistics.stdev(shaped) for x in shaped]
    assert advantage.lead(rewarded(1, 1, 0, 0, lengths=(2, 4, 3, 3))) == pytest.approx(expected, abs=1e-5)


def test_seed_grpo_leaves_a_group_alone_that_agrees():
    agreed = rewarded(1, 1, 1, 0, texts=[r"\boxed{1}"] * 4)
    assert advantage.seed_grpo(agreed) == pytest.approx(advantage.scaled(torch.tensor([1.0, 1.0, 1.0, 0.0])))
    split = rewarded(1, 1, 0, 0, texts=[r"\boxed{1}"] * 2 + [r"\boxed{2}"] * 2)  # entropy log 2 of at most log 4
    assert advantage.seed_grpo(split)[0] == pytest.approx(0.75 * 0.8660254, abs=1e-5)


def test_token_advantages_add_up_to_what_the_response_earned():
    group = rewarded(1, 0, 0, 1, ids=([7, 8, 1], [7, 9], [5], [7, 8]))
    for r, row in zip(group, advantage.t_spmo(group), strict=True):
        others = [o for o in group if o.response_ids[: len(r.response_ids)] == r.response_ids]
        assert sum(row) == pytest.approx(statistics.mean(o.reward for o in others) - 0.5)


def test_s_grpo_trains_a_subset_that_a_resumed_run_draws_again():
    group = rewarded(1, 0, lengths=(40, 40))
    rows = advantage.s_grpo(group)
    assert rows == advantage.s_grpo(group)
    for row, whole in zip(rows, advantage.scaled(torch.tensor([1.0, 0.0])), strict=True):
        assert all(a == whole for a in row[:5]) and row.count(whole) == 15 and row.count(0.0) == 25


def test_spectral_leaves_groups_with_a_success_to_the_verifier():
    question = Question("q", "Add these digits: 7, 9, 8.", "24")
    texts = [r"7; 16; 24. \boxed{24}", r"7; 16. \boxed{16}", r"1. \boxed{1}"]
    mixed = advantage.spectral(rewarded(1, 0, 0, texts=texts), questions=[question])
    assert mixed == advantage.scaled(torch.tensor([1.0, 0.0, 0.0]))
    failed = advantage.spectral(rewarded(0, 0, texts=texts[1:]), questions=[question])  # 2 of 3 steps, and none
    assert failed == pytest.approx([0.7071, -0.7071], abs=1e-3)


@pytest.mark.parametrize("world", ["united", "divided"])
def test_what_the_rivals_are_given_is_right(world):
    for question in load_questions(str(ROOT / "tiny" / "train.jsonl")):
        text = given.demonstration(question, str(WORLDS[world].model))
        assert WORLDS[world].marks[given.family_of(question)] in text
        assert verify.grade(text, question.reference).reward == 1
        assert given.right_steps(question, text) == pytest.approx(1 - 1 / (len(given.states_of(question)) + 1))


# ------------------------------------------------------------------------------------------------------ what is kept


def gradient_of(policy, rollouts, **settings):
    """The adapter's gradient, and the bytes that the passes kept for backward."""
    kept, weights = {}, {p.untyped_storage().data_ptr() for p in policy.model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    cfg = Config(aggregation="seq-mean-token-sum", **settings)
    policy.model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = grpo.loss_of(policy, rollouts, cfg, (len(rollouts), 1, 40))
    loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.trainable]), sum(kept.values())


def test_a_token_subset_saves_its_passes_and_keeps_its_gradient(fresh_policy):
    """What makes S-GRPO memory-constrained: the same gradient from less than half of what backward has to keep."""
    context = grpo.chat_ids(fresh_policy, "Add these digits: 7, 9.")
    group = rewarded(1, 0, 0, 1, ids=[range(20 + i, 60 + i) for i in range(4)])
    rows = advantage.s_grpo(group, first=5, share=0.0)
    for r, row in zip(group, rows, strict=True):
        r.sampled_context = r.trained_context = context
        r.advantage = row
    whole, all_bytes = gradient_of(fresh_policy, group)
    part, few_bytes = gradient_of(fresh_policy, keep.trained_part(group))
    assert (part - whole).norm() < 1e-5 * whole.norm()
    assert few_bytes < 0.5 * all_bytes


def test_a_demonstration_takes_the_last_place_and_is_weighed_by_the_papers_shape(fresh_policy):
    question = load_questions(str(ROOT / "tiny" / "train.jsonl"))[0]
    context = grpo.chat_ids(fresh_policy, question.text)
    group = [dataclasses.replace(r, sampled_context=context, trained_context=context)
             for r in rewarded(0, 0, 0, question=question.id)]  # fmt: skip
    mixed = keep.luffy(group, policy=fresh_policy, questions=[question])
    assert [r.reward for r in mixed] == [0, 0, 1] and mixed[2].response_ids[-1] in fresh_policy.stop_ids
    assert [r.advantage for r in mixed] == pytest.approx([-0.57735, -0.57735, 1.154699], abs=1e-5)
    unscaled = keep.luffy(group, policy=fresh_policy, questions=[question], scale_by_std=False)
    assert [r.advantage for r in unscaled] == pytest.approx([-1 / 3, -1 / 3, 2 / 3], abs=1e-6)
    sure = [0.0] * len(mixed[2].response_ids)
    assert mixed[2].sampled_logprobs == mixed[2].old_logprobs == sure, "its writer was sure of each token"
    decoded = fresh_policy.tokenizer.decode(mixed[2].response_ids, skip_special_tokens=True)
    assert verify.grade(decoded, question.reference).reward == 1
    shown = torch.tensor([[0.5, 0.01]]).log().requires_grad_(True)
    loss.luffy(shown, torch.ones(1, 2), logprobs=shown, clip_low=0.2, clip_high=0.2, dual_clip=3.0).sum().backward()
    by_hand = [-0.5 * 0.1 / 0.6**2, -0.01 * 0.1 / 0.11**2]  # -d/dlog pi of pi / (pi + 0.1)
    assert shown.grad[0].tolist() == pytest.approx(by_hand, abs=1e-5)


def test_keep_takes_list_advantages():
    group = advantaged([0.0, -2.0], [0.5, 0.5], [0.0, 0.0], [0.1, 0.0], length=2)
    assert [r.advantage[1] for r in keep.cppo(group)] == [-2.0, 0.5]
    assert len(keep.positives(group)) == 2 and len(keep.informative(group)) == 4


@pytest.mark.parametrize(
    "given, plain",
    [
        (torch.tensor([0.5, -0.5]), [0.5, -0.5]),
        ([torch.tensor([1.0, 2.0]), 0.5], [[1.0, 2.0], 0.5]),
        (([0, 1], [2, 3]), [[0.0, 1.0], [2.0, 3.0]]),
        ([True, False], [1.0, 0.0]),  # of which torch would make a tensor that has no minus
        (list(np.float32([0.5, -0.5])), [0.5, -0.5]),
    ],
)
def test_advantages_of_ones_own_may_be_lists_or_tensors(given, plain):
    found = checked_advantages("mine.py:mine", given, advantaged(0.0, 0.0, length=2))
    assert json.dumps(found) == json.dumps(plain)


@pytest.mark.parametrize("given", [None, 0.5, [0.5], [0.5, math.nan], [[0.5], [0.5]], ["a", "b"], torch.tensor(1.0)])
def test_advantages_that_are_none_are_refused_by_name(given):
    with pytest.raises(UserError, match="--advantage mine.py:mine: it gave .* for the 2 rollouts of question"):
        checked_advantages("mine.py:mine", given, advantaged(0.0, 0.0, length=2))


# --------------------------------------------------------------------------------------------------------- selection

HISTORY = {"all": [1.0] * 4, "none": [0.0] * 4, "some": [0.5], "once": [1.0]}


def drawn(selector, draws=2000, count=1, **at_hand):
    """How often each question is in the batch."""
    order, rng = asked(*HISTORY), random.Random(0)
    shuffled = [rng.sample(order, len(order)) for _ in range(draws)]
    batches = [selector(questions, HISTORY, count, rng, **at_hand) for questions in shuffled]
    return {q.id: sum(q in batch for batch in batches) / draws for q in order}


def test_greso_draws_by_half_to_the_power_of_dull_groups():
    shares = drawn(select.greso, count=4)
    assert all(share == 1 for share in shares.values())  # a batch is always filled up
    first = drawn(select.greso)
    assert first["all"] == pytest.approx(first["none"], abs=0.03) and first["some"] > first["once"] > 5 * first["all"]


def test_mopps_believes_the_beta_posterior_of_the_paper():
    """After [1.0] with G = 6: Beta(1 + 6, 1). How near one half it is drawn decides."""

    class Fixed(random.Random):
        def betavariate(self, a, b):
            seen.append((a, b))
            return 0.5

    seen = []
    select.mopps(asked("once", "new"), {"once": [1.0], "new": []}, 1, Fixed(0), group_size=6)
    select.mopps(asked("twice"), {"twice": [1.0, 0.5]}, 1, Fixed(0), group_size=6)
    select.mopps(asked("other"), {"other": [0.0, 0.5]}, 1, Fixed(0), group_size=6)
    twice, other = (0.5 * 7 + 0.5 + 3, 0.5 * 1 + 0.5 + 3), (0.5 * 1 + 0.5 + 3, 0.5 * 7 + 0.5 + 3)
    assert seen == [(7.0, 1.0), (1.0, 1.0), twice, other]


def test_only_what_is_solved_is_skipped():
    shares = drawn(select.unsolved, count=4)
    assert shares["none"] == shares["some"] == 1
    assert shares["once"] == pytest.approx(0.5, abs=0.04) and shares["all"] < 0.1


def test_a_question_that_no_template_solved_twice_is_retired():
    templated = {"none": [0.5, 0.0, 0.0], "some": [0.0, 0.0], "once": [0.0, 0.5]}
    shares = drawn(select.unlockable, count=4, templated=templated)
    assert shares["none"] < 0.01 and shares["some"] == 1  # that one was solved bare, once
    lost, rng = {"a": [0.0, 0.0], "b": [0.0, 0.0]}, random.Random(0)
    assert len(select.unlockable(asked("a", "b"), {}, 2, rng, templated=lost)) == 1  # a batch is never empty


def test_gps_knows_questions_it_never_tried_by_those_like_them(tiny_policy):
    """A family's rates say what its other questions will do: the hidden state knows the family."""
    questions = load_questions(str(ROOT / "tiny" / "train.jsonl"))
    easy = torch.tensor([float(len(q.text.split(",")) == 2) for q in questions]).double()
    tried = list(range(0, len(questions), 3))  # families come in fours, so some of each
    mean, covariance = gps.predict(
        gps.features(tiny_policy, questions), tried, easy[tried], torch.full((len(tried),), 0.04).double()
    )
    new = [i for i in range(len(questions)) if i % 3]
    assert (mean[new] - easy[new]).square().mean() < 0.25 * easy.var()
    assert (covariance.diag()[tried] < 0.05).all()


def test_gps_features_are_standardized(tiny_policy):
    x = gps.features(tiny_policy, load_questions(str(ROOT / "tiny" / "train.jsonl"))[:12])
    assert x.mean(dim=0).abs().max() < 1e-6 and (x.std(dim=0) - 1).abs().max() < 1e-3


def test_a_question_like_a_chosen_one_keeps_what_the_choice_does_not_say_of_it():
    """Knowing 0's rate to 0.2 leaves 0.2 - 0.2^2 / (0.2 + 0.04) = 0.033 of 1's variance: more than the 0.01 of 2."""
    like = torch.tensor([[0.2, 0.2, 0.0], [0.2, 0.2, 0.0], [0.0, 0.0, 0.01]]).double()
    assert gps.acquire(torch.full((3,), 0.5).double(), like, 2) == [0, 1]


def test_gps_selects_the_half_solved_and_then_their_opposites(tiny_policy):
    questions = load_questions(str(ROOT / "tiny" / "train.jsonl"))[:12]
    assert gps.gps(questions, {}, 4, random.Random(0), policy=tiny_policy, group_size=6) == questions[:4]
    history = {q.id: [0.0] for q in questions} | {questions[7].id: [0.5]}
    chosen = gps.gps(questions, history, 4, random.Random(0), policy=tiny_policy, group_size=600)
    assert chosen[0] == questions[7] and len(set(q.id for q in chosen)) == 4


def test_gps_says_how_well_it_predicts_and_what_that_is_good_for(tiny_policy, tmp_path, capsys):
    """The share solved by four samples each, drawn here as it draws them; fewer samples solve no more."""
    rows = (ROOT / "tiny" / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "few.jsonl").write_text("".join(rows[:6] + rows[-6:]))
    gps.main(str(tmp_path / "few.jsonl"), group_size=4)
    printed = capsys.readouterr().out
    assert "6 questions never tried, predicted from 6 that were, G = 4" in printed and "| questions | pred" in printed
    questions = load_questions(str(tmp_path / "few.jsonl"))
    random.Random(0).shuffle(questions)
    texts = [s.text for s in grpo.respond(tiny_policy, [q.text for q in questions for _ in range(4)], seed=0)]
    right = [verify.grade(texts[4 * n + k], q.reference).reward for n, q in enumerate(questions) for k in range(4)]
    groups = [right[4 * n : 4 * n + 4] for n in range(12)]
    found = re.findall(r"(\d) samples a question: solved ([\d.]+) alike, ([\d.]+) allocated", printed)
    assert [(int(budget), float(alike)) for budget, alike, _ in found] == [
        (budget, round(statistics.mean(any(group[:budget]) for group in groups[6:]), 2)) for budget in (1, 2, 4)
    ]
    allocated = [float(share) for *_, share in found]
    assert allocated == sorted(allocated) and 0 < allocated[-1] <= 1
    error, constant = map(float, re.search(r"error ([\d.]+); of the mean of those tried ([\d.]+)", printed).groups())
    rates = [statistics.mean(group) for group in groups]
    tried = statistics.mean(rates[:6])
    assert constant == pytest.approx(statistics.mean((rate - tried) ** 2 for rate in rates[6:]), abs=1e-4)
    assert 0 <= error < 1


def test_samples_are_allocated_to_solve_the_most_in_expectation():
    p, budget = [0.9, 0.5, 0.2], 7
    best = max(
        (n for n in itertools.product(range(budget + 1), repeat=3) if sum(n) == budget),
        key=lambda n: sum(1 - (1 - x) ** k for x, k in zip(p, n, strict=True)),
    )
    assert tuple(gps.allocate(torch.tensor(p), budget)) == best


# ------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Two epochs in a second: four hard questions and four easy ones, hot enough for contrast without templates."""
    rows = read_lines(ROOT / "tiny" / "train.jsonl")
    rows = rows[:4] + rows[-4:]
    evolved = lambda policy, hard, cfg, epoch, run: {q.id: [ALL_HINTS] * cfg.group_size for q in hard}  # noqa: E731
    monkeypatch.setattr(p2o, "evolve_templates", evolved)  # what it finds is tested elsewhere
    train, held_out = write_jsonl(tmp_path / "few.jsonl", rows), write_jsonl(tmp_path / "one.jsonl", rows[:1])
    return Config(
        train_data=train, eval_data=(held_out,), runs=str(tmp_path / "runs"), name="run", epochs=2,
        questions_per_batch=4,
        questions_per_update=2, group_size=4, hard_set_min=4, temperature=2.2, learning_rate=1e-5,
        max_response_tokens=20, seed=4,
    )  # fmt: skip


def settings_for(seam, name):
    """The option, and what it needs beside it."""
    function = getattr(importlib.import_module(f"variants.{seam}"), name)
    beside = dict(getattr(function, "needs", {}))
    if name == "trained_part":
        beside["advantage"] = "t_spmo"
    if "loss" in beside and name == "disco":
        beside |= {"loss": "disco"}
    return {seam: name} | beside


def together(method):
    """Options of runs in which every variant takes part: each joins the first run that leaves free, or has set alike,
    the options that it sets. By the names of the variants in it."""
    runs = []
    for seam, names in NAMES.items():
        for name in names if method == "p2o" or seam not in ("evolve", "mine") else []:  # GRPO has no templates
            wanted = settings_for(seam, name)
            fitting = (run for run in runs if all(run[1].get(key, value) == value for key, value in wanted.items()))
            run = next(fitting, None)
            if run is None:
                runs.append(run := ([], {}))
            run[0].append(name)
            run[1].update(wanted)
    return [pytest.param(method, settings, id=f"{method}: {', '.join(names)}") for names, settings in runs]


@pytest.mark.parametrize("method, settings", [*together("grpo"), *together("p2o")])
def test_every_variant_trains_under_both_methods(small, method, settings):
    """A batch of two updates an epoch; two for a selection, which chooses what is in them, and for pass@k, to which one
    of these batches has no contrast. A second epoch where it brings templates, or a past for a selection to look at."""
    two = "select" in settings or settings.get("advantage") == "pass_at_k"
    one_batch = {} if two else {"questions_per_batch": 8, "questions_per_update": 4}
    epochs = 2 if method == "p2o" or two else 1
    cfg = dataclasses.replace(small, method=method, epochs=epochs, **settings, **one_batch)
    p2o.train(cfg)
    lines = read_lines(cfg.folder / "metrics.jsonl")
    updates, measured = ([line for line in lines if line["kind"] == kind] for kind in ("update", "epoch"))
    assert any(update["grad_norm"] > 0 for update in updates) and not any(update["skipped"] for update in updates)
    assert [line["epoch"] for line in measured] == [*range(epochs + 1)]
    assert (measured[-1]["templated"] > 0) == (method == "p2o")


def test_templates_are_given_instead_of_searched(tmp_path):
    """`frozen` reads what an earlier epoch of the run has written; `uncovered` forgets the scores of a search."""
    hard = [Question(name, f"{name}?", "1") for name in "abc"]
    first = evolve.given(hard[:2], ["Add.", "Count."], [[1.0, 0.0], [1.0, 1.0]])
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "epoch-2.json").write_text(
        json.dumps(dataclasses.asdict(first) | {"weights": first.weights})
    )
    assert evolve.frozen(hard, lambda hard: "searched", folder=tmp_path, epoch=2) == "searched"  # none earlier
    frozen = evolve.frozen(hard, None, folder=tmp_path, epoch=3)
    assert frozen.candidates == ["", "Add.", "Count."] and frozen.weights == [0.5, 1.0]
    assert frozen.dev_ids == ["a", "b", "c"] and frozen.metric_calls == 0
    found = dataclasses.replace(first, metric_calls=7, chosen=[2])
    uncovered = evolve.uncovered(hard, lambda hard: found)
    assert uncovered.chosen == [1, 2] and uncovered.weights == [1.0, 1.0] and uncovered.metric_calls == 7


def test_templates_from_elsewhere_are_chosen_where_none_earns_more_as_in_a_search(tmp_path):
    """A little partial credit everywhere is no cover."""
    (tmp_path / "mine.py").write_text("def f(response, question): return float(response), ''")
    hard, earned = [Question(name, f"{name}?", "1") for name in "ab"], iter(["0.2", "0.2", "1", "0"])
    found = evolve.scored(hard, ["Add.", "Count."], lambda asked: [(next(earned), False) for _ in asked],
                          f"{tmp_path}/mine.py:f")  # fmt: skip
    assert found.dev_scores[1:] == [[0.2, 0.2], [1.0, 0.0]] and found.chosen == [1, 2]


def test_the_list_of_variants_is_whole():
    for seam in NAMES:
        module = importlib.import_module(f"variants.{seam}")
        public = {name for name in getattr(module, "__all__", vars(module)) if callable(getattr(module, name))}
        own = {n for n in public if n == "gps" or getattr(module, n).__module__ == module.__name__}
        helpers = {"given", "scored", "rewards_of", "scaled", "strength", "in_a_row", "Tensor"}
        partners = {"sdpo", "disco", "luffy"} - set(NAMES[seam])  # run by the advantage, the keep or the diff they need
        assert own - helpers - partners == set(NAMES[seam])


OWN = """
import random
import numpy as np
import torch

def drawn(group):
    return [r.reward + random.random() + torch.rand(1).item() + np.random.rand() for r in group]

def some(group):
    return random.sample(group, 3)
"""


@pytest.mark.parametrize("name", ["greso", "mopps", "gps", "unlockable", "own.py"])
def test_what_looks_back_or_draws_resumes_to_the_same_run(small, name, monkeypatch, tmp_path, capsys):
    """From a copy of its folder, taken in the second of the second epoch's three batches: all that a kill leaves."""
    (tmp_path / "own.py").write_text(OWN)  # draws as people do, from the libraries' own generators
    own = {"advantage": f"{tmp_path / 'own.py'}:drawn", "keep": f"{tmp_path / 'own.py'}:some"}
    settings = own if name == "own.py" else {"select": name}
    cfg = dataclasses.replace(small, **settings, questions_per_batch=3, questions_per_update=3)
    real, done = grpo.update_policy, itertools.count()

    def copying(*args):
        if next(done) == 4:
            shutil.copytree(cfg.folder, tmp_path / "killed")
        return real(*args)

    monkeypatch.setattr(grpo, "update_policy", copying)
    p2o.train(cfg)
    whole = (cfg.folder / "metrics.jsonl").read_text()
    for rollouts_are_there in (True, False):  # a kill before they are written leaves the checkpoint alone
        shutil.rmtree(cfg.folder)
        shutil.copytree(tmp_path / "killed", cfg.folder)
        assert (cfg.folder / "rollouts-4.json").exists()
        if not rollouts_are_there:
            (cfg.folder / "rollouts-4.json").unlink()
        p2o.train(dataclasses.replace(cfg, resume=True))
        assert "resumed from checkpoint 000004" in capsys.readouterr().out
        assert (cfg.folder / "metrics.jsonl").read_text() == whole


def test_a_function_may_ask_for_what_the_page_says_and_for_where_the_run_is(small, tmp_path, monkeypatch):
    """What `check_signature` lets pass is there where the function is called."""
    arguments = {seam: ", ".join("abcd"[:n]) + ", *, " + ", ".join([*names, *NOW]) for seam, (n, names) in
                 CALLED_WITH.items()}  # fmt: skip
    gives = {"select": "a[:c]", "mine": "True", "advantage": "[1.0, 0.0, 0.0, 0.0]", "keep": "a", "ratio": "a - b",
             "loss": "-b * a.exp()", "evolve": "b(a)"}  # fmt: skip
    lines = [f"def {s}({arguments[s]}):\n    seen.append(('{s}', epoch, done))\n    return {gives[s]}" for s in gives]
    (tmp_path / "own.py").write_text("seen = []\n" + "\n".join(lines))
    cfg = dataclasses.replace(small, **{seam: f"{tmp_path / 'own.py'}:{seam}" for seam in gives})
    monkeypatch.undo()  # templates are evolved here, with a search that is short
    monkeypatch.setattr(gepa_loop, "evolve", lambda hard, *_, **__: evolve.given(hard, ["Add."], [[1.0] * len(hard)]))
    p2o.train(cfg)
    seen = find("loss", cfg.loss).__globals__["seen"]
    places = {(0, 0.0), (0, 0.25), (1, 0.5), (1, 0.75)}  # a loss is tried out before, too
    found = {seam: {place[1:] for place in seen if place[0] == seam} & places for seam in gives}
    assert found == dict.fromkeys(gives, places) | {"evolve": {(1, 0.5)}}


# ------------------------------------------------------------------------------------------ what does not go together


@pytest.mark.parametrize(
    "settings, complaint",
    [
        ({"ratio": "gspo"}, "--ratio gspo needs --aggregation seq-mean-token-mean"),
        ({"ratio": "sampler"}, "--ratio sampler needs --no-ratio-mask"),
        ({"loss": "disco"}, "--loss disco needs --advantage disco"),
        ({"advantage": "disco", "loss": "disco"}, "--advantage disco needs --aggregation seq-mean-token-mean"),
        ({"keep": "luffy"}, "--keep luffy needs --loss luffy"),
        ({"keep": "trained_part", "ratio": "gspo", "aggregation": "seq-mean-token-mean"}, "needs no --ratio beside it"),
        ({"advantage": "successes"}, "--advantage successes needs --loss reinforce"),
    ],
)
def test_a_variant_is_refused_in_one_line_without_what_it_needs(settings, complaint):
    with pytest.raises(UserError, match=complaint):
        check_variants(Config(**settings))


# --------------------------------------------------------------------------------------- the table, studies, the diff


def test_the_table_is_up_to_date(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "variants.md").read_text(encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "variants.md").write_text(page[: page.index(table.MARK)] + table.MARK + "an old table")
    (tmp_path / "lab").symlink_to(ROOT / "lab")
    monkeypatch.setattr(table, "ROOT", tmp_path)
    table.main()
    made = (tmp_path / "docs" / "variants.md").read_text(encoding="utf-8")
    assert made == page, "python -m variants.table writes it anew"


def test_a_variant_is_at_most_ten_lines_and_says_what_it_changes():
    assert len(table.variants()) >= 30
    for seam, function in table.variants():
        method, change = table.described(function)
        assert method and change and table.code_lines(function) <= 10, f"{seam} {function.__name__}"


def test_the_table_reads_what_a_study_has_measured(tmp_path, monkeypatch):
    def runs(*finals):
        curves = [[{"rollouts": x, "accuracy": {"hard": y}} for x, y in ((0, 0.0), (10, y))] for y in finals]
        return [{"seed": seed, "curve": curve} for seed, curve in enumerate(curves)]

    results = {"uniform": runs(0.2, 0.2), "P2O, --advantage rloo": runs(0.5, 1.0), "P2O": runs(0.5, 0.5)}
    results |= {"P2O, --select gps": [], "GRPO, --select gps": runs(0.2, 0.4)}  # without plain GRPO: against the first
    results["every rollout bare, one decides"] = runs(0.4, 0.5)  # found by what it sets
    sets = {"every rollout bare, one decides": {"leave_one_bare": True, "mine": "bare"}}
    baselines = dict.fromkeys(results, "uniform") | {"every rollout bare, one decides": "P2O"}
    record = {"results": results, "options": sets, "baselines": baselines}
    study.keep_record(tmp_path / "lab" / "results", "some", record)
    monkeypatch.setattr(table, "ROOT", tmp_path)
    assert table.measured("--advantage rloo") == "P2O +0.125 ± 1.588 (some, 2 seeds)"
    assert table.measured("--select gps") == "GRPO +0.050 ± 0.635 (some, 2 seeds)"
    assert table.measured("--mine bare", ["--leave-one-bare"]) == "P2O -0.025 ± 0.318 (some, 2 seeds)"
    assert table.measured("--mine bare") == table.measured("--advantage lead") == "not yet measured"


def test_the_worlds_of_the_studies_are_what_they_say():
    rows, held_out = worlds.selection(random.Random(0), set())
    kinds = [row["kind"] for row in rows]
    assert [kinds.count(kind) for kind in ("solved", "impossible", "between")] == [48, 48, 48] and len(held_out) == 100
    between = [row for row in rows if row["kind"] == "between"]
    for row in between:
        states = given.states_of(Question("q", row["question"], row["answer"]))
        family = next(name for name, f in FAMILIES.items() if row["question"].startswith(f.ask))
        assert states.index(row["answer"]) + 1 == worlds.DEPTHS[family] and states.count(row["answer"]) == 1
    assert len({worlds.DEPTHS[name] for name in FAMILIES}) == 4


def test_a_pattern_is_a_task_that_hints_solve(tiny_policy):
    rows, _ = worlds.pattern(random.Random(0), set())
    questions = [Question(row["id"], row["question"], row["answer"], row=row) for row in rows[:12]]
    judge, rewards = verify.judge_of("pattern"), {}
    for hints in ("", ALL_HINTS):
        asked_for = [gepa_loop.apply_template(hints, q.text) for q in questions]
        texts = [s.text for s in grpo.respond(tiny_policy, asked_for, seed=None)]
        verdicts = judge(texts, questions, [False] * 12)
        rewards[hints] = statistics.mean(v.reward for v in verdicts)
        assert all(("right" if v.reward else worlds.FIVE_STATES) in v.feedback for v in verdicts)
    assert rewards[""] < 0.1 and rewards[ALL_HINTS] > 0.9


def test_sdpo_applies_samples_bare_and_lets_the_templated_self_score(tmp_path, tiny_policy, monkeypatch):
    shutil.copy(ROOT / "p2o.py", tmp_path)
    diff = ROOT / "variants" / "sdpo.diff"
    subprocess.run(["git", "apply", str(diff)], cwd=tmp_path, check=True)  # which changes this file and no other
    spec = importlib.util.spec_from_file_location("p2o_of_the_diff", tmp_path / "p2o.py")
    changed = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, changed)
    spec.loader.exec_module(changed)
    cfg = changed.Config(sample_bare=True, advantage="sdpo", group_size=3)
    questions = load_questions(cfg.train_data)[:2]
    rollouts = changed.sample_groups(tiny_policy, questions, {questions[0].id: [ALL_HINTS] * 3}, cfg, 0)
    assert all(r.sampled_context == r.trained_context for r in rollouts), "the student works bare"
    templated, bare = rollouts[:3], rollouts[3:]
    assert all(r.template for r in templated) and all(len(set(r.advantage)) > 1 for r in templated)
    assert all(len(set(r.advantage)) == 1 for r in bare), "no template, no teacher"
    teacher = grpo.chat_ids(tiny_policy, gepa_loop.apply_template(ALL_HINTS, questions[0].text))
    wished = grpo.logprobs_of(tiny_policy, [teacher] * 3, [r.response_ids for r in templated])
    for r, own_a, row in zip(templated, advantage.scaled(advantage.rewards_of(templated)), wished, strict=True):
        by_hand = [own_a + w - own for w, own in zip(row, r.sampled_logprobs, strict=True)]
        assert r.advantage == pytest.approx(by_hand, abs=1e-4)
