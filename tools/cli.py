"""The command line: `p2o.py OPTIONS` trains and writes the report, `p2o.py TOOL ...` runs one of the tools."""

from __future__ import annotations

import re

import torch
import tyro

import p2o
from support.errors import exit_code_of

TOOLS = ("demo", "study", "studies", "eval", "fit", "report")


def parse_config(argv: list[str]) -> p2o.Config:
    """The configuration that the options give; those that are not given are the preset's."""
    preset = re.search(r"--preset[ =](\S+)", " ".join(argv))
    default = p2o.PRESETS.get(preset.group(1), p2o.PRESETS["tiny"]) if preset else p2o.PRESETS["tiny"]
    return tyro.cli(p2o.Config, default=default, args=argv, prog="p2o.py", description=p2o.__doc__)


def run_tool(name: str, argv: list[str]) -> None:
    """Run a tool with these arguments. Only the tool that is named is imported, to start fast."""
    if name == "demo":
        from tools.demo import main
    elif name == "study":
        from tools.study import main
    elif name == "studies":
        from tools.studies import main
    elif name == "eval":
        from tools.evaluate import main
    elif name == "fit":
        from tools.fit import main
    else:
        from tools.report import main
    main(argv)


def command(argv: list[str]) -> None:
    if argv and argv[0] in TOOLS:
        run_tool(argv[0], argv[1:])
        return
    cfg = parse_config(argv)
    if torch.cuda.is_available():
        from tools.fit import foretell

        foretell(cfg)  # so many GiB, so many hours, and what to lower if that is too much
    from tools.report import live_report

    with live_report([cfg.folder], cfg.folder):
        p2o.train(cfg)
    run_tool("report", [str(cfg.folder)])


def main(argv: list[str]) -> int:
    return exit_code_of(command, argv)
