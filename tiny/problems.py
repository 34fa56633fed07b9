"""The questions of the tiny worlds: easy step by step and hard as a whole.

Four families of left folds with small state. Two elements are easy; five or six are the hard training and test
questions; seven or eight are out of distribution. A response writes the state after each element and boxes the last:

    Add these digits: 7, 9, 8.          ->   7; 16; 24. \\boxed{24}

After each state the model decides with one token: a mark (`;` here) goes on, `.` stops and boxes. The base models go on
when the instruction holds a hint for the question's family, and mostly stop when it does not (see tiny/worlds.py). No
earlier state may equal the answer: on the clock an early stop would be right by luck one time in twelve.

    python tiny/problems.py                       # writes tiny/train.jsonl, tiny/hard.jsonl and tiny/ood.jsonl
    python tiny/problems.py --range runs/range    # every length from 2 to 8 alike: train.jsonl and held-out.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
EASY, HARD, OOD = (2,), (5, 6), (7, 8)  # elements per question
LENGTHS = (*EASY, 3, 4, *HARD, *OOD)
CHAIN_LIMIT = 45  # small state tables are learnt far faster than large ones


@dataclass(frozen=True)
class Family:
    ask: str  # the question is f"{ask}: {elements}."
    hints: tuple[str, ...]  # instructions that make the base model work the whole way through
    element: Callable[[random.Random, int | None], str]  # (rng, state so far or None) -> next element
    step: Callable[[int, str], int]  # (state, element) -> next state


def _chain_element(rng: random.Random, state: int | None) -> str:
    if state is None:
        return str(rng.randint(1, 9))
    operations = [f"+{d}" for d in range(1, 10) if state + d <= CHAIN_LIMIT]
    operations += [f"-{d}" for d in range(1, 10) if state - d >= 1]
    operations += ["*2"] * 5 if 2 * state <= CHAIN_LIMIT else []  # as often as it takes to be seen
    return rng.choice(operations)


def _chain_step(state: int, element: str) -> int:
    return state * 2 if element == "*2" else state + int(element)


FAMILIES = {
    "total": Family(
        "Add these digits",
        ("Add one digit at a time.", "Keep a running total."),
        lambda rng, state: str(rng.randint(1, 9)),
        lambda state, digit: state + int(digit),
    ),
    "binary": Family(
        "Read this binary number",
        ("Double and add for every bit.", "Read the bits from the left."),
        lambda rng, state: str(rng.randint(0, 1)),
        lambda state, bit: 2 * state + int(bit),
    ),
    "chain": Family(
        "Work out this chain",
        ("Apply one operation at a time.", "Write down every result of the chain."),
        _chain_element,
        _chain_step,
    ),
    "clock": Family(
        "Turn the minute hand by",
        ("Move the hand step by step.", "Start again at sixty minutes."),
        lambda rng, state: str(5 * rng.randint(1, 11)),
        lambda state, minutes: (state + int(minutes)) % 60,
    ),
}
USELESS_HINTS = ("Think hard.", "Be brief.", "Check the answer.", "Stay calm.")


@dataclass(frozen=True)
class Problem:
    family: str
    elements: tuple[str, ...]
    states: tuple[int, ...]  # the state after each element; the last is the answer

    @property
    def question(self) -> str:
        return f"{FAMILIES[self.family].ask}: {', '.join(self.elements)}."

    def response(self, depth: int | None = None, mark: str = ";") -> str:
        """The response that stops after `depth` states (all of them by default); `mark` is the token that goes on.

        >>> Problem("total", ("7", "9", "8"), (7, 16, 24)).response(2, "!")
        '7! 16. \\\\boxed{16}'
        """
        shown = self.states[:depth]
        return f"{f'{mark} '.join(map(str, shown))}. \\boxed{{{shown[-1]}}}"


def draw(rng: random.Random, family: str, lengths: tuple[int, ...]) -> Problem:
    """A random problem of that family with one of those numbers of elements.

    >>> problem = draw(random.Random(1), "total", (3,))
    >>> problem.question, problem.response()
    ('Add these digits: 2, 5, 2.', '2; 7; 9. \\\\boxed{9}')
    """
    rules = FAMILIES[family]
    while True:
        elements, states = [], []
        for _ in range(rng.choice(lengths)):
            element = rules.element(rng, states[-1] if states else None)
            states.append(rules.step(states[-1], element) if states else int(element))
            elements.append(element)
        if states[-1] not in states[:-1]:
            return Problem(family, tuple(elements), tuple(states))


def draw_many(rng: random.Random, count: int, lengths: tuple[int, ...], taken: set[str]) -> list[Problem]:
    """`count` new problems, families in turn; adds their questions to `taken`. A family that runs dry is left out."""
    problems, families = [], list(FAMILIES)
    while len(problems) < count:
        family = families.pop(0)
        for _ in range(200):
            problem = draw(rng, family, lengths)
            if problem.question not in taken:
                taken.add(problem.question)
                problems.append(problem)
                families.append(family)
                break
    return problems


def splits() -> dict[str, list[Problem]]:
    """The shipped question files: 144 hard and 40 easy for training, 100 held-out hard, 100 out of distribution."""
    rng, taken = random.Random(0), set()
    train = draw_many(rng, 144, HARD, taken) + draw_many(rng, 40, EASY, taken)
    return {"train": train, "hard": draw_many(rng, 100, HARD, taken), "ood": draw_many(rng, 100, OOD, taken)}


def every_length() -> dict[str, list[Problem]]:
    """Question files with difficulty as a range: 28 of each length for training, 14 of each held out."""
    rng, taken = random.Random(0), set()
    counts = {"train": 28, "held-out": 14}
    return {
        name: [problem for length in LENGTHS for problem in draw_many(rng, count, (length,), taken)]
        for name, count in counts.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--range", type=Path, metavar="FOLDER", help="every length alike, into this folder")
    args = parser.parse_args()
    folder, files = (args.range, every_length()) if args.range else (HERE, splits())
    folder.mkdir(parents=True, exist_ok=True)
    for name, problems in files.items():
        lines = [
            {"id": f"{name}-{i:03d}", "question": p.question, "answer": str(p.states[-1]), "family": p.family}
            for i, p in enumerate(problems)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        first = lines[0]
        print(f"{folder.name}/{name}.jsonl: {len(lines)} questions, e.g. {first['question']}  ->  {first['answer']}")


if __name__ == "__main__":
    main()
