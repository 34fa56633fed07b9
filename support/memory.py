"""When the card's memory is used up: the same work again, in smaller pieces."""

from __future__ import annotations

import dataclasses
import functools
import os

import torch

from support.errors import UserError

# Segments that grow: without them the trainer's blocks of ever other sizes leave holes that nothing fits into. Read by
# torch when it first allocates on the card; vLLM's allocator looks for this very name, to switch them off for its pool.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def adamw(parameters: list[torch.nn.Parameter], rate: float) -> torch.optim.AdamW:
    """AdamW whose moments are there from the start: what does not fit shows before the first rollout is sampled."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    for p in parameters:
        moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        optimizer.state[p] = {"step": torch.tensor(0.0)} | moments
    return optimizer


def longest_sequence(cfg) -> int:
    """Tokens of a rollout, or of a reflection with the minibatch of prompts and responses that it quotes."""
    quoted = cfg.gepa_minibatch * (cfg.max_prompt_tokens + min(cfg.reflection_quote, cfg.max_response_tokens))
    reflection = cfg.max_prompt_tokens + quoted + cfg.reflection_tokens + 512  # its own words, and the feedback
    return max(cfg.max_prompt_tokens + cfg.max_response_tokens, reflection)


def halve_when_out_of_memory(size: str, smallest: int):
    """Decorator of functions of a policy: run again with half of `policy.cfg.<size>`, and say so."""

    def decorate(work):
        @functools.wraps(work)
        def tried(policy, *args, **kwargs):
            while True:
                try:
                    return work(policy, *args, **kwargs)
                except torch.OutOfMemoryError:
                    pass  # the retry stands outside, where the traceback no longer keeps the tensors alive
                half = getattr(policy.cfg, size) // 2
                if half < smallest:
                    raise UserError(
                        f"out of memory with {size} = {2 * half}: lower --max-response-tokens or --group-size, or add "
                        "--gradient-checkpointing or --load-in-4bit"
                    )
                print(f"out of memory: {size} goes down to {half}")
                policy.cfg = dataclasses.replace(policy.cfg, **{size: half})
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()

        return tried

    return decorate
