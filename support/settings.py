"""What all groups of options have in common, and the presets. Each group stands beside the code that it steers."""

from __future__ import annotations

import math

from support.errors import UserError


def require(holds: bool, complaint: str) -> None:
    """Refuse options that make no sense: UserError with the complaint, which names the option and what it may be."""
    if not holds:
        raise UserError(complaint)


def at_least(least: int, settings: Settings, *options: str) -> None:
    """Refuse each of these options that is below `least`."""
    for name in options:
        value = getattr(settings, name)
        require(least <= value < math.inf, f"--{name.replace('_', '-')} {value}: at least {least}")


class Settings:
    """Base of the frozen dataclasses of options.

    p2o.Config inherits from every group, so one object is handed on whole wherever one of them is asked for. A group
    states its rules in `__post_init__`, and calls `super().__post_init__()`, which reaches the next group. So a Config
    that breaks a rule is never made.
    """

    def __post_init__(self) -> None:
        """The end of the chain. Every comparison with NaN is false, so no rule would see one. A number beyond 32 bits
        is a slip: no run samples as much, and torch would fail on it in mid-run."""
        for name, value in vars(self).items():
            option = f"--{name.replace('_', '-')} {value}"
            require(not isinstance(value, float) or not math.isnan(value), f"{option}: not a number")
            require(not isinstance(value, int) or value < 2**32, f"{option}: at most {2**32 - 1}")


# ---------------------------------------------------------------------------------------------------------- presets

# What the presets for real models set differently from the tiny one: p2o.PRESETS is made of these. They are the
# authors' settings, reduced where one GPU requires it: their 8 GPUs train all weights at rate 1e-6 with 12,288-token
# responses. Memory and hours: `python p2o.py fit --preset NAME`.
_QWEN3 = {
    "train_data": "deepmath",
    # 14 to 37 hours on a 24 GB card (RTX 4090, L4), by estimate. The authors' 5,000 questions and 10 epochs are the
    # preset -paper.
    "train_questions": 1000,
    "epochs": 2,
    "eval_data": ("aime24", "amc23", "math500"),
    "question_suffix": "Reason step by step, and put your final answer within \\boxed{}.",
    "threads": 0,
    "questions_per_batch": 128,
    "questions_per_update": 64,
    "temperature": 0.6,
    "max_prompt_tokens": 1024,
    "max_response_tokens": 4096,
    "learning_rate": 1.5e-5,  # an adapter wants 10 to 20 times the rate of full fine-tuning
    "lora_rank": 32,
    "lora_alpha": 64,
    "gradient_checkpointing": True,
    "engine": "vllm",
    "sample_batch": 48,  # about what the KV cache has room for; more would be started, and thrown out again
    "importance_cap": 2.0,  # vLLM's log-probs are not the trainer's to the last digit
    "hard_set_min": 100,
    "gepa_dev_size": 100,
    "gepa_parents": 8,
    "gepa_budget": "light",
    "reflection_tokens": 2048,
}

# NF4 to train on; vLLM serves the same weights dequantized, 8 GB that sleep in the host's memory during training.
_4B = _QWEN3 | {"model": "Qwen/Qwen3-4B", "load_in_4bit": True, "micro_batch_tokens": 10240, "vllm_memory": 0.65}
_BENCHMARKS = ("aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench")

QWEN3 = {
    "qwen3-4b-24gb": _4B,
    "qwen3-4b-24gb-paper": _4B | {"train_questions": 0, "epochs": 10, "eval_data": _BENCHMARKS},
    # Small enough to train in bf16.
    "qwen3-1.7b-16gb": _QWEN3 | {"model": "Qwen/Qwen3-1.7B", "micro_batch_tokens": 10240, "vllm_memory": 0.55},
    "qwen3-0.6b-8gb": _QWEN3 | {"model": "Qwen/Qwen3-0.6B", "micro_batch_tokens": 5120, "vllm_memory": 0.5},
}
