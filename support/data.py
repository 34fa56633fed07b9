"""Questions with reference answers: a local JSONL, CSV or parquet file, or a known data set by its name."""

from __future__ import annotations

import collections
import contextlib
import csv
import gzip
import hashlib
import io
import json
import math
import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path

from support import gym
from support.answers.places import boxes_in
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


# ------------------------------------------------------------------------------------------------- texts in a cell

VISIBLE = re.compile(r"[^\s\ufeff\u200b-\u200d\u2060]")  # no space, not even one without width
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # half of a surrogate pair: no tokenizer and no file takes it


def question_text(value: object) -> str:
    """The text of a question's cell, or ValueError with what is wrong with it."""
    if value is not None and not isinstance(value, str):
        raise ValueError(f"holds {_kind(value)}, and a question is a text")
    return _checked(value)


def answer_text(value: object, may_be_empty: bool = False) -> str:
    """The text of an answer's cell, or ValueError with what is wrong with it.

    `str` alone would make the answer "None" of a missing one, and "b'2'" of bytes: answers that nobody gives, or that
    are paid though nobody meant them.

    >>> answer_text("x^2"), answer_text(27.0), answer_text(10)
    ('x^2', '27.0', '10')
    >>> answer_text([3, 4])
    Traceback (most recent call last):
    ValueError: holds a list, and an answer is a text or a number; write a list as one text: "3, 4"
    """
    if value is not None and not isinstance(value, str | int | float | Decimal):
        advice = '; write a list as one text: "3, 4"' if isinstance(value, list) else ""
        raise ValueError(f"holds {_kind(value)}, and an answer is a text or a number{advice}")
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        raise ValueError(f"is {value}, which is no number (a table's missing value?)")
    return "" if may_be_empty and value == "" else _checked(value)


