"""What fits into the card's memory: an update in micro-batches, float16's loss scale, half as much where it ran out."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Iterator

import torch

from support.errors import UserError

# Segments of memory that grow: otherwise blocks of changing sizes leave holes that no later one fits into. torch reads
# this at its first allocation on the card. vLLM looks for this very name, to switch it off for its own pool.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
# vLLM sets these, too, so that cuBLAS splits no sum. But torch reads them once, at its first product of matrices, and
# the trainer's may come before vLLM.
if os.environ.get("VLLM_BATCH_INVARIANT") == "1":
    os.environ |= {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "CUBLASLT_WORKSPACE_SIZE": "1"}


def adamw(parameters: list[torch.nn.Parameter], rate: float) -> torch.optim.AdamW:
    """AdamW whose moments are there from the start: what does not fit shows before the first rollout is sampled."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    for p in parameters:
        moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        optimizer.state[p] = {"step": torch.tensor(0.0)} | moments
    return optimizer


class LossScale:
    """Multiply float16's loss before the backward pass, and divide the gradients after it.

    float16 knows no number below 6e-8. Gradients of a mean over thousands of tokens are smaller, and would become 0 in
    the layers. bfloat16 and float32 reach down to 1e-38, and need no scale. The optimizer keeps the scale, so that a
    checkpoint holds it. It is halved when a gradient overflows, and that update is left out. It never grows.
    """

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer):
        self.groups, self.scale, self.losses_are_finite = optimizer.param_groups, 1.0, True
        if any(p.dtype == torch.float16 for p in model.parameters()):
            self.scale = self.groups[0].setdefault("loss_scale", 2.0**16)

    def backward(self, loss: torch.Tensor) -> None:
        self.losses_are_finite &= math.isfinite(loss.item())
        (loss * self.scale).backward()

    def unscale(self) -> None:
        """Divide the gradients by the scale, before anything looks at their length; halve it if one overflowed."""
        gradients = [p.grad for group in self.groups for p in group["params"] if p.grad is not None]
        if self.scale == 1.0 or not gradients:
            return
        torch._foreach_div_(gradients, self.scale)
        # Where the loss itself is no number, an activation overflowed on the way forward, which no scale can help.
        if self.losses_are_finite and not all(gradient.isfinite().all() for gradient in gradients):
            self.groups[0]["loss_scale"] = self.scale / 2
            print(f"a gradient overflowed float16: the loss scale goes down to {self.scale / 2:g}")


def longest_sequence(cfg) -> int:
    """Tokens of a rollout; or, where the policy reflects, of a reflection with all that it quotes."""
    rollout = cfg.max_prompt_tokens + cfg.max_response_tokens
    if cfg.method == "grpo" or cfg.reflection == "teacher" or cfg.reflection_model:
        return rollout
    quoted = cfg.gepa_minibatch * (cfg.max_prompt_tokens + min(cfg.reflection_quote, cfg.max_response_tokens))
    words = 512  # of the prompt itself, and of the feedback
    if cfg.reflection_prompt:
        from support.reflection import read_wording  # here, for gepa may be missing where only a card is measured

        words += len(read_wording(cfg.reflection_prompt, "").encode())  # a token has at least a byte
    return max(rollout, cfg.max_prompt_tokens + quoted + cfg.reflection_tokens + words)


def padded(values: list[float | list[float]], lengths: list[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """One number for each response, or one for each of its tokens -> [B, T], zeros on the right.

    >>> padded([0.5, [2.0, 3.0]], [1, 2])
    tensor([[0.5000, 0.0000],
            [2.0000, 3.0000]])
    """
    rows = []
    for value, length in zip(values, lengths, strict=True):
        row = value if isinstance(value, list) else [value] * length
        if len(row) != length:  # zeros in the place of what is missing would leave the last tokens out of the loss
            raise ValueError(f"{len(row)} numbers for a response of {length} tokens")
        rows.append(row + [0.0] * (max(lengths) - len(row)))
    return torch.tensor(rows, device=device)


def micro_batches(lengths: list[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices of sequences in batches of at most `max_tokens` padded tokens, the longest first.

    Longest first, so that running out of memory shows at step 1. A sequence longer than `max_tokens` goes alone.

    >>> list(micro_batches([2, 5, 4, 1], max_tokens=10))
    [[1, 2], [0, 3]]
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batch[0]] if batch else 0  # to which all of the batch would be padded
        if batch and longest * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


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
                present = getattr(policy.cfg, size)
                half = present // 2
                if half < smallest:
                    cure = (
                        "lower --max-response-tokens or --group-size, or add --gradient-checkpointing or --load-in-4bit"
                    )
                    raise UserError(f"out of memory with {size} = {present}: {cure}")
                print(f"out of memory: {size} goes down to {half}")
                policy.cfg = dataclasses.replace(policy.cfg, **{size: half})
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()

        return tried

    return decorate
