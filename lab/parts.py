"""Where a run's time goes, by part: CPU seconds of one run of the tiny preset (or of any options of p2o.py).

    python lab/parts.py                    # P2O, tiny preset
    python lab/parts.py --method grpo      # any option of p2o.py

The parts are the loop's functions; what one calls of another counts for the inner one only. Prints a Markdown table.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

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
    "support.run.Run.keep_rollouts": "journal of rollouts",
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


def measure(arguments: list[str]) -> Counter:
    """CPU seconds by part of one run."""
    import grpo
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


def main() -> None:
    seconds = measure(sys.argv[1:])
    total = sum(seconds.values())
    rows = [f"| {part} | {value:.1f} | {value / total:.0%} |" for part, value in seconds.most_common()]
    print("\n".join(["| part | CPU seconds | share |", "| --- | --- | --- |", *rows, f"| all | {total:.1f} | |"]))


if __name__ == "__main__":
    main()
