"""What a run of the paper's size costs on 1, 8 and 64 GPUs: python lab/scale_costs.py

Arithmetic, not measurement: the first block of numbers is the paper's, the second the model's, the third a guess. Put
what you see in its place. Decoding is taken to wait for memory (each token reads all weights once for the batch, and
each response's own keys and values), training and scoring for arithmetic.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gepa_loop  # noqa: E402


@dataclass(frozen=True)
class Costs:
    # the paper's, GPUs and budget the code's: full fine-tuning on 8 GPUs
    questions: int = 5_000
    epochs: int = 10
    group_size: int = 6
    questions_per_batch: int = 128
    longest_response: int = 12_288
    dev_size: int = 300
    gepa_budget: str = "heavy_4"
    gepa_parents: int = 16
    # Qwen3-4B in bf16, 2 bytes a number
    parameters: float = 4.0e9
    key_value_bytes: int = 2 * 36 * 8 * 128 * 2  # of a token: keys and values, layers, heads, width of a head
    adapter: float = 36 * 32 * (2_560 * 7 + 4_096 * 2 + 1_024 * 2 + 9_728 * 3)  # layers, rank, in + out of 7 linears
    # guesses: the task, one H100, the network
    prompt_tokens: int = 300
    response_tokens: int = 6_000
    memory_bytes_per_second: float = 3.35e12 * 0.6
    memory_for_cache: float = 5e10
    operations_per_second: float = 9.9e14 * 0.35
    bytes_between_machines: float = 2.5e10

    @property
    def batches(self) -> int:
        return self.epochs * math.ceil(self.questions / self.questions_per_batch)

    @property
    def evolution_calls(self) -> int:
        return (self.epochs - 1) * gepa_loop.metric_call_budget(self.gepa_budget, self.dev_size)


def tokens(c: Costs) -> dict[str, float]:
    """TRL scores pi_old of every rollout; python p2o.py of the templated ones only.

    >>> f"{tokens(Costs())['sampled']:.2e}"       # 300,000 responses of 6,000 tokens
    '1.80e+09'
    """
    responses = c.epochs * c.questions * c.group_size
    whole = responses * (c.prompt_tokens + c.response_tokens)
    evolution = c.evolution_calls * c.response_tokens
    return {
        "sampled": responses * c.response_tokens,
        "sampled in evolution": evolution,
        "scored": whole,
        "trained": whole,
    }


def decoding(c: Costs, responses: float) -> float:
    """Seconds for the next token of that many responses on one GPU: one reading of the weights, and of their caches."""
    context = c.prompt_tokens + c.response_tokens / 2
    return (2 * c.parameters + responses * context * c.key_value_bytes) / c.memory_bytes_per_second


def sampling(c: Costs, responses: float, gpus: int) -> float:
    """Seconds for a batch of responses: the work divided, but never less than its longest response takes alone."""
    fitting = c.memory_for_cache / ((c.prompt_tokens + c.response_tokens / 2) * c.key_value_bytes)
    share = responses / gpus
    at_once = min(share, fitting)
    return max(share / at_once * c.response_tokens * decoding(c, at_once), c.longest_response * decoding(c, 1))


def hours(c: Costs, gpus: int) -> dict[str, float]:
    """Forward is 2 operations for each parameter and token, forward and backward 6. Bytes are sent once a batch."""
    spent, operations = tokens(c), c.parameters / c.operations_per_second / gpus
    waves = c.evolution_calls / c.dev_size  # as if all calls came in batches of a dev set
    seconds = {
        "sampling": c.batches * sampling(c, c.questions_per_batch * c.group_size, gpus),
        "evolution": waves * sampling(c, c.dev_size, gpus),
        "scoring": 2 * spent["scored"] * operations,
        "training": 6 * spent["trained"] * operations,
        "weights sent": c.batches * 2 * c.parameters / c.bytes_between_machines if gpus > 8 else 0.0,
    }
    return {name: value / 3600 for name, value in seconds.items()}


def show(c: Costs) -> None:
    for name, count in tokens(c).items():
        print(f"{name:24}{count / 1e9:10.2f} billion tokens")
    for name, numbers in {"merged weights": c.parameters, "an adapter alone": c.adapter}.items():
        print(f"{name:24}{2 * numbers / 1e9:10.2f} GB, sent {c.batches} times")
    columns = {gpus: hours(c, gpus) for gpus in (1, 8, 64)}
    print(f"\n{'hours':24}" + "".join(f"{gpus:6} GPU" for gpus in columns))
    for name in columns[1]:
        print(f"{name:24}" + "".join(f"{column[name]:10.2f}" for column in columns.values()))
    print(f"{'all':24}" + "".join(f"{sum(column.values()):10.2f}" for column in columns.values()))


if __name__ == "__main__":
    show(Costs())
