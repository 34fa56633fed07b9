"""Checkpoints that a kill at any moment cannot spoil, and a journal that makes long searches resumable.

A checkpoint is a folder of small files. It is written beside its final name, synced to disk and renamed, so it is there
whole or not at all; `state.json` holds a digest of every other file, and one that does not match is passed over.
Nothing is pickled: tensors are safetensors, the rest is JSON.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from support.errors import UserError
from support.pretrained import BASE_MODEL, base_mark

KEEP = 2  # newest checkpoints kept


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save(folder: Path, number: int, state: dict, write_files: Callable[[Path], None]) -> None:
    """Write folder/NNNNNN with `state` and what `write_files` puts beside it; keep it and the KEEP - 1 before it.

    Later ones are dropped, too: the run has gone on from an earlier one, so they were damaged. On any error, such as a
    full disk, the half-written folder is removed, and the older checkpoints stay as they were.
    """
    folder.mkdir(exist_ok=True)
    temporary, final = folder / f"tmp-{number:06d}", folder / f"{number:06d}"
    for leftover in (temporary, final):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        temporary.mkdir()
        write_files(temporary)
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        digests = {str(file.relative_to(temporary)): digest(file) for file in files}
        (temporary / "state.json").write_text(json.dumps(state | {"digests": digests}), encoding="utf-8")
        for file in [*files, temporary / "state.json", temporary]:
            sync(file)
        temporary.rename(final)
        sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    present = numbered(folder)
    for other in {*present} - {*[path for path in present if path <= final][-KEEP:]}:
        shutil.rmtree(other, ignore_errors=True)


def numbered(folder: Path) -> list[Path]:
    """The checkpoints, oldest first; no copy of one, which somebody has made and called "000007 copy"."""
    return sorted(path for path in folder.glob("[0-9]*") if path.name.isdecimal() and path.is_dir())


def newest(folder: Path) -> tuple[Path, dict] | None:
    """(path, state) of the newest whole checkpoint; a line for each one passed over; None if there is none."""
    for path in reversed(numbered(folder)):
        try:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            broken = [name for name, known in state["digests"].items() if digest(path / name) != known]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            broken = [f"{type(error).__name__}: {error}"]
        if not broken:
            return path, state
        print(f"checkpoint {path.name} is damaged and passed over ({broken[0]})")
    return None


def save_tensors(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """safetensors' save_file, with an OSError where the disk is full, as from all else that writes."""
    try:
        save_file(tensors, file, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number.group(1)) if number else errno.EIO, str(error)) from error


def save_optimizer(optimizer: torch.optim.Optimizer, file: Path) -> None:
    state = optimizer.state_dict()["state"]
    tensors = {f"{i}.{name}": value for i, values in state.items() for name, value in values.items()}
    if "loss_scale" in optimizer.param_groups[0]:  # of float16: memory.LossScale
        tensors["loss_scale"] = torch.tensor(optimizer.param_groups[0]["loss_scale"])
    save_tensors(tensors, file)


def load_optimizer(optimizer: torch.optim.Optimizer, file: Path) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    tensors = load_file(file)
    if "loss_scale" in tensors:
        optimizer.param_groups[0]["loss_scale"] = tensors.pop("loss_scale").item()
    for key, value in tensors.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_adapter(model: torch.nn.Module, folder: Path) -> None:
    """As peft's save_pretrained, without its model card: an empty form that takes longer than all the rest.

    A file beside it says which base model it belongs to, for `pretrained.load_adapter`. It is not in the metadata of
    the weights: safetensors writes two entries there in an order that changes from process to process.
    """
    from peft import get_peft_model_state_dict

    folder.mkdir(exist_ok=True)
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_tensors(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / BASE_MODEL).write_text(json.dumps(base_mark(model)), encoding="utf-8")
    model.active_peft_config.save_pretrained(folder)


def load_adapter(model: torch.nn.Module, folder: Path) -> None:
    """Overwrite the adapter's weights by saved ones. UserError if some have no counterpart: peft would say nothing."""
    from peft import load_peft_weights, set_peft_model_state_dict

    device = next(model.parameters()).device
    found = set_peft_model_state_dict(model, load_peft_weights(str(folder), device=str(device)))
    if lost := sorted([name for name in found.missing_keys if "lora_" in name] + found.unexpected_keys):
        told = f"{len(lost)} weights of the adapter in {folder} do not fit, {lost[0]} first"
        cause = "was it saved with other versions of peft or transformers, which have other names for them?"
        raise UserError(f"--resume: {told}: {cause}")


def write_whole(file: Path, text: str) -> None:
    """Write a small file so that a kill leaves the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.rename(file)
    except OSError:  # a full disk, of which the half-written file would keep what room there is
        temporary.unlink(missing_ok=True)
        raise


def append(file: Path, text: str) -> None:
    """Add lines to a file, all of them or none: half a line would spoil the next one, and the file."""
    length = file.stat().st_size if file.exists() else 0
    try:
        with file.open("a", encoding="utf-8") as growing:
            growing.write(text)
    except OSError:
        os.truncate(file, length)
        raise


def journaled(file: Path) -> Callable[[str, Callable[[list, int], list]], Callable[[list], list]]:
    """Make calls resumable: `wrap(name, call)` returns a function of the inputs, each call's outputs kept in `file`.

    With the same file again, the first calls are answered from it, in order; all wrapped calls share one order. So a
    deterministic search that was killed comes to the same state without its costs, and no generator's state has to be
    saved. `call` gets the inputs and the number of calls of its name so far, to derive a seed from. A half-written last
    line is cut off. UserError if the journal does not fit the calls.
    """
    file.touch()
    whole = file.read_bytes().rpartition(b"\n")[0]
    os.truncate(file, len(whole) + bool(whole))
    unfit = UserError(f"--resume: {file} is damaged or of other versions; remove it, and this search begins anew")
    try:
        replies = [json.loads(line) for line in whole.splitlines()]  # still to be given
    except ValueError:
        raise unfit from None
    numbers: Counter[str] = Counter()

    def wrap(name: str, call: Callable[[list, int], list]) -> Callable[[list], list]:
        def called(inputs: list) -> list:
            key = hashlib.sha256(json.dumps([name, inputs]).encode()).hexdigest()[:16]
            if replies:
                reply = replies.pop(0)
                if reply["key"] != key:
                    raise unfit
                outputs = reply["outputs"]
            else:
                outputs = call(inputs, numbers[name])
                with file.open("ab") as handle:
                    handle.write(json.dumps({"key": key, "call": name, "outputs": outputs}).encode() + b"\n")
                    handle.flush()
                    os.fsync(handle.fileno())
            numbers[name] += 1
            return outputs

        return called

    return wrap
