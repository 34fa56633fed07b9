"""verify.py: what is right, what is wrong, and what must never hang, crash or be rewarded; and its sandbox."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

import verify
from support.answers import latex, sandbox, symbolic
from verify import Grade, equivalent, extract_boxed, feedback, grade, grade_batch, unparseable

DATA = Path(__file__).parent / "data"
CASES = [json.loads(line) for line in (DATA / "verify_cases.jsonl").read_text().splitlines()]
# Our own: answer, reference, "same" or "different", why
PAIRS = [line.split("\t") for line in (DATA / "verify_pairs.tsv").read_text("utf-8").split("\n")[1:-1]]

# Public cases whose labels we do not follow: (response, reference, their label, why).
REJECTED = [
    ("Answer $ \n 9 \n $", "$9$", False, "tests an extractor without plain numbers; the answer is 9"),
    ("Answer \\( \n 9 \n \\)", "$9$", False, "the same with other delimiters"),
    (r"$\begin{pmatrix}0.33\\0.2 \end{pmatrix}$", r"$(\begin{pmatrix}\frac{1}{3}\\ \frac{1}{5} \end{pmatrix})$", True,
     "tests rounding to 2 decimals; 0.33 is not 1/3"),
    ("$(0.6,2.6667]$", r"$(\frac{3}{5},\frac{8}{3}]$", True, "tests rounding to 4 decimals; 2.6667 is not 8/3"),
    (r"$-2 \\le x \\le 7$", r"$x \in [-2,7]$", False, "the same pair is also labelled right; they are one set"),
]  # fmt: skip

# Pairs that say the same, either way round and boxed or not.
SAME = r"""
    \sqrt2 | 1.414214                (x+1)y-xy-y+z | z               2a=b+1=c | c=2a
    (\sqrt2+\sqrt3)^2-5-2\sqrt6 | 0  (x=1,y=2) | (1,2)              (C) 12 | C                  c. 3 | C
    0.333333 | 0.3333333333         no | No                          2.0000005 | 2.000001       0.1666\ldots | 1/6
    2a=b+1=2b=c | c=2a              x>1,x<2 | (1,2)                  1<x<y+y | 1<x<2y           x\ne y | 2y\ne 2x
    x^2<1 | |x|<1                   x=\frac13\approx 0.33 | \frac13                            5\pmod{7} | 5
    x<1\text{ or }2 | x<1\text{ or }\sqrt4                           \frac{2}{101x-64} | \frac{4}{202x-128}
    5 | 5.0                         007 | 7                          +5 | 5                     .5 | 0.5
    1000000 | 1,000,000             1{,}000 | 1000                   9 999 | 9999               12,\!345 | 12345
    \frac{1}{2} | 0.5               \frac12 | 1/2                    \frac{-1}{2} | -\frac12    -\frac{-1}{2} | 0.5
    1\frac{1}{2} | 3/2              1 1/2 | 1.5                      -1\frac{1}{2} | -1.5       2\dfrac{3}{4} | 2.75
    0.\overline{3} | 1/3            0.1\overline{6} | \frac16        1/3 | 0.333333             2/3 | 0.6666667
    \frac{1}{81} | 0.0123457
    50\% | 50                       50\% | 0.5                       50\% | \frac12             28.5\% | 0.285
    28 percent | 28\%               5\text{ cm} | 5                  5 cm | 5                   5 apples | 5
    15\mbox{ cm}^2 | 15             5\,\mathrm{m}/\mathrm{s} | 5     90^\circ | 90              \$5.00 | 5
    €5 | 5                          5\ \text{kg}\cdot\text{m} | 5    \frac{\pi}{3}\text{ rad} | \frac{\pi}{3}
    1e3 | 1000                      1.2\times10^3 | 1200             6.02\times 10^{23} | 602\cdot 10^{21}
    10^{-3} | 0.001                 2^{10} | 1024                    10! | 3628800              \binom{5}{2} | 10
    \sqrt{12} | 2\sqrt{3}           \frac{\sqrt3}{3} | \frac{1}{\sqrt3}        \sqrt2\cdot\sqrt3 | \sqrt6
    sqrt(2) | \sqrt{2}              \tfrac{3}{4}\pi | \frac{3\pi}{4}  \log_2 8 | 3               e^x | \exp(x)
    3+4i | 4i+3                     i^2 | -1                         \sqrt{-4} | 2i             (1+i)^2 | 2i
    x^2+2x+1 | (x+1)^2              \sin^2 x | 1-\cos^2 x            \frac{1}{x} | x^{-1}       2*x**2 | 2x^2
    y=2x+1 | 2x+1                   x=5 | 5                          x^2+y^2=1 | y^2+x^2=1      2x+4y-3=0 | 4x+8y=6
    x>1 | (1,\infty)                x\in[1,2] | 1\le x\le 2          [1,2] | 1\le x\le 2        -x>-1 | x<1
    (0,\frac12] | (0,0.5]           (-\infty,1)\cup(2,3) | (2,3)\cup(-\infty,1)                 [1,2]\cup[2,3] | [1,3]
    \{1,2,3\} | \{3,2,1\}           1,2,3 | 3,2,1                    6 and 8 | 8,6
    1\pm\sqrt2 | 1-\sqrt2,1+\sqrt2                                   \frac{1}{12} | 0.0833333333
    \{-2\} | -2                     \emptyset | \{\}                 1,2 | (1,2)                5 or 6 | 5,6
    (1, 2) | \left(1,2\right)       (1,2),(3,4) | (3,4),(1,2)        x=2,y=3 | (2,3)            x=2,y=3 | y=3,x=2
    x=-2\text{ or }x=3 | 3,-2       \begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{bmatrix}1&2\\3&4\end{bmatrix}
    \text{(C)} | C                  (c) | \textbf{C}                 \text{Evelyn} | evelyn.    Yes | \text{yes}
    7:32 | 7/32                     204_5 | 204_{5}                  1,22 | 1.22                1,22 | 22,1
    １２ | 12                       −5 | -5                          ∞ | \infty                 2π | 2\pi
    x≤2 | x\leq 2                   $5$ | \boxed{5}                  \(\boxed{\frac12}\) | 0.5  \displaystyle 5 | 5
