r"""What does a policy earn that only copies? The share of questions that pay for one of their own formulas.

    python lab/copies.py                           # the tiny world
    python lab/copies.py math500 mine.jsonl        # names and files as `--train-data` takes them

Every formula of a question (in dollar signs or brackets; without any, each run of digits and signs) is boxed as it
stands and graded, once without the question and once with it. What is the reference's own text does not count, nor do
plain numbers other than fractions: that a question names its answer is for the question to decide. Prints the share for
either way of grading, and what paid.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import verify  # noqa: E402
from support.answers.equivalence import number  # noqa: E402
from support.answers.latex import canonical, tidy  # noqa: E402
from support.data import load_questions  # noqa: E402

MARKED = re.compile(r"\$\$(.+?)\$\$|\$((?:[^$\\]|\\.)+)\$|(?<!\\)\\\((.+?)\\\)|(?<!\\)\\\[(.+?)\\\]", re.DOTALL)
UNMARKED = re.compile(r"[-+(]?\d[-+*/^=<>().,\d\s×÷]*")


def formulas(question: str) -> list[str]:
    """The formulas of a question, and the sides of its equations.

    >>> formulas("If $x+1=3$, what is $2x$?"), formulas("Add these digits: 4, 7, 9.")
    (['x+1=3', 'x+1', '3', '2x'], ['4, 7, 9'])
    """
    marked = ["".join(groups) for groups in MARKED.findall(question)]
    whole = [formula.strip(" .,\n") for formula in marked or UNMARKED.findall(question)]
    found = [part.strip() for formula in whole for part in (formula, *re.split("=", formula)) if part.strip()]
    return list(dict.fromkeys(found))


def paying(questions, with_question: bool) -> dict[str, list[str]]:
    """Question -> its formulas that earn the reward."""
    copies = [
        (question, formula)
        for question in questions
        for formula in formulas(question.text)
        if canonical(formula) != canonical(question.reference)
        and (re.search("frac|/", formula) or not number(tidy(formula)))
    ]
    grades = verify.grade_batch(
        [rf"\boxed{{{formula}}}" for _, formula in copies],
        [question.reference for question, _ in copies],
        [question.text for question, _ in copies] if with_question else None,
    )
    paid: dict[str, list[str]] = {}
    for (question, formula), grade in zip(copies, grades, strict=True):
        if grade.reward:
            paid.setdefault(question.text, []).append(f"{formula}  for  {question.reference}")
    return paid


def main() -> None:
    for name in sys.argv[1:] or [str(ROOT / "tiny" / file) for file in ("train.jsonl", "hard.jsonl", "ood.jsonl")]:
        questions = load_questions(name)
        for with_question in (False, True):
            paid = paying(questions, with_question)
            how = "graded with the question" if with_question else "graded alone"
            print(f"{Path(name).name}: {len(paid)} of {len(questions)} questions pay for a copy, {how}")
            for formula in [formula for formulas in paid.values() for formula in formulas][:20]:
                print("   ", formula)


if __name__ == "__main__":
    main()
