"""The command line: `p2o.py OPTIONS` trains and writes the report, `p2o.py TOOL ...` is for one of tools/."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from types import ModuleType

import torch
import tyro

TOOLS = {name: name for name in ("demo", "study", "studies", "fit", "report")} | {"eval": "evaluate"}  # files of tools/


def tool(name: str) -> ModuleType:
    """Tools stand on the core, which therefore knows them by name only."""
    return importlib.import_module(f"tools.{name}")


def parse(argv: list[str], presets: dict[str, object], description: str):
    """The configuration that the options give; those that are not given are the preset's."""
    preset = re.search(r"--preset[ =](\S+)", " ".join(argv))
    default = presets.get(preset.group(1), presets["tiny"]) if preset else presets["tiny"]
    return tyro.cli(type(default), default=default, args=argv, prog="p2o.py", description=description)


def command(argv: list[str], parse_config: Callable, train: Callable) -> None:
    if argv and argv[0] in TOOLS:
        tool(TOOLS[argv[0]]).main(argv[1:])
        return
    cfg = parse_config(argv)
    if torch.cuda.is_available():
        tool("fit").foretell(cfg)  # so many GiB, so many hours, what to lower
    train(cfg)
    tool("report").main([str(cfg.folder)])
