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
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import tyro
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from tqdm import tqdm

from support.errors import UserError
from support.log import RunLog, share_solved
from tools import svg, tokens

PAGE = Path(__file__).resolve().parent / "page"
MAX_TRANSCRIPTS = 240  # of a run in the page; transcripts.jsonl has them all
RELOAD_SECONDS = 20  # a browser loads the page of a run that goes on anew so often
EVOLUTION = ("candidates", "parents", "chosen", "dev_scores", "metric_calls", "stopped_early")  # what the page shows
EPOCH = ("epoch", "rollouts", "gepa_calls", "accuracy")
TRANSCRIPT = ("epoch", "id", "question", "reference", "template", "response", "reward")
MIN_CHANGE = 0.05  # of an accuracy, for the verdict to say that it rose or fell


def read_run(folder: Path) -> dict:
    """What the report shows of one run: its folder's files, read back."""
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    if not {"method", "epochs"} <= config.keys():  # a model's folder has a config.json, too
        raise UserError(f"{folder}: no run is there")
    lines, updates = whole_lines(folder / "metrics.jsonl", ("kind",)), 0
    for line in lines:  # where it stands on a chart's lower axis
        updates += line["kind"] == "update"
        line["updates"] = updates
        if line["kind"] == "epoch":
            line["responses"] = spent(line)
    summary = folder / "summary.json"
    numbered = {file: file.stem.removeprefix("epoch-") for file in folder.glob("templates/epoch-*.json")}
    evolutions = {int(epoch): file for file, epoch in numbered.items() if epoch.isdecimal()}  # no copy
    return {
        "name": folder.name,
        "folder": folder,
        "config": config,
        "summary": read_json(summary, ("seconds",)) if summary.exists() else None,
        "lines": lines,
        "epochs": [line for line in lines if line["kind"] == "epoch"],
        "evolutions": [read_json(file, EVOLUTION) | {"epoch": epoch} for epoch, file in sorted(evolutions.items())],
        "transcripts": whole_lines(folder / "transcripts.jsonl", TRANSCRIPT),
    }


def read_json(file: Path, needed: Sequence[str] = ()) -> dict:
    return parsed(text_of(file), str(file), needed)


def whole_lines(file: Path, needed: Sequence[str]) -> list[dict]:
    """The lines of a file that may be growing: a last one without its end is not there yet."""
    lines = enumerate(text_of(file).split("\n")[:-1], start=1)
    return [parsed(line, f"{file}, line {number}", needed) for number, line in lines]


def text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def parsed(text: str, where: str, needed: Sequence[str]) -> dict:
    """A run writes nothing but JSON objects, with the fields `needed`; a disk or an editor may have spoilt one."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{where}: damaged, no JSON object is there; mend or remove it, or leave this run out")
    needed = [*needed, *(EPOCH if found.get("kind") == "epoch" else ())]
    if lacking := [name for name in needed if name not in found]:
        raise UserError(f"{where}: it has no {lacking[0]!r}; mend or remove it, or leave this run out")
    return found


def read_runs(folders: list[Path]) -> list[dict]:
    """The runs, each once; those whose folders are called alike are told apart by the folders above, too."""
    runs = [read_run(folder) for folder in dict.fromkeys(Path(folder).resolve() for folder in folders)]
    for depth in range(2, 1 + max((len(run["folder"].parts) for run in runs), default=0)):
        names = [run["name"] for run in runs]
        for run in runs:
            if names.count(run["name"]) > 1:
                run["name"] = "/".join(run["folder"].parts[-depth:])
    return runs


def spent(epoch: dict) -> int:
    """All responses sampled so far, those of GEPA included."""
    return epoch["rollouts"] + epoch["gepa_calls"]


def held_out_names(runs: list[dict]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for e in run["epochs"] for name in e["accuracy"]))


# ----------------------------------------------------------------------------------------------- verdict and warnings


def verdict(run: dict, name: str) -> str:
    """What became of a run's accuracy on the held-out questions `name`, in which epoch, and why."""
    course = [e for e in run["epochs"] if name in e["accuracy"]]
    before, now = (e["accuracy"][name] for e in (course[0], course[-1]))
    trained = [e for e in run["epochs"] if e.get("zero_advantage") is not None]
    if not trained:
        return f"accuracy is {before:.2f} before training. No epoch is done yet."
    moved = "rose" if now - before > MIN_CHANGE else "fell" if before - now > MIN_CHANGE else "hardly moved"
    text = f"accuracy {moved}: {before:.2f} before training, {now:.2f} after epoch {course[-1]['epoch']}."
    first_templated = next((e["epoch"] for e in trained if e["templated"]), math.inf)
    for a, b in pairwise(trained):
        if b["epoch"] == first_templated:
            text += f" Templates came in epoch {b['epoch']}. Groups of equal rewards, which teach nothing, went from "
            text += f"{a['zero_advantage']:.0%} to {b['zero_advantage']:.0%}."
    if moved == "rose":
        steps = [(b["accuracy"][name] - a["accuracy"][name], a, b) for a, b in pairwise(course)]
        _, a, b = max(steps, key=lambda step: step[0])
        text += f" The largest step, {a['accuracy'][name]:.2f} to {b['accuracy'][name]:.2f}, came in epoch {b['epoch']}"
        if b["epoch"] > first_templated and not b["templated"]:
            text += ", which was sampled bare: GRPO finished what the templates had begun"
        return text + "."
    equal = statistics.fmean(e["zero_advantage"] for e in trained)
    if first_templated == math.inf and equal > 0.5:
        text += f" In {equal:.1%} of the groups all rewards were equal. Then every advantage is 0, and nothing is "
        text += "learned: advantage collapse."
    return text