"""

# Pairs that must not earn a reward, either way round.
DIFFERENT = r"""
    \frac{1}{81} | 0.0123452        \frac{1}{90} | 0.01111117        2.0000016 | 2.000001       2x=y<3 | 3=2x
    x_1=2,x_2=3 | (2,3)             A=\{1,2\} | B=\{1,2\}            \sqrt{4.0000001} | 2
    \frac{\sqrt2}{1000} | 0.001414206
    \sqrt2 | 1.414213                (x+1)y-xy-y+z | z+y
    5 | -5                          5 | 6                            0.5 | 0.05                 1000 | 10000
    \frac{1}{2} | \frac{2}{1}       1\frac{1}{2} | \frac{1}{2}       1 1/2 | 11/2               3 1/2 | 31/2
    1 2 | 12                        32, 349 | 32349                  32, 349 | 32,349           1/0 | \infty
    1/3 | 0.33                      1/3 | 0.33333                    2/3 | 0.67                 \frac{8}{3} | 2.6667
    \sqrt2 | 1.41                   \sqrt2 | 1.4142                  \pi | 3.14                 \pi | 22/7
    e | 2.718                       0.9999 | 1                       0.0000001 | 0.0000002      10^{-20} | 10^{-21}
    12345678901234567890 | 12345678901234567891                      12345678901234567890.5 | 12345678901234567890.6
    0.12345678901234567890 | 0.12345678901234567891                  10^{20} | 10^{20}+1
    \frac{12345678901234567890}{7} | \frac{12345678901234567891}{7}  x+12345678901234567890 | x+12345678901234567891
    \sqrt{12345678901234567890} | \sqrt{12345678901234567891}        12345678901234567890\pi | 12345678901234567891\pi
    \frac{\sqrt2}{10^{20}} | \frac{\sqrt3}{10^{20}}                  1.5\times10^{-20} | 1.6\times10^{-20}
    0.5\% | 50\%                    0.5\% | 50                       50\% | 0.05                5\text{ million} | 5
    5m | 5                          5 m | 5                          5x | 5                     3t | 3
    2x+3c | 2x+3                    x^2 h | x^2                      \frac{a}{b}c | \frac{a}{b} 3+4\text{i} | 3
    5\text{ or more} | 5            5\text{ or }6 | 6                5 or 6 | 6                 6 and 8 | 8
    2 hours 30 minutes | 2          2 hours 30 minutes | 30          5 cubed | 5                3 dozen | 3
    5 feet 3 inches | 5             5^\circ 30' | 5                  5\text{ cm} | -5           10:30 | 10:45
    204_5 | 204                     204_5 | 204_6                    204_5 | 54                 a_1 | a_2
    3+4i | 3-4i                     3+4i | 3+4j                      i | -i                     3+4i | 3
    n! | n                          f' | f                           -x | x                     |x| | x
    x^2+2x+1 | (x+1)^3              x^2+2x+1 | x^2+2x-1              a+b | a-b                  2^{n+1}-1 | 2^{n+1}+1
    x^2-1 | (x-1)^2                 \sin x | \cos x                  e^x | e^{-x}               \log_{10} 2 | \ln 2
    2\sqrt{3} | \sqrt{13}           1+\sqrt2 | 1-\sqrt2              1\pm\sqrt2 | 1+\sqrt2      \frac{\pi}{3} | \pi
    x=2 | x=3                       x=2 | y=2                        x^2=1 | x=1                x^2+y^2=1 | x^2+y^2=2
    x=x+1 | x=x+2                   x^2=-1 | x^2=-2                  x=2,y=3 | x=3,y=2          x=2,y=3 | (3,2)
    AB=4,CD=5 | 5,4                 7=11a+c | 11a                    x<1 | x>-1                 x>1 | x\ge 1
    x\ne 2 | x=2                    x\ne 2 | x\ne 3                  x>1 | [1,\infty)           1\le x\le 2 | [1,2)
    (1,2) | (2,1)                   (1,2,3) | (3,2,1)                (1,2,3) | (1,2)            (-1,2) | (1,2)
    (1,2),(3,4) | (2,1),(3,4)       (1,2),(3,4) | (1,2)              [1,2] | (1,2)              [1,2) | (1,2]
    (-\infty,1)\cup(2,3) | (-\infty,1)                               (-\infty,1)\cup(2,3) | (-\infty,1)\cup(2,3]
    \{1,2,3\} | \{1,2\}             1,2,3 | 1,2                      \{1,2\} | \{1,-2\}         -2,3 | -2
    \emptyset | 0                   \emptyset | \{0\}                \infty | -\infty           \{1\} | \{0\}
    1:2:3 | 3:2:1                   7:32 | 32:7                      0/0 | 1/0                  2x | x
    \begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{pmatrix}1&3\\2&4\end{pmatrix}
    \begin{pmatrix}1\\2\end{pmatrix} | \begin{pmatrix}1&2\end{pmatrix}
    A | B                           \text{(A)} | C                   AB | A                     \text{even} | odd
    listen | silent                 Yes | No                         Evelyn | Carla             thirteen | 13
    Monday, Tuesday | Tuesday, Monday                                \alpha | \beta             a | b
