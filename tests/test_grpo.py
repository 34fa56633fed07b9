"""grpo.py: the losses against the authors' numbers, and the promises of sampling, log-probs and update."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import grpo

CASES = json.loads((Path(__file__).parent / "data" / "reference.json").read_text())
TENSOR = torch.tensor


def close(actual, expected):
    torch.testing.assert_close(actual, TENSOR(expected), atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------- the authors' numbers, to 1e-5


@pytest.mark.parametrize("case", CASES["advantage"])
@pytest.mark.parametrize("name, scale", [("advantages_std_normalised", True), ("advantages_mean_only", False)])
def test_group_advantages_reproduce_the_reference(case, name, scale):
    advantages = grpo.group_advantages(TENSOR(case["rewards"]), case["group_size"], scale_by_std=scale)
    close(advantages[:, None] * TENSOR(case["response_mask"]), case[name])


@pytest.mark.parametrize("case", CASES["policy_loss"])
def test_policy_loss_reproduces_value_metrics_and_gradient(case):
    logprobs = TENSOR(case["logprobs"], requires_grad=True)
    loss, metrics = grpo.policy_loss(
        logprobs,
        TENSOR(case["old_logprobs"]),
        TENSOR(case["advantages"]),
        TENSOR(case["response_mask"]),
        clip_low=case["clip_low"],
        clip_high=case["clip_high"],
        dual_clip=case["dual_clip"],
        token_weight=None if case["token_weight"] is None else TENSOR(case["token_weight"]),
        aggregation=case["aggregation"],
    )
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], abs=1e-5)
    close(logprobs.grad, case["grad_logprobs"])
    for name in ("clip_fraction", "approx_kl", "dual_clip_fraction"):
        assert metrics[name] == pytest.approx(case[name], abs=1e-5)


@pytest.mark.parametrize(
    "advantage, dual_clip, clipped, dual_clipped",
    [
        (-1.0, 3.0, 1 / 4, 1 / 4),  # 0.1 is below 1 - 0.2; 4 is above 3
        (-1.0, 1.0, 1 / 4, 2 / 4),  # 4 and 2 are above 1, and 1 itself is not
        (1.0, 1.0, 2 / 4, 0.0),  # 4 and 2 are above 1 + 0.2; the dual clip is for what is pushed down
    ],
)
def test_the_shares_of_tokens_that_were_clipped(advantage, dual_clip, clipped, dual_clipped):
    ratios = torch.tensor([[4.0, 2.0, 0.1, 1.0]])
    ones = torch.ones(1, 4)
    _, metrics = grpo.policy_loss(ratios.log(), 0 * ones, advantage * ones, ones, dual_clip=dual_clip)
    assert (metrics["clip_fraction"], metrics["dual_clip_fraction"]) == (clipped, dual_clipped)


@pytest.mark.parametrize("case", CASES["template_mask"])
def test_template_ratio_weight_reproduces_the_reference(case):
    bare, templated = TENSOR(case["logprobs_without_template"]), TENSOR(case["logprobs_with_template"])
    weight = grpo.template_ratio_weight(bare, templated, case["ratio_min"], case["ratio_max"], case["soft"])
    close(weight, case["token_weight"])


@pytest.mark.parametrize("case", CASES["kl_k3"])
def test_kl_k3_reproduces_the_reference(case):
    close(grpo.kl_k3(TENSOR(case["logprobs"]), TENSOR(case["ref_logprobs"])), case["kl"])


# ------------------------------------------------------------------------------------------------ pure functions

logprob = st.floats(-30, 0)


def test_advantages_of_a_group_sum_to_zero_and_vanish_when_all_agree():
    """All 64 groups of six successes and failures."""
    groups = list(itertools.product([0.0, 1.0], repeat=6))
    advantages = grpo.group_advantages(TENSOR(groups).flatten(), 6).view(64, 6)
    torch.testing.assert_close(advantages.sum(dim=1), torch.zeros(64), atol=1e-5, rtol=0)
    assert (advantages == 0).all(dim=1).tolist() == [len(set(group)) == 1 for group in groups]


@pytest.mark.parametrize("reward", [0.1, 1000.1, 12345.678])
@pytest.mark.parametrize("size", [3, 6, 7, 16])
def test_equal_rewards_that_are_no_round_numbers_give_no_advantage(reward, size):
    """As those of a --reward of one's own may be: the mean is rounded, and dividing by std would blow the rest up."""
    assert not grpo.group_advantages(TENSOR([reward] * size), size).any()


