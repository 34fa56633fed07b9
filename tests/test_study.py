"""Studies: the queue, what a study keeps, paired comparisons, the page of all studies, and bad input."""

import contextlib
import io
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from test_report import BROWSER, HOSTILE, Page, browse

import p2o
from support.errors import UserError
from support.log import read_lines
from support.run import files_of
from support.seams import check_variants
from tools import cli, compare, studies, study

# ----------------------------------------------------------------------------------------------------- one small study


@pytest.fixture
def small_study(tmp_path):
    data = write_jsonl(tmp_path / "train.jsonl", read_lines(ROOT / "tiny" / "train.jsonl")[:8])
    (tmp_path / "studies").mkdir()
    file = tmp_path / "studies" / "small.toml"
    file.write_text(
        f"""# Do twice the rollouts help?
        seeds = [0, 1]
        train_data = "{data}"
        eval_data = ["{data}"]
        epochs = 1
        [variants.GRPO]
        method = "grpo"
        [variants."GRPO, 2x rollouts"]
        method = "grpo"
        group_size = 12
        """
    )
    return file


def in_this_process(commands, jobs):
    """Stands in for `study.queue`: to start a process takes longer than its run."""
    for key, command in commands.items():
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = p2o.main(command[2:])
        yield key, study.last_line(code, said)


def the_first_in_a_process(commands, jobs, queue=study.queue):
    (first, command), *others = commands.items()
    yield from queue({first: command}, jobs)
    yield from in_this_process(dict(others), jobs)


def test_a_study_runs_what_is_missing_and_writes_tables_figure_and_raw_results(
    small_study, tmp_path, capsys, monkeypatch
):
    draw, drawn = compare.draw_study, []

    def draw_once(results, baselines, file):  # what a figure shows is tested elsewhere, and each takes a second
        if not drawn:
            draw(results, baselines, file)
        drawn.append([len(runs) for runs in results.values()])

    monkeypatch.setattr(compare, "draw_study", draw_once)
    monkeypatch.setattr(study, "queue", the_first_in_a_process)
    arguments = ["study", str(small_study), "--runs", str(tmp_path / "runs"), "--jobs", "2"]
    results = tmp_path / "results"
    assert p2o.main([*arguments, "--only", "2x", "3x"]) == 0
    assert "2 runs, 0 are done; time unknown until the first run ends, 2 at a time" in capsys.readouterr().out
    alone = study.read_results(results)["small"]["results"]
    assert [len(runs) for runs in alone.values()] == [0, 2]

    monkeypatch.setattr(study, "queue", in_this_process)
    assert p2o.main([*arguments, "--only", "GRPO"]) == 0
    assert "4 runs, 2 are done; less than a minute, 2 at a time" in capsys.readouterr().out
    table = (results / "small.md").read_text()
    assert "| GRPO | " in table and "| GRPO, 2x rollouts | " in table and "±" in table and "+0.000 [+0.000" in table
    raw = study.read_results(results)["small"]
    assert [len(runs) for runs in raw["results"].values()] == [2, 2] and raw["failures"] == []
    assert raw["results"]["GRPO, 2x rollouts"] == alone["GRPO, 2x rollouts"]
    assert {*raw["baselines"].values()} == {"GRPO"}
    assert raw["options"]["GRPO, 2x rollouts"]["group_size"] == 12 and raw["options"]["GRPO"]["epochs"] == 1
    first, second = (raw["results"][name][0] for name in ("GRPO, 2x rollouts", "GRPO"))
    assert first["rollouts"] == 2 * second["rollouts"] == 96
    assert [point["rollouts"] for point in second["curve"]] == [0, 48] and second["curve"][1]["hard_set"] == 8
    assert (results / "small.png").stat().st_size > 0 and drawn[-1] == [2, 2]

    summaries = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("summary.json")}
    next(iter(summaries)).unlink()  # as if the study had been stopped in the middle of this run
    assert p2o.main(arguments) == 0
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("summary.json")}
    assert len(after) == 4 and sum(after[file] == summaries[file] for file in summaries) == 3
    assert study.read_results(results)["small"]["results"].keys() == raw["results"].keys()

    capsys.readouterr()
    assert p2o.main(["study", str(small_study), "--runs", str(tmp_path / "elsewhere"), "--kept"]) == 0
    said = capsys.readouterr().out
    assert f"--kept: 4 runs come from {results / 'studies.json'}. Only their options" in said
    assert "4 runs, 4 are done" in said and not (tmp_path / "elsewhere").exists()

    inputs = next((tmp_path / "runs").rglob("*-seed1/inputs.json"))
    before = inputs.read_text()
    inputs.write_text(json.dumps(json.loads(before) | {"base_model": "another"}))
    with pytest.raises(SystemExit, match="1"):
        p2o.main(arguments)
    assert "seed 1: made on other questions, or another model, than seed 0" in capsys.readouterr().out
    inputs.write_text(before)

    small_study.write_text(small_study.read_text().replace("group_size = 12", "group_size = 8"))
    with pytest.raises(SystemExit, match="1"):
        p2o.main(arguments)
    assert "GRPO, 2x rollouts, seed 1: left out, it was made with group_size 12, now 8." in capsys.readouterr().out
    after = study.read_results(results)["small"]["results"]
    assert [len(runs) for runs in after.values()] == [2, 0]

    assert p2o.main(["studies", "--results", str(results)]) == 0
    page = Page(results / "studies.html")
    assert "Do twice the rollouts help?" in page.text and "left out, it was made with group_size 12" in page.text


