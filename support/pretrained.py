"""Loading a model that will train as it samples, or one line that says why not; which base an adapter belongs to."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import DynamicCache
from transformers.utils import logging as transformers_logging

from support import messages
from support.errors import UserError

# Two questions of unequal length, on which a model is tried when it is loaded.
PROBES = ("2 + 3 = ?", "Count from one to ten, and say which of these are prime.")


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
    silence_libraries()
    tokenizer = load_tokenizer(cfg.model)
    if adapter:
        check_adapter(adapter, tokenizer)
    if cfg.system_prompt:
        messages.need_system_role(tokenizer, "--system-prompt")
    config = load_config(cfg.model, cfg.max_prompt_tokens + cfg.max_response_tokens)
    base, stop_ids = load_base(cfg.model, config, tokenizer, cfg.load_in_4bit, compute_dtype(cfg.dtype))
    if cfg.gradient_checkpointing:
        checkpoint_activations(base)
    with or_refused(cfg.model, base):
        refuse_without_a_head(cfg.model, base)
        prompts = prompts_within_its_vocabulary(cfg, base, tokenizer)
        forget_a_window_without_effect(base, prompts[-1])
    base.chat_format = hashlib.sha256(repr((prompts, stop_ids)).encode()).hexdigest()[:16]  # for support/run.py
    return base, tokenizer, stop_ids


def refuse_without_a_head(model: str, base: torch.nn.Module) -> None:
    """UserError for a model whose output layer is missing, or is not kept in full width."""
    head, name = base.get_output_embeddings(), type(base).__name__
    if head is None or not head.weight.is_floating_point():
        fault = "missing" if head is None else "quantized"
        raise UserError(f"--model {model}: the output layer of {name} is {fault}; log-probs need one in full width")


def prompts_within_its_vocabulary(cfg, base: torch.nn.Module, tokenizer) -> list[list[int]]:
    """The prompts of PROBES. UserError if they hold a token for which the model has no embedding.

    Other such tokens, of a tokenizer that was given more of them than the model, are text from here on.
    """
    table = base.get_input_embeddings().weight
    rows = tokenizer.rows = table.shape[0]
    messages.control_tokens.cache_clear()  # it was asked before the number of rows was known
    questions = [messages.as_messages(text, cfg.system_prompt) for text in PROBES]
    prompts = [messages.encode_chat(tokenizer, asked, enable_thinking=cfg.enable_thinking) for asked in questions]
    used = sorted({token for prompt in prompts for token in prompt})
    if beyond := [token for token in used if token >= rows]:
        name = tokenizer.convert_ids_to_tokens(beyond[0])
        raise UserError(
            f"--model {cfg.model}: a prompt holds {name!r} (token {beyond[0]}), and the model has embeddings for "
            f"{rows} tokens: the tokenizer is another model's, or has been given tokens that the model was not"
        )
    if untrained := [token for token in used if table[token].abs().max() < 1e-12]:
        names = ", ".join(tokenizer.convert_ids_to_tokens(untrained))
        print(f"--model {cfg.model}: prompts hold {names}, of which its embeddings are 0: it was not trained on them")
    return prompts


def load_config(model: str, longest: int):
    """The model's config without dropout. `longest`: tokens of the longest context and response together.

    Dropout would make an update train other log-probs than those that were sampled.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    try:
        # No code of the model's own: transformers would ask on the terminal whether to run it.
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # each kind of model checks its own
        raise UserError(f"--model {model}: its config.json cannot be used ({_in_one_line(error)})") from error
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"--model {model}: {config.model_type} has an encoder and a decoder; P2O trains decoders only")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"--model {model}: {config.model_type} is no kind of model that AutoModelForCausalLM loads: it sees or "
            "hears as well, or does not write texts. Give a model of texts"
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
                told = f"{longest} tokens of prompt and response are beyond its original context of {limit}"
                why = f"There its rotary embedding ({kind}) makes a sequence depend on the others in its batch"
                raise UserError(f"--model {model}: {told}. {why}: lower --max-prompt-tokens or --max-response-tokens")
    make_plain(config)
    return config


