r"""Rewards of one's own: --reward NAME. (response, question) in, (reward, feedback) out.

`question.row` is the whole row of the data file, so a task brings along whatever its check needs. The feedback is what
the reflection model is told of the response: whatever can be verified can be learned, not mathematics alone. Reward 1
means solved, here as in hard-sample mining, and 0 or less means failed. What lies between 0 and 1 gives contrast, and
the division by the standard deviation makes the smallest difference as large as any (--no-scale-by-std). To the greedy
cover, a template has solved the questions on which no other one earns more, be it 1 or less.
"""

from __future__ import annotations

import re

import verify
from support.data import Question


def pattern(response: str, question: Question) -> tuple[float, str]:
    r"""A regular expression to satisfy. r = 1 if the row's `pattern` matches the whole response.

    Against GRPO: no answer is looked for, a form is. `python lab/studies/worlds.py questions` writes such a task
    for the tiny model. Patterns come from the data, so look at foreign ones before you run them: some take exponential
    time.

    >>> steps = Question("q", "Add these digits: 7, 9, 8.", "", row={"pattern": r"(\d+; ){2}\d+\..*"})
    >>> pattern(r"7; 16; 24. \boxed{24}", steps)
    (1.0, 'The response is right.')
    >>> pattern(r"7. \boxed{7}", steps)[1]
    'The response is wrong. It does not match the pattern (\\d+; ){2}\\d+\\..*'
    """
    wanted = question.row["pattern"]
    if re.fullmatch(wanted, response.strip()):
        return 1.0, "The response is right."
    return 0.0, f"The response is wrong. It does not match the pattern {wanted}"


def last_number(response: str, question: Question) -> tuple[float, str]:
    r"""The last number of the response is the answer. r = 1 if it equals the row's `answer`.

    Against GRPO: no box is needed, so a model that never writes one can earn something, as SmolLM2-135M (docs/real.md).
    A response that lists many numbers is paid only if the right one comes last. Source: the "flexible extract" by which
    lm-evaluation-harness scores GSM8K (github.com/EleutherAI/lm-evaluation-harness).

    >>> sums = Question("q", "4 - 1 =", "3")
    >>> last_number("4 - 1 is 3.", sums)[0], last_number("4 - 1 = 3, or 2.", sums)[0], last_number("Three.", sums)[0]
    (1.0, 0.0, 0.0)
    """
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", response)
    if numbers and verify.equivalent(numbers[-1].rstrip(","), question.reference):
        return 1.0, "The last number is right."
    return 0.0, f"The last number must be {question.reference}."
