"""The policy and how it learns: 4 bits + LoRA, sampling, log-probs, advantages, losses, update.

What GRPO is here, in the order in which a rollout meets it:

    y ~ pi_old(. | T(x, z)), then r = reward of y                                sample; verify.judge gives r
    A_i     = (r_i - mean r) / (std r + 1e-6)                                    group_advantages
    s_t     = pi_old(y_t | x, y_<t) / pi_old(y_t | T(x,z), y_<t)
    w_t     = 1 where s_t is in [0.01, 10], else 0                               template_ratio_weight
    rho_t   = pi_theta(y_t | x, y_<t) / pi_old(y_t | x, y_<t)                    log_importance_ratio
    L_t     = max(-A rho_t, -A clip(rho_t, 0.8, 1.2)), at most -3 A where A < 0  surrogate
    loss    = mean over tokens of w_t L_t                                        policy_loss, aggregate
    k3_t    = exp(d_t) - d_t - 1, d_t = log pi_ref - log pi_theta; off           kl_k3

No line here reads a template. A `Rollout` has a context it was *sampled from* and a context it is *trained on*. Context
distillation, the heart of P2O (arXiv:2603.21877v3, eq. 4), is nothing more than the two being different.
Log-probabilities are those of the sampling distribution everywhere: logits divided by the temperature.

Shapes: B rollouts, G of each question, T response tokens, M response tokens of all rollouts together, L tokens of
prompt and response, C distinct prompts, W their padded length, D hidden size, V vocabulary. T(x, z) is question x under
template z. What stands behind `# --- solution: part N ---` is taken out for the students of the course in assignment/.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from support import fast, pretrained, proofs
from support.memory import LossScale, halve_when_out_of_memory, micro_batches, padded
from support.messages import as_messages, encode_chat, response_texts
from support.seams import variant
from support.settings import Settings, at_least, require

TINY = Path(__file__).resolve().parent / "tiny"


@dataclass
class Sample:
    """One response as it was sampled."""

    response_ids: list[int]  # [T], the stop token included if there was one
    sampled_logprobs: list[float]  # [T], log pi_old(y_t | the context it was sampled from), from the sampler
    truncated: bool  # ran out of tokens before a stop token
    text: str


@dataclass(kw_only=True)
class Rollout(Sample):
    """A sample, what it is trained on, and what it earned."""

    question_id: str
    template: str = ""  # for the record; the two contexts say all that training needs
    sampled_context: list[int]  # token ids of T(x, z)
    trained_context: list[int]  # token ids of x, or the same as above
    reward: float = 0.0
    well_formed: bool = True  # it has the form of an answer: by default, exactly one box
    advantage: float | list[float] = 0.0  # A: one number, or [T]
    token_weight: float | list[float] = 1.0  # w: one number, or [T]
    old_logprobs: list[float] | None = None  # [T], log pi_old(y_t | trained context); None: see `score_old`

    @property
    def is_distilled(self) -> bool:
        """Was it sampled under a template, and is it trained on the bare question?"""
        return self.sampled_context != self.trained_context

    @property
    def has_signal(self) -> bool:
        """Is its advantage not 0? In a collapsed group no rollout has a signal."""
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

    # Peak learning rate of AdamW, which trains the adapter. LoRA wants 10 to 20 times the rate of full fine-tuning.
    learning_rate: float = 5e-4
    # Share of the run over which the learning rate rises to its peak.
    warmup: float = 0.05
    # Share of the run, at its end, over which the learning rate falls to a tenth of its peak. 0 keeps it at the peak.
    decay: float = 0.0
    # Largest norm of the gradient. A larger gradient is scaled down to it.
    max_grad_norm: float = 1.0
    # Divide advantages by the standard deviation of the group. Dr. GRPO does not.
    scale_by_std: bool = True
    # Lower bound of the PPO clip, epsilon_low: the importance ratio is clipped at 1 - epsilon_low.
    clip_low: float = 0.2
    # Upper bound of the PPO clip, epsilon_high. DAPO's clip-higher makes it larger than epsilon_low.
    clip_high: float = 0.2
    # Bound c of the dual clip: where A < 0, the loss of a token is at most -A c.
    dual_clip: float = 3.0
    # How the losses of all tokens become one number.
    aggregation: Aggregation = "token-mean"
    # Weight of the KL term to the base policy (k3 estimate). 0 leaves it out, as the authors do.
    kl_coef: float = 0.0
    # Weigh each token by the template ratio s = pi_old(y|x) / pi_old(y|T(x,z)): 1 within the bounds, 0 outside.
    ratio_mask: bool = True
    # Lower bound of the template ratio. Below 0.01, a token is over 100 times less likely without the template.
    ratio_min: float = 0.01
    # Upper bound of the template ratio. Above 10, a token is over 10 times less likely under the template.
    ratio_max: float = 10.0
    # Outside the bounds, weigh a token by bound / s instead of 0. Below the lower bound that is more than 1.
    soft_clip: bool = False
    # Weigh rollouts that are not distilled by pi_trainer / pi_sampler, at most by this number. 0 turns it off.
    importance_cap: float = 0.0
    # Function for the advantages of a group, from variants/advantage.py or my_file.py:name. Default: GRPO's.
    advantage: str = ""
    # Function for the log importance ratio, from variants/ratio.py or my_file.py:name. Default: one for each token.
    ratio: str = ""
    # Function for the loss of each token, from variants/loss.py or my_file.py:name. Default: PPO's and dual clip.
    loss: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high, cap = self.ratio_min, self.ratio_max, self.importance_cap
        require(0 < self.learning_rate < math.inf, f"--learning-rate {self.learning_rate}: must be positive")
        require(0 <= self.warmup <= 1, f"--warmup {self.warmup}: a share of all updates, from 0 to 1")
        require(0 <= self.decay <= 1, f"--decay {self.decay}: a share of all updates, from 0 to 1")
        require(self.max_grad_norm > 0, f"--max-grad-norm {self.max_grad_norm}: must be positive")
        require(0 <= self.clip_low < 1, f"--clip-low {self.clip_low}: at least 0 and below 1")
        require(self.dual_clip > 1, f"--dual-clip {self.dual_clip}: must be greater than 1")
        at_least(0, self, "clip_high", "kl_coef")
        require(0 < low <= 1 <= high, f"--ratio-min {low} --ratio-max {high}: 0 < ratio-min <= 1 <= ratio-max")
        require(self.ratio_mask or not self.soft_clip, "--soft-clip --no-ratio-mask: the soft clip is a ratio mask")
        require(cap == 0 or cap >= 1, f"--importance-cap {cap}: 0 for none, or at least 1, the weight of equal engines")


def group_advantages(
    rewards: torch.Tensor, group_size: int, scale_by_std: bool = True, eps: float = 1e-6
) -> torch.Tensor:
    """How much better a rollout did than the other rollouts of its question (GRPO).

    rewards: [B], groups of `group_size` neighbours. Returns [B]. The standard deviation is the sample's (n - 1).
    A group whose rewards are all equal gets zeros: *advantage collapse*, the question teaches nothing.
    `scale_by_std=False` gives the mean-only advantages of Dr. GRPO. Rewards that do not make whole groups of at least
    two are a ValueError.

    >>> group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), 4)
    tensor([ 1.5000, -0.5000, -0.5000, -0.5000])
    >>> group_advantages(torch.zeros(4), 4)
    tensor([0., 0., 0., 0.])
    """
    # --- solution: part 1 ---
    if group_size < 2 or rewards.numel() % group_size:
        raise ValueError(f"{rewards.numel()} rewards do not make groups of {group_size} (at least 2 are needed)")
    groups = rewards.view(-1, group_size)  # [B / G, G]
    # The mean of equal rewards may be rounded: that of six times 1000.1 is. What is left is tiny, but so is its
    # standard deviation, and divided by it a group without any contrast would look like six failures.
    all_equal = (groups == groups[:, :1]).all(dim=1, keepdim=True)  # [B / G, 1]
    # The mean over dim 1 compares a rollout with its own question's rollouts. Over dim 0, or over the whole batch, an
    # easy question would always look good and a hard one always bad.
    centred = (groups - groups.mean(dim=1, keepdim=True)).masked_fill(all_equal, 0.0)
    if scale_by_std:
        # eps is added to the standard deviation, not to the variance. It only keeps 0 / 0 from happening.
        centred = centred / (groups.std(dim=1, keepdim=True) + eps)
    return centred.view(-1)


def advantages_of(group: list[Rollout], cfg: UpdateConfig, **available) -> list[float] | list[list[float]]:
    """The advantages of one question's rollouts: a number for each, or a list of T.

    `--advantage` may replace GRPO's. Its function sees the rollouts with their texts, lengths and log-probs, and may
    ask for what is `available`: the batch, the policy, the questions.
    """
    own_advantage = variant("advantage", cfg, default=None, **available)
    if own_advantage:
        return own_advantage(group)
    rewards = torch.tensor([r.reward for r in group])
    return group_advantages(rewards, len(group), cfg.scale_by_std).tolist()


class UpdateSize(NamedTuple):
    """The size of a whole update. A micro-batch's sums are divided by it, so that the shares of all add up."""

    rollouts: int
    tokens: int
    max_response_tokens: int  # the constant length by which Dr. GRPO divides


