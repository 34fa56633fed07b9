"""lab/gpu.py without a card: it runs where most is missing, and says what it leaves out."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from lab import gpu

# A module that is None in sys.modules cannot be imported or found, as if it were not installed.
RUN = """
import gc, runpy, sys
gc.disable()  # the collector takes a third of such a start, and as much again when it looks at all that was imported
for name in {missing}:
    sys.modules[name] = None
import grpo
gc.freeze()
sys.argv = ["lab/gpu.py", "--smoke", *{arguments}]
runpy.run_path("lab/gpu.py", run_name="__main__")
"""
BEYOND_BARE = ("tyro", "gepa", "vllm", "bitsandbytes", "trl", "datasets", "math_verify", "pyarrow", "matplotlib")


def test_on_a_bare_machine_it_measures_what_it_can_and_names_what_is_missing(tmp_path):
    out = tmp_path / "gpu.json"
    code = RUN.format(missing=BEYOND_BARE, arguments=["--out", str(out)])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [found] = json.loads(out.read_text())
    assert [name for name, r in found.items() if isinstance(r, dict) and r.get("verdict") == "good"] == [
        "kernels", "gradient", "speed", "agreement", "agreement_bfloat16",
    ]  # fmt: skip
    assert "flash" in str(found["kernels"]["update"]) and found["gradient"]["cosine"]["float16"] > 0.999
    assert 0 < found["speed"]["share_of_peak"] < 1 and found["agreement"]["transformers"] < 0.005
    assert found["memory"]["why"] == "a card missing" and "gepa" in found["tiny_world"]["why"]
    assert "trl" in found["beside_trl"]["why"] and "vllm and bitsandbytes" in found["vllm"]["why"]
    assert found["versions"]["torch"] and found["card"] == "none" and found["date"]


def test_where_bitsandbytes_is_there_it_measures_four_bits_and_earlier_records_stay(tmp_path, monkeypatch):
    out = tmp_path / "gpu.json"
    out.write_text('[{"card": "another"}]')
    monkeypatch.setattr(sys, "argv", ["lab/gpu.py", "--smoke", "--only", "gradient", "--out", str(out)])
    code = gpu.main()
    another, found = json.loads(out.read_text())
    assert code == 0, found["gradient"]
    assert another == {"card": "another"}
    assert found["gradient"]["nf4"] and found["gradient"]["verdict"] == "good"


def test_measurements_in_a_process_of_their_own_come_one_by_one_and_one_that_dies_takes_no_other(tmp_path, monkeypatch):
    """As on a card."""
    shape = dataclasses.replace(gpu.fit.KNOWN["Qwen/Qwen3-0.6B"], layers=1, hidden=64, intermediate=64, vocabulary=2000)
    setup = gpu.Setup(shape, gpu.random_model(shape, tmp_path / "model"), 8, 32, True)
    kept = []
    gpu.in_a_process(["memory", "kernels"], setup, lambda *result: kept.append(result))
    assert [name for name, _ in kept] == ["memory", "kernels"] and kept[0][1]["verdict"] == "skipped"
    assert kept[1][1]["verdict"] == "good" and kept[1][1]["update"] == gpu.judged(gpu.kernels, setup)["update"]
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    dead = []
    gpu.in_a_process(["memory", "kernels"], setup, lambda *result: dead.append(result))
    assert [(name, record["why"]) for name, record in dead] == [("memory", "ended with 1"), ("kernels", "ended with 1")]


def test_a_shallow_copy_of_the_saved_model_is_its_first_layers(tmp_path):
    shape = dataclasses.replace(gpu.fit.KNOWN["Qwen/Qwen3-0.6B"], layers=3, hidden=64, intermediate=64, vocabulary=2000)
    setup = gpu.Setup(shape, gpu.random_model(shape, tmp_path / "model"), 8, 32, True)
    one, three = (s.policy(load_in_4bit=False).model.get_base_model() for s in (gpu.shallow(setup, 1), setup))
    assert len(one.model.layers) == 1 and len(three.model.layers) == 3
    weights = three.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in one.state_dict().items() if "lora" not in name)


def test_compilation_pays_from_where_faster_tokens_have_made_up_for_the_start():
    def figures(start, rate):
        return {"start_seconds": start, "tokens_per_second": {"sampling": rate}}

    assert gpu.compilation_pays_from(figures(90, 2000), figures(30, 1000)) == pytest.approx(120_000)  # 60 s each
    assert gpu.compilation_pays_from(figures(20, 2000), figures(30, 1000)) == 0
    assert gpu.compilation_pays_from(figures(90, 1000), figures(30, 1000)) is None
    assert gpu.compilation_pays_from({"verdict": "FAILED"}, figures(30, 1000)) is None


@pytest.mark.parametrize("figure, verdict", [(0.5, "NOT GOOD"), (2.0, "good")])
def test_a_bad_figure_is_judged_and_an_error_in_one_measurement_is_kept_from_the_others(figure, verdict):
    assert gpu.judged(lambda setup: ({"figure": figure}, figure > 1), None)["verdict"] == verdict

    def broken(setup):
        raise RuntimeError("no such kernel")

    assert gpu.judged(broken, None)["why"] == "RuntimeError: no such kernel"
