"""The instructor's side: the student's folder, the reference's answers, Gradescope's zip, and what submissions share.

    python assignment/make.py student                       # a student's folder, made from the reference
    python assignment/make.py --gradescope autograder.zip   # what Gradescope wants; --seed N sets the class's seed

A function of the reference that holds a marker line, `# --- solution: part N ---`, loses what stands behind it, and
raises NotImplementedError instead. Right behind the docstring a marker takes out all of the body; further below it
takes out the lines up to the next blank one, or to the end of their block. So there is no second copy to keep.
Beside the modules the folder has all that a student needs, the grader included, and nothing of the solution.
"""

from __future__ import annotations

import argparse
import ast
import csv
import io
import json
import keyword
import re
import secrets
import shutil
import sys
import tokenize
import zipfile
from collections import Counter
from itertools import combinations
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE)]

from cases import draw, is_telling, redraw  # noqa: E402
from mistakes import MISTAKES, plant  # noqa: E402
from process import GIVEN, SUBMITTED, Process  # noqa: E402

MODULES = SUBMITTED[:-1]
GRADER = ("grade.py", "process.py", "calls.py", "final.py")  # what a student gets of this folder
OPEN_SEED = 1  # of the students' own grader
MARKER = re.compile(r"^( +)# --- solution: part (\d+) ---$")
LIMIT = 600  # seconds for the reference's answers

# ------------------------------------------------------------------------------------------------ the student's folder

MAKEFILE = """\
# make grade works as the first command typed in here.
PYTHON ?= python3
PY = .venv/bin/python

.PHONY: grade run final

grade: .venv/installed  ## points and hints, and submission.zip; PART=2 for one part in detail
	$(PY) grader/grade.py . $(if $(PART),--part $(PART))

run: .venv/installed  ## P2O on the tiny model, with your code
	$(PY) p2o.py

final: .venv/installed  ## the final task: your line (about two minutes on two cores)
	$(PY) grader/final.py

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \\
		{ echo "Python 3.11 or newer is needed; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "installing into .venv (a few minutes the first time)"
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
"""

# GitHub Classroom runs this for every push: green when all parts have all their points.
WORKFLOW = """\
name: grade
on: push
jobs:
  grade:
    runs-on: ubuntu-latest
    timeout-minutes: 20
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with: {python-version: "3.12", cache: pip}
      - run: make grade
      - uses: actions/upload-artifact@v4
        if: always()
        with: {name: grade, path: grade.xml}
"""


def solutions(source: str) -> list[tuple[int, int, int, str]]:
    """(marker's line, line behind the hole, part, function) of each hole; lines count from 0.

    A marker that stands in no top-level function with a docstring is a mistake in the reference.
    """
    lines = source.split("\n")
    marked = {i: int(match.group(2)) for i, line in enumerate(lines) if (match := MARKER.match(line))}
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            behind_docstring = node.body[0].end_lineno
            for marker in [i for i in marked if behind_docstring <= i < node.end_lineno]:
                end = node.end_lineno if marker == behind_docstring else end_of_hole(lines, marker)
                found.append((marker, end, marked.pop(marker), node.name))
    if marked:
        raise SyntaxError(f"marker in no function with a docstring: lines {[i + 1 for i in marked]}")
    return found


def end_of_hole(lines: list[str], marker: int) -> int:
    """The first line behind a marker that is blank or further to the left."""
    indent = MARKER.match(lines[marker]).group(1)
    return next(i for i in range(marker + 1, len(lines)) if not lines[i].startswith(indent))


