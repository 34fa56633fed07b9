"""Loading a tokenizer with errors that say what to do, and which base model an adapter belongs to."""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from pathlib import Path

import torch

from support.errors import UserError


def compute_dtype() -> torch.dtype:
    """What the passes are computed in: bfloat16 on a card that has it, else float32.

    Not float16 on older cards: its gradients underflow without loss scaling. float32 is right there, and slow.
    """
    if torch.cuda.is_available() and has_bfloat16():
        return torch.bfloat16
    if torch.cuda.is_available():
        print(f"{torch.cuda.get_device_name()} has no bfloat16: computing in float32, which is right and slow")
    return torch.float32


def has_bfloat16() -> bool:
    """Ampere and later have it; T4 and V100 do not, though torch.cuda.is_bf16_supported() says so: it can emulate."""
    return torch.cuda.get_device_capability() >= (8, 0)


def load_base(model: str, tokenizer, load_in_4bit: bool) -> tuple[torch.nn.Module, list[int]]:
    """The base model, frozen, and the token ids that end a response."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig

    dtype, quantization = compute_dtype(), None
    if load_in_4bit:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    device_map = {"": 0} if torch.cuda.is_available() else None
    base = AutoModelForCausalLM.from_pretrained(
        model, dtype=dtype, quantization_config=quantization, device_map=device_map
    )
    stop_ids = base.generation_config.eos_token_id
    stop_ids = set(stop_ids if isinstance(stop_ids, list) else [stop_ids]) | {tokenizer.eos_token_id}
    # A model's own generation config may hold a top-k, a top-p or a repetition penalty: rollouts sampled under those do
    # not come from the distribution whose log-probs are trained. Nothing of it is kept.
    base.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id)
    base.requires_grad_(False)
    for module in base.modules():
        # On a CPU with AVX512-BF16, bitsandbytes repacks a layer's weights for good in the first pass without
        # gradients, for a kernel that has no backward: after one sampling the layers below would learn nothing.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return base, sorted(stop_ids - {None})


def mix_precision(model: torch.nn.Module) -> None:
    """Run a bf16 peft model's layers under autocast, where flash attention finds its 16 bits, and its head in float32.

    peft's prepare_model_for_kbit_training would make everything that is not quantized float32, attention's queries and
    keys among it, which flash attention refuses: what runs then takes memory quadratic in the length. The adapter's
    weights stay float32 here, too, and so do their gradients and AdamW: autocast rounds copies of them. The head is
    another matter: bf16 logits are rounded to 3 digits, and a log-prob is the difference of two of them.
    """
    base = model.get_base_model()
    body, head, embedding = base.base_model, base.get_output_embeddings(), base.get_input_embeddings()
    dtype = head.weight.dtype
    if dtype == torch.float32:
        return  # as loaded: a CPU, or a card without bfloat16
    body.forward = torch.autocast("cuda" if torch.cuda.is_available() else "cpu", dtype=dtype)(body.forward)
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False  # or each adapter keeps a rounded copy of its own of its input
    head.float()  # a tied embedding becomes float32 with it, but what it hands to the layers must not
    embedding.register_forward_hook(lambda module, inputs, hidden: hidden.to(dtype))
    head.register_forward_pre_hook(lambda module, inputs: inputs[0].float())
    if torch.cuda.is_available():
        # Products of bf16 numbers are exact in TF32: tensor cores run the head, and nothing is lost. By this function
        # and no other: torch.compile, which vLLM uses, cannot read what the newer settings say.
        torch.set_float32_matmul_precision("high")


def checkpoint_activations(base: torch.nn.Module) -> None:
    """Keep only the inputs of the layers for the backward pass, which computes the rest again."""
    kind = "activation" if hasattr(base, "activation_checkpointing_enable") else "gradient"  # the older name
    getattr(base, f"{kind}_checkpointing_enable")(**{f"{kind}_checkpointing_kwargs": {"use_reentrant": False}})


def silence_libraries() -> None:
    """Advice of libraries that does not apply here, and progress bars of loading."""
    from transformers.utils import logging as transformers_logging

    # bitsandbytes (peft loads it) advises a CPU to fetch a faster kernel; peft asks transformers in an outdated way.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    transformers_logging.disable_progress_bar()


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
    return model


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def shortened(tokenizer, text: str, limit: int) -> str:
    """The text, or of a longer one its first and last tokens, `limit` in all: how it starts, where it arrives."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if len(ids) <= limit:
        return text
    return f"{tokenizer.decode(ids[: limit // 2])} [...] {tokenizer.decode(ids[-(limit // 2) :])}"


def fingerprint(model: torch.nn.Module) -> str:
    """A short digest of the base model: every frozen tensor's name and shape, and a few of its values."""
    known = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            values = parameter.flatten()[:: max(1, parameter.numel() // 16)][:16].float().tolist()
            known.update(repr((name, tuple(parameter.shape), values)).encode())
    return known.hexdigest()[:16]
