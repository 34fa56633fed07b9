"""A person looks rather than reads logs: pictures, the comparison table and one self-contained report.html."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import matplotlib
import tyro
from gepa.visualization import candidate_tree_html_from_data

if "MPLBACKEND" not in os.environ:  # a notebook sets it, and wants to go on showing its own pictures
    matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from jinja2 import Environment  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from support.errors import UserError  # noqa: E402

COLOURS = {"grpo": "#9a9a9a", "p2o": "#1f77b4"}


def read_run(folder: Path) -> dict:
    """What the report shows of one run: its folder's files, read back."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    transcripts = folder / "transcripts.jsonl"
    return {
        "name": folder.name,
        "folder": folder,
        "config": json.loads((folder / "config.json").read_text()),
        "summary": json.loads((folder / "summary.json").read_text()),
        "epochs": [line for line in lines if line["kind"] == "epoch"],
        "evolutions": [json.loads(p.read_text()) | {"name": p.stem} for p in sorted(folder.glob("templates/*.json"))],
        "transcripts": [json.loads(line) for line in transcripts.read_text(encoding="utf-8").splitlines()],
    }


def spent(epoch: dict) -> int:
    """All responses sampled so far, those of GEPA included."""
    return epoch["rollouts"] + epoch["gepa_calls"]


def comparison_table(folders: list[Path]) -> str:
    """Accuracy on held-out questions (bare prompt, greedy) before and after, a row for each run."""
    runs = [read_run(folder) for folder in folders]
    names = list(runs[0]["summary"]["accuracy"])
    header = ["run", *names, "hard set", "rollouts", "+ GEPA", "seconds"]
    before = runs[0]["summary"]["accuracy_before"]
    rows = [["before training", *[f"{before[n]:.2f}" for n in names], "", "", "", ""]]
    for run in runs:
        s = run["summary"]
        scores = [f"{s['accuracy'][n]:.2f}" for n in names]
        rows.append(
            [
                run["name"],
                *scores,
                str(s["hard_set"]),
                f"{s['rollouts']:,}",
                f"{s['gepa_calls']:,}",
                f"{s['seconds']:.0f}",
            ]
        )
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def draw_pictures(runs: list[dict], folder: Path) -> list[tuple[Path, str]]:
    """Write the pictures as PNG files; [(path, what to see in it)]."""
    pictures = []

    def picture(name: str, caption: str, panels: list[tuple[str, str, str, list]]) -> None:
        figure, axes = plt.subplots(1, len(panels), figsize=(4.8 * len(panels), 3.4), squeeze=False)
        for axis, (title, x_label, y_label, curves) in zip(axes[0], panels, strict=True):
            for i, (label, xs, ys) in enumerate(curves):
                style = {"color": COLOURS.get(label), "marker": "o", "markersize": 4, "zorder": 2 + i}
                axis.plot(xs, ys, label=label, **style)
            axis.set(title=title, xlabel=x_label, ylabel=y_label)
            if x_label == "epoch":
                axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(alpha=0.25)
            if y_label.startswith(("accuracy", "share")):
                axis.set_ylim(-0.03, 1.03)
            axis.legend(frameon=False)
        figure.tight_layout()
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=110)
        plt.close(figure)
        pictures.append((path, caption))

    def curves(x, y) -> list:
        """A (label, xs, ys) for each run; epochs where y is None (before training) are left out."""
        shown = [(run["name"], [e for e in run["epochs"] if y(e) is not None]) for run in runs]
        return [(name, [x(e) for e in epochs], [y(e) for e in epochs]) for name, epochs in shown]

    def epoch(e: dict) -> int:
        return e["epoch"]

    names = list(runs[0]["summary"]["accuracy"])
    for file, x_label, x, caption in [
        ("learning_curves", "epoch", epoch, "Accuracy on held-out questions, bare prompt, greedy, after each epoch."),
        ("accuracy_against_rollouts", "responses sampled, GEPA's included", spent, "The same against all responses."),
    ]:
        panels = [
            (f"held out: {name}", x_label, "accuracy", curves(x, lambda e, name=name: e["accuracy"][name]))
            for name in names
        ]
        picture(file, caption, panels)
    picture(
        "collapse",
        "Left: share of groups whose advantages are all zero; they teach nothing. Right: questions whose rollouts all "
        "failed, or all but one, in the epoch, as they were sampled: with templates where there were some.",
        [
            ("advantage collapse", "epoch", "share of groups", curves(epoch, lambda e: e.get("zero_advantage"))),
            ("hard set", "epoch", "questions", curves(epoch, lambda e: e.get("hard_set"))),
        ],
    )
    return pictures


