"""Variants times seeds from one small file: run what is missing, resume what was stopped, then tables and a figure.

A study file is TOML: what it asks in a comment, defaults of every run at the top, a table for each variant, options
named as in `p2o.py --help`. Every variant is compared with a `baseline`, seed by seed: the study's, by default its
first variant, or one named among the variant's options.

    # Do twice the rollouts help?
    seeds = [0, 1, 2]
    [variants.grpo]
    method = "grpo"
    [variants."grpo, 2x rollouts"]
    method = "grpo"
    group_size = 12
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import tyro
from tqdm import tqdm

from support.checkpoint import write_whole
from support.errors import UserError
from support.run import comparable, files_of, recorded
from support.seams import SEAMS
from tools import cli, compare
from tools.compare import Cell
from tools.report import read_json, read_run, spent

ROOT = Path(__file__).resolve().parent.parent
LOOK = 0.2  # seconds between two looks at the runs that are going on

Key = tuple[str, int]  # (variant, seed): a run of the study


# ----------------------------------------------------------------------------------------------------- the study file


@dataclass(frozen=True)
class Study:
    seeds: list[int]
    variants: dict[str, dict]  # the options of each, the file's defaults among them
    baselines: dict[str, str]  # variant -> the one that it is compared with


def read_study(file: Path) -> Study:
    try:
        study = tomllib.loads(file.read_text(encoding="utf-8-sig"))  # an editor's byte order mark is no TOML
        seeds, variants = study.pop("seeds"), study.pop("variants")
    except FileNotFoundError:
        raise UserError(f"{file}: no such study file") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # tomllib's, or a byte that is no UTF-8
        raise UserError(f"{file}: not TOML ({error})") from None
    except KeyError as error:
        raise UserError(
            f"{file}: no {error}; a study needs `seeds` and a [variants.NAME] table for each variant"
        ) from None
    is_list = isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)
    if not is_list or len(set(seeds)) < len(seeds):  # a seed that stands there twice is one run, and no second one
        raise UserError(f"{file}: `seeds` is {seeds}; write a list of whole numbers, each once: seeds = [0, 1, 2]")
    if not isinstance(variants, dict) or not variants or not all(isinstance(of, dict) for of in variants.values()):
        raise UserError(f"{file}: `variants` holds no table; write [variants.NAME], and its options below")
    first = study.pop("baseline", next(iter(variants)))
    baselines = {name: options.pop("baseline", first) for name, options in variants.items()}
    for baseline in baselines.values():
        if not isinstance(baseline, str) or baseline not in variants:
            raise UserError(f"{file}: the baseline {baseline!r} is none of its variants")
    study = by_field(file, study)
    return Study(seeds, {name: study | by_field(file, options) for name, options in variants.items()}, baselines)


def by_field(file: Path, options: dict) -> dict:
    """The options by the names that config.json has for them. A file may write them with dashes, as a command does.

    >>> by_field(Path("s.toml"), {"train-data": "a.jsonl", "epochs": 2})
    {'train_data': 'a.jsonl', 'epochs': 2}
    """
    names = [name.replace("-", "_") for name in options]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{file}: `{twice[0]}` is given twice in one table, with dashes and without; leave one away")
    return dict(zip(names, options.values(), strict=True))


def check_options(file: Path, study: Study, names: list[str]) -> None:
    """Refuse an option that p2o.py does not have, before the first run: a variant's turn may come after hours."""
    for name in names:
        for ours in ("seed", "name", "runs", "resume"):
            if ours in study.variants[name]:
                raise UserError(f"{file}, variant {name}: `{ours}` is set by the study itself; leave it away")
        try:
            with contextlib.redirect_stderr(io.StringIO()) as said:
                cfg = cli.parse_config(as_arguments(study.variants[name]))
        except SystemExit:  # of tyro
            raise UserError(f"{file}, variant {name}: {first_words(said.getvalue())}") from None
        except UserError:
            continue  # its runs say so and fail; those of the other variants go on
        if not cfg.eval_data:
            raise UserError(f"{file}, variant {name}: `eval_data` is empty; a study compares held-out accuracies")