def test_a_study_that_is_stopped_has_written_the_runs_that_had_ended(small_study, tmp_path, monkeypatch):
    """And what an earlier study left stays beside them, until the last run has ended."""

    def stopped_in_the_second(commands, jobs):
        yield from in_this_process(dict([next(iter(commands.items()))]), jobs)
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "queue", stopped_in_the_second)
    arguments = ["study", str(small_study), "--runs", str(tmp_path / "runs")]
    for ended in (1, 2):
        with pytest.raises(SystemExit, match="130"):
            p2o.main([*arguments, "--kept"])
        results = study.read_results(tmp_path / "results")["small"]["results"]
        assert sum(map(len, results.values())) == ended
        for folder in (tmp_path / "runs").rglob("summary.json"):
            folder.unlink()  # the machine is another one: only results/ came along
            (folder.parent / "config.json").unlink()


def test_a_variant_that_fails_is_named_and_the_others_are_kept(small_study, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study, "queue", in_this_process)
    small_study.write_text(small_study.read_text() + "\n[variants.broken]\ngroup_size = 1\n")
    kept = made_up({"GRPO": [0.5, 0.7], "gone": [0.1]})
    before = {"results": kept, "failures": ["GRPO, seed 2: as before", "broken, seed 0: otherwise"]}
    study.keep_record(tmp_path / "results", "small", before)
    with pytest.raises(SystemExit, match="1"):
        p2o.main(["study", str(small_study), "--runs", str(tmp_path / "runs"), "--only", "broken"])
    assert "broken, seed 0: p2o: --group-size 1" in capsys.readouterr().out
    written = study.read_results(tmp_path / "results")["small"]
    assert written["results"] == {"GRPO": kept["GRPO"], "GRPO, 2x rollouts": [], "broken": []}
    assert [line.partition(":")[0] for line in written["failures"]] == [
        "broken, seed 0", "broken, seed 1", "GRPO, seed 2"
    ]  # fmt: skip
    assert "| GRPO | " in (tmp_path / "results" / "small.md").read_text()


