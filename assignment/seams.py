"""What the graded runs put into the seams of the loop, so that everything that a loop has to do shows in its results.

Each call is counted in a file, and the call at which a run is to be stopped raises KeyboardInterrupt, as Ctrl-C does.
"""

import json
import zlib
from pathlib import Path


def counted(seam: str) -> int:
    file = Path("calls.json")  # in the folder where the run works
    calls = json.loads(file.read_text()) if file.exists() else {}
    calls[seam] = calls.get(seam, 0) + 1
    stop = calls.get("stop") == [seam, calls[seam]]
    file.write_text(json.dumps(calls | {"stop": None} if stop else calls))
    if stop:
        raise KeyboardInterrupt
    return calls[seam]


def reward(response: str, question) -> tuple[float, str, bool]:
    """By a digest of the question and of how often it was asked for: groups have contrast, whatever they say."""
    right = zlib.crc32(f"{question.id}/{counted('reward')}".encode()) % 5 < 2
    return float(right), f"That is {right}.", len(response) % 3 > 0


def select(order: list, history: dict, count: int, rng) -> list:
    """Those that were solved least often so far, again and again."""
    counted("select")
    return sorted(order, key=lambda question: sum(history.get(question.id, [0.75])))[:count]


def keep(group: list) -> list:
    """Groups with contrast only."""
    counted("keep")
    return [rollout for rollout in group if rollout.has_signal]