def first_words(said: str) -> str:
    """The complaint in what tyro prints: what stands between its title and the rule above its advice.

    It draws a box where the console has letters for one.

    >>> first_words(" Unrecognized options\\n ----\\n  Unrecognized: --epoch\\n  ----\\n  Perhaps you meant ...")
    'Unrecognized: --epoch'
    >>> first_words("╭─ Unrecognized options ─╮\\n│ Unrecognized: --epoch │\\n│ ─── │\\n│ Perhaps ... │\\n╰─╯")
    'Unrecognized: --epoch'
    """
    lines = [line.strip("│ ") for line in said.splitlines()[1:]]
    below_title = itertools.dropwhile(lambda line: not line.strip("─-"), lines)
    return " ".join(itertools.takewhile(lambda line: line.strip("─-╰╯"), below_title))


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


def chosen(variants: dict[str, dict], only: tuple[str, ...]) -> list[str]:
    """The variants whose names hold one of these texts; all of them where no text is given.

    >>> chosen({"GRPO": {}, "P2O": {}, "P2O, one bare": {}}, ("bare", "GRPO"))
    ['GRPO', 'P2O, one bare']
    """
    names = [name for name in variants if not only or any(text in name for text in only)]
    if not names:
        raise UserError(f"--only {' '.join(only)}: no such variant; there are {'; '.join(variants)}")
    return names


def folders_of(study: Study, runs: Path) -> dict[Key, Path]:
    """Where each run is kept, all variants of a seed before the next seed: what is there early can be compared."""
    slugs = {variant: re.sub(r"[^a-z0-9.]+", "-", variant.lower()).strip("-") for variant in study.variants}
    # A name without a Latin letter leaves nothing for its folder: that is called after the variant's place.
    slugs = {variant: slug or f"variant-{place}" for place, (variant, slug) in enumerate(slugs.items(), start=1)}
    if len(set(slugs.values())) < len(slugs):
        raise UserError(f"two variants have names too much alike for folders of their own: {', '.join(slugs.values())}")
    return {(name, seed): runs / f"{slugs[name]}-seed{seed}" for seed in study.seeds for name in study.variants}


# ---------------------------------------------------------------------------------------------------------- its runs


