"""Showing a run: what it writes down and tells a tracker, the page and what a browser makes of it; evaluation."""

import contextlib
import dataclasses
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, call

import pytest
from conftest import ROOT, load_tiny, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_p2o import small_in

import grpo
import p2o
import verify
from support import checkpoint, log, messages
from support.data import Question
from support.errors import UserError
from support.log import RunLog, silent_failures
from tiny.problems import FAMILIES
from tools import evaluate, report, svg, tokens

# ------------------------------------------------------------------------------------------------ a run's own records


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short real run, of which two updates a batch are needed: only then can a token have moved."""
    cfg = small_in(tmp_path_factory.mktemp("trained"))
    with report.live_report([cfg.folder], cfg.folder):
        p2o.train(cfg)
    return report.read_run(cfg.folder)


def test_the_progress_bar_is_drawn_once_a_batch_and_names_the_epoch_from_its_start(capsys, monkeypatch):
    """In a log file each drawing stays. A batch of a large model takes many minutes, so the first one is named, too."""
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    for _ in RunLog(SimpleNamespace(folder=None, track="none")).progress(range(1, 6), per_epoch=3):
        pass
    drawn = [part for part in capsys.readouterr().err.split("\r") if part.strip()]
    # At the start, after each of five batches but the last, whose bar is cleared, and once more for a new epoch.
    assert drawn[0].startswith("epoch 1/2:  17%") and len(drawn) <= 7


def test_families_add_up_to_the_accuracy(trained):
    for epoch in trained["epochs"]:
        families = epoch["families"]["held"]["family"]
        assert sum(asked for _, asked in families.values()) == 8 and len(families) == 4
        assert sum(right for right, _ in families.values()) / 8 == epoch["accuracy"]["held"]


def test_a_run_of_an_older_version_has_a_page_without_what_it_did_not_write_down(trained, tmp_path):
    shutil.copytree(trained["folder"], tmp_path / "old")
    later = ("entropy", "families", "small_contrast", "mismatch", "logprob_mismatch", "clip_fraction", "ill_formed")
    lines = [{k: v for k, v in line.items() if k not in (*later, "updates", "responses")} for line in trained["lines"]]
    write_jsonl(tmp_path / "old" / "metrics.jsonl", lines)
    report.write_report([tmp_path / "old", trained["folder"]], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "entropy, nats per token" in page and "old" in page


def test_tokens_of_transcripts_are_seen_as_their_update_sees_them(trained):
    seen = [line for line in trained["transcripts"] if "tokens" in line]
    assert len(seen) == len(trained["transcripts"]) == 2 * 2 * 6  # epochs, batches, two groups' first three
    for line in seen:
        lengths = {len(line[name]) for name in ("tokens", "sampled_logprobs")}
        lengths |= {len(line[name]) for name in ("old_logprobs", "new_logprobs") if line[name] is not None}
        assert len(lengths) == 1 and line["tokens"][-1].strip() == "<|end|>"
        assert "".join(line["tokens"][:-1]).rstrip() == line["response"]  # spaces and all
    taught = [line for line in seen if line["new_logprobs"] is not None]
    distilled = [line for line in taught if line["template"]]
    assert distilled and all(line["old_logprobs"] != line["sampled_logprobs"] for line in distilled)

    def gap(line):
        """Of the batch's first update it is 0 but for rounding, and transcripts round to four digits."""
        return max(abs(new - old) for new, old in zip(line["new_logprobs"], line["old_logprobs"], strict=True))

    moved = [line for line in taught if gap(line) > 1e-3]
    assert moved and len(moved) < len(taught)  # by the batch's first update, which sees nothing moved itself
    assert all(gap(line) < 2e-4 for line in taught if line not in moved)


def test_warnings_are_in_the_log_as_well_as_on_the_screen(tmp_path, tiny_policy, capsys):
    run = p2o.Run(p2o.Config(runs=str(tmp_path), name="warned"))
    run.resume(p2o.State(), tiny_policy.model, None, {"training data": []})
    run.log_update(1, {"skipped": 1.0, "loss": float("nan")}, [SimpleNamespace(reward=0.0)])
    run.warn("look here", epoch=2)
    known = [line["text"] for line in run.logged("warning")]
    assert len(known) == 2 and "not finite" in known[0] and known[1] == "look here"
    shown = capsys.readouterr().out
    assert all(text in shown for text in known)


def test_a_number_that_is_not_finite_ends_no_epoch_and_is_warned_of(tmp_path, tiny_policy):
    """The trainer's log-probs overflow in one batch: its updates are skipped, and the run goes on."""
    run = p2o.Run(p2o.Config(runs=str(tmp_path), name="overflown"))
    run.resume(p2o.State(), tiny_policy.model, None, {"training data": []})
    batch = dict.fromkeys(("groups", "zero_advantage", "small_contrast", "truncated", "ill_formed", "templated"), 1)
    batch |= {"epoch": 1, "rollouts": 6, "reward": 3.0, "tokens": 40, "entropy": 4.0}
    for gap in (0.01, float("nan")):
        run.log("rollouts", **batch, mismatch=gap, mismatch_max=gap)
    run.log_epoch(1, {"hard": 0.5})
    [line], warnings = run.logged("epoch"), [line["text"] for line in run.logged("warning")]
    assert line["entropy"] == 0.1 and line["logprob_mismatch"] is None
    assert any("log-probs differ by nan on average" in text for text in warnings)


# ---------------------------------------------------------------------------------------------------- a run made up

EPOCH = {"kind": "epoch", "gepa_calls": 5, "hard_set": 3, "zero_advantage": 0.5}


def made_up(folder, *, name="hard", value="total", word="fine", config=None, epochs=(0, 1, 2), done=True):
    """A run's folder as support/run.py leaves it. name, value, word: a held-out file, a family, all other texts."""
    (folder / "templates").mkdir(parents=True)
    settings = dataclasses.asdict(p2o.Config(epochs=2)) | (config or {})
    (folder / "config.json").write_text(json.dumps(settings))
    lines = []
    for epoch in epochs:
        batch = {"rollouts": 10, "reward": 5 + 2 * epoch, "tokens": 50, "entropy": 20.0, "templated": 5 * (epoch > 1)}
        lines.append({"kind": "rollouts", "epoch": epoch} | batch)
        lines.append({"kind": "update", "epoch": epoch, "update": epoch + 1, "grad_norm": None if epoch else 0.5})
        lines[-1] |= {"clip_fraction": 0.1, "masked": 0.2}
        families = {name: {"family": {value: [epoch, 4]}}}
        accuracy = {name: epoch / 4}
        means = EPOCH | {"templated": batch["templated"] / 10} if epoch else {"kind": "epoch", "gepa_calls": 0}
        lines.append(means | {"epoch": epoch, "rollouts": 10 * epoch, "accuracy": accuracy, "families": families})
    lines.append({"kind": "warning", "epoch": 1, "text": word})
    write_jsonl(folder / "metrics.jsonl", lines)
    line = {"epoch": 1, "id": "q", "question": word, "reference": word, "template": word, "response": word}
    numbers = {"sampled_logprobs": [-0.1, -0.2], "old_logprobs": [-3.0, -0.2], "new_logprobs": [-2.0, -0.2]}
    tokens = {"tokens": [word, word], "token_weight": 1.0, "advantage": 1.0, **numbers}
    transcripts = [line | {"reward": 1.0} | tokens, line | {"reward": 0.0, "template": "", "epoch": 2}]
    write_jsonl(folder / "transcripts.jsonl", transcripts)
    evolution = {
        "candidates": ["", word, f"{word} and more"], "parents": [[None], [0], [1, 0]], "chosen": [2],
        "dev_scores": [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]], "metric_calls": 5, "stopped_early": word,
    }  # fmt: skip
    (folder / "templates" / "epoch-1.json").write_text(json.dumps(evolution))
    if done:
        (folder / "summary.json").write_text(json.dumps({"seconds": 12.3}))
    return folder


