"""When the card's memory is used up: the same work again, in smaller pieces."""

from __future__ import annotations

import dataclasses
import functools

import torch

from support.errors import UserError


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
