"""`python p2o.py fit`: what a run will need of the card's memory and how long it will take; and what to lower.

Estimates from the architecture alone, before anything is loaded. tests/test_card.py holds the memory of training to a
count of every tensor that the real architectures' passes make, and to measured peaks of small models on a CPU. The
hours rest on rates that were measured on one H200 (lab/results/gpu.json), scaled to other cards by what their data
sheets say. lab/gpu.py measures all of it on the card at hand, where there may be neither gepa nor tyro: so what needs
them is imported where it is used.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch

import grpo
from support.errors import UserError
from support.memory import longest_sequence

GIB = 2**30
CUDA_CONTEXT = 0.6 * GIB  # CUDA itself and the kernels of its libraries; a guess, not measured
VLLM_ASLEEP = 0.4 * GIB  # what vLLM keeps while it sleeps: CUDA graphs, its libraries' workspaces; 0.36 on an H200

# GB/s of memory, and TFLOPS of dense 16-bit products with float32 sums, as the data sheets say.
CARDS = {
    "T4": (320, 65), "RTX 3090": (936, 71), "RTX 4090": (1008, 165), "RTX 5090": (1792, 210), "L4": (300, 121),
    "A10": (600, 125), "A100": (1555, 312), "H100": (3350, 989), "H200": (4800, 989),
}  # fmt: skip
# Measured on an H200 with Qwen3-4B's shape in NF4 (lab/results/gpu.json; tests/test_card.py holds these numbers to that
# file). Other cards: the same shares of what their data sheets say, and the same seconds.
ARITHMETIC_USED = 0.23  # scoring and update
LAYER_SECONDS = 0.00055  # of each token that transformers samples, for each layer, in recorded steps (support/fast.py)
# Guesses. Together they give the one rate of vLLM that was measured; neither was measured by itself.
BANDWIDTH_USED = 0.6  # reading weights and keys and values, to sample
STEP_SECONDS = 0.005  # of each token that vLLM samples on top
PROMPT_TOKENS, RESPONSE_SHARE = 200, 0.5  # a bare question; a response's mean length, as a share of the longest
TAUGHT = 0.5  # share of the groups that have any advantage
HELD_OUT = {"aime24": 30, "aime25": 30, "amc23": 40, "math500": 500, "minerva": 272, "olympiadbench": 674}  # questions


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
    try:
        c = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error})") from None
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    for name in names:  # some have a list there, a size for each layer, and some keep all this one level deeper
        if not isinstance(c, dict) or type(c.get(name)) is not int or c[name] < 1:
            raise UserError(
                f"--model {model}: fit cannot read this architecture; its config.json has no {name!r} that is a number"
            )
    layers, hidden, intermediate, heads, vocabulary = (c[name] for name in names)
    kv_heads, head_dim = c.get("num_key_value_heads") or heads, c.get("head_dim") or hidden // heads
    tied = c.get("tie_word_embeddings", False)
    return Architecture(layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary, tied)


def estimate(cfg, model: Architecture, card: float, on_gpu: bool = True) -> dict[str, float]:
    """Bytes by part. cfg: the run's options (p2o.Config); card: bytes of the card's memory.

    `training` is the peak of an update, `sampling` that of a batch of rollouts, both with all that stays loaded.
    """
    linear = model.layers * sum(a * b for a, b in model.linear)
    table = model.vocabulary * model.hidden
    sixteen_bits = on_gpu if cfg.dtype == "auto" else cfg.dtype != "float32"
    width = 2 if sixteen_bits else 4
    nf4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # half a byte, one byte of scale per 64 weights, four per 256 scales
    # The head is float32, and so is the embedding that is the same table.
    parts = {"weights": linear * (nf4 if cfg.load_in_4bit else width) + table * (4 if model.tied else 4 + width)}
    adapter = model.layers * sum(cfg.lora_rank * (a + b) for a, b in model.linear)
    parts["adapter"], parts["gradients"], parts["optimizer"] = adapter * 4, adapter * 4, adapter * 8  # float32, AdamW

    sequence = cfg.max_prompt_tokens + cfg.max_response_tokens
    tokens = max(cfg.micro_batch_tokens, sequence)  # a sequence above the limit goes alone
    layer, passing = layer_bytes(cfg, model, width)
    kept = width * model.hidden if cfg.gradient_checkpointing else layer
    parts["activations kept"] = tokens * model.layers * kept
    # Then either one layer is computed again and differentiated, or the head is.
    recomputed = layer if cfg.gradient_checkpointing else 0
    parts["one layer's backward"] = tokens * (recomputed + passing)
    parts["logits"] = 4 * 4 * min(grpo.LOGIT_CHUNK, tokens * model.vocabulary)  # four float32 copies of a chunk

    loaded = parts["weights"] + parts["adapter"] + parts["optimizer"] + (CUDA_CONTEXT if on_gpu else 0)
    update = parts["activations kept"] + max(parts["one layer's backward"], parts["logits"])
    asleep = VLLM_ASLEEP if cfg.engine == "vllm" else 0
    parts["training"] = loaded + parts["gradients"] + update + asleep
    per_token = 2 * model.layers * model.kv_heads * model.head_dim * width
    if cfg.engine == "vllm":
        share = cfg.vllm_memory * card
        # Beside the weights, about 1 GiB of vLLM's own for a step's activations.
        parts["KV cache"] = max(0.0, share - (linear + table * (1 if model.tied else 2)) * width - GIB)
        parts["KV cache, longest sequence"] = per_token * longest_sequence(cfg)
        parts["sampling"] = loaded + share + asleep
    else:
        # The head sees the last position only, but of every sequence: three float32 rows of logits each.
        parts["KV cache"] = per_token * sequence * cfg.sample_batch
        parts["sampling"] = loaded + parts["KV cache"] + 12 * cfg.sample_batch * model.vocabulary
    return parts


def layer_bytes(cfg, model: Architecture, width: int) -> tuple[int, int]:
    """Bytes per token that one layer keeps for its backward pass, and that its backward pass adds for a moment.

    As counted, with the adapters' inputs. In bf16 every linear map keeps 2 bytes a number and every norm 4.
    """
    h, i, r = model.hidden, model.intermediate, cfg.lora_rank
    attention, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    if width == 2:
        return 12 * h + 8 * i + 12 * attention + 14 * kv + 14 * r, 22 * h
    return 4 * (4 * h + 4 * i + 3 * attention + 3 * kv + 7 * r), 8 * i


def responses_of(cfg) -> dict[str, float]:
    """How many responses a run samples, by what for."""
    import gepa_loop
    from support.data import PAPER_SIZES, label

    known = questions_in(cfg.train_data, unfetched=cfg.train_questions or PAPER_SIZES[0])
    calls = gepa_loop.metric_call_budget(cfg.gepa_budget, cfg.gepa_dev_size)
    if cfg.gepa_tokens:
        calls = min(calls, round(cfg.gepa_tokens / (RESPONSE_SHARE * cfg.max_response_tokens)))
    held_out = sum(questions_in(path, unfetched=HELD_OUT.get(label(path), 200)) for path in cfg.eval_data)
    return {
        "sampling": cfg.epochs * min(known, cfg.train_questions or known) * cfg.group_size,
        "evolution": (cfg.epochs - 1) * calls if cfg.method == "p2o" else 0,
        "evaluation": (cfg.epochs + 1) * (1 + cfg.sampled_eval) * held_out,
    }


def questions_in(path: str, unfetched: int) -> int:
    """The number of questions in a file. A data set is not fetched to be counted: `unfetched` is taken for it."""
    from support.data import SOURCES, load_questions

    if path.partition(":")[0] in SOURCES and not Path(path).is_file():
        return unfetched
    return len(load_questions(path, empty_answers=True))  # UserError if there is no such file


def hours(
    cfg, model: Architecture, speed: tuple[float, float], room: float, responses: dict[str, float] | None = None
) -> dict[str, float]:
    """Hours of a run by part; `speed`: a card of CARDS; `room`: bytes of KV cache. A coarse estimate."""
    bandwidth, arithmetic = speed[0] * 1e9 * BANDWIDTH_USED, speed[1] * 1e12 * ARITHMETIC_USED
    weights = model.layers * sum(a * b for a, b in model.linear) + model.vocabulary * model.hidden
    response = RESPONSE_SHARE * cfg.max_response_tokens
    responses = responses or responses_of(cfg)
    # Sampling reads the weights once for each token of all sequences together, and each one's keys and values.
    kv = 4 * model.layers * model.kv_heads * model.head_dim * (PROMPT_TOKENS + response)  # of one sequence, in bf16
    together = max(1.0, min(cfg.sample_batch, room / kv))
    launches = STEP_SECONDS if cfg.engine == "vllm" else LAYER_SECONDS * model.layers
    step = (2 * weights + together * kv) / bandwidth + launches
    seconds = {name: count * response * step / together for name, count in responses.items()}
    # A pass forward takes two operations for each weight and token, and so does the one backward: to the activations
    # alone, since the weights are frozen. Checkpointing goes forward twice.
    trained = TAUGHT * responses["sampling"] * (PROMPT_TOKENS + response)
    later = 1 - cfg.questions_per_update / cfg.questions_per_batch  # scored first; in the first update nothing is
    seconds["scoring"] = 2 * later * trained * weights / arithmetic
    seconds["update"] = (6 if cfg.gradient_checkpointing else 4) * trained * weights / arithmetic
    return {name: value / 3600 for name, value in seconds.items()}


def update_flops(model: Architecture, cfg, context: int, response: int) -> dict[str, float]:
    """Floating-point operations of one sequence in an update: forward, recomputation and backward, by what for.

    A product of matrices takes two operations for each weight and token. The layers' weights and the head are frozen,
    so their backward pass has one product, and the adapter's has two. Attention's has four for the forward pass's two.
    """
    length, forward = context + response, 2 if cfg.gradient_checkpointing else 1  # forward passes of the layers
    linear = sum(a * b for a, b in model.linear)
    adapter = sum(cfg.lora_rank * (a + b) for a, b in model.linear)
    # Scores and weighted values: a token looks at half of the sequence on average.
    attention = 2 * 2 * model.heads * model.head_dim * length / 2
    return {
        "linear": 2 * model.layers * length * linear * (forward + 1),
        "adapter": 2 * model.layers * length * adapter * (forward + 2),
        "attention": model.layers * length * attention * (forward + 2),
        "head": 2 * response * model.vocabulary * model.hidden * 3,  # its chunks are computed twice: token_logprobs
    }


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
            vllm and parts["KV cache"] < parts["KV cache, longest sequence"],
            "sampling: --reflection-quote or --max-response-tokens, or raise --vllm-memory: vLLM has no room for the "
            f"longest sequence of {longest_sequence(cfg)} tokens",
        ),
    ]
    return [hint for applies, hint in rules if applies]


def fitting_batch(cfg, parts: dict[str, float], over: float) -> int:
    return max(1, int(cfg.sample_batch * (1 - over / max(parts["KV cache"], over))))


def main(argv: list[str]) -> None:
    """`p2o.py fit`: a run's options, and `--card-gb 16` for another card than the one at hand (24 if there is none)."""
    from tools import cli

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--card-gb", nargs="?", const="")
    ours, others = parser.parse_known_args(argv)
    size = ours.card_gb
    if size is not None and not (re.fullmatch(r"\d*\.?\d+", size) and float(size)):
        raise UserError(f"--card-gb {size}: the GiB of a card's memory, for instance 24")
    say(cli.parse_config(others), float(size) * GIB if size else None)


