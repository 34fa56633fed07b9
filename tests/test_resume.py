"""Runs survive: checkpoints, the journal, kills, Ctrl-C and faults, on the real tiny model."""

import dataclasses
import errno
import io
import json
import math
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from conftest import load_tiny
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from test_grpo import assert_same_gradient, gradient_of, rollouts_of

import grpo
import p2o
from lab import chaos, gpu
from support import checkpoint, log
from support.data import load_questions
from support.errors import UserError, exit_code_of
from support.run import Run, check_folder, recorded
from tools import cli, report

# --------------------------------------------------------------------------------------------- checkpoint and journal


def write(text):
    return lambda folder: (folder / "data").write_text(text)


def test_the_newest_whole_checkpoint_is_found_and_the_oldest_dropped(tmp_path):
    for n in range(1, 5):
        checkpoint.save(tmp_path, n, {"n": n}, write(str(n)))
    path, state = checkpoint.newest(tmp_path)
    assert state["n"] == 4 and (path / "data").read_text() == "4"
    assert [p.name for p in checkpoint.numbered(tmp_path)] == ["000003", "000004"]


@pytest.mark.parametrize("damage", ["data changed", "data gone", "state cut", "state gone", "state foreign"])
def test_a_damaged_checkpoint_is_passed_over_with_a_line(tmp_path, damage, capsys):
    for n in (1, 2):
        checkpoint.save(tmp_path, n, {"n": n}, write(str(n)))
    newest = tmp_path / "000002"
    if damage == "data changed":
        (newest / "data").write_text("x")
    elif damage == "data gone":
        (newest / "data").unlink()
    elif damage == "state cut":
        (newest / "state.json").write_text('{"n": ')
    elif damage == "state gone":
        (newest / "state.json").unlink()
    else:
        (newest / "state.json").write_text("[]")
    assert checkpoint.newest(tmp_path)[1]["n"] == 1
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "000002 is damaged" in said


def test_a_full_disk_leaves_the_older_checkpoint_good(tmp_path):
    checkpoint.save(tmp_path, 1, {"n": 1}, write("1"))

    def full(folder):
        (folder / "data").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError):
        checkpoint.save(tmp_path, 2, {"n": 2}, full)
    assert checkpoint.newest(tmp_path)[1]["n"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["000001"]


def test_what_is_written_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    checkpoint.save(tmp_path, 1, {"n": 1}, write("1"))
    final = tmp_path / "000001"
    assert synced == [path.stat().st_ino for path in (final / "data", final / "state.json", final, tmp_path)]


def test_an_adapter_is_written_as_peft_writes_it(tiny_policy, tmp_path):
    checkpoint.save_adapter(tiny_policy.model, tmp_path / "ours")
    tiny_policy.model.save_pretrained(tmp_path / "its")
    ours, its = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("ours", "its"))
    assert ours == its


