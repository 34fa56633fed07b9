"""The command line: `p2o.py OPTIONS` trains and writes the report, `p2o.py TOOL ...` runs one of the tools."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
import tyro

import p2o
from support.errors import UserError, exit_code_of
from support.run import folder_below

TOOLS = ("demo", "study", "studies", "eval", "fit", "report")
LISTS = ("--eval-data", "--data", "--only")  # options that take several values
# P2O has solved the tiny world after three. An option of the user's own comes later on the command line, and wins.
EPOCHS = ("--epochs", "4")
HOW_TO_READ = """\
An epoch with "templated 0%" is plain GRPO, in P2O as well. Templates give the bare policy its first successes; the
epochs after them show what GRPO makes of these. The hard set was collected during the last epoch, from sampled
responses, while the policy moved. The accuracies were measured after that epoch, by greedy decoding.
So the two need not agree."""


def parse_config(argv: list[str]) -> p2o.Config:
    """The configuration that the options give; those that are not given are the preset's."""
    default = p2o.PRESETS.get(given(argv, "preset"), p2o.PRESETS["tiny"])
    return tyro.cli(p2o.Config, default=default, args=argv, prog="p2o.py", description=p2o.__doc__)


def given(argv: list[str], option: str) -> str:
    """What an option is given as, before the others are read, whose defaults it decides; "" if it is not given.

    Of an option that is given twice tyro takes the last, and so it is here.

    >>> given(["--name", "as --preset=a", "--preset", "b", "--preset=c"], "preset")
    'c'
    """
    # NUL keeps the words apart, so that no text with spaces is taken for an option.
    found = re.findall(f"(?<![^\0])--{option}[=\0]([^\0]*)", "\0".join(argv))
    return found[-1] if found else ""


def refuse_lists_given_twice(argv: list[str]) -> None:
    """Of `--eval-data a --eval-data b` tyro takes b alone, without a word.

    `argv` is what the user typed. (real/demo.py puts options of its own in front, over which the user's are to win.)
    """
    names = [word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")]
    for option in LISTS:
        if names.count(option) > 1:
            raise UserError(f"{option} is given twice, and the second would replace the first; write {option} A B")


def demo(argv: list[str]) -> None:
    """GRPO and P2O side by side: same seed, same questions, same number of rollouts; then the comparison."""
    side_by_side([*EPOCHS, *argv], "demo")


def side_by_side(options: list[str], name: str) -> None:
    """Train both methods under these options, in runs/NAME, and write the report of the two."""
    from tools import report

    cfg = parse_config(options)
    base = newest = folder_below(cfg.runs, cfg.name or name)
    while base.exists():  # a second demo stands beside the first
        newest = base
        stem, _, number = base.name.rpartition("-")
        base = base.with_name(f"{stem}-{int(number) + 1}" if number.isdecimal() else f"{base.name}-2")
    base = newest if cfg.resume else base
    folders = [base / method for method in ("grpo", "p2o")]
    with report.live_report(folders, base):
        for folder in folders:
            one_bare = cfg.leave_one_bare and folder.name == "p2o"  # GRPO has no templates to leave away
            ours = {"method": folder.name, "leave_one_bare": one_bare, "runs": str(base), "name": folder.name}
            # A demo that was stopped during the first run has no second one yet.
            begun = folder == folders[0] or (folder / "config.json").exists()
            p2o.train(replace(cfg, **ours, resume=cfg.resume and begun))
            report.write_report([folder], folder)
    print("\n" + report.comparison_table(folders))
    print("\n" + HOW_TO_READ)
    print(f"\nreport: {base / 'report.html'}")


def run_tool(name: str, argv: list[str]) -> None:
    """Run a tool with these arguments. Only the tool that is named is imported, to start fast."""
    if name == "demo":
        main = demo
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
    refuse_lists_given_twice(argv)
    if argv and argv[0] in TOOLS:
        run_tool(argv[0], argv[1:])
        return
    if argv and not argv[0].startswith("-"):
        raise UserError(f"{argv[0]}: no such command; there are {', '.join(TOOLS)}, or options alone, to train")
    cfg = parse_config(argv)
    if torch.cuda.is_available():
        from tools.fit import foretell

        foretell(cfg)  # so many GiB, so many hours, and what to lower if that is too much
    from tools.report import live_report

    with live_report([cfg.folder], cfg.folder):
        p2o.train(cfg)
    run_tool("report", [str(cfg.folder)])


def main(argv: list[str]) -> int:
    trains = argv[:1] == ["demo"] or not {*argv[:1]} & {*TOOLS}
    return exit_code_of(command, argv, resumable=trains)