def say(cfg, card: float | None = None) -> None:
    """So many GiB, so many hours, and what to lower."""
    present = torch.cuda.is_available()
    card = card or (torch.cuda.get_device_properties(0).total_memory if present else 24 * GIB)
    model, responses = architecture(cfg.model), responses_of(cfg)
    parts = estimate(cfg, model, card)
    print(f"{cfg.model}, estimated for a card of {card / GIB:.1f} GiB (GiB):")
    for name, value in parts.items():
        peak = name in ("training", "sampling")
        verdict = ("fits" if value <= card else "DOES NOT FIT") if peak else ""
        print(f"{name + ' peak' if peak else '  ' + name:30} {value / GIB:6.2f}  {verdict}".rstrip())
    for hint in advice(cfg, parts, card):
        print(f"lower {hint}")
    name = torch.cuda.get_device_name() if present else ""
    cards = {key: speed for key, speed in CARDS.items() if cfg.engine == "hf" or key != "T4"}  # vLLM is refused there
    known = [key for key in cards if re.search(rf"{key}(?!\d)", name)] or ["RTX 4090"]  # an L40S is no L4
    by_card = {key: hours(cfg, model, speed, parts["KV cache"], responses) for key, speed in cards.items()}
    totals = {key: sum(by_part.values()) for key, by_part in by_card.items()}
    if totals[known[-1]] < 0.1:
        print(
            "estimated hours: 0; so small a run waits for launches of kernels and for Python, and they are not counted"
        )
        return
    told = ", ".join(f"{part} {value:.1f}" for part, value in by_card[known[-1]].items())
    print(f"estimated hours on an {known[-1]}: {totals[known[-1]]:.1f} ({told})")
    questions = responses["sampling"] // (cfg.epochs * cfg.group_size)
    print(f"  for {questions:,} training questions; the estimate fetches no data set")
    print("  from the rates of an H200, scaled by data sheets")
    print("  with as much memory on: " + ", ".join(f"{key} {total:.0f}" for key, total in totals.items()))
    if totals[known[-1]] > 24:
        print("lower --train-questions, --epochs or --max-response-tokens to end within a day")


def foretell(cfg) -> None:
    """`say`, before a run. Of an architecture that it does not know it says only that: the run goes on."""
    try:
        say(cfg)
    except UserError as error:
        print(f"no estimate: {error}")
