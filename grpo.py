"""The policy and how it learns: load a causal LM with LoRA, sample, log-probs, advantages, losses, update.

What GRPO is here (read bottom up for the data flow, top down for the maths):

    A_i     = (r_i - mean r) / (std r + 1e-6)                                 group_advantages
    rho_t   = pi_new(y_t | x) / pi_old(y_t | x)                               policy_loss
    w_t     = template-ratio weight of pi_old(y_t | x) / pi_old(y_t | T(x,z))  template_ratio_weight
    loss    = aggregate_t( w_t * clipped surrogate(rho_t, A_i) )               policy_loss

This module does not know what a template is. A `Rollout` has a context it was *sampled from* and a context it is
*trained on*; context distillation (P2O, section 2 of the paper's method) is nothing more than the two being different.
Log-probabilities are those of the sampling distribution everywhere: logits divided by the temperature.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.utils import logging as transformers_logging

from support.errors import UserError

# ------------------------------------------------------------------------------------------- advantages and losses


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
        centred = centred / (groups.std(dim=1, keepdim=True) + eps)
    return centred.view(-1)


def aggregate(per_token: torch.Tensor, mask: torch.Tensor, aggregation: str) -> torch.Tensor:
    """Per-token values [B, T] -> scalar. The denominators count every response token, whatever its weight.

    token-mean               mean over all tokens of the batch (DAPO; the authors' choice)
    seq-mean-token-mean      mean over sequences of each one's token mean (the original GRPO)
    seq-mean-token-sum       mean over sequences of each one's token sum
    seq-mean-token-sum-norm  sum over all tokens, divided by the constant T (Dr. GRPO)

    >>> aggregate(torch.tensor([[1.0, 3.0], [5.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]]), "token-mean")
    tensor(3.)
    """
    # --- solution: part 2 ---
    sums, counts = (per_token * mask).sum(dim=1), mask.sum(dim=1)  # [B], [B]
    if aggregation == "token-mean":
        return sums.sum() / counts.sum().clamp(min=1)
    if aggregation == "seq-mean-token-mean":
        return (sums / counts.clamp(min=1)).mean()
    if aggregation == "seq-mean-token-sum":
        return sums.mean()
    if aggregation == "seq-mean-token-sum-norm":
        return sums.sum() / mask.shape[1]
    raise ValueError(f"unknown aggregation {aggregation!r}: one of {', '.join(AGGREGATIONS)}")


AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")


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
) -> tuple[torch.Tensor, dict[str, float]]:
    """The clipped PPO objective on groups, with dual clip (design, section 2).

    logprobs, old_logprobs, mask, token_weight: [B, T]; advantages: [B] or [B, T]. Returns (scalar loss, metrics).

        rho = exp(clamp(new - old, -20, 20))
        L   = max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high)),   and where A < 0:  L = min(-A c, L)

    `token_weight` multiplies the per-token loss before aggregation; the denominator still counts the token. Metrics
    are token means: share of tokens where the clip is active, where the dual clip is, and -(new - old).

    >>> loss, metrics = policy_loss(torch.tensor([[-1.0]], requires_grad=True), torch.tensor([[-1.0]]),
    ...                             torch.tensor([2.0]), torch.ones(1, 1))
    >>> loss.item(), metrics["clip_fraction"]          # on-policy: -A, and the gradient is -A as well
    (-2.0, 0.0)
    """
    # --- solution: part 2 ---
    if advantages.dim() == 1:
        advantages = advantages[:, None].expand_as(logprobs)  # [B, T]
    log_ratio = (logprobs - old_logprobs).clamp(-20, 20)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    pessimistic = torch.max(unclipped, clipped)
    bounded = torch.min(-advantages * dual_clip, pessimistic)
    per_token = torch.where(advantages < 0, bounded, pessimistic)  # [B, T]
    if token_weight is not None:
        per_token = per_token * token_weight

    with torch.no_grad():
        counters = {
            "clip_fraction": (clipped > unclipped).float(),
            "approx_kl": -log_ratio,
            "dual_clip_fraction": ((pessimistic > -advantages * dual_clip) & (advantages < 0)).float(),
        }
        metrics = {name: aggregate(value, mask, "token-mean").item() for name, value in counters.items()}
    return aggregate(per_token, mask, aggregation), metrics


def template_ratio_weight(
    bare_logprobs: torch.Tensor,
    templated_logprobs: torch.Tensor,
    ratio_min: float = 0.01,
    ratio_max: float = 10.0,
    soft: bool = False,
) -> torch.Tensor:
    """Weight [B, T] of each token by how far the template moved it: rho = pi_old(y|x) / pi_old(y|T(x,z)).

    Inside [ratio_min, ratio_max] the weight is 1. Outside it is 0 (hard clip, the default), because the bare policy
    cannot yet take the step that the template took; or `bound / rho` (soft clip).

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

    Never negative, unbiased, low variance. d is clamped to +-20 and the result to +-10.

    >>> kl_k3(torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0, -2.0]]))
    tensor([[0.0000, 0.3679]])
    """
    d = (ref_logprobs - logprobs).clamp(-20, 20)
    return (d.exp() - d - 1).clamp(-10, 10)


# ------------------------------------------------------------------------------------------------------ the policy


@dataclass
class Policy:
    """A causal LM with a LoRA adapter, and how it is sampled. The adapter switched off is the base policy."""

    model: torch.nn.Module  # peft.PeftModel
    tokenizer: object
    temperature: float
    max_prompt_tokens: int
    max_new_tokens: int
    stop_ids: list[int]  # any of these ends a response (and belongs to it)
    sample_batch: int = 256  # rollouts that the transformers engine samples at once
    micro_batch_tokens: int = 16384  # padded tokens in one forward (and backward) pass
    enable_thinking: bool = False  # Qwen3's switch; other chat templates ignore it
    system_prompt: str = ""
    engine: object = None  # None samples with transformers; else an object with sample(), see support/vllm_engine.py

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def load_policy(
    model: str,
    *,
    temperature: float,
    max_prompt_tokens: int,
    max_new_tokens: int,
    lora_rank: int = 16,
    lora_alpha: int = 32,
    load_in_4bit: bool = False,
    gradient_checkpointing: bool = False,
    adapter: str | None = None,
    seed: int = 0,
    **settings,
) -> Policy:
    """Load a causal LM from a folder or a hub id, in 4 bits if asked, and put a LoRA adapter on all its linear layers.

    `adapter` continues a saved adapter instead of a fresh one; `settings` are further fields of `Policy`. Raises
    UserError with one clear line if there is no such model, or it has no chat template.
    """
    # bitsandbytes (peft loads it) advises a CPU to fetch a faster kernel; peft asks transformers in an outdated way.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    transformers_logging.disable_progress_bar()
    from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tokenizer = load_tokenizer(model)
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    base = AutoModelForCausalLM.from_pretrained(
        model,
        dtype=dtype,
        quantization_config=quantization if load_in_4bit else None,
        device_map={"": 0} if on_gpu else None,
    )
    stop_ids = base.generation_config.eos_token_id
    stop_ids = set(stop_ids if isinstance(stop_ids, list) else [stop_ids]) | {tokenizer.eos_token_id}
    # A model's own generation config may hold a top-k, a top-p or a repetition penalty: rollouts sampled under those do
    # not come from the distribution whose log-probs are trained. Nothing of it is kept.
    base.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id)
    if load_in_4bit:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        for module in base.modules():
            # On a CPU with AVX512-BF16, bitsandbytes repacks a layer's weights for good in the first pass without
            # gradients, for a kernel that has no backward: after one sampling the layers below would learn nothing.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    if gradient_checkpointing:
        base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if adapter:
        peft_model = PeftModel.from_pretrained(base, adapter, is_trainable=True)
    else:
        torch.manual_seed(seed)  # LoRA's A matrices are drawn here
        lora = LoraConfig(r=lora_rank, lora_alpha=lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
        peft_model = get_peft_model(base, lora)
    peft_model.eval()
    return Policy(
        peft_model, tokenizer, temperature, max_prompt_tokens, max_new_tokens, sorted(stop_ids - {None}), **settings
    )


def load_adapter(policy: Policy, folder: Path) -> None:
    """Overwrite the adapter's weights by saved ones."""
    from peft import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(policy.model, load_peft_weights(str(folder), device=str(policy.device)))


