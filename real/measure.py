"""The numbers of docs/real.md that are no training run: how rules and prompt were chosen, and what runs have shown.

    python real/measure.py rules                        how often is each rule kept, untold and told?
    python real/measure.py reflections                  how often does a reflection name the rule?
    python real/measure.py reflections --prompt ""      the same with the prompt that large models get
    python real/measure.py mask runs/real/p2o           which tokens of a run's transcripts would the ratio mask cut?
    python real/measure.py line                         who wins at which bare rate? The picture of real-line.toml

A rule that the bare model keeps now and then is one that GRPO finds by itself; one that it does not keep when told
either is one that no template unlocks. All bare responses are sampled once and judged by every rule.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "lab" / "results"
sys.path.insert(0, str(ROOT))

import gepa_loop  # noqa: E402
import grpo  # noqa: E402
from real import rules as known  # noqa: E402
from support.data import load_questions  # noqa: E402
from support.errors import UserError, exit_code_of  # noqa: E402
from support.reflection import parse_reflection, read_wording  # noqa: E402
from tools import compare, report, study  # noqa: E402


def rules(
    names: tuple[str, ...] = tuple(known.TOLD),
    samples: int = 6,
    told_samples: int = 1,
    questions: int = 0,
    temperature: float = 0.5,
    response_tokens: int = 24,
    model: str = str(ROOT / "real" / "model"),
    data: str = str(ROOT / "real" / "train.jsonl"),
    threads: int = 1,
) -> None:
    """Print a table: each rule, the share of bare responses that keep it, and of those that were told to.

    Args:
        names: Which rules of real/rules.py.
        samples: Bare responses to each question.
        told_samples: Responses to each question under the template that tells the rule.
        questions: The first that many of the file; 0 is all of them.
    """
    cfg = grpo.PolicyConfig(
        model=model, temperature=temperature, max_response_tokens=response_tokens, threads=threads, sample_batch=160
    )
    policy, asked = grpo.load_policy(cfg), load_questions(data)
    asked = asked[: questions or None]

    started = time.time()
    bare = kept_by(policy, asked, "", samples, names)
    print(f"{'rule':12} {'bare':>16} {'told':>16}   ({time.time() - started:.0f} s for the bare responses)")
    for name in names:
        kept, told = bare[name], kept_by(policy, asked, known.TOLD[name], told_samples, (name,))[name]
        print(f"{name:12} {share(*kept):>16} {share(*told):>16}", flush=True)


def kept_by(policy, asked: list, template: str, samples: int, names: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """{rule: (responses that keep it, all responses)}, `samples` to each question under the template."""
    pairs = [question for question in asked for _ in range(samples)]
    drawn = grpo.respond(policy, [gepa_loop.apply_template(template, q.text) for q in pairs], seed=0)
    verdicts = {name: [known.RULES[name](s.text, q)[0] for s, q in zip(drawn, pairs, strict=True)] for name in names}
    return {name: (int(sum(rewards)), len(rewards)) for name, rewards in verdicts.items()}


def share(kept: int, count: int) -> str:
    return f"{kept / count:.1%} of {count}"


def reflections(
    prompt: str = str(ROOT / "real" / "reflection.txt"),
    replies: int = 12,
    shown: int = 1,
    temperature: float = 0.7,
    reflection_tokens: int = 32,
    quote: int = 16,
    model: str = str(ROOT / "real" / "model"),
    data: str = str(ROOT / "real" / "train.jsonl"),
    threads: int = 1,
) -> None:
    """Let the model reflect on its own greedy responses, and count the replies that name the language asked for.

    Args:
        prompt: A file for --reflection-prompt; empty for the prompt that p2o.py has by default.
        replies: To each of three prompts: one about questions of the first kind, one about the second, one about both.
        shown: Questions in a prompt, as --gepa-minibatch. The third prompt has one of either kind.
        quote: Tokens of each response that are shown, as --reflection-quote.
    """
    cfg = grpo.PolicyConfig(model=model, max_response_tokens=quote, max_prompt_tokens=1024, threads=threads)
    policy, asked = grpo.load_policy(cfg), load_questions(data)
    kinds = [[q for q in asked if q.reference == reference] for reference in dict.fromkeys(q.reference for q in asked)]
    wording = read_wording(prompt, gepa_loop.REFLECTION_PROMPT)
    responses = {
        q.id: s.text
        for kind in kinds
        for q, s in zip(kind[:2], grpo.respond(policy, [q.text for q in kind[:2]], seed=None), strict=True)
    }
    for about in (kinds[0][:shown], kinds[1][:shown], [kind[0] for kind in kinds]):
        records = [
            gepa_loop.reflection_record(q.text, responses[q.id], known.asked_for(responses[q.id], q)[1]) for q in about
        ]
        sent = gepa_loop.reflection_prompt("", records, wording)
        drawn = grpo.respond(
            policy, [sent] * replies, seed=0, temperature=temperature, max_new_tokens=reflection_tokens
        )
        usable = [z for s in drawn if not s.truncated and (z := parse_reflection(s.text))]
        wanted = {q.reference for q in about}
        naming = {name: sum(name in z.lower() for z in usable) for name in wanted}
        print(f"about {' and '.join(sorted(wanted))}: of {replies} replies {len(usable)} usable, naming {naming}")
        print("\n".join(f"    {z!r}" for z in usable[:4]), flush=True)


def mask(run: tyro.conf.Positional[Path], ratio_min: float = 0.01, ratio_max: float = 10.0, positions: int = 8) -> None:
    """Which tokens of the successful templated transcripts have a template ratio outside the mask's bounds, by place?

    The ratio is pi_old(y_t | x) / pi_old(y_t | T(x, z)), which transcripts.jsonl holds for some rollouts of a batch.

    Args:
        positions: So many first tokens get a line of their own, the others one together.
    """
    lines = report.read_run(run)["transcripts"]
    shown = [line for line in lines if line["template"] and line["reward"] and line.get("old_logprobs")]
    if not shown:
        raise UserError(f"{run}: no successful templated rollout with old log-probs")
    below, above, tokens, whole = Counter(), Counter(), Counter(), {}
    for line in shown:
        log_ratios = [b - s for b, s in zip(line["old_logprobs"], line["sampled_logprobs"], strict=True)]
        for t, log_ratio in enumerate(log_ratios):
            place = min(t, positions)
            tokens[place] += 1
            below[place] += log_ratio < math.log(ratio_min)
            above[place] += log_ratio > math.log(ratio_max)
        inside = math.log(ratio_min) <= min(log_ratios) and max(log_ratios) <= math.log(ratio_max)
        whole.setdefault(line["epoch"], []).append(inside)
    print(f"{len(shown)} successful templated transcripts of {run}")
    for epoch, kept in whole.items():
        print(f"epoch {epoch}: all tokens within the bounds in {share(sum(kept), len(kept))}")
    rarest = [math.exp(min(line["old_logprobs"])) for line in shown]
    print(f"the rarest token of each, without the template: median probability {statistics.median(rarest):.1g}")
    # The soft clip weighs a token below the lower bound by more than 1.
    weights = [weight for line in shown if isinstance(line["token_weight"], list) for weight in line["token_weight"]]
    heavy = [weight for weight in weights if weight > 1]
    if heavy:
        others = 1 - sum(heavy) / sum(weights)
        print(f"weight above 1: {share(len(heavy), len(weights))} tokens; the largest weight is {max(heavy):.2g}")
        print(f"all other tokens together have {others:.1g} of all weight")
    for place in sorted(tokens):
        name = f"token {place + 1}" if place < positions else "later"
        low, high = share(below[place], tokens[place]), share(above[place], tokens[place])
        print(f"{name:8} below {ratio_min}: {low}, above {ratio_max}: {high}")


def line(samples: int = 5) -> None:
    """Who wins at which bare rate? Each rule's bare rate, measured anew, beside what the study real-line.toml gave.

    Its variants are called "rule: method". Two numbers for each run: the sampled accuracy on held-out questions at the
    end, and its mean on the way to as many responses as all runs have spent, GEPA's included. Writes
    lab/results/real-line.png.

    Args:
        samples: Bare responses to each training question.
    """
    record = study.read_results(RESULTS)["real-line"]
    numbers = figures_of(record["results"])
    options = next(iter(record["options"].values()))
    sampling = {name: options[name] for name in ("model", "temperature", "max_response_tokens")}
    policy = grpo.load_policy(grpo.PolicyConfig(**sampling, threads=1, sample_batch=160))
    names = tuple(dict.fromkeys(rule for rule, _ in next(iter(numbers.values()))))
    bare = kept_by(policy, load_questions(options["train_data"]), "", samples, names)
    rates = {name: share(*bare[name]) for name in sorted(names, key=bare.get)}
    for what, values in numbers.items():
        print(what)
        for name, rate in rates.items():
            means = [f"{method} {statistics.fmean(values[name, method]):.2f}" for method in ("GRPO", "P2O")]
            print(f"    {name:12} bare {rate:>14}   {', '.join(means)}")
    draw_line(numbers, rates, RESULTS / "real-line.png")


def figures_of(results: dict[str, list[dict]]) -> dict[str, dict[tuple[str, str], list[float]]]:
    """{what the number says: {(rule, method): the number of each seed}}"""
    results = {variant: runs for variant, runs in results.items() if runs}
    curves = {
        tuple(variant.split(": ")): [compare.curve_of(run, "held-out, sampled") for run in runs]
        for variant, runs in results.items()
    }
    budget = compare.shared_budget(results)
    return {
        "at the end": {key: [curve[-1][1] for curve in of] for key, of in curves.items()},
        f"mean on the way to {budget:,} responses": {
            key: [compare.area(curve, budget) for curve in of] for key, of in curves.items()
        },
    }


def draw_line(numbers: dict, rates: dict[str, str], picture: Path) -> None:
    """A panel for each number; in it each rule has a place, by its bare rate: a dot a run, a line through the means."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axis, (what, values) in zip(figure.subplots(1, len(numbers), sharey=True), numbers.items(), strict=True):
        for method, colour, shift in (("GRPO", "#d95f02", -0.06), ("P2O", "#1b9e77", 0.06)):
            places = [place + shift for place in range(len(rates))]
            for place, rule in zip(places, rates, strict=True):
                axis.plot([place] * len(values[rule, method]), values[rule, method], "o", color=colour, alpha=0.35)
            means = [statistics.fmean(values[rule, method]) for rule in rates]
            axis.plot(places, means, "D-", color=colour, label=method.replace("P2O", "P²O"))
        axis.set_title(what, fontsize=10)
        axis.set(ylim=(-0.04, 1.04), xticks=range(len(rates)), xticklabels=[f"{r}\n{of}" for r, of in rates.items()])
        axis.grid(axis="y", alpha=0.25)
    figure.axes[0].legend()
    figure.supylabel("accuracy, held out, bare, sampled", fontsize=9)
    figure.supxlabel("rule, and how often the untrained model keeps it", fontsize=9)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    commands = {"rules": rules, "reflections": reflections, "mask": mask, "line": line}
    sys.exit(exit_code_of(tyro.extras.subcommand_cli_from_dict, commands, resumable=False))