"""


def pairs(table: str) -> list[tuple[str, str]]:
    """Cells stand two or more spaces apart, the two sides of a cell on the sides of " | "."""
    cells = [cell for line in table.strip().splitlines() for cell in line.split("  ") if cell.strip()]
    return [tuple(side.strip() for side in cell.rsplit(" | ", 1)) for cell in cells]


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_public_cases():
    wrong = [case for case in CASES if equivalent(case[0], case[1]) != case[2]]
    assert len(CASES) == 244 and not wrong


def test_rejected_labels_are_still_rejected():
    assert [equivalent(response, reference) for response, reference, _, _ in REJECTED] == [
        not label for _, _, label, _ in REJECTED
    ]


@pytest.mark.parametrize(("one", "other"), pairs(SAME))
def test_same(one, other):
    assert equivalent(one, other) and equivalent(other, one)
    assert grade(rf"so \boxed{{{one}}}.", f"${other}$").reward == 1


@pytest.mark.parametrize(("one", "other"), pairs(DIFFERENT))
def test_different(one, other):
    assert not equivalent(one, other) and not equivalent(other, one)
    assert grade(rf"so \boxed{{{one}}}.", f"${other}$").reward == 0


def test_what_is_still_to_be_solved_answers_only_what_is_so_too():
    assert equivalent("x=9", r"\sqrt{x}=3") and not equivalent(r"\sqrt{x}=3", "x=9")
    assert equivalent("x>3", "3<x<2x-3") and not equivalent("3<x<2x-3", "x>3")
    assert equivalent("e^y=x", r"y=\ln x")  # this one has unknowns on either side


def test_labelled_pairs(monkeypatch):
    """Not one that differs is paid, and hardly one that is the same is not."""
    monkeypatch.setattr(sandbox, "WORKERS", 1)  # the one that is there is warm; how several share is sandbox's test
    assert len(PAIRS) >= 500 and len({(answer, reference) for answer, reference, *_ in PAIRS}) == len(PAIRS)
    grades = grade_batch([rf"\boxed{{{answer}}}" for answer, *_ in PAIRS], [reference for _, reference, *_ in PAIRS])
    missed = {"same": [], "different": []}
    for pair, result in zip(PAIRS, grades, strict=True):
        if result.correct != (pair[2] == "same"):
            missed[pair[2]].append(pair)
    assert not missed["different"]
    assert len(missed["same"]) <= 0.005 * sum(pair[2] == "same" for pair in PAIRS), missed["same"]


UNKNOWNS = [  # P, Q and R stand for letters of any name
    (r"\sqrt{\frac{P}{Q}}", r"\frac{\sqrt P}{\sqrt Q}", True),
    (r"\ln\frac{P}{QR}", r"\ln P - \ln Q - \ln R", True),
    (r"\sqrt{P^2-Q^2}", r"\sqrt{P-Q}\sqrt{P+Q}", True),
    (r"\log P^3", r"3 \log P", True),
    (r"P\sqrt{P}", r"\sqrt{P^3}", True),
    (r"|P-Q|", r"|Q-P|", True),
    (r"\sqrt{P^2 Q R}", r"P\sqrt{Q R}", False),
    (r"\sqrt{(P-Q)^2}", "P-Q", False),
    (r"|P-Q|", "P-Q", False),
    (r"\sqrt{\frac{P}{Q}}", r"\sqrt{\frac{Q}{P}}", False),
    (r"\ln(P+Q)", r"\ln P + \ln Q", False),
]


@pytest.mark.parametrize(("one", "other", "same"), UNKNOWNS)
def test_no_verdict_depends_on_the_names_of_letters(one, other, same):
    for names in itertools.permutations("bgx"):
        letters = str.maketrans("PQR", "".join(names))
        assert equivalent(one.translate(letters), other.translate(letters)) == same, names


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        (r"\$5\text{ million}", "5", False),
        (r"\$5\text{ million}", "5000000", True),
        (r"\$5\sqrt{2}", r"5\sqrt2", True),
        (r"\$5\text{ or }\$6", "6", False),
        (r"\$5 to \$6", "5", False),
        ("$5 million", "5", False),
        ("$5", "5", True),
    ],
)
def test_a_dollar_sign_that_is_money_opens_no_formula(answer, reference, same):
    assert equivalent(answer, reference) == same
    assert grade(rf"\boxed{{{answer}}}", reference).correct == same


@pytest.mark.parametrize(
    ("answer", "question"),
    [
        (r"\text{B. Mercury}", "Which planet is nearest to the sun?\nA. Venus\nB. Mercury\nC. Earth"),
        ("(B) 11", "Which number is prime?\n(A) 10  (B) 11  (C) 12"),
        ("B: 11", "Which number is prime?\nA: 10\nB: 11"),
        (r"\textbf{(B)}\ x+1", r"Which divides $x^2-1$? $\textbf{(A)}\ x+2$ $\textbf{(B)}\ x+1$"),
    ],
)
def test_a_choice_with_its_text_is_no_copy(answer, question):
    assert grade(rf"\boxed{{{answer}}}", "B", question).reward == 1
    assert grade(rf"\boxed{{{answer}}}", "C", question).reward == 0


@pytest.mark.parametrize(
    ("answer", "reference", "question", "right"),
    [
        ("11", "B", "Which number is prime?\n(A) 10  (B) 11  (C) 12", True),
        ("B", "11", "Which number is prime?\n(A) 10  (B) 11  (C) 12", True),
        ("12", "B", "Which number is prime?\n(A) 10  (B) 11  (C) 12", False),
        ("C", "11", "Which number is prime?\n(A) 10  (B) 11  (C) 12", False),
        ("11, 12", "B", "Which number is prime?\n(A) 10  (B) 11  (C) 12", False),
        (r"\text{Mercury}", "B", "Which planet is nearest to the sun?\nA. Venus\nB. Mercury\nC. Earth", True),
        (r"\text{Venus}", "B", "Which planet is nearest to the sun?\nA. Venus\nB. Mercury\nC. Earth", False),
        ("x+1", "B", r"Which divides $x^2-1$? $\textbf{(A)}\ x+2$ $\textbf{(B)}\ x+1$", True),
        ("11", "B", "Which number is prime? One of (B) and (C).", False),  # no list of options
    ],
)
def test_the_text_of_an_option_is_its_letter(answer, reference, question, right):
    assert grade(rf"\boxed{{{answer}}}", reference, question).reward == right


@pytest.mark.parametrize(("rule", "example"), symbolic.RULES, ids=lambda value: getattr(value, "__name__", ""))
def test_each_rule_decides_its_example(rule, example):
    answer, reference = map(symbolic.parse, example.split(" | "))
    assert rule(answer, reference) and symbolic.same(*example.split(" | "))
    assert [other.__name__ for other, _ in symbolic.RULES if other(answer, reference) is not None][0] == rule.__name__


def test_each_rewriting_rule_changes_its_example():
    assert not [row for row in latex.LAYOUT + latex.SPELLING if row[2] == row[3]]


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("Answer: $x=5$", "5"),
        ("So the area is 12 square metres.", "12"),
        ("First 3, then 4. Final Answer: The final answer is $7$. I hope it is correct.", "7"),
        (r"We get \boxed{3}, that is, three of the 4 apples.", "3"),
        (r"\boxed{1}, \boxed{2}", "1,2"),
    ],
)
def test_equivalent_finds_the_answer_in_a_text(text, reference):
    assert equivalent(text, reference) and not equivalent(text, "11")


@pytest.mark.parametrize(
    ("between", "one_list"),
    [(" " * 9, True), (" " * 10, False), ("," + " " * 68, True), ("," + " " * 69, False), (" " * 30 + "or  ", True)],
)
def test_boxes_close_together_or_joined_by_a_word_are_one_answer(between, one_list):
    text = rf"\boxed{{1}}{between}\boxed{{2}}"
    assert equivalent("1, 2", text) == one_list and equivalent("2", text) != one_list


# --- references nobody can parse --------------------------------------------------------------------------------------

GARBAGE = ["", " ", "$$", r"\boxed{}", r"\frac{1}{", "{", "???", r"\left(", "\x00", "^", r"\text{}"]


@pytest.mark.parametrize("reference", GARBAGE)
def test_garbage_reference_is_matched_by_its_own_text_only(reference):
    for answer in ["", "0", "1", "5", "x", "{", "}", "?", r"\frac{1}{2}", "None", "nan", "[]", r"\emptyset", "True"]:
        if answer != reference:
            assert not equivalent(answer, reference)
            assert grade(rf"\boxed{{{answer}}}", reference).reward == 0


@pytest.mark.parametrize("hostile, harmless", [("x+\x1f1", "x+1"), ("x+" + " " * 2001 + "1", "x+1")])
def test_what_no_answer_holds_is_wrong_on_either_side(hostile, harmless):
    """A control character, and more than MAX_ANSWER characters: both would be tidied away."""
    assert not grade(rf"\boxed{{{hostile}}}", harmless).reward and not grade(rf"\boxed{{{harmless}}}", hostile).reward


def test_an_empty_answer_is_never_right():
    for nothing in ["", " ", "$$", r"\boxed{}", r"\text{}", "{}"]:
        assert grade(rf"\boxed{{{nothing}}}", nothing).reward == 0


def test_unparseable():
    good = ["12", "x+1", r"\text{Evelyn}", "(C)", r"\sqrt{2}", r"[1,\infty)", r"\{1,2\}", "$90^\\circ$", "x=1"]
    assert unparseable(good + GARBAGE + good) == list(range(len(good), len(good) + len(GARBAGE)))
    assert equivalent(r"\frac{1}{", r"\frac{1}{")  # the same text


# --- extraction, grades, feedback -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"\boxed{ \frac{1}{2} }", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ x : x > 1 \right.}", r"\left\{ x : x > 1 \right."),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{ \boxed{5}", "5"),
        (r"} \boxed{5} {", "5"),
        (r"put it in \boxed{}: \boxed{5}", "5"),
        (r"\\boxed{5}", "5"),
        (r"\\\boxed{5}", "5"),
        (r"\boxed{5", None),
        (r"\boxed{}", None),
        (r"boxed{5}", None),
        ("5", None),
        ("", None),
    ],
)
def test_extract_boxed(response, answer):
    assert extract_boxed(response) == answer


def test_grade_wants_exactly_one_box():
    assert grade(r"\boxed{4}", "4") == Grade(1.0, True, True, "4")
    assert grade(r"\boxed{4} \boxed{4}", "4") == Grade(0.0, True, False, "4")
    assert grade(r"\boxed{4} \boxed{5}", "4") == Grade(0.0, False, False, "5")
    assert grade(r"\boxed{\boxed{4}}", "4") == Grade(1.0, True, True, r"\boxed{4}")
    assert grade("4", "4") == Grade(0.0, False, False, None)
    assert grade(r"The answer is 4. \boxed{5}", "4").reward == 0


def test_thinking_is_no_answer():
    assert grade(r"<think>\boxed{3}? \boxed{answer}</think> So \boxed{4}.", "4") == Grade(1.0, True, True, "4")
    assert grade(r"perhaps \boxed{3}</think> \boxed{4}", "4").reward == 1  # the opening tag stood in the prompt
    assert grade(r"<think>\boxed{4}</think> It is 4.", "4") == Grade(0.0, False, False, None)
    assert grade(r"<think>it is \boxed{4}", "4") == Grade(0.0, False, False, None)
    assert grade(r"\boxed{4} <think>or", "4").reward == 0
    assert extract_boxed(r"<think>\boxed{1}</think>\boxed{2}<think>\boxed{3}</think>\boxed{4}") == "4"


def test_grade_batch_asks_once_about_answers_that_differ_in_layout(monkeypatch):
    asked = []
    monkeypatch.setattr(sandbox, "ask", lambda questions: asked.extend(questions) or [True] * len(questions))
    answers = ["x+x", "x + x", "$x+x$", r"x\,+\,x", "x+x+0", "2", "2x"]
    grades = grade_batch([rf"\boxed{{{answer}}}" for answer in answers] + ["x+x"], ["2x"] * 8)
    assert sorted(asked) == [("2", "2x"), ("x+x", "2x"), ("x+x+0", "2x")]
    assert [g.reward for g in grades] == [1] * 7 + [0]
    with pytest.raises(ValueError):
        grade_batch(["a"], ["a", "b"])


@pytest.mark.parametrize(
    ("answer", "reference", "question", "copied"),
    [
        (r"17 \cdot 3", "51", r"Compute $17\cdot 3$.", True),
        ("(x+1)(x+2)", "x^2+3x+2", "Expand $(x+1)(x+2)$.", True),
        ("2x>4", "x>2", "Solve $2x > 4$.", True),
        ("(x+2)(x+1)", "x^2+3x+2", "Expand $(x+1)(x+2)$.", True),
        (r"\log_2 (8)", "3", r"Find \(\log_2 8\).", True),
        ("25+17", "42", "What is 17 + 25?", True),
        ("6/8", r"\frac34", r"Reduce $\frac{6}{8}$.", True),
        ("3, 1, 2", "1, 2, 3", "Sort 3, 1, 2.", True),
        ("3, 1, 2", "3,1,2", "Is 3, 1, 2 sorted so that 3 is first?", False),
        ("6+5x+x^2", "(x+2)(x+3)", "Factor $x^2+5x+6$.", True),
        ("(5,3)", r"\{x=5,y=3\}", "Reflect $(3,6)$.", False),
        ("51", "51", r"Compute $17\cdot 3$, which is 51.", False),
        ("0.5", r"\frac12", "Write $0.5$ as a fraction.", False),  # plain numbers stand in many questions
        ("x+1", "1+x", "Divide $x^2-1$ by $x-1$; compare with $x+1$.", False),
        ("x+1", "1+x", "Compare with $2x+1$.", False),
        ("2x+2", "2(x+1)", "Expand $12x+2$.", False),  # part of another formula
        (r"\frac{17\cdot 3}{1}", "51", r"Compute $17\cdot 3$.", False),
    ],
)
def test_what_is_copied_from_the_question_earns_nothing(answer, reference, question, copied):
    response = rf"\boxed{{{answer}}}"
    assert grade(response, reference).reward == 1
    assert grade(response, reference, question).correct != copied
    assert [g.reward for g in grade_batch([response, "x"], [reference, "1"], [question, ""])] == [
        float(not copied),
        0.0,
    ]


def test_feedback():
    assert feedback(grade(r"\boxed{4}", "4"), "4") == "The answer 4 is right."
    assert feedback(grade(r"\boxed{3}", "4"), "4") == "The answer 3 is wrong. The right answer is 4."
    assert feedback(grade("3", "4"), "4") == "There is no boxed answer. The right answer is 4."
    several = "There are several boxed answers, and only one is allowed. The right answer is 4."
    assert feedback(grade(r"\boxed{3}\boxed{4}", "4"), "4") == several
    assert feedback(grade(r"\boxed{4}\boxed{4}", "4"), "4", truncated=True) == several
    cut = "The response was cut off before a boxed answer. The right answer is 4."
    assert feedback(grade(r"\boxed{4", "4"), "4", truncated=True) == cut
    assert feedback(grade(r"\boxed{{0.__class__}%s}", "{x}%d"), "{x}%d").endswith("The right answer is {x}%d.")


def test_what_is_used_from_outside_has_an_example():
    for function in (extract_boxed, equivalent, grade, grade_batch, unparseable, feedback):
        assert ">>>" in function.__doc__


# --- properties -------------------------------------------------------------------------------------------------------

integers = st.integers(-(10**24), 10**24)


@given(integers, st.integers(-3, 3))
def test_integers(n, d):
    for text in (str(n), f"{n:,}", f"{n}.0", f"${n}$", rf"{n}\text{{ cm}}", rf"\frac{{{2 * n}}}{{2}}"):
        assert equivalent(text, str(n + d)) == (d == 0)


@given(integers, st.integers(1, 10**12), integers, st.integers(1, 10**12))
def test_fractions(a, b, c, d):
    same = Fraction(a, b) == Fraction(c, d)
    assert equivalent(rf"\frac{{{a}}}{{{b}}}", f"{c}/{d}") == same
    assert equivalent(rf"\dfrac{{{a * d}}}{{{b * d}}}", f"{a}/{b}")


@given(st.decimals(-(10**9), 10**9, places=4), st.decimals(-(10**9), 10**9, places=4))
def test_decimals(a, b):
    assert equivalent(str(a), str(b)) == (a == b)
    assert equivalent(str(Fraction(a)), format(a, "f"))


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=5), st.randoms())
def test_tuples_are_ordered(numbers, rng):
    other = rng.sample(numbers, len(numbers))
    one, two = ("(" + ", ".join(map(str, part)) + ")" for part in (numbers, other))
    assert equivalent(one, two) == (numbers == other)
    assert not equivalent(one, "[" + one[1:])


@given(st.text(max_size=60), st.sampled_from(["5", "x+1", r"\frac{1}{", "", r"\text{yes}"]))
@settings(max_examples=60, deadline=None)
def test_any_text_gets_a_verdict(text, reference):
    result = grade(rf"\boxed{{{text}}}", reference)
    assert result.reward in (0.0, 1.0) and result.reward <= result.correct


@given(st.text(alphabet=r"{}\boxed 1$", max_size=80))
def test_extraction_never_fails(text):
    answer = extract_boxed(text)
    assert answer is None or answer and answer in text
    assert extract_boxed(text + r"\boxed{7}") == "7" or "{" in text


x, y = sympy.symbols("x y")
coefficients = st.integers(-9, 9).filter(bool)


@st.composite
def formulas(draw):
    """A formula of x and y out of small whole numbers."""
    a, b, c, d = (draw(coefficients) for _ in range(4))
    return draw(
        st.sampled_from(
            [
                (a * x + b) * (c * x + d),
                (a * x + b) ** 2 + c * y,
                (a * x + b) / (c * y + 10 * d),
                a * sympy.sin(b * x) * sympy.cos(b * x) + c,
                sympy.sqrt(abs(a) + 1) * x + sympy.Rational(b, abs(c) + 1),
                a * sympy.exp(b * x) - c * sympy.log(abs(d) + y**2),
                (x + a) * (y + b) * (x - c),
                sympy.Rational(a, 7) * sympy.pi + b * sympy.sqrt(3),
            ]
        )
    )


REWRITINGS = [
    sympy.expand, sympy.factor, sympy.together, sympy.expand_trig, sympy.apart,
    lambda formula: sympy.Add(*reversed(sympy.Add.make_args(formula)), evaluate=False),
]  # fmt: skip
RESPELLINGS = [
    lambda text: text.replace(" ", r"\,"),
    lambda text: text.replace(r"\frac", r"\dfrac").replace(r"\left", ""). replace(r"\right", ""),
    lambda text: text.replace("{2}", "2").replace(r"\log", r"\ln"),
    lambda text: rf"f(x,y) = {text}",
    lambda text: rf"${text}$.",
]  # fmt: skip


@given(formulas(), st.data())
@settings(max_examples=60, deadline=None)
def test_every_rewriting_stays_equal(formula, data):
    one = sympy.latex(formula, ln_notation=True)
    try:
        other = sympy.latex(data.draw(st.sampled_from(REWRITINGS))(formula), ln_notation=True)
    except (sympy.PolynomialError, NotImplementedError):  # apart takes one unknown
        other = one
    other = data.draw(st.sampled_from(RESPELLINGS))(other)
    assert equivalent(other, one), other
    assert grade(rf"\boxed{{{other}}}", one).reward == 1


TEMPLATES = [  # different numbers, different answers
    "{a}x^2 + {b}x + {c}", r"\frac{{{a}x}}{{{b}y}} + {c}\cdot", r"({a}, {b}, {c})", r"[{a}, 10{b}] \cup \{{{c}00\}}",
    r"{a}\sqrt{{{b}}} + {c}\pi", r"\begin{{pmatrix}} {a} & {b} \\ {c} & 1 \end{{pmatrix}}", "{a}e^{{{b}x}} + {c}",
    "y = {a}x^{b} + {c}", "x^2 + {a}y^2 = {b}{c}", "z = {a}{b} + {c}i", r"{a}\ln x + {b}^x + {c}", "{a}{b}{c}",
    r"\frac{{{a}{b}}}{{{c}7}}", "{a}.{b}{c}", r"{a}{b}\%+{c}x", r"\{{{a}, 1{b}, 2{c}\}}", r"{a} < x \le 1{b}{c}",
]  # fmt: skip


@given(st.sampled_from(TEMPLATES), st.lists(st.integers(2, 9), min_size=3, max_size=3), st.data())
@settings(max_examples=80, deadline=None)
def test_every_change_of_a_digit_differs(template, digits, data):
    template = template.removesuffix(r"\cdot")
    place, digit = data.draw(st.integers(0, 2)), data.draw(st.integers(2, 9))
    other = [*digits[:place], digit, *digits[place + 1 :]]
    one, two = (template.format(**dict(zip("abc", numbers, strict=True))) for numbers in (digits, other))
    if template.startswith(r"\frac{{{a}x"):  # the same fraction in other terms
        same = Fraction(digits[0], digits[1]) == Fraction(other[0], other[1]) and digits[2] == other[2]
    elif "sqrt" in template:
        same = digits[0] ** 2 * digits[1] == other[0] ** 2 * other[1] and digits[2] == other[2]
    else:
        same = digits == other
    assert equivalent(one, two) == same
    assert grade(rf"\boxed{{{two}}}", one).correct == same


@given(st.sampled_from(TEMPLATES), st.lists(st.integers(2, 9), min_size=3, max_size=3), st.randoms())
@settings(max_examples=60, deadline=None)
def test_every_change_of_a_sign_differs(template, digits, rng: random.Random):
    text = template.removesuffix(r"\cdot").format(**dict(zip("abc", digits, strict=True)))
    places = [i for i, char in enumerate(text) if char == "+"]
    if places:
        i = rng.choice(places)
        assert not equivalent(text[:i] + "-" + text[i + 1 :], text)
    if "x \\le" not in text and "cup" not in text:
        i = next(i for i, char in enumerate(text) if char.isdigit())
        assert not equivalent(text[:i] + "-" + text[i:], text)


# Found by `lab/checker.py fuzz`: (predicted, reference, right verdict)
FOUND: list[tuple[str, str, bool]] = [
    ("-x", "x", False),  # a sign was dropped with the punctuation of words
    ("f'", "f", False),  # and so was a prime
    (r"\frac{1}{2}3", r"\frac{1}{23}", False),  # digits behind a fraction went into its denominator
    ("{}", "{ }", False),  # two empty answers
    ("(", r"\left(", False),  # and a reference that is none
    ("\\" * 60 + "!", "5", False),  # another that took 2^60 steps
    ("5" + r"\text{a} " * 200 + "!", "5", False),  # a regular expression for units that took 2^200 steps
]


@pytest.mark.parametrize(("predicted", "reference", "verdict"), FOUND)
def test_found_by_fuzzing(predicted, reference, verdict):
    assert equivalent(predicted, reference) == verdict


# ----------------------------- the sandbox: hostile answers, and workers that hang, die, stand still or are interrupted


REPO = Path(verify.__file__).parent


@pytest.fixture
def impatient(monkeypatch):
    """A short limit, so that hanging answers do not take up the test run's time."""
    equivalent("x+1", "x+2")  # a worker that has started
    monkeypatch.setattr(sandbox, "TIME_LIMIT", 0.2)