def base_fingerprint(policy: Policy) -> str:
    """A short digest of the base model: every frozen tensor's name and shape, and a few of its values."""
    known = hashlib.sha256()
    for name, parameter in policy.model.named_parameters():
        if not parameter.requires_grad:
            values = parameter.flatten()[:: max(1, parameter.numel() // 16)][:16].float().tolist()
            known.update(repr((name, tuple(parameter.shape), values)).encode())
    return known.hexdigest()[:16]


def load_tokenizer(model: str):
    """The tokenizer of a model folder or hub id, padded on the left; UserError if there is none to be had."""
    from transformers import AutoTokenizer

    if Path(model).exists() and not (Path(model) / "config.json").exists():
        raise UserError(
            f"--model {model}: that folder holds no config.json; give a folder that from_pretrained can load"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    except (OSError, ValueError) as error:
        raise UserError(
            f"--model {model}: neither a model folder here nor a model that the hub or its cache can give "
            f"({str(error).splitlines()[0]})"
        ) from error
    if tokenizer.chat_template is None:
        raise UserError(
            f"--model {model}: its tokenizer has no chat template. Take the instruct version of the model, or put a "
            "chat_template.jinja into its folder"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def chat_ids(policy: Policy, message: str) -> list[int]:
    """Token ids of one user message in the model's chat format, up to where the response begins."""
    messages = [{"role": "system", "content": policy.system_prompt}] if policy.system_prompt else []
    messages.append({"role": "user", "content": message})
    return policy.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=policy.enable_thinking, return_dict=False
    )


# ---------------------------------------------------------------------------------------------------- out of memory


def halve_when_out_of_memory(size: str, smallest: int):
    """Decorator: run again with half of `policy.<size>` when the card's memory is used up, and say so."""

    def decorate(work):
        @functools.wraps(work)
        def tried(policy: Policy, *args, **kwargs):
            while True:
                try:
                    return work(policy, *args, **kwargs)
                except torch.OutOfMemoryError:
                    pass  # the retry stands outside, where the traceback no longer keeps the tensors alive
                half = getattr(policy, size) // 2
                if half < smallest:
                    raise UserError(
                        f"out of memory with {size} = {2 * half}: lower --max-response-tokens or --group-size, or add "
                        "--gradient-checkpointing or --load-in-4bit"
                    )
                print(f"out of memory: {size} goes down to {half}")
                setattr(policy, size, half)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()

        return tried

    return decorate


# -------------------------------------------------------------------------------------------------------- sampling


@dataclass
class Sample:
    """One response as it was sampled."""

    response_ids: list[int]  # [T], the stop token included if there was one
    logprobs: list[float]  # [T], of the sampling distribution
    truncated: bool  # ran out of tokens before a stop token
    text: str


class _Draw(LogitsProcessor):
    """Draws the next token itself, from softmax(logits / temperature), and keeps its log-prob.

    `generate` then takes the only token that is left. So the draw depends on our generator alone, which makes a run
    repeatable, and the log-probs cost one number a token rather than a vocabulary.
    """

    def __init__(self, temperature: float, generator: torch.Generator | None):
        self.temperature, self.generator, self.logprobs = temperature, generator, []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logprobs = (scores.float() / self.temperature).log_softmax(dim=-1)  # [B, V]
        if self.generator is None:  # greedy
            token = logprobs.argmax(dim=-1, keepdim=True)  # [B, 1]
        else:
            token = torch.multinomial(logprobs.exp(), 1, generator=self.generator)
        self.logprobs.append(logprobs.gather(1, token))
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


@halve_when_out_of_memory("sample_batch", smallest=1)
@torch.no_grad()
def sample(
    policy: Policy,
    contexts: list[list[int]],
    *,
    seed: int | None,
    adapter: bool = True,
    max_new_tokens: int | None = None,
) -> list[Sample]:
    """One response for each context (a list of token ids), in order.

    `seed=None` decodes greedily; with a seed the same contexts give the same responses. `adapter=False` samples from
    the base policy. Log-probs are those of the distribution that was drawn from (temperature applied; under greedy
    decoding, too).
    """
    if policy.engine is not None:
        return policy.engine.sample(policy, contexts, seed=seed, adapter=adapter, max_new_tokens=max_new_tokens)
    policy.model.eval()
    samples: list[Sample] = []
    with nullcontext() if adapter else policy.model.disable_adapter():
        for start in range(0, len(contexts), policy.sample_batch):
            part = contexts[start : start + policy.sample_batch]
            generator = None if seed is None else torch.Generator(policy.device).manual_seed(seed + start)
            samples += _generate(policy, part, generator, max_new_tokens or policy.max_new_tokens)
    return samples


def _generate(policy: Policy, contexts, generator, max_new_tokens: int) -> list[Sample]:
    draw = _Draw(policy.temperature, generator)
    batch = policy.tokenizer.pad({"input_ids": contexts}, return_tensors="pt").to(policy.device)  # left-padded
    width = batch.input_ids.shape[1]
    generated = policy.model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        logits_processor=LogitsProcessorList([draw]),
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=policy.stop_ids,
            pad_token_id=policy.tokenizer.pad_token_id,
        ),
    )[:, width:].tolist()
    logprobs = torch.cat(draw.logprobs, dim=1).tolist()  # [B][T]
    samples = []
    for ids, values in zip(generated, logprobs, strict=True):
        length = next((i + 1 for i, token in enumerate(ids) if token in policy.stop_ids), None)
        kept = ids[:length]
        text = policy.tokenizer.decode(kept, skip_special_tokens=True)
        samples.append(Sample(kept, values[: len(kept)], length is None, text))
    return samples


# ------------------------------------------------------------------------------------------------------- log-probs


@dataclass
class Rollout:
    """One response: what it was sampled from, what it is trained on, and what it earned."""

    question_id: str
    template: str  # for the record; the two contexts say all that training needs
    sampled_context: list[int]  # token ids of T(x, z)
    trained_context: list[int]  # token ids of x: the same, or not, and then this is context distillation
    response_ids: list[int]
    sampled_logprobs: list[float]  # log pi(y | sampled_context), from the sampler
    truncated: bool
    text: str
    reward: float
    well_formed: bool = True
    advantage: float = 0.0
    old_logprobs: list[float] = field(default_factory=list)  # log pi_old(y | trained_context)
    token_weight: list[float] = field(default_factory=list)


def padded(rows: list[list[float]], device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of unequal length -> (values [B, T], mask [B, T]), zeros on the right.

    >>> padded([[1.0], [2.0, 3.0]])
    (tensor([[1., 0.],
            [2., 3.]]), tensor([[1., 0.],
            [1., 1.]]))
    """
    width = max(map(len, rows))
    values = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1.0] * len(row) + [0.0] * (width - len(row)) for row in rows], device=device)
    return values, mask


def micro_batches(lengths: list[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices of sequences in groups of at most `max_tokens` padded tokens, the longest first.

    Longest first, so that running out of memory shows at step 1. A sequence longer than `max_tokens` goes alone.

    >>> list(micro_batches([2, 5, 4, 1], max_tokens=10))
    [[1, 2], [0, 3]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    group: list[int] = []
    for i in order:
        if group and lengths[group[0]] * (len(group) + 1) > max_tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


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
    sequences = [c + r for c, r in zip(contexts, responses, strict=True)]
    width = max(map(len, sequences))
    pad = policy.tokenizer.pad_token_id
    ids = torch.tensor([s + [pad] * (width - len(s)) for s in sequences], device=policy.device)  # [B, L]
    # The hidden state at position p predicts token p + 1, so a response that begins at p = len(context) is predicted
    # from len(context) - 1 on.
    rows = [b for b, r in enumerate(responses) for _ in r]
    positions = [len(c) - 1 + t for c, r in zip(contexts, responses, strict=True) for t in range(len(r))]
    columns = [t for r in responses for t in range(len(r))]
    causal_lm = policy.model.get_base_model()
    hidden = causal_lm.base_model(input_ids=ids, use_cache=False).last_hidden_state[rows, positions]  # [N, D]
    tokens = torch.tensor([token for r in responses for token in r], device=policy.device)  # [N]
    head = causal_lm.get_output_embeddings()
    chunk = max(1, LOGIT_CHUNK // head.weight.shape[0])
    values = []
    for part, chosen in zip(hidden.split(chunk), tokens.split(chunk), strict=True):
        if torch.is_grad_enabled():
            values.append(checkpoint(_chosen_logprobs, part, chosen, head, policy.temperature, use_reentrant=False))
        else:
            values.append(_chosen_logprobs(part, chosen, head, policy.temperature))
    dense = torch.zeros(len(responses), max(map(len, responses)), device=policy.device)
    return dense.index_put((torch.tensor(rows), torch.tensor(columns)), torch.cat(values))  # [B, T]


@halve_when_out_of_memory("micro_batch_tokens", smallest=64)
@torch.no_grad()
def score(policy: Policy, contexts: list[list[int]], responses: list[list[int]], adapter: bool = True):
    """`token_logprobs` without gradients, in micro-batches, as one list of floats for each response."""
    policy.model.eval()
    values: list[list[float]] = [[] for _ in contexts]
    lengths = [len(c) + len(r) for c, r in zip(contexts, responses, strict=True)]
    with nullcontext() if adapter else policy.model.disable_adapter():
        for group in micro_batches(lengths, policy.micro_batch_tokens):
            dense = token_logprobs(policy, [contexts[i] for i in group], [responses[i] for i in group]).tolist()
            for i, row in zip(group, dense, strict=True):
                values[i] = row[: len(responses[i])]
    return values


def correct_for_sampler(policy: Policy, rollouts: list[Rollout], cap: float) -> None:
    """Truncated importance correction: token weights times min(pi_trainer / pi_sampler, cap), in place.

    Another engine computes slightly other probabilities than the trainer's for the same weights. Both sides are given
    the context that was sampled from; what the template did is the ratio mask's affair.
    """
    moved = [r for r in rollouts if r.trained_context != r.sampled_context]
    scored = iter(score(policy, [r.sampled_context for r in moved], [r.response_ids for r in moved]))
    for r in rollouts:
        trainer = r.old_logprobs if r.trained_context == r.sampled_context else next(scored)
        ratio = (torch.tensor(trainer) - torch.tensor(r.sampled_logprobs)).clamp(-20, 20).exp().clamp(max=cap)  # [T]
        r.token_weight = (torch.tensor(r.token_weight) * ratio).tolist()


# ---------------------------------------------------------------------------------------------------------- update


def learning_rate(update: int, total_updates: int, peak: float, warmup: float) -> float:
    """Linear warm-up over a share `warmup` of all updates, then constant. `update` counts from 0.

    >>> [learning_rate(u, 100, 1.0, 0.05) for u in (0, 4, 50)]
    [0.2, 1.0, 1.0]
    """
    return peak * min(1.0, (update + 1) / max(1, math.ceil(warmup * total_updates)))


@halve_when_out_of_memory("micro_batch_tokens", smallest=64)
def update_policy(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    rollouts: list[Rollout],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 3.0,
    aggregation: str = "token-mean",
    kl_coef: float = 0.0,
    max_grad_norm: float = 1.0,
    skip_zero_advantage: bool = True,
) -> dict[str, float]:
    """One optimizer step on these rollouts, by accumulation over micro-batches; returns its metrics.

    The accumulated gradient is that of one big batch: each micro-batch's loss counts by its share of the denominator.
    Rollouts with advantage 0 add nothing to the policy loss; they are left out of the passes, not of the denominator.
    A gradient that is not finite is thrown away (`skipped` is 1), and no weight moves.
    """
    tokens = sum(len(r.response_ids) for r in rollouts)
    longest = max(len(r.response_ids) for r in rollouts)
    # With a KL term every rollout has a gradient.
    signal = [r for r in rollouts if r.advantage != 0.0 or kl_coef]
    learned = signal if skip_zero_advantage else rollouts
    metrics = dict.fromkeys(("loss", "kl", "clip_fraction", "approx_kl", "dual_clip_fraction"), 0.0)
    optimizer.zero_grad(set_to_none=True)  # what a try that ran out of memory has left
    policy.model.train()
    lengths = [len(r.trained_context) + len(r.response_ids) for r in learned]
    for group in micro_batches(lengths, policy.micro_batch_tokens):
        part = [learned[i] for i in group]
        contexts, responses = [r.trained_context for r in part], [r.response_ids for r in part]
        logprobs = token_logprobs(policy, contexts, responses)  # [B, T], with gradient
        old_logprobs, mask = padded([r.old_logprobs for r in part], policy.device)
        token_weight, _ = padded([r.token_weight for r in part], policy.device)
        advantages = torch.tensor([r.advantage for r in part], device=policy.device)  # [B]
        token_share = mask.sum().item() / tokens
        share = {"token-mean": token_share, "seq-mean-token-sum-norm": mask.shape[1] / longest}
        loss, counters = policy_loss(
            logprobs, old_logprobs, advantages, mask, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip,
            token_weight=token_weight, aggregation=aggregation,
        )  # fmt: skip
        if kl_coef:
            ref_logprobs, _ = padded(score(policy, contexts, responses, adapter=False), policy.device)
            policy.model.train()
            kl = aggregate(kl_k3(logprobs, ref_logprobs), mask, aggregation)
            loss = loss + kl_coef * kl
            metrics["kl"] += kl.item() * share.get(aggregation, len(part) / len(rollouts))
        loss = loss * share.get(aggregation, len(part) / len(rollouts))
        loss.backward()
        metrics["loss"] += loss.item()
        for name, value in counters.items():
            metrics[name] += value * token_share
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    metrics["grad_norm"] = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm).item()
    metrics["skipped"] = float(not math.isfinite(metrics["loss"] + metrics["grad_norm"]))
    if signal and not metrics["skipped"]:  # without any signal, Adam's momentum would move the weights all the same
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    policy.model.eval()
    return metrics
