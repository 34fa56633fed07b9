"""Questions of reasoning-gym, a package of more than a hundred tasks that generate their questions and check answers.

    --train-data "gym:chain_sum?min_terms=3&size=500&seed=1" --eval-data "gym:chain_sum?min_terms=3&size=100&seed=1001"

Behind the question mark stand the task's own settings. reasoning-gym makes question number i from `seed` + i. So two
seeds must lie further apart than the sizes, or the held-out questions are trained, too. Every question brings its
task's scorer, for many tasks have more than one right answer. The response still answers in one box, and only a full
score earns the reward: most scorers give a little for wrong answers too, and a group's advantages would make as much of
that as of a success.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from urllib.parse import parse_qsl

from support.errors import UserError

PREFIX = "gym:"


def task_of(path: str) -> str:
    """
    >>> task_of("gym:chain_sum?min_terms=3&size=500")
    'chain_sum'
    """
    return path.removeprefix(PREFIX).partition("?")[0]


def load_items(path: str) -> list[tuple[str, str, Callable[[str], float]]]:
    """(question, answer, scorer of what is in the box, from 0 to 1) of each question of a task.

    UserError if the package, the task or one of its settings is not there.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UserError(f"{path}: needs reasoning-gym ({error}); pip install reasoning-gym==0.1.25") from None
    task, settings = task_of(path), settings_of(path)
    if task not in DATASETS:
        near = ", ".join([name for name in sorted(DATASETS) if task[:4] in name] or sorted(DATASETS)[:8])
        raise UserError(f"{path}: reasoning-gym has no task {task!r}; there are {len(DATASETS)}, such as {near}")
    try:
        dataset = reasoning_gym.create_dataset(task, **settings)
        rows = [dataset[i] for i in range(len(dataset))]
    except (TypeError, ValueError, AssertionError) as error:  # how the tasks refuse their settings
        raise UserError(f"{path}: the task {task} does not take these settings ({error})") from None
    return [(row["question"], str(row["answer"]), lambda answer, row=row: score(dataset, answer, row)) for row in rows]


def score(dataset, answer: str, row: dict) -> float:
    """The task's own scorer. One that raises on what a model wrote has not found it right."""
    try:
        return float(dataset.score_answer(answer=answer, entry=row))
    except Exception:
        return 0.0


def settings_of(path: str) -> dict[str, object]:
    """
    >>> settings_of("gym:chain_sum?min_terms=3&allow_negation=True&symbols=xyz")
    {'min_terms': 3, 'allow_negation': True, 'symbols': 'xyz'}
    """
    settings = {}
    for name, text in parse_qsl(path.partition("?")[2]):
        try:
            settings[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            settings[name] = text
    return settings
