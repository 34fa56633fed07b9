"""What losses, update and loop promise, in numbers computed by hand. Mutants that once survived led here."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, write_jsonl
from test_grpo import GradientSpy, assert_same_gradient, gradient_of, noise_adapter, rollouts_of

import grpo
import p2o
from support import fast, pretrained
from support.log import read_lines
from support.memory import longest_sequence

TENSOR = torch.tensor


@pytest.fixture
def small(tmp_path):
    """Eight hard questions, one epoch of GRPO in four updates: a second or two."""
    eight = write_jsonl(tmp_path / "eight.jsonl", read_lines(ROOT / "tiny" / "train.jsonl")[:8])
    data = {"train_data": eight, "eval_data": (eight,)}
    sizes = {"epochs": 1, "questions_per_batch": 4, "questions_per_update": 2, "group_size": 2}
    return p2o.Config(method="grpo", runs=str(tmp_path / "runs"), name="small", **data, **sizes)


def lines_of(cfg, kind):
    return [line for line in read_lines(cfg.folder / "metrics.jsonl") if line["kind"] == kind]


# -------------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize(
    "aggregation, expected",
    [
        ("token-mean", (1 + 3 + 5) / 3),
        ("seq-mean-token-mean", ((1 + 3) / 2 + 5 / 1) / 2),
        ("seq-mean-token-sum", ((1 + 3) + 5) / 2),
        ("seq-mean-token-sum-norm", (1 + 3 + 5) / 4),
    ],
)
def test_the_four_aggregations_of_two_tokens_and_one(aggregation, expected):
    per_token, mask = TENSOR([[1.0, 3, 9, 9], [5, 9, 9, 9]]), TENSOR([[1.0, 1, 0, 0], [1, 0, 0, 0]])
    assert grpo.aggregate(per_token, mask, aggregation).item() == pytest.approx(expected)
    assert grpo.aggregate(per_token, 0 * mask, aggregation).item() == 0  # nothing to train is no division by zero
    # As a part of an update of 10 responses, 100 tokens, and the constant length 40:
    total = {"token-mean": 9 / 100, "seq-mean-token-sum-norm": 9 / 40}
    part = total.get(aggregation, 2 * expected / 10)
    assert grpo.aggregate(per_token, mask, aggregation, (10, 100, 40)).item() == pytest.approx(part)


def test_no_token_counts_more_than_e_to_the_20th():
    """Or one token that the old policy held for impossible would make the loss infinite."""
    new, old = TENSOR([[-1.0, -90, -1, -1]]), TENSOR([[-90.0, -1, -3, -21.5]])
    assert grpo.log_importance_ratio(new, old, torch.ones(1, 4)).tolist() == [[20, -20, 2, 20]]
    e20 = math.exp(20)
    soft = grpo.template_ratio_weight(new, old, soft=True)
    torch.testing.assert_close(soft, TENSOR([[10 / e20, 0.01 * e20, 1, 10 / e20]]))


def test_k3_is_bounded_and_its_gradient_is_finite():
    new = TENSOR([[-1.0, -3.0, -200.0, -1.0]], requires_grad=True)
    kl = grpo.kl_k3(new, TENSOR([[-3.0, -1.0, -1.0, -200.0]]))
    torch.testing.assert_close(kl.detach(), TENSOR([[math.exp(-2) + 1, math.exp(2) - 3, 10, 10]]))
    kl.sum().backward()
    torch.testing.assert_close(new.grad, TENSOR([[1 - math.exp(-2), 1 - math.exp(2), 0, 0]]))


def test_micro_batches_count_the_padding():
    assert list(grpo.micro_batches([3, 5, 5, 2], 10)) == [[1, 2], [0, 3]]  # 2 * 5 fits, 3 * 5 does not
    assert list(grpo.micro_batches([3, 5, 5, 2], 9)) == [[1], [2], [0, 3]]
    assert list(grpo.micro_batches([], 10)) == []


def test_the_mismatch_is_the_mean_and_the_largest_gap(tiny_policy, monkeypatch):
    rollouts = [
        grpo.Rollout(
            question_id="q", sampled_context=[1], trained_context=[9], response_ids=ids, sampled_logprobs=logprobs,
            truncated=False, text="",
        )
        for ids, logprobs in (([2], [-1.0]), ([3, 4], [-2.0, -4.0]))
    ]  # fmt: skip
    monkeypatch.setattr(grpo, "logprobs_of", lambda _, contexts, responses: [[-1.5], [-2.0, -3.0]])
    assert grpo.mismatch(tiny_policy, rollouts) == (0.5, 1.0)


@pytest.mark.parametrize(
    "contexts, layers, checkpointing, expected",
    [
        ([[1, 2], [1, 2]], None, False, True),  # read once rather than twice
        ([[1], [1], [1], [2, 3]], ["full_attention"] * 3, False, False),  # three tokens rather than five: not half
        ([[1], [2]], None, False, False),
        ([[1, 2], [1, 2]], ["full_attention", "sliding_attention"], False, False),  # forgets a long prompt's beginning
        ([[1, 2], [1, 2]], None, True, False),
    ],
)
def test_a_prompt_is_shared_where_that_halves_the_work_and_the_model_can(contexts, layers, checkpointing, expected):
    model = SimpleNamespace(config=SimpleNamespace(layer_types=layers), is_activation_checkpointing=checkpointing)
    assert fast.can_share_prompts(model, contexts) is expected


def test_a_shared_prompt_changes_no_log_prob_and_no_gradient(fresh_policy, monkeypatch):
    """Contexts and responses of several lengths, one response of a single token.

    In float64, for the gradient's largest entry is over a thousand and most others are far smaller: what float32 leaves
    of those depends on the processor.
    """
    noise_adapter(fresh_policy)
    fresh_policy.model.double()
    contexts = [[5, 6, 7, 8], [9, 10], [5, 6, 7, 8], [9, 10], [5, 6, 7, 8], [9, 10]]
    responses = [[11, 12, 13], [14], [15, 16], [17, 18, 19, 20], [12], [13, 14]]

    def scored():
        logprobs = grpo.token_logprobs(fresh_policy, contexts, responses)
        gradient = torch.autograd.grad(logprobs.square().sum(), fresh_policy.trainable)
        return logprobs.detach(), torch.cat([g.flatten() for g in gradient])

    shared = scored()
    monkeypatch.setattr(fast, "can_share_prompts", lambda *_: False)
    logprobs, gradient = scored()
    torch.testing.assert_close(shared[0], logprobs, atol=1e-5, rtol=0)
    assert_same_gradient(fresh_policy, shared[1], gradient, tolerance=1e-6)  # the log-softmax is float32 even here


def test_responses_of_one_token_share_a_prompt_too(tiny_policy, monkeypatch):
    contexts, responses = [[5, 6, 7], [5, 6, 7], [8], [8]], [[9], [10], [11], [12]]
    shared = grpo.logprobs_of(tiny_policy, contexts, responses)
    monkeypatch.setattr(fast, "can_share_prompts", lambda *_: False)
    assert shared == [pytest.approx(row, abs=1e-5) for row in grpo.logprobs_of(tiny_policy, contexts, responses)]


# -------------------------------------------------------------------------------------------------------------- update


def test_no_pass_holds_more_padded_tokens_than_was_said_and_only_the_update_trains(fresh_policy, monkeypatch):
    rollouts, real, passes = rollouts_of(fresh_policy), grpo.token_logprobs, []

    def watched(policy, contexts, responses):
        lengths = [len(c) + len(r) for c, r in zip(contexts, responses, strict=True)]
        passes.append((max(lengths) * len(lengths), torch.is_grad_enabled()))
        return real(policy, contexts, responses)

    monkeypatch.setattr(grpo, "token_logprobs", watched)
    limit = sum(sorted(len(r.trained_context) + len(r.response_ids) for r in rollouts)[:2]) + 1
    fresh_policy.cfg = dataclasses.replace(fresh_policy.cfg, micro_batch_tokens=limit)
    gradient_of(fresh_policy, rollouts, kl_coef=0.1)
    assert max(size for size, _ in passes) <= limit
    assert {graded for _, graded in passes} == {True, False}  # the update's, and those of the reference
    passes.clear()
    grpo.logprobs_of(fresh_policy, [r.trained_context for r in rollouts], [r.response_ids for r in rollouts])
    assert {graded for _, graded in passes} == {False} and max(size for size, _ in passes) <= limit


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_is_in_training_mode_but_layers_that_are_recomputed(fresh_policy, monkeypatch, checkpointing):
    """Dropout, router noise and whatever else looks at `training` would train other log-probs than were sampled."""
    if checkpointing:
        pretrained.checkpoint_activations(fresh_policy.model.get_base_model())
    real, training = grpo.policy_loss, []

    def watched(*args, **how):
        training.append({type(module).__name__ for module in fresh_policy.model.modules() if module.training})
        return real(*args, **how)

    monkeypatch.setattr(grpo, "policy_loss", watched)
    fresh_policy.model.train()  # whoever has left it so
    gradient_of(fresh_policy, rollouts_of(fresh_policy))
    assert training and all(names == ({"LlamaDecoderLayer"} if checkpointing else set()) for names in training)


def test_the_update_clips_the_gradient_takes_the_rate_and_leaves_nothing_behind(fresh_policy):
    rollouts, spy = rollouts_of(fresh_policy), GradientSpy(fresh_policy)
    whole = grpo.update_policy(fresh_policy, spy, rollouts, grpo.UpdateConfig(max_grad_norm=1e9))
    assert whole["grad_norm"] == pytest.approx(spy.gradient.norm().item(), rel=1e-4) and whole["skipped"] == 0
    assert spy.param_groups[0]["lr"] == 0.0  # without a rate it stays as it was
    gradient = spy.gradient
    for p in fresh_policy.trainable:
        p.grad = torch.ones_like(p)  # what a try that ran out of memory has left
    limit = whole["grad_norm"] / 4
    metrics = grpo.update_policy(fresh_policy, spy, rollouts, grpo.UpdateConfig(max_grad_norm=limit), rate=0.25)
    assert_same_gradient(fresh_policy, spy.gradient, gradient / 4)
    assert metrics == pytest.approx(whole)  # before clipping
    assert spy.param_groups[0]["lr"] == 0.25
    assert all(p.grad is None for p in fresh_policy.trainable)  # no memory is kept


def test_an_update_without_any_signal_says_zero_everywhere_and_takes_no_step(fresh_policy):
    rollouts, spy = rollouts_of(fresh_policy, advantages=(0.0, 0.0, 0.0)), GradientSpy(fresh_policy)
    metrics = grpo.update_policy(fresh_policy, spy, rollouts, grpo.UpdateConfig())
    names = {"loss", "clip_fraction", "approx_kl", "dual_clip_fraction", "masked", "grad_norm", "skipped"}
    assert metrics == dict.fromkeys(names, 0.0) and spy.steps == 0


@pytest.mark.parametrize("broken", ["gradient", "loss"])
def test_neither_a_gradient_nor_a_loss_that_is_not_finite_moves_a_weight(fresh_policy, monkeypatch, broken):
    rollouts, spy, real = rollouts_of(fresh_policy), GradientSpy(fresh_policy), grpo.loss_of
    if broken == "gradient":
        fresh_policy.trainable[1].register_hook(lambda gradient: gradient * math.nan)
    else:
        monkeypatch.setattr(grpo, "loss_of", lambda *a: (real(*a)[0], {"loss": math.inf}))
    metrics = grpo.update_policy(fresh_policy, spy, rollouts, grpo.UpdateConfig())
    assert metrics["skipped"] == 1 and spy.steps == 0
    assert math.isfinite(metrics["grad_norm"]) == (broken == "loss")


def test_the_share_of_masked_tokens_counts_the_tokens_of_the_whole_update(fresh_policy):
    rollouts = rollouts_of(fresh_policy)
    counts = [len(r.response_ids) for r in rollouts]
    rollouts[0].token_weight = [0.0] * counts[0]
    metrics = grpo.update_policy(fresh_policy, GradientSpy(fresh_policy), rollouts, grpo.UpdateConfig())
    assert metrics["masked"] == pytest.approx(counts[0] / sum(counts))


def test_the_kl_term_pulls_back_to_the_base_policy(fresh_policy):
    noise_adapter(fresh_policy)
    rollouts = rollouts_of(fresh_policy, advantages=(0.0, 0.0, 0.0))
    optimizer = torch.optim.SGD(fresh_policy.trainable, lr=0.5)
    cfg = grpo.UpdateConfig(kl_coef=0.5, max_grad_norm=1e9)
    first, second = (grpo.update_policy(fresh_policy, optimizer, rollouts, cfg) for _ in range(2))
    assert first["kl"] > second["kl"] > 0
    assert first["loss"] == pytest.approx(0.5 * first["kl"])
    contexts, responses = [r.trained_context for r in rollouts], [r.response_ids for r in rollouts]
    new, base = (grpo.logprobs_of(fresh_policy, contexts, responses, adapter=on) for on in (True, False))
    k3 = [math.exp(b - n) - (b - n) - 1 for n, b in zip(sum(new, []), sum(base, []), strict=True)]
    third = grpo.update_policy(fresh_policy, optimizer, rollouts, cfg)
    assert third["kl"] == pytest.approx(sum(k3) / len(k3), rel=1e-3)


def weighed(policy, gap, cap, distilled=False):
    """How much larger the gradient is where the sampler gave each token exp(-gap) of the trainer's probability."""
    rollouts = rollouts_of(policy)
    if distilled:
        rollouts = [dataclasses.replace(r, sampled_context=[1, *r.sampled_context]) for r in rollouts]
    plain = gradient_of(policy, rollouts)
    for r in rollouts:
        r.sampled_logprobs = [value - gap for value in r.old_logprobs]
    return (gradient_of(policy, rollouts, importance_cap=cap) / plain.norm()).norm().item()


