r"""What earns a reward: extraction, grade, feedback, and the conventions. Strings in, verdicts out.

    >>> grade(r"7 ; 16 ; 24 . \boxed{24}", "24")
    Grade(reward=1.0, correct=True, well_formed=True, extracted='24')

The reward is the only teacher the policy has: a wrong 1 teaches nonsense, a wrong 0 starves it, a hang ends the run. So
an answer is compared in one of two ways. Text, plain numbers and words, most of all answers, are decided at once
(`support.answers.equivalence.quick`). The rest is compared with sympy in worker processes that have limits on time and
memory (`support.answers.sandbox`). A worker that hangs or dies is replaced, and that answer is wrong.

What counts as an answer, and by whose convention:

- A response answers in `\boxed{}`, and earns reward only with exactly one (the P2O authors' rule). An empty box and one
  that is never closed are none; a box inside a box is one. In `<think>...</think>` nothing is an answer: only what
  follows counts, and thinking that is never finished earns nothing.
- A copy of the question is no answer. An integral, a limit, a sum, a determinant that nobody worked out is refused, and
  so is an inequality that nobody solved, unless the reference is one, too, and `4x-8=0` for `x=2`. Given the question,
  `grade` also refuses a formula that stands in it, in any order and with any brackets, unless it is a plain number or
  the reference itself. Without the question plain arithmetic (`17 \cdot 3` for 51) still pays.
- Numbers are compared exactly. A decimal with six or more decimals also equals what it rounds, to 5e-7 (math-verify's
  six decimals; relative below 0.1, so 1e-7 is not 2e-7). `0.333333` and `0.333...` are 1/3, `0.33` is not, nor is 1.41
  the root of 2. What is no fraction (a root, pi) is compared to 25 digits.
- Thousands: `1,000`, `1{,}000`, `1 000`; a comma *and* a space make a list. A lone comma that cannot be that is a
  decimal comma or a list, whichever the other side is: `1,22` equals `1.22` and `22,1` (math-verify has both).
  `1.234.567`, `1.234,5` and `1'000` are read as in Europe; `1.234` is not.
- Percent: `50\%` equals `50` (Hendrycks MATH drops the sign) and `0.5` (its value), in lists and points, too; `0.5\%`
  is not `50`.
- A unit is dropped, not converted, where the other side has none (Hendrycks MATH, math-verify): `5 cm` is `5`,
  `9.8\ \mathrm{m/s^2}` is `9.8`, `90^\circ` is `90`, `5 apples` is `5`. Two units that differ make two answers: `5 cm`
  is neither `5 m` nor `50 mm`, `\$5` is not `5 cents`. Degrees count inside sin, cos and tan. A single letter is a unit
  only in `\text{}` or with its power (`12 m^2`): `5m` is not `5`.
- Only units in a table (`support.answers.units`) and plurals are dropped. Other words may change the value, so an
  answer with such words equals only one with the same words: `10 below zero` is not `10`, a loss no profit, `44 BC` not
  `44 AD`, `5 or more` not `5`. `5 million` is `5000000`, and `7 tenths` is `0.7`. `3:30 PM` is `15:30`, not
  `3:30 a.m.`; `5 ft 3 in` is `3 in 5 ft`, not `3 ft 5 in`.
- `3 \pmod 7` is `3`, and `-4 \pmod 7`, not `3 \pmod 5`.
- A reference may be a float as programs print it: `3.3000000000000003` is `3.3`, if 16 or 17 digits say no more, and so
  is `3.299999952316284`, a float of 32 bits.
- `1\frac{1}{2}` and `1 1/2` are mixed numbers (MATH), `7:32` is the ratio 7/32 (math-verify), `1:2:3` is `2:4:6`,
  `0.\overline{3}` is 1/3, `10–12` with a dash is a range. `2^10` is 1024, although TeX sets a 2, a raised 1 and a 0.
  `2\frac13\pi` is seven thirds of pi, and `4/3\pi` is four thirds, not `4/(3\pi)`. `5(2)` is 10.
- A reference `7 \times 9`, of two or three plain numbers, is a size: neither 63 nor `9 \times 7` answers it. A longer
  product is a number.
- A reference `\frac{40}{3} \approx 13.33` gives two values, and either answers it. As an answer it says both, if one is
  a rounding of the other: `12 \approx 5` answers 12 only.
- Words and choice letters: ignoring case, articles, `\text{}` and brackets, `(C)`, `(C) 12`, `C: 12` and `Option C` are
  `c`, and `ACD` is `A, C, D`. The text of option C alone is `C`, too, where the reference or the question says which
  text that is. `(a) 5; (b) 7` is no choice, but a point with two parts. Words in another order are others, unless `and`
  joins them, and so are capitals (`HTH`). In formulas case counts: `M-m` is not 0. Letters that make no word are a
  product: `ab` is `ba`, but `no` is not `on`.
- `(1)(3)` and `①③` are a list of statements by their numbers, not a product.
- `x = 5` answers `5` and the other way round, and a chain counts by its last member (math-verify). `a+b = 5` answers
  `5`, `2x+3 = 5` does not. Two names that differ are two answers: `P(X=5) = 0.2` is not `P(X=4) = 0.2`.
- `(1,2)` is ordered; `1,2` and `\{1,2\}` are not. `(1,2)` is a point or an open interval, or answers the list `1,2`;
  `[1,2]`, `[1,2)` and `(1,2)` differ. A column is a point, and so is `2i + 3j`. `x=2, y=3` is `(2,3)` by name, while
  `x_1=2, x_2=3` (roots) is a set. `2, 3` does not answer `2, 2, 3`; `2, 2, 3` answers `2, 3`.
- `x \in [1,2]`, `1 \le x \le 2` and `[1,2]` are one set, either way round (math-verify, relations against sets).
- Formulas are equal where both sides are real, with each root and logarithm in them: `\sqrt{x^2}` is `|x|`, not `x`;
  `\log x^2` is `2 \log x`; `\sqrt{a/b}` is `\sqrt a/\sqrt b`, whatever the letters are called. `\sqrt[3]{-8}` is -2. A
  `\log` without base is `\ln` where the other side has that, else decimal. `\ln 3/2` is half of `\ln 3`, but
  `\sin\pi/4` is `\sin(\pi/4)`. `\lfloor n \rfloor + 1` is not `\lceil n \rceil`: at 3 they differ. In a formula with a
  floor `n`, `m` or `k` is a whole number. `for all real x` may stand behind a formula, and `for n \ge 1` behind `a_n =
  2n`; `for all x > 0` may not.
- `k\pi` is `n\pi`: any whole number. If the reference says `k \in Z`, `2k-1` is `2k+1`. A constant of integration has
  any name and takes in any number: `x^2 + c` is `x^2 + 1 + C`. Those that stand once each may change places.
- What cannot be known has no value: sums and limits of `a_n` and `f(x)` are equal only where they are written alike.
- Layout does not count: fonts, sizes, spaces, boxes, `Answer:`, a closing `\square`, Unicode for LaTeX. Equations below
  each other (`aligned`, `cases`, `array`) are a list of equations.
- A number in another base needs its base: `204_5` is neither `204` nor `204_6`. (math-verify drops it.)
- An empty answer is never right, and a reference that cannot be parsed is matched by its own text only: `unparseable`.

Nothing of a response reaches `eval` (sympy reads numbers with it: `support.answers.sandbox` takes it away), a format
string or a file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from support.answers.places import boxes_in, find_answer, unboxed
from support.answers.verdicts import MAX_ANSWER, is_copied, readable, same_answers
from support.data import Question
from support.seams import checked_rewards, find


@dataclass(frozen=True)
class Grade:
    reward: float  # 1.0 if well formed and correct, else 0.0
    correct: bool  # the (last) boxed answer equals the reference, and is not copied from the question
    well_formed: bool  # exactly one boxed answer
    extracted: str | None  # the (last) boxed answer


# --- extraction -------------------------------------------------------------------------------------------------------


def _after_thinking(response: str) -> str:
    r"""What follows the last `</think>` (some chat templates put the opening tag into the prompt).

    >>> _after_thinking("<think>A guess: 3</think>4"), _after_thinking("no thinking"), _after_thinking("<think>on and")
    ('4', 'no thinking', '')
    """
    # A thinking model tries several answers before it settles. Only what it says after that is its answer.
    rest = response.rpartition("</think>")[2]
    return "" if "<think>" in rest else rest


def extract_boxed(response: str) -> str | None:
    r"""The contents of the last closed, non-empty `\boxed{}`, or None.

    >>> extract_boxed(r"so \boxed{1}, no: \boxed{\frac{1}{2}}")
    '\\frac{1}{2}'
    >>> extract_boxed(r"cut off in \boxed{12") is None, extract_boxed(r"<think>\boxed{7}</think> Yes.") is None
    (True, True)
    """
    boxes = boxes_in(_after_thinking(response))
    return boxes[-1][2] if boxes else None


# --- grades -----------------------------------------------------------------------------------------------------------


def equivalent(predicted: str, reference: str) -> bool:
    r"""Do two answers say the same? Either may be bare, in `$...$` or boxed, or the end of a longer text.

    >>> equivalent(r"\frac{1}{2}", "0.5"), equivalent("(1,2)", "(2,1)"), equivalent("Answer: $x=5$", "5")
    (True, False, True)
    """
    return same_answers([(find_answer(predicted), find_answer(reference))])[0]


def grade(response: str, reference: str, question: str = "") -> Grade:
    r"""Reward one response: 1.0 if it has exactly one boxed answer and that is right.

    >>> grade(r"\boxed{3} or rather \boxed{4}", "4")
    Grade(reward=0.0, correct=True, well_formed=False, extracted='4')
    """
    return grade_batch([response], [reference], [question])[0]


def grade_batch(responses: list[str], references: list[str], questions: list[str] | None = None) -> list[Grade]:
    r"""Grade responses[i] against references[i]. With questions[i], what is copied from it is no answer.

    >>> [g.reward for g in grade_batch([r"\boxed{50\%}", r"\boxed{5}", "5"], ["0.5", "5", "5"])]
    [1.0, 1.0, 0.0]
    """
    # --- solution: part 7 ---
    questions = questions or [""] * len(responses)
    # A response answers in its last box. What it thought before that does not count.
    boxes = [boxes_in(_after_thinking(response)) for response in responses]
    answers = [found[-1][2] if found else None for found in boxes]
    # All pairs at once: what needs sympy goes to its workers as one batch.
    pairs = [(answer or "", unboxed(reference)) for answer, reference in zip(answers, references, strict=True)]
    verdicts = same_answers(pairs, questions)
    grades = []
    for (answer, reference), found, question, same in zip(pairs, boxes, questions, verdicts, strict=True):
        # A formula copied from the question may equal the reference. It earns nothing: it solves nothing.
        correct = same and bool(found) and not is_copied(answer, reference, question)
        # Exactly one box (the authors' rule): with two, a policy could write down several guesses.
        well_formed = len(found) == 1
        grades.append(Grade(float(correct and well_formed), correct, well_formed, answer if found else None))
    return grades


def unparseable(references: list[str]) -> list[int]:
    r"""The positions of reference answers that only their own text can match, to be reported when a dataset is loaded.

    >>> unparseable(["12", r"\frac{1}{", "", "Evelyn", r"\sqrt{2}"])
    [1, 2]
    """
    return [i for i, can_be_read in enumerate(readable(references)) if not can_be_read]


def feedback(grade: Grade, reference: str, truncated: bool = False) -> str:
    r"""What the reflection model is told about one response.

    >>> feedback(grade(r"\boxed{3}", "4"), "4")
    'The answer 3 is wrong. The right answer is 4.'
    """
    # The reflection model writes better instructions if it knows what was at fault: the answer, the box, or the length.
    if grade.reward:
        return f"The answer {grade.extracted} is right."
    if truncated and grade.extracted is None:
        fault = "The response was cut off before a boxed answer."
    elif grade.extracted is None:
        fault = "There is no boxed answer."
    elif not grade.well_formed:
        fault = "There are several boxed answers, and only one is allowed."
    else:
        fault = f"The answer {grade.extracted} is wrong."
    return f"{fault} The right answer is {reference}."


class Verdict(NamedTuple):
    """What a reward function says of one response."""

    reward: float
    feedback: str  # what the reflection model is told
    well_formed: bool = True  # has it the form of an answer? `judge` wants exactly one box


Judge = Callable[[list[str], list[Question], list[bool]], list[Verdict]]


def judge(responses: list[str], questions: list[Question], truncated: list[bool]) -> list[Verdict]:
    r"""Reward and feedback of each response, as the loop and the evolution ask for them.

    >>> judge([r"\boxed{3}"], [Question("q", "What is 2 + 2?", "4")], [False])
    [Verdict(reward=0.0, feedback='The answer 3 is wrong. The right answer is 4.', well_formed=True)]
    """
    # The question goes along, so that a copy of a formula in it is not taken for an answer.
    references = [question.reference for question in questions]
    grades = grade_batch(responses, references, [question.text for question in questions])
    grades = [rescored(grade, question) for grade, question in zip(grades, questions, strict=True)]
    graded = zip(grades, references, truncated, strict=True)
    return [Verdict(g.reward, feedback(g, reference, cut), g.well_formed) for g, reference, cut in graded]


def rescored(grade: Grade, question: Question) -> Grade:
    """The grade by the question's own scorer, if it brought one: a puzzle may have more right answers than one."""
    if question.score is None or grade.extracted is None or len(grade.extracted) > MAX_ANSWER:
        return grade
    correct = question.score(grade.extracted) >= 1.0
    return Grade(float(correct and grade.well_formed), correct, grade.well_formed, grade.extracted)


def judge_of(reward: str) -> Judge:
    """`judge`, or what `--reward` names instead: a function of (response, question) that gives (reward, feedback)."""
    # A reward of one's own may pay for anything that a program can check. It need not be 0 or 1.
    if find("reward", reward) is None:
        return judge

    def judge_by_own_reward(responses: list[str], questions: list[Question], truncated: list[bool]) -> list[Verdict]:
        return [Verdict(*given) for given in checked_rewards(reward, responses, questions)]

    return judge_by_own_reward