@pytest.fixture
def worker(monkeypatch):
    """The only worker, idle. One that is there is taken: to start another takes longer than any of these tests."""
    while len(sandbox._pool.idle) > 1:
        sandbox._stop(sandbox._pool.idle.pop())
    assert equivalent("x+x", "2x")
    (process,) = sandbox._pool.idle
    return process


HANGS = {
    "tower": "9^{9^{9^{9^9}}}",
    "factorial": "99999999999!",
    "factorials": "((9999!)!)!",
    "power": "x^{10^{10^{10}}}-1",
    "sum": r"\sum_{n=1}^{10^{12}} n^{-1/3}",
    "product": r"\prod_{k=1}^{10^9} k",
    "nested roots": r"\sqrt{" * 300 + "2" + "}" * 300,
    "signs": "-" * 1_900 + "1",
    "big exponent": "9" * 400 + "^{" + "9" * 400 + "}",
    "expand": "(" + "+".join("abcdefgh") + ")^{60}-1",
}
CHEAP = {
    "braces": "{" * 10_000 + "1" + "}" * 10_000,
    "digits": "7" * 3_000_000,
    "null": "5\x00",
    "bidirectional": "\u202e5",
    "half a character": "\ud8005",
    "unclosed": r"\boxed{" * 100_000,
    "many boxes": r"\boxed{}" * 200_000,
    "many answers": r"\boxed{1}" * 200_000,
    "backslashes": "\\" * 200_000,
    "dollars": "$" * 100_000,
    "brackets": r"\(" * 20_000,
    "spaces": "1" + " " * 200_000 + "2",
    "text": r"5\text{a} " * 180 + "!",
    "words": "5 " + "abcd" * 480 + "!",
    "exponent": "2e999999999",
    "commas": "1,000" * 300,
    "constants": "C_{1} and " * 180,
    "parentheses": "(" * 1_900,
    "format": "{0.__class__}%s%n",
}


