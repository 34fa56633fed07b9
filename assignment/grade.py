"""Grade a student's folder, a submission.zip, or a folder of zips: points for each part, what is wrong, and a hint.

    python assignment/grade.py student               # points, student/grade.xml, student/submission.zip
    python assignment/grade.py student --part 2      # one part, with the tracebacks
    python assignment/grade.py submission.zip        # the instructor's side
    python assignment/grade.py handed-in/            # a folder of zips: grades.csv, similar.csv, an XML for each

The student's code runs in a process of its own, which holds no reference and no expected values (runner.py, jail.py).
It is asked call by call; its outputs come back as data and are compared here. The instructor's inputs are drawn under a
secret seed; a student's folder has cases.json, drawn once. A part has its points if all its checks pass. Parts 1 to 7
run on the student's modules; part 8 runs the student's p2o.py on the reference's other modules, so that an earlier
mistake costs its points once (in a student's folder, on the student's own).
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import marks  # noqa: E402
from compare import difference, hint_of  # noqa: E402
from marks import PARTS  # noqa: E402
from process import HERE, ROOT, SUBMITTED, Process  # noqa: E402

BELOW = ("grpo.py", "gepa_loop.py", "verify.py")  # what part 8 stands on
LIMIT = 60  # seconds of processor time for a part
RUN_LIMIT = 180  # for part 8, which trains
OPEN_CASES = HERE / "cases.json"
Mistaken = Callable[[dict], list]  # a case -> (hint, output) of the known mistakes


class Grader:
    """Cases with their answers, and a process to ask submissions."""

    def __init__(self, process: Process, cases: list[dict], mistaken: Mistaken, below: Path | None):
        """`below`: the folder of the modules that part 8 stands on; None for the submission's own."""
        self.process, self.cases, self.mistaken, self.below = process, cases, mistaken, below

    def grade(self, folder: Path, parts: tuple[int, ...] = tuple(PARTS), limit: int | None = None) -> dict:
        """{part: outcomes of its checks}"""
        return {part: self.outcomes(folder, part, limit) for part in parts}

    def outcomes(self, folder: Path, part: int, limit: int | None = None) -> list[dict]:
        """The outcome of each check of a part; a process that has died ends them."""
        limit = limit or (RUN_LIMIT if part == 8 else LIMIT)
        given = self.below if part == 8 and self.below else folder
        files = {
            name: ((given if name in BELOW else folder) / name).read_text("utf-8", "replace") for name in SUBMITTED
        }
        cases = [case for case in self.cases if case["part"] == part]
        replies, started = [], time.monotonic()
        for reply in self.process.replies(self.process.folder(files), cases, limit):
            replies.append((reply, time.monotonic() - started))
            started = time.monotonic()
        # Not before they all are there: a diagnosis asks the same process.
        return [
            self.outcome(case, reply) | {"seconds": seconds}
            for case, (reply, seconds) in zip(cases, replies, strict=False)
        ]

    def outcome(self, case: dict, reply: dict) -> dict:
        outcome = {"name": case["name"], "call": case["call"], "passed": False, "hint": "", "traceback": ""}
        if "unwritten" in reply:
            return outcome | {"message": "not written yet", "hint": str(reply["unwritten"])}
        if "died" in reply:
            return outcome | {"message": reply["died"], "hint": "Does a loop never end? Does your code call exit()?"}
        if "output" not in reply:
            trace = {"hint": case["hint"], "traceback": str(reply.get("traceback", ""))}
            return outcome | {"message": str(reply.get("error", "no output"))} | trace
        message = difference(case["expected"], reply["output"], case["tol"])
        if message is None:
            return outcome | {"passed": True, "message": ""}
        return outcome | {"message": message, "hint": hint_of(case, reply["output"], self.mistaken(case), message)}


def open_grader(process: Process) -> Grader:
    """The students' own: cases that were drawn when the folder was made."""
    cases = json.loads(OPEN_CASES.read_text(encoding="utf-8"))
    return Grader(process, cases, lambda case: case["mistaken"], below=None)