def verdicts(runs: list[dict]) -> tuple[str, list[tuple[str, str]]]:
    """(what happened, in a sentence or two; of several runs: each one's name, and what became of it)."""
    name = next(iter(held_out_names(runs)), None)
    last = [(run, run["epochs"][-1]) for run in runs if run["epochs"] and name in run["epochs"][-1]["accuracy"]]
    if not last:
        return "Nothing has been measured on held-out questions yet.", []
    each = [(run["name"], verdict(run, name)) for run, _ in last]
    where = f"On the held-out questions “{name}” (bare prompt, greedy)"
    if len(each) == 1:
        return f"{where}, {each[0][1]}", []
    last.sort(key=lambda end: -end[1]["accuracy"][name])
    ends = [f"{run['name']} is at {e['accuracy'][name]:.2f} after {spent(e):,} responses" for run, e in last]
    among = "" if len(ends) == 2 else f" the best and the last of {len(ends)} runs:"
    return f"{where},{among} {ends[0]}, and {ends[-1]}, GEPA's included.", each


EXPECTED_OF_A_BASELINE = ("advantage collapse", "every reward is 0")  # words in the warnings of support/log.py


def warnings(runs: list[dict]) -> list[tuple[str, str, list[int]]]:
    """(run, sentence, epochs): a sentence once for each run, whatever the numbers in it.

    GRPO beside P2O is there to show the collapse, so its page does not warn of it.
    """
    found: dict[tuple, tuple] = {}
    has_p2o = any(run["config"]["method"] == "p2o" for run in runs)
    for run in runs:
        expected = EXPECTED_OF_A_BASELINE if has_p2o and run["config"]["method"] == "grpo" else ()
        for line in run["lines"]:
            if line["kind"] == "warning" and not any(words in line["text"] for words in expected):
                key = run["name"], re.sub(r"\d[\d.]*", "#", line["text"])
                *_, epochs = found.setdefault(key, (run["name"], line["text"], []))
                if "epoch" in line and line["epoch"] not in epochs:
                    epochs.append(line["epoch"])
    return list(found.values())


# ------------------------------------------------------------------------------------------------------------- tables


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
                course = [e.get("families", {}).get(name, {}).get(by, {}).get(value) for e in run["epochs"]]
                shares = [pair[0] / pair[1] for pair in course if pair]  # a resumed run may have got other files
                rows.append([name, value, run["name"], asked, shares[0], shares[-1], svg.sparkline(shares, i)])
    return sorted(rows, key=lambda row: row[:2]), sorted(columns)


# ------------------------------------------------------------------------------------------------------------- curves