@pytest.mark.parametrize("name", HANGS)
def test_hanging_answer_is_wrong_in_time(name, impatient):
    assert not grade(rf"\boxed{{{HANGS[name]}}}", "x+5").correct
    assert equivalent("x+x", "2x")  # the next answer is served


@pytest.mark.parametrize("name", CHEAP)
def test_hostile_text_is_wrong_in_time(name, impatient):
    assert not grade(rf"\boxed{{{CHEAP[name]}}}", "5").reward
    assert not equivalent(CHEAP[name], "5") and not equivalent("5", CHEAP[name])


def test_code_is_not_run(tmp_path):
    mark = tmp_path / "mark"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    for text in [code, f"${code}$", rf"\text{{{code}}}", f"Answer: {code}", f"1+{code}"]:
        assert not equivalent(text, "5") and not grade(rf"\boxed{{{text}}}", "5").reward and not equivalent("5", text)
    unparseable([code])
    assert not mark.exists()


def test_nothing_reaches_eval_and_nothing_printed_is_a_verdict(tmp_path):
    """The worker itself, whose `eval` is taken away once its imports are done, answers questions of every kind."""
    code = "import os, sys, sympy.physics.units, sympy.parsing.sympy_parser as parser\n"
    code += "from support.answers import sandbox, symbolic; same = symbolic.same; same('x+1.5', 'x^2')\n"
    code += "symbolic.same = lambda *question: (os.write(1, b'1 '), same(*question))[1]\n"
    code += "def no(*a, **k): sys.stderr.write('eval!'); sys.exit(7)\n"
    code += "parser.eval = no; sys.stdin = open(sys.argv[1]); sandbox._serve()"
    questions = [["3 * (4 + 5)", "27"], [r"\frac{1.5}{x}", r"\frac{3}{2x}"]]
    questions += [["2**0.1234567", "7"], [r"[1,2]\cup\{3\}", r"\{3\}\cup[1,2]"], ["1234.5+x", "x+1234.5"]]
    path = tmp_path / "questions"
    path.write_text("\n" + "".join(json.dumps([9, *question]) + "\n" for question in questions))
    out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=REPO)
    assert out.stdout.split() == ["ready", "1", "1", "0", "1", "1"] and "eval!" not in out.stderr
    assert sandbox.ask([tuple(question) for question in questions]) == [True, True, False, True, True]


