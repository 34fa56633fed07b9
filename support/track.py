"""--track: the lines of metrics.jsonl, sent to a tracker as well. One tracker a run; GEPA knows nothing of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from support.errors import UserError

MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


def library(kind: str):
    """The tracker's module; UserError if it is not installed. Called before the model is loaded, too."""
    try:
        return importlib.import_module(MODULES[kind])
    except ImportError as error:
        raise UserError(f"--track {kind}: it is not installed; pip install {kind}") from error


def scalars(line: dict) -> dict[str, float]:
    """The numbers of a line, under names that sort.

    >>> scalars({"kind": "epoch", "reward": 0.5, "accuracy": {"hard": 1.0}, "note": "x"})
    {'epoch/reward': 0.5, 'epoch/accuracy/hard': 1.0}
    """
    found = {}
    for name, value in line.items():
        if isinstance(value, dict):
            found |= {f"{line['kind']}/{name}/{key}": v for key, v in value.items() if isinstance(v, int | float)}
        elif isinstance(value, int | float):
            found[f"{line['kind']}/{name}"] = value
    return found


def start(kind: str, folder: Path, config: dict) -> SimpleNamespace:
    """`log(line, update)` and `finish()` of the tracker, or of none."""
    if kind == "none":
        return SimpleNamespace(log=lambda line, update: None, finish=lambda: None)
    module = library(kind)
    if kind == "tensorboard":
        writer = module.SummaryWriter(str(folder / "tensorboard"))

        def log(line: dict, update: int) -> None:
            for name, value in scalars(line).items():
                writer.add_scalar(name, value, update)
            writer.flush()

        return SimpleNamespace(log=log, finish=writer.close)
    # The update goes along as a value: a resumed run repeats steps, which a tracker's own counter does not allow.
    place = {"dir": str(folder)} if kind == "wandb" else {}
    handle = module.init(project="p2o", name=folder.name, config=config, **place)
    send: Callable[[dict], None] = handle.log
    return SimpleNamespace(log=lambda line, update: send(scalars(line) | {"update": update}), finish=handle.finish)
