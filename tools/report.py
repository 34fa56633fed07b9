"""One self-contained page for one run, or for several side by side, also while a run is still going.

It reads nothing but the runs' folders: config.json, metrics.jsonl, transcripts.jsonl, templates/*.json and, once there,
summary.json. What the page looks like is in tools/page; whatever comes from data or models is escaped on its way there.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import json
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import tyro
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from support.errors import UserError
from tools import svg, tokens

PAGE = Path(__file__).resolve().parent / "page"
MAX_TRANSCRIPTS = 240  # of a run in the page; transcripts.jsonl has them all


def read_run(folder: Path) -> dict:
    """What the report shows of one run: its folder's files, read back."""
    if not (folder / "config.json").exists():
        raise UserError(f"{folder}: no run is there")
    lines = whole_lines(folder / "metrics.jsonl")
    summary = folder / "summary.json"
    evolutions = {int(file.stem.rpartition("-")[2]): file for file in folder.glob("templates/epoch-*.json")}
    return {
        "name": folder.name,
        "folder": folder,
        "config": json.loads((folder / "config.json").read_text(encoding="utf-8")),
        "summary": json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else None,
        "lines": lines,
        "epochs": [line for line in lines if line["kind"] == "epoch"],
        "evolutions": [
            json.loads(file.read_text(encoding="utf-8")) | {"epoch": epoch}
            for epoch, file in sorted(evolutions.items())
        ],
        "transcripts": whole_lines(folder / "transcripts.jsonl"),
    }