@pytest.mark.parametrize(
    "text, options, complaint",
    [
        (None, [], "no such study file"),
        ("seeds = [", [], "not TOML"),
        ("seeds = [0]", [], "no 'variants'"),
        ("[variants.a]", [], "no 'seeds'"),
        ('seeds = [0]\nbaseline = "b"\n[variants.a]', [], "the baseline 'b' is none of its variants"),
        ('seeds = [0]\nbaseline = ["a"]\n[variants.a]', [], "the baseline ['a'] is none of its variants"),
        ("seeds = [0]\n[variants.a]", ["--only", "b", "c"], "--only b c: no such variant; there are a"),
        ("seeds = [0]\n[variants.a]", ["--jobs", "0"], "--jobs 0: at least one run at a time"),
        ('seeds = [0]\n[variants."a b"]\n[variants."a, b"]', [], "too much alike"),
        ("seeds = 3\n[variants.a]", [], "`seeds` is 3; write a list of whole numbers"),
        ("seeds = []\n[variants.a]", [], "`seeds` is []; write a list"),
        ("seeds = [0, 0]\n[variants.a]", [], "each once"),  # one run, and the table would count two
        ('seeds = [0]\nvariants = ["a"]', [], "`variants` holds no table"),
        ('seeds = [0]\n[variants]\na = "x"', [], "`variants` holds no table"),
        ("seeds = [0]\n[variants]", [], "`variants` holds no table"),
        ("seeds = [0]\n[variants.a]\nseed = 4", [], "variant a: `seed` is set by the study itself"),
        ("seeds = [0]\n[variants.a]\nepoch = 4", [], "variant a: Unrecognized options: --epoch, 4"),
        ('seeds = [0]\n[variants.a]\nmethod = "gpro"', [], "invalid choice 'gpro' for argument '--method'"),
        ("seeds = [0]\neval_data = []\n[variants.a]", [], "variant a: `eval_data` is empty; a study compares held-out"),
        ("seeds = [0]\n[variants.a]\nepochs = 1.5", [], "bad.toml, variant a: "),
        ("seeds = [0]\n[variants.a]\ngroup_size = 2\ngroup-size = 4", [], "`group_size` is given twice in one table"),
        ("seeds = [0]\n[variants.a]\nname = '\udce9'", [], "not TOML"),  # a byte that is no UTF-8
    ],
)
def test_a_bad_study_gets_one_line(text, options, complaint, tmp_path, capsys):
    if text is not None:
        (tmp_path / "bad.toml").write_text(text, errors="surrogateescape")
    assert p2o.main(["study", str(tmp_path / "bad.toml"), "--runs", str(tmp_path), *options]) == 2
    said = capsys.readouterr().err
    assert complaint in said and len(said.splitlines()) == 1


def test_a_name_without_a_latin_letter_has_a_folder_and_a_byte_order_mark_is_no_fault(tmp_path):
    (tmp_path / "s.toml").write_text('\ufeffseeds = [0]\n[variants."中文"]\n[variants."日本"]', encoding="utf-8")
    folders = study.folders_of(study.read_study(tmp_path / "s.toml"), tmp_path)
    assert [folder.name for folder in folders.values()] == ["variant-1-seed0", "variant-2-seed0"]


def test_the_shipped_studies_name_only_real_options_and_what_variants_need_is_beside_them():
    for file in (ROOT / "lab" / "studies").glob("*.toml"):
        for options in study.read_study(file).variants.values():
            of_a_diff = options.pop("sample_bare", False)
            cfg = cli.parse_config(study.as_arguments(options))
            check_variants(cfg)
            assert not of_a_diff or cfg.advantage == "sdpo"


# ----------------------------------------------------------------------------------------------------------- the queue


def code(text):
    return [sys.executable, "-c", text]


def test_the_queue_says_how_each_run_ended():
    commands = {
        ("fine", 0): code("import sys; print('a word', file=sys.stderr)"),
        ("wrong", 0): code("import sys; print('first', file=sys.stderr); sys.exit('p2o: no such thing')"),
        ("killed", 0): code("import os; os.kill(os.getpid(), 9)"),
    }
    ended = dict(study.queue(commands, jobs=2))
    assert ended == {("fine", 0): "", ("wrong", 0): "p2o: no such thing", ("killed", 0): "ended with code -9"}


