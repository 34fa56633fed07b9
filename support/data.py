"""Questions with reference answers, from a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from support.errors import UserError


@dataclass(frozen=True)
class Problem:
    id: str
    question: str
    answer: str


def load_problems(path: str) -> list[Problem]:
    """Problems of a JSONL file with `question` and `answer` on each line (`id` optional). UserError names the line."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{path}: no such file; give a JSONL file with `question` and `answer` on each line")
    problems: list[Problem] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno}); one object a line") from None
        missing = [name for name in ("question", "answer") if not isinstance(row, dict) or name not in row]
        if missing:
            found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise UserError(f"{where}: no field `{missing[0]}` (found: {found})")
        problems.append(Problem(str(row.get("id", f"{file.stem}-{number}")), str(row["question"]), str(row["answer"])))
    if not problems:
        raise UserError(f"{path}: holds no problems")
    if len({p.id for p in problems}) < len(problems):
        raise UserError(f"{path}: two problems have the same `id`; templates are assigned by it")
    return problems