def test_truncated_importance_sampling_weighs_by_the_trainer_over_the_sampler_up_to_the_cap(fresh_policy):
    assert weighed(fresh_policy, gap=math.log(1.5), cap=2.0) == pytest.approx(1.5, rel=1e-3)
    assert weighed(fresh_policy, gap=math.log(3.0), cap=2.0) == pytest.approx(2.0, rel=1e-3)
    assert weighed(fresh_policy, gap=-math.log(3.0), cap=2.0) == pytest.approx(1 / 3, rel=1e-3)
    assert weighed(fresh_policy, gap=math.log(3.0), cap=0.0) == pytest.approx(1.0, rel=1e-3)
    assert weighed(fresh_policy, gap=30.0, cap=math.inf) == pytest.approx(math.exp(20), rel=1e-3)
    assert weighed(fresh_policy, gap=-30.0, cap=2.0) == pytest.approx(math.exp(-20), rel=1e-3)


def test_what_a_template_has_moved_is_not_weighed_again(fresh_policy):
    assert weighed(fresh_policy, gap=math.log(3.0), cap=2.0, distilled=True) == pytest.approx(1.0, rel=1e-3)


# ---------------------------------------------------------------------------------------------------------------- loop


def test_the_optimizer_moves_by_the_learning_rate_and_pulls_nothing_towards_zero(small):
    """AdamW's first step is the rate times the gradient's sign; its weight decay would wear the adapter away."""
    policy, optimizer, *_ = p2o.prepare(dataclasses.replace(small, learning_rate=0.25))
    before = [p.detach().clone() for p in policy.trainable]
    for number, p in enumerate(policy.trainable):
        p.grad = torch.full_like(p, number % 2)
    optimizer.step()
    for number, (p, old) in enumerate(zip(policy.trainable, before, strict=True)):
        torch.testing.assert_close(p.detach(), old - 0.25 * (number % 2), atol=1e-4, rtol=1e-4)