def test_an_adapter_saved_under_other_names_is_not_half_loaded(tiny_policy, tmp_path):
    """As by another version of peft: what it does not find again would stay as a fresh adapter has it."""
    checkpoint.save_adapter(tiny_policy.model, tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    first = min(weights)
    save_file(
        {name.replace(".layers.", ".blocks.") if name == first else name: w for name, w in weights.items()},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.raises(UserError, match="2 weights of the adapter in .* do not fit"):
        checkpoint.load_adapter(tiny_policy.model, tmp_path)


def test_a_copy_that_somebody_has_made_of_a_checkpoint_is_neither_loaded_nor_dropped(tmp_path):
    checkpoint.save(tmp_path, 1, {"n": 1}, write("1"))
    for name in ("000001 copy", "000009-backup"):
        shutil.copytree(tmp_path / "000001", tmp_path / name)
    for n in (2, 3, 4):
        checkpoint.save(tmp_path, n, {"n": n}, write(str(n)))
    assert checkpoint.newest(tmp_path)[1]["n"] == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000001 copy", "000003", "000004", "000009-backup"]


def test_a_run_that_begins_anew_since_all_checkpoints_are_damaged_keeps_its_new_ones(tmp_path):
    for n in (7, 8):
        checkpoint.save(tmp_path, n, {"n": n}, write(str(n)))
        (tmp_path / f"{n:06d}" / "data").unlink()
    checkpoint.save(tmp_path, 1, {"n": 1}, write("1"))
    assert checkpoint.newest(tmp_path)[1]["n"] == 1


def test_an_old_checkpoint_that_somebody_else_has_removed_is_no_error(tmp_path, monkeypatch):
    real = checkpoint.numbered
    monkeypatch.setattr(checkpoint, "numbered", lambda folder: [folder / "000000", *real(folder)])
    for n in (1, 2):
        checkpoint.save(tmp_path, n, {"n": n}, write(str(n)))
    assert [path.name for path in real(tmp_path)] == ["000001", "000002"]


def test_the_journal_answers_what_was_asked_before_and_drops_half_a_line(tmp_path):
    file, asked = tmp_path / "journal", []

    def double(inputs, number):
        asked.append((number, inputs))
        return [2 * i for i in inputs]

    call = checkpoint.journaled(file)("double", double)
    assert [call([1]), call([2, 3])] == [[2], [4, 6]]
    with file.open("ab") as handle:
        handle.write(b'{"key": "abc", "outp')
    call = checkpoint.journaled(file)("double", double)
    assert [call([1]), call([2, 3]), call([4])] == [[2], [4, 6], [8]]
    assert asked == [(0, [1]), (1, [2, 3]), (2, [4])]
    with pytest.raises(UserError, match="journal is damaged or of other versions; remove it"):
        checkpoint.journaled(file)("double", double)([7])
    file.write_bytes(b"\0\0\n" + file.read_bytes())
    with pytest.raises(UserError, match="journal is damaged"):
        checkpoint.journaled(file)


# --------------------------------------------------------------------------------------------------- whole tiny runs


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chaos")
    assert chaos.finish_with_kills(folder, "undisturbed", []) == 0
    return folder


def test_a_run_that_is_killed_and_resumed_is_the_same_run(undisturbed):
    kills = [
        ("grpo.sample", 2),
        ("support.checkpoint.sync", 2),
        ("gepa_loop.parse_reflection", 3),
        ("support.log.read_lines", 2),
    ]
    assert chaos.finish_with_kills(undisturbed, "killed", kills) == 4
    assert chaos.differences(undisturbed / "undisturbed", undisturbed / "killed") == []


def test_the_card_s_check_kills_and_resumes_a_run(tmp_path):
    """One of lab/gpu.py's measurements; it stands here since it forks the same prepared process as the others."""
    setup = gpu.Setup(shape=None, folder=tmp_path / "model", response_tokens=16, sequence=64, smoke=True)
    found, good = gpu.tiny_world(setup)
    assert good and found["killed"] and set(found["accuracy"]) == {"hard", "ood"}


def test_ctrl_c_says_how_to_go_on_and_nothing_is_lost(undisturbed, tmp_path, capsys):
    options, log = [*chaos.small_run(undisturbed), "--name", "stopped"], tmp_path / "stopped.log"
    assert chaos.run(options, log, ("grpo.update_policy", 4, signal.SIGINT)) == 130
    assert "--resume" in log.read_text() and "Traceback" not in log.read_text()
    assert p2o.main([*options, "--resume"]) == 0
    assert f"resumed from checkpoint 000001 of {undisturbed / 'stopped'}\n" in capsys.readouterr().out
    assert chaos.differences(undisturbed / "undisturbed", undisturbed / "stopped") == []


def test_rollouts_are_not_sampled_again_after_a_stop(interrupted, monkeypatch, capsys):
    """The batch's rollouts are there, and only its updates are done again."""
    real, sampled = p2o.sample_groups, []
    monkeypatch.setattr(p2o, "sample_groups", lambda *a: sampled.append(a) or real(*a))
    p2o.train(interrupted)
    assert "no checkpoint to go on from: starting at the beginning\n" in capsys.readouterr().out
    assert len(sampled) == 1  # of two batches
    assert not list(interrupted.folder.glob("rollouts-*.json"))


@pytest.fixture
def cfg(tmp_path):
    return cli.parse_config([*chaos.small_run(tmp_path), "--name", "run", "--epochs", "1"])


def test_other_settings_are_refused_by_name_unless_allowed(cfg):
    p2o.train(cfg)
    longer = dataclasses.replace(cfg, epochs=2, clip_high=0.3, resume=True)
    with pytest.raises(UserError, match=r"clip_high \(0.2 -> 0.3\)") as refusal:
        p2o.train(longer)
    assert "epochs (1 -> 2)" in str(refusal.value)
    assert p2o.train(dataclasses.replace(longer, allow_changes=True))["rollouts"] == 192
    before = {file: file.read_bytes() for file in cfg.folder.rglob("*") if file.is_file() and file.name != "lock"}
    with pytest.raises(UserError, match="does not fit --lora-rank 8; give the rank"):
        p2o.train(dataclasses.replace(longer, allow_changes=True, lora_rank=8))
    assert all(file.read_bytes() == content for file, content in before.items())
    (cfg.folder / "config.json").write_text('{"preset": "ti')
    with pytest.raises(UserError, match="config.json is damaged"):
        p2o.train(longer)


@pytest.fixture
def interrupted(cfg, monkeypatch):
    """A run that was stopped in its first update: no checkpoint yet, the first batch's rollouts in their journal."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(grpo, "update_policy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        p2o.train(cfg)
    return dataclasses.replace(cfg, resume=True)


@pytest.fixture(scope="module")
def half_run(tmp_path_factory):
    """A run that was stopped in its second batch: one checkpoint, and the batch's rollouts in their journal."""
    cfg = cli.parse_config([*chaos.small_run(tmp_path_factory.mktemp("half")), "--name", "run", "--epochs", "1"])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(grpo, "mismatch", Mock(side_effect=[(0.0, 0.0), KeyboardInterrupt]))
        p2o.train(cfg)
    return cfg


@pytest.fixture
def half(half_run, tmp_path):
    """A copy of it for each test, to go on with."""
    shutil.copytree(half_run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("lock"))
    return dataclasses.replace(half_run, runs=str(tmp_path), resume=True)


def rewritten(path, change):
    with open(path) as file:
        lines = file.read().splitlines()
    with open(path, "w") as file:
        file.write("\n".join(change(lines)) + "\n")


@pytest.mark.parametrize(
    ("which", "change"),
    [
        ("training data", lambda lines: lines[:-1]),
        ("training data", lambda lines: [line.replace('"answer": "', '"answer": "1') for line in lines]),
        ("training data", lambda lines: lines[::-1]),
        ("held", lambda lines: lines[1:]),
    ],
)
def test_a_run_does_not_go_on_with_other_data_unless_that_is_allowed(interrupted, which, change):
    path = interrupted.train_data if which == "training data" else interrupted.eval_data[0]
    rewritten(path, change)
    kept = {file: file.read_bytes() for file in interrupted.folder.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=f"--resume: .*: other questions in {which}. Give") as refusal:
        p2o.train(interrupted)
    assert "--allow-changes" in str(refusal.value) and "\n" not in str(refusal.value)
    assert {file: file.read_bytes() for file in interrupted.folder.rglob("*") if file.is_file()} == kept


def test_a_run_does_not_go_on_with_an_edited_function_of_the_users_own(cfg, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def mine(response, question):\n    return float('7' in response), 'A seven, please.'\n")
    mine = dataclasses.replace(cfg, reward=f"{file}:mine")
    p2o.train(mine)
    resumed = dataclasses.replace(mine, resume=True)
    (tmp_path / "moved").mkdir()
    file = file.rename(tmp_path / "moved" / "mine.py")
    resumed = dataclasses.replace(resumed, reward=f"{file}:mine")
    p2o.train(resumed)  # the same function in another place
    with pytest.raises(UserError, match="with other settings: reward "):
        p2o.train(dataclasses.replace(resumed, reward=f"{file}:other"))
    file.write_text(file.read_text().replace("7", "8"))
    with pytest.raises(UserError, match="--resume: .*: an edited file of --reward. Give") as refusal:
        p2o.train(resumed)
    assert "--allow-changes" in str(refusal.value)
    p2o.train(dataclasses.replace(resumed, allow_changes=True))


REMEMBERING = """
import dataclasses
import random

MEMORY = {"groups": 0, "last": []}


def drawn(response, question):
    return random.random(), ""


def weighed(group):  # called when a batch is sampled
    MEMORY["groups"] += 1
    return [MEMORY["groups"] * (-1) ** i for i in range(len(group))]


def replayed(group):  # called when a batch is trained, sampled just now or before the run was stopped
    before = [Rollout(**fields) for fields in MEMORY["last"]]
    MEMORY["last"] = [dataclasses.asdict(group[0])]
    return [*group, *[dataclasses.replace(r, question_id=group[0].question_id) for r in before]]


from grpo import Rollout
"""


def test_what_a_users_file_keeps_in_its_memory_is_kept_in_the_checkpoint(cfg, tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text(REMEMBERING)
    mine = dataclasses.replace(cfg, advantage=f"{file}:weighed", keep=f"{file}:replayed", epochs=2)
    mine = dataclasses.replace(mine, reward=f"{file}:drawn")  # for the measurement before the first batch, too
    whole = dataclasses.replace(mine, name="whole")
    p2o.train(whole)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(grpo, "mismatch", Mock(side_effect=[(0.0, 0.0), KeyboardInterrupt]))
        p2o.train(mine)  # in the same process: its memory is empty at first
    p2o.train(dataclasses.replace(mine, resume=True))
    found = [checkpoint.newest(run.folder / "checkpoints")[1]["memory"] for run in (whole, mine)]
    assert found[0] == found[1] and found[0]["reward"]["groups"] == 4 * cfg.questions_per_batch
    measured = [[epoch["accuracy"] for epoch in report.read_run(run.folder)["epochs"]] for run in (whole, mine)]
    assert measured[0] == measured[1]
    adapters = [(run.folder / "adapter" / "adapter_model.safetensors").read_bytes() for run in (whole, mine)]
    assert adapters[0] == adapters[1]


@pytest.mark.parametrize("memory", ["{0: 1}", "{'seen': (1, 2)}", "{'seen': float('nan')}", "{'seen': {1}}"])
def test_a_memory_that_json_would_change_is_refused_before_the_model_is_loaded(cfg, tmp_path, memory):
    (tmp_path / "mine.py").write_text(f"MEMORY = {memory}\ndef f(group): return group")
    with pytest.raises(UserError, match="--keep .*mine.py:f: MEMORY is kept in checkpoints, as JSON"):
        p2o.prepare(dataclasses.replace(cfg, keep=f"{tmp_path}/mine.py:f"))


def test_a_run_that_goes_on_with_other_data_samples_anew_and_forgets_the_questions_that_are_gone(cfg, capsys):
    p2o.train(cfg)
    rewritten(cfg.train_data, lambda lines: lines[4:])
    longer = dataclasses.replace(cfg, epochs=2, resume=True, allow_changes=True, hard_set_min=4)
    assert p2o.train(longer)["rollouts"] == 96 + 72
    assert "the run was started on other inputs: other questions in training data\n" in capsys.readouterr().out
    asked = {line["id"] for line in map(json.loads, open(cfg.folder / "transcripts.jsonl")) if line["epoch"] == 2}
    assert asked <= {q.id for q in load_questions(cfg.train_data)}
    (evolution,) = cfg.folder.glob("templates/epoch-1.json")
    known = {q.id for q in load_questions(cfg.train_data)}
    assert set(json.loads(evolution.read_text())["dev_ids"]) <= known


def test_a_run_and_its_data_may_move(interrupted, tmp_path, undisturbed):
    """To another folder, under another name, with data that have moved, too: what is computed is the same."""
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(interrupted.folder, moved / "renamed")
    shutil.move(interrupted.train_data, moved / "train.jsonl")
    shutil.copytree(interrupted.model, moved / "model")
    places = {"runs": str(moved), "name": "renamed", "train_data": str(moved / "train.jsonl")}
    there = dataclasses.replace(interrupted, model=str(moved / "model"), **places)
    p2o.train(there)
    with open(undisturbed / "undisturbed" / "metrics.jsonl") as one, open(there.folder / "metrics.jsonl") as other:
        lines = [json.loads(line) for line in other]
        whole = [json.loads(next(one)) for _ in lines]
    assert [line for line in lines if line["kind"] == "rollouts"] == [
        line for line in whole if line["kind"] == "rollouts"
    ]


def test_a_journal_of_other_settings_is_left_alone(cfg):
    """A search that was stopped, and goes on with another budget: its calls are others, and none is asked of it."""
    run, calls = Run(cfg), []
    run.resume(p2o.State(), *inputs_of_a_run())
    ask = run.journal("templates/epoch-1")("ask", lambda inputs, number: calls.append(inputs) or inputs)
    ask(["a"]), ask(["b"])
    for settings, expected in [({}, []), ({"gepa_budget": "70"}, [["b"]])]:
        calls.clear()
        again = Run(dataclasses.replace(cfg, resume=True, allow_changes=True, **settings))
        again.resume(p2o.State(), *inputs_of_a_run())
        ask = again.journal("templates/epoch-1")("ask", lambda inputs, number: calls.append(inputs) or inputs)
        if not settings:
            ask(["a"])
        ask(["b"])
        assert calls == expected


def test_a_run_without_digests_of_its_inputs_is_compared_by_their_names(cfg):
    """tools/p2o_trl.py writes config.json, and no inputs.json."""
    cfg.folder.mkdir(parents=True)
    (cfg.folder / "config.json").write_text(json.dumps(recorded(cfg)))
    check_folder(dataclasses.replace(cfg, resume=True, name=cfg.name, runs=str(cfg.folder.parent)))
    with pytest.raises(UserError, match="started with other settings: train_data .*mine.jsonl"):
        check_folder(dataclasses.replace(cfg, resume=True, train_data="mine.jsonl"))
    with pytest.raises(UserError, match="started with other settings: reward .*mine.py:f"):
        check_folder(dataclasses.replace(cfg, resume=True, reward="mine.py:f"))


def test_a_run_whose_digests_are_gone_is_not_resumed(half):
    (half.folder / "inputs.json").unlink()
    with pytest.raises(UserError, match="inputs.json is damaged .*No such file"):
        p2o.train(half)


def test_updates_without_a_finite_gradient_are_counted_on_after_a_stop(cfg):
    """The third in a row ends a run, wherever it was stopped in between."""
    bad = {"skipped": 1.0, "loss": math.nan}
    run = Run(cfg)
    state = run.resume(p2o.State(), *inputs_of_a_run())
    for _ in range(2):
        run.log_update(1, bad, [SimpleNamespace(reward=0.0)])
    run.save(state)
    again = Run(resumed(cfg))
    again.resume(p2o.State(), *inputs_of_a_run())
    with pytest.raises(UserError, match="3 updates in a row had no finite loss"):
        again.log_update(1, bad, [])


def inputs_of_a_run():
    policy = load_tiny()
    return policy.model, torch.optim.SGD(policy.trainable), {"training data": []}


# ------------------------------------------------------------------------------------------- two runs at once, no room


def hold_a_run(cfg, held, done):
    run = Run(cfg)
    run.resume(p2o.State(), *inputs_of_a_run())
    held.set()
    done.wait(60)


def test_two_runs_in_one_folder_are_refused(cfg):
    """The second process, whether it resumes or had looked into the folder before the first one began."""
    looked = Run(cfg)
    held, done = chaos.SERVER.Event(), chaos.SERVER.Event()
    other = chaos.SERVER.Process(target=hold_a_run, args=(cfg, held, done))
    other.start()
    try:
        assert held.wait(60)
        kept = {file: file.read_bytes() for file in cfg.folder.rglob("*") if file.is_file()}
        for second in (lambda: looked.resume(p2o.State(), *inputs_of_a_run()), lambda: Run(resumed(cfg))):
            with pytest.raises(UserError, match="a run is going on in it.*--name"):
                second()
        assert {file: file.read_bytes() for file in cfg.folder.rglob("*") if file.is_file()} == kept
    finally:
        done.set()
        other.join()
    Run(resumed(cfg))  # its process is over


def resumed(cfg):
    return dataclasses.replace(cfg, resume=True)


def test_a_run_that_began_meanwhile_is_not_written_over(cfg):
    looked = Run(cfg)
    first = Run(cfg)
    first.resume(p2o.State(), *inputs_of_a_run())
    first.lock.release()  # and it is over
    with pytest.raises(UserError, match="already holds a run"):
        looked.resume(p2o.State(), *inputs_of_a_run())


def test_a_folder_that_cannot_be_written_is_refused_before_the_model_is_loaded(cfg, monkeypatch):
    monkeypatch.setattr(grpo, "load_policy", pytest.fail)
    (cfg.folder.parent / "file").write_text("")
    with pytest.raises(UserError, match="is a file.*--runs"):
        p2o.train(dataclasses.replace(cfg, runs=str(cfg.folder.parent / "file" / "runs")))
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UserError, match="is read-only.*--runs") as refusal:
        p2o.train(dataclasses.replace(cfg, runs=str(cfg.folder.parent / "new" / "runs")))
    assert "\n" not in str(refusal.value)


def test_a_folder_that_cannot_be_made_gets_one_line(cfg, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    run, inputs = Run(cfg), inputs_of_a_run()
    monkeypatch.setattr("pathlib.Path.mkdir", read_only)
    with pytest.raises(UserError, match="Read-only file system.*--runs"):
        run.resume(p2o.State(), *inputs)


def test_a_name_too_long_for_a_folder_gets_one_line(cfg):
    with pytest.raises(UserError, match="cannot be written there .*name too long"):
        p2o.train(dataclasses.replace(cfg, name="x" * 300))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("config.json", "[]", "config.json is damaged .no JSON object.; mend it, or start a new run"),
        ("inputs.json", "", "inputs.json is damaged .Expecting value"),
        ("inputs.json", "{}", "started on other inputs: other questions in training data"),
        ("rollouts-1.json", '{"sett', "rollouts-1.json is damaged .*; remove it, and the batch is sampled again"),
        ("metrics.jsonl", '{"kind": "epoch"}\n', "metrics.jsonl has lost lines that it had when checkpoint 000001 was"),
        ("metrics.jsonl", None, "metrics.jsonl has lost lines"),
        ("metrics.jsonl", "\0" * 20_000, "metrics.jsonl, line 1: damaged"),
    ],
)
def test_a_damaged_file_of_a_run_gets_one_line_and_the_checkpoints_are_as_they_were(half, name, content, complaint):
    file, kept = half.folder / name, half.folder / "checkpoints"
    file.write_text(content) if content is not None else file.unlink()
    before = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=complaint):
        p2o.train(half)
    assert before == {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}


def test_a_run_whose_settings_are_gone_is_not_begun_anew(half):
    before = (half.folder / "metrics.jsonl").read_bytes()
    (half.folder / "config.json").unlink()
    for resume in (True, False):
        with pytest.raises(UserError, match="has checkpoints, but no config.json; put it back"):
            p2o.train(dataclasses.replace(half, resume=resume))
    assert (half.folder / "metrics.jsonl").read_bytes() == before


def test_epochs_are_counted_in_the_batches_that_they_have_now(half, capsys):
    """Batch 1 of 2 is half an epoch, and not the whole of an epoch of 1 batch, after which nothing would be trained."""
    one = dataclasses.replace(half, questions_per_batch=16, allow_changes=True)
    summary = p2o.train(one)
    assert "an epoch had 2 batches, and has 1 now: going on with epoch 1, batch 1\n" in capsys.readouterr().out
    assert summary["rollouts"] == 8 * 6 + 16 * 6
    assert p2o.train(dataclasses.replace(one, questions_per_batch=4, epochs=2))["rollouts"] == 8 * 6 + 2 * 16 * 6
    assert "has 4 now: going on with epoch 2, batch 1\n" in capsys.readouterr().out


def test_a_log_that_somebody_has_cleared_gets_no_zeros(half):
    (half.folder / "run.log").unlink()
    (half.folder / "transcripts.jsonl").write_text("")
    p2o.train(half)
    assert log.read_lines(half.folder / "transcripts.jsonl") and (half.folder / "run.log").exists()


def test_a_checkpoint_of_another_version_gets_one_line(half):
    file = half.folder / "checkpoints" / "000001" / "state.json"
    record = json.loads(file.read_text())
    later = record | {"state": record["state"] | {"curriculum": 3}}
    earlier = {name: value for name, value in record.items() if name != "bad_updates"}
    for other, unknown in ((later, "curriculum"), (earlier, "bad_updates")):
        file.write_text(json.dumps(other))
        with pytest.raises(UserError, match=f"000001 was written by another version of this code .*'{unknown}'"):
            p2o.train(half)


def test_resume_without_a_run_is_refused(cfg):
    with pytest.raises(UserError, match="holds no run"):
        p2o.train(dataclasses.replace(cfg, resume=True))


def test_another_base_model_is_refused(cfg, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    p2o.train(cfg)
    model = AutoModelForCausalLM.from_pretrained(cfg.model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.01)
    model.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(cfg.model).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="other is another base model.*--allow-changes"):
        p2o.train(dataclasses.replace(cfg, model=str(tmp_path / "other"), resume=True))
    with pytest.raises(UserError, match="another base model"):
        p2o.train(dataclasses.replace(cfg, model=str(tmp_path / "other"), resume=True, allow_changes=True))


def test_a_run_does_not_go_on_with_another_chat_format(cfg, tmp_path):
    """An edited chat template, tokenizer or end token: the same questions, but other prompts and other responses."""
    folder = shutil.copytree(cfg.model, tmp_path / "model")
    cfg = dataclasses.replace(cfg, model=str(folder))
    p2o.train(cfg)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] += "7"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="model has another chat format: .*--allow-changes"):
        p2o.train(dataclasses.replace(cfg, resume=True))


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def safetensors_without_space(*_, **__):
    """What safetensors raises on a full disk, word for word: no OSError."""
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("what", "fault"),
    [("save_optimizer", no_space), ("save_adapter", no_space), ("save_file", safetensors_without_space)],
)
def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(cfg, monkeypatch, capsys, what, fault):
    """Nor does it cost anything: with room again, the run goes on from the batch's journal."""
    finished = []
    monkeypatch.setattr(Run, "finish", lambda run: finished.append(run))
    monkeypatch.setattr(checkpoint, what, fault)
    p2o.train(cfg)
    assert finished and "No space left on device" in capsys.readouterr().out
    assert list((cfg.folder / "checkpoints").iterdir()) == []