def without_solutions(source: str) -> str:
    """The source without its solutions.

    >>> print(without_solutions('def f(x):\\n    "Doubles."\\n    # --- solution: part 3 ---\\n    return 2 * x\\n'))
    def f(x):
        "Doubles."
        raise NotImplementedError("part 3: f")
    <BLANKLINE>
    """
    lines, holes = source.split("\n"), solutions(source)
    of_function = Counter(name for *_, name in holes)
    still_to_number = Counter(of_function)
    for first, last, part, name in reversed(holes):
        which = f", hole {still_to_number[name]} of {of_function[name]}" if of_function[name] > 1 else ""
        still_to_number[name] -= 1
        indent = MARKER.match(lines[first]).group(1)
        lines[first:last] = [f'{indent}raise NotImplementedError("part {part}: {name}{which}")']
    return "\n".join(lines)


def make(folder: Path, solved: bool = False) -> None:
    """Write the student's folder; with `solved`, the reference itself (for trying out the grader)."""
    (folder / "grader").mkdir(parents=True)
    for name in MODULES:
        source = (ROOT / name).read_text(encoding="utf-8")
        (folder / name).write_text(source if solved else without_solutions(source), encoding="utf-8")
    (folder / "Makefile").write_text(MAKEFILE, encoding="utf-8")
    workflow = folder / ".github" / "workflows" / "grade.yml"
    workflow.parent.mkdir(parents=True)
    workflow.write_text(WORKFLOW, encoding="utf-8")
    (folder / ".gitignore").write_text(".venv/\n__pycache__/\nruns/\ngrade.xml\nsubmission.zip\n", encoding="utf-8")
    for name in ("HANDOUT.md", "adapters.py"):
        shutil.copy(HERE / name, folder / name)
    shutil.copy(ROOT / "requirements.txt", folder / "requirements.txt")
    for name in GIVEN:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.tmp", "*.pt"))
    for name in GRADER:
        shutil.copy(HERE / name, folder / "grader" / name)


def write_cases(folder: Path, parts: tuple[int, ...] = tuple(range(1, 9))) -> None:
    """The open cases of the students' grader: inputs, the reference's answers, and those of known mistakes."""
    with Process(unlocked=True) as process:  # it runs nothing but the reference
        cases = fresh(process, OPEN_SEED, parts)
        diagnosis = Diagnosis(process, cases)
        cases = [case | {"mistaken": diagnosis(case)} for case in cases]
    (folder / "grader" / "cases.json").write_text(json.dumps(cases), encoding="utf-8")


# --------------------------------------------------------------------------------------------- the reference's answers

# The reference answers through the same door as a submission: in a process of its own, call by call.


def reference() -> dict[str, str]:
    """The files of a submission that is right."""
    sources = {name: (ROOT / name).read_text(encoding="utf-8") for name in MODULES}
    return sources | {"adapters.py": (HERE / "adapters.py").read_text(encoding="utf-8")}


def fresh(process: Process, seed: int, parts: tuple[int, ...]) -> list[dict]:
    """The cases of these parts, with the reference's outputs as `expected`."""
    cases = answered(process, [case for case in draw(seed) if case["part"] in parts])
    for attempt in range(1, 20):
        # A run in which nothing happens (no template is found, say) would pass a loop that does nothing there.
        silent = [n for n, case in enumerate(cases) if case["call"] == "train" and not is_telling(case)]
        if not silent:
            return cases
        for n, case in zip(silent, answered(process, [redraw(cases[n], seed, attempt) for n in silent]), strict=True):
            cases[n] = case
    raise RuntimeError(f"--seed {seed} gives no runs that show what a loop does; take another")


def answered(process: Process, cases: list[dict]) -> list[dict]:
    """The cases with the reference's outputs."""
    replies = list(process.replies(process.folder(reference()), cases, LIMIT))
    failed = [reply for reply in replies if "output" not in reply]
    if failed:
        raise RuntimeError(f"the reference does not answer: {failed[0]}")
    return [case | {"expected": reply["output"]} for case, reply in zip(cases, replies, strict=True)]


