"""tools/: evaluation."""

import itertools
import json

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import grpo
import p2o
from support import checkpoint
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


MODEL = str(ROOT / "tiny" / "united" / "model")


def refused(capsys, *argv):
    capsys.readouterr()
    assert p2o.main(["eval", "--model", MODEL, "--data", str(ROOT / "tiny" / "hard.jsonl"), *argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_eval_refuses_what_it_cannot_do_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(grpo.pretrained, "load_base", pytest.fail)
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for argv, complaint in [
        (["--out", str(tmp_path / "no" / "such" / "out.json")], "there is no folder"),
        (["--out", str(tmp_path)], "cannot be written"),
        (["--adapter", str(tmp_path / "run")], f"a run's folder; its adapter is {tmp_path / 'run' / 'adapter'}"),
        (["--adapter", str(tmp_path / "nowhere")], "no adapter is there"),
        (["--adapter", str(tmp_path / "empty")], "no adapter is there"),
        (["--samples", "-1"], "--samples -1"),
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


def test_an_adapter_of_this_model_is_loaded_and_can_be_trained_on(adapter, tiny_policy):
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: value + 1.0 for name, value in weights.items()}, adapter / "adapter_model.safetensors")
    policy = grpo.load_policy(grpo.PolicyConfig(), adapter=str(adapter))
    assert len(policy.trainable) == len(tiny_policy.trainable)
    assert all(
        (p - 1.0).abs().max() < 1.0 and p.requires_grad for n, p in policy.model.named_parameters() if "lora_B" in n
    )