def test_on_a_full_disk_a_file_gets_a_whole_line_or_none(tmp_path, monkeypatch):
    """A tiny tmpfs does the same, but only root can make one."""
    file = tmp_path / "metrics.jsonl"
    checkpoint.append(file, "one\n")
    real = Path.open

    class Half(io.StringIO):
        def write(self, text):
            file.write_text(file.read_text() + text[:2])
            no_space()

    monkeypatch.setattr(Path, "open", lambda path, mode="r", **how: Half() if mode == "a" else real(path, mode, **how))
    with pytest.raises(OSError, match="No space"):
        checkpoint.append(file, "three\n")
    assert file.read_text() == "one\n"
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        checkpoint.write_whole(file, "other")
    assert file.read_text() == "one\n" and [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_full_disk_gets_one_line_wherever_it_is_noticed(cfg, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "save_file", safetensors_without_space)
    assert exit_code_of(lambda: p2o.train(cfg)) == 2  # the adapter cannot be written at the end either
    assert "No space left on device" in (said := capsys.readouterr().err) and "--resume" in said
    assert said.splitlines()[-1].startswith("p2o: ") and said.count("p2o: ") == 1  # beside the bars


def test_a_file_that_may_not_be_written_gets_one_line_and_other_faults_a_traceback(capsys):
    def fail(number):
        raise OSError(number, os.strerror(number), "results/x.json")

    assert exit_code_of(lambda: fail(errno.EROFS)) == 2
    said = capsys.readouterr().err
    assert said.startswith("p2o: [Errno 30] Read-only file system: 'results/x.json'; ") and said.count("\n") == 1
    assert exit_code_of(lambda: fail(errno.EFBIG)) == 2  # `ulimit -f`, or a FAT disk's 4 GB
    assert "let files grow" in capsys.readouterr().err
    with pytest.raises(OSError, match="Invalid argument"):
        exit_code_of(lambda: fail(errno.EINVAL))


# ------------------------------------------------------------------------------------------------------------- faults


def test_a_gradient_that_is_not_finite_moves_nothing_and_ends_the_run_when_it_stays(cfg, monkeypatch):
    real = grpo.policy_loss
    monkeypatch.setattr(grpo, "policy_loss", lambda *a, **k: (real(*a, **k)[0] * math.nan, real(*a, **k)[1]))
    monkeypatch.setattr(grpo, "advantages_of", lambda group, cfg, **_: [1.0] * len(group))
    with pytest.raises(UserError, match="bad-batch.json"):
        p2o.train(cfg)
    assert len(json.loads((cfg.folder / "bad-batch.json").read_text())) == 24
    lines = log.read_lines(cfg.folder / "metrics.jsonl")
    assert [m["skipped"] for m in lines if m["kind"] == "update"] == [1.0] * 2  # the third one ends it
    assert os.listdir(cfg.folder / "checkpoints")


def test_silent_failures_are_named(cfg):
    fine = {
        "truncated": 0.1,
        "ill_formed": 0.2,
        "reward": 0.3,
        "zero_advantage": 0.5,
        "small_contrast": log.MAX_SMALL_CONTRAST,
        "logprob_mismatch": log.MAX_MISMATCH,
        "hard_set": 0,
    }
    assert log.silent_failures(fine, cfg) == []
    for change, word in [
        ({"truncated": 1.0}, "--max-response-tokens"),
        ({"ill_formed": 1.0}, "boxed"),
        ({"reward": 0.0}, "every reward is 0"),
        ({"zero_advantage": 1.0}, "zero advantage (advantage collapse)"),
        ({"zero_advantage": 1.0, "reward": 0.9}, "zero advantage (advantage collapse)"),
        ({"zero_advantage": 1.0, "reward": 1.0}, "harder questions"),
        ({"small_contrast": 0.4}, "--no-scale-by-std"),
        ({"logprob_mismatch": 2.0}, "stale adapter"),
    ]:
        (warning,) = log.silent_failures(fine | change, cfg)
        assert word in warning
    assert log.silent_failures(fine | {"zero_advantage": 1.0, "hard_set": 12}, cfg) == []  # templates are coming
    own = dataclasses.replace(cfg, reward="mine.py:rule")
    assert log.silent_failures(fine | {"truncated": 1.0}, own) == []  # a rule need not care how a response ends


@pytest.mark.parametrize("what", ["token_logprobs", "_decode"])
def test_out_of_memory_halves_the_batch_and_goes_on(cfg, monkeypatch, capsys, what):
    real, calls = getattr(grpo, what), []

    def crowded(policy, *args):
        calls.append(policy)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(policy, *args)

    monkeypatch.setattr(grpo, what, crowded)
    assert p2o.train(cfg)["rollouts"] == 96
    half = "sample_batch goes down to 128" if what == "_decode" else "micro_batch_tokens goes down to 8192"
    assert half in capsys.readouterr().out


def test_an_update_that_ran_out_of_memory_halfway_has_the_gradient_of_a_whole_one(fresh_policy, monkeypatch):
    rollouts = rollouts_of(fresh_policy)
    whole = gradient_of(fresh_policy, rollouts)
    fresh_policy.cfg = dataclasses.replace(fresh_policy.cfg, micro_batch_tokens=128)
    real, calls = grpo.policy_loss, []

    def crowded(*args, **settings):
        calls.append(args)
        if len(calls) == 2:  # one micro-batch is already in the gradient
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **settings)

    rollouts *= 2
    monkeypatch.setattr(grpo, "policy_loss", crowded)
    assert_same_gradient(fresh_policy, gradient_of(fresh_policy, rollouts), whole)


