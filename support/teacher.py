"""A reflection model behind an OpenAI-compatible endpoint: the one thing of this repository that may cost money."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def teacher(
    cfg, max_tokens: int, temperature: float, timeout: float = 120.0, retries: int = 5
) -> Callable[..., list[str]]:
    """Prompts in, replies out, several at once. The endpoint's key is written nowhere. cfg: gepa_loop.EvolutionConfig.

    Rate limits, server errors and time-outs are tried again `retries` times with growing pauses (by the client). An
    endpoint that stays down, or a limit that is used up, raises, and the search ends with that reason.
    """
    from openai import OpenAI

    key = os.environ.get("OPENAI_API_KEY") or "none"
    client = OpenAI(base_url=cfg.teacher_url, api_key=key, timeout=timeout, max_retries=retries)
    calls = tokens = 0

    def ask(prompt: str) -> str:
        nonlocal calls, tokens
        if calls >= cfg.teacher_max_calls or tokens >= cfg.teacher_max_tokens:
            raise RuntimeError(f"the teacher's limit is used up ({calls} calls, {tokens} tokens)")
        calls += 1
        try:
            reply = client.chat.completions.create(
                model=cfg.teacher_model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=max_tokens,
                temperature=temperature,
            )
            choice = reply.choices[0]
            text = (choice.message.content or "").encode("utf-8", "replace").decode()  # no half characters
        except Exception as error:  # refused, silent for too long, or no completion at all
            told = f"{cfg.teacher_url}: {type(error).__name__}: {error}".replace(key, "***")
            raise ConnectionError(told) from None
        tokens += reply.usage.total_tokens if reply.usage else 0
        return "" if choice.finish_reason == "length" else text

    def batch(prompts: list[str], call_number: int = 0) -> list[str]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(ask, prompts))

    return batch
