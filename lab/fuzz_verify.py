r"""Fuzz the answer checker: grammar-made LaTeX, mutated answers and noise.

    python lab/fuzz_verify.py                    # 100,000 inputs, seed 0
    python lab/fuzz_verify.py --count 5000 --seed 7

For every input three things must hold: there is a verdict and no exception, it comes within the time limit (plus the
start of a new worker), and it is right where the right one is known by construction: a wrong number in whatever layout
never scores, the right one always does; a formula of chosen numbers equals its rewritings and no formula of others; no
text scores against a reference that cannot be parsed. An input that breaks one of these is printed with its seed and
belongs into tests/test_verify.py (`FOUND`).

Most inputs are decided without a worker. So that the run ends, at most one input in `--worker-every` of the rest is
sent to one, and the others are only parsed up to its door.
"""

from __future__ import annotations

import argparse
import collections
import random
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import verify  # noqa: E402
from support.answers import sandbox  # noqa: E402

ATOMS = r"0 1 2 12 -3 0.5 10^{3} x y n i e I X \pi \infty \alpha \gamma \Theta ½ ９ ２x 1e-5 204_5 2–3 0.333…".split(
    " "
)
ATOMS += ["", r"\text{no solution}", "all real numbers", r"\varnothing", "HTH", "3:30 a.m.", r"x\text{-axis}", "f(x)"]
TEMPLATES = r"""\frac{A}{B};\sqrt{A};\sqrt[3]{A};A+B;A-B;A \cdot B;A^{B};A_{B};(A,B);[A,B);\{A,B\};A=B;A \le B;A, B;|A|
A \cup B;A!;A\%;A^\circ;A:B;\left(A\right);A\text{ or }B;A\text{ cm};$A$;\boxed{A};\log_{A} B;\sin A;\sum_{n=A}^{B} n
A B;A \pm B;\begin{pmatrix}A\\B\end{pmatrix};\int_A^B x dx;\binom{A}{B};x=A,y=B;\overline{A};\frac{A\pm B}{2};A'
A \bmod B = 2;z=A+Bi;f(x)=A;\approx A;A \tag{1};A\\;(C) A;\textcolor{red}{A};\bm{A};A, n\in\mathbb Z;A**B;A*B
\begin{cases}A & \text{if } B\\B & A\end{cases};\lim_{x\to A} B;\det A;\gcd(A,B);\frac{d}{dx}A;x<A \text{ or } x>B
\sin A^\circ;A^T;|A|<B;A^2-B\ge0;\text{sin}(A);ln(A);k_{\mathrm A};\\frac{A}{B};<think>A</think>B;A \in B;A, B, A"""
TEMPLATES = TEMPLATES.replace("\n", ";").split(";")
NOISE = list("{}[]()$\\^_%&#~,.;:!?|/*+-=<>' \"\n\t\x00\u202e\u200b\ud800٣①")
NOISE += ["\\\\", "\\" * 60 + "!", r"\boxed{", r"\text{", r"\frac", "10" * 40]
WRAPS = r"A;$A$;$$A$$;\(A\);\[ A \];\boxed{A};\left(A\right);\,A\,;A.".split(";")
UNITS = [r"\text{ cm}", r"^\circ", r"\text{ m/s}^2", " miles per hour", r"\text{ apples}"]
UNPARSEABLE = [r"\frac{1}{", "", "$$", r"\left(", r"\text{}"]


def expression(rng: random.Random, depth: int = 3) -> str:
    if depth == 0 or rng.random() < 0.25:
        return rng.choice(ATOMS)
    text = rng.choice(TEMPLATES)
    return text.replace("A", expression(rng, depth - 1), 1).replace("B", expression(rng, depth - 1), 1)


def mutate(rng: random.Random, text: str) -> str:
    for _ in range(rng.randrange(1, 5)):
        i, j = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        middle = rng.choice(["", rng.choice(NOISE) + text[i:j], text[i:j] * 2])
        text = text[:i] + middle + text[j:]
    return text


def spell(rng: random.Random, n: int, unit: str) -> str:
    """The integer n in one of many layouts, without any unit or with this one: 5 degrees are not 5 cm."""
    text = rng.choice([str(n), f"{n:,}", f"{n}.0", f"{n}.", rf"\frac{{{n * 3}}}{{3}}", f"{n * 7}/7", f"{n * 10}e-1"])
    wraps = [wrap for wrap in WRAPS if not ("," in text and "(A" in wrap)]  # (1,000) is a point
    return rng.choice([*wraps, "A" + unit]).replace("A", text)


