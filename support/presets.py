"""What the presets for real models set differently from the tiny one: p2o.PRESETS is made of these.

The authors' settings where one card allows (design in the README's table): their 8 GPUs train all weights at 1e-6 with
12,288-token responses. Memory: `python p2o.py fit --preset NAME`.
"""

_QWEN3 = {
    "train_data": "deepmath",
    "eval_data": ("aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench"),
    "question_suffix": "Reason step by step, and put your final answer within \\boxed{}.",
    "threads": 0,
    "epochs": 10,
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
    "sample_batch": 128,
    "hard_set_min": 100,
    "gepa_dev_size": 100,
    "gepa_parents": 8,
    "gepa_budget": "light",
    "reflection_tokens": 2048,
}

QWEN3 = {
    # NF4 to train on; vLLM serves the same weights dequantized, 8 GB that sleep in the host's memory during training.
    "qwen3-4b-24gb": _QWEN3
    | {"model": "Qwen/Qwen3-4B", "load_in_4bit": True, "micro_batch_tokens": 10240, "vllm_memory": 0.7},
    # Small enough to train in bf16.
    "qwen3-1.7b-16gb": _QWEN3 | {"model": "Qwen/Qwen3-1.7B", "micro_batch_tokens": 10240, "vllm_memory": 0.6},
    "qwen3-0.6b-8gb": _QWEN3 | {"model": "Qwen/Qwen3-0.6B", "micro_batch_tokens": 5120, "vllm_memory": 0.6},
}
