"""How much of the hints' accent has leaked into the bare policy? Of a study's runs whose folders are still there.

    python lab/studies/accent.py parts [RUNS]    # reads runs/parts (or RUNS/parts), prints a table

In the divided world a hinted response opens with a word in four cases of five, as bare ones never do. The word does
nothing for the answer. It is counted in 400 bare responses to held-out hard questions, sampled at temperature 1 from
the policy as each run left it.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import grpo  # noqa: E402
from support.data import load_questions  # noqa: E402
from tools.study import folders_of, is_done, read_study  # noqa: E402

SAMPLES = 400


def share_with_accent(adapter: Path, model: str) -> float:
    """The share of sampled bare responses that open with a word."""
    policy = grpo.load_policy(grpo.PolicyConfig(model=model), adapter=str(adapter))
    questions = load_questions(str(ROOT / "tiny" / "hard.jsonl"))
    asked = [questions[i % len(questions)].text for i in range(SAMPLES)]
    return statistics.fmean(s.text[:1].isalpha() for s in grpo.respond(policy, asked, seed=0))


def main() -> None:
    name, *elsewhere = sys.argv[1:]
    study = read_study(ROOT / "lab" / "studies" / f"{name}.toml")
    shares: dict[str, list[float]] = {}
    for (variant, seed), folder in folders_of(study, Path(*elsewhere or [ROOT / "runs"]) / name).items():
        if is_done(folder):
            shares.setdefault(variant, []).append(
                share_with_accent(folder / "adapter", study.variants[variant]["model"])
            )
            print(f"{variant}, seed {seed}: {shares[variant][-1]:.2%}", flush=True)
    lines = ["| variant | bare responses with the accent | by seed |", "| --- | --- | --- |"]
    lines += [f"| {v} | {statistics.fmean(s):.2%} | {', '.join(f'{x:.2%}' for x in s)} |" for v, s in shares.items()]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
