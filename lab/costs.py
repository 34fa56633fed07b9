"""What it costs: where a run's time goes, and how seconds and memory grow.

    python lab/costs.py parts                    # P2O, tiny preset
    python lab/costs.py parts --method grpo      # any option of p2o.py
    python lab/costs.py growth                   # every axis; tables, and lab/results/growth.json; about ten minutes
    python lab/costs.py threads                  # one round on 1, 2 and 4 threads

**parts**: CPU seconds of one run, by part. The parts are the loop's functions; what one calls of another counts for the
inner one only. Prints a Markdown table.

**growth**: CPU seconds and peak memory of sampling, scoring and one update, along one axis at a time.
The model is a random one of the tiny model's shape (its vocabulary is an axis, so nothing depends on what it says), the
questions are random tokens. Along each axis all else stays at 4 questions, G = 8, prompts and responses of 64 tokens
and 402 words. An exponent is the slope of log cost over log size across the last three sizes; beneath it stands that of
the work, the multiplications that the model has to do, attention's square among them. Every size is measured in a
process of its own: least of three for seconds, peak resident memory above what was there before for memory. An update's
memory stops growing at --micro-batch-tokens, as it should.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM  # noqa: E402

import grpo  # noqa: E402
from support.memory import adamw  # noqa: E402

QUESTIONS, USUAL = 4, {"group": 8, "response": 64, "prompt": 64, "vocabulary": 402}
AXES = {
    "group": ("rollouts per question", [4, 8, 16, 32, 64]),
    "response": ("tokens of a response", [16, 64, 256, 512, 1024]),
    "prompt": ("tokens of a prompt", [16, 64, 256, 512, 1024]),
    "vocabulary": ("words of the vocabulary", [402, 4_096, 32_768, 65_536, 151_936]),
}
STEPS = ("sampling", "scoring", "update")
QWEN3 = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
         "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936}  # the shape of Qwen3-0.6B  # fmt: skip


def random_model(folder: str, **shape) -> str:
    """A folder with the tiny model's tokenizer, and random weights of its shape but for `shape`."""
    config = AutoConfig.from_pretrained(grpo.TINY / "united" / "model", max_position_embeddings=4096, **shape)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(grpo.TINY / "united" / "model").save_pretrained(folder)
    return folder


def round_of(policy: grpo.Policy, size: dict[str, int]) -> dict[str, Callable[[], object]]:
    """What is measured, by part: sampling, scoring and one update of QUESTIONS * G rollouts of random tokens."""
    rng, optimizer = random.Random(0), adamw(policy.trainable, 1e-4)

    def draw(count: int) -> list[int]:
        return [rng.randrange(6, 402) for _ in range(count)]

    prompts = [draw(size["prompt"]) for _ in range(QUESTIONS)]
    policy.stop_ids = [-1]  # no response ends before its length
    rollouts = [
        grpo.Rollout(
            question_id=str(q), response_ids=draw(size["response"]), sampled_logprobs=[-1.0] * size["response"],
            truncated=False, text="", sampled_context=[], trained_context=prompt, advantage=(-1.0) ** i,
        )
        for q, prompt in enumerate(prompts)
        for i in range(size["group"])
    ]  # fmt: skip
    contexts, responses = [r.trained_context for r in rollouts], [r.response_ids for r in rollouts]
    return {
        "sampling": lambda: grpo.sample(policy, contexts, seed=0, max_new_tokens=size["response"]),
        "scoring": lambda: grpo.logprobs_of(policy, contexts, responses),
        "update": lambda: grpo.update_policy(policy, optimizer, rollouts, grpo.UpdateConfig()),
    }


def megabytes(line: str) -> float:
    """A line of this process's status: VmRSS, what is resident now, or VmHWM, the most that ever was."""
    return int(Path("/proc/self/status").read_text().partition(f"{line}:")[2].split()[0]) / 1024


def measure(size: dict[str, int], threads: int, rounds: int = 3, four_bits: bool = False, **shape) -> dict[str, list]:
    """{part: [seconds, MiB]} of one size; run in a process of its own. CPU seconds of one thread, else of the wall."""
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(folder, **({"vocab_size": size["vocabulary"]} | shape))
        cfg = {"max_prompt_tokens": 2048, "max_response_tokens": 2048, "threads": threads, "load_in_4bit": four_bits}
        policy, found = grpo.load_policy(grpo.PolicyConfig(model=model, **cfg)), {}
    clock = time.process_time if threads == 1 and rounds > 1 else time.perf_counter
    for part, work in round_of(policy, size).items():
        before, seconds = megabytes("VmRSS"), []
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of loading, is forgotten
        for _ in range(rounds):
            started = clock()
            work()
            seconds.append(clock() - started)
        found[part] = [min(seconds), megabytes("VmHWM") - before]
    return found


def in_a_process(**asked) -> dict[str, list[float]]:
    command = [sys.executable, __file__, "one", json.dumps(asked)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def exponent(sizes: list[int], costs: list[float]) -> float:
    """The slope of log cost over log size, least squares.

    >>> exponent([10, 100, 1000], [2.0, 20.0, 200.0])
    1.0
    """
    xs, ys = [math.log(size) for size in sizes], [math.log(max(cost, 1e-9)) for cost in costs]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)
    return round(slope, 2)


