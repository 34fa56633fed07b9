"""The policy and how it learns: 4 bits + LoRA, sampling, log-probs, advantages, losses, update.

What GRPO is here, in the order in which a rollout meets it:

    y ~ pi_old(. | T(x, z)),  r = verdict of y                                  sample
    A_i     = (r_i - mean r) / (std r + 1e-6)                                   group_advantages
    w_t     = 1 where pi_old(y_t | x) / pi_old(y_t | T(x,z)) is in [0.01, 10]   template_ratio_weight
    rho_t   = pi_theta(y_t | x) / pi_old(y_t | x)                               importance_ratio
    L_t     = max(-A rho, -A clip(rho, 0.8, 1.2)), at most -A c where A < 0     surrogate
    loss    = mean over tokens of w_t L_t                                       policy_loss, aggregate

This module does not know what a template is. A `Rollout` has a context it was *sampled from* and a context it is
*trained on*; context distillation, the heart of P2O (arXiv:2603.21877v3, eq. 4), is nothing more than the two being
different. Log-probabilities are those of the sampling distribution everywhere: logits divided by the temperature.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from support import pretrained, shared_prompt
from support.cache import roomy_cache
from support.memory import halve_when_out_of_memory
from support.messages import as_messages
from support.seams import filled
from support.settings import Settings

TINY = Path(__file__).resolve().parent / "tiny"


@dataclass
class Sample:
    """One response as it was sampled."""

    response_ids: list[int]  # [T], the stop token included if there was one
    sampled_logprobs: list[float]  # [T], log pi_old(y | the context it was sampled from), from the sampler
    truncated: bool  # ran out of tokens before a stop token
    text: str


@dataclass(kw_only=True)
class Rollout(Sample):
    """A sample, what it is trained on, and what it earned."""

    question_id: str
    template: str = ""  # for the record; the two contexts say all that training needs
    sampled_context: list[int]  # token ids of T(x, z)
    trained_context: list[int]  # token ids of x: the same, or not, and then this is context distillation
    reward: float = 0.0
    well_formed: bool = True  # an answer could be found at all
    advantage: float | list[float] = 0.0  # A: one number, or [T]
    token_weight: float | list[float] = 1.0  # w: one number, or [T]
    old_logprobs: list[float] | None = None  # [T], log pi_old(y | x); None where the update finds it itself: score_old

    @property
    def distilled(self) -> bool:
        return self.sampled_context != self.trained_context

    @property
    def teaches(self) -> bool:
        """Has it any advantage? In a collapsed group none has."""
        return any(self.advantage) if isinstance(self.advantage, list) else self.advantage != 0.0


def groups_of(rollouts: list[Rollout]) -> list[list[Rollout]]:
    """The rollouts of each question, in order of first appearance; groups may differ in size."""
    groups: dict[str, list[Rollout]] = {}
    for r in rollouts:
        groups.setdefault(r.question_id, []).append(r)
    return list(groups.values())


# ------------------------------------------------------------------------------------------- advantages and losses


Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]


@dataclass(frozen=True)
class UpdateConfig(Settings):
    """How rollouts become a step of the adapter."""

    learning_rate: float = 5e-4  # Peak rate of AdamW, on the adapter
    warmup: float = 0.05  # Share of all updates over which the rate rises
    max_grad_norm: float = 1.0  # Gradient clipping
    scale_by_std: bool = True  # Divide advantages by the group's standard deviation; without it they are Dr. GRPO's
    clip_low: float = 0.2  # epsilon_low of the PPO clip
    clip_high: float = 0.2  # epsilon_high; larger than clip_low is DAPO's clip-higher
    dual_clip: float = 3.0  # c of the dual clip
    aggregation: Aggregation = "token-mean"
    """How per-token losses become one number."""
    kl_coef: float = 0.0  # Weight of the k3 KL term to the base policy
    ratio_mask: bool = True  # Weigh tokens by the template ratio pi_old(y|x) / pi_old(y|T(x,z))
    ratio_min: float = 0.01  # Lower bound of the template ratio
    ratio_max: float = 10.0  # Upper bound of the template ratio
    soft_clip: bool = False  # Weight bound / ratio outside the bounds, rather than 0
    importance_cap: float = 0.0  # weigh tokens by min(pi_trainer / pi_sampler, this), against rounding; 0 is off
    advantage: str = ""  # a function of variants/advantage.py or of my_file.py:mine for grpo_advantages
    ratio: str = ""  # likewise for importance_ratio
    loss: str = ""  # likewise for surrogate

    def rules(self) -> dict[str, bool]:
        low, high, cap = self.ratio_min, self.ratio_max, self.importance_cap
        return {
            f"--learning-rate {self.learning_rate}: must be positive": self.learning_rate > 0,
            f"--clip-low {self.clip_low}: at least 0 and below 1": 0 <= self.clip_low < 1,
            f"--clip-high {self.clip_high}: at least 0": self.clip_high >= 0,
            f"--dual-clip {self.dual_clip}: must be greater than 1": self.dual_clip > 1,
            f"--kl-coef {self.kl_coef}: at least 0": self.kl_coef >= 0,
            f"--ratio-min {low} --ratio-max {high}: 0 < ratio-min <= 1 <= ratio-max": 0 < low <= 1 <= high,
            "--soft-clip --no-ratio-mask: the soft clip is a kind of ratio mask": self.ratio_mask or not self.soft_clip,
            f"--importance-cap {cap}: 0 for none, or at least 1, so that equal engines weigh 1": cap == 0 or cap >= 1,
        }


def group_advantages(
    rewards: torch.Tensor, group_size: int, scale_by_std: bool = True, eps: float = 1e-6
) -> torch.Tensor:
    """How much better a rollout did than the other rollouts of its question (GRPO).

    rewards: [B], groups of `group_size` neighbours. Returns [B]. The standard deviation is the sample's (n - 1).
    A group whose rewards are all equal gets zeros: *advantage collapse*, the question teaches nothing.
    `scale_by_std=False` gives the mean-only advantages of Dr. GRPO.

    >>> group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), 4)
    tensor([ 1.5000, -0.5000, -0.5000, -0.5000])
    >>> group_advantages(torch.zeros(4), 4)
    tensor([0., 0., 0., 0.])
    """
    # --- solution: part 1 ---
    if group_size < 2 or rewards.numel() % group_size:
        raise ValueError(f"{rewards.numel()} rewards do not make groups of {group_size} (at least 2 are needed)")
    groups = rewards.view(-1, group_size)  # [B / G, G]
    centred = groups - groups.mean(dim=1, keepdim=True)
    if scale_by_std:
        # eps is added to the standard deviation, not to the variance: it only keeps 0 / 0 from happening.
        centred = centred / (groups.std(dim=1, keepdim=True) + eps)
    return centred.view(-1)


def advantages_of(group: list[Rollout], cfg: UpdateConfig, **at_hand) -> list[float] | list[list[float]]:
    """The advantages of a question's finished rollouts: a number for each, or a list of T.

    A seam: a variant sees the rollouts with their texts, lengths and log-probs, and may ask for what is `at_hand`.
    """

    def of_grpo(group: list[Rollout]) -> list[float]:
        return group_advantages(torch.tensor([r.reward for r in group]), len(group), cfg.scale_by_std).tolist()

    return filled("advantage", cfg, of_grpo, **at_hand)(group)


def aggregate(
    per_token: torch.Tensor, mask: torch.Tensor, aggregation: str, whole: tuple[int, int, int] | None = None
) -> torch.Tensor:
    """Per-token values [B, T] -> scalar. The denominators count every response token, whatever its weight.

    token-mean               mean over all tokens of the batch (DAPO; the authors' choice)
    seq-mean-token-mean      mean over sequences of each one's token mean (the original GRPO)
    seq-mean-token-sum       mean over sequences of each one's token sum
    seq-mean-token-sum-norm  sum over all tokens, divided by a constant length (Dr. GRPO)

    `whole` = (sequences, tokens, constant length) of the update of which this is a micro-batch, so that its parts add
    up to it; by default the batch itself, and T.

    >>> aggregate(torch.tensor([[1.0, 3.0], [5.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]]), "token-mean")
    tensor(3.)
    """
    # --- solution: part 2 ---
    sums, counts = (per_token * mask).sum(dim=1), mask.sum(dim=1)  # [B], [B]
    sequences, tokens, length = whole or (mask.shape[0], counts.sum().clamp(min=1), mask.shape[1])
    if aggregation == "token-mean":
        return sums.sum() / tokens
    if aggregation == "seq-mean-token-mean":
        return (sums / counts.clamp(min=1)).sum() / sequences
    if aggregation == "seq-mean-token-sum":
        return sums.sum() / sequences
    if aggregation == "seq-mean-token-sum-norm":
        return sums.sum() / length
    raise ValueError(f"unknown aggregation {aggregation!r}: one of {', '.join(get_args(Aggregation))}")


def importance_ratio(logprobs: torch.Tensor, old_logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """log rho [B, T] of each token: how far the policy has moved since it sampled. All tensors are [B, T].

    Clamped to +-20, so that one impossible token cannot make the loss infinite. A seam: GSPO puts one ratio for the
    whole response here (variants/ratio.py).
    """
    # --- solution: part 2 ---
    return (logprobs - old_logprobs).clamp(-20, 20)


def surrogate(
    log_ratio: torch.Tensor, advantages: torch.Tensor, *, clip_low: float, clip_high: float, dual_clip: float, **_
) -> torch.Tensor:
    """PPO's pessimistic clip, and the dual clip: per-token loss [B, T] from log rho [B, T] and A [B, T].

    The larger loss counts, so moving further than the clip in the direction that A asks for gains nothing, while moving
    the wrong way is always charged. Where A < 0 that charge has no bound: a token that the new policy likes far more
    than the old one did. The dual clip bounds it by -A c. A seam: a variant gets `logprobs` and `mask`, too.

    >>> surrogate(torch.tensor([[1.5, 0.5]]).log(), torch.ones(1, 2), clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    tensor([[-1.2000, -0.5000]])
    """
    # --- solution: part 2 ---
    ratio = log_ratio.exp()
    pessimistic = torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high))
    return torch.where(advantages < 0, torch.min(-advantages * dual_clip, pessimistic), pessimistic)


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 3.0,
    token_weight: torch.Tensor | None = None,
    aggregation: str = "token-mean",
    whole: tuple[int, int, int] | None = None,
    ratio: Callable[..., torch.Tensor] = importance_ratio,
    loss: Callable[..., torch.Tensor] = surrogate,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The objective of GRPO: importance ratio, clipped surrogate, token weights, aggregation.

    logprobs, old_logprobs, mask, token_weight: [B, T]; advantages: [B] or [B, T]. Returns (scalar loss, metrics).
    `token_weight` multiplies the per-token loss before aggregation; the denominator still counts the token. Metrics are
    token means: share of tokens where the clip is active, where the dual clip is, and -(new - old).

    >>> value, metrics = policy_loss(torch.tensor([[-1.0]], requires_grad=True), torch.tensor([[-1.0]]),
    ...                              torch.tensor([2.0]), torch.ones(1, 1))
    >>> value.item(), metrics["clip_fraction"]          # on-policy: -A, and the gradient is -A as well
    (-2.0, 0.0)
    """
    # --- solution: part 2 ---
    if advantages.dim() == 1:
        advantages = advantages[:, None].expand_as(logprobs)  # [B, T]
    log_ratio = ratio(logprobs, old_logprobs, mask)  # [B, T]
    per_token = loss(
        log_ratio, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip, logprobs=logprobs, mask=mask
    )  # [B, T]
    if token_weight is not None:
        per_token = per_token * token_weight

    with torch.no_grad():
        rho = log_ratio.exp()
        clipped = -advantages * rho.clamp(1 - clip_low, 1 + clip_high)
        beyond = torch.max(-advantages * rho, clipped) > -advantages * dual_clip
        counters = {
            "clip_fraction": (clipped > -advantages * rho).float(),
            "approx_kl": -log_ratio,
            "dual_clip_fraction": (beyond & (advantages < 0)).float(),
        }
        metrics = {name: aggregate(value, mask, "token-mean", whole).item() for name, value in counters.items()}
    return aggregate(per_token, mask, aggregation, whole), metrics


def template_ratio_weight(
    bare_logprobs: torch.Tensor,
    templated_logprobs: torch.Tensor,
    ratio_min: float = 0.01,
    ratio_max: float = 10.0,
    soft: bool = False,
) -> torch.Tensor:
    """Weight [B, T] of each token by how far the template moved it: rho = pi_old(y|x) / pi_old(y|T(x,z)).

    Inside [ratio_min, ratio_max] the weight is 1: it says whether a token counts, and is no importance weight. Outside
    it is 0 (hard clip, the default), because the bare policy cannot yet take the step that the template took; or
    `bound / rho` (soft clip).

    >>> bare, templated = torch.log(torch.tensor([[0.07, 0.001, 0.5]])), torch.log(torch.tensor([[0.9, 0.9, 0.02]]))
    >>> template_ratio_weight(bare, templated)           # rho = 0.08, 0.001, 25
    tensor([[1., 0., 0.]])
    >>> template_ratio_weight(bare, templated, soft=True)
    tensor([[1.0000, 9.0000, 0.4000]])
    """
    # --- solution: part 3 ---
    ratio = (bare_logprobs - templated_logprobs).clamp(-20, 20).exp()
    bounded = ratio.clamp(ratio_min, ratio_max)
    return bounded / ratio if soft else (bounded == ratio).to(ratio.dtype)


def kl_k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Schulman's k3 estimate of KL(policy || reference) per token, [B, T]: exp(d) - d - 1 with d = ref - new.

    Never negative, and of low variance. Unbiased for samples of the policy itself only: not for responses that were
    sampled under a template, nor where the clamps act (d to +-20, the result to +-10).

    >>> kl_k3(torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0, -2.0]]))
    tensor([[0.0000, 0.3679]])
    """
    d = (ref_logprobs - logprobs).clamp(-20, 20)
    return (d.exp() - d - 1).clamp(-10, 10)


# ------------------------------------------------------------------------------------------------------ the policy


@dataclass(frozen=True)
class PolicyConfig(Settings):
    """Which model, how it is adapted, and how it is sampled."""

    model: str = str(TINY / "united" / "model")  # Model folder, or hub id
    system_prompt: str = ""  # System message of every prompt; empty for none
    enable_thinking: bool = False  # Qwen3's switch; other chat templates ignore it
    lora_rank: int = 16  # Rank of the adapter on every linear layer
    lora_alpha: int = 32  # The adapter's scale is alpha / rank
    load_in_4bit: bool = False  # NF4 with double quantization, through bitsandbytes (on a CPU, too)
    gradient_checkpointing: bool = False  # Keep no activations but recompute them in backward
    temperature: float = 1.0  # Of sampling, and of every log-probability
    max_prompt_tokens: int = 160  # longer questions are left out; templates that leave a question no room, too
    max_response_tokens: int = 40  # A response that has not ended by then is truncated, and counted
    sample_batch: int = 256  # Rollouts sampled at once by transformers
    micro_batch_tokens: int = 16384  # padded tokens in one forward and backward pass; an update accumulates them
    engine: Literal["hf", "vllm"] = "hf"  # who samples: transformers, or vLLM in the same process
    vllm_memory: float = 0.6  # Share of the card for vLLM while it samples; it sleeps while the policy trains
    threads: int = 1  # CPU threads of torch; 0 leaves it to torch

    def rules(self) -> dict[str, bool]:
        return {
            f"--temperature {self.temperature}: must be positive, or all rollouts are equal": self.temperature > 0,
            f"--temperature {self.temperature}: vLLM takes up to 2": self.engine == "hf" or self.temperature <= 2,
            f"--vllm-memory {self.vllm_memory}: a share of the card, between 0 and 1": 0 < self.vllm_memory < 1,
            f"--max-prompt-tokens {self.max_prompt_tokens}: at least 1": self.max_prompt_tokens >= 1,
            f"--max-response-tokens {self.max_response_tokens}: at least 1": self.max_response_tokens >= 1,
        }


@dataclass
class Policy:
    """A causal LM with a LoRA adapter, and how it is sampled. The adapter switched off is the base policy."""

    model: torch.nn.Module  # peft.PeftModel
    tokenizer: object
    cfg: PolicyConfig
    stop_ids: list[int]  # any of these ends a response (and belongs to it)
    engine: object = None  # None samples with transformers; else an object with sample(), see support/vllm_engine.py
    head: Callable[[torch.Tensor], torch.Tensor] | None = None  # hidden states -> logits; None is the output layer

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def trainable(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]


def load_policy(
    cfg: PolicyConfig, adapter: str | None = None, seed: int = 0, longest_sequence: int | None = None
) -> Policy:
    """Load a causal LM from a folder or a hub id, in 4 bits if asked, and put a LoRA adapter on all its linear layers.

    `adapter` continues a saved adapter instead of a fresh one, whose A matrices are drawn from `seed`. An engine of its
    own is told the longest sequence, prompt and response, that it will see. Raises UserError with one clear line if
    there is no such model, or it has no chat template.
    """
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    pretrained.silence_libraries()  # before they are imported
    from peft import LoraConfig, PeftModel, get_peft_model

    tokenizer = pretrained.load_tokenizer(cfg.model)
    config = pretrained.load_config(cfg.model, cfg.max_prompt_tokens + cfg.max_response_tokens)
    base, stop_ids = pretrained.load_base(cfg.model, config, tokenizer, cfg.load_in_4bit)
    if cfg.gradient_checkpointing:
        pretrained.checkpoint_activations(base)
    if adapter:
        model = PeftModel.from_pretrained(base, adapter, is_trainable=True)
    else:
        torch.manual_seed(seed)
        with pretrained.or_refused(cfg.model, base):
            lora = LoraConfig(
                r=cfg.lora_rank, lora_alpha=cfg.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM",
                exclude_modules=pretrained.without_adapter(base) or None,
            )  # fmt: skip
            model = get_peft_model(base, lora)
    pretrained.mix_precision(model)
    policy = Policy(model.eval(), tokenizer, cfg, stop_ids)
    if cfg.engine == "vllm":
        from support.vllm_engine import VllmEngine

        longest = longest_sequence or cfg.max_prompt_tokens + cfg.max_response_tokens
        policy.engine = VllmEngine(policy.model, tokenizer, cfg, max_model_len=longest, seed=seed)
    pretrained.prove(policy, [chat_ids(policy, text) for text in pretrained.PROBES], sample, logprobs_of)
    return policy


def chat_ids(policy: Policy, message: str) -> list[int]:
    """Token ids of one message in the model's chat format, up to where the response begins.

    It is the user's, but for what a template's system part says (support/messages.py).
    """
    messages = as_messages(message, policy.cfg.system_prompt)
    return policy.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=policy.cfg.enable_thinking, return_dict=False
    )


# -------------------------------------------------------------------------------------------------------- sampling


def respond(policy: Policy, messages: list[str], **how) -> list[Sample]:
    """One response to each user message; `how` as for sample."""
    return sample(policy, [chat_ids(policy, message) for message in messages], **how)


@halve_when_out_of_memory("sample_batch", smallest=1)
@torch.no_grad()
def sample(
    policy: Policy,
    contexts: list[list[int]],
    *,
    seed: int | None,
    temperature: float | None = None,
    max_new_tokens: int | None = None,
    adapter: bool = True,
) -> list[Sample]:
    """One response for each context (a list of token ids), in order.

    `seed=None` decodes greedily; with a seed the same contexts give the same responses. `adapter=False` samples from
    the base policy. Temperature and length are the policy's by default. Log-probs are those of the distribution that
    was drawn from (temperature applied; under greedy decoding, too).
    """
    temperature, length = temperature or policy.cfg.temperature, max_new_tokens or policy.cfg.max_response_tokens
    if policy.engine is not None:
        drawn = policy.engine.sample(contexts, policy.stop_ids, seed, temperature, length, adapter)
    else:
        policy.model.eval()
        # A number for each token to come, whatever batch it will be drawn in: so batches do not matter to the draw.
        generator, size, drawn = torch.Generator().manual_seed(seed or 0), policy.cfg.sample_batch, []
        uniform = None if seed is None else torch.rand(len(contexts), length, generator=generator)
        with nullcontext() if adapter else policy.model.disable_adapter():
            for i in range(0, len(contexts), size):
                part = None if uniform is None else uniform[i : i + size].to(policy.device)
                drawn += _decode(policy, contexts[i : i + size], part, temperature, length)
    texts = policy.tokenizer.batch_decode([ids for ids, _, _ in drawn], skip_special_tokens=True)
    return [Sample(ids, logprobs, cut, text) for (ids, logprobs, cut), text in zip(drawn, texts, strict=True)]


def _decode(policy: Policy, contexts, uniform, temperature: float, length: int) -> list[tuple[list, list, bool]]:
    """(token ids, log-probs, truncated) for each context, token by token, with a cache of keys and values."""
    # The G rollouts of a question share its context: it is read once.
    place = {context: i for i, context in enumerate(dict.fromkeys(map(tuple, contexts)))}
    batch = policy.tokenizer.pad({"input_ids": list(map(list, place))}, return_tensors="pt").to(policy.device)  # left
    mask, cache = batch.attention_mask, roomy_cache(policy.model.config)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    tokens, stop = batch.input_ids, torch.tensor(policy.stop_ids, device=policy.device)
    going = list(range(len(contexts)))  # which response a row of the batch is
    rows = [place[tuple(context)] for context in contexts]  # of the batch, that go on
    drawn: list[tuple[list, list]] = [([], []) for _ in contexts]
    for t in range(length):
        logits = policy.model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        ).logits[:, -1]  # [rows, V]
        if t == 0:  # from contexts to rollouts
            logits, mask = logits[rows], mask[rows]
            cache.reorder_cache(torch.tensor(rows, device=policy.device))
        logprobs = (logits.float() / temperature).log_softmax(dim=-1)  # [B, V]
        tokens = _draw(logprobs, None if uniform is None else uniform[going, t])  # [B, 1]
        chosen = logprobs.gather(1, tokens)[:, 0].tolist()
        for i, token, value in zip(going, tokens[:, 0].tolist(), chosen, strict=True):
            drawn[i][0].append(token)
            drawn[i][1].append(value)
        rows = (~torch.isin(tokens[:, 0], stop)).nonzero()[:, 0]
        if len(rows) < len(going):  # what has ended leaves the batch
            going, tokens, mask = [going[row] for row in rows.tolist()], tokens[rows], mask[rows]
            cache.reorder_cache(rows)
        if not going:
            break
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        positions = mask.sum(dim=1, keepdim=True) - 1
    return [(ids, values, i in going) for i, (ids, values) in enumerate(drawn)]


def _draw(logprobs: torch.Tensor, uniform: torch.Tensor | None) -> torch.Tensor:
    """The likeliest token of each row of [B, V]; or the one in whose share of the distribution a uniform number falls.

    >>> _draw(torch.tensor([[0.2, 0.5, 0.3]] * 3).log(), torch.tensor([0.1, 0.3, 0.9])).tolist()
    [[0], [1], [2]]
    """
    if uniform is None:
        return logprobs.argmax(dim=-1, keepdim=True)
    shares = logprobs.exp().cumsum(dim=-1)  # up to 1, but for rounding
    return torch.searchsorted(shares, uniform[:, None] * shares[:, -1:], right=True).clamp(max=logprobs.shape[1] - 1)


# ------------------------------------------------------------------------------------------------------- log-probs


def padded(values: list[float | list[float]], lengths: list[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """One number for each response, or one for each of its tokens -> [B, T], zeros on the right.

    >>> padded([0.5, [2.0, 3.0]], [1, 2])
    tensor([[0.5000, 0.0000],
            [2.0000, 3.0000]])
    """
    rows = [value if isinstance(value, list) else [value] * n for value, n in zip(values, lengths, strict=True)]
    return torch.tensor([row + [0.0] * (max(lengths) - len(row)) for row in rows], device=device)


def micro_batches(lengths: list[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices of sequences in batches of at most `max_tokens` padded tokens, the longest first.

    Longest first, so that running out of memory shows at step 1. A sequence longer than `max_tokens` goes alone.

    >>> list(micro_batches([2, 5, 4, 1], max_tokens=10))
    [[1, 2], [0, 3]]
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _chosen_logprobs(hidden: torch.Tensor, tokens: torch.Tensor, head, temperature: float) -> torch.Tensor:
    """hidden [N, D], tokens [N] -> log-prob of each token, [N]."""
    # --- solution: part 4 ---
    logits = head(hidden).float() / temperature  # [N, V]
    return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(dim=1)


LOGIT_CHUNK = 2**27  # logits held at once in float32 (512 MiB): 880 tokens of Qwen3's vocabulary


def token_logprobs(policy: Policy, contexts: list[list[int]], responses: list[list[int]]) -> torch.Tensor:
    """log pi(y_t | context, y_<t) of each response token under the present weights, [B, T], zeros on the right.

    Differentiable when gradients are enabled. Sequences are padded on the right, where causal attention makes padding
    harmless, so no attention mask is needed. [B, T, V] never exists: the head runs over chunks of tokens, and backward
    computes each chunk again.
    """
    # --- solution: part 4 ---
    pretrained.set_training_mode(policy.model)
    causal_lm, pad = policy.model.get_base_model(), policy.tokenizer.pad_token_id
    rows = [b for b, r in enumerate(responses) for _ in r]
    columns = [t for r in responses for t in range(len(r))]
    if shared_prompt.pays(causal_lm, contexts):
        hidden = shared_prompt.hidden_states(causal_lm, contexts, responses, pad)  # [N, D]
    else:
        sequences = [c + r for c, r in zip(contexts, responses, strict=True)]
        width = max(map(len, sequences))
        ids = torch.tensor([s + [pad] * (width - len(s)) for s in sequences], device=policy.device)  # [B, L]
        # The hidden state at position p predicts token p + 1: a response that begins at p = len(context) is predicted
        # from len(context) - 1 on.
        positions = [len(contexts[b]) - 1 + t for b, t in zip(rows, columns, strict=True)]
        body = pretrained.body_of(causal_lm)
        hidden = body(input_ids=ids, use_cache=False).last_hidden_state[rows, positions]  # [N, D]
    tokens = torch.tensor([token for r in responses for token in r], device=policy.device)  # [N]
    head, temperature = policy.head or causal_lm.get_output_embeddings(), policy.cfg.temperature
    chunk = max(1, LOGIT_CHUNK // causal_lm.config.get_text_config().vocab_size)
    values = []
    for part, chosen in zip(hidden.split(chunk), tokens.split(chunk), strict=True):
        if torch.is_grad_enabled():
            values.append(checkpoint(_chosen_logprobs, part, chosen, head, temperature, use_reentrant=False))
        else:
            values.append(_chosen_logprobs(part, chosen, head, temperature))
    dense = torch.zeros(len(responses), max(map(len, responses)), device=policy.device)
    return dense.index_put((torch.tensor(rows), torch.tensor(columns)), torch.cat(values))  # [B, T]


@halve_when_out_of_memory("micro_batch_tokens", smallest=64)
@torch.no_grad()
def logprobs_of(policy: Policy, contexts: list[list[int]], responses: list[list[int]], adapter: bool = True):
    """`token_logprobs` without gradients, in micro-batches, as one list of floats for each response."""
    values: list[list[float]] = [[] for _ in contexts]
    lengths = [len(c) + len(r) for c, r in zip(contexts, responses, strict=True)]
    with nullcontext() if adapter else policy.model.disable_adapter():
        for batch in micro_batches(lengths, policy.cfg.micro_batch_tokens):
            dense = token_logprobs(policy, [contexts[i] for i in batch], [responses[i] for i in batch]).tolist()
            for i, row in zip(batch, dense, strict=True):
                values[i] = row[: len(responses[i])]
    return values


def mismatch(policy: Policy, rollouts: list[Rollout]) -> tuple[float, float]:
    """(mean, max) over tokens of |log pi_trainer - log pi_sampler|: do the two agree about the same policy?

    A stale adapter, a temperature that one side forgot, a hidden top-k: all of them show here, and nowhere else.
    """
    trainer = logprobs_of(policy, [r.sampled_context for r in rollouts], [r.response_ids for r in rollouts])
    gap = (torch.tensor(sum(trainer, [])) - torch.tensor(sum((r.sampled_logprobs for r in rollouts), []))).abs()
    return gap.mean().item(), gap.max().item()


# ---------------------------------------------------------------------------------------------------------- update


def score_old(policy: Policy, updates: list[list[Rollout]], cfg: UpdateConfig) -> None:
    """Fill in log pi_old(y | x) and the template-ratio weights, before any weight moves; and only where it has to be.

    A rollout without advantage is not trained. A bare one in the first update needs nothing: until then the policy *is*
    pi_old, and the update's own pass says it. In a later update the sampler's log-probs serve, if that was transformers
    with the trainer's weights and arithmetic. So what is scored is what was distilled, and vLLM's rollouts.
    """
    scored = []
    for number, r in [(number, r) for number, part in enumerate(updates) for r in part if r.teaches]:
        if r.distilled or number and policy.engine is not None:
            scored.append(r)
        elif number:
            r.old_logprobs = r.sampled_logprobs
    values = logprobs_of(policy, [r.trained_context for r in scored], [r.response_ids for r in scored])
    weigh = partial(template_ratio_weight, ratio_min=cfg.ratio_min, ratio_max=cfg.ratio_max, soft=cfg.soft_clip)
    for r, old_logprobs in zip(scored, values, strict=True):
        r.old_logprobs = old_logprobs
        if r.distilled and cfg.ratio_mask:
            r.token_weight = weigh(torch.tensor(old_logprobs), torch.tensor(r.sampled_logprobs)).tolist()


def warmed_up(done: float, cfg: UpdateConfig) -> float:
    """The learning rate when a share `done` of the run is over: linear up to the share `warmup`, then constant.

    >>> [warmed_up(done, UpdateConfig(learning_rate=1.0, warmup=0.25)) for done in (0.125, 0.25, 0.5)]
    [0.5, 1.0, 1.0]
    """
    return cfg.learning_rate * (min(1.0, done / cfg.warmup) if cfg.warmup else 1.0)


def loss_of(
    policy: Policy, part: list[Rollout], cfg: UpdateConfig, whole: tuple[int, int, int]
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of a micro-batch as its share of the whole update's, and its metrics likewise."""
    contexts, responses = [r.trained_context for r in part], [r.response_ids for r in part]
    as_rows = partial(padded, lengths=[len(ids) for ids in responses], device=policy.device)
    logprobs = token_logprobs(policy, contexts, responses)  # log pi_theta(y | x), [B, T], with gradient
    mask, advantages = as_rows([1.0] * len(part)), as_rows([r.advantage for r in part])  # [B, T]
    # What was not scored has no old log-probs but these: the policy has not moved since it sampled.
    scored = as_rows([math.nan if r.old_logprobs is None else r.old_logprobs for r in part])
    old_logprobs = torch.where(scored.isnan(), logprobs.detach(), scored)
    token_weight = as_rows([r.token_weight for r in part])
    sampled_logprobs = as_rows([r.sampled_logprobs for r in part])  # of T(x, z), whence the response came
    if cfg.importance_cap:
        # Truncated importance sampling: another engine draws from slightly other probabilities than the trainer's. Only
        # in the same context; what a template has moved is the ratio mask's affair.
        gap = old_logprobs - sampled_logprobs
        bare = as_rows([float(not r.distilled) for r in part])
        token_weight = token_weight * (bare * gap).clamp(-20, 20).exp().clamp(max=cfg.importance_cap)
    loss, metrics = policy_loss(
        logprobs, old_logprobs, advantages, mask, clip_low=cfg.clip_low, clip_high=cfg.clip_high,
        dual_clip=cfg.dual_clip, token_weight=token_weight, aggregation=cfg.aggregation, whole=whole,
        ratio=filled("ratio", cfg, importance_ratio, sampled_logprobs=sampled_logprobs),
        loss=filled("loss", cfg, surrogate),
    )  # fmt: skip
    metrics["masked"] = aggregate((token_weight == 0).float(), mask, "token-mean", whole).item()
    if cfg.kl_coef:
        reference = as_rows(logprobs_of(policy, contexts, responses, adapter=False))  # log pi_ref(y | x), [B, T]
        kl = aggregate(kl_k3(logprobs, reference), mask, cfg.aggregation, whole)
        loss, metrics["kl"] = loss + cfg.kl_coef * kl, kl.item()
    return loss, metrics | {"loss": loss.item()}


