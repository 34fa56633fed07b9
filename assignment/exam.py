"""The instructor's questions and answers: drawn fresh, answered by the reference, with what each known mistake says.

The reference answers through the same door as a submission: in a process of its own, call by call.
"""

from __future__ import annotations

from pathlib import Path

from cases import draw
from mistakes import MISTAKES, plant
from process import HERE, ROOT, SUBMITTED, Process

MODULES = SUBMITTED[:-1]
LIMIT = 600  # seconds


def reference() -> dict[str, str]:
    """The files of a submission that is right."""
    sources = {name: (ROOT / name).read_text(encoding="utf-8") for name in MODULES}
    return sources | {"adapters.py": (HERE / "adapters.py").read_text(encoding="utf-8")}


def fresh(process: Process, seed: int, parts: tuple[int, ...]) -> list[dict]:
    """The cases of these parts, with the reference's outputs as `expected`."""
    cases = [case for case in draw(seed) if case["part"] in parts]
    replies = list(process.replies(process.folder(reference()), cases, LIMIT))
    failed = [reply for reply in replies if "output" not in reply]
    if failed:
        raise RuntimeError(f"the reference does not answer: {failed[0]}")
    return [case | {"expected": reply["output"]} for case, reply in zip(cases, replies, strict=True)]


class Diagnosis:
    """What each known mistake answers to a case: [(hint, output)]. Each one is asked all cases of its part, once."""

    def __init__(self, process: Process, cases: list[dict]):
        self.process, self.cases = process, [case for case in cases if case["call"] != "train"]  # runs are too dear
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


def public(process: Process, seed: int, parts: tuple[int, ...]) -> list[dict]:
    """The cases of the students' own grader, with their answers and what known mistakes answer."""
    cases = fresh(process, seed, parts)
    diagnosis = Diagnosis(process, cases)
    return [case | {"mistaken": diagnosis(case)} for case in cases]
