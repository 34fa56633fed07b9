"""Write a student's version of the code from the reference.

    python assignment/make.py student

A function of the reference that holds a marker line, `# --- solution: part N ---`, loses everything from there to its
end and raises NotImplementedError instead. Its signature and its docstring stay. So there is no second copy to keep.
Beside the modules the folder has all that a student needs, the grader included, and nothing of the solution.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MODULES = ("grpo.py", "gepa_loop.py", "verify.py", "p2o.py")
GIVEN = ("support", "tools", "tiny")  # what the modules need to run; nothing in there is part of the assignment
GRADER = ("grade.py", "marks.py", "compare.py", "process.py", "runner.py", "calls.py", "seams.py", "jail.py")
BESIDE = {
    "adapters.py": "adapters.py",
    "HANDOUT.md": "HANDOUT.md",
    "student.mk": "Makefile",
    "final.toml": "final.toml",
}
OPEN_SEED = 1  # of the students' own grader
MARKER = re.compile(r"^ +# --- solution: part (\d+) ---$")


def solutions(source: str) -> list[tuple[int, int, int, str]]:
    """(marker's line, last line, part, function) of each marked function; lines count from 0.

    A marker that does not stand right behind the docstring of a top-level function is a mistake in the reference.
    """
    lines = source.split("\n")
    marked = {i: int(match.group(1)) for i, line in enumerate(lines) if (match := MARKER.match(line))}
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            behind_docstring = node.body[0].end_lineno
            if behind_docstring in marked:
                found.append((behind_docstring, node.end_lineno, marked.pop(behind_docstring), node.name))
    if marked:
        raise SyntaxError(f"marker not behind the docstring of a function: lines {[i + 1 for i in marked]}")
    return found


def without_solutions(source: str) -> str:
    """The source without its solutions.

    >>> print(without_solutions('def f(x):\\n    "Doubles."\\n    # --- solution: part 3 ---\\n    return 2 * x\\n'))
    def f(x):
        "Doubles."
        raise NotImplementedError("part 3: f")
    <BLANKLINE>
    """
    lines = source.split("\n")
    for first, last, part, name in reversed(solutions(source)):
        lines[first:last] = [f'    raise NotImplementedError("part {part}: {name}")']
    return "\n".join(lines)


def make(folder: Path, solved: bool = False) -> None:
    """Write the student's folder; with `solved`, the reference itself (for trying out the grader)."""
    folder.mkdir(parents=True)
    for name in MODULES:
        source = (ROOT / name).read_text(encoding="utf-8")
        (folder / name).write_text(source if solved else without_solutions(source), encoding="utf-8")
    for name, named in BESIDE.items():
        shutil.copy(HERE / name, folder / named)
    shutil.copy(ROOT / "requirements.txt", folder / "requirements.txt")
    ignored = shutil.ignore_patterns("__pycache__", "*.tmp", "*.pt")
    for name in GIVEN:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / "grader").mkdir()
    for name in (*GRADER, "final.py"):
        shutil.copy(HERE / name, folder / "grader" / name)


def write_cases(folder: Path, parts: tuple[int, ...] = tuple(range(1, 9))) -> None:
    """The open cases of the students' grader: inputs, the reference's answers, and those of known mistakes."""
    from exam import public
    from process import Process

    with Process() as process:
        cases = public(process, OPEN_SEED, parts)
    (folder / "grader" / "cases.json").write_text(json.dumps(cases), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--solved", action="store_true", help="write the reference, solutions included")
    arguments = parser.parse_args()
    if arguments.folder.exists():
        print(f"{arguments.folder} is there already; nobody's work is written over", file=sys.stderr)
        return 2
    make(arguments.folder, arguments.solved)
    print("drawing the questions of your grader (a minute) ...", flush=True)
    write_cases(arguments.folder)
    print(f"{arguments.folder}/HANDOUT.md says what to do; `make grade` in there says how far you are")
    return 0


if __name__ == "__main__":
    sys.exit(main())
