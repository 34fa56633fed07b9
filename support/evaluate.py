"""Evaluation as people expect it: greedy accuracy, pass@k and majority@k, with confidence intervals."""

from __future__ import annotations

import math
import random
from collections.abc import Callable


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, from n samples of which `correct` were.

    1 - C(n - c, k) / C(n, k); Chen et al., 2021 (Evaluating Large Language Models Trained on Code), equation 1.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def majority(answers: list[str | None], same: Callable[[str, str], bool]) -> str | None:
    """The answer that most samples gave, the earliest on ties; None if no sample gave one.

    >>> majority(["1/2", "3", "0.5", None], lambda a, b: {a, b} == {"1/2", "0.5"} or a == b)
    '1/2'
    """
    classes: list[list[str]] = []
    for answer in answers:
        if answer is not None:
            found = next((members for members in classes if same(members[0], answer)), None)
            if found is None:
                classes.append([answer])
            else:
                found.append(answer)
    return max(classes, key=len)[0] if classes else None


def bootstrap_interval(values: list[float], seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the mean by resampling questions.

    >>> bootstrap_interval([1.0, 1.0])
    (1.0, 1.0)
    """
    rng = random.Random(seed)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws) - 1]


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share; unlike the bootstrap it does not shrink to a point at 0 and 1 (Wilson, 1927).

    >>> tuple(round(x, 3) for x in wilson_interval(0, 100))
    (0.0, 0.037)
    """
    centre, spread = successes + z * z / 2, z * math.sqrt(successes * (n - successes) / n + z * z / 4)
    return max(0.0, (centre - spread) / (n + z * z)), min(1.0, (centre + spread) / (n + z * z))