def test_no_more_runs_at_once_than_jobs_and_none_is_left_when_the_queue_is_closed(monkeypatch):
    started, Popen = [], subprocess.Popen

    def popen(*args, **options):
        assert sum(process.poll() is None for process in started) < 2
        started.append(Popen(*args, **options))
        return started[-1]

    monkeypatch.setattr(study.subprocess, "Popen", popen)
    queue = study.queue(
        {("slow", 0): code("import time; time.sleep(60)"), ("quick", 0): code(""), ("c", 0): code("")}, 2
    )
    assert next(queue) == (("quick", 0), "")
    assert next(queue) == (("c", 0), "")
    begun = time.monotonic()
    queue.close()
    assert all(process.poll() is not None for process in started) and time.monotonic() - begun < 10


def test_ctrl_c_ends_a_study_with_one_line(small_study, tmp_path, capsys, monkeypatch):
    def interrupted(commands, jobs):
        yield next(iter(commands)), ""
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "queue", interrupted)
    with pytest.raises(SystemExit) as ended:
        p2o.main(["study", str(small_study), "--runs", str(tmp_path / "runs")])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("p2o: ")]
    assert ended.value.code == 130 and said == ["p2o: stopped; 0 of 4 runs are done, the same command goes on"]
    assert not (tmp_path / "results").exists()


def test_a_finished_run_is_told_from_one_with_other_options(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"epochs": 2, "gepa_budget": "60", "temperature": 1.0}))
    assert study.other_options(tmp_path, {"epochs": 3}) == ""  # not finished: p2o.py says it when it is resumed
    (tmp_path / "summary.json").write_text("{}")
    assert study.other_options(tmp_path, {"epochs": 2, "gepa_budget": 60, "temperature": 1, "of_a_diff": True}) == ""
    assert "epochs 2, now 3" in study.other_options(tmp_path, {"epochs": 3})
    taken_out = study.other_options(tmp_path, {"epochs": 2})  # what is no longer said means its default again
    assert "gepa_budget 60, now 500" in taken_out and "temperature" not in taken_out


def test_other_data_are_told_if_the_study_writes_its_options_with_dashes(tmp_path):
    (tmp_path / "config.json").write_text('{"train_data": "old.jsonl"}')
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "s.toml").write_text('seeds = [0]\ntrain-data = "new.jsonl"\n[variants.a]')
    options = study.read_study(tmp_path / "s.toml").variants["a"]
    assert "train_data old.jsonl, now new.jsonl" in study.other_options(tmp_path, options)


def test_seeds_that_were_made_on_other_questions_are_told():
    runs = {("a", seed): {"made_on": {"base_model": "9", "data": {"training data": "1234"}}} for seed in range(4)}
    runs |= {("a", 2): {"made_on": {"base_model": "9", "data": {"training data": "5678"}}}, ("b", 0): runs["a", 2]}
    [line] = study.mixed(runs)
    assert line.startswith("a, seed 2: made on other questions, or another model, than seed 0. Remove")
    runs["a", 2] = {}  # an older version did not keep that
    assert study.mixed(runs) == []


def test_a_finished_run_that_has_lost_epochs_is_refused(tmp_path):
    """Cut off, its log would give the accuracy before training as the one at the end."""
    epochs = [
        json.dumps({"kind": "epoch", "epoch": e, "rollouts": 8 * e, "gepa_calls": 0, "accuracy": {"hard": e / 4}})
        for e in range(3)
    ]
    summary = {"seed": 0, "rollouts": 16, "gepa_calls": 0, "hard_set": 3, "seconds": 1.0, "accuracy": {"hard": 0.5}}
    (tmp_path / "config.json").write_text('{"method": "grpo", "epochs": 2}')
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    for lines in (epochs[:1], epochs[:2], epochs[::2], []):
        (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
        with pytest.raises(UserError, match="metrics.jsonl has lost epochs that summary.json knows"):
            study.result_of(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in epochs))
    assert study.result_of(tmp_path)["curve"][-1]["accuracy"] == {"hard": 0.5}
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="config.json: damaged"):
        study.other_options(tmp_path, {"epochs": 2})


