"""Evaluation as people expect it: greedy accuracy, pass@k and majority@k, with confidence intervals."""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import random
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro

import grpo
import verify
from gepa_loop import apply_template
from support.data import Question, labelled, load_questions, that_fit
from support.errors import UserError
from support.seams import as_option
from tools.cli import given
from tools.report import read_json

# The settings of a run that decide what is measured. The others decide how fast.
TRAINED_AS = ("model", "system_prompt", "enable_thinking", "question_suffix", "reward", "temperature",
              "max_prompt_tokens", "max_response_tokens", "load_in_4bit", "dtype")  # fmt: skip
MOST_SAMPLES = 10_000  # of a question


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, from n samples of which `correct` were.

    1 - C(n - c, k) / C(n, k); Chen et al., 2021 (Evaluating Large Language Models Trained on Code), equation 1.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def majority(answers: list[str | None], same: Callable[[str, str], bool]) -> str | None:
    """The answer that most samples gave, the earliest on ties; None if no sample gave one.

    >>> majority(["1/2", "3", "0.5", None], lambda a, b: {a, b} == {"1/2", "0.5"} or a == b)
    '1/2'
    """
    classes: list[list[str]] = []
    for answer in answers:
        if answer is not None:
            found = next((members for members in classes if same(members[0], answer)), None)
            if found is None:
                classes.append([answer])
            else:
                found.append(answer)
    return max(classes, key=len)[0] if classes else None


def bootstrap_interval(values: list[float], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean by resampling questions.

    >>> bootstrap_interval([1.0, 1.0])
    (1.0, 1.0)
    """
    rng, draws = random.Random(seed), 2000
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws) - 1]


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """95 % interval of a share; unlike the bootstrap it does not shrink to a point at 0 and 1 (Wilson, 1927).

    >>> tuple(round(x, 3) for x in wilson_interval(0, 100))
    (0.0, 0.037)
    """
    z = 1.96
    centre, spread = successes + z * z / 2, z * math.sqrt(successes * (n - successes) / n + z * z / 4)
    return max(0.0, (centre - spread) / (n + z * z)), min(1.0, (centre + spread) / (n + z * z))


def interval(values: list[float], seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean over questions: Wilson's for values from 0 to 1, the bootstrap for other rewards.

    A question's pass@k is no yes or no. But numbers from 0 to 1 vary at most as much as yes and no of the same mean, so
    Wilson's interval is wide enough for them, and it is right where no sample of any question succeeded.

    >>> tuple(round(x, 3) for x in interval([0.0] * 100)), tuple(round(x, 3) for x in interval([0.125] + [0.0] * 99))
    ((0.0, 0.037), (0.0, 0.039))
    """
    if all(0 <= value <= 1 for value in values):
        return wilson_interval(sum(values), len(values))
    return bootstrap_interval(values, seed)


def evaluate(
    model: str,
    data: tuple[str, ...],
    adapter: str = "",
    template: str = "",
    system_prompt: str = "",
    enable_thinking: bool = False,
    question_suffix: str = "",
    reward: str = "",
    samples: int = 8,
    temperature: float = 1.0,
    max_prompt_tokens: int = 1024,
    max_response_tokens: int = 1024,
    load_in_4bit: bool = False,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    engine: Literal["hf", "vllm"] = "hf",
    vllm_memory: float = 0.6,
    sample_batch: int = 256,
    seed: int = 0,
    threads: int = 1,
    out: str = "",
) -> None:
    """Greedy accuracy, pass@k and majority@k of a model on files of questions, each with its 95 % interval.

    With the adapter of a run's folder, the model and all that decides what is measured is as in training, unless given.

    Args:
        model: Model folder, or hub id.
        data: Files with `question` and `answer` in each row (JSONL, CSV, parquet), or names: aime24, math500, ...
        adapter: A trained adapter's folder, for instance runs/NAME/adapter.
        template: Put before every question, to see what a prompt unlocks; empty is the bare prompt.
        system_prompt: System message of every prompt.
        enable_thinking: Let the model think before it answers, if its chat template knows this switch.
        question_suffix: Put behind every question, after an empty line.
        reward: Function that scores instead of the verifier, as in training. Then `greedy` is its mean, a response is
            right with a reward of 1 or more, and there is no majority.
        samples: Responses per question, for pass@k (k = 1, 2, 4, ... up to this) and majority@k (from k = 4 on). 0
            leaves both out.
        temperature: Of those samples.
        max_prompt_tokens: Longer questions are left out, with a line.
        max_response_tokens: Longer responses are cut off, and counted.
        load_in_4bit: NF4 with double quantization.
        dtype: Number format of the layers, as in training.
        engine: Who samples: transformers, or vLLM, which takes minutes where transformers takes hours.
        vllm_memory: Share of the card for vLLM.
        sample_batch: Responses sampled at once.
        seed: Of sampling.
        threads: CPU threads of torch; 0 leaves it to torch.
        out: Also write the results there, as JSON.
    """
    # Before the model: what is bad shows at once.
    check_out(out, data)
    if not data:
        raise UserError("--data: name at least one file")
    unparseable = None if reward else verify.unparseable  # a reward of the user's own may not look at answers
    files = {
        name: load_questions(path, question_suffix, unparseable, empty_answers=bool(reward))
        for name, path in labelled(data).items()
    }
    for questions in files.values():
        verify.judge_of(reward)(["\\boxed{0}"], questions[:1], [False])
    if not 0 <= samples <= MOST_SAMPLES:
        raise UserError(
            f"--samples {samples}: from 0 to {MOST_SAMPLES} for each question; all are held in memory to be counted"
        )
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: from 0 to 4294967295 (2^32 - 1)")
    cfg = grpo.PolicyConfig(
        model=model, system_prompt=system_prompt, enable_thinking=enable_thinking, temperature=temperature,
        max_prompt_tokens=max_prompt_tokens, max_response_tokens=max_response_tokens, load_in_4bit=load_in_4bit,
        dtype=dtype, engine=engine, vllm_memory=vllm_memory, sample_batch=sample_batch, threads=threads,
    )  # fmt: skip
    policy = grpo.load_policy(cfg, adapter=adapter or None)

    def prompt(question: Question) -> list[int]:
        return grpo.chat_ids(policy, apply_template(template, question.text))

    # All files, before the first is measured: one without a question that fits shows at once.
    files = {
        name: that_fit(name, questions, lambda question: len(prompt(question)), max_prompt_tokens)
        for name, questions in files.items()
    }
    settings = {name: getattr(cfg, name) for name in TRAINED_AS if hasattr(cfg, name)}
    settings |= {"adapter": adapter, "template": template, "question_suffix": question_suffix, "reward": reward}
    settings |= {"samples": samples, "seed": seed}
    results, width = [], max(12, *[len(name) + 2 for name in files])
    print(f"{'data':<{width}}{'metric':<12}{'value':>7}   {'95 % interval':<16}{'questions':>9}{'cut off':>9}")
    for name, questions in files.items():  # each file's numbers as soon as they are there: the next may take hours
        contexts = [prompt(question) for question in questions]
        rows = [{"data": name} | row for row in measure(policy, contexts, questions, samples, seed, reward)]
        print_rows(rows, width)
        results += rows
        if out:
            record = json.dumps({"settings": settings, "results": results}, indent=1)
            Path(out).write_text(record + "\n", encoding="utf-8")


def check_out(out: str, data: tuple[str, ...]) -> None:
    """Refuse a file that cannot be written, before hours of sampling for it; and the questions themselves."""
    if not out:
        return
    if Path(out).resolve() in [Path(path).resolve() for path in data]:
        raise UserError(f"--out {out}: one of the files of --data, which it would write over; name another file")
    folder = Path(out).absolute().parent
    if not folder.is_dir():
        raise UserError(f"--out {out}: there is no folder {folder}; make it first")
    if Path(out).is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"--out {out}: cannot be written; name a file in a folder of yours")


