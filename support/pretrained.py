"""Loading a model that will train as it samples, or one line that says why not; which base an adapter belongs to."""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch

from support.errors import UserError
from support.messages import (
    as_messages,
    control_tokens,
    encode_chat,
    end_of_turn,
    need_system_role,
    not_begun,
    on_one_day,
)


def compute_dtype(asked: str = "auto") -> torch.dtype:
    """What the layers compute in (--dtype). auto: float32 on a CPU, bfloat16 on a card that has it, else float16."""
    if asked == "auto":
        if not torch.cuda.is_available():
            return torch.float32
        asked = "bfloat16" if has_bfloat16() else "float16"
    if asked == "bfloat16" and torch.cuda.is_available() and not has_bfloat16():
        raise UserError(f"--dtype bfloat16: {torch.cuda.get_device_name()} has none; take float16, or float32")
    return getattr(torch, asked)


def has_bfloat16() -> bool:
    """Ampere and later have it; T4 and V100 do not, though torch.cuda.is_bf16_supported() says so: it can emulate."""
    return torch.cuda.get_device_capability() >= (8, 0)


def load_model(cfg, adapter: str | None = None) -> tuple[torch.nn.Module, object, list[int]]:
    """(base model, tokenizer, ids that end a response) for a grpo.PolicyConfig. `adapter`: a saved one for it."""
    silence_libraries()  # before they are imported
    if adapter:
        check_adapter(adapter)
    tokenizer = load_tokenizer(cfg.model)
    if cfg.system_prompt:
        need_system_role(tokenizer, "--system-prompt")
    config = load_config(cfg.model, cfg.max_prompt_tokens + cfg.max_response_tokens)
    base, stop_ids = load_base(cfg.model, config, tokenizer, cfg.load_in_4bit, compute_dtype(cfg.dtype))
    if cfg.gradient_checkpointing:
        checkpoint_activations(base)
    with or_refused(cfg.model, base):
        refuse_without_a_head(cfg.model, base)
        prompts = prompts_within_its_vocabulary(cfg, base, tokenizer)
    base.chat_format = hashlib.sha256(repr((prompts, stop_ids)).encode()).hexdigest()[:16]  # for support/run.py
    return base, tokenizer, stop_ids


def refuse_without_a_head(model: str, base: torch.nn.Module) -> None:
    """UserError for a model whose output layer is missing, or is not kept in full width."""
    head = base.get_output_embeddings()
    if head is None or not head.weight.is_floating_point():
        raise UserError(
            f"--model {model}: the output layer of {type(base).__name__} is "
            f"{'missing' if head is None else 'quantized'}; log-probs need one in full width"
        )


def prompts_within_its_vocabulary(cfg, base: torch.nn.Module, tokenizer) -> list[list[int]]:
    """The prompts of PROBES. UserError if they hold a token for which the model has no embedding.

    Other such tokens, of a tokenizer that was given more of them than the model, are text from here on.
    """
    rows = base.get_input_embeddings().weight.shape[0]
    tokenizer.rows = rows
    control_tokens.cache_clear()
    questions = [as_messages(text, cfg.system_prompt) for text in PROBES]
    prompts = [encode_chat(tokenizer, asked, enable_thinking=cfg.enable_thinking) for asked in questions]
    if beyond := sorted({token for prompt in prompts for token in prompt if token >= rows}):
        name = tokenizer.convert_ids_to_tokens(beyond[0])
        raise UserError(
            f"--model {cfg.model}: a prompt holds {name!r} (token {beyond[0]}), and the model has embeddings for "
            f"{rows} tokens: the tokenizer is another model's, or has been given tokens that the model was not"
        )
    return prompts


def load_config(model: str, longest: int):
    """The model's config without dropout. `longest`: tokens of the longest context and response together.

    Dropout would make an update train other log-probs than those that were sampled.
    """
    from transformers import AutoConfig

    try:
        # No code of the model's own: transformers would ask on the terminal whether to run it.
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--model {model}: its config.json cannot be used ({_first_line(error)})") from error
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"--model {model}: {config.model_type} has an encoder and a decoder; P2O trains models that only continue "
            "a text (decoders)"
        )
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    # One for all layers, or one for each kind of layer.
    for part in [rope, *[value for value in rope.values() if isinstance(value, dict)]]:
        kind = part.get("rope_type", "default")
        if kind in ("longrope", "dynamic"):
            original = "original_max_position_embeddings"
            limit = part.get(original) or getattr(text, original, None) or text.max_position_embeddings
            if longest > limit:
                raise UserError(
                    f"--model {model}: {longest} tokens of prompt and response are beyond its original context of "
                    f"{limit}. There its rotary embedding ({kind}) makes a sequence depend on the others in its batch: "
                    "lower --max-prompt-tokens or --max-response-tokens"
                )
    make_plain(config)
    return config


