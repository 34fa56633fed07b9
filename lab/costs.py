"""What it costs: where a run's time goes, and what more threads bring.

    python lab/costs.py parts                    # P2O, tiny preset
    python lab/costs.py parts --method grpo      # any option of p2o.py
    python lab/costs.py threads                  # one round on 1, 2 and 4 threads

**parts**: CPU seconds of one run, by part. The parts are the loop's functions; what one calls of another counts for the
inner one only. Prints a Markdown table.

**threads**: wall seconds of sampling, scoring and one update of 4 questions, of the tiny model's shape and of
Qwen3-0.6B's in 4 bits. The weights are random and the questions random tokens: speed does not depend on them. Every
number of threads has a process of its own.
"""

from __future__ import annotations

import json
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

QUESTIONS, USUAL = 4, {"group": 8, "response": 64, "prompt": 64}
STEPS = ("sampling", "scoring", "update")
QWEN3 = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
         "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936}  # the shape of Qwen3-0.6B  # fmt: skip

# -------------------------------------------------------------------------------------------------------------- threads


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
    draw = lambda count: [rng.randrange(6, 402) for _ in range(count)]  # noqa: E731
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


def measure(size: dict[str, int], threads: int, rounds: int = 3, four_bits: bool = False, **shape) -> dict[str, float]:
    """{part: wall seconds, the least of some rounds}; run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = {"max_prompt_tokens": 2048, "max_response_tokens": 2048, "threads": threads, "load_in_4bit": four_bits}
        policy, found = grpo.load_policy(grpo.PolicyConfig(model=random_model(folder, **shape), **cfg)), {}
    for part, work in round_of(policy, size).items():
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
        found[part] = min(seconds)
    return found


def in_a_process(**asked) -> dict[str, float]:
    command = [sys.executable, __file__, "one", json.dumps(asked)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def threads() -> None:
    lines = ["| model | threads | " + " | ".join(f"{part}, s" for part in STEPS) + " |", "| --- " * 5 + "|"]
    few = USUAL | {"group": 2, "response": 8}
    works = {"tiny": {"size": USUAL}, "0.6B, 4 bits": {"size": few, "rounds": 1, "four_bits": True, **QWEN3}}
    for name, work in works.items():
        for count in (1, 2, 4):
            found = in_a_process(threads=count, **work)
            lines.append(f"| {name} | {count} | " + " | ".join(f"{found[part]:.2f}" for part in STEPS) + " |")
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
    elif name == "threads":
        threads()
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
