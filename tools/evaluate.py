"""Evaluation as people expect it: greedy accuracy, pass@k and majority@k, with confidence intervals."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro

import grpo
import verify
from gepa_loop import apply_template
from support.data import Question, labelled, load_questions
from support.errors import UserError


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


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a share; unlike the bootstrap it does not shrink to a point at 0 and 1 (Wilson, 1927).

    >>> tuple(round(x, 3) for x in wilson_interval(0, 100))
    (0.0, 0.037)
    """
    z = 1.96
    centre, spread = successes + z * z / 2, z * math.sqrt(successes * (n - successes) / n + z * z / 4)
    return max(0.0, (centre - spread) / (n + z * z)), min(1.0, (centre + spread) / (n + z * z))


def evaluate(
    model: str,
    data: tuple[str, ...],
    adapter: str = "",
    template: str = "",
    question_suffix: str = "",
    samples: int = 8,
    temperature: float = 1.0,
    max_prompt_tokens: int = 1024,
    max_response_tokens: int = 1024,
    load_in_4bit: bool = False,
    engine: Literal["hf", "vllm"] = "hf",
    vllm_memory: float = 0.6,
    sample_batch: int = 256,
    seed: int = 0,
    threads: int = 1,
    out: str = "",
) -> None:
    """Greedy accuracy, pass@k and majority@k of a model on problem files, each with its 95 % interval.

    Args:
        model: Model folder, or hub id.
        data: Files with `question` and `answer` in each row (JSONL, parquet), or names: aime24, math500, ...
        adapter: A trained adapter's folder, for instance runs/NAME/adapter.
        template: Put before every question, to see what a prompt unlocks; empty is the bare prompt.
        question_suffix: Put behind every question, after an empty line.
        samples: Responses per question for pass@k and majority@k, k = 1, 2, 4, ... up to this; 0 leaves them out.
        temperature: Of those samples.
        max_prompt_tokens: Longer questions are left out, with a line.
        max_response_tokens: Longer responses are cut off, and counted.
        load_in_4bit: NF4 with double quantization.
        engine: Who samples: transformers, or vLLM, which takes minutes where transformers takes hours.
        vllm_memory: Share of the card for vLLM.
        sample_batch: Responses sampled at once.
        seed: Of sampling and of the bootstrap.
        threads: CPU threads of torch; 0 leaves it to torch.
        out: Also write the results there, as JSON.
    """
    # Before the model: what is bad shows at once.
    check_out(out)
    files = {name: load_questions(path, question_suffix, verify.unparseable) for name, path in labelled(data).items()}
    if samples < 0:
        raise UserError(f"--samples {samples}: at least 0")
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: from 0 to 4294967295 (2^32 - 1)")
    cfg = grpo.PolicyConfig(
        model=model, temperature=temperature, max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=max_response_tokens, load_in_4bit=load_in_4bit, engine=engine, vllm_memory=vllm_memory,
        sample_batch=sample_batch, threads=threads,
    )  # fmt: skip
    policy = grpo.load_policy(cfg, adapter=adapter or None)
    results = []
    for name, questions in files.items():
        contexts = [grpo.chat_ids(policy, apply_template(template, question.text)) for question in questions]
        kept = [i for i, context in enumerate(contexts) if len(context) <= max_prompt_tokens]
        if len(kept) < len(contexts):
            print(f"{name}: {len(contexts) - len(kept)} questions are longer than {max_prompt_tokens} tokens: left out")
        if not kept:
            raise UserError(f"{name}: no question fits into --max-prompt-tokens {max_prompt_tokens}")
        contexts, questions = [contexts[i] for i in kept], [questions[i] for i in kept]
        results += [{"data": name} | row for row in measure(policy, contexts, questions, samples, seed)]
    print_table(results)
    if out:
        settings = {"model": model, "adapter": adapter, "template": template, "question_suffix": question_suffix}
        settings |= {"samples": samples, "temperature": temperature, "max_prompt_tokens": max_prompt_tokens}
        settings |= {"max_response_tokens": max_response_tokens, "load_in_4bit": load_in_4bit, "seed": seed}
        Path(out).write_text(json.dumps({"settings": settings, "results": results}, indent=1) + "\n", encoding="utf-8")


def check_out(out: str) -> None:
    """Refuse a file that cannot be written, before hours of sampling for it."""
    folder = Path(out or ".").absolute().parent
    if out and not folder.is_dir():
        raise UserError(f"--out {out}: there is no folder {folder}; make it first")
    if out and (Path(out).is_dir() or not os.access(folder, os.W_OK)):
        raise UserError(f"--out {out}: cannot be written; name a file in a folder of yours")


def graded(responses: list[str], questions: list[Question]) -> list[verify.Grade]:
    """The grades that training pays by: no copy of the question counts, and a question's own scorer decides."""
    grades = verify.grade_batch(responses, [q.reference for q in questions], [q.text for q in questions])
    return [verify.rescored(grade, question) for grade, question in zip(grades, questions, strict=True)]


def measure(
    policy: grpo.Policy, contexts: list[list[int]], questions: list[Question], samples: int, seed: int
) -> list[dict]:
    """Rows {metric, value, low, high, questions, truncated} for one file's questions."""
    n = len(contexts)

    def row(metric: str, values: list[float], interval: tuple[float, float], drawn: list[grpo.Sample]) -> dict:
        low, high = interval
        truncated = sum(s.truncated for s in drawn) / len(drawn)
        return {
            "metric": metric,
            "value": sum(values) / n,
            "low": low,
            "high": high,
            "questions": n,
            "truncated": truncated,
        }

    greedy = grpo.sample(policy, contexts, seed=None)
    right = [g.reward for g in graded([s.text for s in greedy], questions)]
    rows = [row("greedy", right, wilson_interval(int(sum(right)), n), greedy)]
    if not samples:
        return rows
    drawn = grpo.sample(policy, [context for context in contexts for _ in range(samples)], seed=seed)
    grades = graded([s.text for s in drawn], [question for question in questions for _ in range(samples)])
    groups = [grades[i : i + samples] for i in range(0, len(grades), samples)]
    ks = [2**i for i in range(samples.bit_length()) if 2**i <= samples]
    for k in ks:
        values = [pass_at_k(samples, int(sum(g.reward for g in group)), k) for group in groups]
        rows.append(row(f"pass@{k}", values, bootstrap_interval(values, seed), drawn))
    for k in ks[2:]:  # a majority of one or two is one sample
        voted = [majority([g.extracted for g in group[:k]], verify.equivalent) for group in groups]
        said = ["" if vote is None else f"\\boxed{{{vote}}}" for vote in voted]
        values = [grade.reward for grade in graded(said, questions)]
        rows.append(row(f"majority@{k}", values, wilson_interval(int(sum(values)), n), drawn))
    return rows


def print_table(rows: list[dict]) -> None:
    width = max(12, *[len(r["data"]) + 2 for r in rows])
    print(f"{'data':<{width}}{'metric':<12}{'value':>7}   {'95 % interval':<16}{'questions':>9}{'cut off':>9}")
    for r in rows:
        interval, name = f"{r['low']:.3f} - {r['high']:.3f}", f"{r['data']:<{width}}{r['metric']:<12}"
        print(f"{name}{r['value']:>7.3f}   {interval:<16}{r['questions']:>9}{r['truncated']:>9.1%}")


def main(argv: list[str]) -> None:
    tyro.cli(evaluate, args=argv, prog="p2o.py eval")