TEMPLATE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>P²O: {{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1040px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-size: 14px } td, th { padding: 4px 12px; text-align: left;
border-bottom: 1px solid #ddd; vertical-align: top } img { max-width: 100% } pre { background: #f6f6f6; padding: 1em;
overflow-x: auto } 
.good { color: #18794e } .bad { color: #b42318 } figcaption { color: #666 } figure { margin: 1.5em 0 }
summary { cursor: pointer; font-weight: 600; margin: .5em 0 }
.mono { font-family: ui-monospace, monospace; white-space: pre-wrap }
</style>
<h1>P²O: {{ title }}</h1>
<p>Accuracy on held-out questions, bare prompt, greedy decoding.</p>
<pre>{{ table }}</pre>
{% for data, caption in pictures %}<figure><img alt="{{ caption }}" src="data:image/png;base64,{{ data }}">
<figcaption>{{ caption }}</figcaption></figure>{% endfor %}
{% for run in runs %}
<h2>{{ run.name }}</h2>
{% if run.evolutions %}<h3>Templates</h3>
<p>Every candidate that GEPA kept, with its mean score on the dev half of the hard set; ✓ marks the cover from which the
next epoch's templates are drawn.</p>
{% for evolution in run.evolutions %}<details {{ "open" if loop.first }}><summary>after {{ evolution.name }}:
{{ evolution.candidates|length }} candidates, {{ evolution.metric_calls }} responses spent</summary>
<table><tr><th></th><th>#</th><th>from</th><th>dev score</th><th>template</th></tr>
{% for candidate in evolution.candidates %}{% set k = loop.index0 %}{% set scores = evolution.dev_scores[k] %}
<tr><td>{{ "✓" if k in evolution.chosen }}</td><td>{{ k }}</td>
<td>{{ evolution.parents[k]|reject("none")|join(", ") }}</td>
<td>{{ "%.2f"|format(scores|sum / scores|length) }}</td>
<td class="mono">{{ candidate or "(empty: the bare question)" }}</td></tr>{% endfor %}</table>
<p>GEPA's own drawing of the lineage: templates/{{ evolution.name }}.html (fetches its layout library).</p>
</details>{% endfor %}{% endif %}
<h3>Transcripts</h3>
<details><summary>{{ run.transcripts|length }} sampled responses</summary>
<table><tr><th>epoch</th><th>template</th><th>question</th><th>response</th><th>reference</th><th>reward</th></tr>
{% for t in run.transcripts %}<tr><td>{{ t.epoch }}</td><td class="mono">{{ t.template or "—" }}</td>
<td class="mono">{{ t.question }}</td><td class="mono">{{ t.response }}</td><td>{{ t.reference }}</td>
<td class="{{ 'good' if t.reward else 'bad' }}">{{ t.reward }}</td></tr>{% endfor %}</table></details>
<details><summary>configuration</summary><pre>{{ run.config|tojson(indent=2) }}</pre></details>
{% endfor %}</html>"""


def lineage_html(evolution: dict) -> str:
    """GEPA's own drawing of who came from whom.

    It puts templates into a script as they are, so one that holds `</script>` could run code of its own: `<` goes in
    as \\u003c.
    """
    scores = evolution["dev_scores"]  # [K][N]
    best = [max(column) for column in zip(*scores, strict=True)]
    html = candidate_tree_html_from_data(
        candidates=[{"template": template.replace("<", "\ue000")} for template in evolution["candidates"]],
        parents=evolution["parents"],
        val_scores=[sum(row) / len(row) for row in scores],
        pareto_front_programs={n: {k for k, row in enumerate(scores) if row[n] == top} for n, top in enumerate(best)},
    )
    return html.replace("\\ue000", "\\u003c").replace("\ue000", "\\u003c")


def write_report(folders: list[Path], out: Path) -> Path:
    """report.html in `out`, with the pictures inside and beside it. All text of data and models is escaped."""
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        for evolution in run["evolutions"]:
            file = run["folder"] / "templates" / f"{evolution['name']}.html"
            file.write_text(lineage_html(evolution), encoding="utf-8")
    pictures = [(base64.b64encode(path.read_bytes()).decode(), caption) for path, caption in draw_pictures(runs, out)]
    page = Environment(autoescape=True).from_string(TEMPLATE)
    title = " and ".join(run["name"] for run in runs)
    html = page.render(title=title, table=comparison_table(folders), pictures=pictures, runs=runs)
    (out / "report.html").write_text(html, encoding="utf-8")
    return out / "report.html"


def main(argv: list[str]) -> None:
    tyro.cli(report, args=argv, prog="p2o.py report")


def report(folders: tyro.conf.Positional[tuple[Path, ...]], out: Path | None = None) -> None:
    """One page for one run, or for several side by side.

    Args:
        folders: Folders of runs.
        out: Where report.html goes; by default the folder of the run, or the one that holds the first.
    """
    for folder in folders:
        if not (folder / "summary.json").exists():
            raise UserError(f"{folder}: no finished run is there")
    out = out or (folders[0] if len(folders) == 1 else folders[0].parent)
    print(f"report: {write_report(list(folders), out)}")
