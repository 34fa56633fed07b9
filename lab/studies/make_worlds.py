"""Question files for two studies, for the tiny models that are there. Everything is drawn from a fixed seed.

    python lab/studies/make_worlds.py     # runs/worlds/selection.jsonl, selection-held-out.jsonl, pattern.jsonl, ...

selection    A world in which selection can show itself. A third of the questions is always solved (two elements), a
             third impossible, and readable as such (seven or eight elements, and no state is the answer), a third
             between: the answer is the state at a depth that depends on the family, so there are four lessons. The
             model is one whose bare responses go on with probability 0.5 (lab/studies/dials.sh): it stops at depths
             2, 3, 4, 5 with probability 1/4 to 1/32, or 1/16 where 5 is the last.
pattern      Any verifiable task: the response has to write down at least five states, whatever they are. No reference
             answer; `--reward pattern` reads the regular expression from the row.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tiny.problems import EASY, FAMILIES, HARD, OOD, Problem, draw_many  # noqa: E402

DEPTHS = dict(zip(FAMILIES, (2, 3, 4, 5), strict=True))  # family -> which state is the answer
FIVE_STATES = r"\d+(; \d+){4,}\. .*"


def different(rng: random.Random, lengths: tuple[int, ...], count: int, taken: set[str]) -> list[Problem]:
    """Questions with all states different, so that no other depth is right by luck; families in turn."""
    drawn = draw_many(rng, 3 * count, lengths, taken)  # a family that runs dry is left out
    return [problem for problem in drawn if len(set(problem.states)) == len(problem.states)][:count]


def row(kind: str, number: int, problem: Problem, answer: object) -> dict:
    return {"id": f"{kind}-{number}", "question": problem.question, "answer": str(answer), "kind": kind}


def selection(rng: random.Random, taken: set[str]) -> tuple[list[dict], list[dict]]:
    """(training rows, held-out rows: of the third that can be learned)."""
    solved = [row("solved", i, p, p.states[-1]) for i, p in enumerate(different(rng, EASY, 48, taken))]
    lost = [row("impossible", i, p, "none") for i, p in enumerate(different(rng, OOD, 48, taken))]
    between = [
        row("between", i, p, p.states[DEPTHS[p.family] - 1]) for i, p in enumerate(different(rng, HARD, 148, taken))
    ]
    return solved + lost + between[:48], between[48:]


def pattern(rng: random.Random, taken: set[str]) -> tuple[list[dict], list[dict]]:
    rows = [row("steps", i, p, "") | {"pattern": FIVE_STATES} for i, p in enumerate(different(rng, HARD, 244, taken))]
    return rows[:144], rows[144:]


def main() -> None:
    folder = ROOT / "runs" / "worlds"
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in (("selection", selection), ("pattern", pattern)):
        for suffix, rows in zip(("", "-held-out"), make(random.Random(0), set()), strict=True):
            file = folder / f"{name}{suffix}.jsonl"
            file.write_text("".join(json.dumps(line) + "\n" for line in rows))
            print(f"{file.relative_to(ROOT)}: {len(rows)} questions, e.g. {rows[-1]['question']}")


if __name__ == "__main__":
    main()
