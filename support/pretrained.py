"""Loading a tokenizer with errors that say what to do, and which base model an adapter belongs to."""

from __future__ import annotations

import hashlib
import logging
import warnings
from pathlib import Path

import torch

from support.errors import UserError


def load_base(model: str, tokenizer, dtype: torch.dtype, quantization) -> tuple[torch.nn.Module, list[int]]:
    """The base model, and the token ids that end a response."""
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, GenerationConfig

    device_map = {"": 0} if torch.cuda.is_available() else None
    base = AutoModelForCausalLM.from_pretrained(
        model, dtype=dtype, quantization_config=quantization, device_map=device_map
    )
    stop_ids = base.generation_config.eos_token_id
    stop_ids = set(stop_ids if isinstance(stop_ids, list) else [stop_ids]) | {tokenizer.eos_token_id}
    # A model's own generation config may hold a top-k, a top-p or a repetition penalty: rollouts sampled under those do
    # not come from the distribution whose log-probs are trained. Nothing of it is kept.
    base.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id)
    if quantization is not None:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        for module in base.modules():
            # On a CPU with AVX512-BF16, bitsandbytes repacks a layer's weights for good in the first pass without
            # gradients, for a kernel that has no backward: after one sampling the layers below would learn nothing.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    return base, sorted(stop_ids - {None})


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


def fingerprint(model: torch.nn.Module) -> str:
    """A short digest of the base model: every frozen tensor's name and shape, and a few of its values."""
    known = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            values = parameter.flatten()[:: max(1, parameter.numel() // 16)][:16].float().tolist()
            known.update(repr((name, tuple(parameter.shape), values)).encode())
    return known.hexdigest()[:16]
