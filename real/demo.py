"""GRPO and P2O side by side on a real language model, SmolLM2-135M-Instruct: make real.

    python real/demo.py                 both methods, then a report
    python real/demo.py --short         two epochs on few questions: does everything run here?
    python real/demo.py --epochs 3      any option of `p2o.py --help`; it wins over those below

The questions are everyday ones. The verifier wants those that begin with "How" answered in Spanish and those that begin
with "Why" in German, and the prompt tells neither (real/rules.py). The bare model answers in English.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from real.make_model import make_model  # noqa: E402
from support.errors import exit_code_of  # noqa: E402

REAL = ROOT / "real"
OPTIONS = {
    "--model": REAL / "model",
    "--train-data": REAL / "train.jsonl",
    "--eval-data": REAL / "held-out.jsonl",
    "--train-questions": 48,
    "--reward": f"{REAL / 'rules.py'}:asked_for",
    "--reflection-prompt": REAL / "reflection.txt",
    "--temperature": 0.5,
    "--max-response-tokens": 24,
    "--max-prompt-tokens": 120,
    "--questions-per-batch": 4,
    "--questions-per-update": 4,
    "--learning-rate": 1e-3,
    "--decay": 0.5,
    "--epochs": 4,
    "--gepa-dev-size": 12,
    "--gepa-minibatch": 1,
    "--gepa-budget": 240,
    "--reflection-tokens": 32,
    "--reflection-quote": 16,
    "--reflection-temperature": 0.7,
    "--threads": 0,
}
SWITCHES = ["--sampled-eval", "--no-ratio-mask", "--leave-one-bare"]
SHORT = {"--epochs": 2, "--train-questions": 16, "--gepa-dev-size": 6, "--gepa-budget": 40}


def words_of(argv: list[str]) -> list[str]:
    """The command line of p2o.py: our options, then the user's own, which win."""
    options = OPTIONS | (SHORT if "--short" in argv else {})
    switches = SWITCHES + (["--no-sampled-eval"] if "--short" in argv else [])
    ours = [str(word) for pair in options.items() for word in pair] + switches
    return ours + [word for word in argv if word != "--short"]


def train_both(argv: list[str]) -> None:
    make_model()
    from tools.cli import refuse_lists_given_twice, side_by_side  # loads torch, which takes seconds

    refuse_lists_given_twice(argv)
    side_by_side(words_of(argv), "real")


def main(argv: list[str]) -> int:
    return exit_code_of(train_both, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