FORMULAS = {  # formula of A, B and C -> other ways to write it; no other numbers make the same formula
    "Ax^2+Bx+C": ["C+Bx+Ax^2", "x(Ax+B)+C", r"f(x)=A x^2 + Bx + C", r"A*x**2+B*x+C", r"Ax^{2}+\frac{2\cdot Bx}{2}+C"],
    "(A,B,C)": [r"\left(A, B,\,C\right)", "x=A, y=B, z=C", "z=C, x=A, y=B"],
    "z=A+Bi": ["A+Bi", "Bi+A", r"A+B\mathrm{i}"],
    r"\{A,1B,2C\}": ["2C, A, 1B", "A;1B;2C", r"x=A \text{ or } x=1B \text{ or } x=2C"],
    r"\frac{A\pm\sqrt{BC}}{7}": [r"\frac{A}{7}\pm\frac{\sqrt{BC}}{7}", r"\frac{A+\sqrt{BC}}{7}, \frac{A-\sqrt{BC}}{7}"],
    "x<-A \\text{ or } x>BC": [r"(-\infty,-A)\cup(BC,\infty)", "-A>x or BC<x"],
    "A-2^{-9B}": [r"A-\frac{1}{2^{9B}}", r"A - \left(\frac12\right)^{9B}"],
    r"A\sin(B^\circ)+C": [r"C+A\cos(90^\circ-B^\circ)"],
}


def known_formulas(rng: random.Random) -> tuple[str, str, bool]:
    """Two formulas, the same numbers in them or not."""
    formula = rng.choice(list(FORMULAS))
    digits, others = ([str(rng.randrange(2, 10)) for _ in "ABC"] for _ in range(2))
    others = rng.choice([digits, others])
    used = [digit for name, digit in zip("ABC", digits, strict=True) if name in formula]
    right = used == [digit for name, digit in zip("ABC", others, strict=True) if name in formula]
    texts = []
    for text, numbers in ((rng.choice(FORMULAS[formula]), digits), (formula, others)):
        texts.append(re.sub("[ABC]", lambda name, numbers=numbers: numbers["ABC".index(name[0])], text))
    return *texts, right


def make_input(rng: random.Random) -> tuple[str, str, bool | None]:
    """(predicted, reference, the right verdict if known)"""
    kind = rng.random()
    if kind < 0.1:
        return known_formulas(rng)
    if kind < 0.4:
        n = rng.choice([rng.randrange(-99, 100), rng.randrange(10**6), rng.randrange(10**20)])
        m = rng.choice([n, n, n + 1, -n, n * 10, n + 10 ** rng.randrange(20), int(str(abs(n))[::-1])])
        unit = rng.choice(UNITS)
        return spell(rng, n, unit), spell(rng, m, unit), n == m
    if kind < 0.5:
        return mutate(rng, expression(rng)), rng.choice(UNPARSEABLE), False
    if kind < 0.8:
        return mutate(rng, expression(rng)), rng.choice(["5", "x+1", r"\frac{1}{7}", r"\text{yes}", "(1,2)"]), None
    return expression(rng), expression(rng), None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker-every", type=int, default=50)
    args = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    ask, slowest = sandbox.ask, 0.0

    def sometimes(questions: list) -> list[bool]:
        counts["reached the worker's door"] += len(questions)
        if not questions or counts["reached the worker's door"] % args.worker_every and not known:
            return [False] * len(questions)
        counts["sent to the worker"] += len(questions)
        verdicts = ask(questions)
        workers.update(worker.pid for worker in sandbox._pool.idle)
        return verdicts

    sandbox.ask, workers = sometimes, set()
    for seed in range(args.seed * 10**9, args.seed * 10**9 + args.count):
        predicted, reference, right = make_input(random.Random(seed))
        known = right is not None and re.search("[a-z]", reference)  # of a formula the worker's verdict is to be known
        doors = counts["sent to the worker"], counts["reached the worker's door"]
        start = time.monotonic()
        try:
            verdict = verify.equivalent(predicted, reference)
            grade = verify.grade(rf"\boxed{{{predicted}}}", reference)
        except Exception as error:
            counts["exceptions"] += 1
            print(f"seed {seed}: {error!r} on {predicted!r}, {reference!r}")
            continue
        seconds = time.monotonic() - start
        if doors[0] == counts["sent to the worker"]:
            slowest = max(slowest, seconds)
        counts["right" if verdict else "wrong"] += 1
        decided = doors == (counts["sent to the worker"], counts["reached the worker's door"])
        if seconds > 2 * sandbox.PATIENCE * sandbox.TIME_LIMIT + 10:
            counts["too slow"] += 1
            print(f"seed {seed}: {seconds:.1f} s on {predicted!r}, {reference!r}")
        empty = predicted.strip() == reference.strip()
        if right is not None and not empty and (verdict and not right or right and (decided or known) and not verdict):
            counts["false verdicts"] += 1
            print(f"seed {seed}: {verdict} on {predicted!r}, {reference!r}")
        if grade.reward and right is False and grade.extracted != reference.strip():
            counts["false rewards"] += 1
            print(f"seed {seed}: rewarded {predicted!r}, {reference!r}")
    print(f"{args.count} inputs, seed {args.seed}:", dict(counts), f"workers used: {len(workers)}")
    print(f"slowest verdict without the worker: {1000 * slowest:.1f} ms")
    if counts["exceptions"] or counts["too slow"] or counts["false verdicts"] or counts["false rewards"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