def work_of(size: dict[str, int]) -> float:
    """Multiplications of one pass: each prompt read once, each of its responses after it, the head for responses only.

    >>> sizes = [USUAL | {"group": group} for group in (16, 32, 64)]
    >>> exponent([16, 32, 64], [work_of(size) for size in sizes])  # less than 1: the prompts are read in any case
    0.97
    """
    config = AutoConfig.from_pretrained(grpo.TINY / "united" / "model")
    heads = config.num_attention_heads * config.head_dim
    projections = 2 * config.hidden_size * (heads + config.num_key_value_heads * config.head_dim)
    matrices = config.num_hidden_layers * (projections + 3 * config.hidden_size * config.intermediate_size)  # a token
    prompt, response = size["prompt"], size["response"]
    pairs = prompt**2 / 2 + size["group"] * response * (prompt + response / 2)  # a token and one before it
    tokens = prompt + size["group"] * response
    head = size["group"] * response * config.hidden_size * size["vocabulary"]
    return QUESTIONS * (tokens * matrices + 2 * config.num_hidden_layers * heads * pairs + head)


def table(axis: str, sizes: list[int], points: list[dict]) -> str:
    header = f"| {AXES[axis][0]} | " + " | ".join(f"{part}, s | MiB" for part in STEPS) + " |"
    lines = [header, "| ---: " * (1 + 2 * len(STEPS)) + "|"]
    for size, point in zip(sizes, points, strict=True):
        costs = [f"{seconds:.2f} | {peak:.0f}" for seconds, peak in (point[part] for part in STEPS)]
        lines.append(f"| {size:,} | {' | '.join(costs)} |")
    slopes = [exponent(sizes[-3:], [point[part][k] for point in points[-3:]]) for part in STEPS for k in (0, 1)]
    work = exponent(sizes[-3:], [work_of(USUAL | {axis: size}) for size in sizes[-3:]])
    lines.append(f"| exponent | {' | '.join(map(str, slopes))} |")
    return "\n".join([*lines, f"| of the work | {' | '.join([f'{work} | '] * len(STEPS))} |"])


def growth() -> None:
    measured = {}
    for axis, (_, sizes) in AXES.items():
        measured[axis] = [in_a_process(size=USUAL | {axis: size}, threads=1) for size in sizes]
        print(f"\n{table(axis, sizes, measured[axis])}", flush=True)
    out = ROOT / "lab" / "results" / "growth.json"
    out.write_text(json.dumps({"axes": AXES, "measured": measured}) + "\n")


def threads() -> None:
    """Wall seconds of one round of the tiny model's shape, and of Qwen3-0.6B's in 4 bits."""
    lines = ["| model | threads | " + " | ".join(f"{part}, s" for part in STEPS) + " |", "| --- " * 5 + "|"]
    few = USUAL | {"group": 2, "response": 8}
    works = {"tiny": {"size": USUAL}, "0.6B, 4 bits": {"size": few, "rounds": 1, "four_bits": True, **QWEN3}}
    for name, work in works.items():
        for count in (1, 2, 4):
            found = in_a_process(threads=count, **work)
            lines.append(f"| {name} | {count} | " + " | ".join(f"{found[part][0]:.2f}" for part in STEPS) + " |")
            print(lines[-1], flush=True)


# -------------------------------------------------------------------------------------------------------------- by part

PARTS = {  # what is measured -> what the table calls it
    "p2o.prepare": "loading",
    "p2o.sample_groups": "sampling rollouts",
    "grpo.mismatch": "sampler against trainer",
    "grpo.score_old": "log-probs of the bare question",
    "grpo.update_policy": "update",
    "p2o.evolve_templates": "prompt evolution",
    "p2o.held_out_accuracy": "evaluation",
    "verify.grade_batch": "grading",
    "support.run.Run.save": "checkpoints",
    "support.run.Run.save_rollouts": "journal of rollouts",
    "support.run.Run.log_rollouts": "log",
    "support.run.Run.log_epoch": "log",
}


def timed(work: Callable, part: str, seconds: Counter, stack: list[str]) -> Callable:
    """`work`, its CPU time booked on `part` and taken from the part that called it."""

    def run(*args, **kwargs):
        started = time.process_time()
        stack.append(part)
        try:
            return work(*args, **kwargs)
        finally:
            stack.pop()
            spent = time.process_time() - started
            seconds[part] += spent
            if stack:
                seconds[stack[-1]] -= spent

    return run


def seconds_by_part(arguments: list[str]) -> Counter:
    """CPU seconds by part of one run."""
    import p2o
    import support.run
    import verify
    from tools import cli

    modules = {"p2o": p2o, "grpo": grpo, "verify": verify, "support.run.Run": support.run.Run}
    seconds, stack = Counter(), []
    for name, part in PARTS.items():
        owner, _, function = name.rpartition(".")
        setattr(modules[owner], function, timed(getattr(modules[owner], function), part, seconds, stack))
    with tempfile.TemporaryDirectory() as folder:
        timed(p2o.train, "everything else", seconds, stack)(cli.parse_config([*arguments, "--runs", folder]))
    return seconds


def parts(arguments: list[str]) -> None:
    seconds = seconds_by_part(arguments)
    total = sum(seconds.values())
    rows = [f"| {part} | {value:.1f} | {value / total:.0%} |" for part, value in seconds.most_common()]
    print("\n".join(["| part | CPU seconds | share |", "| --- | --- | --- |", *rows, f"| all | {total:.1f} | |"]))


def main() -> None:
    name, *arguments = sys.argv[1:] or [""]
    if name == "one":  # a size, in a process of its own
        print(json.dumps(measure(**json.loads(arguments[0]))))
    elif name == "parts":
        parts(arguments)
    elif name in ("growth", "threads"):
        {"growth": growth, "threads": threads}[name]()
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
