"""Questions with reference answers: a local JSONL or parquet file, or a known data set by its name."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from support import gym
from support.boxes import boxes_in
from support.errors import UserError


@dataclass(frozen=True)
class Question:
    id: str
    text: str
    reference: str  # the answer that is right
    columns: dict[str, str] = field(default_factory=dict, compare=False)  # what else its row says: family, level, ...
    row: dict = field(default_factory=dict, repr=False, compare=False)  # of a file, whole: for a --reward of one's own
    score: Callable[[str], float] | None = field(default=None, repr=False, compare=False)  # its own check of an answer


def short_columns(row: dict) -> dict[str, str]:
    """The columns of a row by which questions can be told apart; no long texts, they would be solutions.

    >>> short_columns({"id": 7, "question": "1 + 1", "answer": "2", "level": 5, "solution": "One " * 99})
    {'level': '5'}
    """
    known = ("id", "question", "problem", "answer")
    short = {name: str(value) for name, value in row.items() if isinstance(value, str | int | float)}
    return {name: value for name, value in short.items() if name not in known and len(value) <= 40}


# -------------------------------------------------------------------------------------------------- known data sets


def last_boxed(solution: str) -> str:
    """MATH keeps the answer in the box that ends its solution."""
    boxes = boxes_in(solution)
    return boxes[-1][2] if boxes else ""


def _several(answers: list[str]) -> str:
    """OlympiadBench keeps a list of answers in dollar signs.

    >>> _several(["$2$", " $a_$"])
    '2, a_'
    """
    return ", ".join(answer.strip().strip("$") for answer in answers)


@dataclass(frozen=True)
class Source:
    """Where a data set is on the hub, and which of its columns hold what."""

    hub_id: str
    config: str | None
    split: str
    question: str = "problem"
    answer: str = "answer"
    extract: Callable[[object], str] = str  # the answer column's value -> the reference answer
    hardest: tuple[str, float] | None = None  # (column, minimum): only rows of at least that value
    sizes: tuple[int, int] | None = None  # (training, held out) questions, drawn at random; None takes every row


PAPER_SIZES = (5_000, 500)
DEEPMATH = Source(
    "zwhe99/DeepMath-103K", None, "train", "question", "final_answer", hardest=("difficulty", 7), sizes=PAPER_SIZES
)
DEEPSCALER = Source("agentica-org/DeepScaleR-Preview-Dataset", None, "train", sizes=PAPER_SIZES)
HELD_OUT = "-held-out"

SOURCES = {
    # to train on
    "gsm8k": Source("openai/gsm8k", "main", "train", "question", extract=lambda a: a.rpartition("####")[2].strip()),
    "math": Source("DigitalLearningGmbH/MATH-lighteval", None, "train", answer="solution", extract=last_boxed),
    "deepmath": DEEPMATH,
    "deepscaler": DEEPSCALER,
    # held out from the same
    "gsm8k-test": Source("openai/gsm8k", "main", "test", "question", extract=lambda a: a.rpartition("####")[2].strip()),
    "deepmath" + HELD_OUT: DEEPMATH,
    "deepscaler" + HELD_OUT: DEEPSCALER,
    # to evaluate on
    "aime24": Source("HuggingFaceH4/aime_2024", None, "train"),
    "aime25": Source("math-ai/aime25", None, "test"),
    "amc23": Source("math-ai/amc23", None, "test", "question"),
    "math500": Source("HuggingFaceH4/MATH-500", None, "test"),
    "minerva": Source("math-ai/minervamath", None, "test", "question"),
    "olympiadbench": Source("math-ai/olympiadbench", None, "test", "question", "final_answer", extract=_several),
}


def load_source(name: str, local: str = "") -> list[Question]:
    """The questions of a known data set, from the hub (or its cache), or from a local copy of the same columns."""
    from datasets import load_dataset
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # five retries are five warnings; the one line below says what to do
    source = SOURCES[name]
    try:
        if local and not Path(local).exists():
            raise FileNotFoundError(local)  # or the hub would be asked for a data set of that name
        if Path(local).is_file():
            kind = "parquet" if local.endswith(".parquet") else "json"
            rows = load_dataset(kind, data_files=local, split="train")
        else:
            rows = load_dataset(local or source.hub_id, source.config, split=source.split)
    except Exception as error:  # whatever the hub's client raises, offline or not, the way out is the same
        folder = source.hub_id.rpartition("/")[2]
        raise UserError(
            f"{name}: cannot load {local or source.hub_id} ({type(error).__name__}); on a machine with a network run "
            f"`hf download {source.hub_id} --repo-type dataset --local-dir {folder}`, then give {name}:{folder}"
        ) from error
    needed = [source.question, source.answer, *([source.hardest[0]] if source.hardest else [])]
    absent = [column for column in needed if column not in rows.column_names]
    if absent:
        raise UserError(f"{name}: {local or source.hub_id} has no column `{absent[0]}` (found: {rows.column_names})")
    found: dict[str, Question] = {}  # by question: a repeated one could stand on both sides of a split
    short = short_columns(rows[0]) if len(rows) else {}
    for number, row in enumerate(rows.select_columns(list({*needed, *short})), start=1):
        question, answer = row[source.question].strip(), source.extract(row[source.answer]).strip()
        hard_enough = source.hardest is None or row[source.hardest[0]] >= source.hardest[1]
        if question and answer and hard_enough:
            key = f"{name.removesuffix(HELD_OUT)}-{number}"
            found.setdefault(question, Question(key, question, answer, short_columns(row)))
    drawn = list(found.values())
    if source.sizes:
        # Held out comes first, so that it stays the same whatever the size of the training part.
        random.Random(0).shuffle(drawn)
        train_size, held_out_size = source.sizes
        held_out_size = min(held_out_size, len(drawn) // 10)  # a small local copy is to have both parts, too
        drawn = drawn[:held_out_size] if name.endswith(HELD_OUT) else drawn[held_out_size:][:train_size]
    return drawn


# ------------------------------------------------------------------------------------------------------- local files


def _rows(file: Path) -> Iterator[tuple[str, object]]:
    """(where, row) of each row of a parquet file or line of a JSONL file."""
    if file.suffix == ".parquet":
        import pyarrow.parquet  # takes a third of a second, and most runs read JSONL

        rows = pyarrow.parquet.read_table(file).to_pylist()
        yield from ((f"{file}, row {number}", row) for number, row in enumerate(rows, start=1))
        return
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{file}, line {number}"
        try:
            if line.strip():
                yield where, json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno}); one object a line") from None


def load_questions(
    path: str, suffix: str = "", unparseable: Callable[[list[str]], list[int]] | None = None
) -> list[Question]:
    """The questions of a file or data set, each with the suffix of the bare prompt behind it, after an empty line.

    `unparseable` finds the reference answers that only their own text can match; how many there are is said.
    """
    questions = _read(path)
    compared = [question for question in questions if question.score is None]  # the others bring their own scorer
    odd = unparseable([question.reference for question in compared]) if unparseable else []
    if odd:
        example = compared[odd[0]]
        print(
            f"{path}: {len(odd)} of {len(questions)} reference answers cannot be parsed and count only when matched "
            f"letter by letter, e.g. {example.reference[:60]!r} ({example.id})"
        )
    return [replace(q, text=f"{q.text}\n\n{suffix}") for q in questions] if suffix else questions


def that_fit(name: str, questions: list[Question], length: Callable[[Question], int], limit: int) -> list[Question]:
    """Those that fit into the prompt; nothing is ever cut, what is left out is counted."""
    fitting = [question for question in questions if length(question) <= limit]
    if not fitting:
        raise UserError(f"{name}: no question fits into --max-prompt-tokens {limit}")
    if len(fitting) < len(questions):
        longer = f"{len(questions) - len(fitting)} of {len(questions)} questions"
        print(f"{name}: {longer} are longer than --max-prompt-tokens {limit} and left out")
    return fitting


def _read(path: str) -> list[Question]:
    """Questions of a known data set (`deepmath`), of a local copy of it (`deepmath:folder-or-file`), or of a file.

    A file is JSONL or parquet with `question` and `answer` in each row (`id` optional). UserError names the row.
    """
    name, _, local = path.partition(":")
    file = Path(path)
    if path.startswith(gym.PREFIX):
        items = enumerate(gym.load_items(path), start=1)
        questions = [
            Question(f"{gym.task_of(path)}-{n}", item.text, item.answer, score=item.score) for n, item in items
        ]
    elif name in SOURCES and not file.exists():
        questions = load_source(name, local)
    elif not file.is_file():
        raise UserError(
            f"{path}: no such file; give a JSONL or parquet file with `question` and `answer` in each row, "
            f"or one of {', '.join(SOURCES)}"
        )
    else:
        questions = []
        for number, (where, row) in enumerate(_rows(file), start=1):
            missing = [name for name in ("question", "answer") if not isinstance(row, dict) or name not in row]
            if missing:
                found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                raise UserError(f"{where}: no field `{missing[0]}` (found: {found})")
            key = str(row.get("id", f"{file.stem}-{number}"))
            questions.append(Question(key, str(row["question"]), str(row["answer"]), short_columns(row), row))
    if not questions:
        raise UserError(f"{path}: holds no questions")
    if len({p.id for p in questions}) < len(questions):
        raise UserError(f"{path}: two questions have the same `id`; templates are assigned by it")
    return questions


def label(path: str) -> str:
    """What a data set is called in metrics and reports.

    >>> label("aime25:copies/test.jsonl"), label("tiny/hard.jsonl")
    ('aime25', 'hard')
    """
    name = path.partition(":")[0]
    if path.startswith(gym.PREFIX):
        return gym.task_of(path)
    return name if name in SOURCES else Path(path).stem
