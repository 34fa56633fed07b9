"""What is tried on a model before it is trained, whatever its architecture is called.

Does the sampler draw from what the trainer computes? Do gradients reach every layer? Is an adapter found again? If not,
one line refuses the model. Otherwise the run would go on, and learn nothing, or something else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from support.errors import UserError
from support.pretrained import body_of, or_refused


def prove(policy, contexts: list[list[int]], sample: Callable, logprobs_of: Callable, longest: int) -> None:
    """Find the policy's head and compare its sampler with its trainer, or say in one line why this model is refused."""
    for line in coverage(policy.model, policy.cfg.load_in_4bit):
        print(line)
    # vLLM takes no longer prompts. They stay of unequal length: else a model that does not look at padding would pass.
    most = policy.cfg.max_prompt_tokens
    contexts = [contexts[0][: -(-most // 2)], contexts[1][:most]]
    refuse_if_beyond_its_positions(policy.model, policy.cfg.max_prompt_tokens + policy.cfg.max_response_tokens, longest)
    with or_refused(policy.cfg.model, policy.model.get_base_model()):
        refuse_if_an_adapter_is_lost(policy.model)
        refuse_odd_logits(policy.model, contexts[-1])
        refuse_if_a_layer_stops_gradients(policy.model, contexts[-1])
        policy.head = find_head(policy.model, contexts[-1])
        with moved_adapter(policy.model):
            compare_sampler_and_trainer(policy, contexts, sample, logprobs_of)


def find_head(model: torch.nn.Module, ids: list[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from a peft model's last hidden states [M, D] to its logits [M, V], tried on one text.

    For most models it is the output layer. Others scale or cap the logits, or have more layers there. For them it is
    the model's own forward, with a body that only hands back the hidden states.
    """
    causal_lm, bodies = model.get_base_model(), []
    tokens = torch.tensor([ids], device=next(model.parameters()).device)
    with torch.no_grad():
        watch = body_of(causal_lm).register_forward_hook(lambda module, inputs, output: bodies.append(output))
        logits = causal_lm(input_ids=tokens, use_cache=False).logits[0].float()  # [M, V]
        watch.remove()
        # Some call a part of their body only. Then the whole body must be the same as that part.
        output = bodies[0] if bodies else body_of(causal_lm)(input_ids=tokens, use_cache=False)
        hidden = output.last_hidden_state[0]  # [M, D]

        def own_forward(hidden: torch.Tensor) -> torch.Tensor:
            return _behind_body(causal_lm, type(output), hidden)

        # The output layer must be equal but for the last bits: of a small logit a cap changes little.
        gaps = []
        for head, tolerance in ((causal_lm.get_output_embeddings(), 1e-6), (own_forward, 1e-4)):
            gaps.append((head(hidden).float() - logits).abs().max().item())
            if gaps[-1] <= tolerance * logits.abs().max().item():
                return head
    told = f"no way was found from the last hidden states of {type(causal_lm).__name__} to its logits"
    raise UserError(f"--model {model.config.name_or_path}: {told}; they differ by {min(gaps):.2g}")


def _behind_body(causal_lm: torch.nn.Module, kind: type, hidden: torch.Tensor) -> torch.Tensor:
    """hidden [M, D] -> logits [M, V]: the model's forward, whose body returns these states as an output of `kind`."""
    body = body_of(causal_lm)
    usual = vars(body).get("forward")  # an autocast one, if there is any: mix_precision
    body.forward = lambda *args, **kwargs: kind(last_hidden_state=hidden[None])
    try:
        no_tokens = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        return causal_lm(input_ids=no_tokens, use_cache=False).logits[0]
    finally:
        del body.forward
        if usual is not None:
            body.forward = usual


@torch.no_grad()
def refuse_odd_logits(model: torch.nn.Module, ids: list[int]) -> None:
    """UserError if some logits are no numbers, or all are equal, or if they depend on a token that comes later.

    In float16 an activation may be beyond 65,504, its largest number. Elsewhere it is the weights: a conversion or a
    merge that went wrong leaves NaN in them, or zeros. A masked model such as BERT reads ahead.
    """
    tokens = torch.tensor([ids, ids[:-1] + [int(ids[-1] == 0)]], device=next(model.parameters()).device)
    logits = model(input_ids=tokens, use_cache=False).logits.float()
    told = f"--model {model.config.name_or_path}: its "
    if not logits.isfinite().all():
        if any(p.dtype == torch.float16 for p in model.parameters()):
            told += "activations overflow float16; take --dtype bfloat16, or float32 on a card without bfloat16"
            raise UserError(told)
        raise UserError(f"{told}logits are not numbers (NaN or infinite): are its weights damaged?")
    if logits.max() == logits.min():
        raise UserError(f"{told}logits are all {logits.max().item():g}: are its weights all zero?")
    one, other = logits[:, :-1]
    change = (one - other).norm() / one.norm()  # 0 for a causal model but for rounding; 0.02 for a random BERT
    if change > 0.003:
        told += f"class, {type(model.get_base_model()).__name__}, reads tokens that come later"
        proof = f"another last token changes the logits in front of it by {change:.1%}"
        raise UserError(f"{told} ({proof}): it fills gaps, and P2O trains models that continue a text")


@torch.no_grad()
def refuse_if_beyond_its_positions(model: torch.nn.Module, rollout: int, longest: int) -> None:
    """UserError if the longest sequence has more tokens than the model has learned positions.

    A run would stop at the first long response or reflection. Rotary positions go on without end; a line says so.
    """
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None) or 0
    if limit < 1 or longest <= limit:  # MPT has the second name, XLNet has -1
        return
    what = "prompt and response" if rollout > limit else "a reflection and what it quotes"
    told = f"--model {model.config.name_or_path}: {longest} tokens of {what}, and it knows {limit} positions"
    tokens = torch.zeros(1, limit + 1, dtype=torch.long, device=next(model.parameters()).device)
    try:
        body_of(model.get_base_model())(input_ids=tokens, use_cache=False)
    except torch.OutOfMemoryError:
        raise
    except (IndexError, RuntimeError):
        options = "--max-prompt-tokens, --max-response-tokens, --reflection-quote or --gepa-minibatch"
        raise UserError(f"{told}: lower {options}") from None
    if rollout > limit:
        print(f"{told}: what is beyond them it was not trained on")


def refuse_if_a_layer_stops_gradients(model: torch.nn.Module, ids: list[int]) -> None:
    """UserError if a layer under an adapter hands on a constant: its kernel has no backward pass.

    Gradients then flow through the adapters alone, and are wrong in every layer below.
    """
    stopped = []

    def look(name, module, inputs, output):
        if isinstance(output, torch.Tensor) and inputs and inputs[0].requires_grad and not output.requires_grad:
            stopped.append(name)

    adapted = [(name, module) for name, module in model.named_modules() if hasattr(module, "base_layer")]
    hooks = [module.base_layer.register_forward_hook(partial(look, name)) for name, module in adapted]
    model(input_ids=torch.tensor([ids], device=next(model.parameters()).device), use_cache=False)
    for hook in hooks:
        hook.remove()
    if stopped:
        told = f"{len(stopped)} of its layers, {stopped[0]} first, compute in a way that has no backward pass"
        raise UserError(f"--model {model.config.name_or_path}: {told}: layers below would get a wrong gradient")


def refuse_if_an_adapter_is_lost(model: torch.nn.Module) -> None:
    """UserError if peft does not find all of an adapter of this model again, by the names under which it saves it."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    lost = [name for name in set_peft_model_state_dict(model, saved).missing_keys if "lora_" in name]
    if lost:
        told = f"peft saves an adapter of {type(model.get_base_model()).__name__} and does not find {len(lost)} of its"
        told += f" weights again, {lost[0]} first: a checkpoint would not be the policy"
        raise UserError(f"--model {model.config.name_or_path}: {told}")


def coverage(model: torch.nn.Module, load_in_4bit: bool) -> list[str]:
    """Lines about a peft model some of whose layers have no adapter, or keep their width in spite of --load-in-4bit."""
    base, adapted, tables = model.get_base_model(), set(), set()
    head = base.get_output_embeddings()
    for module in base.modules():
        if hasattr(module, "base_layer"):  # peft puts some on a parameter, as on Mixtral's router
            adapted.add(id(module.get_param() if hasattr(module, "parameter_name") else module.base_layer.weight))
        elif isinstance(module, torch.nn.Embedding) or module is getattr(head, "original_module", head):
            tables.add(id(module.weight))  # these are no layers, and stay as they are
    # Values in all layers; and by kind of weight, those without an adapter and those that are not in 4 bits.
    total, bare, wide = 0, Counter(), Counter()
    for name, weight in base.named_parameters():
        if weight.dim() < 2 or weight.requires_grad or "lora_" in name or id(weight) in tables:
            continue
        kind = re.sub(r"\.(base_layer|weight|\d+)\b", "", name)  # in whichever layer it is
        quantized = getattr(weight, "quant_state", None)
        size = weight.numel() if quantized is None else quantized.shape.numel()
        total += size
        bare[kind] += size if id(weight) not in adapted else 0
        wide[kind] += size if quantized is None else 0

    def line(what: str, rest: Counter) -> str:
        kinds = [kind for kind, size in rest.most_common() if size]
        names = ", ".join(kinds[:4]) + (f" and {len(kinds) - 4} more kinds" if len(kinds) > 4 else "")
        return f"{what} {1 - rest.total() / total:.0%} of the layers' weights, not {names}"

    lines = []
    if getattr(model.peft_config["default"], "exclude_modules", None) or bare.total() > 0.05 * total:
        lines.append(line("the adapter is on", bare))
    if load_in_4bit and wide.total() > 0.05 * total:
        lines.append(line("--load-in-4bit holds for", wide))
    return lines


@contextmanager
@torch.no_grad()
def moved_adapter(model: torch.nn.Module) -> Iterator[None]:
    """Within it the adapter is as if trained. A fresh one adds nothing, so a path that goes past it would not show."""
    generator, kept = torch.Generator().manual_seed(0), {}
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            kept[parameter] = parameter.clone()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    yield
    for parameter, values in kept.items():
        parameter.copy_(values)


def compare_sampler_and_trainer(policy, contexts: list[list[int]], sample: Callable, logprobs_of: Callable) -> None:
    """UserError if the two disagree about a few tokens after prompts of unequal length.

    Whatever a model does that the sampler's cache or the trainer's padding does not know of shows here.
    """
    contexts = contexts * 2  # the trainer reads repeated prompts once: support/fast.py
    length = min(4, policy.cfg.max_response_tokens)
    whole = sample(replace(policy, stop_ids=[]), contexts, seed=0, max_new_tokens=length)
    # The same once more, but now the first row ends at its second token, and the others go on without it.
    cut = sample(replace(policy, stop_ids=whole[0].response_ids[1:2]), contexts, seed=0, max_new_tokens=length)
    trained, sampled, half = [], [], len(contexts) // 2
    for samples in (whole, cut, whole[:half]):  # of the last no prompt is repeated
        trained += logprobs_of(policy, contexts[: len(samples)], [s.response_ids for s in samples])
        sampled += [s.sampled_logprobs for s in samples]
    # A low temperature stretches log-probs, and their rounding with them. What follows is in nats at temperature 1.
    gap = (torch.tensor(sum(trained, [])) - torch.tensor(sum(sampled, []))).abs() * policy.cfg.temperature
    # How far rounding takes the two apart. In 16 bits every family that is right stays below the limit, and every one
    # that is wrong comes out above it, at 0.07 or more (tests/test_families.py). Depth adds up: on a card, 36 layers of
    # random bfloat16 weights came out at 0.036, where the families' two layers come out at 0.01.
    dtypes = {p.dtype for p in policy.model.parameters()}
    if torch.bfloat16 in dtypes:
        worst, limit = gap.mean().item(), 0.06
    elif torch.float16 in dtypes:  # three more bits than bfloat16
        worst, limit = gap.mean().item(), 0.03
    elif dtypes != {torch.float32}:  # 4 bits on a CPU, where bitsandbytes takes 16 for a batch of one token
        worst, limit = gap.mean().item(), 0.005
    else:
        worst, limit = gap.max().item(), 0.001
    if not worst <= limit:  # nor if it is not a number
        told = f"sampler and trainer disagree about {type(policy.model.get_base_model()).__name__}"
        proof = f"the log-probs of the same tokens differ by {worst:.2g}, and rounding allows for {limit:g}"
        why = "This code does not know how that architecture keeps its state, and would train it wrongly"
        raise UserError(f"--model {policy.cfg.model}: {told}: {proof}. {why}")