def test_the_longest_sequence_is_a_reflection_or_a_rollout(tmp_path):
    """100 of instruction, 3 x (100 + 50) quoted, 60 to answer, 512 around it; or 100 and 5,000. A prompt of the user's
    own is counted, whatever its length."""
    cfg = p2o.Config(max_prompt_tokens=100, max_response_tokens=150, reflection_quote=50, reflection_tokens=60)
    assert longest_sequence(cfg) == 100 + 450 + 60 + 512
    assert longest_sequence(dataclasses.replace(cfg, max_response_tokens=20)) == 100 + 360 + 60 + 512
    assert longest_sequence(dataclasses.replace(cfg, max_response_tokens=5_000)) == 5_100
    (tmp_path / "own.txt").write_text(f"<side_info>{'é' * 500}", encoding="utf-8")
    own = dataclasses.replace(cfg, reflection_prompt=str(tmp_path / "own.txt"))
    assert longest_sequence(own) == longest_sequence(cfg) + len("<side_info>") + 1000


def test_as_many_hard_questions_as_there_are_questions_may_be_asked_for(small, capsys):
    p2o.prepare(dataclasses.replace(small, method="p2o", hard_set_min=8))
    assert "p2o: 8 questions, 1 epochs, G = 2" in capsys.readouterr().out
    p2o.prepare(dataclasses.replace(small, hard_set_min=9))  # which grpo does not mind
    with pytest.raises(p2o.UserError, match="hard-set-min 9"):
        p2o.prepare(dataclasses.replace(small, method="p2o", hard_set_min=9))


