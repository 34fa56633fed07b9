"""Does the assignment's grader notice? Each mutant of a graded function must lose the points of just its part.

    python bench/mutate_assignment.py              # all parts; results/assignment_mutants.md and .json
    python bench/mutate_assignment.py 1 5          # these parts anew, the others as they were measured before

A mutant of part 8's file leaves the files of parts 1 to 7 as they are, and the other way round (part 8 stands on the
reference's): only the parts that run the changed file are graded. Mutants that nobody could tell from the reference are
listed below, each with its reason.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "assignment")]

import exam  # noqa: E402
import grade  # noqa: E402
import make  # noqa: E402
from compare import difference  # noqa: E402
from process import Process  # noqa: E402

from bench.mutants import Mutant, mutants  # noqa: E402

SEED = 20260321
FILES = {"grpo.py": (1, 2, 3, 4), "gepa_loop.py": (5, 6), "verify.py": (7,), "p2o.py": (8,)}
EQUIVALENT: dict[str, str] = json.loads((ROOT / "bench" / "assignment_equivalent.json").read_text(encoding="utf-8"))


def graded_mutants(parts: set[int]) -> list[tuple[int, str, Mutant]]:
    """(part, file, mutant) of every change to the body of a function that is graded."""
    found = []
    for file in FILES:
        source = (ROOT / file).read_text(encoding="utf-8")
        part_of = {name: part for *_, part, name in make.solutions(source)}
        found += [(part_of[m.function], file, m) for m in mutants(source, set(part_of)) if part_of[m.function] in parts]
    return found


def lost(grader: grade.Grader, part: int, file: str, source: str) -> dict[int, dict]:
    """{part: its first check that fails} of the parts that a changed file costs.

    One process for all parts of a file, since students' processes are not what is measured here; a part ends with its
    first check that fails.
    """
    folder = grader.process.folder(exam.reference() | {file: source})
    cases = sorted((c for c in grader.cases if c["part"] in FILES[file]), key=lambda case: case["part"] != part)
    found: dict[int, tuple[dict, dict]] = {}
    while cases:
        asked = []

        def still_open(rest=cases, asked=asked):
            for case in rest:
                if case["part"] not in found:
                    asked.append(case)
                    yield case

        for reply in grader.process.replies(folder, still_open(), grade.RUN_LIMIT if part == 8 else 20):
            if reply.get("output") is None or difference(asked[-1]["expected"], reply["output"], asked[-1]["tol"]):
                found.setdefault(asked[-1]["part"], (asked[-1], reply))
        died = bool(asked) and "died" in reply
        cases = [case for case in cases if died and case["part"] not in found]
    return {number: grader.outcome(*wrong) for number, wrong in found.items()}


def table(results: list[dict]) -> str:
    """Markdown: of each part its mutants, those that cost just its points, those that cannot, and the rest by name."""
    rows = ["| part | mutants | equivalent | caught | of the others |", "| --- | --- | --- | --- | --- |"]
    survivors = []
    for part in sorted({result["part"] for result in results}) + ["all"]:
        these = [r for r in results if part in (r["part"], "all")]
        real = [r for r in these if not r["equivalent"]]
        caught = sum(r["lost"] == [r["part"]] for r in real)
        rows.append(
            f"| {part} | {len(these)} | {len(these) - len(real)} | {caught} | {caught / max(1, len(real)):.1%} |"
        )
        survivors += [r for r in real if r["lost"] != [r["part"]] and part != "all"]
    lines = ["\nNot caught:\n" if survivors else "\nAll are caught."]
    lines += [f"- part {r['part']}, {r['name']} (lost: {r['lost'] or 'nothing'})" for r in survivors]
    lines += ["\nEquivalent, and why:\n"]
    lines += [f"- part {r['part']}, {r['name']}: {r['equivalent']}" for r in results if r["equivalent"]]
    return "\n".join([*rows, *lines]) + "\n"


def main(argv: list[str]) -> None:
    parts = set(map(int, argv)) or set(grade.PARTS)
    results = []
    with Process() as process:
        grader = grade.secret_grader(process, SEED, tuple(sorted(parts)))
        grader.mistaken = lambda case: []  # whether points are lost, not why
        for part, file, mutant in graded_mutants(parts):
            equivalent = EQUIVALENT.get(mutant.name, "")
            found = {} if equivalent else lost(grader, part, file, mutant.source)
            seen = {number: f"{o['call']}, {o['name']}: {o['message']}" for number, o in found.items()}
            said = "equivalent" if equivalent else seen or "SURVIVED"
            print(f"{file}:{mutant.line}: {mutant.name}\n    {said}", flush=True)
            result = {"part": part, "file": file, "name": mutant.name, "equivalent": equivalent}
            results.append(result | {"lost": sorted(found), "messages": list(seen.values())})
    keep(results, parts)


def keep(results: list[dict], parts: set[int]) -> None:
    """Write the table of these results and of what is known of the other parts."""
    out = ROOT / "results" / "assignment_mutants"
    file = out.with_suffix(".json")
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    results = sorted([r for r in known if r["part"] not in parts] + results, key=lambda result: result["part"])
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    made = f"Made by `python bench/mutate_assignment.py`, inputs drawn under seed {SEED}.\n\n"
    out.with_suffix(".md").write_text(made + table(results), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main(sys.argv[1:])