def run_study(
    file: tyro.conf.Positional[Path],
    only: tuple[str, ...] = (),
    jobs: int = os.cpu_count() or 1,
    runs: Path = ROOT / "runs",
    kept: bool = False,
) -> None:
    """Run every variant under every seed that has no summary yet; then write NAME.md and NAME.png to results/.

    The raw results go into results/studies.json. results/ stands beside the study file's folder. Runs that were
    stopped are resumed. Ends with code 1 if a run failed.

    Args:
        file: A TOML file; see lab/studies/main.toml.
        only: Texts: run the variants that have one of them in their names. The results of the others stay as they are.
        jobs: Runs at once, each on one thread unless the file says otherwise. Give 1 for models that fill a GPU.
        runs: Where the runs are kept.
        kept: Count as done what results/studies.json has under the same options, though the run itself is gone.
    """
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: at least one run at a time")
    study = read_study(file)
    names, folders = chosen(study.variants, only), folders_of(study, runs / file.stem)
    check_options(file, study, names)
    asked = [key for key in folders if key[0] in names]
    changed = {key: text for key in asked if (text := other_options(folders[key], study.variants[key[0]]))}
    failures = [f"{variant}, seed {seed}: {text}" for (variant, seed), text in changed.items()]
    before = kept_runs(study, read_results(results_of(file)).get(file.stem, {}))
    known = before if kept else {}

    def done() -> dict[Key, dict]:
        return known | {key: result_of(folders[key]) for key in asked if is_done(folders[key])}

    def write(gave: dict[Key, dict], failures: list[str]) -> str:
        results = {
            name: [gave[name, seed] for seed in study.seeds if (name, seed) in gave.keys() - changed.keys()]
            for name in names
        }
        return write_results(file, study, results, failures)

    if gone := [key for key in asked if key in known and not is_done(folders[key])]:
        print(
            f"--kept: {len(gone)} runs come from {results_of(file) / 'studies.json'}. Only their options are compared "
            "with those of now: questions and model may have changed since"
        )
    print("\n".join([*failures, plan(asked, done(), jobs)]))
    try:
        # Written after every run: a study that takes days is stopped more than once, and its machine may be gone then.
        # Until the last run has ended, what an earlier study has left stays beside the new.
        todo = [key for key in asked if key not in done()]
        failures += do_runs(study, todo, folders, jobs, lambda: write(before | done(), failures))
    except KeyboardInterrupt:
        count = len(done().keys() & set(asked))
        print(f"\np2o: stopped; {count} of {len(asked)} runs are done, the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
    gave = done()
    unlike = mixed({key: gave[key] for key in asked if key in gave})
    failures += unlike
    print("\n".join([*unlike, write(gave, failures)]))
    if failures:
        raise SystemExit(1)


def main(argv: list[str]) -> None:
    tyro.cli(run_study, args=argv, prog="p2o.py study")


def is_done(folder: Path) -> bool:
    return (folder / "summary.json").exists()


def mixed(done: dict[Key, dict]) -> list[str]:
    """Lines about runs on other questions, or another model, than the earlier seeds of their variant: a file was edited
    in between, and the mean over the seeds would be of two things."""
    first, lines = {}, []
    for (variant, seed), run in done.items():
        made_on = run.get("made_on")  # of an older version nothing is known
        earlier, theirs = first.setdefault(variant, (seed, made_on)) if made_on else (seed, made_on)
        if made_on != theirs:
            line = f"{variant}, seed {seed}: made on other questions, or another model, than seed {earlier}. "
            lines.append(line + "Remove the older folder, or leave --kept away, to run it again")
    return lines


def other_options(folder: Path, options: dict) -> str:
    """What is wrong with a finished run whose options, or whose file of the user's own, have changed since; else an
    empty text."""
    if not is_done(folder):
        return ""  # to be resumed, which refuses other options by itself
    made_with = read_json(folder / "config.json")
    changed = [
        f"{name} {made_with[name]}, now {value}"
        for name, value in options.items()
        if name in made_with and value != made_with[name] and str(value) != str(made_with[name])
    ]
    inputs = folder / "inputs.json"
    files = read_json(inputs).get("files", {}) if inputs.exists() else {}
    with contextlib.suppress(OSError):  # a file that is gone says nothing of the run
        now = files_of(SimpleNamespace(**dict.fromkeys((*SEAMS, "reflection_prompt"), "") | options))
        changed += [
            f"an earlier text of {options[name]}" for name in files if now.get(name, files[name]) != files[name]
        ]
    # An option that was taken out of the study file means its default again.
    means = settings_meant(json.dumps(options, default=str))
    before = comparable({name: made_with[name] for name in means if name in made_with})
    changed += [
        f"{name} {value}, now {means[name]}"
        for name, value in before.items()
        if name not in options and value != means[name]
    ]
    return f"left out, it was made with {'; '.join(changed)}. Remove {folder} to run it again" if changed else ""


@functools.cache
def settings_meant(options: str) -> dict:
    """All settings that a variant's options (as JSON) mean, but for seed and places; {} if p2o.py refuses them."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            cfg = cli.parse_config(as_arguments({"threads": 1} | json.loads(options)))
    except (SystemExit, UserError):
        return {}
    return comparable({name: value for name, value in recorded(cfg).items() if name != "seed"})


def command_of(options: dict, seed: int, folder: Path) -> list[str]:
    """The command of a run. One thread: runs side by side use the cores better than threads do."""
    command = [sys.executable, str(ROOT / "p2o.py"), *as_arguments({"threads": 1} | options | {"seed": seed})]
    command += ["--runs", str(folder.parent), "--name", folder.name]
    return command + (["--resume"] if (folder / "config.json").exists() else [])


def do_runs(
    study: Study, todo: list[Key], folders: dict[Key, Path], jobs: int, after_each: Callable[[], object]
) -> list[str]:
    """Do them, with a bar on the screen that knows how long it takes; a line for each that failed."""
    commands = {key: command_of(study.variants[key[0]], key[1], folders[key]) for key in todo}
    failed = {}
    with tqdm(total=len(todo), unit="run", disable=not todo) as bar, closing(queue(commands, jobs)) as ended:
        for (variant, seed), failure in ended:
            bar.update()
            if failure:
                failed[variant, seed] = f"{variant}, seed {seed}: {failure}"
                tqdm.write(failed[variant, seed])
            after_each()
    return [failed[key] for key in todo if key in failed]  # in the study's order, whichever ended first


def queue(commands: dict[Key, list[str]], jobs: int) -> Iterator[tuple[Key, str]]:
    """Run the commands, `jobs` at once; as each ends, its key and the last line it printed if it failed, else "".

    Whoever closes it early ends the runs that are going on: they can be resumed from any moment.
    """
    waiting, running = list(commands), {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
                process = subprocess.Popen(commands[waiting[0]], stdout=subprocess.DEVNULL, stderr=said)
                running[waiting.pop(0)] = process, said
            for key in [key for key, (process, _) in running.items() if process.poll() is not None]:
                process, said = running.pop(key)
                with said:
                    yield key, last_line(process.returncode, said)
            time.sleep(LOOK)
    finally:
        for process, said in running.values():
            process.terminate()
            process.wait()
            said.close()


def last_line(code: int, said) -> str:
    if code == 0:
        return ""
    said.seek(0)
    lines = said.read().strip().splitlines()
    return lines[-1] if lines else f"ended with code {code}"


# ---------------------------------------------------------------------------------------------------- how long it takes


def plan(asked: list[Key], done: dict[Key, dict], jobs: int) -> str:
    """What is to be done and how long that takes, in a line."""
    pending = [key[0] for key in asked if key not in done]
    start = f"{len(asked)} runs, {len(asked) - len(pending)} are done"
    if not pending:
        return start
    known: dict[str, list[float]] = {}  # what each variant's finished runs took
    for (variant, _), run in done.items():
        known.setdefault(variant, []).append(run["seconds"])
    seconds = estimate(pending, known, jobs)
    return f"{start}; {about(seconds) if seconds else 'time unknown until the first run ends'}, {jobs} at a time"


def estimate(pending: list[str], known: dict[str, list[float]], jobs: int) -> float | None:
    """Seconds until all pending runs, given by their variants, are done: a variant's runs take what its finished ones
    took, a variant without any what all finished ones took, `jobs` at once, none split.

    >>> estimate(["a", "a", "b"], {"a": [60.0, 80.0]}, jobs=2), estimate(["a"], {}, jobs=2)
    (140.0, None)
    """
    if not known:
        return None
    usual = statistics.fmean(seconds for of in known.values() for seconds in of)
    ends = [0.0] * jobs  # when each of the places is free
    for variant in pending:
        place = ends.index(min(ends))
        ends[place] += statistics.fmean(known.get(variant, [usual]))
    return max(ends)


def about(seconds: float) -> str:
    """
    >>> about(20), about(60), about(1500), about(9000)
    ('less than a minute', 'about 1 minute', 'about 25 minutes', 'about 2.5 hours')
    """
    if seconds < 45:
        return "less than a minute"
    minutes = round(seconds / 60) or 1
    if minutes < 100:
        return f"about {minutes} minute{'s' if minutes > 1 else ''}"
    return f"about {seconds / 3600:.1f} hours"


# ------------------------------------------------------------------------------------------------------- their results


def result_of(folder: Path) -> dict:
    """What a study keeps of one run: what it cost, accuracy and hard set after each epoch, digests of its inputs."""
    kept = ("seed", "rollouts", "gepa_calls", "hard_set", "seconds")
    summary = read_json(folder / "summary.json", (*kept, "accuracy"))
    epochs = read_run(folder)["epochs"]
    curve = [{"rollouts": spent(e), "accuracy": e["accuracy"], "hard_set": e.get("hard_set")} for e in epochs]
    numbers = [e["epoch"] for e in epochs]
    if numbers != [*range(len(numbers))] or not numbers or curve[-1]["accuracy"] != summary["accuracy"]:
        raise UserError(
            f"{folder}: metrics.jsonl has lost epochs that summary.json knows; put it back, or remove the folder, and "
            "the run is done again"
        )
    result = {name: summary[name] for name in kept} | {"curve": curve}
    inputs = folder / "inputs.json"
    if inputs.exists():
        result["made_on"] = {name: read_json(inputs).get(name) for name in ("data", "base_model")}
    return result


def results_of(study_file: Path) -> Path:
    """The folder of a study's results: beside the folder of the study's file."""
    return study_file.resolve().parent.parent / "results"


def read_results(folder: Path) -> dict[str, dict]:
    """{study: its record} of a folder's studies.json; nothing if there is no such file yet."""
    file = folder / "studies.json"
    records = read_json(file) if file.exists() else {}
    for name, record in records.items():
        if not isinstance(record, dict) or not isinstance(record.get("results"), dict):
            raise UserError(f"{file}: damaged, no results are there of the study {name}; mend or remove its line")
    return records


def keep_record(folder: Path, name: str, record: dict) -> None:
    """Put a study's record into studies.json, a line for each study, so that a new result changes one line."""
    records = dict(sorted((read_results(folder) | {name: record}).items()))
    lines = [f"{json.dumps(name)}: {json.dumps(record)}" for name, record in records.items()]
    write_whole(folder / "studies.json", "{\n" + ",\n".join(lines) + "\n}\n")


def kept_runs(study: Study, record: dict) -> dict[Key, dict]:
    """The runs in a study's record whose variants had the options that they have now."""
    options = record.get("options", {})
    same = [name for name in study.variants if options.get(name) == study.variants[name]]
    return {(name, run["seed"]): run for name in same for run in record["results"][name]}


def baselines_of(record: dict) -> dict[str, str]:
    """{variant: the one it is compared with}: the first, if the record is so old that there was no choice."""
    first = next(iter(record["results"]))
    return record.get("baselines", dict.fromkeys(record["results"], first))


def merged(known: dict, study: Study, results: dict[str, list[dict]], failures: list[str]) -> dict:
    """A study's record: of the variants in `results` what they gave now, of its others what was known of them."""
    options, before = known.get("options", {}), known.get("results", {})
    others = {name: options.get(name, now) for name, now in study.variants.items() if name not in results}
    return {
        "baselines": study.baselines,
        "failures": failures + [line for line in known.get("failures", []) if line.partition(", seed ")[0] in others],
        "options": study.variants | others,
        "results": {name: results.get(name, before.get(name, [])) for name in study.variants},
    }


def write_results(file: Path, study: Study, results: dict[str, list[dict]], failures: list[str]) -> str:
    """The record in studies.json, NAME.md and NAME.png, if there is any run; returns what to say on the screen."""
    folder = results_of(file)
    inside = file.resolve().is_relative_to(ROOT)
    shown = file.resolve().relative_to(ROOT) if inside else Path(file.parent.name, file.name)
    record = {"command": f"python p2o.py study {shown.as_posix()}"}
    record |= merged(read_results(folder).get(file.stem, {}), study, results, failures)
    if not any(record["results"].values()):
        return "no run has ended yet: nothing is written"
    keep_record(folder, file.stem, record)
    out = folder / f"{file.stem}.md"
    table = compare.markdown(*study_table(record["results"]))
    parts = [f"Made by `{record['command']}`.", table, compare.NOTE, *comparisons(record["results"], study.baselines)]
    out.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    compare.draw_study(record["results"], study.baselines, out.with_suffix(".png"))
    return f"{table}\n\nwritten to {out}, with the raw results and a figure beside it"


def comparisons(results: dict[str, list[dict]], baselines: dict[str, str]) -> list[str]:
    """Paragraphs of Markdown: what is compared, then a heading and a table for each held-out file."""
    parts = [compare.plain(compare.caption(compare.shared_budget(results), baselines))]
    for name in compare.files_of(results):
        rows = compare.comparison_rows(compare.compare(results, name, baselines))
        parts += [f"## Held out: {compare.plain(name)}", compare.markdown(compare.HEADER, rows)]
    return parts


def study_table(results: dict[str, list[dict]]) -> tuple[list[str], list[list[Cell]]]:
    """(header, rows): accuracy after the last epoch, mean ± sample standard deviation over seeds, and what it cost."""
    names = compare.files_of(results)
    header = ["variant", *names, "final hard set", "training rollouts", "+ GEPA's", "minutes", "seeds"]
    rows = []
    for variant, runs in results.items():
        if runs:
            finals = [run["curve"][-1]["accuracy"] for run in runs]
            scores = [spread([final[name] for final in finals if name in final], ".2f") for name in names]
            hard = spread([run["hard_set"] for run in runs], ".0f")
            spending = [compare.mean_cell([run[key] for run in runs], ",.0f") for key in ("rollouts", "gepa_calls")]
            minutes = compare.mean_cell([run["seconds"] / 60 for run in runs], ".1f")
            rows.append([Cell(variant, None), *scores, hard, *spending, minutes, Cell(str(len(runs)), len(runs))])
    return header, rows


def spread(values: list[float], form: str) -> Cell:
    """'mean ± standard deviation', or the value alone.

    >>> spread([0.5, 1.0], ".2f").text
    '0.75 ± 0.35'
    """
    if not values:
        return Cell("", None)
    mean = compare.mean_cell(values, form)
    return Cell(f"{mean.text} ± {statistics.stdev(values):{form}}", mean.value) if len(values) > 1 else mean