SELECT = """
import json, pathlib

def select(order, history, count, rng):
    with (pathlib.Path(__file__).parent / "seen.jsonl").open("a") as file:
        file.write(json.dumps([{q.id: history.get(q.id) for q in order}, count]) + chr(10))
    return sorted(order, key=lambda q: q.id)[:count]
"""


def test_selection_sees_how_often_each_question_has_succeeded(small, tmp_path):
    (tmp_path / "mine.py").write_text(SELECT)
    p2o.train(dataclasses.replace(small, epochs=2, select=f"{tmp_path / 'mine.py'}:select"))
    seen = read_lines(tmp_path / "seen.jsonl")
    lengths = [sorted(len(rates or []) for rates in history.values()) for history, _ in seen]
    assert lengths == [[0] * 4 + [step] * 4 for step in range(4)]
    assert [count for _, count in seen] == [4] * 4


def test_the_rate_rises_over_the_updates_of_the_whole_run(small, monkeypatch):
    real, rates = grpo.update_policy, []
    monkeypatch.setattr(grpo, "update_policy", lambda *a: rates.append(a[-1]) or real(*a))
    p2o.train(dataclasses.replace(small, epochs=2, warmup=1.0, learning_rate=8e-4))
    assert rates == pytest.approx([2e-4, 2e-4, 4e-4, 4e-4, 6e-4, 6e-4, 8e-4, 8e-4])  # 2 epochs x 2 batches x 2 updates


def test_a_batch_that_just_fills_an_update_is_trained_at_once(small):
    p2o.train(dataclasses.replace(small, questions_per_update=4))
    assert [line["rollouts"] for line in lines_of(small, "update")] == [8, 8]


def test_a_question_that_is_drawn_twice_is_hard_once(small, tmp_path):
    (tmp_path / "mine.py").write_text(SELECT)
    (tmp_path / "never.py").write_text("def reward(response, question):\n    return 0.0, 'no'\n")
    seams = {"select": f"{tmp_path / 'mine.py'}:select", "reward": f"{tmp_path / 'never.py'}:reward"}
    assert p2o.train(dataclasses.replace(small, **seams))["hard_set"] == 4  # two batches of the same four
