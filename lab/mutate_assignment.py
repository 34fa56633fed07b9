"""Does the assignment's grader notice? Each mutant of a graded function must lose the points of just its part.

    python lab/mutate_assignment.py          # all parts; writes lab/results/assignment_mutants.md
    python lab/mutate_assignment.py 1 5      # these parts only; prints the table and writes nothing

A mutant is a copy of a source file in which one operator, constant, condition or statement is changed. The change is
made on the syntax tree, but only the changed node's text is written anew, so the rest of the file stays as it is, byte
by byte. Only the parts that run the changed file are graded: a mutant of part 8's file leaves the files of parts 1 to 7
as they are, and part 8 stands on the reference's. Some mutants compute the same as the reference; `EQUIVALENT` lists
them, each with its reason.
"""

from __future__ import annotations

import argparse
import ast
import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "assignment")]

import grade  # noqa: E402
import make  # noqa: E402
from grade import difference  # noqa: E402
from process import Process  # noqa: E402

SEED = 20260321
FILES = {"grpo.py": (1, 2, 3, 4), "gepa_loop.py": (5, 6), "verify.py": (7,), "p2o.py": (8,)}
EQUIVALENT = (  # (function, its line holds this, the change; "" for every change of the line, why nobody can tell it)
    ("group_advantages", "all_equal =", "groups != ", "only rewards whose mean is rounded tell; the handout has none"),
    ("surrogate", "torch.where(advantages < 0", "-> `advantages <= 0`", "where A is 0, both losses are 0"),
    ("policy_loss", "dual_clip_fraction", "-> `advantages <= 0`", "where A is 0, no loss is beyond the dual clip's"),
    ("token_logprobs", "fast.can_share_prompts", "", "both ways give the same log-probs; one is faster"),
    ("_hidden_states", "use_cache=False", "-> `True`", "a cache that nobody reads: memory, no number"),
    ("token_logprobs", "chunk = max(1,", "", "how many tokens the head takes at once: memory, no number"),
    ("token_logprobs", "torch.is_grad_enabled()", "", "checkpointing or not: memory, no number"),
    ("token_logprobs", "use_reentrant=False", "-> `True`", "another implementation of checkpointing, same numbers"),
    ("mine_hard", "group[0].question_id", "`0` -> `1`", "all rollouts of a group have its question's id"),
    ("grade_batch", 'questions or [""]', "`'_'`", "no answer is copied from an underscore either"),
    ("grade_batch", '(answer or ""', "`'_'`", "what stands for no box is never right: `bool(found)` comes behind it"),
)
OPERATORS = {  # each to the one that is mistaken for it
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Break: ast.Continue, ast.Continue: ast.Break,
}  # fmt: skip
NAMES = {"max": "min", "min": "max", "any": "all", "all": "any", "sum": "max", "mean": "sum"}
SAME_FOR_RIGHT_INPUTS = {"strict"}  # arguments that only refuse wrong inputs


@dataclass(frozen=True)
class Mutant:
    function: str
    line: int  # of the source, from 1
    before: str
    after: str
    text: str  # that line
    source: str  # the whole file, changed

    @property
    def name(self) -> str:
        """What it is called, wherever in the file its line may move."""
        return f"{self.function}: `{self.text}`: `{self.before}` -> `{self.after}`"


def mutants(source: str, functions: set[str] | None = None) -> Iterator[Mutant]:
    """One change at a time in the bodies of these functions and methods; of all of them by default.

    >>> [mutant.after for mutant in mutants("def f(x):\\n    return 2 * x\\n")]
    ['2 / x', '3']
    """
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef) and (functions is None or function.name in functions):
            body = function.body[ast.get_docstring(function) is not None :]
            for node in (node for statement in body for node in nodes_of(statement)):
                for changed in changes_of(node):
                    yield written(source, function.name, node, changed)


def nodes_of(statement: ast.AST) -> Iterator[ast.AST]:
    """The nodes below that have a behaviour: not those of messages, annotations and functions of their own."""
    yield statement
    for name, child in ast.iter_fields(statement):
        for each in child if isinstance(child, list) else [child]:
            skipped = isinstance(each, ast.FunctionDef | ast.Raise | ast.JoinedStr) or name in ("annotation", "returns")
            if isinstance(each, ast.keyword) and each.arg in SAME_FOR_RIGHT_INPUTS:
                continue
            if isinstance(each, ast.AST) and not skipped:
                yield from nodes_of(each)


