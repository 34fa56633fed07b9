"""What the studies need: question files, tiny models with a dial turned, functions that know too much, the accent.

    python lab/studies/worlds.py questions   # runs/worlds/selection.jsonl, selection-held-out.jsonl, pattern.jsonl, ...
    python lab/studies/worlds.py models      # runs/dials/: two minutes of one core for each of the thirteen models
    python lab/studies/worlds.py accent parts [RUNS]     # a table, from the runs of parts.toml in runs/ or RUNS/

Question files, drawn from a fixed seed:

selection    A world in which selection can show itself. A third of the questions is always solved (two elements), a
             third impossible, and readable as such (seven or eight elements, and no state is the answer), a third
             between: the answer is the state at a depth that depends on the family, so there are four lessons. The
             model is one whose bare responses go on with probability 0.5 (runs/dials/bare-0.5): it stops at depths
             2, 3, 4, 5 with probability 1/4 to 1/32, or 1/16 where 5 is the last.
pattern      Any verifiable task: the response has to write down at least five states, whatever they are. No reference
             answer; `--reward pattern` reads the regular expression from the row.

Models, each a fine-tune of 300 steps; what is there already is left alone:

bare-P       A bare response goes on with probability P after a state (phase.toml, bound.toml, selection.toml).
hinted-P     The same for a hinted response (phase.toml).
locked       The divided world, where no hint helps the clock.
accented     The divided world, where hints work only in responses that open with a word that the bare model never
             writes.
range        The divided world with bare success rates from about 0.9 to 0.01 on the questions that go to runs/range.

The accent: in the divided world a hinted response opens with a word in four cases of five, as bare ones never do. The
word does nothing for the answer. How much of it has leaked into the bare policy? It is counted in 400 bare responses to
held-out hard questions, sampled at temperature 1 from the policy as each run left it.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tiny.problems import EASY, FAMILIES, HARD, OOD, USELESS_HINTS, Problem, draw_many  # noqa: E402
from tiny.worlds import held_hint  # noqa: E402
from variants.evolve import given  # noqa: E402

DEPTHS = dict(zip(FAMILIES, (2, 3, 4, 5), strict=True))  # family -> which state is the answer
FIVE_STATES = r"\d+(; \d+){4,}\. .*"

DIVIDED = ("--world", "divided", "--start", "tiny/divided/model")
MODELS = {  # folder of runs/dials -> options of tiny/train_base.py
    **{f"bare-{p}": ("--go-on-bare", p) for p in ("0.15", "0.25", "0.35", "0.5", "0.03", "0.01", "0.003")},
    **{f"hinted-{p}": ("--go-on-hinted", p) for p in ("0.97", "0.99", "0.999")},
    "locked": (*DIVIDED, "--locked", "clock"),
    "accented": (*DIVIDED, "--accent-needed"),
    "range": (*DIVIDED, "--go-on-bare", "0.5"),
}

# ------------------------------------------------------------------------------------------------------- question files


def different(rng: random.Random, lengths: tuple[int, ...], count: int, taken: set[str]) -> list[Problem]:
    """Questions with all states different, so that no other depth is right by luck; families in turn."""
    drawn = draw_many(rng, 3 * count, lengths, taken)  # a family that runs dry is left out
    return [problem for problem in drawn if len(set(problem.states)) == len(problem.states)][:count]


def row(kind: str, number: int, problem: Problem, answer: object) -> dict:
    return {"id": f"{kind}-{number}", "question": problem.question, "answer": str(answer), "kind": kind}


def selection(rng: random.Random, taken: set[str]) -> tuple[list[dict], list[dict]]:
    """(training rows, held-out rows: of the third that can be learned)."""
    solved = [row("solved", i, p, p.states[-1]) for i, p in enumerate(different(rng, EASY, 48, taken))]
    lost = [row("impossible", i, p, "none") for i, p in enumerate(different(rng, OOD, 48, taken))]
    between = [
        row("between", i, p, p.states[DEPTHS[p.family] - 1]) for i, p in enumerate(different(rng, HARD, 148, taken))
    ]
    return solved + lost + between[:48], between[48:]


def pattern(rng: random.Random, taken: set[str]) -> tuple[list[dict], list[dict]]:
    rows = [row("steps", i, p, "") | {"pattern": FIVE_STATES} for i, p in enumerate(different(rng, HARD, 244, taken))]
    return rows[:144], rows[144:]


def write_questions() -> None:
    folder = ROOT / "runs" / "worlds"
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in (("selection", selection), ("pattern", pattern)):
        for suffix, rows in zip(("", "-held-out"), make(random.Random(0), set()), strict=True):
            file = folder / f"{name}{suffix}.jsonl"
            file.write_text("".join(json.dumps(line) + "\n" for line in rows))
            print(f"{file.relative_to(ROOT)}: {len(rows)} questions, e.g. {rows[-1]['question']}")


# --------------------------------------------------------------------------------------------------------------- models


def train_models() -> None:
    for name, dial in MODELS.items():
        folder = ROOT / "runs" / "dials" / name
        if (folder / "done").exists():
            continue
        options = ["--start", "tiny/united/model", "--decision-steps", "300", "--out", str(folder), *dial]
        subprocess.run([sys.executable, "tiny/train_base.py", *options], cwd=ROOT, check=True)
        (folder / "done").touch()
    subprocess.run([sys.executable, "tiny/problems.py", "--range", "runs/range"], cwd=ROOT, check=True)


# ------------------------- functions that know what nobody could: what a selection, or an evolution, could gain at most


def between(order, history, count, rng):
    """--select: only questions of the third in between, least often tried first."""
    known = [question for question in order if question.columns["kind"] == "between"]
    return sorted(known, key=lambda question: len(history.get(question.id, [])))[:count]


def hints() -> list[str]:
    return [family.hints[0] for family in FAMILIES.values()]


def right_hint(hard, search):
    """--evolve: each question gets the hint of its family, and no response is spent on finding it."""
    fits = [[float(held_hint(q.columns["family"], hint) is not None) for q in hard] for hint in hints()]
    return given(hard, hints(), fits)


def any_hint(hard, search):
    """--evolve: each rollout gets a hint that the reflection model may write, right, wrong or useless, by chance."""
    templates = [hint for family in FAMILIES.values() for hint in family.hints] + list(USELESS_HINTS)
    return given(hard, templates, [[1.0] * len(hard) for _ in templates])


# ----------------------------------------------------------------------------------------------------------- the accent


def share_with_accent(adapter: Path, model: str, samples: int = 400) -> float:
    """The share of sampled bare responses that open with a word."""
    import grpo
    from support.data import load_questions

    policy = grpo.load_policy(grpo.PolicyConfig(model=model), adapter=str(adapter))
    questions = load_questions(str(ROOT / "tiny" / "hard.jsonl"))
    asked = [questions[i % len(questions)].text for i in range(samples)]
    return statistics.fmean(s.text[:1].isalpha() for s in grpo.respond(policy, asked, seed=0))


def accent(name: str, runs: str = str(ROOT / "runs")) -> None:
    """The table of a study, of those of its runs whose folders are still there."""
    from tools.study import folders_of, is_done, read_study

    study = read_study(ROOT / "lab" / "studies" / f"{name}.toml")
    shares: dict[str, list[float]] = {}
    for (variant, seed), folder in folders_of(study, Path(runs) / name).items():
        if is_done(folder):
            share = share_with_accent(folder / "adapter", study.variants[variant]["model"])
            shares.setdefault(variant, []).append(share)
            print(f"{variant}, seed {seed}: {share:.2%}", flush=True)
    lines = ["| variant | bare responses with the accent | by seed |", "| --- | --- | --- |"]
    lines += [f"| {v} | {statistics.fmean(s):.2%} | {', '.join(f'{x:.2%}' for x in s)} |" for v, s in shares.items()]
    print("\n".join(lines))


COMMANDS = {"questions": write_questions, "models": train_models, "accent": accent}

if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    COMMANDS[sys.argv[1]](*sys.argv[2:])