def test_a_summary_without_its_numbers_is_named(small_study, tmp_path, capsys):
    folder = tmp_path / "runs" / "small" / "grpo-seed0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"method": "grpo", "epochs": 1}))
    (folder / "summary.json").write_text('{"seconds": 1.0}')
    assert p2o.main(["study", str(small_study), "--runs", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert "grpo-seed0/summary.json: it has no 'seed'" in said and len(said.splitlines()) == 1


def test_a_finished_run_is_told_from_one_with_another_text_of_the_users_own_file(tmp_path):
    """Otherwise seed 0 of the function as it was would stand in the table beside seed 1 of the function as it is."""
    own = tmp_path / "own.py"
    own.write_text("def mine(group):\n    return [0.0] * len(group)\n")
    options = {"epochs": 2, "advantage": f"{own}:mine"}
    for name, record in {
        "config.json": options, "summary.json": {}, "inputs.json": {"files": files_of(p2o.Config(**options))}
    }.items():  # fmt: skip
        (tmp_path / name).write_text(json.dumps(record))
    assert study.other_options(tmp_path, options) == ""
    own.write_text("def mine(group):\n    return [1.0] * len(group)\n")
    assert f"made with an earlier text of {own}:mine. Remove {tmp_path} to" in study.other_options(tmp_path, options)
    own.unlink()
    assert study.other_options(tmp_path, options) == ""  # a file that is gone says nothing of the run


# ------------------------------------------------------------------------------------------------------------ comparing


def made_up(finals, files=("hard",), epochs=(0, 100, 200)):
    """{variant: runs}, seeds from 0 up, whose accuracy is 0 at first and then what is given."""
    return {
        variant: [
            {
                "seed": seed, "rollouts": 200, "gepa_calls": 0, "hard_set": 3, "seconds": 60.0,
                "curve": [{"rollouts": x, "accuracy": dict.fromkeys(files, y if x else 0.0)} for x in epochs],
            }
            for seed, y in enumerate(of)
        ]
        for variant, of in finals.items()
    }  # fmt: skip


@given(heights=st.lists(st.floats(0, 1), min_size=2, max_size=6), budget=st.floats(1, 500))
def test_the_area_is_the_mean_height_on_the_way(heights, budget):
    curve = [(100.0 * i, height) for i, height in enumerate(heights)]
    budget = min(budget, curve[-1][0])
    xs = np.linspace(0, budget, 20_001)
    assert compare.area(curve, budget) == pytest.approx(np.interp(xs, *zip(*curve, strict=True)).mean(), abs=1e-3)


def test_the_area_of_no_way_at_all_is_the_height_there():
    assert compare.area([(0, 0.3), (10, 1.0)], 0) == 0.3


def test_differences_are_paired_by_seed():
    results = made_up({"P2O": [0.4, 0.8], "better by 0.1": [0.5, 0.9], "of no seed": []})
    compared = compare.compare(results, "hard", dict.fromkeys(results, "P2O"))
    assert list(compared) == ["P2O", "better by 0.1"] and compared["P2O"].against == {}
    better = compared["better by 0.1"]
    assert better.areas == {0: pytest.approx(0.375), 1: pytest.approx(0.675)}  # of 0.5 and 0.9: up by 100, then level
    gain = better.against["areas"]
    assert gain.mean == pytest.approx(0.075) and gain.half == pytest.approx(0, abs=1e-9)
    assert better.against["final"].text("+.2f") == "+0.10 [+0.10, +0.10]"
    assert better.reached == {1: 100} and better.against["reached"] is None  # the baseline never gets there
    row = compare.comparison_rows(compared)[1]
    assert [cell.text for cell in row[1:6]] == ["0.525", "+0.075 [+0.075, +0.075]", "± 0.000", "100 (1 of 2)", ""]


def test_each_world_of_a_study_may_have_a_baseline_of_its_own(tmp_path):
    worlds = '[variants.a]\n[variants."a+"]\n[variants.b]\nbaseline = "b"\n[variants."b+"]\nbaseline = "b"\n'
    (tmp_path / "two.toml").write_text(f"seeds = [0]\n{worlds}")
    baselines = study.read_study(tmp_path / "two.toml").baselines
    assert baselines == {"a": "a", "a+": "a", "b": "b", "b+": "b"}
    compared = compare.compare(made_up({"a": [0.5], "a+": [0.6], "b": [0.1], "b+": [0.3]}), "hard", baselines)
    gains = [of.against["final"].mean if of.against else None for of in compared.values()]
    assert gains == [None, pytest.approx(0.1), None, pytest.approx(0.2)]


def test_only_seeds_that_both_have_are_paired():
    difference = compare.paired({0: 1.0, 1: 2.0, 5: 9.0}, {1: 0.5, 5: 0.5, 7: 3.0})
    assert difference.seeds == [1.5, 8.5] and compare.paired({0: 1.0}, {1: 1.0}) is None
    alone = compare.paired({0: 1.0}, {0: 0.5})
    assert alone.interval is alone.half is None and alone.text() == "+0.500"


def test_the_budget_is_what_every_run_has_spent():
    results = made_up({"a": [1.0]}) | made_up({"b": [1.0]}, epochs=(0, 50, 150))
    assert compare.shared_budget(results) == 150


def test_a_baseline_without_runs_leaves_no_difference():
    row = compare.comparison_rows(compare.compare(made_up({"a": [0.5, 0.6], "b": []}), "hard", {"a": "b", "b": "b"}))[0]
    assert [row[i].text for i in (2, 3, 5, 7)] == ["", "", "", ""]


# ------------------------------------------------------------------------------------------- tables, figure and page


def test_whatever_accuracy_was_measured_of_is_in_the_table():
    results = made_up({"a": [0.5, 0.6]}, files=("hard", "hard, sampled", "ood")) | made_up({"b": [1.0]})
    header, rows = study.study_table(results)
    assert header[1:4] == ["hard", "hard, sampled", "ood"]
    assert [[cell.text for cell in row[:4]] for row in rows] == [["a", *["0.55 ± 0.07"] * 3], ["b", "1.00", "", ""]]
    paragraphs = study.comparisons(results, dict.fromkeys(results, "a"))
    assert [part for part in paragraphs if part.startswith("#")] == [f"## Held out: {name}" for name in header[1:4]]


@pytest.mark.parametrize("count, seeds", [(1, 1), (5, 2)])
def test_a_figure_of_any_number_of_variants(count, seeds, tmp_path):
    names = [f"variant $_{{$ {i}" for i in range(count)]  # as a formula it would have no end
    results = made_up({name: [i / 16 + seed / 50 for seed in range(seeds)] for i, name in enumerate(names)})
    compare.draw_study(results, dict.fromkeys(results, names[0]), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_a_figure_has_room_for_rewards_beyond_0_and_1(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("matplotlib.figure.Figure", lambda **size: made.append(Figure(**size)) or made[0])
    for ends, ticks in (([0.2, 0.9], [0, 0.5, 1]), ([-3.0, 5.0], [-3, 1, 5])):
        made.clear()
        compare.draw_study(made_up({"a": ends, "b": ends}), {"a": "a", "b": "a"}, tmp_path / "figure.png")
        *_, curves = made[0].axes
        low, high = curves.get_ylim()
        assert list(curves.get_yticks()) == ticks and low < ticks[0] and high > ticks[-1]


def test_nothing_that_a_figure_says_is_cut_off(tmp_path, monkeypatch):
    made, names = [], ["P2O", "P2O, --no-scale-by-std --aggregation seq-mean-token-sum-norm"]
    monkeypatch.setattr("matplotlib.figure.Figure", lambda **size: made.append(Figure(**size)) or made[0])
    results = made_up({name: [0.5, 0.6, 0.7] for name in names})
    compare.draw_study(results, dict.fromkeys(results, "P2O"), tmp_path / "figure.png")
    (figure,) = made
    figure.draw_without_rendering()
    for text in figure.findobj(lambda part: isinstance(part, Text) and len(part.get_text()) > 6):  # ticks are shorter
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text.get_text()


def page_of(tmp_path, word="fine"):
    results, command = tmp_path / "results", "python p2o.py study studies/some.toml"
    (tmp_path / "studies").mkdir(parents=True)
    (tmp_path / "studies" / "some.toml").write_text(
        f"# What is asked, {word}\n# in two lines.\n#\n# And more.\nseeds = []\n"
    )
    made = made_up({f"base {word}": [0.1, 0.2, 0.2], f"{word} 10": [0.95, 0.9, 1.0], f"worse {word}": [0.1, 0.1, 0.2]},
                   files=(f"hard {word}", "ood"))  # fmt: skip
    record = {"command": command, "failures": [f"failed: {word}"], "results": made}
    study.keep_record(results, "some", record | {"baselines": dict.fromkeys(record["results"], f"base {word}")})
    old = {"command": command.replace("some", "old"), "failures": [], "results": made_up({"one": [0.5], "none": []})}
    study.keep_record(results, "old", old)
    study.keep_record(results, "nothing ran", old | {"results": {"one": []}})
    studies.write_studies(results)
    return results / "studies.html"


def test_all_studies_are_on_the_page_and_nothing_else(tmp_path):
    page = Page(page_of(tmp_path))
    titles = page.source.split("<h2>")[1:]
    assert [title.partition("</h2>")[0] for title in titles] == ["old", "some"]
    assert "What is asked, fine in two lines." in page.text and "And more." in page.text and "seeds =" not in page.text
    assert page.source.count('class="forest good"') == 2 and page.source.count('class="forest "') == 2  # of two files
    assert not {"link", "img", "iframe"} & set(page.tags) and "default-src 'none'" in page.source
    links = [value for name, value in page.attributes if name in ("href", "src")]
    assert links and all(link.startswith("#") for link in links)


def test_hostile_names_stay_text(tmp_path):
    page, honest = Page(page_of(tmp_path / "hostile", HOSTILE)), Page(page_of(tmp_path / "honest"))
    assert page.tags == honest.tags and page.tags.count("script") == 1
    assert {name for name, _ in page.attributes} == {name for name, _ in honest.attributes}
    assert page.text.count(HOSTILE) >= 10


def test_a_folder_without_results_is_refused(tmp_path, capsys):
    assert p2o.main(["studies", "--results", str(tmp_path)]) == 2
    assert "no study has left its results there" in capsys.readouterr().err
    for damaged in ('{"some": 1}', '{"some": {"command": "x"}}', '{"some": {"results": []}}'):
        (tmp_path / "studies.json").write_text(damaged)
        assert p2o.main(["studies", "--results", str(tmp_path)]) == 2
        assert "studies.json: damaged, no results are there of the study some" in capsys.readouterr().err


SORTER = """<script>
const table = document.querySelectorAll("table")[4];  // of the second study, its first comparison
const sorted = (n) => {
  table.querySelectorAll("th button")[n].click();
  return [...table.tBodies[0].rows].map((row) => row.cells[n].textContent);
};
const shown = JSON.stringify([sorted(2), sorted(5)]);
document.body.replaceChildren(Object.assign(document.createElement("pre"), { textContent: shown }));
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no browser: install Debian's chromium, or Chrome")
def test_a_browser_sorts_the_tables_by_their_numbers(tmp_path):
    page = page_of(tmp_path, HOSTILE)
    source, console = browse(page, tmp_path)
    assert console == [] and "forest good" in source
    page.write_text(page.read_text().replace('<meta http-equiv="Content-Security-Policy"', "<meta name=off") + SORTER)
    source, console = browse(page, tmp_path)
    gains, reached = json.loads(source.partition("<pre>")[2].partition("</pre>")[0])
    assert console == [] and [text.partition(" ")[0] for text in gains] == ["-0.025", "", "+0.588"]
    assert [text.partition(" ")[0] for text in reached] == ["100", "never", "never"]
