"""The table of all variants in docs/variants.md, made from their docstrings.

    python -m variants.table            # writes it; tests/test_variants.py checks that it is up to date

A docstring begins with the method and its arXiv number, goes on with the equation, and says "Against GRPO: ..." in one
sentence. What a method did in our worlds is read from lab/results/studies.json, where a study has measured it: its
area under accuracy against all responses, less that of a plain run (P2O's or GRPO's, mostly), seed by seed.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Collection
from importlib import import_module
from pathlib import Path

from support.seams import SEAMS, as_option, find
from tools.compare import compare, files_of
from tools.study import baselines_of, read_results

ROOT = Path(__file__).resolve().parent.parent
MARK = "<!-- made by `python -m variants.table` -->\n"
OPTIONS = [  # papers that need no function
    ("Dr. GRPO (arXiv:2503.20783)", "--no-scale-by-std --aggregation seq-mean-token-sum-norm",
     "neither the standard deviation nor the response's own length divides"),
    ("DAPO (arXiv:2503.14476)", "--clip-high 0.28 --advantage overlong --keep informative",
     "a higher upper clip, a price on the last fifth of the room, groups with contrast only"),
    ("GPG (arXiv:2504.02546)", "--loss reinforce --no-scale-by-std",
     "no ratio, no clip, no standard deviation; without its factor B / (B - M), where M of B rollouts teach nothing"),
]  # fmt: skip


def described(function) -> tuple[str, str]:
    """(method, what it changes against GRPO) from a docstring."""
    text = " ".join(inspect.getdoc(function).split())
    method = re.match(r"(.*?(?:\(arXiv:[^)]*\))|[^.]*)", text).group(1)
    change = re.search(r"Against GRPO: (.*?)[.:](?= |$)", text).group(1)
    return method, change


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


def needs_of(seam: str, function) -> list[str]:
    """The options that a variant is not itself without, and those that they are not without.

    >>> from variants.loss import disco
    >>> needs_of("loss", disco)
    ['--advantage disco', '--aggregation seq-mean-token-mean']
    """
    found, open_ = {}, {seam: function.__name__}
    while open_:
        option, value = open_.popitem()
        found[option] = value
        known = find(option, value) if option in SEAMS else None
        open_ |= {more: wanted for more, wanted in getattr(known, "needs", {}).items() if more not in found}
    return [as_option(*item) for item in found.items() if item[0] != seam]


def options_beside(record: dict, name: str, plain: str) -> set[str]:
    """What a study's variant sets otherwise than the one it is compared with, as on the command line."""
    options = record.get("options", {})
    known = options.get(plain, {})
    return {as_option(*item) for item in options.get(name, {}).items() if known.get(item[0]) != item[1]}


def measured(option: str, needs: Collection[str] = ()) -> str:
    """How much area a variant gains on its plain method, in each study that has one with this option in its name, or
    with no other but what it needs: the paired difference with Student's interval (tools/compare.py), of sampled
    accuracy where that was measured. "GRPO, --loss cispo" is compared with "GRPO", where the study has that."""
    cells = []
    for study, record in read_results(ROOT / "lab" / "results").items():
        results = record["results"]
        for name in (name for name, runs in results.items() if runs):
            method, _, options = name.rpartition(", ")
            plain = method if results.get(method) else baselines_of(record)[name]
            beside = options_beside(record, name, plain)
            if options != option and not (option in beside and beside <= {option, *needs}):
                continue
            files = files_of(results)
            file = next((file for file in files if file.endswith(", sampled")), files[0])
            compared = compare(results, file, baselines_of(record) | {name: plain})
            compared_with = method if options == option else plain
            gain = compared[name].against.get("areas") if name in compared else None
            if gain and gain.half is not None:
                cells.append(f"{compared_with} {gain.mean:+.3f} ± {gain.half:.3f} ({study}, {len(gain.seeds)} seeds)")
    return "; ".join(cells) or "not yet measured"


def table() -> str:
    rows = [
        "| option | method | against GRPO | lines | needs | in our worlds: area gained |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for seam, function in variants():
        method, change = described(function)
        option, needs = as_option(seam, function.__name__), needs_of(seam, function)
        beside = ", ".join(f"`{need}`" for need in needs)
        gained = "another task" if seam == "reward" else measured(option, needs)
        cells = [f"`{option}`", method, change, str(code_lines(function)), beside, gained]
        rows.append(f"| {' | '.join(cells)} |")
    for method, option, change in OPTIONS:
        rows.append(f"| `{option}` | {method} | {change} | 0 | | {measured(option)} |")
    return linked("\n".join(rows) + "\n")


def linked(text: str) -> str:
    """The text with every arXiv number as a link.

    >>> linked("SDPO (arXiv:2601.20802)")
    'SDPO ([arXiv:2601.20802](https://arxiv.org/abs/2601.20802))'
    """
    return re.sub(r"(?:arXiv:)?\b(\d{4}\.\d{5})\b", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def main() -> None:
    page = ROOT / "docs" / "variants.md"
    before, _, _ = page.read_text(encoding="utf-8").partition(MARK)
    page.write_text(before + MARK + "\n" + table(), encoding="utf-8")


if __name__ == "__main__":
    main()