class Page(HTMLParser):
    """The page as a browser reads it: tags, attributes, texts."""

    def __init__(self, file):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = "\n".join(self.texts)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.texts.append(data)


HOSTILE = (
    '</script></title></style><script>hacked()</script><img src=x onerror=hacked()>" onload="hacked()\'{{ 7 * 7 }}'
)


def test_hostile_text_stays_text_in_every_field(tmp_path):
    named = tmp_path / '<img src=x onerror=hacked()>" onload="hacked()'
    words = {"name": f"n{HOSTILE}", "value": f"v{HOSTILE}", "word": f"w{HOSTILE}\0\ud800"}
    page = Page(report.write_report([made_up(named, **words, config={"model": f"m{HOSTILE}"})], tmp_path))
    honest = Page(report.write_report([made_up(tmp_path / "honest")], tmp_path))
    assert page.tags == honest.tags and page.tags.count("script") == 1
    assert {name for name, _ in page.attributes} == {name for name, _ in honest.attributes}
    words = [words["name"], words["value"], named.name, f"w{HOSTILE}", "{{ 7 * 7 }}"]
    assert all(word in page.text for word in words)
    # Warnings, both templates, question, reference, response and its tokens, in the text and where the mouse is.
    assert page.text.count(f"w{HOSTILE}") >= 14
    assert json.dumps(f"m{HOSTILE}") in page.text


def test_nothing_is_fetched(tmp_path):
    page = Page(report.write_report([made_up(tmp_path / "run")], tmp_path))
    assert not {"link", "img", "iframe"} & set(page.tags) and "url(" not in page.source and "@import" not in page.source
    links = [value for name, value in page.attributes if name in ("href", "src", "xlink:href")]
    assert links and all(link.startswith("#") for link in links)
    assert dict(page.attributes)["content"] != "" and "default-src 'none'" in page.source


def test_a_run_that_is_still_going(tmp_path):
    folder = made_up(tmp_path / "going", epochs=(0, 1), done=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "epoch", "epo')  # a line that is being written
    (folder / "transcripts.jsonl").unlink()
    page = Page(report.write_report([folder], folder))
    assert "going is still going, or was stopped: 1 of\n2 epochs" in page.text
    assert "still going" not in Page(report.write_report([made_up(tmp_path / "done")], tmp_path)).text


def test_a_run_that_has_just_begun(tmp_path):
    folder = made_up(tmp_path / "new", done=False)
    (folder / "metrics.jsonl").write_text("")
    (folder / "transcripts.jsonl").write_text("")
    shutil.rmtree(folder / "templates")
    page = Page(report.write_report([folder], folder))
    assert "0 of\n2 epochs" in page.text and "no templates were evolved" in page.text


def test_several_runs_side_by_side(tmp_path):
    folders = [made_up(tmp_path / side / "p  o", config={"seed": seed}) for seed, side in enumerate("ab")]
    page = Page(report.write_report([*folders, folders[0]], tmp_path))  # one was given twice
    assert page.text.count("a/p  o, after epoch 1") == page.text.count("b/p  o, after epoch 1") == 1
    assert ("value", "a/p  o") in page.attributes  # what a box lets choose has single spaces, if it has no value
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)) and {"run0-epoch1-2", "run1-epoch1-2"} <= set(ids)
    differ = page.source.partition('class="differs"')[2].partition("</tr>")[0]
    assert "seed" in differ and page.source.count('class="differs"') == 1


def test_the_comparison_on_the_screen(tmp_path):
    lines = report.comparison_table([made_up(tmp_path / "a"), made_up(tmp_path / "b", done=False)]).splitlines()
    assert lines[0].split("  ")[0] == "run" and lines[2].split() == "a 2/2 0.00 0.50 3 20 5 12".split()
    assert lines[3].split() == "b 2/2 0.00 0.50 3 20 5".split()


def test_accuracy_is_broken_down_by_the_column_that_is_asked_for(tmp_path):
    folder = made_up(tmp_path / "run")
    rows, columns = report.families(report.read_runs([folder]), "family")
    assert rows[0][:6] == ["hard", "total", "run", 4, 0.0, 0.5] and columns == ["family"]
    report.report((folder,), by="level")
    page = Page(folder / "report.html")
    assert "Accuracy by level" in page.text and "can take\nfamily" in page.text


def test_a_batch_whose_number_is_not_finite_is_left_out_of_its_picture(tmp_path):
    folder = made_up(tmp_path / "run")
    lines = log.read_lines(folder / "metrics.jsonl")
    next(line for line in lines if line["kind"] == "rollouts").update(entropy=None, reward=None)
    write_jsonl(folder / "metrics.jsonl", lines)
    entropy = [chart for chart in report.training_curves(report.read_runs([folder])) if "entropy" in chart]
    assert entropy[0].count("<circle") == 2  # of three batches


def test_a_response_whose_reward_is_below_0_is_no_solution(tmp_path):
    folder = made_up(tmp_path / "run")
    line = log.read_lines(folder / "transcripts.jsonl")[0]
    write_jsonl(folder / "transcripts.jsonl", [line | {"reward": reward} for reward in (-1.0, 0.0, 0.5)])
    page = Page(report.write_report([folder], folder))
    assert [value for name, value in page.attributes if name == "data-solved"] == ["no", "no", "yes"]
    assert "✗ -1.0" in page.text and "✓ 0.5" in page.text


@pytest.mark.parametrize(
    "scores, said",
    [
        ([[3.0, -3.0], [3.0, 3.0], [-3.0, -3.0]], "solves 50% of the dev set,\nthe best of 2 templates 100%"),
        ([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]], "solves 100% of the dev set,\nthe best of 2 templates 50%"),
        ([[0.0, 0.0], [1.0, 0.0]], "solves 0% of the dev set,\nthe best of 1 template 50%"),
    ],
)
def test_an_evolution_is_summed_up_in_questions_solved(scores, said, tmp_path, capsys):
    """A reward of the user's own is no percentage, and the bare question is none of the templates."""
    folder = made_up(tmp_path / "run")
    file = folder / "templates" / "epoch-1.json"
    found = json.loads(file.read_text()) | {"dev_scores": scores, "chosen": [1]}
    found |= {name: found[name][: len(scores)] for name in ("candidates", "parents")}
    file.write_text(json.dumps(found))
    assert said in Page(report.write_report([folder], folder)).text


