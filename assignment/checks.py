"""What the grader asks of each part. `make grade` runs this; the docstring of a check that fails is the printed hint.

A check is called test_<part>_<what>, takes the student's `adapters` and knows nothing else of the student's code. What
it needs besides (a policy, log-probs to compare with) comes from the reference, see `reference` in grade.py.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from grade import ROOT, reference, tiny_policy

TENSOR = torch.tensor
CASES = json.loads((ROOT / "tests" / "data" / "reference.json").read_text())  # computed with the authors' functions


@pytest.fixture
def student():
    import adapters

    return adapters


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, TENSOR(expected), atol=tolerance, rtol=0)


# -------------------------------------------------------------------------------------------- part 1: group advantages


def test_1_mean_is_taken_within_a_group(student):
    """The mean runs over the G rollouts of one question: view the rewards as [questions, G] and reduce dim 1.
    Neighbours belong together, so .view(G, -1) mixes questions, a mean over the batch compares easy with hard ones."""
    advantages = student.group_advantages(TENSOR([1.0, 0.0, 0.0, 1.0, 1.0, 1.0]), 3, scale_by_std=False)
    close(advantages, [2 / 3, -1 / 3, -1 / 3, 0.0, 0.0, 0.0])
    advantages = student.group_advantages(TENSOR([1.0, 1.0, 0.0, 0.0, 0.0, 1.0]), 2, scale_by_std=False)
    close(advantages, [0.0, 0.0, 0.0, 0.0, -0.5, 0.5])


def test_1_std_is_the_samples(student):
    """The standard deviation is the sample's (divide by n - 1): for rewards 1, 0, 0, 0 it is 0.5, not 0.433, which is
    the population's."""
    close(student.group_advantages(TENSOR([1.0, 0.0, 0.0, 0.0]), 4), [1.5, -0.5, -0.5, -0.5], 1e-4)


def test_1_equal_rewards_give_zeros(student):
    """A group whose rewards are all equal has standard deviation 0: without eps below the line, 0 is divided by 0."""
    close(student.group_advantages(TENSOR([0.0] * 4 + [1.0] * 4), 4), [0.0] * 8)


def test_1_agrees_with_the_authors(student):
    """Numbers of the authors' own function, with and without scaling by the standard deviation (eps is 1e-6, and is
    added to the standard deviation, not to the variance)."""
    for case in CASES["advantage"]:
        for name, scale in (("advantages_std_normalised", True), ("advantages_mean_only", False)):
            advantages = student.group_advantages(TENSOR(case["rewards"]), case["group_size"], scale_by_std=scale)
            assert advantages.shape == (len(case["rewards"]),)
            close(advantages[:, None] * TENSOR(case["response_mask"]), case[name])


# -------------------------------------------------------------------------------------------------- part 2: policy loss


def loss_of(student, ratio, advantage, **settings):
    """(loss, gradient with respect to the new log-prob) of one token."""
    logprobs = TENSOR([[math.log(ratio)]], requires_grad=True)
    loss, metrics = student.policy_loss(logprobs, torch.zeros(1, 1), TENSOR([advantage]), torch.ones(1, 1), **settings)
    loss.backward()
    return loss.item(), logprobs.grad.item(), metrics


def test_2_on_policy_the_gradient_is_minus_the_advantage(student):
    """With new = old the ratio is 1, the loss -A and the gradient -A. If your gradient is 0, you detached the new
    log-probs or differentiated a constant; if the sign is wrong, you maximise the loss."""
    for advantage in (1.5, -0.5):
        loss, gradient, _ = loss_of(student, 1.0, advantage)
        assert (loss, gradient) == pytest.approx((-advantage, -advantage), abs=1e-6)


def test_2_clip_is_pessimistic(student):
    """The larger of the two losses counts (max of losses is min of objectives). With A > 0 and a ratio above 1 + eps
    the loss stays at -A (1 + eps) without gradient; below 1 - eps nothing is clipped."""
    assert loss_of(student, 1.5, 1.0)[:2] == pytest.approx((-1.2, 0.0), abs=1e-6)
    assert loss_of(student, 0.5, 1.0)[:2] == pytest.approx((-0.5, -0.5), abs=1e-6)
    assert loss_of(student, 0.5, -1.0)[:2] == pytest.approx((0.8, 0.0), abs=1e-6)
    assert loss_of(student, 1.5, 1.0, clip_high=0.3)[0] == pytest.approx(-1.3, abs=1e-6)