TRAINING = {  # title -> kind of line, and what it says; a line of kind "rollouts" holds sums
    "reward, as sampled": ("rollouts", lambda line: line["reward"] / line["rollouts"]),
    "templated rollouts, share": ("rollouts", lambda line: line["templated"] / line["rollouts"]),
    "response length, tokens": ("rollouts", lambda line: line["tokens"] / line["rollouts"]),
    "entropy, nats per token": ("rollouts", lambda line: line["entropy"] / line["tokens"]),
    "grad norm": ("update", lambda line: line["grad_norm"]),
    "clip fraction": ("update", lambda line: line["clip_fraction"]),
    "masked tokens, share": ("update", lambda line: line["masked"]),
    "zero-advantage groups, share": ("epoch", lambda line: line.get("zero_advantage")),
    "hard set, questions": ("epoch", lambda line: line.get("hard_set")),
}
FROM_0_TO_1 = ("reward, as sampled", "templated rollouts, share", "zero-advantage groups, share")
AXES = {"epoch": "epoch", "updates": "updates", "responses": "responses sampled, GEPA's included"}


def draw(runs: list[dict], title: str, kind: str, value: Callable, x: str, **more) -> Markup:
    """A value of all lines of a kind, a curve for each run. Epochs that were sampled under templates are shaded."""

    def number_in(line: dict) -> float | None:
        try:
            return value(line)
        except (KeyError, TypeError):
            return None  # an older version did not write that down, or it was not finite, for which null stands

    curves = [(run["name"], [(at[x], number_in(at)) for at in run["lines"] if at["kind"] == kind]) for run in runs]
    bands = [
        (i, a[x], b[x], f"{run['name']}, epoch {b['epoch']}: {b['templated']:.0%} of the rollouts had templates")
        for i, run in enumerate(runs)
        if any(y is not None for _, y in curves[i][1])  # a run that has no such file has no epochs in its picture
        for a, b in pairwise(run["epochs"])
        if b.get("templated")
    ]
    return svg.chart(title, AXES[x], curves, bands=bands, **more)


def reward_jumps(runs: list[dict]) -> Iterator[svg.Jump]:
    """Where bare epochs end and templated ones begin, or the other way round: the rewards of the two batches."""
    for i, run in enumerate(runs):
        templated = {e["epoch"]: bool(e.get("templated")) for e in run["epochs"]}
        batches = [line for line in run["lines"] if line["kind"] == "rollouts" and line["epoch"] in templated]
        batches = [line for line in batches if line["reward"] is not None]  # null: not finite
        for a, b in pairwise(batches):
            if templated[a["epoch"]] != templated[b["epoch"]]:
                yield i, b["updates"], a["reward"] / a["rollouts"], b["reward"] / b["rollouts"]


def learning_curves(runs: list[dict]) -> Iterator[Markup]:
    """Accuracy on each held-out file against epochs, and against all responses that were sampled."""
    for name in held_out_names(runs):
        for x in ("epoch", "responses"):
            title, value = f"{name}: accuracy by {x}", lambda e, name=name: e["accuracy"].get(name)
            yield draw(runs, title, "epoch", value, x, share=True)


def training_curves(runs: list[dict]) -> Iterator[Markup]:
    """How the policy trains: against updates what a batch or an update says, against epochs what an epoch does."""
    for title, (kind, value) in TRAINING.items():
        jumps = list(reward_jumps(runs)) if title.startswith("reward") else []
        x = "epoch" if kind == "epoch" else "updates"
        yield draw(runs, title, kind, value, x, share=title in FROM_0_TO_1, jumps=jumps)


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


def shown_evolutions(run: dict, number: int) -> Iterator[dict]:
    """A run's evolutions as the page shows them: lineage, and for each candidate the diff from its parent.

    The page opens the one whose best template solves most beyond what candidate 0 solves.
    """
    means = [[statistics.fmean(scores) for scores in evolution["dev_scores"]] for evolution in run["evolutions"]]
    gains = [max(scores) - scores[0] for scores in means]
    for evolution, scores, gain in zip(run["evolutions"], means, gains, strict=True):
        candidates, rows = evolution["candidates"], []
        for k, parents in enumerate(evolution["parents"]):
            known = [p for p in parents if p is not None]
            text = diff(candidates[known[0]], candidates[k]) if known else candidates[k] or "(empty: the bare question)"
            solves = svg.strip(evolution["dev_scores"][k])
            cover = "✓" if k in evolution["chosen"] else ""
            rows.append([cover, k, ", ".join(map(str, known)), scores[k], solves, text])
        anchor = f"run{number}-epoch{evolution['epoch']}-"
        shown = {"anchor": anchor, "lineage": svg.lineage(evolution, anchor), "rows": rows}
        bare, *others = map(share_solved, evolution["dev_scores"])
        yield evolution | shown | {"bare": bare, "best": max(others, default=bare), "open": gain == max(gains)}


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


