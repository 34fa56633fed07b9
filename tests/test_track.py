"""--track: the same lines as metrics.jsonl, one tracker a run, and evolution in the middle of it changes nothing."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

import p2o
from support import log
from support.errors import UserError


def small_run(folder, **settings):
    questions = folder / "train.jsonl"
    questions.write_text("".join((ROOT / "tiny" / "train.jsonl").read_text().splitlines(keepends=True)[:8]))
    return dataclasses.replace(
        p2o.Config(), train_data=str(questions), eval_data=(str(questions),), runs=str(folder), name="run", epochs=2,
        group_size=2, questions_per_batch=8, questions_per_update=4, hard_set_min=4, gepa_dev_size=2, gepa_budget="8",
        **settings,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_one_tracker_lives_through_a_run_with_evolution(kind, tmp_path, monkeypatch):
    calls = []
    handle = SimpleNamespace(log=lambda values: calls.append(values), finish=lambda: calls.append("finish"))
    module = SimpleNamespace(init=lambda **settings: calls.append(("init", settings)) or handle)
    monkeypatch.setattr(log, "tracker_library", lambda kind: module)
    p2o.train(small_run(tmp_path, track=kind))
    assert calls[0][0] == "init" and calls[-1] == "finish" and calls.count("finish") == 1
    started = calls[0][1]
    assert started["name"] == "run" and started["config"]["track"] == kind
    assert started.get("dir") == (str(tmp_path / "run") if kind == "wandb" else None)  # trackio knows no such setting
    assert list((tmp_path / "run" / "templates").glob("*.json"))  # GEPA has run meanwhile
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = calls[1:-1]
    assert len(logged) == len(lines)
    assert logged[-1]["epoch/accuracy/train"] == lines[-1]["accuracy"]["train"]
    assert [v["update"] for v in logged if "update/loss" in v] == [1, 2, 3, 4]


def test_tensorboard_writes_in_a_folder_of_the_run_and_at_once(tmp_path, monkeypatch):
    calls = []

    class Writer:
        def __init__(self, folder):
            calls.append(folder)

        def add_scalar(self, *scalar):
            calls.append(scalar)

        def flush(self):
            calls.append("flush")

        def close(self):
            calls.append("close")

    monkeypatch.setattr(log, "tracker_library", lambda kind: SimpleNamespace(SummaryWriter=Writer))
    tracker = log.start_tracker("tensorboard", tmp_path, {})
    tracker.log({"kind": "update", "loss": 0.5, "norm": 2}, 3)
    tracker.finish()
    wanted = [str(tmp_path / "tensorboard"), ("update/loss", 0.5, 3), ("update/norm", 2, 3), "flush", "close"]
    assert calls == wanted


def test_tensorboard_gets_files_that_can_be_read_back(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracker = log.start_tracker("tensorboard", tmp_path, {})
    tracker.log({"kind": "update", "loss": 0.5}, 3)
    tracker.finish()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("update/loss")] == [(3, 0.5)]


def test_a_missing_tracker_is_said_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setattr(p2o, "prepare", lambda cfg: pytest.fail("too late"))
    with pytest.raises(UserError, match="pip install trackio"):
        p2o.train(small_run(tmp_path, track="trackio"))
