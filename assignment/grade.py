"""Grade a student's folder, or a submission.zip: points for each part, hints, JUnit XML, and the zip to hand in.

    python assignment/grade.py student                  # writes student/grade.xml and student/submission.zip
    python assignment/grade.py student --part 2         # one part, with the tracebacks
    python assignment/grade.py submission.zip           # the instructor's side

The student's code runs in a process of its own. A part that takes longer than its limit, or kills the process, loses
its points and no others. A part has its points if all its checks pass. Parts 1 to 7 run on the student's modules; part
8 runs the student's p2o.py on the reference's other modules, so that an earlier mistake costs its points once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SUBMITTED = ("grpo.py", "gepa_loop.py", "verify.py", "p2o.py", "adapters.py")
PARTS = {  # part -> (title, points)
    1: ("group advantages", 10),
    2: ("policy loss", 15),
    3: ("template-ratio weight", 10),
    4: ("log-probs", 15),
    5: ("greedy cover", 10),
    6: ("template assignment", 10),
    7: ("reward", 10),
    8: ("the alternating loop", 20),
}
START_LIMIT, PART_LIMIT = 180.0, 60.0  # seconds

# --------------------------------------------------------------------------------- in the process that runs their code


@cache
def reference(name: str) -> ModuleType:
    """The reference's own module, beside the student's of the same name."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with installed({name: module, **{other: reference(other) for other in IMPORTS[name]}}):
        spec.loader.exec_module(module)
    return module


@cache
def tiny_policy(temperature: float):
    """The shipped model with a fresh adapter, loaded once for all checks of all submissions."""
    grpo = reference("grpo")
    return grpo.load_policy(grpo.PolicyConfig(temperature=temperature))


IMPORTS = {"verify": (), "grpo": (), "gepa_loop": ("verify",), "p2o": ("verify", "grpo", "gepa_loop")}


@contextlib.contextmanager
def installed(modules: dict[str, ModuleType]):
    """These modules under these names, for as long as the block lasts."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


@contextlib.contextmanager
def students_code(folder: Path, part: int):
    """Imports find the student's modules; for part 8, the reference's below p2o."""
    sys.path.insert(0, str(folder))
    modules = {name: reference(name) for name in IMPORTS["p2o"]} if part == 8 else {}
    try:
        with installed(modules):
            yield
    finally:
        sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file and Path(file).resolve().is_relative_to(folder):
                del sys.modules[name]


class Collect:
    """A pytest plugin that keeps the outcome of each check."""

    def __init__(self):
        self.outcomes: list[dict] = []
        self.hints: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items):
        self.hints = {item.nodeid: " ".join((item.function.__doc__ or "").split()) for item in items}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.failed:
            name = report.nodeid.rpartition("::")[2]
            message = "" if report.passed else report.longreprtext
            outcome = {"name": name, "passed": report.passed, "seconds": report.duration, "message": message}
            self.outcomes.append(outcome | {"hint": self.hints.get(report.nodeid, "")})


def run_part(folder: Path, part: int) -> list[dict]:
    import pytest

    collect = Collect()
    arguments = [str(HERE / "checks.py"), "-k", f"test_{part}_", "-o", "addopts=", "-p", "no:cacheprovider", "-q"]
    arguments += ["-p", "no:unraisableexception"]  # it collects garbage five times over all of torch
    with students_code(folder, part):
        pytest.main([*arguments, "--rootdir", str(HERE), "--import-mode", "append"], plugins=[collect])
    return collect.outcomes


def serve() -> None:
    """Answer {"folder", "part"} lines with lines of outcomes, until the input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the student's code prints is no reply
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    sys.path[:] = [str(HERE), str(ROOT), *[p for p in sys.path if p not in (str(HERE), str(ROOT), "")]]
    sys.modules["grade"] = sys.modules["__main__"]
    sys.dont_write_bytecode = True
    import peft  # noqa: F401  (heavy imports now, so that the first part is not charged for them)
    import torch

    with installed(
        {name: reference(name) for name in IMPORTS}
    ):  # given code is the reference's, whatever the folder holds
        for file in sorted((ROOT / "support").glob("*.py")):
            with contextlib.suppress(ImportError):  # what needs a package that is not installed is not needed here
                importlib.import_module(f"support.{file.stem}")
    sys.path.remove(str(ROOT))  # or a module that is missing from the folder would be found here
    torch.set_num_threads(1)
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(run_part(Path(request["folder"]), request["part"])), file=replies, flush=True)


# ------------------------------------------------------------------------------------------------ the grader's process