def test_a_batch_that_never_fits_ends_with_one_line(cfg, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(grpo, "_decode", full)
    with pytest.raises(UserError, match="out of memory with sample_batch"):
        p2o.train(cfg)


def test_questions_longer_than_the_context_are_counted_and_never_cut(cfg, capsys):
    p2o.prepare(dataclasses.replace(cfg, max_prompt_tokens=18, hard_set_min=4))
    assert "questions are longer than --max-prompt-tokens 18 and left out" in capsys.readouterr().out
    with pytest.raises(UserError, match="no question fits"):
        p2o.prepare(dataclasses.replace(cfg, max_prompt_tokens=5, name="other"))
    few = dataclasses.replace(cfg, max_prompt_tokens=18)
    with pytest.raises(UserError, match="--hard-set-min 12: no template is ever evolved on . questions"):
        p2o.prepare(few)
    assert "questions are longer than --max-prompt-tokens 18 and left out" in capsys.readouterr().out
    p2o.prepare(dataclasses.replace(few, method="grpo"))


@pytest.mark.parametrize("response", [[2], [2, 2], [0, 2]])
def test_a_response_of_special_tokens_only_is_graded_wrong_and_trains(cfg, monkeypatch, response):
    def empty(policy, contexts, *_):
        return [(list(response), [-1.0] * len(response), False) for _ in contexts]

    def load_then_replace(*args, **how):
        policy = load_policy(*args, **how)  # which refuses a sampler that makes up its log-probs
        monkeypatch.setattr(grpo, "_decode", empty)
        return policy

    load_policy = grpo.load_policy
    monkeypatch.setattr(grpo, "load_policy", load_then_replace)
    assert p2o.train(cfg)["accuracy"] == {"held": 0.0}
