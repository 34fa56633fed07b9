r"""How far to trust the verifier (docs/robustness.md): what it survives, what it pays for, how fast it is.

    python lab/checker.py fuzz                   # 100,000 inputs, seed 0
    python lab/checker.py fuzz --count 5000 --seed 7
    python lab/checker.py copies                 # the tiny world
    python lab/checker.py copies math500 mine.jsonl        # names and files as `--train-data` takes them
    python lab/checker.py speed                  # about 3 min

**fuzz**: grammar-made LaTeX, mutated answers and noise. For every input three things must hold: there is a verdict and
no exception, it comes within the time limit (plus the start of a new worker), and it is right where the right one is
known by construction: a wrong number in whatever layout never scores, the right one always does; a formula of chosen
numbers equals its rewritings and no formula of others; no text scores against a reference that cannot be parsed. An
input that breaks one of these is printed with its seed and belongs into tests/test_verify.py (`FOUND`). Most inputs are
decided without a worker. So that the run ends, at most one input in `--worker-every` of the rest is sent to one, and
the others are only parsed up to its door.

**copies**: what does a policy earn that only copies? Every formula of a question (in dollar signs or brackets; without
any, each run of digits and signs) is boxed as it stands and graded, once without the question and once with it. What is
the reference's own text does not count, nor do plain numbers other than fractions: that a question names its answer is
for the question to decide. Prints the share of questions that pay for one of their own formulas, and what paid.

**speed**: `grade_batch` against math-verify on each response. The mix is that of a training step: 128 questions, 6
rollouts each; 60 % plain numbers, 25 % fractions and simple LaTeX, 10 % expressions, 5 % junk and very long text. Right
and wrong answers are mixed, and rollouts of one question often agree, as they do in training. Measured without the junk
and with it (math-verify spends most of its time there), and then on what is symbolic only: each answer with a reference
of its own, and groups of eight different answers to one reference. math-verify gets the boxed answer and the reference
in `$...$`, in this process and without its timer, which is its fastest way. Prints the seconds of each, their ratio,
and every pair on which the two verdicts differ.
"""

from __future__ import annotations

import argparse
import collections
import logging
import random
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import math_verify  # noqa: E402

import verify  # noqa: E402
from support.answers import sandbox  # noqa: E402
from support.answers.equivalence import number  # noqa: E402
from support.answers.latex import canonical, tidy  # noqa: E402
from support.data import load_questions  # noqa: E402

# ----------------------------------------------------------------------------------------------------------------- fuzz

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


def fuzz(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="lab/checker.py fuzz")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker-every", type=int, default=50)
    args = parser.parse_args(arguments)
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
        if seconds > 20 * sandbox.TIME_LIMIT + 10:
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


# --------------------------------------------------------------------------------------------------------------- copies

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


def copies(names: list[str]) -> None:
    for name in names or [str(ROOT / "tiny" / file) for file in ("train.jsonl", "hard.jsonl", "ood.jsonl")]:
        questions = load_questions(name)
        for with_question in (False, True):
            paid = paying(questions, with_question)
            how = "graded with the question" if with_question else "graded alone"
            print(f"{Path(name).name}: {len(paid)} of {len(questions)} questions pay for a copy, {how}")
            for formula in [formula for formulas in paid.values() for formula in formulas][:20]:
                print("   ", formula)


# ---------------------------------------------------------------------------------------------------------------- speed

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


def speed(_: list[str]) -> None:
    logging.disable(logging.CRITICAL)
    responses, references = make_batch(seed=0, junk=False)
    measure("warm-up of both, does not count", [(responses[:200], references[:200]), make_symbolic(0, 8)])
    measure("a training step without junk", [make_batch(seed, junk=False) for seed in (1, 2, 3)])
    measure("a training step with 5 % junk", [make_batch(seed, junk=True) for seed in (4, 5, 6)])
    measure("symbolic, a reference each", [make_symbolic(7, 1)])
    measure("symbolic, groups of eight", [make_symbolic(8, 8)])


COMMANDS = {"fuzz": fuzz, "copies": copies, "speed": speed}

if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    COMMANDS[sys.argv[1]](sys.argv[2:])