def _kind(value: object) -> str:
    names = {bytes: "bytes", list: "a list", dict: "an object", bool: "true or false", int: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")


def _checked(value: object) -> str:
    if value is None:
        raise ValueError("is null")
    text = str(value)
    if not VISIBLE.search(text):
        raise ValueError("is empty")
    if HALF_CHARACTER.search(text):
        raise ValueError("holds half of a character (a lone surrogate, as when a text is cut inside an emoji)")
    return text


# -------------------------------------------------------------------------------------------------- known data sets


def last_boxed(solution: str) -> str:
    """MATH keeps the answer in the box that ends its solution."""
    boxes = boxes_in(solution)
    return boxes[-1][2] if boxes else ""


def after_hashes(solution: str) -> str:
    r"""GSM8K keeps the answer behind `####` in the last line of its solution. Any other text is the answer.

    >>> after_hashes("2+2=<<2+2=4>>4\n#### 4"), after_hashes("4"), after_hashes("#### Note\n4")
    ('4', '4', '#### Note\n4')
    """
    found = re.search(r"(?:^|\n)#### *(\S[^\n]*)$", solution.rstrip())
    return found[1] if found else solution


def _several(answers: list[str]) -> str:
    """OlympiadBench keeps a list of answers in dollar signs.

    >>> _several(["$2$", " $a_$"])
    '2, a_'
    """
    if isinstance(answers, str):  # a copy as CSV, say: letter by letter it would be another answer
        raise ValueError(f"is the text {answers[:60]!r}, where the data set keeps a list of texts")
    return ", ".join(answer.strip().strip("$") for answer in answers)


@dataclass(frozen=True)
class Source:
    """Where a data set is on the hub, and which of its columns hold what."""

    hub_id: str
    config: str | None
    split: str
    question: str = "problem"
    answer: str = "answer"
    extract: Callable[[object], str] = answer_text  # the answer column's value -> the reference answer
    hardest: tuple[str, float] | None = None  # (column, minimum): only rows of at least that value
    sizes: tuple[int, int] | None = None  # (training, held out) questions, drawn at random; None takes every row


GSM8K = Source("openai/gsm8k", "main", "train", "question", extract=after_hashes)
PAPER_SIZES = (5_000, 500)
DEEPMATH = Source(
    "zwhe99/DeepMath-103K", None, "train", "question", "final_answer", hardest=("difficulty", 7), sizes=PAPER_SIZES
)
DEEPSCALER = Source("agentica-org/DeepScaleR-Preview-Dataset", None, "train", sizes=PAPER_SIZES)
HELD_OUT = "-held-out"

SOURCES = {
    # to train on
    "gsm8k": GSM8K,
    "math": Source("DigitalLearningGmbH/MATH-lighteval", None, "train", answer="solution", extract=last_boxed),
    "deepmath": DEEPMATH,
    "deepscaler": DEEPSCALER,
    # held out from the same
    "gsm8k-test": replace(GSM8K, split="test"),
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
    source = SOURCES[name]
    if Path(local).is_file():
        # Read as any file is. `datasets` would make 1.2345678901234568e+22 of a long whole number.
        rows = []
        for where, row in _rows(Path(local)):
            if not isinstance(row, dict):
                raise UserError(f"{where}: {_kind(row)}, and a row is an object")
            rows.append(row)
        columns = list(dict.fromkeys(column for row in rows for column in row))
    else:
        rows = _of_the_hub(name, local)
        columns = rows.column_names
    needed = [source.question, source.answer, *([source.hardest[0]] if source.hardest else [])]
    absent = [column for column in needed if column not in columns]
    if absent:
        raise UserError(f"{name}: {local or source.hub_id} has no column `{absent[0]}` (found: {columns})")
    found: dict[str, Question] = {}  # by question: a repeated one could stand on both sides of a split
    incomplete = twice = 0
    if not isinstance(rows, list) and len(rows):  # the hub's other columns may hold long solutions: they are not read
        rows = rows.select_columns(list({*needed, *short_columns(rows[0])}))
    for number, row in enumerate(rows, start=1):
        where, row = f"{name}, row {number}", dict.fromkeys(needed) | row  # a line of a local file may lack a column
        if source.hardest:
            column, least = source.hardest
            if row[column] in (None, "") or _cell(where, column, float, row) < least:
                continue
        if row[source.question] in (None, "") or row[source.answer] in (None, "", []):
            incomplete += 1
            continue
        question = _cell(where, source.question, question_text, row).strip()
        answer = _cell(where, source.answer, source.extract, row).strip()
        if not answer:  # a solution without a box
            incomplete += 1
            continue
        key = f"{name.removesuffix(HELD_OUT)}-{number}"
        twice += question in found
        found.setdefault(question, Question(key, question, answer, short_columns(row)))
    if incomplete:
        print(f"{name}: {incomplete} of {len(rows)} rows have no question or no answer and are left out")
    if twice:
        print(f"{name}: {twice} of {len(rows)} rows repeat a question and are left out")
    drawn = list(found.values())
    if source.sizes:
        # Held out comes first, so that it stays the same whatever the size of the training part.
        random.Random(0).shuffle(drawn)
        train_size, held_out_size = source.sizes
        held_out_size = min(held_out_size, len(drawn) // 10)  # a small local copy is to have both parts, too
        drawn = drawn[:held_out_size] if name.endswith(HELD_OUT) else drawn[held_out_size:][:train_size]
    return drawn


def _of_the_hub(name: str, local: str):
    """The rows of a known data set, from the hub, its cache, or a folder as the hub lays it out."""
    from datasets import load_dataset
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # five retries are five warnings; the one line below says what to do
    source = SOURCES[name]
    try:
        if local and not Path(local).exists():
            raise FileNotFoundError(local)  # or the hub would be asked for a data set of that name
        return load_dataset(local or source.hub_id, source.config, split=source.split)
    except Exception as error:  # whatever the hub's client raises, offline or not, the way out is the same
        folder = source.hub_id.rpartition("/")[2]
        told = f"{name}: cannot load {local or source.hub_id} ({type(error).__name__})"
        download = f"`hf download {source.hub_id} --repo-type dataset --local-dir {folder}`"
        cure = f"on a machine with a network run {download}, then give {name}:{folder}"
        raise UserError(f"{told}; {cure}") from error


# ------------------------------------------------------------------------------------------------------- local files


GIT_LFS = b"version https://git-lfs.github.com/spec/"  # how a file begins that git-lfs has not fetched yet


def _rows(file: Path) -> Iterator[tuple[str, object]]:
    """(where, row) of each row of a parquet or CSV file or line of a JSONL file, which may be packed with gzip."""
    try:
        content = file.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    if content.startswith(GIT_LFS):
        raise UserError(f"{file}: a git-lfs pointer, not the data; `git lfs pull` fetches it")
    if content.startswith(b"PAR1") or file.suffix.lower() == ".parquet":
        yield from _parquet_rows(file, content)
    elif file.name.lower().removesuffix(".gz").endswith((".csv", ".tsv")):
        yield from _csv_rows(file, content)
    else:
        yield from _json_rows(file, content)


def _parquet_rows(file: Path, content: bytes) -> Iterator[tuple[str, object]]:
    import pyarrow.parquet  # takes a third of a second, and most runs read JSONL

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
        rows = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: no parquet file, or not a whole one ({reason})") from None
    # 12345.67 of 32 bits is 12345.669921875 of Python's 64, which is another answer. Its own text is the short one.
    small = {f.name: f.type.to_pandas_dtype() for f in table.schema if str(f.type) in ("float", "halffloat")}
    for row in rows:
        row |= {name: float(str(kind(row[name]))) for name, kind in small.items() if row[name] is not None}
    yield from ((f"{file}, row {number}", row) for number, row in enumerate(rows, start=1))


def _csv_rows(file: Path, content: bytes) -> Iterator[tuple[str, object]]:
    """As spreadsheets save a table: the names of the columns first; a comma, a semicolon or a tab between the cells."""
    text = _decoded(file, content)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)  # a German spreadsheet writes semicolons
    table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = next(table, [])
        _object([(name, "") for name in names])
        for cells in table:
            where = f"{file}, line {table.line_num}"  # of a cell with line breaks the last one
            if len(cells) not in (0, len(names)):
                advice = f'a cell that holds "{delimiter}" or a line break stands in double quotes'
                raise UserError(f"{where}: {len(cells)} cells, and {len(names)} columns have names; {advice}")
            if [cell.strip("\ufeff") for cell in cells] == names:  # else "question" would be asked as a question
                raise UserError(f"{where}: the names of the columns again, as where files were joined; remove the line")
            if cells:
                yield where, dict(zip(names, cells, strict=True))
    except (csv.Error, ValueError) as error:
        raise UserError(f"{file}, line {table.line_num}: cannot be read as CSV ({error})") from None


def _decoded(file: Path, content: bytes) -> str:
    encoding = json.detect_encoding(content)  # UTF-8, UTF-16 or UTF-32, with or without a byte order mark
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        told = f"{file}, line {line}: byte 0x{content[error.start]:02x} is no {encoding.upper()}"
        raise UserError(f"{told}; save the file as UTF-8 (from Windows: iconv -f CP1252 -t UTF-8)") from None


def _json_rows(file: Path, content: bytes) -> Iterator[tuple[str, object]]:
    text = _decoded(file, content)
    with contextlib.suppress(ValueError, RecursionError):  # then its lines are read one by one, and the bad one is told
        blank = "\ufeff \t\r\n"
        if text.lstrip(blank).startswith("["):  # one list of all rows, as DeepScaleR's file is
            rows = json.loads(text.strip(blank), object_pairs_hook=_object, parse_float=_Number)
            yield from ((f"{file}, row {number}", row) for number, row in enumerate(rows, start=1))
            return
    # Not splitlines: it also splits at characters that may stand inside a JSON string, U+2028 and U+0085 among them.
    for number, line in enumerate(text.split("\n"), start=1):
        where, line = f"{file}, line {number}", line.strip("\ufeff \t\r")  # files that were joined have several marks
        try:
            if line:
                yield where, json.loads(line, object_pairs_hook=_object, parse_float=_Number)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno}); one object a line") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
            raise UserError(f"{where}: JSON that cannot be read ({error})") from None