def aggregate(
    per_token: torch.Tensor, mask: torch.Tensor, aggregation: str, update_size: UpdateSize | None = None
) -> torch.Tensor:
    """Per-token values [B, T] -> scalar. The denominators count every response token, whatever its weight.

    token-mean               mean over all tokens of the update (DAPO; the authors' choice)
    seq-mean-token-mean      mean over responses of each one's token mean (the original GRPO)
    seq-mean-token-sum       mean over responses of each one's token sum
    seq-mean-token-sum-norm  sum over all tokens, divided by a constant length only, whatever its name says (Dr. GRPO)

    `update_size` is that of the update of which these rows are a micro-batch. Without it, they are the whole update,
    and the constant length is T.

    >>> aggregate(torch.tensor([[1.0, 3.0], [5.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]]), "token-mean")
    tensor(3.)
    """
    # --- solution: part 2 ---
    # The mask is 0 where there is only padding. What stands there may be NaN, and NaN * 0 is NaN.
    sums, counts = per_token.masked_fill(mask == 0, 0.0).sum(dim=1), mask.sum(dim=1)  # [B], [B]
    rollouts, tokens, max_length = update_size or (mask.shape[0], counts.sum().clamp(min=1), mask.shape[1])
    # Every token weighs the same, so a long response weighs more than a short one.
    if aggregation == "token-mean":
        return sums.sum() / tokens
    # Every response weighs the same, so a token of a long response weighs less. A wrong response gets cheaper by
    # getting longer: the length bias that Dr. GRPO (arXiv:2503.20783) removes.
    if aggregation == "seq-mean-token-mean":
        return (sums / counts.clamp(min=1)).sum() / rollouts
    if aggregation == "seq-mean-token-sum":
        return sums.sum() / rollouts
    # The divisor is the same for every update, so no length enters at all.
    if aggregation == "seq-mean-token-sum-norm":
        return sums.sum() / max_length
    raise ValueError(f"unknown aggregation {aggregation!r}: one of {', '.join(get_args(Aggregation))}")