class Worker:
    """A process that runs students' code; ended when it takes too long, and started anew when it is needed again."""

    process: subprocess.Popen | None = None

    def run(self, folder: Path, part: int, limit: float = PART_LIMIT) -> list[dict]:
        """The outcomes of one part's checks."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), "--worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            if self.reply(START_LIMIT) != b"ready\n":
                self.stop()
                raise RuntimeError("the grader's own process does not start; does `make test` pass?")
        self.process.stdin.write(json.dumps({"folder": str(folder.resolve()), "part": part}).encode() + b"\n")
        self.process.stdin.flush()
        line = self.reply(limit)
        if line.endswith(b"\n"):
            return json.loads(line) or [failure("no check ran")]
        code = self.process.poll()
        self.stop()
        if code is None:
            return [failure(f"it took longer than {limit:.0f} s", "Does a loop never end?")]
        return [failure(f"the process ended with code {code}", "Does your code call exit()?")]

    def reply(self, limit: float) -> bytes:
        """One line, or what there is of it when the time is up or the process has ended."""
        import time

        end, line = time.monotonic() + limit, b""
        while not line.endswith(b"\n"):
            if not select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                break
            piece = os.read(self.process.stdout.fileno(), 65536)
            if not piece:
                self.process.wait()
                break
            line += piece
        return line

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def failure(message: str, hint: str = "") -> dict:
    return {"name": "run", "passed": False, "seconds": 0.0, "message": message, "hint": hint}


def grade(folder: Path, worker: Worker, parts=tuple(PARTS), limit: float = PART_LIMIT) -> dict[int, list[dict]]:
    """{part: outcomes of its checks}"""
    return {part: worker.run(folder, part, limit) for part in parts}


def points(outcomes: dict[int, list[dict]]) -> dict[int, int]:
    """{part: its points if all its checks passed, else 0}"""
    return {part: PARTS[part][1] * all(check["passed"] for check in checks) for part, checks in outcomes.items()}


def report(outcomes: dict[int, list[dict]], tracebacks: bool = False) -> str:
    lines = []
    earned = points(outcomes)
    for part, checks in outcomes.items():
        title, worth = PARTS[part]
        passed = sum(check["passed"] for check in checks)
        lines.append(f"part {part}  {title:<22} {earned[part]:>3} of {worth:<3} ({passed} of {len(checks)} checks)")
        if all("NotImplementedError" in check["message"] for check in checks if not check["passed"]) and not passed:
            lines.append("        not written yet")
            continue
        for check in checks:
            if not check["passed"]:
                lines.append(f"      - {check['name']}: {last_line(check['message'])}")
                if check["hint"]:
                    lines.append(f"        hint: {check['hint']}")
                if tracebacks:
                    lines += ["        " + line for line in check["message"].splitlines()]
    total = sum(PARTS[part][1] for part in outcomes)
    lines.append(f"total   {sum(earned.values()):>26} of {total}")
    return "\n".join(lines)


def last_line(message: str) -> str:
    """The assertion of a traceback in one line."""
    errors = [line[1:].strip() for line in message.splitlines() if line.startswith("E ")]
    return (errors or message.strip().splitlines() or [""])[0][:160]


def write_junit(outcomes: dict[int, list[dict]], file: Path) -> None:
    suites = ElementTree.Element("testsuites")
    for part, checks in outcomes.items():
        title, worth = PARTS[part]
        failures = sum(not check["passed"] for check in checks)
        suite = ElementTree.SubElement(
            suites, "testsuite", name=f"part {part}: {title}", tests=str(len(checks)), failures=str(failures)
        )
        properties = ElementTree.SubElement(suite, "properties")
        ElementTree.SubElement(properties, "property", name="points", value=str(points({part: checks})[part]))
        ElementTree.SubElement(properties, "property", name="worth", value=str(worth))
        for check in checks:
            case = ElementTree.SubElement(
                suite, "testcase", classname=f"part{part}", name=check["name"], time=f"{check['seconds']:.3f}"
            )
            if not check["passed"]:
                message = xml_text(check["hint"] or last_line(check["message"]))
                ElementTree.SubElement(case, "failure", message=message).text = xml_text(check["message"])
    ElementTree.ElementTree(suites).write(file, encoding="utf-8", xml_declaration=True)


def xml_text(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def pack(folder: Path) -> Path:
    """submission.zip with the five files and the grades as they are now."""
    file = folder / "submission.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (*SUBMITTED, "grade.xml"):
            archive.write(folder / name, name)
    return file


def unpack(file: Path, folder: Path) -> None:
    """The five files of a submission, and nothing else that may be in the zip."""
    with zipfile.ZipFile(file) as archive:
        for name in SUBMITTED:
            (folder / name).write_bytes(archive.read(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("submission", type=Path, help="a student's folder or a submission.zip")
    parser.add_argument("--part", type=int, choices=PARTS, help="grade one part only, and show the tracebacks")
    parser.add_argument("--limit", type=float, default=PART_LIMIT, help="seconds for one part")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, Worker() as worker:
        folder, zipped = arguments.submission, arguments.submission.suffix == ".zip"
        try:
            if zipped:
                unpack(folder, Path(scratch))
                folder = Path(scratch)
            missing = [name for name in SUBMITTED if not (folder / name).exists()]
            if missing:
                raise FileNotFoundError(f"no {', '.join(missing)} there")
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            print(f"{arguments.submission}: not a submission ({error}); `make assignment` writes one", file=sys.stderr)
            return 2
        outcomes = grade(folder, worker, [arguments.part] if arguments.part else tuple(PARTS), arguments.limit)
        print(report(outcomes, tracebacks=bool(arguments.part)))
        if not arguments.part and not zipped:
            write_junit(outcomes, folder / "grade.xml")
            print(f"{folder / 'grade.xml'} and {pack(folder)} written")
        elif zipped and not arguments.part:
            write_junit(outcomes, arguments.submission.with_suffix(".xml"))
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        serve()
    else:
        sys.exit(main())