@torch.no_grad()
def forget_a_window_without_effect(base: torch.nn.Module, ids: list[int]) -> None:
    """Take the window of attention out of a config if the model attends to all tokens in spite of it.

    transformers' cache goes by the config alone. It would drop tokens that the trainer sees.
    """

    def logits(window: int | None) -> torch.Tensor:
        for name in windows:
            setattr(config, name, window or windows[name])
        return base(input_ids=torch.tensor([ids], device=base.device), use_cache=False).logits

    config = base.config.get_text_config(decoder=True)
    windows = {name: getattr(config, name, None) or 0 for name in ("sliding_window", "attention_chunk_size")}
    windows = {name: window for name, window in windows.items() if window > 2}
    if windows and any(DynamicCache(config=config).is_sliding) and torch.equal(logits(2), logits(None)):
        vars(config).update(dict.fromkeys(windows))  # None, which some configs would not take
        kinds = getattr(config, "layer_types", None) or []
        config.layer_types = [re.sub("^(sliding|chunked)_attention$", "full_attention", kind) for kind in kinds] or None


# A checkpoint's config may still say what its makers' trainer wanted of a forward pass. This code reads outputs by
# their names, and hands over a cache. The loss of a mixture's routers cannot be computed of one new token. Their
# kernels of attention and of experts may not be installed here, or waste memory: transformers is to choose.
PLAIN = {
    "return_dict": True, "use_cache": True, "output_router_logits": False, "output_attentions": False,
    "output_hidden_states": False, "attn_implementation_internal": None, "experts_implementation_internal": None,
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
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

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
        cause = "a download that broke off, a pointer of git-lfs in their place (git lfs pull fetches them), or a "
        cause += "whole model that torch.save pickled (save its state_dict)"
        raise UserError(f"--model {model}: its weights cannot be read ({_in_one_line(error)}): {cause}") from error
    except Exception as error:  # a config.json that it reads but cannot follow may raise anything
        reason = f"{type(error).__name__}: {_in_one_line(error)}"
        raise UserError(f"--model {model}: transformers cannot load it ({reason})") from error
    lacking = sorted(report["missing_keys"] | {name for name, *_ in report["mismatched_keys"]})
    unexpected = sorted(report["unexpected_keys"])
    if lacking:
        instead = f"; what they hold instead begins with {unexpected[0]}" if unexpected else ""
        raise UserError(
            f"--model {model}: its files lack {_weights(lacking)}, or hold them in another shape, and random ones "
            f"would take their place: {', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}{instead}. "
            f"Is it another kind of model than {type(base).__name__}?"
        )
    refuse_or_tell_what_has_no_place(model, base, unexpected)
    refuse_if_nothing_trains_through_it(model, base)
    if getattr(base, "_hf_peft_config_loaded", False):
        told = "an adapter (adapter_config.json) lies beside the weights, and the new one would take its place"
        cure = "Merge it into the weights (peft's merge_and_unload), or take it out of the folder"
        raise UserError(f"--model {model}: {told}. {cure}")
    with or_refused(model, base):
        stop_ids = ends_of_a_response(model, base.generation_config, tokenizer)
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
    quantizer, layers = getattr(base, "hf_quantizer", None), base.modules()
    if hasattr(base.config, "quantization_config") and not getattr(quantizer, "is_trainable", True):
        kind = quantizer.quantization_config.quant_method
        told = f"its weights are quantized ({getattr(kind, 'value', kind)}), and transformers cannot train through them"
        cure = "Take a version that is not quantized; --load-in-4bit quantizes it in a way that can be trained"
        raise UserError(f"--model {model}: {told}: layers below would get a wrong gradient, or none. {cure}")
    if any(type(m).__name__ in ("Linear4bit", "Linear8bitLt") and type(m.weight) is torch.nn.Parameter for m in layers):
        told = "its config.json says that its weights are quantized, and they are not"
        raise UserError(f"--model {model}: {told}; take quantization_config out of it")


def ends_of_a_response(model: str, generation, tokenizer) -> list[int]:
    """The tokens that end a response, by the model's GenerationConfig, its tokenizer, or its chat template."""
    file = Path(model) / "generation_config.json"
    try:  # transformers goes on without a file that it cannot read, and without the end tokens in it
        json.loads(file.read_text(encoding="utf-8") if file.exists() else "{}")
    except ValueError as error:
        raise UserError(f"--model {model}: {file.name} cannot be read ({_in_one_line(error)}); mend it") from None
    named = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    named = {token for token in named if token is not None}
    if generation._from_model_config:
        # A copy of what config.json says. Where its makers thought of no end, that is the default of its class: token
        # 2 for a Llama, which in another vocabulary may be a quotation mark. So what is plain text ends nothing.
        special = tokenizer.added_tokens_decoder
        named = {token for token in named if token in special or not tokenizer.decode([token]).strip()}
    named |= {tokenizer.eos_token_id, messages.end_of_turn(tokenizer)} - {None}
    stop_ids = sorted(token for token in named if token >= 0)
    if not stop_ids:
        told = "neither generation config nor tokenizer nor chat template names a token that ends a response"
        raise UserError(f"--model {model}: {told}; set eos_token in its tokenizer_config.json")
    return stop_ids


def refuse_or_tell_what_has_no_place(model: str, base: torch.nn.Module, unexpected: list[str]) -> None:
    """Weights of the files for which the model has no place. UserError if one is part of a layer that the model has.

    It may be a bias, a scale of quantized numbers, an adapter: without it the layer computes something else. Others may
    be left out for good reasons, as a reward model's head. Then a line says so.
    """
    if not unexpected:
        return
    parts = base.named_modules()
    layers = {name for name, part in parts if list(part.parameters()) and not list(part.children())}
    cut = [name for name in unexpected if not layers.isdisjoint(accumulate(name.split("."), "{}.{}".format))]
    shown = cut or unexpected
    told = (
        f"--model {model}: its files hold {_weights(shown)} for which {type(base).__name__} has no place: "
        f"{', '.join(shown[:3])}{', ...' if len(shown) > 3 else ''}"
    )
    if cut:
        hint = "Does config.json name the right model_type, and the quantization, if there is one?"
        raise UserError(f"{told}. Those layers would compute something else without them. {hint}")
    print(f"{told}; they are left out")


def _weights(names: list[str]) -> str:
    return f"{len(names)} weight{'s' * (len(names) != 1)}"


def body_of(causal_lm: torch.nn.Module) -> torch.nn.Module:
    """The part of a model that turns token ids into hidden states; the rest is its head."""
    from transformers import PreTrainedModel

    body = causal_lm.base_model
    if body is causal_lm:  # Llama 4's is called otherwise than its base_model_prefix says
        body = next((part for part in causal_lm.children() if isinstance(part, PreTrainedModel)), body)
    return body


def mix_precision(model: torch.nn.Module) -> None:
    """Run a 16-bit model's layers under autocast, and its head in float32.

    peft's prepare_model_for_kbit_training would make queries and keys float32, which flash attention refuses; what runs
    in its place takes memory quadratic in the length. The adapter's weights, their gradients and AdamW stay float32
    here, too: autocast rounds copies of them. The head is float32, for a log-prob is the difference of two logits, and
    bfloat16 rounds these to 3 digits.
    """
    from transformers import PreTrainedModel

    base = model.get_base_model()
    body, head, embedding = body_of(base), base.get_output_embeddings(), base.get_input_embeddings()
    dtype = head.weight.dtype
    if torch.cuda.is_available():
        # Products of 16-bit numbers are exact in TF32, so tensor cores may run the head. Float32 layers it would round.
        # The setting holds for the whole process, an earlier policy's included. torch.compile, which vLLM uses, cannot
        # read torch's newer settings for this, so this older function makes it.
        torch.set_float32_matmul_precision("highest" if dtype == torch.float32 else "high")
    if dtype == torch.float32:
        return  # as loaded: a CPU, or a card without bfloat16
    for part in body.modules():
        if isinstance(part, PreTrainedModel):  # not the body alone: OPT calls the decoder in it
            part.forward = torch.autocast("cuda" if torch.cuda.is_available() else "cpu", dtype=dtype)(part.forward)
    for module in body.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False  # or each adapter keeps its own rounded copy of its input
    head.float()  # a tied embedding becomes float32 with it, but what it hands to the layers must not
    embedding.register_forward_hook(lambda module, inputs, hidden: hidden.to(dtype))
    head.register_forward_pre_hook(lambda module, inputs: inputs[0].float())


def checkpoint_activations(base: torch.nn.Module) -> None:
    """Keep only the inputs of the layers for the backward pass, which computes the rest again."""
    try:
        base.activation_checkpointing_enable()
    except ValueError as error:
        raise UserError(f"--gradient-checkpointing: {_in_one_line(error)}") from error


def set_training_mode(model: torch.nn.Module) -> None:
    """Put the layers that are to be recomputed into training mode, where they look for that.

    All else stays in eval mode, as it samples: no dropout, no noise in routers, no other path through a layer.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.eval()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = module.gradient_checkpointing


@torch.no_grad()
def without_adapter(base: torch.nn.Module) -> list[str]:
    """Names of the linear layers on which an adapter would do nothing, or break the model."""
    from transformers.pytorch_utils import Conv1D

    decoder, names, special = base, [], {}
    if base.config.get_text_config() is not base.config:
        decoder = base.get_decoder()  # what sees or hears stays as it is: the prompts are text
    trained = set(decoder.modules())
    for parent_name, parent in base.named_modules():
        # A Mamba mixer's fused kernel reads these layers' weights past the layers, and past adapters on them.
        is_mamba = hasattr(parent, "conv1d") and hasattr(parent, "D")
        for name, module in parent.named_children():
            if not isinstance(module, torch.nn.Linear | Conv1D) or module is base.get_output_embeddings():
                continue
            if module not in trained or is_mamba and name in ("out_proj", "dt_proj"):
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


@contextmanager
def or_refused(model: str, base: torch.nn.Module) -> Iterator[None]:
    """What an architecture raises becomes one line. Each may fail in a way of its own, so any exception counts."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        told = f"{type(base).__name__} does not work with this code's adapter, sampler and trainer"
        raise UserError(f"--model {model}: {told} ({type(error).__name__}: {_in_one_line(error)})") from error


def silence_libraries() -> None:
    """Switch off progress bars, tables of what `load_base` says in a line, and advice that does not apply here."""
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
        raise UserError(f"--model {model}: {what_is_no_model(Path(model))}")
    try:
        if not (Path(model).exists() or constants.HF_HUB_OFFLINE or try_to_load_from_cache(model, "config.json")):
            print(f"--model {model}: no folder here has that name; asking {constants.ENDPOINT} for it", flush=True)
        # Where mistral-common is installed (vLLM brings it along), transformers would take that for a Mistral model. It
        # knows no chat template.
        tokenizer = AutoTokenizer.from_pretrained(
            model, padding_side="left", trust_remote_code=False, mistral_format=False, split_special_tokens=False
        )
    except (OSError, HFValidationError) as error:
        if Path(model).exists():
            load_config(model, longest=0)  # it is read first, and may be what is wrong
        told = f"neither a model folder here nor a model that the hub or its cache can give ({_in_one_line(error)})"
        raise UserError(f"--model {model}: {told}") from error
    except Exception as error:  # what tokenizers raises is an Exception and no more
        load_config(model, longest=0)
        reason = f"{type(error).__name__}: {_in_one_line(error)}"
        raise UserError(f"--model {model}: its tokenizer cannot be used ({reason})") from error
    messages.as_its_file_says(model, tokenizer)
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several templates by name
        template = template.get("default")
    if template is None:
        cure = "take the instruct version of the model, or put a chat_template.jinja into its folder"
        raise UserError(f"--model {model}: its tokenizer has no chat template; {cure}")
    tokenizer.chat_template = messages.on_one_day(template)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if left_out := messages.not_begun(tokenizer):
        told = f"its chat template writes {left_out!r} in front of a response, but not at the end of a prompt"
        cure = "let it write that where add_generation_prompt is set (chat_template.jinja in the model's folder)"
        raise UserError(f"--model {model}: {told}, where the response is to begin; {cure}")
    if text := messages.end_in_plain_text(tokenizer):
        print(
            f"--model {model}: its chat template ends a response by {text!r}, which is no token of its tokenizer: a "
            "response goes on behind it, up to another end token"
        )
    answer = "\\boxed{12}"
    [read] = messages.response_texts(tokenizer, [[]], [tokenizer(answer, add_special_tokens=False).input_ids])
    if answer not in read:
        print(f"--model {model}: its tokenizer makes {read!r} of {answer!r}, so no response can hold such an answer")
    bos, question = tokenizer.bos_token_id, "7 + 9?"
    prompt = messages.encode_chat(tokenizer, messages.as_messages(question))
    if bos is not None and tokenizer(question).input_ids[0] == bos != prompt[0]:
        told = f"its tokenizer begins a text with {tokenizer.bos_token}, its chat template does not"
        print(f"--model {model}: {told}; prompts are what the chat template writes")
    return tokenizer


def what_is_no_model(path: Path) -> str:
    """What stands at a path without a config.json, and what to give instead."""
    if not path.is_dir():
        return "that is a file; give a model's folder, with its config.json (what is in a GGUF file is not trained)"
    if (path / "adapter_config.json").exists():
        return "that is an adapter; merge it into its base model (peft's merge_and_unload), and give what comes out"
    inner = sorted(path.glob("*/config.json"), key=lambda file: file.stat().st_mtime)  # a trainer's checkpoints
    instead = f"{inner[-1].parent} has one" if inner else "give a folder that from_pretrained can load"
    return f"that folder holds no config.json; {instead}"


def check_adapter(adapter: str, tokenizer) -> None:
    """Refuse what is no adapter, or one for another chat format, before the model is loaded that it is put on."""
    from peft import PeftConfig
    from transformers import AutoTokenizer

    inner = sorted(Path(adapter).glob("*/adapter_config.json"))  # of a run's folder, or of an adapter with a name
    if inner and not (Path(adapter) / "adapter_config.json").exists():
        raise UserError(f"--adapter {adapter}: no adapter is there, but one is in {inner[0].parent}")
    try:
        PeftConfig.from_pretrained(adapter)
    except Exception as error:  # each kind of adapter raises another one
        reason = _in_one_line(error)
        raise UserError(f"--adapter {adapter}: no adapter is there (adapter_config.json: {reason})") from None
    # Other trainers leave their tokenizer beside an adapter. Its chat template is the one that was trained with.
    if (Path(adapter) / "tokenizer_config.json").exists():
        trained_with = AutoTokenizer.from_pretrained(adapter, trust_remote_code=False).chat_template
        if isinstance(trained_with, str) and not messages.writes_the_same(tokenizer, messages.on_one_day(trained_with)):
            told = "the chat template beside it writes other prompts than that of --model"
            cure = "Copy that template into the model's folder, or remove the tokenizer's files beside the adapter"
            raise UserError(f"--adapter {adapter}: {told}. {cure}")


def load_adapter(base: torch.nn.Module, adapter: str) -> torch.nn.Module:
    """The model with a saved adapter on it, to be trained on. UserError if it was made for another model.

    peft itself only warns of missing weights, and says nothing of those that have no place.
    """
    from peft import PeftModel, get_peft_model_state_dict, load_peft_weights

    def weights() -> Counter:  # by their values alone: peft renames them
        return Counter(str(p.sum(dtype=torch.float64).item()) for p in base.parameters())

    here, before = base.config.name_or_path, weights()
    try:
        model = PeftModel.from_pretrained(base, adapter, is_trainable=True)
        saved = load_peft_weights(adapter, device="cpu").keys()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each kind of adapter raises another one
        mismatch = re.search("size mismatch for .*", str(error))
        reason = mismatch.group() if mismatch else _in_one_line(error)
        raise UserError(f"--adapter {adapter}: it does not fit this model, or is damaged ({reason})") from None
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    # It may bring weights of the base along, as embeddings or biases: whether they are the same is asked below.
    if odd := sorted((saved ^ wanted) - {f"base_model.model.{name}" for name in base.state_dict()}):
        told = f"made for another model, or to score: {len(odd)} weights do not fit, {odd[0]} first"
        raise UserError(f"--adapter {adapter}: {told}")
    made = model.active_peft_config
    if before - weights() or getattr(made, "layer_replication", None):
        told = "it changes the model beneath it as well, as PiSSA, OLoRA, trained biases and replicated layers do"
        cure = "Merge it into the weights (peft's merge_and_unload), and give these as --model"
        raise UserError(f"--adapter {adapter}: {told}. Switched off, it would not leave the base model. {cure}")
    if getattr(made, "alora_invocation_tokens", None):
        raise UserError(f"--adapter {adapter}: an aLoRA works behind certain tokens only; nothing here looks for them")
    outputs = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    if outputs and not any(parameter.any() for parameter in outputs):
        print(f"--adapter {adapter}: nothing was learned, or it was saved without what was: the model is as without it")
    made_on = made.base_model_name_or_path or here
    # Two models of one architecture have the same shapes, so their values have to tell; in another number format these
    # are rounded. Without a mark, as of another trainer, the name tells: its last part, for a folder may have moved.
    mark, found = Path(adapter) / BASE_MODEL, base_mark(model)
    try:
        known = json.loads(mark.read_text(encoding="utf-8")) if mark.exists() else {"format": "", "values": {}}
        number_format, values = known["format"], dict(known["values"])
    except (ValueError, TypeError, KeyError):
        raise UserError(f"--adapter {adapter}: {BASE_MODEL} is damaged, which tells its base; put it back") from None
    rounding = 0.0 if number_format == found["format"] else 2**-7  # bfloat16 has 8 bits
    pairs = [(values[name], value) for name, value in found["values"].items() if name in values]
    if not all(math.isclose(*pair, rel_tol=rounding, abs_tol=rounding * 1e-5) for pair in pairs):
        raise UserError(f"--adapter {adapter}: trained on other weights ({made_on}) than those of --model {here}")
    if not pairs and Path(made_on).name != Path(here).name:
        print(f"--adapter {adapter}: it was made on {made_on}, and is put on {here}")
    return model


BASE_MODEL = "base_model.json"  # of an adapter's folder: the `base_mark` that `checkpoint.save_adapter` leaves there


def base_mark(model: torch.nn.Module) -> dict:
    """What tells a peft model's base from others: its number format, and a value of each weight that is not in 4 bits.

    An adapter that was trained on 4 bits may be served on the full weights: the same base.
    """
    frozen = {name.replace(".base_layer", ""): p for name, p in model.named_parameters() if not p.requires_grad}
    full = {name: p for name, p in frozen.items() if p.is_floating_point()}
    kinds = {str(p.dtype).removeprefix("torch.") for p in full.values()} - {"float32"}  # which the head always has
    values = {name: p.flatten()[p.numel() // 2].item() for name, p in full.items()}
    return {"format": "+".join(sorted(kinds)), "values": values}


def _in_one_line(error: Exception) -> str:
    """What a library's exception says, short enough for one line, and without a terminal's codes for bold letters."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())[:200] or type(error).__name__


def fingerprint(model: torch.nn.Module) -> str:
    """A short digest of the base model: every frozen tensor's name and shape, and a few of its values."""
    known = hashlib.sha256()
    for name, tensor in model.named_parameters():
        if not tensor.requires_grad:
            values = tensor.flatten()[:: max(1, tensor.numel() // 16)][:16].float().tolist()
            known.update(repr((name, tuple(tensor.shape), values)).encode())
    return known.hexdigest()[:16]