def test_advantages_compare_within_groups_and_not_across():
    advantages = grpo.group_advantages(TENSOR([1.0, 1.0, 0.0, 0.0]), 2)
    assert advantages.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("rewards, size", [(4, 1), (5, 2)])
def test_advantages_refuse_what_is_no_group(rewards, size):
    with pytest.raises(ValueError, match="do not make groups"):
        grpo.group_advantages(torch.zeros(rewards), size)


@pytest.mark.parametrize("aggregation", get_args(grpo.Aggregation))
@pytest.mark.parametrize("rubbish", [math.nan, -math.inf])
def test_what_stands_in_the_padding_counts_for_nothing(aggregation, rubbish):
    logprobs, mask = TENSOR([[-1.0, -2.0], [-1.0, rubbish]]), TENSOR([[1.0, 1.0], [1.0, 0.0]])
    old = TENSOR([[-1.5, -1.5], [-1.5, rubbish]])
    found = grpo.policy_loss(logprobs, old, TENSOR([1.0, -1.0]), mask, aggregation=aggregation)
    logprobs[1, 1] = old[1, 1] = 0.0
    assert found == grpo.policy_loss(logprobs, old, TENSOR([1.0, -1.0]), mask, aggregation=aggregation)


def test_aggregation_refuses_an_unknown_name():
    with pytest.raises(ValueError, match="token-mean"):
        grpo.aggregate(torch.zeros(1, 1), torch.ones(1, 1), "mean")


@given(bare=logprob, templated=logprob)
def test_soft_weight_is_the_bound_over_the_ratio_and_hard_weight_is_one_inside(bare, templated):
    ratio = math.exp(max(-20, min(20, bare - templated)))
    hard = grpo.template_ratio_weight(TENSOR([[bare]]), TENSOR([[templated]])).item()
    soft = grpo.template_ratio_weight(TENSOR([[bare]]), TENSOR([[templated]]), soft=True).item()
    if 0.011 < ratio < 9.9:
        assert hard == soft == 1
    elif ratio < 0.0099 or ratio > 10.1:
        assert hard == 0
        assert soft == pytest.approx((0.01 if ratio < 1 else 10) / ratio, rel=1e-3)


@given(new=logprob, ref=logprob)
def test_k3_is_never_negative_and_zero_only_when_equal(new, ref):
    value = grpo.kl_k3(TENSOR([[new]]), TENSOR([[ref]])).item()
    assert -1e-6 <= value <= 10
    assert value > 1e-3 or abs(new - ref) < 0.05  # d = 0.05 gives 0.00123


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30), limit=st.integers(1, 120))
def test_micro_batches_hold_every_sequence_once_within_the_limit_longest_first(lengths, limit):
    groups = list(grpo.micro_batches(lengths, limit))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert lengths[groups[0][0]] == max(lengths)
    for group in groups:
        assert len(group) == 1 or max(lengths[i] for i in group) * len(group) <= limit


def test_the_learning_rate_warms_up_and_stays():
    cfg = grpo.UpdateConfig(learning_rate=2.0, warmup=0.1)
    assert grpo.learning_rate_at(0.05, cfg) == pytest.approx(1.0)
    assert grpo.learning_rate_at(0.1, cfg) == grpo.learning_rate_at(1.0, cfg) == 2.0
    assert grpo.learning_rate_at(0.01, dataclasses.replace(cfg, warmup=0.0)) == 2.0
    # Overlapping: the rate is the lower one of the two lines, and never 0.
    both = dataclasses.replace(cfg, warmup=0.5, decay=1.0)
    assert grpo.learning_rate_at(0.25, both) == pytest.approx(2.0 * 0.5)
    assert grpo.learning_rate_at(0.5, both) == pytest.approx(2.0 * 0.55)
    assert grpo.learning_rate_at(1.0, both) == pytest.approx(2.0 * 0.1)