def log_importance_ratio(logprobs: torch.Tensor, old_logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """log rho [B, T]: how far the policy has moved, at each token, since it sampled. All tensors are [B, T].

    `--ratio` may replace it: GSPO has one ratio for the whole response (variants/ratio.py).
    """
    # --- solution: part 2 ---
    # The clamp keeps one impossible token from making the loss infinite. exp(20) is 5e8, still a finite number.
    return (logprobs - old_logprobs).clamp(-20, 20)


def surrogate(
    log_ratio: torch.Tensor, advantages: torch.Tensor, *, clip_low: float, clip_high: float, dual_clip: float, **_
) -> torch.Tensor:
    """PPO's clip, and the dual clip: per-token loss [B, T] from log rho [B, T] and A [B, T].

    `--loss` may replace it. Such a function gets `logprobs` and `mask` by name, too.

    >>> surrogate(torch.tensor([[1.5, 0.5]]).log(), torch.ones(1, 2), clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    tensor([[-1.2000, -0.5000]])
    """
    # --- solution: part 2 ---
    rho = log_ratio.exp()
    # PPO takes the larger of two losses. A token that has moved beyond the clip in the direction that A asks for gains
    # nothing by moving further: the clipped loss is constant, its gradient 0. A token that has moved the wrong way
    # keeps its full loss, for there the loss that is not clipped is the larger one.
    unclipped = -advantages * rho
    clipped = -advantages * rho.clamp(1 - clip_low, 1 + clip_high)
    pessimistic = torch.max(unclipped, clipped)
    # Where A < 0 that loss has no bound: a token that the new policy likes 100 times more than the old one did would
    # rule the whole update. The dual clip bounds it by -A c.
    bounded = torch.min(-advantages * dual_clip, pessimistic)
    return torch.where(advantages < 0, bounded, pessimistic)


def policy_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, *,
    clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float = 3.0,
    token_weight: torch.Tensor | None = None, aggregation: str = "token-mean",
    update_size: UpdateSize | None = None,
    ratio: Callable[..., torch.Tensor] = log_importance_ratio, loss: Callable[..., torch.Tensor] = surrogate,
) -> tuple[torch.Tensor, dict[str, float]]:  # fmt: skip
    """The objective of GRPO: importance ratio, clipped surrogate, token weights, aggregation.

    logprobs, old_logprobs, mask, token_weight: [B, T]; advantages: [B] or [B, T]. Returns (scalar loss, metrics).
    Metrics are means over tokens: share of tokens where the clip is active, share where the dual clip is, and
    log pi_old - log pi_theta (an estimate of the KL for rollouts that are not distilled).

    >>> value, metrics = policy_loss(torch.tensor([[-1.0]], requires_grad=True), torch.tensor([[-1.0]]),
    ...                              torch.tensor([2.0]), torch.ones(1, 1))
    >>> value.item(), metrics["clip_fraction"]          # on-policy: -A, and the gradient is -A as well
    (-2.0, 0.0)
    """
    # --- solution: part 2 ---
    if advantages.dim() == 1:
        advantages = advantages[:, None].expand_as(logprobs)  # [B, T]: each token has its response's advantage
    # In the first update rho is 1, so the loss of each token is -A, and within a group these nearly cancel. There is a
    # gradient all the same: old_logprobs is a constant, so d rho / d theta = rho * d log pi / d theta.
    log_ratio = ratio(logprobs, old_logprobs, mask)  # [B, T]
    per_token = loss(
        log_ratio, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip, logprobs=logprobs, mask=mask
    )  # [B, T]
    if token_weight is not None:
        # Before aggregation, whose denominator still counts the token: a masked token makes the loss smaller, it does
        # not make the other tokens of the response more important.
        per_token = per_token * token_weight

    with torch.no_grad():  # metrics only; not in `surrogate`, so that they are there for a `--loss` of one's own, too
        rho = log_ratio.exp()
        unclipped = -advantages * rho
        clipped = -advantages * rho.clamp(1 - clip_low, 1 + clip_high)
        beyond_dual_clip = torch.max(unclipped, clipped) > -advantages * dual_clip
        counters = {
            "clip_fraction": (clipped > unclipped).float(),
            "approx_kl": -log_ratio,
            "dual_clip_fraction": (beyond_dual_clip & (advantages < 0)).float(),
        }
        metrics = {name: aggregate(value, mask, "token-mean", update_size).item() for name, value in counters.items()}
    return aggregate(per_token, mask, aggregation, update_size), metrics