def test_2_dual_clip_bounds_negative_advantages_only(student):
    """Dual clip: where A < 0 (and only there) the loss is at most -A c. A token that the new policy likes far more than
    the old one did would otherwise have an unbounded loss."""
    assert loss_of(student, 5.0, -1.0)[:2] == pytest.approx((3.0, 0.0), abs=1e-5)
    assert loss_of(student, 2.0, -1.0)[:2] == pytest.approx((2.0, 2.0), abs=1e-5)
    assert loss_of(student, 5.0, 1.0)[0] == pytest.approx(-1.2, abs=1e-5)


def test_2_padding_does_not_count(student):
    """Mask before the mean: multiply by the mask, sum, and divide by the number of response tokens. A .mean() over
    [B, T] divides by the padding as well; masking after it is too late."""
    per_token, mask = TENSOR([[1.0, 3.0, 9.0], [5.0, 9.0, 9.0]]), TENSOR([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    expected = {
        "token-mean": 9 / 3,
        "seq-mean-token-mean": (2 + 5) / 2,
        "seq-mean-token-sum": (4 + 5) / 2,
        "seq-mean-token-sum-norm": 9 / 3,  # T is 3
    }
    for aggregation, value in expected.items():
        assert student.aggregate(per_token, mask, aggregation).item() == pytest.approx(value), aggregation


def test_2_weighted_tokens_stay_in_the_denominator(student):
    """token_weight multiplies the per-token loss before aggregation. The denominator still counts the token: a masked
    token is a lesson left out, not a shorter response."""
    old, mask = torch.zeros(1, 4), torch.ones(1, 4)
    weight = TENSOR([[1.0, 0.0, 0.0, 1.0]])
    loss, _ = student.policy_loss(torch.zeros(1, 4), old, TENSOR([2.0]), mask, token_weight=weight)
    assert loss.item() == pytest.approx(-1.0)


def test_2_agrees_with_the_authors(student):
    """Loss, gradient and metrics of the authors' own function. The log-ratio is clamped to +-20 before exp; metrics are
    token means under the mask, and approx_kl is -(new - old)."""
    for case in CASES["policy_loss"]:
        logprobs = TENSOR(case["logprobs"], requires_grad=True)
        loss, metrics = student.policy_loss(
            logprobs, TENSOR(case["old_logprobs"]), TENSOR(case["advantages"]), TENSOR(case["response_mask"]),
            clip_low=case["clip_low"], clip_high=case["clip_high"], dual_clip=case["dual_clip"],
            token_weight=None if case["token_weight"] is None else TENSOR(case["token_weight"]),
            aggregation=case["aggregation"],
        )  # fmt: skip
        loss.backward()
        assert loss.item() == pytest.approx(case["loss"], abs=1e-5)
        close(logprobs.grad, case["grad_logprobs"])
        for name in ("clip_fraction", "approx_kl", "dual_clip_fraction"):
            assert metrics[name] == pytest.approx(case[name], abs=1e-5), name


# ---------------------------------------------------------------------------------------- part 3: template-ratio weight


def log(*values):
    return TENSOR([values]).log()


def test_3_ratio_is_bare_over_templated(student):
    """rho = pi_old(y | x) / pi_old(y | T(x, z)): bare above, templated below. A token that only the template makes
    likely has a small ratio. The other way round, 25 here would be 0.04 and stay in."""
    weight = student.template_ratio_weight(log(0.07, 0.001, 0.5), log(0.9, 0.9, 0.02))  # 0.08, 0.001, 25
    close(weight, [[1.0, 0.0, 0.0]])


def test_3_inside_the_range_the_weight_is_one(student):
    """The weight says whether a token counts, it is no importance weight: inside the range it is 1, not the ratio."""
    for soft in (False, True):
        weight = student.template_ratio_weight(log(0.5, 0.04, 0.9), log(0.5, 0.8, 0.1), soft=soft)
        close(weight, [[1.0, 1.0, 1.0]])


def test_3_soft_clip_is_bound_over_ratio(student):
    """Outside, the soft clip gives bound / rho: the nearer bound, so 0.01 / rho below the range and 10 / rho above."""
    weight = student.template_ratio_weight(log(0.07, 0.001, 0.5), log(0.9, 0.9, 0.02), soft=True)
    close(weight, [[1.0, 9.0, 0.4]], 1e-3)


def test_3_agrees_with_the_authors(student):
    """Numbers of the authors' own function; the difference of log-probs is clamped to +-20 before exp."""
    for case in CASES["template_mask"]:
        bare, templated = TENSOR(case["logprobs_without_template"]), TENSOR(case["logprobs_with_template"])
        weight = student.template_ratio_weight(bare, templated, case["ratio_min"], case["ratio_max"], case["soft"])
        close(weight, case["token_weight"])


# ---------------------------------------------------------------------------------------------------- part 4: log-probs


@cache
def scored():
    """(contexts, responses, expected log-probs) of unequal lengths, computed one sequence at a time."""
    policy, grpo = tiny_policy(temperature=0.6), reference("grpo")
    questions = ["Add these digits: 7, 9, 8.", "Read this binary number: 1, 0, 1, 1, 0, 1.", "Add these digits: 1, 2."]
    contexts = [grpo.chat_ids(policy, question) for question in questions]
    responses = [s.response_ids for s in grpo.sample(policy, contexts, seed=3)]
    responses[0], responses[2] = responses[0] * 2, responses[2][:2]
    expected = []
    for context, response in zip(contexts, responses, strict=True):
        with torch.no_grad():
            logits = policy.model(TENSOR([context + response])).logits[0]  # [L, V]
        logprobs = (logits / policy.cfg.temperature).log_softmax(-1)
        expected.append([logprobs[len(context) + t - 1, token].item() for t, token in enumerate(response)])
    return contexts, responses, expected


def test_4_token_is_predicted_by_the_position_before_it(student):
    """The hidden state at position p predicts token p + 1. The first response token is predicted by the last position
    of the context: take positions len(context) - 1 + t. One off, and every log-prob belongs to a neighbour."""
    contexts, responses, expected = scored()
    actual = student.token_logprobs(tiny_policy(temperature=0.6), contexts[:1], responses[:1])
    assert actual.shape == (1, len(responses[0]))
    close(actual.detach(), expected[:1], 1e-4)


def test_4_temperature_belongs_to_the_distribution(student):
    """Logits are divided by the temperature: these are log-probs of the distribution that was sampled from. Without it
    the ratio compares two different distributions."""
    contexts, responses, expected = scored()
    assert tiny_policy(temperature=0.6).cfg.temperature == 0.6
    close(
        student.token_logprobs(tiny_policy(temperature=0.6), contexts[1:2], responses[1:2]).detach(),
        expected[1:2],
        1e-4,
    )


def test_4_rows_of_a_batch_do_not_depend_on_each_other(student):
    """Contexts and responses have unequal lengths. Pad on the right, take each row's own positions, and fill the result
    with zeros on the right of shorter responses."""
    contexts, responses, expected = scored()
    width = max(map(len, responses))
    actual = student.token_logprobs(tiny_policy(temperature=0.6), contexts, responses).detach()
    close(actual, [row + [0.0] * (width - len(row)) for row in expected], 1e-4)


def test_4_gradient_reaches_the_adapter(student):
    """The result must be differentiable: no .detach(), no .item(), no torch.no_grad() on the way."""
    contexts, responses, _ = scored()
    policy = tiny_policy(temperature=0.6)
    student.token_logprobs(policy, contexts, responses).sum().backward()
    gradients = [p.grad.abs().sum() for p in policy.model.parameters() if p.grad is not None]
    policy.model.zero_grad()
    assert gradients and sum(gradients) > 0


# ------------------------------------------------------------------------------------------------- part 5: greedy cover


def test_5_gain_counts_uncovered_questions_only(student):
    """Each time the candidate that solves most still *uncovered* questions. Counting what is covered already picks the
    runner-up that adds nothing, or never stops."""
    assert student.greedy_cover([[1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1]]) == [0, 2, 1]


def test_5_first_one_wins_on_ties(student):
    """On ties the first candidate wins; `>=` in the comparison takes the last."""
    assert student.greedy_cover([[0, 0], [1, 0], [1, 0], [0, 1]]) == [1, 3]


def test_5_stops_when_nothing_is_added(student):
    """Stop when no candidate adds any question; with nothing solved at all, the cover is empty."""
    assert student.greedy_cover([[0, 0], [0, 0]]) == []
    assert student.greedy_cover([[1, 1], [1, 0], [0, 1]]) == [0]


def test_5_any_score_above_zero_is_solved(student):
    """Scores are floats; above 0 is solved."""
    assert student.greedy_cover([[0.0, 0.5, 0.0], [0.25, 0.0, 0.25]]) == [1, 0]


def test_5_agrees_with_the_authors(student):
    """Selections of the authors' own function."""
    for case in CASES["cover"]:
        assert student.greedy_cover(case["dev_scores"]) == case["selected"]


# ------------------------------------------------------------------------------------------ part 6: template assignment


def found(dev_scores, chosen):
    """The fields of an Evolution that an assignment reads; candidate k is the template "zk"."""
    weights = [max(sum(dev_scores[k]) / len(dev_scores[0]), 1e-6) for k in chosen]
    return SimpleNamespace(
        candidates=[f"z{k}" for k in range(len(dev_scores))], dev_scores=dev_scores, chosen=chosen, weights=weights,
        dev_ids=[f"d{n}" for n in range(len(dev_scores[0]))], train_ids=["t0", "t1"],
    )  # fmt: skip


SCORES = [[0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 1, 0]]


def test_6_dev_questions_draw_from_what_solves_them(student):
    """A dev question draws only from the chosen templates that solve it; its scores are column n of dev_scores, and
    `chosen` holds candidates' indices, so candidate chosen[i] has weights[i]."""
    templates = student.assign_templates(found(SCORES, [1, 2]), 100, random.Random(0))
    assert set(templates["d0"]) == set(templates["d1"]) == {"z1"}
    assert set(templates["d2"]) == {"z1", "z2"}


def test_6_the_rest_draws_from_the_whole_set(student):
    """Train questions, and dev questions that nothing solves, draw from all chosen templates; none from the others."""
    templates = student.assign_templates(found(SCORES, [1, 2]), 100, random.Random(0))
    assert set(templates) == {"d0", "d1", "d2", "d3", "t0", "t1"}
    assert set(templates["d3"]) == set(templates["t0"]) == set(templates["t1"]) == {"z1", "z2"}


def test_6_draws_are_weighted_by_mean_dev_score(student):
    """Draws are weighted by the mean dev scores (0.75 and 0.25 here, so three to one), with replacement."""
    templates = student.assign_templates(found(SCORES, [1, 2]), 4000, random.Random(0))
    assert Counter(templates["t0"])["z1"] / 4000 == pytest.approx(0.75, abs=0.04)


def test_6_each_rollout_has_its_own_draw(student):
    """G draws for each question, one for each rollout; a single draw for the whole group only with
    cfg.one_template_per_group."""
    many = found([[1, 0], [0, 1]], [0, 1])
    many.train_ids = [f"t{i}" for i in range(30)]
    per_rollout = student.assign_templates(many, 6, random.Random(0))
    one = reference("gepa_loop").EvolutionConfig(one_template_per_group=True)
    per_group = student.assign_templates(many, 6, random.Random(0), one)
    assert all(len(zs) == 6 for zs in [*per_rollout.values(), *per_group.values()])
    assert any(len(set(zs)) == 2 for zs in per_rollout.values())
    assert all(len(set(zs)) == 1 for zs in per_group.values())
    assert len({zs[0] for name, zs in per_group.items() if name[0] == "t"}) == 2


def test_6_no_cover_no_assignment(student):
    """With no template that solves anything the next epoch runs bare: return an empty dictionary."""
    assert student.assign_templates(found([[0, 0], [0, 0]], []), 6, random.Random(0)) == {}


# ------------------------------------------------------------------------------------------------------- part 7: reward


def test_7_exactly_one_boxed_answer(student):
    """Reward 1 needs exactly one boxed answer. A response that boxes several has hedged its bets and earns 0, even if
    the last one is right; `correct` still says that it was."""
    both, none, one = student.grade_batch([r"\boxed{3} or \boxed{4}", "4", r"so \boxed{4}."], ["4", "4", "4"])
    assert (both.reward, both.correct, both.well_formed, both.extracted) == (0.0, True, False, "4")
    assert (none.reward, none.correct, none.well_formed, none.extracted) == (0.0, False, False, None)
    assert (one.reward, one.correct, one.well_formed, one.extracted) == (1.0, True, True, "4")


def test_7_right_answer_in_another_form_is_right(student):
    """Answers are compared as mathematics, not as strings: 0.5 is \\frac{1}{2}. `_verdicts(pairs)` does it."""
    responses = [r"\boxed{0.5}", r"\boxed{\frac{1}{2}}", r"\boxed{1,000}"]
    assert [g.reward for g in student.grade_batch(responses, [r"\frac{1}{2}", "0.5", "1000"])] == [1.0, 1.0, 1.0]


def test_7_what_is_copied_is_no_answer(student):
    """With the question given, a formula that stands in it as it is earns nothing (`_is_copied`), and without it the
    same answer is right. Boxes in <think>...</think> are no answers either: count those of `_after_thinking` only."""
    copy, right = [r"\boxed{6+7}"], [r"<think>\boxed{6+7}?</think> \boxed{13}"]
    assert [g.reward for g in student.grade_batch(copy, ["13"])] == [1.0]
    assert [g.correct for g in student.grade_batch(copy, ["13"], ["What is $6+7$?"])] == [False]
    assert [g.reward for g in student.grade_batch(right, ["13"], ["What is $6+7$?"])] == [1.0]


def test_7_wrong_is_wrong(student):
    """A boxed answer that is well formed and wrong earns 0, and response i belongs to reference i."""
    grades = student.grade_batch([r"\boxed{3}", r"\boxed{5}"], ["5", "3"])
    assert [(g.reward, g.correct, g.well_formed) for g in grades] == [(0.0, False, True)] * 2
    assert [g.reward for g in student.grade_batch([r"\boxed{3}", r"\boxed{5}"], ["3", "5"])] == [1.0, 1.0]


# ----------------------------------------------------------------------------------------- part 8: the alternating loop


def rollouts_of(rewards):
    return [SimpleNamespace(question_id=name, reward=float(r)) for name, group in rewards.items() for r in group]


def test_8_hard_is_no_success_and_near_hard_exactly_one(student):
    """Hard: no success in the group. Near-hard: at most one, and only when near_hard is on."""
    import p2o

    rollouts = rollouts_of({"none": [0, 0, 0], "one": [0, 1, 0], "two": [1, 1, 0], "all": [1, 1, 1]})
    assert list(student.mine_hard(rollouts, p2o.Config())) == ["none", "one"]
    assert list(student.mine_hard(rollouts, p2o.Config(near_hard=False))) == ["none"]


TEMPLATE = "Add one digit at a time. Double and add for every bit."


def sampled(student, **settings):
    """(policy, questions, rollouts) of two questions, the first one under a template but for its last rollout."""
    import p2o

    cfg = p2o.Config(group_size=4, **settings)
    questions = p2o.load_questions(cfg.train_data)[:2]
    policy = tiny_policy(temperature=1.0)
    templates = {questions[0].id: [TEMPLATE] * 3 + [""]}
    return policy, questions, student.sample_groups(policy, questions, templates, cfg, 7)


def contexts_of(policy, question):
    grpo = reference("grpo")
    templated = reference("gepa_loop").apply_template(TEMPLATE, question.text)
    return grpo.chat_ids(policy, question.text), grpo.chat_ids(policy, templated)


def test_8_sampled_under_the_template_and_trained_on_the_bare_question(student):
    """Context distillation: sampled_context is the templated one for rollouts with a template, trained_context the bare
    one for all. Without distillation both are what was sampled."""
    policy, questions, rollouts = sampled(student)
    bare, templated = contexts_of(policy, questions[0])
    assert [r.sampled_context for r in rollouts[:4]] == [templated] * 3 + [bare]
    assert [r.trained_context for r in rollouts[:4]] == [bare] * 4
    assert [r.question_id for r in rollouts] == [q.id for q in questions for _ in range(4)]
    _, _, rollouts = sampled(student, distill=False)
    assert [r.trained_context for r in rollouts[:4]] == [templated] * 3 + [bare]


def test_8_sampled_logprobs_are_those_under_the_template(student):
    """`sampled_logprobs` come from the sampler, under the context that was sampled from; `old_logprobs` stays None:
    grpo.score_old fills it in, under the trained one, before the first update."""
    policy, questions, rollouts = sampled(student)
    _, templated = contexts_of(policy, questions[0])
    grpo = reference("grpo")
    for r in rollouts[:3]:
        assert r.sampled_logprobs == pytest.approx(grpo.logprobs_of(policy, [templated], [r.response_ids])[0], abs=1e-3)
        assert r.old_logprobs is None


def test_8_reward_and_advantage(student):
    """Rewards are the verifier's for this question's answer; advantages are those of the group, in its order."""
    _, questions, rollouts = sampled(student, scale_by_std=False)
    answers = [q.reference for q in questions for _ in range(4)]
    rewards = [g.reward for g in reference("verify").grade_batch([r.text for r in rollouts], answers)]
    assert [r.reward for r in rollouts] == rewards
    expected = reference("grpo").group_advantages(TENSOR(rewards), 4, scale_by_std=False).tolist()
    assert [r.advantage for r in rollouts] == pytest.approx(expected, abs=1e-5)


def mini_run(train, folder, **settings):
    """The lines of metrics.jsonl of a run of two epochs on eight easy and eight hard questions."""
    import p2o

    rows = (ROOT / "tiny" / "train.jsonl").read_text().splitlines()
    (folder / "train.jsonl").write_text("\n".join(rows[:8] + rows[-8:]) + "\n")
    (folder / "held.jsonl").write_text("\n".join(rows[8:12]) + "\n")
    cfg = p2o.Config(
        train_data=str(folder / "train.jsonl"), eval_data=(str(folder / "held.jsonl"),), runs=str(folder), epochs=2,
        questions_per_batch=6, questions_per_update=3, group_size=4, hard_set_min=4, gepa_budget="60", **settings,
    )  # fmt: skip
    train(cfg)
    assert (cfg.folder / "checkpoints").exists() and (cfg.folder / "summary.json").exists()
    return [json.loads(line) for line in (cfg.folder / "metrics.jsonl").read_text().splitlines()]


@cache
def expected_run(**settings):
    with tempfile.TemporaryDirectory() as folder:
        return mini_run(reference("p2o").train, Path(folder), **settings)


def same_lines(actual, expected):
    assert [line["kind"] for line in actual] == [line["kind"] for line in expected]
    for number, (line, right) in enumerate(zip(actual, expected, strict=True), start=1):
        for name, value in right.items():
            assert line[name] == pytest.approx(value, abs=1e-3), f"line {number}, {right['kind']}: {name}"


def test_8_two_epochs(student, tmp_path):
    """A run of two epochs writes the metrics.jsonl of the reference's: prompt evolution at an epoch's first batch, on
    the hard questions of just the epoch before (empty `state.hard` then), rollouts, mining, updates, a checkpoint."""
    same_lines(mini_run(student.train, tmp_path), expected_run())


def test_8_grpo_is_the_same_loop_without_evolution(student, tmp_path):
    """The baseline is the same loop without evolution: --method grpo."""
    same_lines(
        mini_run(student.train, tmp_path, method="grpo", near_hard=False), expected_run(method="grpo", near_hard=False)
    )