def measure(
    policy: grpo.Policy, contexts: list[list[int]], questions: list[Question], samples: int, seed: int, reward: str = ""
) -> list[dict]:
    """Rows {metric, value, low, high, questions, truncated} for one file's questions."""
    n = len(contexts)

    def row(metric: str, values: list[float], drawn: list[grpo.Sample]) -> dict:
        low, high = interval(values, seed)
        truncated = sum(s.truncated for s in drawn) / len(drawn)
        return {
            "metric": metric,
            "value": sum(values) / n,
            "low": low,
            "high": high,
            "questions": n,
            "truncated": truncated,
        }

    def rewards(drawn: list[grpo.Sample], asked: list[Question]) -> list[float]:
        verdicts = verify.judge_of(reward)([s.text for s in drawn], asked, [s.truncated for s in drawn])
        return [verdict.reward for verdict in verdicts]

    greedy = grpo.sample(policy, contexts, seed=None)
    rows = [row("greedy", rewards(greedy, questions), greedy)]
    if not samples:
        return rows
    drawn = grpo.sample(policy, [context for context in contexts for _ in range(samples)], seed=seed)
    right = [value >= 1 for value in rewards(drawn, [question for question in questions for _ in range(samples)])]
    counts = [sum(right[i : i + samples]) for i in range(0, len(right), samples)]
    ks = [2**i for i in range(samples.bit_length()) if 2**i <= samples]
    rows += [row(f"pass@{k}", [pass_at_k(samples, count, k) for count in counts], drawn) for k in ks]
    if reward:
        return rows  # nobody knows which part of a response is its answer
    answers = [verify.extract_boxed(sample.text) for sample in drawn]
    for k in ks[2:]:  # a majority of one or two is one sample
        voted = [majority(answers[i : i + k], verify.equivalent) for i in range(0, len(answers), samples)]
        said = ["" if vote is None else f"\\boxed{{{vote}}}" for vote in voted]
        verdicts = verify.judge(said, questions, [False] * n)
        rows.append(row(f"majority@{k}", [verdict.reward for verdict in verdicts], drawn))
    return rows


def print_rows(rows: list[dict], width: int) -> None:
    for r in rows:
        span, name = f"{r['low']:.3f} - {r['high']:.3f}", f"{r['data']:<{width}}{r['metric']:<12}"
        print(f"{name}{r['value']:>7.3f}   {span:<16}{r['questions']:>9}{r['truncated']:>9.1%}", flush=True)


def trained_as(adapter: str) -> dict[str, object]:
    """What decides what is measured, as it was in the run in whose folder the adapter lies; {} if it lies in none."""
    for folder in [Path(adapter), *Path(adapter).absolute().parents[:3]]:  # runs/NAME/checkpoints/000007/adapter
        config = read_json(folder / "config.json") if adapter and (folder / "config.json").is_file() else {}
        if "method" in config:  # a model's folder has a config.json, too
            usual = {name: p.default for name, p in inspect.signature(evaluate).parameters.items()}
            found = {name: config[name] for name in TRAINED_AS if config.get(name, usual[name]) != usual[name]}
            said = " ".join(as_option(k, shlex.quote(v) if isinstance(v, str) else v) for k, v in found.items())
            print(f"as {folder} was trained, unless given otherwise: {said}")
            return found
    return {}


def main(argv: list[str]) -> None:
    as_trained = functools.partial(evaluate, **trained_as(given(argv, "adapter")))
    tyro.cli(as_trained, args=argv, prog="p2o.py eval")