# --------------------------------------------------------------------------------------------- the story that it tells


def with_lines(folder, *lines):
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return folder


def test_the_verdict_says_what_rose_and_when(tmp_path):
    [run] = report.read_runs([made_up(tmp_path / "p2o")])
    for e, accuracy, equal in zip(run["epochs"], (0.0, 0.0, 0.1), (0.0, 1.0, 0.25), strict=True):
        e |= {"accuracy": {"hard": accuracy}} | ({"zero_advantage": equal} if e["epoch"] else {})
    sentence, each = report.verdicts([run])
    assert each == [] and "rose: 0.00 before training, 0.10 after epoch 2. Templates came in epoch 2." in sentence
    assert "from 100% to 25%" in sentence and sentence.endswith("The largest step, 0.00 to 0.10, came in epoch 2.")
    run["epochs"].append(run["epochs"][-1] | {"epoch": 3, "templated": 0.0, "accuracy": {"hard": 0.9}})
    assert "0.10 to 0.90, came in epoch 3, which was sampled bare: GRPO finished" in report.verdicts([run])[0]


def test_the_verdict_names_the_collapse_and_what_did_not_collapse(tmp_path):
    stuck = with_lines(made_up(tmp_path / "grpo", config={"method": "grpo"}, epochs=(0, 1)))
    runs = report.read_runs([stuck, made_up(tmp_path / "p2o")])
    runs[0]["epochs"][1] |= {"accuracy": {"hard": 0.01}, "zero_advantage": 0.99}
    sentence, each = report.verdicts(runs)
    assert sentence.endswith(
        "p2o is at 0.50 after 25 responses, and grpo is at 0.01 after 15 responses, GEPA's included."
    )
    assert "hardly moved" in each[0][1] and "In 99.0% of the groups all rewards were equal" in each[0][1]
    assert "collapse" not in each[1][1]


def test_a_warning_is_said_once_and_a_baseline_may_collapse(tmp_path):
    line = {"truncated": 0, "ill_formed": 0, "reward": 0, "zero_advantage": 1, "hard_set": 0, "small_contrast": 0}
    collapse = silent_failures(line | {"logprob_mismatch": 0}, p2o.Config(method="grpo"))
    assert len(collapse) == 2
    told = [{"kind": "warning", "epoch": epoch, "text": text} for epoch in (1, 2, 2) for text in collapse]
    told += [{"kind": "warning", "epoch": epoch, "text": f"off by 0.{epoch}"} for epoch in (1, 2)]
    for folder in (tmp_path / "p2o", tmp_path / "grpo"):
        with_lines(made_up(folder, config={"method": folder.name}), *told)
    fine, off = ("fine", [1]), ("off by 0.1", [1, 2])
    alone = report.warnings(report.read_runs([tmp_path / "grpo"]))
    assert alone == [("grpo", *one) for one in (fine, (collapse[0], [1, 2]), (collapse[1], [1, 2]), off)]
    both = report.warnings(report.read_runs([tmp_path / "grpo", tmp_path / "p2o"]))
    assert [one[1:] for one in both if one[0] == "grpo"] == [fine, off] and len(both) == 6
    page = Page(report.write_report([tmp_path / "grpo"], tmp_path))
    assert page.text.count(collapse[0]) == 1 and "grpo, epoch 1, 2" in page.text


def test_shades_and_numbers_of_many_runs_do_not_hide_what_lies_below_them():
    """Six shades of 0.13 upon each other would be 0.57 of grey. What the mouse reads has each run's number."""

    def drawn(runs):
        curves = [(f"run {i}", [(0, 0.0), (2, 1.0)]) for i in range(runs)]
        bands, jumps = [(i, 1, 2, "templated") for i in range(runs)], [(i, 1, 0.25, 0.75) for i in range(runs)]
        return svg.chart("reward", "updates", curves, bands=bands, jumps=jumps)

    for runs, opacity, numbers in ((1, 0.13, 1), (2, 0.13, 2), (6, 0.04, 0)):
        chart = drawn(runs)
        assert chart.count(f'opacity="{opacity}"') == runs and chart.count(">+0.50</text>") == numbers
        assert all(f"<title>run {i}: +0.50</title>" in chart for i in range(runs))


def test_curves_differ_by_more_than_their_colour():
    """About one man in twelve does not tell red from green: those that he may confuse have dashes or dots. Nor do the
    colours suffice for more than eight runs."""
    style = (report.PAGE / "base.html").read_text()
    for group in (".c3, .c5, .c7", ".c4, .c6"):
        assert f".curve:is({group}) polyline {{ stroke-dasharray" in style
    keys = [str(svg.key(run)) for run in range(20)]
    chart = svg.chart("t", "x", [(f"run {run}", [(0, 0.0), (1, 1.0)]) for run in range(20)])
    looks = [re.findall('curve (c[0-9]).*?"/?>', text) + re.findall('stroke-dasharray: [^"]*', text) for text in keys]
    assert len({*map(tuple, looks)}) == 20
    assert re.findall('stroke-dasharray: [^"]*', chart) == [look[1] for look in looks if len(look) > 1]


def test_templated_epochs_are_shaded_and_the_rewards_jump_is_marked(tmp_path):
    [run] = runs = report.read_runs([made_up(tmp_path / "run")])
    *_, by_responses = report.learning_curves(runs)
    assert by_responses.count('class="band c0"') == 1 and "run, epoch 2: 50% of the rollouts" in by_responses
    jumps = list(report.reward_jumps(runs))
    assert jumps == [(0, 2, 0.7, 0.9)]  # two updates lie before the first templated batch
    drawn = list(report.training_curves(runs))
    assert [chart.count('class="jump c0"') for chart in drawn] == [1] + [0] * (len(drawn) - 1) and "+0.20" in drawn[0]
    titles = [chart.partition('aria-label="')[2].partition('"')[0] for chart in [*drawn, *report.learning_curves(runs)]]
    assert len(set(titles)) == len(titles) == 11


def test_a_run_without_a_file_shades_nothing_in_that_file_s_picture(tmp_path):
    runs = report.read_runs([made_up(tmp_path / name, name=name) for name in ("short", "other")])
    by_title = {svg.split('aria-label="')[1].partition('"')[0]: svg for svg in report.learning_curves(runs)}
    short = by_title["short: accuracy by epoch"]
    assert short.count('class="band c0"') == 1 and 'class="band c1"' not in short