class _Number(float):
    """A number with a point or an exponent. As a text it is what the file says: of 12345678901234567890.5 and 1e-400
    a float keeps something else."""

    def __new__(cls, text: str) -> _Number:
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text


def _object(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object. Python itself would take the last of two values of one name, without a word."""
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(name for name, times in collections.Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"`{twice}` stands there twice")
    return row


def _cell(where: str, column: str, read: Callable[[object], str], row: dict) -> str:
    """The text that `read` makes of a cell; UserError names the row and the column."""
    try:
        return read(row[column])
    except ValueError as error:
        raise UserError(f"{where}: `{column}` {error}") from None


Unparseable = Callable[[list[str]], list[int]]  # verify.unparseable: reference answers -> places of the odd ones


def load_questions(
    path: str, suffix: str = "", unparseable: Unparseable | None = None, empty_answers: bool = False
) -> list[Question]:
    """The questions of a file or data set, each with the suffix of the bare prompt behind it, after an empty line.

    `unparseable` finds the reference answers that only their own text can match. A line says how many there are.
    `empty_answers`: an answer may be an empty text, for a --reward of one's own that looks at other columns.
    """
    questions = _read(path, empty_answers)
    compared = [question for question in questions if question.score is None]  # the others bring their own scorer
    odd = unparseable([question.reference for question in compared]) if unparseable else []
    if odd:
        example = compared[odd[0]]
        print(
            f"{path}: {len(odd)} of {len(questions)} reference answers cannot be parsed and count only when matched "
            f"letter by letter, e.g. {example.reference[:60]!r} ({example.id})"
        )
    return [replace(q, text=f"{q.text}\n\n{suffix}") for q in questions] if suffix else questions


def load_data(cfg, unparseable: Unparseable) -> tuple[list[Question], dict[str, list[Question]]]:
    """(training questions, held-out questions by name) of a p2o.Config."""

    def read(path: str) -> list[Question]:
        if cfg.reward:  # a function of the user's own: it need not look at the answer, so that may be empty
            return load_questions(path, cfg.question_suffix, empty_answers=True)
        return load_questions(path, cfg.question_suffix, unparseable)

    questions = read(cfg.train_data)[: cfg.train_questions or None]
    held_out = {name: read(path) for name, path in labelled(cfg.eval_data).items()}
    for line in repeated(questions, held_out):
        print(line)
    return questions, held_out


def repeated(questions: list[Question], held_out: dict[str, list[Question]]) -> list[str]:
    """Lines about training questions that stand there twice with different answers, or are held out as well.

    >>> one, other = Question("1", "1 + 1?", "2"), Question("2", " 1 + 1?", "3")
    >>> repeated([one, other], {"hard": [one]})[0]
    'a training question stands there twice, with different answers: 2 (1) and 3 (2)'
    >>> repeated([one], {"hard": [one]})
    ['hard: 1 of 1 held-out questions are trained, too: it measures memory']
    """
    lines, known = [], {}
    for question in questions:
        first = known.setdefault(question.text.strip(), question)
        compared = first.score is None and first.reference.strip() != question.reference.strip()
        if compared and not lines:
            answers = f"{first.reference[:60]} ({first.id}) and {question.reference[:60]} ({question.id})"
            lines.append(f"a training question stands there twice, with different answers: {answers}")
    for name, asked in held_out.items():
        if count := sum(question.text.strip() in known for question in asked):
            lines.append(f"{name}: {count} of {len(asked)} held-out questions are trained, too: it measures memory")
    return lines


def that_fit(name: str, questions: list[Question], length: Callable[[Question], int], limit: int) -> list[Question]:
    """Those that fit into the prompt. Nothing is ever cut; what is left out is counted."""
    fitting = [question for question in questions if length(question) <= limit]
    if not fitting:
        raise UserError(f"{name}: no question fits into --max-prompt-tokens {limit}")
    if len(fitting) < len(questions):
        longer = f"{len(questions) - len(fitting)} of {len(questions)} questions"
        print(f"{name}: {longer} are longer than --max-prompt-tokens {limit} and left out")
    return fitting


def _read(path: str, empty_answers: bool) -> list[Question]:
    """Questions of a known data set (`deepmath`), of a local copy of it (`deepmath:folder-or-file`), or of a file.

    A file is JSONL, CSV or parquet with `question` and `answer` in each row (`id` optional). The answer may be a
    solution as GSM8K has it, with `#### 72` in its last line. UserError names the row.
    """
    name, _, local = path.partition(":")
    file = Path(path)
    if path.startswith(gym.PREFIX):
        items, key = enumerate(gym.load_items(path), start=1), gym.task_of(path)
        questions = [Question(f"{key}-{n}", text, answer, score=score) for n, (text, answer, score) in items]
    elif name in SOURCES and not file.is_file():  # a folder of that name is what `hf download` was told to make
        questions = load_source(name, local)
    elif not file.is_file():
        found = "no plain file" if file.exists() else "no such file"
        cure = "give a JSONL, CSV or parquet file with `question` and `answer` in each row, or one of"
        raise UserError(f"{path or 'an empty name'}: {found}; {cure} {', '.join(SOURCES)}")
    else:
        rows, key = enumerate(_rows(file), start=1), _stem(file)
        questions = [_question(where, row, f"{key}-{n}", empty_answers) for n, (where, row) in rows]
    if not questions:
        raise UserError(f"{path}: holds no questions")
    if len({q.id for q in questions}) < len(questions):
        raise UserError(f"{path}: two questions have the same `id`; templates are assigned by it")
    return questions


def _question(where: str, row: object, key: str, empty_answers: bool) -> Question:
    """The question of a file's row; `key` is its id unless the row has one. UserError names the row and the column."""
    missing = [name for name in ("question", "answer") if not isinstance(row, dict) or name not in row]
    if missing:
        found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise UserError(f"{where}: no field `{missing[0]}` (found: {found})")
    text = _cell(where, "question", question_text, row)
    reference = _cell(where, "answer", lambda value: after_hashes(answer_text(value, empty_answers)), row)
    if row.get("id") is not None:
        key = _cell(where, "id", answer_text, row)
    return Question(key, text, reference, short_columns(row), row)


def digest(questions: list[Question]) -> str:
    """A short digest of the questions, their order, and all that their rows say: a resumed run is to have the same."""
    known = hashlib.sha256()
    for q in questions:
        known.update(json.dumps([q.id, q.text, q.reference, q.columns, q.row], default=str).encode())
    return known.hexdigest()[:16]


# --------------------------------------------------------------------------------------------------------- names


def _stem(file: Path) -> str:
    return file.with_suffix("").stem if file.suffix.lower() == ".gz" else file.stem


def label(path: str) -> str:
    """What a data set is called in metrics and reports.

    >>> label("aime25:copies/test.jsonl"), label("tiny/hard.jsonl"), label("hard.jsonl.gz")
    ('aime25', 'hard', 'hard')
    """
    name = path.partition(":")[0]
    if path.startswith(gym.PREFIX):
        return gym.task_of(path)
    return name if name in SOURCES else _stem(Path(path))


def labelled(paths: tuple[str, ...]) -> dict[str, str]:
    """{what each data set is called: its path}. Where two would have one name, both are called by their whole paths.

    >>> labelled(("a/test.jsonl", "b/test.jsonl", "aime24"))
    {'a/test.jsonl': 'a/test.jsonl', 'b/test.jsonl': 'b/test.jsonl', 'aime24': 'aime24'}
    """
    repeated = [path for path, times in collections.Counter(paths).items() if times > 1]
    if repeated:
        raise UserError(f"{repeated[0]}: given twice among the held-out files")
    times = collections.Counter(map(label, paths))
    return {label(path) if times[label(path)] == 1 else path: path for path in paths}