class Diagnosis:
    """What each known mistake answers to a case: [(hint, output)]. Each one is asked all cases of its part, once."""

    def __init__(self, process: Process, cases: list[dict]):
        self.process, self.cases = process, [case for case in cases if case["call"] != "train"]  # a run takes too long
        self.known: dict[int, dict[str, list]] = {}

    def __call__(self, case: dict) -> list[tuple[str, object]]:
        part = case["part"]
        if part not in self.known:
            self.known[part] = self.answers([each for each in self.cases if each["part"] == part], part)
        return self.known[part].get(case["name"], [])

    def answers(self, cases: list[dict], part: int) -> dict[str, list[tuple[str, object]]]:
        found: dict[str, list] = {case["name"]: [] for case in cases}
        for mistake in (each for each in MISTAKES if each.part == part and each.hint):
            folder: Path = self.process.folder(plant(reference(), mistake))
            replies = self.process.replies(folder, cases, LIMIT)
            for case, reply in zip(cases, replies, strict=False):
                if reply.get("output", case["expected"]) != case["expected"]:
                    found[case["name"]].append((mistake.hint, reply["output"]))
        return found


# ---------------------------------------------------------------------------------------------- what submissions share

# Which submissions have more in common than the assignment explains? A note for a conversation, not a verdict.

LENGTH = 6  # tokens in a row
LEAST = 0.5  # share of common rows from which on a pair is written down
COMMON = 0.3  # a row that more than this share of a class has is the usual way to write it


def shingles(source: str) -> set[tuple[str, ...]]:
    """Rows of LENGTH tokens, in which every name is alike: renaming hides nothing.

    >>> shingles("a = b + c * d") == shingles("x = y + z * w  # mine")
    True
    """
    words = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.NAME:
                words.append(token.string if keyword.iskeyword(token.string) else "name")
            elif token.type in (tokenize.OP, tokenize.NUMBER):
                words.append(token.string)
    except (tokenize.TokenError, IndentationError, SyntaxError):
        pass  # as far as it goes
    return {tuple(words[i : i + LENGTH]) for i in range(len(words) - LENGTH + 1)}


def pairs(sources: dict[str, set], known: set) -> list[tuple[float, str, str]]:
    """(share of the smaller one's own rows that the other has, one, other), the most alike first.

    `known` is what was given out and what the reference says: in a right solution that proves nothing.
    """
    seen = Counter(row for rows in sources.values() for row in rows)
    most = max(2, COMMON * len(sources))
    own = {name: {row for row in rows - known if seen[row] <= most} for name, rows in sources.items()}
    found = []
    for one, other in combinations(own, 2):
        smaller = min(len(own[one]), len(own[other]))
        share = len(own[one] & own[other]) / smaller if smaller else 0.0
        if share >= LEAST:
            found.append((share, one, other))
    return sorted(found, reverse=True)


def write_similar(folders: dict[str, Path], reference: Path, file: Path) -> None:
    """similar.csv: pairs of submissions, and how much of what is neither given nor usual they share."""

    def rows_of(folder: Path) -> set:
        return set().union(*(shingles((folder / name).read_text("utf-8", "replace")) for name in MODULES))

    found = pairs({name: rows_of(folder) for name, folder in folders.items()}, rows_of(reference))
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["share", "one", "other"])
        writer.writerows([f"{share:.2f}", one, other] for share, one, other in found)


# ---------------------------------------------------------------------------------------------------------- Gradescope

