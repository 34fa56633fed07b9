"""Points, and how they are written down: for the eye, as JUnit XML, as CSV."""

from __future__ import annotations

import csv
from pathlib import Path
from xml.etree import ElementTree

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
Outcomes = dict[int, list[dict]]  # part -> outcomes of its checks


def points(outcomes: Outcomes) -> dict[int, int]:
    """{part: its points if all its checks passed, else 0}"""
    return {
        part: PARTS[part][1] * (bool(checks) and all(check["passed"] for check in checks))
        for part, checks in outcomes.items()
    }


def report(outcomes: Outcomes, tracebacks: bool = False) -> str:
    """Points for each part, and of each check that failed the numbers and a hint."""
    earned, lines = points(outcomes), []
    for part, checks in outcomes.items():
        title, worth = PARTS[part]
        failed = [check for check in checks if not check["passed"]]
        counted = f"{len(checks) - len(failed)} of {len(checks)} checks"
        lines.append(f"part {part}  {title:<22} {earned[part]:>3} of {worth:<3} ({counted})")
        if failed and all(check["message"] == "not written yet" for check in checks):
            lines.append("        not written yet")
            continue
        for check in failed:
            lines.append(f"      - {check['call']}, {check['name']}: {check['message'][:200]}")
            lines.append(f"        hint: {check['hint']}")
            lines += ["        " + line for line in check["traceback"].splitlines() if tracebacks]
    lines.append(f"total   {sum(earned.values()):>26} of {sum(PARTS[part][1] for part in outcomes)}")
    return "\n".join(lines)


def line(name: str, outcomes: Outcomes | str) -> str:
    """One submission in one line; a string says why there is nothing to grade."""
    if isinstance(outcomes, str):
        return f"{name}: {outcomes}"
    earned = points(outcomes)
    return f"{name}: {sum(earned.values())} points ({' '.join(map(str, earned.values()))})"


def write_csv(graded: dict[str, Outcomes | str], file: Path) -> None:
    """A row for each submission: points of each part, their sum, and why, if nothing could be graded."""
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["submission", *(f"part {part}" for part in PARTS), "total", "note"])
        for name, outcomes in graded.items():
            note, earned = (outcomes, {}) if isinstance(outcomes, str) else ("", points(outcomes))
            writer.writerow([name, *(earned.get(part, 0) for part in PARTS), sum(earned.values()), note])


def write_junit(outcomes: Outcomes | str, file: Path) -> None:
    """A suite for each part, with its points as a property, and a case for each check."""
    suites = ElementTree.Element("testsuites")
    for part, checks in ({} if isinstance(outcomes, str) else outcomes).items():
        title, worth = PARTS[part]
        failures = str(sum(not check["passed"] for check in checks))
        named = {"name": f"part {part}: {title}", "tests": str(len(checks)), "failures": failures}
        suite = ElementTree.SubElement(suites, "testsuite", named)
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in (("points", points({part: checks})[part]), ("worth", worth)):
            ElementTree.SubElement(properties, "property", name=name, value=str(value))
        for check in checks:
            named = {"classname": f"part{part}.{check['call']}", "name": check["name"]}
            case = ElementTree.SubElement(suite, "testcase", named, time=f"{check['seconds']:.3f}")
            if not check["passed"]:
                failure = ElementTree.SubElement(case, "failure", message=xml_text(check["message"]))
                failure.text = xml_text(f"{check['hint']}\n{check['traceback']}")
    if isinstance(outcomes, str):
        suite = ElementTree.SubElement(suites, "testsuite", name="submission", tests="1", errors="1")
        case = ElementTree.SubElement(suite, "testcase", classname="submission", name="five files")
        ElementTree.SubElement(case, "error", message=xml_text(outcomes))
    ElementTree.ElementTree(suites).write(file, encoding="utf-8", xml_declaration=True)


def xml_text(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")