def transcripts(runs: list[dict]) -> list[dict]:
    """The runs' transcripts in the page: all, or as many as a page can bear, drawn at random.

    Groups with contrast come first, for there something was learned: some responses succeeded, others failed.
    """
    shown = []
    for run in runs:
        lines, rewards = run["transcripts"], defaultdict(set)
        for line in lines:
            rewards[line["epoch"], line["id"]].add(line["reward"])
        kept = sorted(random.Random(0).sample(range(len(lines)), min(MAX_TRANSCRIPTS, len(lines))))
        for line in (lines[i] for i in kept):
            contrast = len(rewards[line["epoch"], line["id"]]) > 1
            coloured = coloured_tokens(line, run["config"])
            shown.append(line | {"run": run["name"], "coloured": coloured, "contrast": contrast})
    return sorted(shown, key=lambda line: not line["contrast"])


# ------------------------------------------------------------------------------------------------------------ the page


def write_report(folders: list[Path], out: Path, by: str = "family", live: bool = False) -> Path:
    """report.html in `out`. Nothing in it is fetched from anywhere, and no script runs in it but its own.

    live: a run will write the page again, so a browser is to load it anew every now and then.
    """
    runs = read_runs(folders)
    rows, columns = families(runs, by)
    return write_page(
        out / "report.html",
        title=" and ".join(run["name"] for run in runs) if len(runs) < 4 else f"{len(runs)} runs",
        runs=runs,
        reload_seconds=RELOAD_SECONDS if live else 0,
        verdicts=verdicts(runs),
        going=[run for run in runs if not run["epochs"] or run["epochs"][-1]["epoch"] < run["config"]["epochs"]],
        warnings=warnings(runs),
        comparison=comparison(runs),
        learning=list(learning_curves(runs)),
        training=list(training_curves(runs)),
        by=by,
        families=rows,
        columns=columns,
        evolutions=[list(shown_evolutions(run, i)) for i, run in enumerate(runs)],
        transcripts=transcripts(runs),
        max_transcripts=MAX_TRANSCRIPTS,
        epochs=sorted({line["epoch"] for run in runs for line in run["transcripts"]}),
        legends={scale: Markup(tokens.legend(scale)) for scale in ("ratio", "advantage", "importance")},
        settings=settings(runs),
    )


@contextmanager
def live_report(folders: list[Path], out: Path) -> Iterator[None]:
    """While runs go on, write their page anew after each epoch; at the end, one that does not reload itself."""
    written = []

    def write(live: bool = True) -> None:
        try:
            there = [folder for folder in folders if (folder / "config.json").exists()]
            page = write_report(there, out, live=live)
            if not written:
                tqdm.write(f"report, anew after each epoch: {page}")
            written.append(page)
        except Exception as error:  # whatever is wrong with the page, it must not end the run
            tqdm.write(f"  the report was not written: {error!r}")

    RunLog.after_epoch = staticmethod(write)
    try:
        yield
    finally:
        RunLog.after_epoch = None
        if written:
            write(live=False)


def sha256(text: str) -> str:
    """As a page's Content-Security-Policy names the one script that it may run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def write_page(file: Path, **fields) -> Path:
    """tools/page/NAME of the file's name, filled in with the fields, which are escaped."""
    pages = Environment(loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    pages.filters |= {"said": said, "sha256": sha256, "key": svg.key}
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
    if out.is_file():
        raise UserError(f"--out {out}: a file; name a folder, in which report.html is written")
    print(f"report: {write_report(list(folders), out, by)}")


def main(argv: list[str]) -> None:
    tyro.cli(report, args=argv, prog="p2o.py report")
