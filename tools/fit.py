"""`python p2o.py fit`: what a run will need of the card's memory, before anything is loaded; and what to lower.

An estimate from the architecture alone. Counts of floats were fitted to measured peaks of small models on a CPU
(tests/test_fit.py holds them to it); on a card, bench/gpu.py measures.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

import grpo
import p2o
from support.errors import UserError

GIB = 2**30
CUDA_CONTEXT = 0.6 * GIB  # CUDA itself and the kernels of its libraries; a guess, not measured


@dataclass(frozen=True)
class Architecture:
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool  # the head is the embedding

    @property
    def linear(self) -> list[tuple[int, int]]:
        """(in, out) of a layer's linear maps: q, k, v, o, gate, up, down."""
        attention, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        h, i = self.hidden, self.intermediate
        return [(h, attention), (h, kv), (h, kv), (attention, h), (h, i), (h, i), (i, h)]


KNOWN = {
    "Qwen/Qwen3-0.6B": Architecture(28, 1024, 3072, 16, 8, 128, 151936, True),
    "Qwen/Qwen3-1.7B": Architecture(28, 2048, 6144, 16, 8, 128, 151936, True),
    "Qwen/Qwen3-4B": Architecture(36, 2560, 9728, 32, 8, 128, 151936, True),
}


def architecture(model: str) -> Architecture:
    """From the table above, or from the config.json of a local folder (works offline)."""
    if model in KNOWN:
        return KNOWN[model]
    file = Path(model) / "config.json"
    if not file.is_file():
        raise UserError(f"--model {model}: fit knows {', '.join(KNOWN)}, and folders that hold a config.json")
    c = json.loads(file.read_text())
    heads = c["num_attention_heads"]
    return Architecture(
        c["num_hidden_layers"], c["hidden_size"], c["intermediate_size"], heads, c.get("num_key_value_heads", heads),
        c.get("head_dim") or c["hidden_size"] // heads, c["vocab_size"], c.get("tie_word_embeddings", False),
    )  # fmt: skip


def estimate(cfg, model: Architecture, card: float, on_gpu: bool = True) -> dict[str, float]:
    """Bytes by part. cfg: the run's options (p2o.Config); card: bytes of the card's memory.

    `training` is the peak of an update, `sampling` that of a batch of rollouts, both with all that stays loaded.
    """
    linear = model.layers * sum(a * b for a, b in model.linear)
    embeddings = model.vocabulary * model.hidden * (1 if model.tied else 2)
    width = 2 if on_gpu else 4  # bf16 or float32
    # NF4: half a byte, one byte of scale per 64 weights, four bytes per 256 scales. What is not quantized becomes
    # float32 in k-bit preparation, and so do the activations that flow between the layers.
    nf4 = 0.5 + 1 / 64 + 4 / (64 * 256)
    parts = {"weights": linear * nf4 + embeddings * 4 if cfg.load_in_4bit else (linear + embeddings) * width}
    adapter = model.layers * sum(cfg.lora_rank * (a + b) for a, b in model.linear)
    parts["adapter"], parts["gradients"], parts["optimizer"] = adapter * 4, adapter * 4, adapter * 8  # float32, AdamW

    sequence = cfg.max_prompt_tokens + cfg.max_response_tokens
    tokens = max(cfg.micro_batch_tokens, sequence)  # a sequence above the limit goes alone
    attention, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    # Floats per token that one layer keeps for its backward pass, as measured; a bf16 model keeps the adapters' inputs
    # in float32 besides, so 4 bytes are right within a few percent for both.
    layer = 4 * model.hidden + 4 * model.intermediate + 3 * attention + 3 * kv + 7 * cfg.lora_rank
    kept = model.hidden if cfg.gradient_checkpointing else layer
    parts["activations kept"] = 4 * tokens * model.layers * kept
    # Then either one layer is computed again and differentiated, or the head is.
    recomputed = layer if cfg.gradient_checkpointing else 0
    parts["one layer's backward"] = 4 * tokens * (recomputed + 2 * model.intermediate)
    parts["logits"] = 4 * 4 * min(grpo.LOGIT_CHUNK, tokens * model.vocabulary)  # four float32 copies of a chunk

    loaded = parts["weights"] + parts["adapter"] + parts["optimizer"] + (CUDA_CONTEXT if on_gpu else 0)
    passing = parts["activations kept"] + max(parts["one layer's backward"], parts["logits"])
    parts["training"] = loaded + parts["gradients"] + passing
    cache_width = 4 if cfg.load_in_4bit and cfg.engine == "hf" else width
    per_token = 2 * model.layers * kv * cache_width
    if cfg.engine == "vllm":
        share = cfg.vllm_memory * card
        room = share - (linear + embeddings) * width - GIB  # beside the weights, about 1 GiB of vLLM's own
        parts["KV cache"] = max(0.0, room)
        parts["KV cache, one sequence"] = per_token * sequence
        parts["sampling"] = loaded + share
    else:
        # The head sees the last position only, but of every sequence: three float32 rows of logits each.
        parts["KV cache"] = per_token * sequence * cfg.sample_batch
        parts["sampling"] = loaded + parts["KV cache"] + 12 * cfg.sample_batch * model.vocabulary
    return parts


def advice(cfg, parts: dict[str, float], card: float) -> list[str]:
    """What to lower so that the run fits, the cheapest first; empty if it does."""
    sequence = cfg.max_prompt_tokens + cfg.max_response_tokens
    training, over = parts["training"] > card, parts["sampling"] - card
    vllm = cfg.engine == "vllm"
    rules = [
        (training and not cfg.gradient_checkpointing, "training: --gradient-checkpointing"),
        (training and cfg.micro_batch_tokens > sequence, f"training: --micro-batch-tokens {sequence}"),
        (training and not cfg.load_in_4bit, "training: --load-in-4bit"),
        (
            training,
            f"training: --max-response-tokens {cfg.max_response_tokens // 2}, or a smaller --lora-rank or model",
        ),
        (over > 0 and vllm, f"sampling: --vllm-memory {max(0.1, cfg.vllm_memory - over / card - 0.01):.2f}"),
        (over > 0 and not vllm, f"sampling: --sample-batch {fitting_batch(cfg, parts, over)}"),
        (
            vllm and parts["KV cache"] < parts["KV cache, one sequence"],
            "sampling: --max-response-tokens, or raise --vllm-memory: vLLM has no room for one whole sequence",
        ),
    ]
    return [hint for applies, hint in rules if applies]


def fitting_batch(cfg, parts: dict[str, float], over: float) -> int:
    return max(1, int(cfg.sample_batch * (1 - over / max(parts["KV cache"], over))))


def main(argv: list[str]) -> None:
    """`p2o.py fit`: a run's options, and `--card-gb 16` for another card than the one at hand (24 if there is none)."""
    card = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 24 * GIB
    if "--card-gb" in argv[:-1]:
        i = argv.index("--card-gb")
        card, argv = float(argv[i + 1]) * GIB, argv[:i] + argv[i + 2 :]
    cfg = p2o.parse_config(argv)
    parts = estimate(cfg, architecture(cfg.model), card)
    print(f"{cfg.model}, estimated for a card of {card / GIB:.1f} GiB (GiB):")
    for name, value in parts.items():
        peak = name in ("training", "sampling")
        verdict = ("fits" if value <= card else "DOES NOT FIT") if peak else ""
        print(f"{name + ' peak' if peak else '  ' + name:26} {value / GIB:6.2f}  {verdict}".rstrip())
    for hint in advice(cfg, parts, card):
        print(f"lower {hint}")