@halve_when_out_of_memory("micro_batch_tokens", smallest=64)
def update_policy(
    policy: Policy, optimizer: Optimizer, rollouts: list[Rollout], cfg: UpdateConfig, rate: float | None = None
) -> dict[str, float]:
    """One optimizer step on these rollouts, by accumulation over micro-batches; returns its metrics.

    The accumulated gradient is that of one big batch. Rollouts without advantage add nothing to the policy loss: they
    are left out of the passes, not of the denominators. A gradient that is not finite is thrown away (`skipped` is 1),
    and no weight moves. `rate`: the optimizer's learning rate from here on.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] if rate is None else rate
    learned = [r for r in rollouts if r.teaches or cfg.kl_coef]  # with a KL term every rollout has a gradient
    whole = (len(rollouts), sum(len(r.response_ids) for r in rollouts), policy.cfg.max_response_tokens)
    metrics = Counter(loss=0.0, clip_fraction=0.0, approx_kl=0.0, dual_clip_fraction=0.0, masked=0.0)
    optimizer.zero_grad(set_to_none=True)  # what a try that ran out of memory has left
    lengths = [len(r.trained_context) + len(r.response_ids) for r in learned]
    for batch in micro_batches(lengths, policy.cfg.micro_batch_tokens):
        loss, part = loss_of(policy, [learned[i] for i in batch], cfg, whole)
        loss.backward()
        metrics.update(part)  # a Counter adds
    metrics["grad_norm"] = torch.nn.utils.clip_grad_norm_(policy.trainable, cfg.max_grad_norm).item()
    metrics["skipped"] = float(not math.isfinite(metrics["loss"] + metrics["grad_norm"]))
    if learned and not metrics["skipped"]:  # without any signal, Adam's momentum would move the weights all the same
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return dict(metrics)