# ---------------------------------------------------------------------------------- sampling and log-probs, for real

QUESTIONS = [
    "Add these digits: 7, 9, 8.",
    "Read this binary number: 1, 0, 1, 1, 0, 1.",
    "Work out this chain: 3, *2, +5.",
]


def contexts_of(policy, questions=QUESTIONS):
    return [grpo.chat_ids(policy, question) for question in questions]


def noise_adapter(policy, scale=0.05):
    """The policy; its fresh LoRA adapter was the identity, and now is not."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_logprobs_equal_the_trainers(fresh_policy, temperature):
    fresh_policy.cfg = dataclasses.replace(fresh_policy.cfg, temperature=temperature)
    noise_adapter(fresh_policy)
    contexts = contexts_of(fresh_policy)
    samples = grpo.sample(fresh_policy, contexts, seed=1)
    scored = grpo.logprobs_of(fresh_policy, contexts, [s.response_ids for s in samples])
    for sample, logprobs in zip(samples, scored, strict=True):
        torch.testing.assert_close(TENSOR(sample.sampled_logprobs), TENSOR(logprobs), atol=1e-4, rtol=0)


def test_same_seed_same_responses_and_another_seed_others(tiny_policy):
    contexts = contexts_of(tiny_policy) * 8
    first, second, other = (grpo.sample(tiny_policy, contexts, seed=seed) for seed in (5, 5, 6))
    assert [s.response_ids for s in first] == [s.response_ids for s in second]
    assert [s.response_ids for s in first] != [s.response_ids for s in other]


def test_temperature_zero_is_not_taken_for_the_default(tiny_policy):
    with pytest.raises(ValueError, match="seed=None"):
        grpo.sample(tiny_policy, contexts_of(tiny_policy), seed=0, temperature=0.0)


def test_sampling_leaves_training_mode(fresh_policy):
    """In which gradient checkpointing would do without the cache."""
    fresh_policy.model.train()
    grpo.sample(fresh_policy, contexts_of(fresh_policy), seed=0, max_new_tokens=1)
    assert not fresh_policy.model.training


def test_a_draw_needs_no_exact_sum():
    """Of 150,000 float32 shares the sum is not 1; a uniform number is one of the sum, whatever it is."""
    shares = torch.tensor([[0.1, 0.25, 0.15]] * 3)
    assert grpo._draw(shares.log(), torch.tensor([0.1, 0.3, 0.9])).tolist() == [[0], [1], [2]]


def test_samples_follow_the_models_distribution(tiny_policy):
    """First tokens of many samples against the softmax of the logits: no hidden top-k, top-p or penalty."""
    context = contexts_of(tiny_policy, ["Turn the minute hand by: 25, 45, 10, 35, 50."])[0]
    # hot: flat enough that hidden truncation would show
    samples = grpo.sample(tiny_policy, [context] * 4000, seed=0, temperature=3.0, max_new_tokens=1)
    with torch.no_grad():
        logits = tiny_policy.model(torch.tensor([context])).logits[0, -1]
    expected = (logits / 3.0).softmax(-1)
    counts = torch.bincount(torch.tensor([s.response_ids[0] for s in samples]), minlength=len(expected)) / 4000
    assert (counts - expected).abs().sum() / 2 < 0.15  # total variation; sampling noise alone gives about 0.1


def test_greedy_takes_the_likeliest_token(tiny_policy):
    contexts = contexts_of(tiny_policy)
    samples = grpo.sample(tiny_policy, contexts, seed=None)
    for context, sample in zip(contexts, samples, strict=True):
        with torch.no_grad():
            logits = tiny_policy.model(torch.tensor([context + sample.response_ids])).logits[0]
        logits = logits[len(context) - 1 : -1]
        chosen = logits.gather(1, TENSOR(sample.response_ids)[:, None]).squeeze(1)
        assert (chosen >= logits.amax(dim=1) - 1e-4).all()  # this batch is another one, and may break a tie otherwise


def test_adapter_off_is_the_base_policy(fresh_policy):
    contexts = contexts_of(fresh_policy)
    before = grpo.sample(fresh_policy, contexts, seed=3)
    responses = [s.response_ids for s in before]
    reference = grpo.logprobs_of(fresh_policy, contexts, responses)
    noise_adapter(fresh_policy)
    assert grpo.logprobs_of(fresh_policy, contexts, responses) != reference
    assert grpo.logprobs_of(fresh_policy, contexts, responses, adapter=False) == reference
    assert [s.response_ids for s in grpo.sample(fresh_policy, contexts, seed=3, adapter=False)] == responses


# ------------------------------------------------------------------------------------------------------- the update


class GradientSpy(torch.optim.SGD):
    """An optimizer that keeps the gradient and does not move."""

    def __init__(self, policy):
        super().__init__([p for p in policy.model.parameters() if p.requires_grad], lr=0.0)
        self.steps = 0

    def step(self, closure=None):
        self.steps += 1
        self.gradient = torch.cat([p.grad.flatten() for p in self.param_groups[0]["params"]]).clone()


def rollouts_of(policy, template="", distill=True, advantages=(1.0, -0.5, -0.5)):
    """One rollout for each of QUESTIONS, sampled under a template."""
    sampled = contexts_of(policy, [f"{template}\n\n{q}" if template else q for q in QUESTIONS])
    trained = contexts_of(policy) if distill else sampled
    samples = grpo.sample(policy, sampled, seed=2)
    old = grpo.logprobs_of(policy, trained, [s.response_ids for s in samples])
    return [
        grpo.Rollout(
            **vars(s), question_id=str(i), template=template, sampled_context=sampled[i], trained_context=trained[i],
            advantage=advantages[i], old_logprobs=old[i],
        )
        for i, s in enumerate(samples)
    ]  # fmt: skip


def assert_same_gradient(policy, found, expected, tolerance=2e-4):
    """Equal parameter by parameter, the difference measured by its norm.

    Not entry by entry: an entry is a sum, and rounding leaves it the digits of its largest term, so a small entry among
    large ones has hardly any, and other ones on every processor. Processors differ by 2e-5 here at most.
    """
    sizes = [p.numel() for p in policy.trainable]
    for number, (one, other) in enumerate(zip(found.split(sizes), expected.split(sizes), strict=True)):
        gap = (one - other).norm().item()
        assert gap <= tolerance * other.norm().item(), f"parameter {number}: {gap} of {other.norm().item()}"


def gradient_of(policy, rollouts, **settings):
    spy = GradientSpy(policy)
    grpo.update_policy(policy, spy, rollouts, grpo.UpdateConfig(max_grad_norm=1e9, **settings))
    return spy.gradient


def test_the_distilled_gradient_is_that_of_the_bare_context(fresh_policy):
    """Sampled under a template, trained bare: the gradient is -A * grad log pi(y | x), no trace of the template."""
    policy, template = fresh_policy, "Add one digit at a time."
    noise_adapter(policy)
    rollouts = rollouts_of(policy, template)
    gradient = gradient_of(policy, rollouts)

    def by_hand(contexts):
        logprobs = grpo.token_logprobs(policy, contexts, [r.response_ids for r in rollouts])  # [B, T]
        advantages = TENSOR([r.advantage for r in rollouts])[:, None]
        loss = -(advantages * logprobs).sum() / sum(len(r.response_ids) for r in rollouts)
        parameters = [p for p in policy.model.parameters() if p.requires_grad]
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    bare, templated = by_hand([r.trained_context for r in rollouts]), by_hand([r.sampled_context for r in rollouts])
    assert_same_gradient(policy, gradient, bare)
    assert (gradient - templated).norm() > 0.1 * gradient.norm()
    undistilled = rollouts_of(policy, template, distill=False)
    assert_same_gradient(policy, gradient_of(policy, undistilled), templated)


@pytest.mark.parametrize("aggregation", get_args(grpo.Aggregation))
@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_micro_batches_accumulate_to_the_gradient_of_one_batch(fresh_policy, aggregation, kl_coef):
    noise_adapter(fresh_policy)
    rollouts = rollouts_of(fresh_policy)
    whole = gradient_of(fresh_policy, rollouts, aggregation=aggregation, kl_coef=kl_coef)
    fresh_policy.cfg = dataclasses.replace(fresh_policy.cfg, micro_batch_tokens=1)  # every sequence alone
    parts = gradient_of(fresh_policy, rollouts, aggregation=aggregation, kl_coef=kl_coef)
    assert_same_gradient(fresh_policy, parts, whole)


@pytest.mark.parametrize("aggregation", get_args(grpo.Aggregation))
def test_rollouts_without_advantage_are_left_out_of_the_passes_and_not_of_the_denominators(fresh_policy, aggregation):
    """A weight of KL that is nearly nothing keeps them in: the gradient is the same."""
    rollouts = rollouts_of(fresh_policy, advantages=(1.0, 0.0, -0.5))
    left_out = gradient_of(fresh_policy, rollouts, aggregation=aggregation)
    kept = gradient_of(fresh_policy, rollouts, aggregation=aggregation, kl_coef=1e-12)
    assert_same_gradient(fresh_policy, left_out, kept)


def test_an_update_in_which_every_token_is_masked_moves_nothing(fresh_policy):
    """Adam remembers the update before it, and would take a step without any gradient."""
    rollouts = rollouts_of(fresh_policy)
    optimizer = torch.optim.AdamW(fresh_policy.trainable, lr=1e-3)
    grpo.update_policy(fresh_policy, optimizer, rollouts, grpo.UpdateConfig())
    for r in rollouts:
        r.token_weight = [0.0] * len(r.response_ids)
    before = [p.detach().clone() for p in fresh_policy.trainable]
    metrics = grpo.update_policy(fresh_policy, optimizer, rollouts, grpo.UpdateConfig())
    assert (metrics["masked"], metrics["grad_norm"], metrics["skipped"]) == (1.0, 0.0, 0.0)
    assert all(map(torch.equal, fresh_policy.trainable, before))


def test_an_advantage_may_be_given_for_each_token(fresh_policy):
    rollouts = rollouts_of(fresh_policy)
    whole = gradient_of(fresh_policy, rollouts)
    for r in rollouts:
        r.advantage = [r.advantage] * len(r.response_ids)
    assert_same_gradient(fresh_policy, gradient_of(fresh_policy, rollouts), whole)
    for r in rollouts:
        r.advantage = [r.advantage[0]] + [0.0] * (len(r.response_ids) - 1)
    assert all(r.has_signal for r in rollouts)
    first = gradient_of(fresh_policy, rollouts)
    assert 0 < first.norm() and (first - whole).norm() > 0.1 * whole.norm()


@pytest.mark.parametrize("change", [-1, 1])
def test_an_advantage_for_other_than_all_tokens_is_refused(fresh_policy, change):
    rollouts = rollouts_of(fresh_policy)
    tokens = len(rollouts[0].response_ids)
    rollouts[0].advantage = [1.0] * (tokens + change)
    with pytest.raises(ValueError, match=f"{tokens + change} numbers for a response of {tokens} tokens"):
        gradient_of(fresh_policy, rollouts)


def test_dr_grpos_constant_does_not_depend_on_the_responses(fresh_policy):
    """The same rollouts beside a longer one: their share of the gradient stays what it was."""
    rollouts = rollouts_of(fresh_policy)
    limit = fresh_policy.cfg.max_response_tokens
    mean = gradient_of(fresh_policy, rollouts)
    tokens = sum(len(r.response_ids) for r in rollouts)
    constant = gradient_of(fresh_policy, rollouts, aggregation="seq-mean-token-sum-norm")
    assert_same_gradient(fresh_policy, constant * limit, mean * tokens)


# ------------------------------------------------------------------------------------------- log pi_old, where from


def test_the_first_update_takes_its_own_log_probs_for_the_old_ones(fresh_policy):
    noise_adapter(fresh_policy)
    rollouts = rollouts_of(fresh_policy)
    scored = gradient_of(fresh_policy, rollouts)
    for r in rollouts:
        r.old_logprobs = None
    assert_same_gradient(fresh_policy, gradient_of(fresh_policy, rollouts), scored)


def test_only_what_needs_it_is_scored(fresh_policy, monkeypatch):
    bare, templated = rollouts_of(fresh_policy), rollouts_of(fresh_policy, "Add one digit at a time.")
    idle = rollouts_of(fresh_policy, "Add one digit at a time.", advantages=(0.0, 0.0, 0.0))
    for r in bare + templated + idle:
        r.old_logprobs = None
    later = [dataclasses.replace(r) for r in bare]
    real, asked = grpo.logprobs_of, []
    monkeypatch.setattr(grpo, "logprobs_of", lambda p, c, r, **how: asked.append(len(c)) or real(p, c, r, **how))
    grpo.score_old(fresh_policy, [bare + templated + idle, later], grpo.UpdateConfig())
    assert asked == [len(templated)]
    assert all(r.old_logprobs is None and r.token_weight == 1.0 for r in bare + idle)
    assert all(r.old_logprobs == r.sampled_logprobs and r.token_weight == 1.0 for r in later)
    # As one batch here, too: a sequence in another batch has other last bits.
    scored = real(fresh_policy, [r.trained_context for r in templated], [r.response_ids for r in templated])
    for r, logprobs in zip(templated, scored, strict=True):
        assert r.old_logprobs == logprobs
        both = TENSOR(r.old_logprobs), TENSOR(r.sampled_logprobs)
        assert r.token_weight == grpo.template_ratio_weight(*both).tolist()


def test_another_engines_log_probs_are_not_taken_for_the_trainers(fresh_policy):
    bare = rollouts_of(fresh_policy)
    later = [dataclasses.replace(r, old_logprobs=None, sampled_logprobs=[-9.0] * len(r.response_ids)) for r in bare]
    fresh_policy.engine = object()
    grpo.score_old(fresh_policy, [bare, later], grpo.UpdateConfig())
    assert [r.old_logprobs for r in later] == [pytest.approx(r.old_logprobs, abs=1e-5) for r in bare]
    assert all(r.token_weight == 1.0 for r in later)  # the ratio mask is for what a template has moved


def test_the_mismatch_sees_a_sampler_that_forgot_the_temperature(fresh_policy):
    rollouts = rollouts_of(fresh_policy)
    assert max(grpo.mismatch(fresh_policy, rollouts)) < 1e-4
    fresh_policy.cfg = dataclasses.replace(fresh_policy.cfg, temperature=0.5)
    mean, top = grpo.mismatch(fresh_policy, rollouts)
    assert top > mean > 0.001


def test_a_weight_of_one_half_halves_the_gradient_so_the_mean_still_counts_the_token(fresh_policy):
    rollouts = rollouts_of(fresh_policy, advantages=(1.0, 0.0, 0.0))
    full = gradient_of(fresh_policy, rollouts)
    for rollout in rollouts:
        rollout.token_weight = 0.5
    assert_same_gradient(fresh_policy, gradient_of(fresh_policy, rollouts), 0.5 * full)


def test_learning_raises_the_log_prob_of_what_was_good(fresh_policy):
    rollouts = rollouts_of(fresh_policy)
    optimizer = torch.optim.AdamW([p for p in fresh_policy.model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(3):
        grpo.update_policy(fresh_policy, optimizer, rollouts, grpo.UpdateConfig())
    after = grpo.logprobs_of(fresh_policy, [r.trained_context for r in rollouts], [r.response_ids for r in rollouts])
    change = [sum(new) - sum(r.old_logprobs) for new, r in zip(after, rollouts, strict=True)]
    assert change[0] > 0 > change[1]
