"""lab/gpu.py without a card: it runs where most is missing, and says what it leaves out."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
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
    found = json.loads(out.read_text())
    assert [name for name, r in found.items() if isinstance(r, dict) and r.get("verdict") == "good"] == [
        "kernels", "gradient", "speed",
    ]  # fmt: skip
    assert "flash" in str(found["kernels"]["update"]) and found["gradient"]["cosine"] > 0.99
    assert set(found["speed"]["minutes_per_batch"]) == {"sampling", "scoring", "update", "all"}
    assert found["memory"]["why"] == "a card missing" and "gepa" in found["tiny_world"]["why"]
    assert "trl" in found["beside_trl"]["why"] and "vllm and bitsandbytes" in found["vllm"]["why"]
    assert found["versions"]["torch"] and found["card"] == "none"


def test_where_bitsandbytes_is_there_it_measures_four_bits(tmp_path, monkeypatch):
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["lab/gpu.py", "--smoke", "--only", "gradient", "--out", str(out)])
    assert gpu.main() == 0
    found = json.loads(out.read_text())
    assert found["gradient"]["nf4"] and found["gradient"]["verdict"] == "good"


def test_a_measurement_in_a_process_of_its_own_gives_the_same_figures(tmp_path, monkeypatch):
    """As on a card; also one whose process dies."""
    shape = dataclasses.replace(gpu.fit.KNOWN["Qwen/Qwen3-0.6B"], layers=1, hidden=64, intermediate=64, vocabulary=2000)
    setup = gpu.Setup(shape, gpu.random_model(shape, tmp_path / "model"), 8, 32, True)
    one, other = gpu.alone(gpu.kernels, setup), gpu.judged(gpu.kernels, setup)
    assert one["verdict"] == "good" and one["update"] == other["update"]
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert gpu.alone(gpu.kernels, setup)["why"] == "ended with 1"


@pytest.mark.parametrize("figure, verdict", [(0.5, "NOT GOOD"), (2.0, "good")])
def test_a_bad_figure_is_judged_and_an_error_in_one_measurement_is_kept_from_the_others(figure, verdict):
    assert gpu.judged(lambda setup: ({"figure": figure}, figure > 1), None)["verdict"] == verdict

    def broken(setup):
        raise RuntimeError("no such kernel")

    assert gpu.judged(broken, None)["why"] == "RuntimeError: no such kernel"