def test_the_evolution_that_found_most_is_open(tmp_path):
    folder = made_up(tmp_path / "run")
    found = json.loads((folder / "templates" / "epoch-1.json").read_text())
    later = found | {"dev_scores": [[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]}
    (folder / "templates" / "epoch-2.json").write_text(json.dumps(later))
    shown = list(report.shown_evolutions(report.read_run(folder), 0))
    assert [(one["epoch"], one["open"], one["bare"]) for one in shown] == [(1, True, 0.0), (2, False, 0.5)]


def test_transcripts_begin_with_a_group_that_had_contrast(tmp_path):
    folder = made_up(tmp_path / "run")
    line = log.read_lines(folder / "transcripts.jsonl")[0]
    told = [line | {"id": name, "reward": reward} for name, reward in (("a", 0.0), ("a", 0.0), ("b", 0.0), ("b", 1.0))]
    write_jsonl(folder / "transcripts.jsonl", told)
    assert [line["id"] for line in report.transcripts(report.read_runs([folder]))] == ["b", "b", "a", "a"]


def test_a_page_loads_itself_anew_as_long_as_its_run_goes_on(trained, tmp_path, monkeypatch, capsys):
    def reloads(folder):
        return ("http-equiv", "refresh") in Page(folder / "report.html").attributes

    assert not reloads(trained["folder"])  # written by the run itself, which is over
    folder = made_up(tmp_path / "run", epochs=(0, 1), done=False)
    with pytest.raises(KeyboardInterrupt), report.live_report([folder, tmp_path / "not begun"], tmp_path):
        RunLog.after_epoch()
        assert reloads(tmp_path)
        monkeypatch.setattr(report, "verdicts", lambda runs: 1 / 0)
        RunLog.after_epoch()  # what is wrong with a page must not end the run
        assert "the report was not written: ZeroDivisionError" in capsys.readouterr().out
        monkeypatch.undo()
        raise KeyboardInterrupt
    assert not reloads(tmp_path) and RunLog.after_epoch is None


def test_a_refused_run_s_page_is_left_alone(tmp_path):
    with pytest.raises(UserError), report.live_report([made_up(tmp_path / "run")], tmp_path):
        raise UserError("already holds a run")
    assert not (tmp_path / "report.html").exists()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run is there"):
        report.report((tmp_path,))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name, text, complaint",
    [
        ("config.json", "", "config.json: damaged"),
        ("config.json", '{"preset": "ti', "config.json: damaged"),
        ("config.json", '{"model_type": "qwen2"}', "no run is there"),  # a model's folder
        ("config.json", '{"method": "p2o"}', "no run is there"),
        ("config.json", "[]", "config.json: damaged, no JSON object is there"),
        ("config.json", None, "config.json: cannot be opened as a file (Is a directory)"),
        ("summary.json", "{", "summary.json: damaged"),
        ("summary.json", "{}", "summary.json: it has no 'seconds'"),
        ("metrics.jsonl", '{"kind": "x"}\ngarbage\n', "metrics.jsonl, line 2: damaged"),
        ("metrics.jsonl", '{"kidn": "x"}\n', "metrics.jsonl, line 1: it has no 'kind'"),
        ("metrics.jsonl", '{"kind": "epoch", "epoch": 1}\n', "metrics.jsonl, line 1: it has no 'rollouts'"),
        ("transcripts.jsonl", "12\n", "transcripts.jsonl, line 1: damaged"),
        ("transcripts.jsonl", '{"epoch": 1}\n', "transcripts.jsonl, line 1: it has no 'id'"),
        ("templates/epoch-1.json", "{}", "epoch-1.json: it has no 'candidates'"),
        ("templates/epoch-1.json", "", "epoch-1.json: damaged"),
    ],
)
def test_a_damaged_run_gets_one_line_that_names_the_file(name, text, complaint, tmp_path, capsys):
    file = made_up(tmp_path / "run") / name
    file.unlink()
    file.mkdir() if text is None else file.write_text(text)
    assert p2o.main(["report", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert complaint in said and len(said.splitlines()) == 1


def test_runs_called_alike_are_told_apart_by_as_many_folders_as_it_takes(tmp_path, capsys):
    folders = [made_up(tmp_path / path) for path in ("a/x/run", "b/x/run", "b/y/run", "alone")]
    shutil.copy(
        folders[0] / "templates" / "epoch-1.json", folders[0] / "templates" / "epoch-1-old.json"
    )  # no evolution
    names = [run["name"] for run in report.read_runs(folders)]
    assert names == ["a/x/run", "b/x/run", "y/run", "alone"]
    assert p2o.main(["report", str(folders[0]), "--out", str(folders[0] / "config.json")]) == 2
    assert "config.json: a file; name a folder" in capsys.readouterr().err
    assert p2o.main(["report", str(folders[0]), "--out", str(folders[0] / "config.json" / "below")]) == 2
    assert "cannot be opened as a file (Not a directory)" in capsys.readouterr().err


def test_a_page_holds_so_many_transcripts_and_no_more(tmp_path):
    folder = made_up(tmp_path / "run")
    line = log.read_lines(folder / "transcripts.jsonl")[0]
    write_jsonl(folder / "transcripts.jsonl", [line] * (report.MAX_TRANSCRIPTS + 50))
    page = Page(report.write_report([folder], folder))
    assert page.tags.count("article") == report.MAX_TRANSCRIPTS
    assert f"Of run's {report.MAX_TRANSCRIPTS + 50} transcripts {report.MAX_TRANSCRIPTS}" in page.text


# ------------------------------------------------------------------------------------------------ colours and pictures


def colours_of(**changes):
    cfg = dataclasses.asdict(p2o.Config()) | changes.pop("cfg", {})
    line = {"template": "z", "tokens": ["a", "b"], "advantage": 1.0, "sampled_logprobs": [-0.1, -0.1]}
    line |= {"old_logprobs": [-9.0, -0.1], "new_logprobs": [-9.0, 0.3]}
    return report.coloured_tokens(line | changes, cfg)


def test_tokens_outside_the_ratio_mask_and_clipped_tokens_are_struck_through():
    shown = colours_of()
    assert shown["ratio"].count("line-through") == 1 and ">a<" in shown["ratio"].partition("line-through")[2]
    assert shown["clip"].count("line-through") == 1 and ">b<" in shown["clip"].partition("line-through")[2]
    assert "line-through" not in colours_of(cfg={"soft_clip": True})["ratio"]
    assert "line-through" not in colours_of(cfg={"ratio_min": 1e-5})["ratio"]
    # PPO's clip is one-sided: where A < 0, what has become likelier keeps its gradient.
    assert "line-through" not in colours_of(advantage=-1.0)["clip"]
    assert colours_of(advantage=[-1.0, 1.0])["clip"].count("line-through") == 1


def test_colours_that_have_no_numbers_are_left_out():
    assert set(colours_of(old_logprobs=None, new_logprobs=None)) == {"advantage"}
    assert set(colours_of(template="")) == {"advantage", "clip"}
    assert set(colours_of(cfg={"distill": False})) == {"advantage", "clip"}
    assert report.coloured_tokens({"template": "", "response": "an untrained one"}, {}) == {}


def test_points_stand_where_their_numbers_are():
    drawn = svg.chart("t", "epoch", [("run", [(0, 0.0), (1, None), (2, float("nan")), (4, 1.0)])], share=True)
    assert f'points="{svg.LEFT:.1f},{svg.BOTTOM:.1f} {svg.RIGHT:.1f},{svg.TOP:.1f}"' in drawn
    assert svg.chart("t", "epoch", [("run", [(0, None)])]) == ""


def test_a_reward_beyond_0_and_1_has_an_axis_of_its_own():
    for ys, labels in (((0.0, 0.5), ">0.75<"), ((-1.0, -1.0), ">-1<"), ((0.0, 3.0), ">3<")):
        picture = svg.chart("t", "x", [("run", list(enumerate(ys)))], share=True)
        heights = [float(height) for height in re.findall(r'cy="([^"]*)"', picture)]
        assert labels in picture and all(svg.TOP <= height <= svg.BOTTOM for height in heights)


def test_every_template_is_reached_by_its_lineage():
    parents = [[None], [0], [0], [1, 2], [3], [0]]
    places = svg.family_tree(parents)
    assert [generation for _, generation in places] == [0, 1, 1, 2, 3, 1] and len(set(places)) == 6
    evolution = {"parents": parents, "candidates": ["z"] * 6, "dev_scores": [[0.0, 1.0]] * 6, "chosen": [4]}
    drawn = svg.lineage(evolution, "e")
    assert drawn.count('class="edge"') == 5 and drawn.count('class="edge merged"') == 1
    assert all(f'href="#e{k}"' in drawn for k in range(6)) and drawn.count('class="chosen"') == 1


def test_small_pictures_bear_rewards_beyond_0_and_1():
    line = svg.sparkline([-3.0, 0.0, 3.0], 0).partition('points="')[2].partition('"')[0]
    assert [point.split(",")[1] for point in line.split()] == ["18.0", "10.0", "2.0"]
    scored = {"parents": [[None], [0]], "candidates": ["", "z"], "dev_scores": [[-3.0], [3.0]], "chosen": [1]}
    assert re.findall('fill-opacity="([^"]*)"', svg.lineage(scored, "e")) == ["0.00", "0.70"]


def test_a_title_too_long_for_its_chart_keeps_both_ends_and_many_jumps_have_no_numbers():
    """A browser cuts what stands beyond the frame; the mouse reads all of it."""
    long = "P2O, --clip-high 0.28 --advantage overlong --keep informative"
    chart = svg.chart(long, "x", [("run", [(0, 0.0), (9, 1.0)])], jumps=[(0, x, 0.25, 0.75) for x in range(1, 9)])
    assert ">P2O, --cli…long --keep informative<" in chart and f"<title>{long}</title>" in chart
    assert chart.count("<title>run: +0.50</title>") == 8 and ">+0.50</text>" not in chart


# --------------------------------------------------------------------------------------------------------- a browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = """<script>
const result = {}, table = document.querySelector("table"), choice = document.querySelector("select[data-colours]");
const filter = (name) => document.querySelector(`[data-filter=${name}]`);
const column = () => [...table.tBodies[0].rows].map((row) => row.cells[3].textContent);
const shown = () => [...document.querySelectorAll("article")].filter((one) => one.offsetHeight > 0).length;
const change = (box, value) => { box.value = value; box.dispatchEvent(new Event("change")) };
table.querySelectorAll("th button")[3].click(); result.rising = column();
table.querySelectorAll("th button")[3].click(); result.falling = column();
result.marked = [...table.querySelectorAll("[aria-sort]")].map((one) => one.getAttribute("aria-sort")).join();
result.all = shown();
for (const [name, value] of [["epoch", "1"], ["solved", "no"], ["templated", "yes"], ["run", "b"]]) {
  change(filter(name), value); result[name] = shown();
  result.said = result.said ?? document.querySelector("output").textContent;
  change(filter(name), "");
}
const visible = () => [...document.querySelector("article").querySelectorAll("[data-by]")]
  .filter((one) => one.offsetHeight > 0).map((one) => one.dataset.by);
result.colours = ["plain", "ratio", "advantage", "clip"].map((by) => (change(choice, by), visible().join()));
result.paper = getComputedStyle(document.body).backgroundColor;
dispatchEvent(new Event("beforeprint"));
result.folded = document.querySelectorAll("details:not([open])").length;
document.body.replaceChildren(Object.assign(document.createElement("pre"), { textContent: JSON.stringify(result) }));
</script>"""


def browse(file, tmp_path, *flags):
    """(the page's source after its scripts have run, what they wrote to the console)."""
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    command = [BROWSER, *quiet, f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", *flags]
    ended = subprocess.run([*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120)
    return ended.stdout, [line for line in ended.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def page_of_two(tmp_path_factory):
    if BROWSER is None:
        pytest.skip("no browser: install Debian's chromium, or Chrome")
    folder = tmp_path_factory.mktemp("two")
    runs = [made_up(folder / "a", word=HOSTILE, epochs=(0, 1, 2)), made_up(folder / "b", epochs=(0, 1))]
    return report.write_report(runs, folder)


def test_a_browser_reads_the_page_without_a_complaint(page_of_two, tmp_path):
    source, console = browse(page_of_two, tmp_path)
    assert console == [] and "4 of 4 shown" in source


def test_no_script_but_the_page_s_own_would_run(page_of_two, tmp_path):
    slipped = tmp_path / "slipped.html"
    slipped.write_text(
        page_of_two.read_text() + "<script>document.body.textContent = 'hacked by ' + 'a script'</script>"
    )
    source, console = browse(slipped, tmp_path)
    assert "hacked by a script" not in source and "4 of 4 shown" in source
    assert "Content Security Policy" in " ".join(console)


def test_a_word_without_end_widens_no_page(tmp_path):
    if BROWSER is None:
        pytest.skip("no browser: install Debian's chromium, or Chrome")
    runs = [made_up(tmp_path / name, word="W" * 400) for name in ("run", "name-" * 50)]  # of which one is chosen
    page = report.write_report(runs, tmp_path)
    source = page.read_text().replace('<meta http-equiv="Content-Security-Policy"', "<meta name=off")
    page.write_text(source + "<script>document.body.dataset.wide = document.documentElement.scrollWidth</script>")
    found, _ = browse(page, tmp_path, "--window-size=800,600")
    assert int(re.search('data-wide="([0-9]+)"', found)[1]) <= 800


@pytest.mark.parametrize("scheme, paper", [("0", "rgb(13, 17, 23)"), ("1", "rgb(255, 255, 255)")])
def test_tables_sort_filters_filter_and_colours_change(page_of_two, tmp_path, scheme, paper):
    driven = tmp_path / "driven.html"
    policy = '<meta http-equiv="Content-Security-Policy"'
    driven.write_text(page_of_two.read_text().replace(policy, "<meta name=off") + DRIVER)
    source, console = browse(driven, tmp_path, f"--blink-settings=preferredColorScheme={scheme}")
    assert console == []
    result = json.loads(source.partition("<pre>")[2].partition("</pre>")[0])
    assert result.pop("paper") == paper
    assert result == {
        "rising": ["0.25", "0.50"], "falling": ["0.50", "0.25"], "marked": "descending",
        "all": 4, "epoch": 2, "solved": 2, "templated": 2, "run": 2, "said": "2 of 4 shown",
        "colours": ["plain", "ratio", "advantage", "clip"], "folded": 0,
    }  # fmt: skip


# -------------------------------------------------------------------------------- responses coloured token by token


def test_one_value_colours_all_tokens():
    html = tokens.coloured(["a", "b"], -0.5, "advantage")
    assert html.count('title="-0.5"') == 2


def test_a_legend_names_its_scale():
    for name, scale in tokens.SCALES.items():
        assert scale.name in tokens.legend(name)


def test_pieces_join_to_the_text(tiny_policy):
    text = "7; 16. \\boxed{16}"
    ids = tiny_policy.tokenizer(text).input_ids
    shown = messages.pieces(tiny_policy.tokenizer, ids)
    assert len(shown) == len(ids) and "".join(shown) == tiny_policy.tokenizer.decode(ids)
    by_bytes = SimpleNamespace(decode=lambda ids: bytes(ids).decode(errors="replace"))
    assert messages.pieces(by_bytes, list("7 😀!".encode())) == ["7", " ", "", "", "", "😀", "!"]
    assert messages.pieces(by_bytes, list("7 😀".encode())[:-1]) == ["7", " ", "", "", "\ufffd"]  # cut off


# ------- --track: the same lines as metrics.jsonl, one tracker a run, and evolution in the middle of it changes nothing


def test_one_tracker_lives_through_a_run_with_evolution(tmp_path, monkeypatch):
    handle = Mock()
    monkeypatch.setattr(log, "tracker_library", lambda kind: Mock(init=Mock(return_value=handle)))
    cfg = dataclasses.replace(small_in(tmp_path), track="wandb")
    p2o.train(cfg)
    assert list(cfg.folder.glob("templates/*.json"))  # GEPA has run meanwhile
    *logged, last = handle.method_calls
    assert last == call.finish() and all(name == "log" for name, *_ in logged)
    lines, values = log.read_lines(cfg.folder / "metrics.jsonl"), [values for _, (values,), _ in logged]
    assert len(values) == len(lines) and values[-1]["epoch/accuracy/held"] == lines[-1]["accuracy"]["held"]
    assert [v["update"] for v in values if "update/loss" in v] == list(range(1, 9))


@pytest.mark.parametrize("kind, place", [("wandb", {"dir": "runs/one"}), ("trackio", {})])  # it knows no such setting
def test_a_tracker_gets_name_and_settings_and_writes_into_the_runs_folder_if_it_can(kind, place, monkeypatch):
    module = Mock()
    monkeypatch.setattr(log, "tracker_library", lambda kind: module)
    log.start_tracker(kind, Path("runs/one"), {"track": kind})
    assert module.method_calls == [call.init(project="p2o", name="one", config={"track": kind}, **place)]


def test_tensorboard_writes_in_a_folder_of_the_run_and_at_once(tmp_path, monkeypatch):
    writer, made = Mock(), Mock()
    made.return_value = writer
    monkeypatch.setattr(log, "tracker_library", lambda kind: SimpleNamespace(SummaryWriter=made))
    tracker = log.start_tracker("tensorboard", tmp_path, {})
    tracker.log({"kind": "update", "loss": 0.5, "norm": 2}, 3)
    tracker.finish()
    assert made.call_args == call(str(tmp_path / "tensorboard"))
    scalars = [call.add_scalar("update/loss", 0.5, 3), call.add_scalar("update/norm", 2, 3)]
    assert writer.method_calls == [*scalars, call.flush(), call.close()]


def test_a_missing_tracker_is_said_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setattr(p2o, "prepare", lambda cfg: pytest.fail("too late"))
    with pytest.raises(UserError, match="pip install trackio"):
        p2o.train(dataclasses.replace(small_in(tmp_path), track="trackio"))


# --------------------------------------------------------------------------------------------------------- evaluation


@given(n=st.integers(1, 8), data=st.data())
def test_pass_at_k_is_the_share_of_k_subsets_with_a_success(n, data):
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations([1] * correct + [0] * (n - correct), k))
    assert evaluate.pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_majority_counts_equal_answers_together_and_ignores_missing_ones():
    same = verify.equivalent
    assert evaluate.majority(["3", "1/2", "0.5", None, None, None], same) == "1/2"
    assert evaluate.majority(["3", "4"], same) == "3"
    assert evaluate.majority([None], same) is None


def test_pass_at_k_without_a_success_has_an_interval_and_other_rewards_the_bootstraps():
    """No success among 800 samples of 100 questions does not prove that there is none: the bootstrap gave 0 to 0."""
    assert evaluate.interval([0.0] * 100) == evaluate.wilson_interval(0, 100)
    assert evaluate.interval([1.0] * 100)[0] < 0.97
    low, high = evaluate.interval([-1.0, 3.0] * 50)
    assert low < 1.0 < high and low > 0.2
    # One success more never makes the interval's end smaller.
    ends = [evaluate.interval([1 / 8] * successes + [0.0] * (100 - successes))[1] for successes in range(5)]
    assert ends == sorted(ends)


@given(n=st.integers(1, 200), data=st.data())
def test_intervals_hold_the_value_and_stay_in_range(n, data):
    successes = data.draw(st.integers(0, n))
    low, high = evaluate.wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high + 1e-12 and high <= 1


def test_eval_prints_a_table_and_writes_json(tmp_path, capsys):
    six = write_jsonl(tmp_path / "six.jsonl", log.read_lines(ROOT / "tiny" / "hard.jsonl")[:6])
    hint = " ".join(family.hints[0] for family in FAMILIES.values())
    arguments = ["eval", "--model", str(ROOT / "tiny" / "united" / "model"), "--data", six]
    arguments += ["--samples", "4", "--max-response-tokens", "40"]
    assert p2o.main([*arguments, "--out", str(tmp_path / "bare.json")]) == 0
    assert p2o.main([*arguments, "--out", str(tmp_path / "hinted.json"), "--template", hint]) == 0
    assert "pass@4" in capsys.readouterr().out
    bare, hinted = (json.loads((tmp_path / f"{name}.json").read_text())["results"] for name in ("bare", "hinted"))
    assert [row["metric"] for row in bare] == ["greedy", "pass@1", "pass@2", "pass@4", "majority@4"]
    assert all(row["low"] <= row["value"] <= row["high"] for row in bare + hinted)
    assert bare[0]["value"] == 0 and hinted[0]["value"] > 0.8
    settings = json.loads((tmp_path / "hinted.json").read_text())["settings"]  # all that made these numbers
    assert (settings["template"], settings["samples"], settings["max_response_tokens"]) == (hint, 4, 40)


def eval_of(capsys, *argv):
    """What it prints, the lines of its table by their metric, and its exit code."""
    capsys.readouterr()
    code = p2o.main(["eval", "--samples", "2", *argv])
    said = capsys.readouterr()
    rows = [line.split() for line in said.out.splitlines() if line.startswith("held")]
    return code, said.out + said.err, {row[1]: float(row[2]) for row in rows}


@pytest.fixture(scope="module")
def run_with_a_reward(tmp_path_factory):
    """A run under a reward, a system prompt and a suffix of the user's own, and the file of its held-out questions."""
    folder = tmp_path_factory.mktemp("own")
    rows = log.read_lines(ROOT / "tiny" / "hard.jsonl")[:8]
    data = write_jsonl(folder / "held.jsonl", [row | {"answer": ""} for row in rows])
    (folder / "mine.py").write_text(
        "def odd(response, question):\n    return float(len(response) % 2), 'Odd, please.'\n"
    )
    cfg = p2o.Config(
        train_data=data, eval_data=(data,), runs=str(folder), name="run", epochs=1, questions_per_batch=8,
        questions_per_update=8, hard_set_min=8, reward=f"{folder / 'mine.py'}:odd", max_response_tokens=9,
        question_suffix="Be odd.", system_prompt="Be kind.",
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        return cfg, p2o.train(cfg)["accuracy"]["held"], data


def test_eval_measures_an_adapter_as_its_run_was_trained(run_with_a_reward, capsys):
    """Model, reward, prompt and lengths come from the run's folder, and the number is the one that training logged."""
    cfg, logged, data = run_with_a_reward
    code, said, rows = eval_of(capsys, "--adapter", str(cfg.folder / "adapter"), "--data", data)
    assert code == 0 and rows["greedy"] == pytest.approx(logged, abs=1e-3)
    assert list(rows) == ["greedy", "pass@1", "pass@2"]  # no box, no majority
    assert f"as {cfg.folder} was trained, unless given otherwise: --model" in said
    assert (
        "--question-suffix 'Be odd.'" in said
        and "--system-prompt 'Be kind.'" in said
        and "--max-response-tokens 9" in said
        and "mine.py:odd" in said
    )
    # A checkpoint's adapter is the run's, too; what is given wins.
    checkpoint = cfg.folder / "checkpoints" / "000001" / "adapter"
    out = cfg.folder.parent / "out.json"
    argv = ["--adapter", str(checkpoint), "--question-suffix", "", "--out", str(out), "--data", data]
    assert eval_of(capsys, *argv)[0] == 0
    settings = json.loads(out.read_text())["settings"]
    assert settings["question_suffix"] == "" and settings["max_response_tokens"] == 9
    assert settings["reward"] == cfg.reward


def test_eval_measures_a_run_in_its_number_format(tmp_path, capsys, monkeypatch):
    asked = []

    def load_policy(cfg, **_):
        asked.append(cfg.dtype)
        raise UserError("enough")

    monkeypatch.setattr(grpo, "load_policy", load_policy)
    (tmp_path / "config.json").write_text(json.dumps({"method": "p2o", "dtype": "float16"}))
    argv = ["--adapter", str(tmp_path / "adapter"), "--model", "any", "--data", str(ROOT / "tiny/hard.jsonl")]
    for options in ([], ["--dtype", "float32"]):
        assert eval_of(capsys, *argv, *options)[0] == 2
    assert asked == ["float16", "float32"]


def test_eval_refuses_a_reward_that_cannot_work_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(grpo.pretrained, "load_base", pytest.fail)
    (tmp_path / "mine.py").write_text("def f(response, question):\n    return 1.0\n")
    assert "it gave 1.0" in refused(capsys, "--reward", f"{tmp_path / 'mine.py'}:f")


def test_an_adapter_of_the_other_tiny_world_is_refused(run_with_a_reward, tmp_path, capsys):
    """Its shapes fit. A file beside the adapter says which weights it was trained on."""
    cfg, _, data = run_with_a_reward
    carried = tmp_path / "adapter"
    shutil.copytree(cfg.folder / "adapter", carried)
    other = str(ROOT / "tiny" / "divided" / "model")
    code, said, _ = eval_of(
        capsys, "--adapter", str(carried), "--model", other, "--data", str(ROOT / "tiny/hard.jsonl")
    )
    assert code == 2 and said.count("\n") == 1
    assert said.startswith(f"p2o: --adapter {carried}: trained on other weights (") and other in said
    # In another number format the same weights are rounded, and other weights differ by more.
    for how in ({"dtype": "bfloat16"}, {"dtype": "float16"}, {"load_in_4bit": True}):
        grpo.load_policy(grpo.PolicyConfig(**how), adapter=str(carried))
        with pytest.raises(UserError, match="trained on other weights"):
            grpo.load_policy(grpo.PolicyConfig(model=other, **how), adapter=str(carried))


def test_an_adapter_is_refused_where_only_the_adapted_layers_of_its_base_differ(tmp_path):
    """As those of a base into which another adapter has been merged; embeddings and norms are the same."""
    checkpoint.save_adapter(load_tiny().model, tmp_path / "adapter")
    shutil.copytree(grpo.TINY / "united" / "model", tmp_path / "merged")
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    merged = {name: weight * 1.001 if "q_proj" in name else weight for name, weight in weights.items()}
    save_file(merged, tmp_path / "merged" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="trained on other weights"):
        grpo.load_policy(grpo.PolicyConfig(model=str(tmp_path / "merged")), adapter=str(tmp_path / "adapter"))


def test_the_base_of_an_adapter_is_the_same_in_4_bits(tmp_path):
    """As docs/gpu.md has it: trained in 4 bits, served on the full weights."""
    in_4_bits = load_tiny(load_in_4bit=True)
    checkpoint.save_adapter(in_4_bits.model, tmp_path / "adapter")
    grpo.load_policy(grpo.PolicyConfig(), adapter=str(tmp_path / "adapter"))


def test_the_base_of_an_adapter_is_known_in_16_bits_too(tmp_path):
    """A run saves it with a head in 32 bits, and it is compared before the head becomes that."""
    half, other = grpo.PolicyConfig(dtype="bfloat16"), str(ROOT / "tiny" / "divided" / "model")
    checkpoint.save_adapter(grpo.load_policy(half).model, tmp_path)
    grpo.load_policy(half, adapter=str(tmp_path))
    with pytest.raises(UserError, match="trained on other weights"):
        grpo.load_policy(dataclasses.replace(half, model=other), adapter=str(tmp_path))


def test_eval_scores_two_files_of_one_name_and_says_what_cannot_be_parsed(tmp_path, capsys):
    rows = log.read_lines(ROOT / "tiny" / "hard.jsonl")[:3]
    for name, count in (("a", 2), ("b", 1)):
        (tmp_path / name).mkdir()
        some = [*rows[:count], rows[2] | {"answer": "\\\\frac{1}{"}]
        write_jsonl(tmp_path / name / "test.jsonl", some)
    files = [str(tmp_path / name / "test.jsonl") for name in ("a", "b")]
    arguments = ["eval", "--model", str(ROOT / "tiny" / "united" / "model"), "--samples", "0", "--data", *files]
    assert p2o.main([*arguments, "--out", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [(row["data"], row["questions"]) for row in found] == [(files[0], 3), (files[1], 2)]
    said = capsys.readouterr().out
    assert "1 of 3 reference answers cannot be parsed" in said and "1 of 2 reference answers" in said
    assert f"{files[0]}  greedy" in said  # a long name keeps its distance


def test_eval_refuses_a_file_of_too_long_questions_before_it_has_measured_another(capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "measure", pytest.fail)
    files = ["--data", *(str(ROOT / "tiny" / name) for name in ("hard.jsonl", "ood.jsonl"))]
    assert "ood: no question fits into --max-prompt-tokens 18" in refused(capsys, *files, "--max-prompt-tokens", "18")


def test_eval_that_is_stopped_has_told_what_it_had_measured(tmp_path, capsys, monkeypatch):
    row = {"metric": "greedy", "value": 0.5, "low": 0.4, "high": 0.6, "questions": 100, "truncated": 0.0}
    monkeypatch.setattr(evaluate, "measure", Mock(side_effect=[[row], KeyboardInterrupt]))
    files = ["--data", *(str(ROOT / "tiny" / name) for name in ("hard.jsonl", "ood.jsonl"))]
    assert p2o.main(["eval", "--model", MODEL, *files, "--out", str(tmp_path / "out.json")]) == 130
    assert "hard        greedy        0.500   0.400 - 0.600" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["results"] == [{"data": "hard"} | row]


def test_eval_grades_as_training_does(tiny_policy, monkeypatch):
    """A puzzle by its own scorer, and a copy of the question as no answer."""
    puzzle = Question("puzzle", "Name a word that rhymes with cat.", "hat", score=lambda answer: float(answer == "bat"))
    copied = Question("copied", "Factor $x^2 - 1$.", "(x - 1)(x + 1)")
    said = {"puzzle": "\\boxed{bat}", "copied": "\\boxed{x^2 - 1}"}
    texts = {tuple(grpo.chat_ids(tiny_policy, q.text)): said[q.id] for q in (puzzle, copied)}
    monkeypatch.setattr(
        grpo,
        "sample",
        lambda policy, contexts, **_: [grpo.Sample([2], [-1.0], False, texts[tuple(c)]) for c in contexts],
    )
    for question, right in ((puzzle, 1.0), (copied, 0.0)):
        rows = evaluate.measure(tiny_policy, [grpo.chat_ids(tiny_policy, question.text)], [question], 4, 0)
        assert {row["metric"]: row["value"] for row in rows} == dict.fromkeys(
            ("greedy", "pass@1", "pass@2", "pass@4", "majority@4"), right
        )


MODEL = str(ROOT / "tiny" / "united" / "model")


def refused(capsys, *argv):
    capsys.readouterr()
    data = [] if "--data" in argv else ["--data", str(ROOT / "tiny" / "hard.jsonl")]
    assert p2o.main(["eval", "--model", MODEL, *data, *argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_eval_refuses_what_it_cannot_do_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(grpo.pretrained, "load_base", pytest.fail)
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    own = str(shutil.copy(ROOT / "tiny" / "hard.jsonl", tmp_path / "own.jsonl"))
    for argv, complaint in [
        (["--data", own, "--out", str(tmp_path / "empty" / ".." / "own.jsonl")], "which it would write over"),
        (["--out", str(tmp_path / "no" / "such" / "out.json")], "there is no folder"),
        (["--data", "a text where a file is wanted " * 10], "cannot be opened as a file (File name too long)"),
        (["--data"], "--data: name at least one file"),
        (["--out", str(tmp_path)], "cannot be written"),
        (["--adapter", str(tmp_path / "run")], f"no adapter is there, but one is in {tmp_path / 'run' / 'adapter'}"),
        (["--adapter", str(tmp_path / "nowhere")], "no adapter is there"),
        (["--adapter", str(tmp_path / "empty")], "no adapter is there"),
        (["--samples", "-1"], "--samples -1: from 0 to 10000"),
        (["--samples", str(10**11)], "--samples 100000000000: from 0 to 10000 for each question; all are held in"),
        (["--data", MODEL], f"{MODEL}: no plain file"),
        (["--data", own, "--data", own], "--data is given twice, and the second would replace the first"),
        (["--temperature", "nan"], "--temperature nan"),
        (["--sample-batch", "0"], "--sample-batch 0"),
        (["--seed", str(2**70)], "--seed"),
    ]:
        assert complaint in refused(capsys, *argv), argv


@pytest.fixture
def adapter(tmp_path, tiny_policy):
    checkpoint.save_adapter(tiny_policy.model, tmp_path / "adapter")
    return tmp_path / "adapter"


def damaged(file, damage):
    weights = load_file(file)
    first = sorted(weights)[0]
    if damage == "another width":
        weights = {name: value[:, :-8].contiguous() for name, value in weights.items()}
    elif damage == "fewer layers":
        weights.pop(first)
    elif damage == "more layers":
        weights[first.replace("layers.0", "layers.7")] = weights[first].clone()
    save_file(weights, file, metadata={"format": "pt"})
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "a pointer":
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


@pytest.mark.parametrize("damage", ["another width", "fewer layers", "more layers", "truncated", "a pointer", "gone"])
def test_an_adapter_of_another_model_is_refused(adapter, damage, capsys):
    if damage == "gone":
        (adapter / "adapter_model.safetensors").unlink()
    else:
        damaged(adapter / "adapter_model.safetensors", damage)
    assert f"--adapter {adapter}: " in refused(capsys, "--adapter", str(adapter))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "float32", "values": 3}'])
def test_a_damaged_mark_of_the_base_gets_one_line(adapter, text, capsys):
    (adapter / "base_model.json").write_text(text)
    assert "base_model.json is damaged" in refused(capsys, "--adapter", str(adapter))


def test_an_adapter_of_this_model_is_loaded_and_can_be_trained_on(adapter, tiny_policy):
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: value + 1.0 for name, value in weights.items()}, adapter / "adapter_model.safetensors")
    policy = grpo.load_policy(grpo.PolicyConfig(), adapter=str(adapter))
    assert len(policy.trainable) == len(tiny_policy.trainable)
    assert all(
        (p - 1.0).abs().max() < 1.0 and p.requires_grad for n, p in policy.model.named_parameters() if "lora_B" in n
    )
