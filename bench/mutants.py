"""Mutants: copies of a source in which one operator, constant, condition or statement is changed.

    python bench/mutants.py grpo.py surrogate importance_ratio     # lists them

Tests that do not notice a mutant would not notice the mistake either. What makes an engine of a few lines enough: a
change is made on the syntax tree, but only the changed node's text is written anew, so that the rest of the file stays
as it is, byte by byte.
"""

from __future__ import annotations

import ast
import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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


def main(argv: list[str]) -> None:
    for mutant in mutants(Path(argv[0]).read_text(encoding="utf-8"), set(argv[1:]) or None):
        print(f"{argv[0]}:{mutant.line}: {mutant.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
