"""All studies on one page, made from what they left in results/: tables to sort, intervals, curves."""

from __future__ import annotations

from pathlib import Path

import tyro
from markupsafe import Markup

from support.errors import UserError
from tools import svg
from tools.compare import (
    HEADER,
    NOTE,
    Cell,
    Comparison,
    caption,
    compare,
    comparison_rows,
    curve_of,
    files_of,
    mean_curve,
    shared_budget,
)
from tools.report import write_page
from tools.study import ROOT, baselines_of, read_results, study_table

OVERVIEW = ["study", "baseline", "variants", "runs", "hours of computing"]


def about(study_file: Path) -> list[str]:
    """The paragraphs of the comment that a study file begins with; none if the file is no longer there."""
    lines = study_file.read_text(encoding="utf-8").splitlines() if study_file.is_file() else []
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    text = "\n".join(line.removeprefix("#").strip() for line in lines[:end])
    return [" ".join(paragraph.split("\n")) for paragraph in text.split("\n\n") if paragraph]


def of_study(name: str, record: dict, folder: Path) -> dict:
    """What the page shows of one study."""
    results = {variant: runs for variant, runs in record["results"].items() if runs}
    baselines = baselines_of(record)
    named = Path(record["command"].split()[-1])  # the study's file, whose folder stands beside the results
    study_file = folder.resolve().parent / named.parent.name / named.name
    return {
        "name": name,
        "about": about(study_file),
        "command": record["command"],
        "failures": record["failures"],
        "baseline": "; ".join(dict.fromkeys(baselines.values())),
        "table": study_table(results),
        "caption": caption(shared_budget(results), baselines),
        "files": [of_file(results, file, baselines) for file in files_of(results)],
        "results": results,
    }


def of_file(results: dict[str, list[dict]], file: str, baselines: dict[str, str]) -> dict:
    """A table and a chart for each variant, of one held-out file."""
    compared = compare(results, file, baselines)
    rows = zip(comparison_rows(compared), forest_of(compared), strict=True)
    return {
        "name": file,
        "header": [*HEADER[:4], "worse | better", *HEADER[4:]],
        "rows": [[*row[:4], picture, *row[4:]] for row, picture in rows],
        "charts": charts_of(results, file, baselines),
    }


def forest_of(compared: dict[str, Comparison]) -> list[Markup]:
    """The difference of each variant's area with its interval, all on one axis; empty where there is no interval."""
    differences = [of.against.get("areas") for of in compared.values()]
    known = [d if d and d.interval else None for d in differences]
    span = max((abs(end) for d in known if d for end in d.bounds), default=1)
    return [svg.interval(d.mean, *d.bounds, span) if d else Markup("") for d in known]


def charts_of(results: dict[str, list[dict]], file: str, baselines: dict[str, str]) -> list[Markup]:
    """Each variant's mean curve beside the baseline's, all on the same axes."""
    curves = {
        variant: list(zip(*mean_curve(of_seeds), strict=True))
        for variant, runs in results.items()
        if (of_seeds := [curve for run in runs if (curve := curve_of(run, file))])
    }
    last, label = max(curve[-1][0] for curve in curves.values()), "responses sampled, GEPA's included"
    bases = {variant: (baselines[variant], curves.get(baselines[variant], [])) for variant in curves}
    return [
        svg.chart(variant, label, [bases[variant], (variant, curve)], share=True, up_to=last)
        for variant, curve in curves.items()
    ]


def overview(studies: list[dict]) -> list[list[Cell | Markup]]:
    rows = []
    for i, study in enumerate(studies):
        runs = [run for of in study["results"].values() for run in of]
        hours = sum(run["seconds"] for run in runs) / 3600
        link = Markup('<a href="#study{}">{}</a>').format(i, study["name"])
        rows.append([link, study["baseline"], len(study["results"]), len(runs), Cell(f"{hours:.1f}", hours)])
    return rows


def write_studies(results: Path = ROOT / "lab" / "results") -> None:
    """All studies on one page, studies.html beside their results. It can be opened without a network.

    Args:
        results: The folder that `p2o.py study` has written to.
    """
    studies = [
        of_study(name, record, results)
        for name, record in read_results(results).items()
        if any(record["results"].values())
    ]
    if not studies:
        raise UserError(f"{results}: no study has left its results there")
    fields = {"title": "all studies", "note": NOTE, "studies": studies, "overview": (OVERVIEW, overview(studies))}
    print(f"studies: {write_page(results / 'studies.html', **fields)}")


def main(argv: list[str]) -> None:
    tyro.cli(write_studies, args=argv, prog="p2o.py studies")