def changes_of(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that may stand in a node's place."""
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in OPERATORS:
        yield with_field(node, "op", OPERATORS[type(node.op)]())
    elif isinstance(node, ast.Compare):
        yield with_field(node, "ops", [OPERATORS[type(op)]() for op in node.ops])
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.AugAssign):
        yield ast.Assign([node.target], node.value, lineno=0)
    elif isinstance(node, ast.Break | ast.Continue):
        yield OPERATORS[type(node)]()
    elif isinstance(node, ast.If | ast.While | ast.IfExp) and not isinstance(node.test, ast.Compare):
        yield with_field(node, "test", ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Expr) and not isinstance(node.value, ast.Yield | ast.YieldFrom | ast.Constant):
        yield ast.Pass()
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield with_field(node, "attr", NAMES[node.attr])
    elif isinstance(node, ast.Name) and node.id in NAMES and isinstance(node.ctx, ast.Load):
        yield with_field(node, "id", NAMES[node.id])
    elif isinstance(node, ast.Constant):
        yield from (ast.Constant(value) for value in other_values(node.value))
    yield from unfiltered(node)


def unfiltered(node: ast.AST) -> Iterator[ast.AST]:
    """A comprehension without its condition."""
    for i, part in enumerate(getattr(node, "generators", [])):
        if part.ifs:
            changed = copy.deepcopy(node)
            changed.generators[i].ifs = []
            yield changed


def other_values(value: object) -> list:
    """What a constant is changed to: one that is near, so that it takes a test of the number itself.

    >>> other_values(20), other_values(0.5), other_values(True), other_values("a")
    ([21], [1.5], [False], ['a_'])
    """
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1]
    return [f"{value}_"] if isinstance(value, str) else []


def with_field(node: ast.AST, name: str, value: object) -> ast.AST:
    changed = copy.deepcopy(node)
    setattr(changed, name, value)
    return changed


def written(source: str, function: str, node: ast.AST, changed: ast.AST) -> Mutant:
    """The source with the changed node in the place of the other. Only a compound statement's condition is written."""
    if isinstance(node, ast.If | ast.While):
        node, changed = node.test, changed.test
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    begin = starts[node.lineno - 1] + node.col_offset
    end = starts[node.end_lineno - 1] + node.end_col_offset
    text = ast.unparse(ast.fix_missing_locations(changed))
    whole = b"".join(lines)
    before = " ".join(whole[begin:end].decode().split())
    replacement = f"({text})" if isinstance(changed, ast.expr) and not isinstance(node, ast.Attribute) else text
    if isinstance(node, ast.Name | ast.Constant):
        replacement = text
    changed_source = (whole[:begin] + replacement.encode() + whole[end:]).decode()
    return Mutant(function, node.lineno, before, text, lines[node.lineno - 1].decode().strip(), changed_source)


def why_equivalent(mutant: Mutant) -> str:
    """Why nobody could tell this mutant from the reference; "" if somebody could."""
    change = f"`{mutant.before}` -> `{mutant.after}`"
    for function, line, part_of_change, reason in EQUIVALENT:
        if mutant.function == function and line in mutant.text and part_of_change in change:
            return reason
    return ""


def graded_mutants(parts: set[int]) -> list[tuple[int, str, Mutant]]:
    """(part, file, mutant) of every change to what a student writes."""
    found = []
    for file in FILES:
        source = (ROOT / file).read_text(encoding="utf-8")
        holes = make.solutions(source)  # lines count from 0 there, from 1 in a mutant
        for mutant in mutants(source, {name for *_, name in holes}):
            part = next((part for first, last, part, _ in holes if first < mutant.line - 1 < last), None)
            found += [(part, file, mutant)] if part in parts else []
    return found


def lost(grader: grade.Grader, part: int, file: str, source: str) -> dict[int, dict]:
    """{part: its first check that fails} of the parts that a changed file costs.

    One process for all parts of a file, since students' processes are not what is measured here; a part ends with its
    first check that fails.
    """
    folder = grader.process.folder(make.reference() | {file: source})
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=int, nargs="*", metavar="PART", help="1 to 8; all, if none is given")
    parts = set(parser.parse_args().parts) or set(grade.PARTS)
    if not parts <= set(grade.PARTS):
        parser.error(f"the parts are {', '.join(map(str, grade.PARTS))}")
    results = []
    with Process() as process:
        grader = grade.secret_grader(process, SEED, tuple(sorted(parts)))
        grader.mistaken = lambda case: []  # whether points are lost, not why
        for part, file, mutant in graded_mutants(parts):
            equivalent = why_equivalent(mutant)
            found = {} if equivalent else lost(grader, part, file, mutant.source)
            seen = {number: f"{o['call']}, {o['name']}: {o['message']}" for number, o in found.items()}
            said = "equivalent" if equivalent else seen or "SURVIVED"
            print(f"{file}:{mutant.line}: {mutant.name}\n    {said}", flush=True)
            result = {"part": part, "file": file, "name": mutant.name, "equivalent": equivalent}
            results.append(result | {"lost": sorted(found), "messages": list(seen.values())})
    print(table(results))
    if parts == set(grade.PARTS):
        made = f"Made by `python lab/mutate_assignment.py`, inputs drawn under seed {SEED}.\n\n"
        (ROOT / "lab" / "results" / "assignment_mutants.md").write_text(made + table(results), encoding="utf-8")


if __name__ == "__main__":
    main()
