"""How often is each rule kept without being told, and how often when told? The numbers by which rules are chosen.

    python real/measure.py --samples 12                       # every rule, on the shipped training questions
    python real/measure.py --rules spanish german --temperature 1.0

The bare responses are sampled once and judged by every rule. A rule that the bare model keeps now and then is one that
GRPO finds by itself; one that it does not keep when told either is one that no template unlocks.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import gepa_loop  # noqa: E402
import grpo  # noqa: E402
from real import rules as all_rules  # noqa: E402
from support.data import load_questions  # noqa: E402

TOLD = {
    "spanish": "Answer in Spanish.",
    "french": "Answer in French.",
    "german": "Answer in German.",
    "italian": "Answer in Italian.",
    "short": "Answer in at most five words.",
    "listed": "Answer with a numbered list.",
    "starred": "Write the most important words in bold, like **this**.",
    "asking": "End with a question to the user.",
    "exclaiming": "Be enthusiastic and use exclamation marks!",
}


def measure(
    rules: tuple[str, ...] = tuple(TOLD),
    samples: int = 6,
    told_samples: int = 1,
    questions: int = 0,
    temperature: float = 0.7,
    response_tokens: int = 32,
    model: str = str(ROOT / "real" / "model"),
    data: str = str(ROOT / "real" / "train.jsonl"),
    out: str = "",
    threads: int = 1,
) -> None:
    """Print a table, and write it as JSON if `out` names a file.

    Args:
        rules: Names of real/rules.py.
        samples: Bare responses to each question.
        told_samples: Responses to each question under the template that tells the rule.
        questions: The first that many of the file; 0 is all of them.
    """
    cfg = grpo.PolicyConfig(
        model=model, temperature=temperature, max_response_tokens=response_tokens, threads=threads, sample_batch=160
    )
    policy, asked = grpo.load_policy(cfg), load_questions(data)
    asked = asked[: questions or None]

    def rates(template: str, count: int, names: tuple[str, ...]) -> dict[str, tuple[int, int]]:
        pairs = [question for question in asked for _ in range(count)]
        drawn = grpo.respond(policy, [gepa_loop.apply_template(template, q.text) for q in pairs], seed=0)
        verdicts = {
            name: [all_rules.RULES[name](s.text, q)[0] for s, q in zip(drawn, pairs, strict=True)] for name in names
        }
        return {name: (int(sum(rewards)), len(rewards)) for name, rewards in verdicts.items()}

    started, found = time.time(), {"temperature": temperature, "response_tokens": response_tokens}
    bare = rates("", samples, rules)
    print(f"{'rule':12} {'bare':>16} {'told':>16}   ({time.time() - started:.0f} s for the bare responses)")
    for name in rules:
        kept, told = bare[name], rates(TOLD[name], told_samples, (name,))[name]
        found[name] = {"bare": kept, "told": told, "template": TOLD[name]}
        print(f"{name:12} {share(*kept):>16} {share(*told):>16}", flush=True)
    if out:
        Path(out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def share(kept: int, count: int) -> str:
    return f"{kept / count:.1%} of {count}"


if __name__ == "__main__":
    tyro.cli(measure)