def whole_lines(file: Path) -> list[dict]:
    """The lines of a file that may be growing: a last one without its end is not there yet."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def read_runs(folders: list[Path]) -> list[dict]:
    """The runs, each once; those whose folders are called alike are told apart by the folder above, too."""
    runs = [read_run(folder) for folder in dict.fromkeys(Path(folder).resolve() for folder in folders)]
    names = [run["name"] for run in runs]
    for run in runs:
        if names.count(run["name"]) > 1:
            run["name"] = f"{run['folder'].parent.name}/{run['name']}"
    return runs


# ------------------------------------------------------------------------------------------------------------- tables


def spent(epoch: dict) -> int:
    """All responses sampled so far, those of GEPA included."""
    return epoch["rollouts"] + epoch["gepa_calls"]


def held_out_names(runs: list[dict]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for e in run["epochs"] for name in e["accuracy"]))


def comparison(runs: list[dict]) -> tuple[list[str], list[list]]:
    """(header, rows): accuracy on held-out questions (bare prompt, greedy) before and after, a row for each run."""
    names = held_out_names(runs)
    header = ["run", "epochs", *[part for name in names for part in (f"{name}, before", name)]]
    rows = []
    for run in runs:
        first, last = (run["epochs"] or [{}])[0], (run["epochs"] or [{}])[-1]
        scores = [e.get("accuracy", {}).get(name) for name in names for e in (first, last)]
        done = f"{last.get('epoch', 0)}/{run['config']['epochs']}"
        costs = [last.get(key) for key in ("hard_set", "rollouts", "gepa_calls")]
        rows.append([run["name"], done, *scores, *costs, round(run["summary"]["seconds"]) if run["summary"] else None])
    return [*header, "hard set", "rollouts", "+ GEPA", "seconds"], rows


def said(value: object) -> str:
    """A table's cell as text.

    >>> said(0.5), said(3312), said(None)
    ('0.50', '3,312', '')
    """
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}" if isinstance(value, float) else str(value)


def comparison_table(folders: list[Path]) -> str:
    """The comparison for the screen."""
    header, rows = comparison(read_runs(folders))
    table = [header, *[[said(value) for value in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def settings(runs: list[dict]) -> list[tuple[bool, list[str]]]:
    """(do the runs differ?, [option, value of each run]), the options in which they differ first."""
    options = dict.fromkeys(option for run in runs for option in run["config"])
    rows = [[option, *[json.dumps(run["config"].get(option)) for run in runs]] for option in options]
    return sorted(((len(set(row[1:])) > 1, row) for row in rows), key=lambda row: not row[0])


def families(runs: list[dict], by: str) -> tuple[list[list], list[str]]:
    """(a row for each run, held-out file and value of the column `by`; the columns that there are)."""
    rows, columns = [], set()
    for i, run in enumerate(runs):
        for name, known in (run["epochs"][-1].get("families", {}) if run["epochs"] else {}).items():
            columns |= set(known)
            for value, (_, asked) in known.get(by, {}).items():
                course = [e["families"].get(name, {}).get(by, {}).get(value) for e in run["epochs"]]
                shares = [pair[0] / pair[1] for pair in course if pair]  # a resumed run may have got other files
                rows.append([name, value, run["name"], asked, shares[0], shares[-1], svg.sparkline(shares, i)])
    return sorted(rows, key=lambda row: row[:2]), sorted(columns)


# ------------------------------------------------------------------------------------------------------------- curves

PER_BATCH = {  # a line of kind "rollouts" holds sums
    "reward, as sampled": lambda line: line["reward"] / line["rollouts"],
    "response length, tokens": lambda line: line["tokens"] / line["rollouts"],
    "entropy, nats per token": lambda line: line["entropy"] / line["tokens"],
}
PER_UPDATE = {
    "grad norm": lambda line: line["grad_norm"],
    "clip fraction": lambda line: line["clip_fraction"],
    "masked tokens, share": lambda line: line["masked"],
}
PER_EPOCH = {
    "zero-advantage groups": lambda line: line.get("zero_advantage"),
    "hard set, questions": lambda line: line.get("hard_set"),
}


def against_updates(run: dict, kind: str, value: Callable) -> list[svg.Point]:
    """A batch is sampled under the policy of the updates before it; an update has its own number."""
    points, done = [], 0
    for line in run["lines"]:
        done += line["kind"] == "update"
        if line["kind"] == kind:
            points.append((done, value(line)))
    return points


def against_epochs(run: dict, value: Callable) -> list[svg.Point]:
    return [(e["epoch"], value(e)) for e in run["epochs"]]


def learning_curves(runs: list[dict]) -> Iterator[Markup]:
    """Accuracy on each held-out file against epochs, and against all responses that were sampled."""
    for name in held_out_names(runs):

        def accuracy(e: dict, name: str = name) -> float | None:
            return e["accuracy"].get(name)

        title = f"held out: {name}"
        yield svg.chart(title, "epoch", [(run["name"], against_epochs(run, accuracy)) for run in runs], share=True)
        curves = [(run["name"], [(spent(e), accuracy(e)) for e in run["epochs"]]) for run in runs]
        yield svg.chart(title, "responses sampled, GEPA's included", curves, share=True)


def training_curves(runs: list[dict]) -> Iterator[Markup]:
    """How the policy trains: against updates what a batch or an update says, against epochs what an epoch does."""
    for kind, values in (("rollouts", PER_BATCH), ("update", PER_UPDATE)):
        for title, value in values.items():
            curves = [(run["name"], against_updates(run, kind, value)) for run in runs]
            yield svg.chart(title, "updates", curves, share="reward" in title)
    for title, value in PER_EPOCH.items():
        yield svg.chart(title, "epoch", [(run["name"], against_epochs(run, value)) for run in runs], "zero" in title)


# ------------------------------------------------------------------------------------------ templates and transcripts


def diff(old: str, new: str) -> Markup:
    """What a child has of its parent, what it dropped and what it added, word by word.

    >>> str(diff("Add the digits.", "Add the <b> digits."))
    'Add the <ins>&lt;b&gt; </ins>digits.'
    """
    a, b = re.findall(r"\S+\s*|\s+", old), re.findall(r"\S+\s*|\s+", new)
    same = difflib.SequenceMatcher(None, [word.strip() for word in a], [word.strip() for word in b], autojunk=False)
    parts = []
    for what, i, j, k, m in same.get_opcodes():
        if what != "equal" and i < j:
            parts.append(Markup("<del>{}</del>").format("".join(a[i:j])))
        if k < m:
            parts.append(Markup("{}" if what == "equal" else "<ins>{}</ins>").format("".join(b[k:m])))
    return Markup("").join(parts)


def family_of_templates(evolution: dict, anchor: str) -> dict:
    """An evolution as the page shows it: the lineage, and a row for each candidate with the diff from its parent."""
    candidates, rows = evolution["candidates"], []
    for k, (parents, scores) in enumerate(zip(evolution["parents"], evolution["dev_scores"], strict=True)):
        known = [p for p in parents if p is not None]
        text = diff(candidates[known[0]], candidates[k]) if known else candidates[k] or "(empty: the bare question)"
        cover = "✓" if k in evolution["chosen"] else ""
        rows.append([cover, k, ", ".join(map(str, known)), sum(scores) / len(scores), svg.strip(scores), text])
    lineage = svg.lineage(evolution, anchor)
    return {**evolution, "anchor": anchor, "lineage": lineage, "rows": rows}


def coloured_tokens(line: dict, cfg: dict) -> dict[str, Markup]:
    """The tokens of a transcript in the colours of each scale for which it has numbers."""
    if "tokens" not in line:
        return {}
    shown, advantage = {}, line["advantage"]
    if line["template"] and cfg["distill"] and line["old_logprobs"] is not None:
        ratio = ratios(line["old_logprobs"], line["sampled_logprobs"])
        masked = cfg["ratio_mask"] and not cfg["soft_clip"]
        scale = replace(tokens.SCALES["ratio"], low=cfg["ratio_min"], high=cfg["ratio_max"], inside=masked)
        shown["ratio"] = tokens.coloured(line["tokens"], away_from_one(ratio, [False] * len(ratio)), scale)
    if isinstance(advantage, list):
        shown["advantage"] = tokens.coloured(line["tokens"], advantage, "advantage")
    else:  # one colour for all tokens
        shown["advantage"] = tokens.coloured(["".join(line["tokens"])], advantage, "advantage")
        advantage = [advantage] * len(line["tokens"])
    if line["new_logprobs"] is not None:
        moved = ratios(line["new_logprobs"], line["old_logprobs"])
        low, high = 1 - cfg["clip_low"], 1 + cfg["clip_high"]
        clipped = [rho > high if a > 0 else a < 0 and rho < low for rho, a in zip(moved, advantage, strict=True)]
        shown["clip"] = tokens.coloured(line["tokens"], away_from_one(moved, clipped), "importance", clipped)
    return {name: Markup(html) for name, html in shown.items()}  # `coloured` has escaped the tokens


def ratios(top: list[float], bottom: list[float]) -> list[float]:
    return [math.exp(max(-20.0, min(20.0, a - b))) for a, b in zip(top, bottom, strict=True)]


def away_from_one(values: list[float], clipped: list[bool]) -> list[float | None]:
    """None for what would have no colour to be seen: most tokens, and so most of a page's size."""
    return [value if abs(value - 1) > 0.02 or cut else None for value, cut in zip(values, clipped, strict=True)]