def template_ratio_weight(
    bare_logprobs: torch.Tensor, templated_logprobs: torch.Tensor, ratio_min: float = 0.01, ratio_max: float = 10.0,
    soft: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Weight w [B, T] of each token by how far the template moved it: s = pi_old(y|x) / pi_old(y|T(x,z)).

    Inside [ratio_min, ratio_max] the weight is 1. It says whether a token counts; it is no importance weight. Outside
    it is 0 (hard clip, the default), or bound / s (soft clip): below 1 above `ratio_max`, but above 1 below
    `ratio_min`, up to 5e6 at the clamp.

    >>> bare, templated = torch.log(torch.tensor([[0.07, 0.001, 0.5]])), torch.log(torch.tensor([[0.9, 0.9, 0.02]]))
    >>> template_ratio_weight(bare, templated)           # s = 0.08, 0.001, 25
    tensor([[1., 0., 0.]])
    >>> template_ratio_weight(bare, templated, soft=True)
    tensor([[1.0000, 9.0000, 0.4000]])
    """
    # --- solution: part 3 ---
    # s far below 1: a token that the bare policy would hardly ever have written. Such tokens have the largest gradients
    # of log pi, be they the lesson or only the manner of speech that goes with a template. s far above 1: the template
    # speaks against a token that the bare policy likes, and it was drawn all the same. The authors leave both out.
    # Beware: where the lesson itself is such a token, the mask cuts the lesson (docs/results.md).
    template_ratio = (bare_logprobs - templated_logprobs).clamp(-20, 20).exp()
    bounded = template_ratio.clamp(ratio_min, ratio_max)
    if soft:
        return bounded / template_ratio
    return (bounded == template_ratio).to(template_ratio.dtype)  # 1 where the clamp has changed nothing


def kl_k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Schulman's k3 estimate of KL(policy || reference) per token, [B, T]: exp(d) - d - 1 with d = ref - new.

    Never negative but for rounding, and of low variance. Unbiased for samples of the policy itself only: not for
    responses that were sampled under a template, nor where the clamps act (d to +-20, the result to +-10).

    >>> kl_k3(torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0, -2.0]]))
    tensor([[0.0000, 0.3679]])
    """
    # E[exp(d)] = 1 under the policy, so exp(d) - 1 has mean 0. Adding it to the plain estimate -d changes no mean, but
    # cancels most of the noise: the two err in opposite directions.
    d = (ref_logprobs - logprobs).clamp(-20, 20)
    return (d.exp() - d - 1).clamp(-10, 10)


# ------------------------------------------------------------------------------------------------------ the policy


@dataclass(frozen=True)
class PolicyConfig(Settings):
    """Which model, how it is adapted, and how it is sampled."""

    # Folder of the base model, or its hub id.
    model: str = str(TINY / "united" / "model")
    # System message of every prompt. Empty for none.
    system_prompt: str = ""
    # Let the model think before it answers, if its chat template knows this switch, as Qwen3's and SmolLM3's do.
    enable_thinking: bool = False
    # Rank of the LoRA adapter on every linear layer.
    lora_rank: int = 16
    # The adapter's output is scaled by alpha / rank.
    lora_alpha: int = 32
    # Load the base model in NF4 with double quantization (bitsandbytes, also on a CPU).
    load_in_4bit: bool = False
    # Number format of the layers. The adapter, its gradients and AdamW are float32. auto: bfloat16 on a card that has
    # it, float16 on an older card, float32 on a CPU.
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    # Keep no activations for the backward pass, but compute them again: less memory, a third more time.
    gradient_checkpointing: bool = False
    # Temperature of sampling, and of every log-probability.
    temperature: float = 1.0
    # Longest prompt in tokens. A longer question is left out. A template must leave room for the questions.
    max_prompt_tokens: int = 160
    # Longest response in tokens. A response that has not ended by then is cut off, and counted.
    max_response_tokens: int = 40
    # Number of responses that are sampled at once.
    sample_batch: int = 256
    # Number of padded tokens in one forward and backward pass. An update adds up as many passes as it needs.
    micro_batch_tokens: int = 16384
    # Library that samples: transformers, or vLLM in the same process.
    engine: Literal["hf", "vllm"] = "hf"
    # Share of the card that vLLM takes while it samples. It sleeps while the policy trains.
    vllm_memory: float = 0.6
    # Number of CPU threads of torch. 0 leaves it to torch.
    threads: int = 1

    smallest_rank: ClassVar[int] = 1  # no option: a trainer of all weights may allow 0 (tools/p2o_trl.py)

    def __post_init__(self) -> None:
        super().__post_init__()
        temperature, vllm = self.temperature, self.engine == "vllm"
        require(0 < temperature < math.inf, f"--temperature {temperature}: must be positive, or all rollouts are equal")
        require(temperature <= 2 or not vllm, f"--temperature {temperature}: vLLM takes up to 2")
        require(0 < self.vllm_memory < 1, f"--vllm-memory {self.vllm_memory}: a share of the card, between 0 and 1")
        require(0 <= self.threads <= 1024, f"--threads {self.threads}: 0 leaves it to torch, else from 1 to 1024")
        at_least(self.smallest_rank, self, "lora_rank")
        at_least(1, self, "lora_alpha", "max_prompt_tokens", "max_response_tokens")
        at_least(1, self, "sample_batch", "micro_batch_tokens")


@dataclass
class Policy:
    """A causal LM with a LoRA adapter, and how it is sampled. The adapter switched off is the base policy."""

    model: torch.nn.Module  # peft.PeftModel
    tokenizer: object
    cfg: PolicyConfig
    stop_ids: list[int]  # any of these ends a response (and belongs to it)
    engine: object = None  # None samples with transformers; else an object with sample(), see support/vllm_engine.py
    head: Callable[[torch.Tensor], torch.Tensor] | None = None  # hidden [M, D] -> logits [M, V], found at loading

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

    `adapter` continues a saved adapter instead of a fresh one, whose A matrices are drawn from `seed`. The longest
    sequence is prompt and response, unless one is given; vLLM, and a model with learned positions, have to know it.
    Raises UserError with one clear line if there is no such model, or it has no chat template.
    """
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    # The base model is frozen, and with `--load-in-4bit` its linear layers are quantized. Only the adapter is trained:
    # 1.6 % as many weights with the preset for Qwen3-4B, so gradients and AdamW's moments take little memory.
    base, tokenizer, stop_ids = pretrained.load_model(cfg, adapter)
    if adapter:
        model = pretrained.load_adapter(base, adapter)
    else:
        # LoRA adds (alpha / rank) B A x to the output of each linear layer. B begins as zero, so the fresh policy *is*
        # the base policy. Later, too, the model with its adapter switched off is the base policy: it writes the
        # reflections, and anchors the KL term.
        from peft import LoraConfig, get_peft_model  # here, since it takes a second to import

        torch.manual_seed(seed)
        with pretrained.or_refused(cfg.model, base):
            lora = LoraConfig(
                r=cfg.lora_rank, lora_alpha=cfg.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM",
                exclude_modules=pretrained.without_adapter(base) or None,
            )  # fmt: skip
            model = get_peft_model(base, lora)
    # On a card the layers run in 16 bits, the head and the adapter's weights stay in 32: log-probs are differences of
    # large numbers, and an optimizer step may be smaller than what 16 bits can add.
    pretrained.mix_precision(model)
    policy = Policy(model.eval(), tokenizer, cfg, stop_ids)
    longest = longest_sequence or cfg.max_prompt_tokens + cfg.max_response_tokens
    # vLLM, if asked for, samples from a copy of the weights of its own. It is handed the adapter whenever that has
    # changed.
    if cfg.engine == "vllm":
        from support.vllm_engine import VllmEngine

        policy.engine = VllmEngine(policy.model, tokenizer, cfg, max_model_len=longest, seed=seed)
    # Before anything is trained: does the trainer compute what the sampler draws from? Some architectures scale or cap
    # their logits, or keep a state that our sampler does not know. They are handled, or refused in one line.
    proofs.prove(policy, [chat_ids(policy, text) for text in pretrained.PROBES], sample, logprobs_of, longest)
    return policy


def chat_ids(policy: Policy, message: str) -> list[int]:
    """Token ids of one message in the model's chat format, up to where the response begins.

    The message is the user's, except for a template's system part (support/messages.py).
    """
    messages = as_messages(message, policy.cfg.system_prompt)
    return encode_chat(policy.tokenizer, messages, enable_thinking=policy.cfg.enable_thinking)


# -------------------------------------------------------------------------------------------------------- sampling


def respond(policy: Policy, messages: list[str], **how) -> list[Sample]:
    """One response to each user message; `how` as for sample."""
    return sample(policy, [chat_ids(policy, message) for message in messages], **how)


# Out of memory: `policy.cfg` is replaced by one with half of `sample_batch`, and the same work is tried again.
@halve_when_out_of_memory("sample_batch", smallest=1)
@torch.no_grad()
def sample(
    policy: Policy, contexts: list[list[int]], *, seed: int | None, temperature: float | None = None,
    max_new_tokens: int | None = None, adapter: bool = True,
) -> list[Sample]:  # fmt: skip
    """One response for each context (a list of token ids), in order.

    `seed=None` decodes greedily; with a seed the same contexts give the same responses (vLLM on a card may give others:
    docs/gpu.md). `adapter=False` samples from the base policy. Temperature and length are the policy's by default.
    Log-probs are those at this temperature, also of tokens that were chosen greedily (vLLM gives NaN for these).
    """
    # Nothing but the temperature shapes the distribution: no top-p, no top-k, no penalty. Under any of these the
    # sampled tokens would come from another distribution than the one whose log-probs are trained.
    if temperature == 0:
        raise ValueError("temperature 0: greedy decoding is seed=None, and log-probs need a temperature above 0")
    temperature, length = temperature or policy.cfg.temperature, max_new_tokens or policy.cfg.max_response_tokens
    if policy.engine is not None:
        drawn = policy.engine.sample(contexts, policy.stop_ids, seed, temperature, length, adapter)
    else:
        policy.model.eval()
        uniform = None
        if seed is not None:
            # One number for each token of each response, drawn before anything is sampled. So the draws do not depend
            # on how many responses are sampled at once, nor on which of them end early.
            uniform = torch.rand(len(contexts), length, generator=torch.Generator().manual_seed(seed))
        drawn, size = [], policy.cfg.sample_batch
        with nullcontext() if adapter else policy.model.disable_adapter():
            for start in range(0, len(contexts), size):
                numbers = None if uniform is None else uniform[start : start + size].to(policy.device)
                drawn += _decode(policy, contexts[start : start + size], numbers, temperature, length)
    # The text goes without the stop token, also where the tokenizer does not mark that as special.
    texts = response_texts(policy.tokenizer, contexts, [ids if cut else ids[:-1] for ids, _, cut in drawn])
    return [Sample(ids, logprobs, cut, text) for (ids, logprobs, cut), text in zip(drawn, texts, strict=True)]


def _decode(policy: Policy, contexts, uniform, temperature: float, length: int) -> list[tuple[list, list, bool]]:
    """(token ids, log-probs, truncated) for each context, token by token, with a cache of keys and values.

    uniform: [responses, length], the numbers that the tokens are drawn by; None decodes greedily.
    """
    # Prefill. The G rollouts of a question share its context, so each distinct context goes through the model once.
    ids, mask, positions, context_rows = fast.each_context_once(contexts, policy.device)  # [C, W] each, [B]
    cache = fast.roomy_cache(policy.model.config)
    logits = fast.next_token_logits(policy.model, ids, mask, positions, cache)  # [C, V]

    # Expand. From here on a row of the batch is a response; it starts from a copy of its context's keys and values.
    logits = logits[context_rows]  # [B, V]
    cache.reorder_cache(context_rows)
    read_on = fast.step_for(policy.model, cache, mask[context_rows], length)
    response_of_row = list(range(len(contexts)))  # at first every response has its row; ended ones lose it
    stop_ids = torch.tensor(policy.stop_ids, device=policy.device)
    drawn: list[tuple[list[int], list[float]]] = [([], []) for _ in contexts]

    for t in range(length):
        # Draw token t of every response that has not ended.
        logprobs = (logits.float() / temperature).log_softmax(dim=-1)  # [B, V]
        tokens = _draw(logprobs, None if uniform is None else uniform[response_of_row, t])  # [B, 1]
        chosen_logprobs = logprobs.gather(1, tokens)[:, 0].tolist()
        for response, token, logprob in zip(response_of_row, tokens[:, 0].tolist(), chosen_logprobs, strict=True):
            drawn[response][0].append(token)
            drawn[response][1].append(logprob)

        # Drop the responses that have ended. The model computes no more for them, unless its steps are recorded, as on
        # a card (support/fast.py).
        unfinished_rows = (~torch.isin(tokens[:, 0], stop_ids)).nonzero()[:, 0]
        if len(unfinished_rows) < len(response_of_row):
            response_of_row = [response_of_row[row] for row in unfinished_rows.tolist()]
            tokens = tokens[unfinished_rows]
            read_on.keep(unfinished_rows)
        if not response_of_row or t == length - 1:
            break

        # Read the new tokens. The cache holds all earlier ones.
        logits = read_on(tokens)  # [B, V]
    truncated = set(response_of_row)  # the responses that are still going on when the room is used up
    return [(ids, logprobs, response in truncated) for response, (ids, logprobs) in enumerate(drawn)]


def _draw(logprobs: torch.Tensor, uniform: torch.Tensor | None) -> torch.Tensor:
    """A token for each row of [B, V]: the likeliest, or the one in whose share of the distribution `uniform` [B] falls.

    >>> _draw(torch.tensor([[0.2, 0.5, 0.3]] * 3).log(), torch.tensor([0.1, 0.3, 0.9])).tolist()
    [[0], [1], [2]]
    """
    if uniform is None:
        return logprobs.argmax(dim=-1, keepdim=True)
    # Lay the tokens' shares end to end on a line from 0 to 1; the number falls into one of them. Rounding makes the
    # line a little longer or shorter than 1, so the number is stretched to the line's true length. If the logits are
    # NaN, it lies behind the last token. The clamp makes a token of it, so that the run comes to the update, which says
    # that the loss is not finite.
    ends = logprobs.exp().cumsum(dim=-1)  # [B, V]
    tokens = torch.searchsorted(ends, uniform[:, None] * ends[:, -1:], right=True)  # [B, 1]
    return tokens.clamp(max=logprobs.shape[1] - 1)


# ------------------------------------------------------------------------------------------------------- log-probs


LOGIT_CHUNK = 2**27  # logits held at once in float32 (512 MiB): 880 tokens of Qwen3's vocabulary


def token_logprobs(policy: Policy, contexts: list[list[int]], responses: list[list[int]]) -> torch.Tensor:
    """log pi(y_t | context, y_<t) of each response token under the present weights, [B, T], zeros on the right.

    Differentiable when gradients are enabled.
    """
    # --- solution: part 4 ---
    # This switches gradient checkpointing on, if asked for. Dropout stays off, as in sampling: an update must train the
    # log-probs of the policy that sampled.
    pretrained.set_training_mode(policy.model)
    causal_lm = policy.model.get_base_model()  # with LoRA layers in it
    # 1. The hidden state that predicts each response token; M = sum of the responses' lengths in all.
    if fast.can_share_prompts(causal_lm, contexts):
        # An optimization with the same numbers: the G responses of a question read their prompt once.
        hidden = fast.hidden_states_of_shared_prompts(causal_lm, contexts, responses)  # [M, D]
    else:
        hidden = _hidden_states(policy, contexts, responses)  # [M, D]

    # 2. Log-probs, one chunk of tokens after the other. The logits of all tokens, [B, T, V], would be the largest
    #    tensor of the whole update: 15 GB for 6 responses of 4,096 tokens and Qwen3's vocabulary. `checkpoint` drops a
    #    chunk's logits after the forward pass, and computes them again in backward.
    tokens = torch.tensor([token for response in responses for token in response], device=policy.device)  # [M]
    chunk = max(1, LOGIT_CHUNK // causal_lm.config.get_text_config().vocab_size)
    values = []
    for some_hidden, some_tokens in zip(hidden.split(chunk), tokens.split(chunk), strict=True):
        arguments = (some_hidden, some_tokens, policy.head, policy.cfg.temperature)
        if torch.is_grad_enabled():
            values.append(checkpoint(_chosen_logprobs, *arguments, use_reentrant=False))
        else:
            values.append(_chosen_logprobs(*arguments))

    # 3. Back to one row for each response.
    rows = torch.tensor([b for b, response in enumerate(responses) for _ in response])  # [M]
    columns = torch.tensor([t for response in responses for t in range(len(response))])  # [M]
    logprobs = torch.zeros(len(responses), max(map(len, responses)), device=policy.device)
    return logprobs.index_put((rows, columns), torch.cat(values))  # [B, T]


def _hidden_states(policy: Policy, contexts: list[list[int]], responses: list[list[int]]) -> torch.Tensor:
    """The last hidden state in front of each response token, response after response: [M, D]."""
    # --- solution: part 4 ---
    # Padding stands on the right. Causal attention never looks to the right, so padding needs no attention mask.
    sequences = [context + response for context, response in zip(contexts, responses, strict=True)]
    longest = max(map(len, sequences))
    padding = [fast.PAD] * longest
    ids = torch.tensor([s + padding[len(s) :] for s in sequences], device=policy.device)  # [B, L]
    body = pretrained.body_of(policy.model.get_base_model())
    hidden = body(input_ids=ids, use_cache=False).last_hidden_state  # [B, L, D]
    # The hidden state at position p predicts token p + 1. The response's first token stands at position len(context),
    # so it is predicted at len(context) - 1. Off by one here, and every log-prob is that of the neighbouring token.
    rows, positions = [], []
    for b, (context, response) in enumerate(zip(contexts, responses, strict=True)):
        rows += [b] * len(response)
        positions += range(len(context) - 1, len(context) - 1 + len(response))
    return hidden[rows, positions]


def _chosen_logprobs(hidden: torch.Tensor, tokens: torch.Tensor, head, temperature: float) -> torch.Tensor:
    """hidden [M, D], tokens [M] -> log-prob of each token, [M]."""
    # --- solution: part 4 ---
    # Divided by the temperature, as the sampler does: these must be log-probs of the distribution that was drawn from.
    logits = head(hidden).float() / temperature  # [M, V]
    # log softmax, of the chosen token only.
    return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(dim=1)


@halve_when_out_of_memory("micro_batch_tokens", smallest=64)
@torch.no_grad()
def logprobs_of(policy: Policy, contexts: list[list[int]], responses: list[list[int]], adapter: bool = True):
    """`token_logprobs` without gradients, in micro-batches, as one list of floats for each response.

    For pi_old, for the base policy in the KL term, and for diagnostics.
    """
    values: list[list[float]] = [[] for _ in contexts]
    lengths = [len(c) + len(r) for c, r in zip(contexts, responses, strict=True)]
    with nullcontext() if adapter else policy.model.disable_adapter():
        for batch in micro_batches(lengths, policy.cfg.micro_batch_tokens):
            logprobs = token_logprobs(policy, [contexts[i] for i in batch], [responses[i] for i in batch]).tolist()
            for i, row in zip(batch, logprobs, strict=True):
                values[i] = row[: len(responses[i])]
    return values


def mismatch(policy: Policy, rollouts: list[Rollout]) -> tuple[float, float]:
    """(mean, max) over tokens of |log pi_trainer - log pi_sampler|: do the two agree about the same policy?

    A stale adapter, a temperature that one side forgot, a hidden top-k: all of them show here. (`proofs.prove` has
    checked the untrained policy at loading.)
    """
    # In the context that was sampled from: the sampler has given log-probs of no other one.
    trainer = logprobs_of(policy, [r.sampled_context for r in rollouts], [r.response_ids for r in rollouts])
    sampler = [r.sampled_logprobs for r in rollouts]
    gap = (torch.tensor(sum(trainer, [])) - torch.tensor(sum(sampler, []))).abs()
    return gap.mean().item(), gap.max().item()


# ---------------------------------------------------------------------------------------------------------- update


def score_old(policy: Policy, updates: list[list[Rollout]], cfg: UpdateConfig) -> None:
    """Fill in log pi_old(y | x) where `loss_of` cannot find it by itself, and the template-ratio weights.

    Call it before the first optimizer step of a batch: pi_old is the policy that sampled the batch.
    """
    to_score = []
    for number, rollouts in enumerate(updates):
        # When update 0 runs, the policy still is pi_old. When a later one runs, earlier ones have changed the weights.
        policy_will_have_moved = number > 0
        for r in rollouts:
            if not r.has_signal:
                continue  # advantage 0: its loss is 0, whatever the ratio is
            if r.is_distilled:
                # Sampled under a template, trained on the bare question: nobody has computed log pi_old(y | x) yet. The
                # importance ratio (equation 4) needs it, and so does the template ratio.
                to_score.append(r)
            elif policy_will_have_moved and policy.engine is not None:
                # vLLM sampled it, with other kernels. Its log-probs may be off by some hundredths, so the trainer
                # scores it.
                to_score.append(r)
            elif policy_will_have_moved:
                # Our own sampler drew it with the trainer's weights and kernels: its log-probs are those of pi_old, but
                # for rounding, which `mismatch` measures.
                r.old_logprobs = r.sampled_logprobs
            # else: update 0. The policy still is pi_old then, so `loss_of` takes the log-probs of its own pass.

    scored = logprobs_of(policy, [r.trained_context for r in to_score], [r.response_ids for r in to_score])
    for r, old_logprobs in zip(to_score, scored, strict=True):
        r.old_logprobs = old_logprobs
        if r.is_distilled and cfg.ratio_mask:
            # Both log-probs are of pi_old: bare ones from the pass above, templated ones from the sampler.
            bare, templated = torch.tensor(old_logprobs), torch.tensor(r.sampled_logprobs)
            weight = template_ratio_weight(bare, templated, cfg.ratio_min, cfg.ratio_max, cfg.soft_clip)
            r.token_weight = weight.tolist()


def learning_rate_at(done: float, cfg: UpdateConfig) -> float:
    """The learning rate when a share `done` of the run is over: up to its peak, and with --decay down to a tenth of it.

    >>> cfg = UpdateConfig(learning_rate=1.0, warmup=0.25, decay=0.5)
    >>> [learning_rate_at(done, cfg) for done in (0.125, 0.25, 0.5, 1.0)]
    [0.5, 1.0, 1.0, 0.1]
    """
    # Up: Adam's first steps are as large as the rate, however noisy the first gradients are.
    up = done / cfg.warmup if done < cfg.warmup else 1.0
    # Down: Adam's steps do not get shorter when nearly all is learned, so at a constant rate they may undo it.
    down = 0.1 + 0.9 * (1 - done) / cfg.decay if done > 1 - cfg.decay else 1.0
    return cfg.learning_rate * min(up, down)


def loss_of(
    policy: Policy, rollouts: list[Rollout], cfg: UpdateConfig, update_size: UpdateSize
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of a micro-batch and its metrics, each as its share of the whole update's."""
    contexts, responses = [r.trained_context for r in rollouts], [r.response_ids for r in rollouts]
    lengths = [len(response) for response in responses]

    def rows_of(values: list[float | list[float]]) -> torch.Tensor:
        return padded(values, lengths, policy.device)  # [B, T]

    logprobs = token_logprobs(policy, contexts, responses)  # log pi_theta(y | x), [B, T], with gradient
    # 1 for each response token, 0 for padding. The prompt's tokens are not trained: they were not sampled.
    mask = rows_of([1.0] * len(rollouts))  # [B, T]
    advantages = rows_of([r.advantage for r in rollouts])  # [B, T]
    # `score_old` skips two kinds of rollouts, which use their current log-probs, detached, so that rho is 1: in the
    # first update those that are not distilled, for no weight has moved yet; and those with advantage 0, whose loss is
    # 0 whatever rho is.
    old_logprobs = logprobs.detach().clone()
    for row, r in enumerate(rollouts):
        if r.old_logprobs is not None:
            old_logprobs[row, : lengths[row]] = torch.tensor(r.old_logprobs, device=policy.device)
    token_weight = rows_of([r.token_weight for r in rollouts])
    sampled_logprobs = rows_of([r.sampled_logprobs for r in rollouts])  # given T(x, z), where the response came from
    if cfg.importance_cap:
        # Truncated importance sampling. vLLM draws from slightly other probabilities than the trainer computes, and
        # this weight corrects for it. Only where both have the same context: under distillation they differ, and that
        # is the ratio mask's business.
        same_context = rows_of([float(not r.is_distilled) for r in rollouts])
        gap = same_context * (old_logprobs - sampled_logprobs)
        token_weight = token_weight * gap.clamp(-20, 20).exp().clamp(max=cfg.importance_cap)
    # GRPO as it is. Only what stands behind `trained_context` makes it P2O: under distillation both logprobs and
    # old_logprobs are of the bare question (equation 4).
    loss, metrics = policy_loss(
        logprobs, old_logprobs, advantages, mask, clip_low=cfg.clip_low, clip_high=cfg.clip_high,
        dual_clip=cfg.dual_clip, token_weight=token_weight, aggregation=cfg.aggregation, update_size=update_size,
        ratio=variant("ratio", cfg, default=log_importance_ratio, sampled_logprobs=sampled_logprobs),
        loss=variant("loss", cfg, default=surrogate),
    )  # fmt: skip
    metrics["masked"] = aggregate((token_weight == 0).float(), mask, "token-mean", update_size).item()
    if cfg.kl_coef:
        reference = rows_of(logprobs_of(policy, contexts, responses, adapter=False))  # log pi_ref(y | x)
        kl = aggregate(kl_k3(logprobs, reference), mask, cfg.aggregation, update_size)
        loss, metrics["kl"] = loss + cfg.kl_coef * kl, kl.item()
    return loss, metrics | {"loss": loss.item()}


@halve_when_out_of_memory("micro_batch_tokens", smallest=64)
def update_policy(
    policy: Policy, optimizer: Optimizer, rollouts: list[Rollout], cfg: UpdateConfig, rate: float | None = None
) -> dict[str, float]:
    """One optimizer step on these rollouts, at this learning rate; returns its metrics.

    The gradient is accumulated over micro-batches, and equals that of one large batch. `skipped` is 1 if it was not
    finite; then no weight has moved.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] if rate is None else rate
    # A rollout with advantage 0 has loss 0, so it needs no pass. The denominators still count its tokens. (With a KL
    # term it has a gradient, too.)
    with_gradient = [r for r in rollouts if r.has_signal or cfg.kl_coef]
    tokens_in_update = sum(len(r.response_ids) for r in rollouts)
    update_size = UpdateSize(len(rollouts), tokens_in_update, policy.cfg.max_response_tokens)
    metrics = Counter(loss=0.0, clip_fraction=0.0, approx_kl=0.0, dual_clip_fraction=0.0, masked=0.0)
    optimizer.zero_grad(set_to_none=True)  # an earlier try may have run out of memory halfway
    loss_scale = LossScale(policy.model, optimizer)  # float16's gradients are made larger on their way; 1 elsewhere
    lengths = [len(r.trained_context) + len(r.response_ids) for r in with_gradient]
    # Each micro-batch frees its activations before the next one begins. Gradients add up in the weights' .grad.
    for batch in micro_batches(lengths, policy.cfg.micro_batch_tokens):
        loss, batch_metrics = loss_of(policy, [with_gradient[i] for i in batch], cfg, update_size)
        loss_scale.backward(loss)
        metrics.update(batch_metrics)  # a Counter adds; each is already divided by the size of the update
    loss_scale.unscale()
    # AdamW remembers a gradient for many steps, so one wild response would rule them all. A gradient longer than
    # max_grad_norm is shortened to it.
    metrics["grad_norm"] = torch.nn.utils.clip_grad_norm_(policy.trainable, cfg.max_grad_norm).item()
    metrics["skipped"] = float(not math.isfinite(metrics["loss"] + metrics["grad_norm"]))
    # Where every token has advantage 0 or is masked, no gradient has come in. There is no step then: Adam's memory of
    # earlier gradients would move the weights all the same. (A KL term always has a gradient, once a weight has moved.)
    if (metrics["grad_norm"] or cfg.kl_coef) and not metrics["skipped"]:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return dict(metrics)