# setup.sh runs when Gradescope builds its image, run_autograder for each submission. Only root can read the solution
# there, so a submission cannot, even where the kernel has no Landlock: it is then run as another user.
SETUP = """\
#!/usr/bin/env bash
set -e
autograder=${AUTOGRADER:-/autograder}
apt-get update
apt-get install -y python3 python3-venv
python=python3
if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    apt-get install -y python3.11 python3.11-venv  # Ubuntu 22.04, whose python3 is 3.10
    python=python3.11
fi
$python -m venv "$autograder/venv"
if [ -n "$TORCH_INDEX" ]; then  # torch's CPU build; pip keeps it below
    "$autograder/venv/bin/pip" install --quiet --index-url "$TORCH_INDEX" \
        "$(grep '^torch==' "$autograder/source/requirements.txt")"
fi
"$autograder/venv/bin/pip" install --quiet -r "$autograder/source/requirements.txt"
chmod -R go= "$autograder/source"
"""
# The same as an image, for a course's own machine, or for Gradescope's manual configuration.
DOCKERFILE = """\
# In the folder where autograder.zip was unpacked:
#   docker build -t p2o-grader --build-arg TORCH_INDEX=URL .
#   docker run --rm --network none -v "$PWD/handed-in:/handed-in" p2o-grader python assignment/grade.py /handed-in
# URL is the index of torch's CPU builds; pytorch.org names it (Get started, CPU). Without it the image also holds
# CUDA's libraries: gigabytes that nothing uses. For Gradescope add
#   --build-arg BASE=gradescope/autograder-base:ubuntu-22.04
# The grader is root, and only root reads the solution. A submission is locked up by the kernel (Landlock), or runs as
# the user nobody.
ARG BASE=ubuntu:24.04
FROM ${BASE}
ARG TORCH_INDEX=
ENV DEBIAN_FRONTEND=noninteractive PATH=/autograder/venv/bin:$PATH
COPY . /autograder/source
RUN bash /autograder/source/setup.sh
RUN cp /autograder/source/run_autograder /autograder/run_autograder
RUN mkdir -p /autograder/submission /autograder/results
WORKDIR /autograder/source
CMD ["/autograder/run_autograder"]
"""
RUN_AUTOGRADER = """\
#!/usr/bin/env bash
autograder=${AUTOGRADER:-/autograder}
chmod -R go= "$autograder/source"
cd "$autograder/source"
python=$autograder/venv/bin/python
"$python" assignment/grade.py "$autograder/submission" --seed SEED --results "$autograder/results/results.json"
exit 0  # points lost are no failure of the grader
"""


def write_gradescope(file: Path, seed: int) -> None:
    """The zip for Gradescope: the grader, the reference, and what runs them. All of a class have the same inputs."""
    scripts = {"setup.sh": SETUP, "run_autograder": RUN_AUTOGRADER.replace("SEED", str(seed)), "Dockerfile": DOCKERFILE}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in scripts.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o755 << 16
            archive.writestr(entry, text)
        paths = [ROOT / name for name in (*MODULES, "requirements.txt")]
        for folder in (*GIVEN, "assignment"):
            paths += [path for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]
        for path in paths:
            if "__pycache__" not in path.parts and path.suffix not in (".tmp", ".pt"):
                archive.write(path, path.relative_to(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="the student's folder to write")
    parser.add_argument("--solved", action="store_true", help="write the reference, solutions included")
    parser.add_argument("--gradescope", type=Path, metavar="ZIP", help="write the zip for Gradescope")
    parser.add_argument("--seed", type=int, help="of the inputs of a class, for Gradescope; drawn if you name none")
    arguments = parser.parse_args()
    if not arguments.folder and not arguments.gradescope:
        parser.error("name a folder for the student's version, or --gradescope FILE.zip")
    for path in filter(None, (arguments.folder, arguments.gradescope)):
        if path.exists():
            print(f"{path} is there already; nobody's work is written over", file=sys.stderr)
            return 2
    if arguments.gradescope:
        seed = secrets.randbits(48) if arguments.seed is None else arguments.seed
        write_gradescope(arguments.gradescope, seed)
        print(f"{arguments.gradescope} written; all submissions get the inputs of --seed {seed}. Keep it secret")
    if arguments.folder:
        make(arguments.folder, arguments.solved)
        print("drawing the questions of your grader (a minute) ...", flush=True)
        write_cases(arguments.folder)
        print(f"{arguments.folder}/HANDOUT.md says what to do; `make grade` in there says how far you are")
    return 0


if __name__ == "__main__":
    sys.exit(main())