def test_off_the_main_thread(impatient):
    results = {}

    def work(i: int) -> None:
        results[i] = (equivalent("x+x", "2x"), equivalent(HANGS["tower"], "x+5"), equivalent("x+x", "3x"))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert results == dict.fromkeys(range(2), (True, False, False))


def test_a_killed_worker_is_replaced(worker):
    worker.kill()
    worker.wait()
    assert equivalent("x+x", "2x") and sandbox._pool.idle[0].pid != worker.pid and worker.stdout.closed


def children_of(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_dead_child_is_replaced_and_the_worker_stays(worker, monkeypatch):
    """Whether it died of a question or between two of them, the next answer is right."""
    (first,) = children_of(worker.pid)
    monkeypatch.setattr(sandbox, "TIME_LIMIT", 0.3)
    assert not equivalent(HANGS["tower"], "x+5") and equivalent("x+x", "2x")
    (second,) = children_of(worker.pid)
    os.kill(int(second), signal.SIGKILL)
    assert equivalent("x+x", "2x") and not equivalent("x+x", "3x")
    (third,) = children_of(worker.pid)
    assert len({first, second, third}) == 3 and sandbox._pool.idle == [worker]


def test_a_busy_machine_does_not_turn_a_verdict(worker, monkeypatch):
    """The limit is the CPU time: stopped for 15 times as long, worker and child still answer."""
    monkeypatch.setattr(sandbox, "TIME_LIMIT", 0.1)
    stopped = [worker.pid, *map(int, children_of(worker.pid) if sys.platform.startswith("linux") else ())]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(1.5, os.kill, [pid, signal.SIGCONT]).start()
    assert equivalent("x+x+x", "3x")


def test_a_worker_that_stands_still_is_replaced(worker, monkeypatch):
    monkeypatch.setattr(sandbox, "PATIENCE", 0.3)
    os.kill(worker.pid, signal.SIGSTOP)
    assert not equivalent("x+x+x", "3x")
    monkeypatch.undo()
    assert equivalent("x+x", "2x")


def test_memory_of_the_worker_is_limited(worker):
    resource = pytest.importorskip("resource")
    if hasattr(resource, "prlimit"):
        assert resource.prlimit(worker.pid, resource.RLIMIT_AS)[0] == sandbox.MEMORY_LIMIT


def test_a_batch_is_shared_and_keeps_its_order(monkeypatch):
    monkeypatch.setattr(sandbox, "WORKERS", 3)
    monkeypatch.setattr(sandbox, "_pool", sandbox.Pool())
    questions = [(f"x+{i}x", f"{i + 1 + i % 2}x") for i in range(2, 12)]
    assert sandbox.ask(questions[: sandbox.SHARE]) == [True, False] * 4
    assert len(sandbox._pool.idle) == 1, "few questions are not worth the start of another worker"
    assert sandbox.ask(questions) == [True, False] * 5
    assert len({worker.pid for worker in sandbox._pool.idle}) == 2
    workers = list(sandbox._pool.idle)
    sandbox.stop_workers()
    assert all(worker.returncode is not None for worker in workers), "nobody has waited for one: a zombie"


def test_a_batch_with_hanging_answers_keeps_the_others(impatient):
    responses = [rf"\boxed{{{text}}}" for text in ("x+x", HANGS["tower"], "x+2x", HANGS["sum"], "y")]
    assert [g.reward for g in grade_batch(responses, ["2x", "2x", "3x", "3x", "2y"])] == [1, 0, 1, 0, 0]


def test_plain_answers_need_no_worker_and_no_guard():
    """In a script without `if __name__ == "__main__"`: numbers start no worker, and it does not run the script."""
    code = "import sys, verify\nfrom support.answers import sandbox\n"
    code += "reward = verify.grade('\\\\boxed{24}', '24').reward\n"
    code += "print(reward, sandbox._pool.idle, 'sympy' in sys.modules); print(verify.equivalent('x+x', '2x'))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, timeout=60)
    assert out.stdout == "1.0 [] False\nTrue\n" and out.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_its_own_worker():
    assert equivalent("x+x", "2x")
    child = os.fork()
    if child == 0:
        good = equivalent("x+x+x", "3x") and not equivalent("x+x+x", "4x")
        sandbox.stop_workers()
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert equivalent("x+x", "2x") and not equivalent("x+x", "3x")


def test_an_interrupt_does_not_shift_the_verdicts(worker, monkeypatch):
    monkeypatch.setattr(worker.stdout, "readline", interrupt)
    with pytest.raises(KeyboardInterrupt):
        equivalent("y+y", "2y")
    assert not equivalent("x+x", "3x") and equivalent("x+x", "2x")


def interrupt():
    raise KeyboardInterrupt
