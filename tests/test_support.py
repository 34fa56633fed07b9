"""tools/: evaluation, study runner and their bad input."""

import itertools
import json

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

import p2o
from tiny.problems import FAMILIES
from tools import evaluate, study

# --------------------------------------------------------------------------------------------------------- evaluation


@given(n=st.integers(1, 8), data=st.data())
def test_pass_at_k_is_the_share_of_k_subsets_with_a_success(n, data):
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations([1] * correct + [0] * (n - correct), k))
    assert evaluate.pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_majority_counts_equal_answers_together_and_ignores_missing_ones():
    same = p2o.verify.equivalent
    assert evaluate.majority(["3", "1/2", "0.5", None, None, None], same) == "1/2"
    assert evaluate.majority(["3", "4"], same) == "3"
    assert evaluate.majority([None], same) is None


@given(n=st.integers(1, 200), data=st.data())
def test_intervals_hold_the_value_and_stay_in_range(n, data):
    successes = data.draw(st.integers(0, n))
    low, high = evaluate.wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high + 1e-12 and high <= 1


def test_eval_prints_a_table_and_writes_json(tmp_path, capsys):
    lines = (ROOT / "tiny" / "hard.jsonl").read_text().splitlines()[:6]
    (tmp_path / "six.jsonl").write_text("\n".join(lines))
    hint = " ".join(family.hints[0] for family in FAMILIES.values())
    arguments = ["eval", "--model", str(ROOT / "tiny" / "model"), "--data", str(tmp_path / "six.jsonl")]
    arguments += ["--samples", "4", "--max-response-tokens", "40"]
    assert p2o.main([*arguments, "--out", str(tmp_path / "bare.json")]) == 0
    assert p2o.main([*arguments, "--out", str(tmp_path / "hinted.json"), "--template", hint]) == 0
    assert "pass@4" in capsys.readouterr().out
    bare, hinted = (json.loads((tmp_path / f"{name}.json").read_text())["results"] for name in ("bare", "hinted"))
    assert [row["metric"] for row in bare] == ["greedy", "pass@1", "pass@2", "pass@4", "majority@4"]
    assert all(row["low"] <= row["value"] <= row["high"] for row in bare + hinted)
    assert bare[0]["value"] == 0 and hinted[0]["value"] > 0.8


# -------------------------------------------------------------------------------------------------------------- study


@pytest.fixture
def small_study(tmp_path):
    lines = (ROOT / "tiny" / "train.jsonl").read_text().splitlines()[:16]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "studies").mkdir()
    file = tmp_path / "studies" / "small.toml"
    file.write_text(
        f"""
        seeds = [0, 1]
        train_data = "{tmp_path / "train.jsonl"}"
        eval_data = ["{tmp_path / "train.jsonl"}"]
        epochs = 1
        [variants.GRPO]
        method = "grpo"
        [variants."GRPO, 2x rollouts"]
        method = "grpo"
        group_size = 12
        """
    )
    return file


def test_a_study_runs_what_is_missing_and_writes_table_figure_and_raw_results(small_study, tmp_path, capsys):
    arguments = ["study", str(small_study), "--runs", str(tmp_path / "runs"), "--jobs", "2"]
    assert p2o.main(arguments) == 0
    table = (tmp_path / "results" / "small.md").read_text()
    assert "| GRPO | " in table and "| GRPO, 2x rollouts | " in table and "±" in table
    raw = json.loads((tmp_path / "results" / "small.json").read_text())
    assert [len(runs) for runs in raw["results"].values()] == [2, 2] and raw["failures"] == []
    assert raw["results"]["GRPO, 2x rollouts"][0]["rollouts"] == 2 * raw["results"]["GRPO"][0]["rollouts"] == 192
    assert (tmp_path / "results" / "small.png").stat().st_size > 0

    summaries = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("summary.json")}
    next(iter(summaries)).unlink()  # as if the study had been stopped in the middle of this run
    assert p2o.main(arguments) == 0
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("summary.json")}
    assert len(after) == 4 and sum(after[file] == summaries[file] for file in summaries) == 3
    assert json.loads((tmp_path / "results" / "small.json").read_text())["results"].keys() == raw["results"].keys()


def test_a_variant_that_fails_is_named_and_the_others_are_kept(small_study, tmp_path, capsys):
    small_study.write_text(small_study.read_text() + "\n[variants.broken]\ngroup_size = 1\n")
    with pytest.raises(SystemExit, match="1"):
        p2o.main(["study", str(small_study), "--runs", str(tmp_path / "runs")])
    assert "broken, seed 0: p2o: --group-size 1" in capsys.readouterr().out
    assert "| GRPO | " in (tmp_path / "results" / "small.md").read_text()


@pytest.mark.parametrize(
    "text, complaint",
    [
        (None, "no such study file"),
        ("seeds = [", "not TOML"),
        ("seeds = [0]", "no 'variants'"),
        ("[variants.a]", "no 'seeds'"),
    ],
)
def test_a_bad_study_file_gets_one_line(text, complaint, tmp_path, capsys):
    if text is not None:
        (tmp_path / "bad.toml").write_text(text)
    assert p2o.main(["study", str(tmp_path / "bad.toml")]) == 2
    assert complaint in capsys.readouterr().err


def test_the_shipped_studies_name_only_real_options():
    for file in (ROOT / "studies").glob("*.toml"):
        _, variants = study.read_study(file)
        for options in variants.values():
            ours = {k: v for k, v in options.items() if k not in ("model", "sample_bare")}  # the latter: a rival's diff
            p2o.parse_config(study.as_arguments(ours))
