"""The tiny worlds: what an instruction does to a base model, and the texts that teach it.

All worlds ask the questions of tiny/problems.py. After each state the model decides with one token, and the
*instruction* sets the odds: it goes on with probability 0.9 if the instruction holds a hint for the question's family
and with 0.07 if not, so that a bare hard question (four or five such decisions) fails nearly always, while no single
token is as rare as the 0.01 at which the authors' ratio mask would cut it off.

    united     `;` goes on in every family, and hints add up. One template solves all, and what is learned on one family
               spills over to the others: the phenomenon at its clearest.
    divided    each family goes on with a mark of its own, and every further sentence of an instruction dilutes it. No
               template makes the base solve two families, and a lesson stays with its family at first: several
               templates, several epochs. Its reflector mostly replaces hints, for two of them would not help.

What was taught, and is therefore no finding: what each hint does, the probabilities of going on, that questions of two
elements need no hint, what a reflection may write and how often it is right. What is real: the sampling, the verifier's
reward, GEPA's selection among reflections, and what the policy learns from them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from gepa_loop import apply_template, reflection_prompt, reflection_record
from tiny.problems import EASY, FAMILIES, HARD, LENGTHS, USELESS_HINTS, draw
from verify import Grade, feedback

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class World:
    """What is taught to a base model, apart from what all worlds share."""

    model: Path  # where its base model is kept
    marks: dict[str, str]  # family -> the token that goes on after a state; `.` stops in all
    go_on_bare: float = 0.07  # probability of going on without a hint for the family
    go_on_hinted: tuple[float, ...] = (0.9,)  # with one, in an instruction of 1, 2, ... sentences; the last for more
    accent: float = 0.0  # share of hinted responses that open with the hint's first word, as bare ones never do
    accent_needed: bool = False  # hints work in those responses only: a rare token that goes along with success
    replaces: float = 0.0  # share of right reflections that replace the old hints rather than join them
    locked: tuple[str, ...] = ()  # families whose hints do nothing

    def go_on(self, family: str, instruction: str) -> float:
        """Probability of going on after a state.

        >>> diluted = [DIVIDED.go_on("total", "Keep a running total." + useless) for useless in ("", " Be brief.")]
        >>> diluted, DIVIDED.go_on("clock", "Keep a running total.")
        ([0.9, 0.4], 0.07)
        """
        if family in self.locked or not held_hint(family, instruction):
            return self.go_on_bare
        sentences = instruction.count(".")
        return self.go_on_hinted[min(sentences, len(self.go_on_hinted)) - 1]

    def opening(self, rng: random.Random, family: str, instruction: str) -> str:
        """The accent: with probability `accent` the first word of the hint, and nothing without one."""
        hint = held_hint(family, instruction)  # no draw in a world without accents: its texts stay what they were
        return f"{hint.split()[0]} " if hint and self.accent and rng.random() < self.accent else ""


UNITED = World(HERE / "united" / "model", dict.fromkeys(FAMILIES, ";"))
DIVIDED = World(
    HERE / "divided" / "model",
    dict(zip(FAMILIES, ";,!?", strict=True)),
    go_on_hinted=(0.9, 0.4, 0.1),
    accent=0.8,
    replaces=0.7,
)
WORLDS = {"united": UNITED, "divided": DIVIDED}


def held_hint(family: str, instruction: str) -> str | None:
    """The family's hint that the instruction holds.

    >>> held_hint("clock", "Stay calm. Move the hand step by step."), held_hint("total", "Stay calm.")
    ('Move the hand step by step.', None)
    """
    return next((hint for hint in FAMILIES[family].hints if hint in instruction), None)


# ------------------------------------------------------------------------------------------------ answering questions


def draw_instruction(rng: random.Random, family: str, kind: str) -> str:
    """An instruction that is empty ("bare"), holds a hint for the family ("hinted") or only others ("wrong")."""
    if kind == "bare":
        return ""
    hints = [rng.choice(f.hints) for name, f in FAMILIES.items() if name != family] + [rng.choice(USELESS_HINTS)]
    others = rng.sample(hints, rng.choice([1, 1, 2, 3, 4] if kind == "wrong" else [0, 0, 1, 2, 3, 4]))
    if kind == "hinted":
        others.insert(rng.randint(0, len(others)), rng.choice(FAMILIES[family].hints))
    return " ".join(others)


def solve_example(rng: random.Random, world: World, decisions: bool = True) -> tuple[str, str, list[str]]:
    """(user message, response, labels): `labels` replaces the decision tokens in order; empty keeps the text's own.

    Without `decisions` it always goes on: the whole chain, to learn the steps first.

    Skill and thoroughness are kept apart. In half of the texts the whole chain stands there whatever the instruction,
    and only the labels of the decisions are drawn, so that states are as right in the bare context as in the hinted one
    at every depth. The other half stop where the draw says, and box the state they have reached.
    """
    kind = rng.choices(["hinted", "bare", "wrong"], [5, 3, 2])[0]
    problem = draw(rng, rng.choice(list(FAMILIES)), LENGTHS)
    instruction = draw_instruction(rng, problem.family, kind)
    message = apply_template(instruction, problem.question)
    opening, mark = world.opening(rng, problem.family, instruction), world.marks[problem.family]
    probability = world.go_on(problem.family, instruction if opening or not world.accent_needed else "")
    length = len(problem.states)
    probability = probability if decisions and length not in EASY else 1.0
    goes_on = [rng.random() < probability for _ in range(length - 1)]
    if rng.random() < 0.5:  # skill
        return message, opening + problem.response(mark=mark), [mark if go else "." for go in goes_on]
    depth = next((i for i, go in enumerate(goes_on) if not go), length - 1) + 1  # thoroughness
    return message, opening + problem.response(depth, mark), []


# --------------------------------------------------------------------------------------------------------- reflection


def reflection_example(rng: random.Random, world: World) -> tuple[str, str]:
    """(reflection prompt, new instruction between fences): three graded examples of the current one, then a move.

    In 38 % of the texts (33 % in the divided world) the new instruction has gained a hint for a question that failed.
    So evolution has to select.
    """
    family_hints = [rng.choice(FAMILIES[name].hints) for name in FAMILIES]
    current = rng.sample(family_hints, rng.choice([0, 0, 1, 1, 2, 3, 4]))
    current += rng.sample(USELESS_HINTS, rng.choice([0, 0, 0, 1, 2]))
    rng.shuffle(current)
    current = current[:5]
    instruction = " ".join(current)
    graded = [graded_example(rng, world, instruction) for _ in range(3)]
    failed = [family for _, family in graded if family]
    new = next_instruction(rng, world, current, family_hints, failed)
    return reflection_prompt(instruction, [record for record, _ in graded]), f"```\n{' '.join(new)}\n```"


def graded_example(rng: random.Random, world: World, instruction: str) -> tuple[dict[str, str], str | None]:
    """(a record as GEPA shows it, the family if it failed for want of a hint). Greedily a hint works above 1/2."""
    problem = draw(rng, rng.choice(list(FAMILIES)), HARD)
    works = world.go_on(problem.family, instruction) > 0.5
    solved = rng.random() < (0.85 if works else 0.1)
    depth = len(problem.states) if solved else rng.choice([1, 1, 1, *range(1, len(problem.states))])
    opening = world.opening(rng, problem.family, instruction)
    answer, right = str(problem.states[depth - 1]), str(problem.states[-1])
    grade = Grade(float(solved), solved, True, answer)
    response = opening + problem.response(depth, world.marks[problem.family])
    record = reflection_record(problem.question, response, feedback(grade, right))
    return record, None if solved or works else problem.family


def next_instruction(
    rng: random.Random, world: World, current: list[str], family_hints: list[str], failed: list[str]
) -> list[str]:
    """The current hints after one move: add one that the failed examples ask for, or another, drop one, or keep all."""
    held = " ".join(current)
    absent = [hint for name, hint in zip(FAMILIES, family_hints, strict=True) if not held_hint(name, held)]
    useless = [hint for hint in USELESS_HINTS if hint not in current]
    move = rng.choices(["right", "useless", "other", "drop", "keep"], [40, 20, 15, 15, 10])[0]
    new = list(current)
    if move == "right" and failed:
        if world.replaces and rng.random() < world.replaces:
            new.clear()
        hint = rng.choice(FAMILIES[rng.choice(failed)].hints)
        new = [old for old in new if old != hint] + [hint]
    elif move == "useless" and useless:
        new.append(rng.choice(useless))
    elif move == "other" and absent:
        new.append(rng.choice(absent))
    elif move == "drop" and new:
        new.pop(rng.randrange(len(new)))
    return new