def secret_grader(process: Process, seed: int, parts: tuple[int, ...] = tuple(PARTS)) -> Grader:
    """The instructor's: cases under this seed, answered by the reference."""
    from exam import Diagnosis, fresh  # a student's folder has neither

    cases = fresh(process, seed, parts)
    return Grader(process, cases, Diagnosis(process, cases), below=ROOT)


# ------------------------------------------------------------------------------------------------- what was handed in


def pack(folder: Path) -> Path:
    """submission.zip with the five files."""
    file = folder / "submission.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in SUBMITTED:
            archive.write(folder / name, name)
    return file


LARGEST = 1 << 20  # bytes of a file that is handed in


def unpack(file: Path, folder: Path) -> Path:
    """The five files of a submission, and nothing else that may be in the zip."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file) as archive:
        for name in SUBMITTED:
            if archive.getinfo(name).file_size > LARGEST:
                raise OSError(f"{name} is larger than {LARGEST} bytes")
            (folder / name).write_bytes(archive.read(name))
    return folder


def submission(path: Path, scratch: Path) -> Path:
    """The folder of what was handed in; an OSError that says what is missing."""
    try:
        folder = unpack(path, scratch) if path.suffix == ".zip" else path
        missing = [name for name in SUBMITTED if not (folder / name).is_file()]
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # damaged, or encrypted
        raise OSError(f"{path}: not a submission ({error})") from None
    if missing:
        raise OSError(f"{path}: not a submission, no {', '.join(missing)}; `make assignment` writes one")
    return folder


def grade_all(grader: Grader, folder: Path, scratch: Path) -> None:
    """Every zip of a folder. A bad one has no points and a note, and stops nothing."""
    import similarity

    graded, sources = {}, {}
    for file in sorted(folder.glob("*.zip")):
        try:
            handed_in = submission(file, scratch / file.stem)
            graded[file.name] = grader.grade(handed_in)
            sources[file.name] = handed_in
        except OSError as error:
            graded[file.name] = str(error)
        marks.write_junit(graded[file.name], file.with_suffix(".xml"))
        print(marks.line(file.name, graded[file.name]), flush=True)
    marks.write_csv(graded, folder / "grades.csv")
    similarity.write_note(sources, ROOT, folder / "similar.csv")
    print(f"{folder / 'grades.csv'} and {folder / 'similar.csv'} written")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="a student's folder, a submission.zip, or a folder of zips")
    parser.add_argument("--part", type=int, choices=PARTS, help="grade one part only, and show the tracebacks")
    parser.add_argument("--seed", type=int, help="the instructor's: draw the inputs that this seed gives")
    arguments = parser.parse_args()
    path, parts = arguments.path, (arguments.part,) if arguments.part else tuple(PARTS)
    many = path.is_dir() and any(path.glob("*.zip")) and not (path / "adapters.py").exists()
    with tempfile.TemporaryDirectory() as scratch, Process() as process:
        try:
            folder = path if many else submission(path, Path(scratch) / "one")
        except OSError as error:
            print(error, file=sys.stderr)
            return 2
        seed = secrets.randbits(48) if arguments.seed is None else arguments.seed
        grader = open_grader(process) if OPEN_CASES.exists() else secret_grader(process, seed, parts)
        if many:
            grade_all(grader, folder, Path(scratch))
        else:
            outcomes = grader.grade(folder, parts)
            print(marks.report(outcomes, tracebacks=bool(arguments.part)))
            if not arguments.part:
                marks.write_junit(outcomes, path.with_suffix(".xml") if folder != path else folder / "grade.xml")
                print(f"{pack(folder)} is what to hand in" if folder == path else "")
        if not process.locked:
            print(
                "this system cannot lock a process up (jail.py): grade strangers' work in a container", file=sys.stderr
            )
        if not OPEN_CASES.exists():
            print(f"inputs drawn under --seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
