r"""How fast are rewards? `grade_batch` against math-verify on each response, on one training step's worth of responses.

    python lab/verify_speed.py            # about 3 min

The mix is that of a training step: 128 questions, 6 rollouts each; 60 % plain numbers, 25 % fractions and simple LaTeX,
10 % expressions, 5 % junk and very long text. Right and wrong answers are mixed, and rollouts of one question often
agree, as they do in training. Measured without the junk and with it (math-verify spends most of its time there), and
then on what is symbolic only: each answer with a reference of its own, and groups of eight different answers to one
reference. math-verify gets the boxed answer and the reference in `$...$`, in this process and without its timer, which
is its fastest way. Prints the seconds of each, their ratio, and every pair on which the two verdicts differ.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import math_verify  # noqa: E402

import verify  # noqa: E402

QUESTIONS, ROLLOUTS = 128, 6


def number_answers(rng: random.Random) -> tuple[str, list[str]]:
    """(reference, ways to write it right and wrong answers)"""
    n = rng.choice([rng.randrange(100), rng.randrange(-50, 1000), rng.randrange(1000, 10**6)])
    right = [str(n), str(n), f"{n:,}", f"{n}.0"]
    wrong = [str(n + 1), str(-n - 1), str(n * 2 + 3), f"{n + 0.5}"]
    return str(n), right + wrong


def simple_latex_answers(rng: random.Random) -> tuple[str, list[str]]:
    a, b, c = rng.randrange(1, 30), rng.randrange(2, 30), rng.choice([2, 3, 5, 7, 11])
    fraction = rf"\frac{{{a}}}{{{b}}}"
    return rng.choice(
        [
            (fraction, [fraction, fraction.replace("frac", "dfrac"), f"{a}/{b}", rf"\frac{{{a + 1}}}{{{b}}}"]),
            (fraction, [fraction.replace("frac", "tfrac"), rf"\frac{{{2 * a}}}{{{2 * b}}}", "-" + fraction]),
            (rf"{a}\%", [rf"{a}\%", f"{a}", rf"{a + 2}\%"]),
            (rf"{a}^\circ", [rf"{a}^\circ", f"{a}", rf"{a + 5}^{{\circ}}"]),
            (rf"{a}\text{{ cm}}", [f"{a}", rf"{a}\text{{ cm}}", rf"{a + 1}\text{{ cm}}"]),
            (rf"{a}\sqrt{{{c}}}", [rf"{a}\sqrt{{{c}}}", rf"{a}\sqrt{{{c}}}", rf"{a + 1}\sqrt{{{c}}}"]),
            (f"({a},{b})", [f"({a}, {b})", rf"\left({a},{b}\right)", f"({b + 31},{a})"]),
            (r"\text{(B)}", ["B", r"\text{B}", "C", "(D)"]),
        ]
    )


def expression_answers(rng: random.Random) -> tuple[str, list[str]]:
    a, b = rng.randrange(1, 9), rng.randrange(1, 9)
    radical = rf"\frac{{{a}\sqrt{{3}}}}{{3}}"
    return rng.choice(
        [
            (f"x^2+{a + b}x+{a * b}", [f"(x+{a})(x+{b})", f"x^2+{a + b}x+{a * b}", f"x^2+{a + b}x-{a * b}"]),
            (rf"[{-a},{b}) \cup ({b},\infty)", [rf"[{-a},{b})\cup({b},\infty)", rf"[{-a},\infty)"]),
            (radical, [rf"\frac{{{a}}}{{\sqrt{{3}}}}", radical, rf"{a}\sqrt{{3}}"]),
            (rf"{a}\pi+{b}", [rf"{b}+{a}\pi", rf"{a}\pi+{b}", rf"{a}\pi-{b}"]),
        ]
    )


def junk_answers(rng: random.Random) -> tuple[str, list[str]]:
    junk = ["", "I do not know", "x" * 200, r"\frac{1}{", "the the the " * 2_000, "1" * 3_000, "(((((", r"\sqrt{\sqrt{"]
    return str(rng.randrange(1000)), [rng.choice(junk) for _ in range(3)]


KINDS = {number_answers: 60, simple_latex_answers: 25, expression_answers: 10, junk_answers: 5}


def make_batch(seed: int, junk: bool) -> tuple[list[str], list[str]]:
    """768 responses and their references, fewer without the junk."""
    rng = random.Random(seed)
    responses, references = [], []
    for kind in rng.choices(list(KINDS), list(KINDS.values()), k=QUESTIONS):
        reference, answers = kind(rng)
        reasoning = "First, note that $x = 3 + 4$ and so on. " * rng.randrange(5, 60)
        chosen = rng.choices(answers, k=ROLLOUTS)
        if junk or kind is not junk_answers:
            responses += [reasoning + rf"Therefore the answer is $\boxed{{{answer}}}$." for answer in chosen]
            references += [reference] * ROLLOUTS
    return responses, references


def make_symbolic(seed: int, group: int) -> tuple[list[str], list[str]]:
    """240 answers that no text and no fraction decides, `group` different ones to each reference."""
    rng = random.Random(seed)
    responses, references = [], []
    while len(responses) < 240:
        a, b, c, d = (rng.randrange(2, 40) for _ in range(4))
        expanded = f"{a}x^2+{a * b + c}x+{b * c}"
        rewritten = [
            f"({a}x+{c})(x+{b})",
            f"(x+{b})({a}x+{c})",
            f"{b * c}+{a * b + c}x+{a}x^2",
            f"{a}x(x+{b})+{c}(x+{b})",
        ]
        wrong = [f"({a}x+{c})(x-{b})", f"{a}x^2+{b * c}", rf"\frac{{{a}}}{{x+{b}}}", rf"{a}x^2+\sqrt{{{d}}}x+{b * c}"]
        answers = rng.sample(rewritten + wrong, group)
        responses += [rf"\boxed{{{answer}}}" for answer in answers]
        references += [expanded] * group
    return responses, references


def by_math_verify(answer: str | None, reference: str) -> bool:
    if answer is None:
        return False
    gold, target = (math_verify.parse(f"${text}$", parsing_timeout=None) for text in (reference, answer))
    return math_verify.verify(gold, target, timeout_seconds=None)


def measure(name: str, batches: list[tuple[list[str], list[str]]]) -> None:
    ours = theirs = count = 0.0
    for responses, references in batches:
        start = time.perf_counter()
        grades = verify.grade_batch(responses, references)
        ours += time.perf_counter() - start
        start = time.perf_counter()
        pairs = zip(responses, references, strict=True)
        verdicts = [by_math_verify(verify.extract_boxed(response), reference) for response, reference in pairs]
        theirs += time.perf_counter() - start
        count += len(grades)
        for grade, reference, verdict in zip(grades, references, verdicts, strict=True):
            if grade.correct != verdict:
                print(f"differ: {grade.extracted[:60]!r} for {reference!r}: {grade.correct}, math-verify {verdict}")
    seconds = f"grade_batch {ours:.2f} s, math-verify {theirs:.2f} s"
    print(f"{name}: {count:.0f} responses, {seconds}: {theirs / ours:.1f} times as fast")


def main() -> None:
    logging.disable(logging.CRITICAL)
    responses, references = make_batch(seed=0, junk=False)
    measure("warm-up of both, does not count", [(responses[:200], references[:200]), make_symbolic(0, 8)])
    measure("a training step without junk", [make_batch(seed, junk=False) for seed in (1, 2, 3)])
    measure("a training step with 5 % junk", [make_batch(seed, junk=True) for seed in (4, 5, 6)])
    measure("symbolic, a reference each", [make_symbolic(7, 1)])
    measure("symbolic, groups of eight", [make_symbolic(8, 8)])


if __name__ == "__main__":
    main()