# A checkpoint's config may still say what its makers' trainer wanted of a forward pass. This code reads outputs by
# their names, and hands over a cache. The loss of a mixture's routers cannot be computed of one new token.
PLAIN = {
    "return_dict": True, "use_cache": True, "output_router_logits": False, "output_attentions": False,
    "output_hidden_states": False,
}  # fmt: skip


def make_plain(config) -> None:
    """Change a config, and the configs within it: no dropout, and outputs as this code reads them."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "model_type"):
            make_plain(value)
        elif "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
        elif name.lstrip("_") in PLAIN:
            setattr(config, name, PLAIN[name.lstrip("_")])


def load_base(
    model: str, config, tokenizer, load_in_4bit: bool, dtype: torch.dtype
) -> tuple[torch.nn.Module, list[int]]:
    """The base model, frozen, and the token ids that end a response."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig

    quantization = None
    if load_in_4bit:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    device_map = {"": 0} if torch.cuda.is_available() else None
    try:
        base, report = AutoModelForCausalLM.from_pretrained(
            model, config=config, dtype=dtype, quantization_config=quantization, device_map=device_map,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except torch.OutOfMemoryError as error:
        raise UserError(f"--model {model}: it does not fit on the card; try --load-in-4bit") from error
    except (SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(
            f"--model {model}: its weights cannot be read ({_first_line(error)}): a download that broke off, or a "
            "pointer of git-lfs in their place (git lfs pull fetches them)"
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"--model {model}: transformers cannot load it ({_first_line(error)})") from error
    except (KeyError, TypeError, AttributeError) as error:  # a config.json that it takes, and cannot follow
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise UserError(f"--model {model}: transformers cannot load it ({reason})") from error
    lacking = sorted(report["missing_keys"] | {name for name, *_ in report["mismatched_keys"]})
    if lacking:
        raise UserError(
            f"--model {model}: its files lack {len(lacking)} weights, or hold them in another shape, and random ones "
            f"would take their place: {', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}. "
            f"Is it another kind of model than {type(base).__name__}?"
        )
    refuse_or_tell_what_has_no_place(model, base, sorted(report["unexpected_keys"]))
    refuse_if_nothing_trains_through_it(model, base)
    if getattr(base, "_hf_peft_config_loaded", False):
        raise UserError(
            f"--model {model}: an adapter (adapter_config.json) lies beside the weights, and the new one would take "
            "its place. Merge it into the weights (peft's merge_and_unload), or take it out of the folder"
        )
    with or_refused(model, base):
        stop_ids = ends_of_a_response(model, base.generation_config, tokenizer)
    # A model's own generation config may hold a top-k, a top-p or a repetition penalty: rollouts sampled under those do
    # not come from the distribution whose log-probs are trained. Nothing of it is kept.
    base.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id)
    base.requires_grad_(False)
    for module in base.modules():
        # On a CPU with AVX512-BF16, bitsandbytes repacks a layer's weights for good in the first pass without
        # gradients, for a kernel that has no backward: after one sampling the layers below would learn nothing.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype = dtype  # a checkpoint that is in 4 bits already may name another one
    return base, stop_ids


def refuse_if_nothing_trains_through_it(model: str, base: torch.nn.Module) -> None:
    """UserError for weights that stay quantized, by a method that is for sampling only. transformers knows which."""
    quantizer = getattr(base, "hf_quantizer", None)
    if hasattr(base.config, "quantization_config") and not getattr(quantizer, "is_trainable", True):
        method = quantizer.quantization_config.quant_method
        raise UserError(
            f"--model {model}: its weights are quantized ({getattr(method, 'value', method)}), and transformers cannot "
            "train through them: layers below would get a wrong gradient, or none. Take a version of the model that is "
            "not quantized; --load-in-4bit quantizes it in a way that can be trained"
        )


def ends_of_a_response(model: str, generation, tokenizer) -> list[int]:
    """The tokens that end a response, by the model's GenerationConfig, its tokenizer, or its chat template."""
    named = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    if generation._from_model_config:
        # A copy of what config.json says. Where its makers thought of no end, that is the default of its class: token
        # 2 for a Llama, which in another vocabulary may be a quotation mark.
        named = [token for token in named if token is None or not _is_text(token, tokenizer)]
    named = {*named, tokenizer.eos_token_id, end_of_turn(tokenizer)}
    stop_ids = sorted(token for token in named if token is not None and token >= 0)
    if not stop_ids:
        raise UserError(
            f"--model {model}: neither its generation_config.json nor its tokenizer nor its chat template names a "
            "token that ends a response; set eos_token in its tokenizer_config.json"
        )
    return stop_ids


def _is_text(token: int, tokenizer) -> bool:
    """Is it a piece of text to the tokenizer, and no token of a special kind?"""
    return token not in tokenizer.added_tokens_decoder and bool(tokenizer.decode([token]).strip())


def refuse_or_tell_what_has_no_place(model: str, base: torch.nn.Module, unexpected: list[str]) -> None:
    """A weight of the files that the model leaves out. UserError if it is part of a layer that the model has.

    A bias that the config does not know, a scale without which quantized numbers mean nothing, an adapter that was not
    merged: the layer computes, but something else. Other weights may be left out for good reasons, as a reward model's
    head; then a line says so.
    """
    if not unexpected:
        return
    parts = base.named_modules()
    layers = {name for name, part in parts if list(part.parameters()) and not list(part.children())}
    cut = [name for name in unexpected if not layers.isdisjoint(accumulate(name.split("."), "{}.{}".format))]
    shown = cut or unexpected
    told = (
        f"--model {model}: its files hold {len(shown)} weights for which {type(base).__name__} has no place: "
        f"{', '.join(shown[:3])}{', ...' if len(shown) > 3 else ''}"
    )
    if cut:
        raise UserError(
            f"{told}. Those layers would compute something else without them. Does config.json name the right "
            "model_type, and the quantization, if there is one?"
        )
    print(f"{told}; they are left out")


def body_of(causal_lm: torch.nn.Module) -> torch.nn.Module:
    """The part of a model that turns token ids into hidden states; the rest is its head."""
    from transformers import PreTrainedModel

    body = causal_lm.base_model
    if body is causal_lm:  # Llama 4 has it under another name than the one that it tells
        body = next((part for part in causal_lm.children() if isinstance(part, PreTrainedModel)), body)
    return body


def mix_precision(model: torch.nn.Module) -> None:
    """Run a 16-bit model's layers under autocast, where flash attention finds its 16 bits, and its head in float32.

    peft's prepare_model_for_kbit_training would make everything that is not quantized float32, attention's queries and
    keys among it, which flash attention refuses: what runs then takes memory quadratic in the length. The adapter's
    weights stay float32 here, too, and so do their gradients and AdamW: autocast rounds copies of them. The head is
    another matter: bf16 logits are rounded to 3 digits, and a log-prob is the difference of two of them.
    """
    from transformers import PreTrainedModel

    base = model.get_base_model()
    body, head, embedding = body_of(base), base.get_output_embeddings(), base.get_input_embeddings()
    dtype = head.weight.dtype
    if torch.cuda.is_available():
        # Products of 16-bit numbers are exact in TF32: tensor cores run the head, and nothing is lost. For float32
        # layers it would round. The setting holds for the process, so what an earlier policy left is undone. By this
        # function and no other: torch.compile, which vLLM uses, cannot read what the newer settings say.
        torch.set_float32_matmul_precision("highest" if dtype == torch.float32 else "high")
    if dtype == torch.float32:
        return  # as loaded: a CPU, or a card without bfloat16
    for part in body.modules():
        if isinstance(part, PreTrainedModel):  # not the body alone: OPT calls the decoder in it
            part.forward = torch.autocast("cuda" if torch.cuda.is_available() else "cpu", dtype=dtype)(part.forward)
    for module in body.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False  # or each adapter keeps a rounded copy of its own of its input
    head.float()  # a tied embedding becomes float32 with it, but what it hands to the layers must not
    embedding.register_forward_hook(lambda module, inputs, hidden: hidden.to(dtype))
    head.register_forward_pre_hook(lambda module, inputs: inputs[0].float())


def checkpoint_activations(base: torch.nn.Module) -> None:
    """Keep only the inputs of the layers for the backward pass, which computes the rest again."""
    kind = "activation" if hasattr(base, "activation_checkpointing_enable") else "gradient"  # the older name
    try:
        getattr(base, f"{kind}_checkpointing_enable")(**{f"{kind}_checkpointing_kwargs": {"use_reentrant": False}})
    except ValueError as error:
        raise UserError(f"--gradient-checkpointing: {_first_line(error)}") from error


def set_training_mode(model: torch.nn.Module) -> None:
    """What an update needs of model.train(), and no more: layers look there whether they are to be recomputed.

    All else stays in eval mode, as it samples: no dropout, no noise in routers, no other path through a layer.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.eval()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = module.gradient_checkpointing


# --------------------------------------------------------------------------------- what is proved of a model at loading


def find_head(model: torch.nn.Module, ids: list[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from a peft model's last hidden states [M, D] to its logits [M, V], proved on one text.

    For most models it is the output layer. Others scale the logits or cap them, or have more layers there: then it is
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
    raise UserError(
        f"--model {model.config.name_or_path}: no way was found from the last hidden states of "
        f"{type(causal_lm).__name__} to its logits; they differ by {min(gaps):.2g}"
    )


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
def refuse_if_its_logits_say_nothing(model: torch.nn.Module, ids: list[int]) -> None:
    """UserError if some are no numbers, or all are equal.

    In float16 an activation may be beyond 65,504, its largest number. Elsewhere it is the weights: a conversion or a
    merge that went wrong leaves NaN in them, or zeros.
    """
    tokens = torch.tensor([ids], device=next(model.parameters()).device)
    logits = model(input_ids=tokens, use_cache=False).logits
    told = f"--model {model.config.name_or_path}: its "
    if not logits.isfinite().all():
        if any(p.dtype == torch.float16 for p in model.parameters()):
            told += "activations overflow float16; take --dtype bfloat16, or float32 on a card without bfloat16"
            raise UserError(told)
        raise UserError(f"{told}logits are not numbers (NaN or infinite): are its weights damaged?")
    if logits.max() == logits.min():
        raise UserError(f"{told}logits are all {logits.max().item():g}: are its weights all zero?")


@torch.no_grad()
def refuse_if_beyond_its_positions(model: torch.nn.Module, longest: int) -> None:
    """UserError if the longest prompt and response together are more tokens than the model has positions for.

    Learned positions end there, and a run would stop at its first long response. Rotary ones go on: that is said.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not limit or longest <= limit:
        return
    told = (
        f"--model {model.config.name_or_path}: {longest} tokens of prompt and response, and it knows {limit} positions"
    )
    tokens = torch.zeros(1, longest, dtype=torch.long, device=next(model.parameters()).device)
    try:
        body_of(model.get_base_model())(input_ids=tokens, use_cache=False)
    except torch.OutOfMemoryError:
        raise
    except (IndexError, RuntimeError):
        raise UserError(f"{told}: lower --max-prompt-tokens or --max-response-tokens") from None
    print(f"{told}: what is beyond them it was not trained on")


@torch.no_grad()
def refuse_if_it_reads_ahead(model: torch.nn.Module, ids: list[int]) -> None:
    """UserError for a masked model such as BERT: with another last token, the logits in front of it change."""
    another = next((token for token in ids if token != ids[-1]), int(ids[-1] == 0))
    tokens = torch.tensor([ids, ids[:-1] + [another]], device=next(model.parameters()).device)
    one, other = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    change = (one - other).norm() / one.norm()  # 0 for a causal model but for rounding; 0.02 for a random BERT
    if change > 0.003:
        name = type(model.get_base_model()).__name__
        raise UserError(
            f"--model {model.config.name_or_path}: {name} reads tokens that come later (another last token changes the "
            f"logits in front of it by {change:.1%}): it fills gaps, and P2O trains models that continue a text"
        )


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
        raise UserError(
            f"--model {model.config.name_or_path}: {len(stopped)} of its layers, {stopped[0]} first, compute in a way "
            "that has no backward pass: what stands below them would get a wrong gradient"
        )


@contextmanager
@torch.no_grad()
def moved_adapter(model: torch.nn.Module) -> Iterator[None]:
    """As if it had been trained: a fresh adapter adds nothing, and would hide a path that goes past it."""
    generator, kept = torch.Generator().manual_seed(0), {}
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            kept[parameter] = parameter.clone()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    yield
    for parameter, values in kept.items():
        parameter.copy_(values)


PROBES = ("2 + 3 = ?", "Count from one to ten, and say which of these are prime.")


def compare_sampler_and_trainer(policy, contexts: list[list[int]], sample: Callable, logprobs_of: Callable) -> None:
    """UserError if the two disagree about a few tokens after prompts of unequal length.

    It asks no name of an architecture. Whatever a model does that the sampler's cache or the trainer's padding does not
    know about, shows here, before anything is written.
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
        name = type(policy.model.get_base_model()).__name__
        raise UserError(
            f"--model {policy.cfg.model}: sampler and trainer disagree about {name}: the log-probs of the same tokens "
            f"differ by {worst:.2g}, and rounding allows for {limit:g}. This code does not know how that architecture "
            "keeps its state, and would train it wrongly"
        )


@torch.no_grad()
def without_adapter(base: torch.nn.Module) -> list[str]:
    """Names of the linear layers on which an adapter would do nothing, or break the model."""
    from transformers.pytorch_utils import Conv1D

    decoder, names, special = base, [], {}
    if base.config.get_text_config() is not base.config:
        decoder = base.get_decoder()  # what sees or hears stays as it is: the prompts are text
    trained = set(decoder.modules())
    for parent_name, parent in base.named_modules():
        # A Mamba mixer's fused kernel reads this layer's weights past the layer, and past an adapter on it.
        is_mamba = hasattr(parent, "conv1d") and hasattr(parent, "D")
        for name, module in parent.named_children():
            if not isinstance(module, torch.nn.Linear | Conv1D) or module is base.get_output_embeddings():
                continue
            if module not in trained or is_mamba and name == "out_proj":
                names.append(f"{parent_name}.{name}")
            elif type(module).__name__ not in ("Linear", "Conv1D", "Linear4bit"):
                special[module] = f"{parent_name}.{name}"
    # A linear layer of the model's own kind may return something else, as a router does: see what it returns.
    plain = set()

    def look(module, inputs, output):
        if isinstance(output, torch.Tensor):
            plain.add(module)

    hooks = [module.register_forward_hook(look) for module in special]
    if special:
        base(input_ids=torch.tensor([[1, 2, 3, 4]], device=base.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return names + [name for module, name in special.items() if module not in plain]


def coverage(model: torch.nn.Module, load_in_4bit: bool) -> list[str]:
    """Lines about a peft model some of whose layers have no adapter, or keep their width in spite of --load-in-4bit."""
    base, adapted, tables = model.get_base_model(), set(), set()
    for module in base.modules():
        if hasattr(module, "lora_A"):  # peft puts some on a parameter, as on Mixtral's router
            adapted.add(id(module.get_param() if hasattr(module, "parameter_name") else module.base_layer.weight))
        elif isinstance(module, torch.nn.Embedding) or module is base.get_output_embeddings():
            tables.add(id(module.weight))  # these are no layers, and stay as they are
    # Values in all layers; and by kind of weight, those without an adapter and those that are not in 4 bits.
    total, bare, wide = 0, Counter(), Counter()
    for name, weight in base.named_parameters():
        if weight.dim() < 2 or "lora_" in name or id(weight) in tables:
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


def refuse_if_an_adapter_is_lost(model: torch.nn.Module) -> None:
    """UserError if peft does not find all of an adapter of this model again, by the names under which it saves it."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    lost = [name for name in set_peft_model_state_dict(model, saved).missing_keys if "lora_" in name]
    if lost:
        name = type(model.get_base_model()).__name__
        raise UserError(
            f"--model {model.config.name_or_path}: peft saves an adapter of {name} and "
            f"does not find {len(lost)} of its weights again, {lost[0]} first: a checkpoint would not be the policy"
        )


@contextmanager
def or_refused(model: str, base: torch.nn.Module) -> Iterator[None]:
    """Whatever an architecture does otherwise ends here as one line; each of them does something else."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"--model {model}: {type(base).__name__} does not work with this code's adapter, sampler and trainer "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error


def prove(policy, contexts: list[list[int]], sample: Callable, logprobs_of: Callable) -> None:
    """Find the policy's head and compare its sampler with its trainer, or say in one line why this model is refused."""
    for line in coverage(policy.model, policy.cfg.load_in_4bit):
        print(line)
    contexts = [ids[: policy.cfg.max_prompt_tokens] for ids in contexts]  # vLLM takes no more
    refuse_if_beyond_its_positions(policy.model, policy.cfg.max_prompt_tokens + policy.cfg.max_response_tokens)
    with or_refused(policy.cfg.model, policy.model.get_base_model()):
        refuse_if_an_adapter_is_lost(policy.model)
        refuse_if_its_logits_say_nothing(policy.model, contexts[-1])
        refuse_if_it_reads_ahead(policy.model, contexts[-1])
        refuse_if_a_layer_stops_gradients(policy.model, contexts[-1])
        policy.head = find_head(policy.model, contexts[-1])
        with moved_adapter(policy.model):
            compare_sampler_and_trainer(policy, contexts, sample, logprobs_of)


def silence_libraries() -> None:
    """Advice of libraries that does not apply here, tables of what load_base says in a line, progress bars."""
    from transformers.utils import logging as transformers_logging

    # bitsandbytes (peft loads it) advises a CPU to fetch a faster kernel; peft asks transformers in an outdated way.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    # peft translates adapters of mixtures of experts to fused weights, and warns where there is nothing to translate.
    warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
    warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def load_tokenizer(model: str):
    """The tokenizer of a model folder or hub id, padded on the left; UserError if there is none to be had."""
    from transformers import AutoTokenizer

    if Path(model).exists() and not (Path(model) / "config.json").exists():
        raise UserError(
            f"--model {model}: that folder holds no config.json; give a folder that from_pretrained can load"
        )
    try:
        # Where mistral-common is installed (vLLM brings it along), transformers would take that for a Mistral model. It
        # knows no chat template.
        tokenizer = AutoTokenizer.from_pretrained(
            model, padding_side="left", trust_remote_code=False, mistral_format=False
        )
    except OSError as error:
        raise UserError(
            f"--model {model}: neither a model folder here nor a model that the hub or its cache can give "
            f"({_first_line(error)})"
        ) from error
    except Exception as error:  # tokenizers raises nothing more special
        raise UserError(f"--model {model}: its tokenizer cannot be used ({_first_line(error)})") from error
    as_its_file_says(model, tokenizer)
    if tokenizer.chat_template is None:
        raise UserError(
            f"--model {model}: its tokenizer has no chat template. Take the instruct version of the model, or put a "
            "chat_template.jinja into its folder"
        )
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = on_one_day(tokenizer.chat_template)
    else:  # several by their names, of which "default" is used
        tokenizer.chat_template = {name: on_one_day(text) for name, text in tokenizer.chat_template.items()}
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if left_out := not_begun(tokenizer):
        raise UserError(
            f"--model {model}: its chat template writes {left_out!r} in front of a response, but not at the end of a "
            "prompt, where the response is to begin; let it write that where add_generation_prompt is set "
            "(chat_template.jinja in the model's folder)"
        )
    bos, question = tokenizer.bos_token_id, "7 + 9?"
    if bos is not None and tokenizer(question).input_ids[0] == bos != encode_chat(tokenizer, as_messages(question))[0]:
        print(
            f"--model {model}: its tokenizer begins a text with {tokenizer.bos_token}, its chat template does not; "
            "prompts are what the chat template writes"
        )
    return tokenizer


def as_its_file_says(model: str, tokenizer) -> None:
    """Make a tokenizer cut texts as its tokenizer.json says.

    Some classes of transformers 5 put a way of their own in its place (transformers#45488, #45701): GPT2Tokenizer and
    Qwen2Tokenizer another pattern of words, GemmaTokenizer other spaces. Which class it is hangs on a name in
    tokenizer_config.json, and on the kind of model. The prompts would be made of tokens that the model hardly knows,
    and nothing would say so.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    backend = getattr(tokenizer, "backend_tokenizer", None)
    file = cached_file(model, "tokenizer.json", _raise_exceptions_for_missing_entries=False,
                       _raise_exceptions_for_connection_errors=False)  # fmt: skip
    if backend is None or file is None:
        return
    own = Tokenizer.from_file(file)
    if getattr(own.model, "dropout", None):
        own.model.dropout = None  # would cut the same text in another way each time
    for part in ("model", "normalizer", "pre_tokenizer", "decoder"):
        setattr(backend, part, getattr(own, part))
    if getattr(backend, "fix_mistral_regex", None) is False:  # transformers doubts the file, in a warning
        mended = AutoTokenizer.from_pretrained(model, trust_remote_code=False, fix_mistral_regex=True)
        words = "eBay, mL, NaOH, pH"
        if mended(words).input_ids != tokenizer(words).input_ids:
            print(
                f"--model {model}: transformers says that its tokenizer.json cuts words otherwise than Mistral's "
                "models have learned them. If it is one of these, save into its folder what "
                "AutoTokenizer.from_pretrained(..., fix_mistral_regex=True) gives"
            )


def check_adapter(adapter: str) -> None:
    """Refuse what is no adapter, before the model is loaded that it is put on."""
    from peft import PeftConfig

    inner = Path(adapter) / "adapter"
    if (inner / "adapter_config.json").exists():
        raise UserError(f"--adapter {adapter}: a run's folder; its adapter is {inner}")
    try:
        PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"--adapter {adapter}: no adapter is there (adapter_config.json cannot be read: {_first_line(error)})"
        ) from None


def load_adapter(base: torch.nn.Module, adapter: str) -> torch.nn.Module:
    """The model with a saved adapter on it, to be trained on. UserError if it was made for another model.

    peft refuses weights of another shape, and only warns of missing ones. It says nothing of those that have no place,
    as when the adapter's model had more layers.
    """
    from peft import PeftModel, get_peft_model_state_dict, load_peft_weights
    from safetensors import SafetensorError

    here = base.config.name_or_path
    try:
        model = PeftModel.from_pretrained(base, adapter, is_trainable=True)
        saved = {name for name in load_peft_weights(adapter, device="cpu") if "lora_" in name}
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        reason = re.search("size mismatch for .*", str(error))
        raise UserError(
            f"--adapter {adapter}: it does not fit this model, or is damaged "
            f"({reason.group() if reason else _first_line(error)})"
        ) from None
    wanted = {name for name in get_peft_model_state_dict(model, save_embedding_layers=False) if "lora_" in name}
    if odd := sorted(saved ^ wanted):
        raise UserError(f"--adapter {adapter}: made for another model: {len(odd)} weights do not fit, {odd[0]} first")
    made_on = model.active_peft_config.base_model_name_or_path or here
    trained_on, found = base_in(Path(adapter)), base_mark(model)
    # Two models of one architecture have the same shapes, so their values have to tell. In another number format these
    # are rounded, and other trainers keep no mark: then the name tells, by its last part, for a folder may have moved.
    comparable = trained_on.partition(" ")[0] == found.partition(" ")[0]
    if comparable and trained_on != found:
        raise UserError(f"--adapter {adapter}: trained on other weights ({made_on}) than those of --model {here}")
    if not comparable and Path(made_on).name != Path(here).name:
        print(f"--adapter {adapter}: it was made on {made_on}, and is put on {here}")
    return model


BASE_MODEL = "base_model.txt"  # of an adapter's folder


def base_in(adapter: Path) -> str:
    """The `base_mark` that `checkpoint.save_adapter` left beside an adapter, or "" if it was saved by others."""
    file = adapter / BASE_MODEL
    return file.read_text(encoding="utf-8") if file.exists() else ""


def base_mark(model: torch.nn.Module) -> str:
    """Number format and digest of a peft model's base, by its weights outside of the adapted layers.

    Those inside may be in 4 bits. An adapter that was trained on such may be served on the full ones: the same base.
    """
    kept = {name: p for name, p in model.named_parameters() if not p.requires_grad and ".base_layer." not in name}
    kinds = {str(p.dtype).removeprefix("torch.") for p in kept.values()} - {"float32"}  # which the head always has
    return f"{'+'.join(sorted(kinds)) or 'float32'} {digest(kept)}"


def _first_line(error: Exception) -> str:
    """What a library's exception says, short enough for one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def fingerprint(model: torch.nn.Module) -> str:
    """A short digest of the base model: every frozen tensor's name and shape, and a few of its values."""
    return digest({name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad})


def digest(tensors: dict[str, torch.Tensor]) -> str:
    known = hashlib.sha256()
    for name, tensor in tensors.items():
        values = tensor.flatten()[:: max(1, tensor.numel() // 16)][:16].float().tolist()
        known.update(repr((name, tuple(tensor.shape), values)).encode())
    return known.hexdigest()[:16]
