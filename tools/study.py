"""Variants times seeds from one small file: run what is missing, resume what was stopped, then table and figures.

A study file is TOML: defaults of every run at the top, a table for each variant, options named as in `p2o.py --help`.

    seeds = [0, 1, 2]
    [variants.grpo]
    method = "grpo"
    [variants."grpo, 2x rollouts"]
    method = "grpo"
    group_size = 12
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import tyro
from tqdm import tqdm

from support.errors import UserError
from tools.report import read_run, spent

ROOT = Path(__file__).resolve().parent.parent


def read_study(file: Path) -> tuple[list[int], dict[str, dict]]:
    """(seeds, {variant: its options}), the file's other top-level options put into every variant."""
    try:
        study = tomllib.loads(file.read_text(encoding="utf-8"))
        seeds, variants = study.pop("seeds"), study.pop("variants")
    except FileNotFoundError:
        raise UserError(f"{file}: no such study file") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{file}: not TOML ({error})") from None
    except KeyError as error:
        raise UserError(
            f"{file}: no {error}; a study needs `seeds` and a [variants.NAME] table for each variant"
        ) from None
    return seeds, {name: study | options for name, options in variants.items()}


def as_arguments(options: dict) -> list[str]:
    """Options as command-line arguments.

    >>> as_arguments({"group_size": 12, "distill": False, "eval_data": ["a", "b"]})
    ['--group-size', '12', '--no-distill', '--eval-data', 'a', 'b']
    """
    arguments = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return arguments


def run_study(file: tyro.conf.Positional[Path], jobs: int = 2, runs: Path = ROOT / "runs") -> None:
    """Run every variant under every seed that has no summary yet; then write NAME.json, .md and .png to results/.

    results/ stands beside the study file's folder. Ends with code 1 if a run failed.

    Args:
        file: A TOML file; see studies/main.toml.
        jobs: Runs at once.
        runs: Where the runs are kept.
    """
    seeds, variants = read_study(file)
    folders = {
        (variant, seed): runs / file.stem / f"{re.sub(r'[^a-z0-9.]+', '-', variant.lower()).strip('-')}-seed{seed}"
        for seed in seeds
        for variant in variants
    }

    def run(key: tuple[str, int]) -> str:
        """The last line of what a failed run printed; an empty one if it went well."""
        variant, seed = key
        folder = folders[key]
        if (folder / "summary.json").exists():
            return ""
        command = [sys.executable, str(ROOT / "p2o.py"), *as_arguments(variants[variant] | {"seed": seed})]
        command += ["--runs", str(folder.parent), "--name", folder.name]
        command += ["--resume"] if (folder / "config.json").exists() else []
        result = subprocess.run(command, capture_output=True, text=True)
        return "" if result.returncode == 0 else f"{variant}, seed {seed}: {result.stderr.strip().splitlines()[-1]}"

    failures = []
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(folders), desc=file.stem, unit="run") as progress:
        for failure in pool.map(run, folders):
            progress.update()
            if failure:
                failures.append(failure)
                tqdm.write(failure)
    results = {
        variant: [
            result_of(folders[variant, seed]) for seed in seeds if (folders[variant, seed] / "summary.json").exists()
        ]
        for variant in variants
    }
    if any(results.values()):
        write_results(file, results, failures)
    if failures:
        raise SystemExit(1)


def main(argv: list[str]) -> None:
    tyro.cli(run_study, args=argv, prog="p2o.py study")


def result_of(folder: Path) -> dict:
    """What a study keeps of one run: its summary and the curve of each held-out file."""
    run = read_run(folder)
    curve = [{"rollouts": spent(e), "accuracy": e["accuracy"]} for e in run["epochs"]]
    return run["summary"] | {"curve": curve}


def write_results(file: Path, results: dict[str, list[dict]], failures: list[str]) -> None:
    out = file.resolve().parent.parent / "results" / file.stem
    out.parent.mkdir(exist_ok=True)
    command = f"python p2o.py study {file.parent.name}/{file.name}"
    out.with_suffix(".json").write_text(
        json.dumps({"command": command, "failures": failures, "results": results}) + "\n"
    )
    table = study_table(results)
    out.with_suffix(".md").write_text(f"Made by `{command}`.\n\n{table}\n")
    draw_curves(results, out.with_suffix(".png"))
    print(f"{table}\n\nwritten to {out.with_suffix('.md')}, with the raw results and a figure beside it")


def study_table(results: dict[str, list[dict]]) -> str:
    """Markdown: mean ± sample standard deviation over seeds, of the accuracy after the last epoch."""
    names = list(next(runs[0]["accuracy"] for runs in results.values() if runs))
    header = ["variant", *names, "final hard set", "training rollouts", "+ GEPA's", "minutes", "seeds"]
    rows = [header, ["---"] * len(header)]
    for variant, runs in results.items():
        if runs:
            scores = [spread([run["accuracy"][name] for run in runs], "{:.2f}") for name in names]
            hard = spread([run["hard_set"] for run in runs], "{:.0f}")
            spending = [f"{statistics.mean(run[key] for run in runs):,.0f}" for key in ("rollouts", "gepa_calls")]
            minutes = f"{statistics.mean(run['seconds'] for run in runs) / 60:.1f}"
            rows.append([variant, *scores, hard, *spending, minutes, str(len(runs))])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def spread(values: list[float], form: str) -> str:
    """'mean ± standard deviation', or the value alone.

    >>> spread([0.5, 1.0], "{:.2f}")
    '0.75 ± 0.35'
    """
    mean = form.format(statistics.mean(values))
    return f"{mean} ± {form.format(statistics.stdev(values))}" if len(values) > 1 else mean


def draw_curves(results: dict[str, list[dict]], file: Path) -> None:
    """Accuracy against all sampled responses, GEPA's included: the mean over seeds, and every seed as a thin line."""
    names = list(next(runs[0]["accuracy"] for runs in results.values() if runs))
    figure, axes = plt.subplots(1, len(names), figsize=(5.4 * len(names), 4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for i, (variant, runs) in enumerate(results.items()):
            curves = [([p["rollouts"] for p in r["curve"]], [p["accuracy"][name] for p in r["curve"]]) for r in runs]
            for xs, ys in curves:
                axis.plot(xs, ys, color=f"C{i}", alpha=0.25, linewidth=0.8)
            if curves:
                means = [
                    [statistics.mean(column) for column in zip(*part, strict=False)]
                    for part in zip(*curves, strict=True)
                ]
                axis.plot(*means, color=f"C{i}", marker="o", markersize=3, label=variant)
        axis.set(title=f"held out: {name}, bare prompt, greedy", xlabel="responses sampled, GEPA's included")
        axis.set(ylabel="accuracy", ylim=(-0.03, 1.03))
        axis.grid(alpha=0.25)
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
