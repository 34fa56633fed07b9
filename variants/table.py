"""The table of all variants in variants/README.md, made from their docstrings.

    python -m variants.table            # writes it; tests/test_variants.py checks that it is up to date

A docstring begins with the method and its arXiv number, goes on with the equation, and says "Against GRPO: ..." in one
sentence. What a method did in our worlds is read from results/*.json, where a study has measured it.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import statistics
from importlib import import_module
from pathlib import Path

from support.seams import SEAMS, as_option

ROOT = Path(__file__).resolve().parent.parent
MARK = "<!-- made by `python -m variants.table` -->\n"
OPTIONS = [  # papers that need no function
    ("Dr. GRPO (arXiv:2503.20783)", "`--no-scale-by-std --aggregation seq-mean-token-sum-norm`",
     "neither the standard deviation nor the response's own length divides"),
    ("DAPO (arXiv:2503.14476)", "`--clip-high 0.28 --advantage overlong --keep informative`",
     "a higher upper clip, a price on the last quarter of the room, groups with contrast only"),
]  # fmt: skip


def described(function) -> tuple[str, str]:
    """(method, what it changes against GRPO) from a docstring."""
    text = " ".join(inspect.getdoc(function).split())
    method = re.match(r"(.*?(?:\(arXiv:[^)]*\))|[^.]*)", text).group(1)
    change = re.search(r"Against GRPO: (.*?)[.:](?= |$)", text).group(1)
    return method.removesuffix(" instead of P2O's mask"), change


def code_lines(function) -> int:
    """Lines of the body, without the docstring and lines that hold a comment only.

    >>> from variants.advantage import rloo
    >>> code_lines(rloo)
    2
    """
    body = ast.parse(inspect.getsource(function)).body[0].body[1:]
    lines = inspect.getsource(function).splitlines()[body[0].lineno - 1 :]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines)


def variants() -> list[tuple[str, object]]:
    """(seam, function) of every variant: what stands in a seam's file under its own name and has an arXiv number."""
    found = []
    for seam in SEAMS:
        functions = vars(import_module(f"variants.{seam}")).values()
        found += [(seam, f) for f in functions if inspect.isfunction(f) and "Against GRPO" in (f.__doc__ or "")]
    return found


def measured(option: str) -> str:
    """The held-out accuracy after the last epoch, of each study that has a variant with this option in its file."""
    cells = []
    for file in sorted((ROOT / "results").glob("*.json")):
        known = json.loads(file.read_text())
        results = known.get("results", {}) if isinstance(known, dict) else {}
        for name, runs in results.items() if isinstance(results, dict) else ():
            if f"`{name.partition(',')[2].strip()}`" == option and runs:  # a study's, "METHOD, OPTION"
                scores = [next(iter(run["accuracy"].values())) for run in runs]
                cells.append(f"{name.partition(',')[0]} {statistics.mean(scores):.2f} ({file.stem})")
    return "; ".join(cells) or "not yet measured"


def table() -> str:
    rows = [
        "| option | method | against GRPO | lines | needs | in our worlds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for seam, function in variants():
        method, change = described(function)
        needs = ", ".join(f"`{as_option(*item)}`" for item in getattr(function, "needs", {}).items())
        option = f"`--{seam} {function.__name__}`"
        rows.append(f"| {option} | {method} | {change} | {code_lines(function)} | {needs} | {measured(option)} |")
    for method, option, change in OPTIONS:
        rows.append(f"| {option} | {method} | {change} | 0 | | {measured(option)} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    page = ROOT / "variants" / "README.md"
    before, _, _ = page.read_text(encoding="utf-8").partition(MARK)
    page.write_text(before + MARK + "\n" + table(), encoding="utf-8")


if __name__ == "__main__":
    main()
