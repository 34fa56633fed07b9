"""tools/: evaluation."""

import itertools
import json

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

import p2o
from tiny.problems import FAMILIES
from tools import evaluate

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
    arguments = ["eval", "--model", str(ROOT / "tiny" / "united" / "model"), "--data", str(tmp_path / "six.jsonl")]
    arguments += ["--samples", "4", "--max-response-tokens", "40"]
    assert p2o.main([*arguments, "--out", str(tmp_path / "bare.json")]) == 0
    assert p2o.main([*arguments, "--out", str(tmp_path / "hinted.json"), "--template", hint]) == 0
    assert "pass@4" in capsys.readouterr().out
    bare, hinted = (json.loads((tmp_path / f"{name}.json").read_text())["results"] for name in ("bare", "hinted"))
    assert [row["metric"] for row in bare] == ["greedy", "pass@1", "pass@2", "pass@4", "majority@4"]
    assert all(row["low"] <= row["value"] <= row["high"] for row in bare + hinted)
    assert bare[0]["value"] == 0 and hinted[0]["value"] > 0.8


def test_eval_scores_two_files_of_one_name_and_says_what_cannot_be_parsed(tmp_path, capsys):
    rows = [json.loads(line) for line in (ROOT / "tiny" / "hard.jsonl").read_text().splitlines()[:3]]
    for name, count in (("a", 2), ("b", 1)):
        (tmp_path / name).mkdir()
        some = [*rows[:count], rows[2] | {"answer": "\\\\frac{1}{"}]
        (tmp_path / name / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    files = [str(tmp_path / name / "test.jsonl") for name in ("a", "b")]
    arguments = ["eval", "--model", str(ROOT / "tiny" / "united" / "model"), "--samples", "0", "--data", *files]
    assert p2o.main([*arguments, "--out", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [(row["data"], row["questions"]) for row in found] == [(files[0], 3), (files[1], 2)]
    said = capsys.readouterr().out
    assert "1 of 3 reference answers cannot be parsed" in said and "1 of 2 reference answers" in said