def transcripts(runs: list[dict]) -> Iterator[dict]:
    """A run's transcripts in the page: all, or as many as a page can bear, drawn at random."""
    for run in runs:
        lines = run["transcripts"]
        kept = sorted(random.Random(0).sample(range(len(lines)), min(MAX_TRANSCRIPTS, len(lines))))
        for line in (lines[i] for i in kept):
            yield line | {"run": run["name"], "coloured": coloured_tokens(line, run["config"])}


# ------------------------------------------------------------------------------------------------------------ the page


def write_report(folders: list[Path], out: Path, by: str = "family") -> Path:
    """report.html in `out`. Nothing in it is fetched from anywhere, and no script runs in it but its own."""
    runs = read_runs(folders)
    rows, columns = families(runs, by)
    return write_page(
        out / "report.html",
        title=" and ".join(run["name"] for run in runs) if len(runs) < 4 else f"{len(runs)} runs",
        runs=runs,
        going=[run for run in runs if not run["epochs"] or run["epochs"][-1]["epoch"] < run["config"]["epochs"]],
        warnings=[(run, line) for run in runs for line in run["lines"] if line["kind"] == "warning"],
        comparison=comparison(runs),
        learning=list(learning_curves(runs)),
        training=list(training_curves(runs)),
        by=by,
        families=rows,
        columns=columns,
        evolutions=[
            [family_of_templates(evolution, f"run{i}-epoch{evolution['epoch']}-") for evolution in run["evolutions"]]
            for i, run in enumerate(runs)
        ],
        transcripts=list(transcripts(runs)),
        max_transcripts=MAX_TRANSCRIPTS,
        epochs=sorted({line["epoch"] for run in runs for line in run["transcripts"]}),
        legends={scale: Markup(tokens.legend(scale)) for scale in ("ratio", "advantage", "importance")},
        settings=settings(runs),
    )


def sha256(text: str) -> str:
    """As a page's Content-Security-Policy names the one script that it may run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def write_page(file: Path, **fields) -> Path:
    """tools/page/NAME of the file's name, filled in with the fields, which are escaped."""
    pages = Environment(loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    pages.filters |= {"said": said, "sha256": sha256}
    html = pages.get_template(file.name).render(**fields)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(html, encoding="utf-8", errors="replace")  # a lone surrogate, which JSON can hold, has no UTF-8
    return file


def report(folders: tyro.conf.Positional[tuple[Path, ...]], out: Path | None = None, by: str = "family") -> None:
    """One page for one run, or for several side by side; also while they are still going.

    Args:
        folders: Folders of runs.
        out: Where report.html goes; by default the folder of the run, or the one that holds the first.
        by: The column of the held-out questions by which accuracy is broken down: family, level, ...
    """
    if not folders:
        raise UserError("report: give the folder of a run, or of several")
    out = out or (folders[0] if len(folders) == 1 else folders[0].parent)
    print(f"report: {write_report(list(folders), out, by)}")


def main(argv: list[str]) -> None:
    tyro.cli(report, args=argv, prog="p2o.py report")
