"""The numbers of tests/data/trl_losses.json: what TRL's own trainers say of one small batch.

    pip install trl==1.16.0 && python -m lab.trl_losses > tests/data/trl_losses.json

TRL computes its losses inside its trainers, so a trainer's method is called here on a stub that has the settings, and
gives the log-probs instead of a model. `cispo` caps the ratio itself in TRL, at 1.2; ours caps it at 1 + clip_high.
"""

from __future__ import annotations

import json
from collections import defaultdict
from unittest.mock import MagicMock

import torch
from trl.experimental.gmpo.gmpo_trainer import GMPOTrainer
from trl.rewards import get_soft_overlong_punishment
from trl.trainer.grpo_trainer import GRPOTrainer

CASES = {
    "grpo": (GRPOTrainer, {}),
    "dapo": (GRPOTrainer, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dr_grpo": (GRPOTrainer, {"loss_type": "dr_grpo"}),
    "gspo": (GRPOTrainer, {"importance_sampling_level": "sequence", "epsilon_low": 0.02, "epsilon_high": 0.02}),
    "cispo": (GRPOTrainer, {"loss_type": "cispo", "epsilon_high": 1.2}),
    "gmpo": (GMPOTrainer, {"epsilon_low": 0.4, "epsilon_high": 0.4}),
}
SETTINGS = {
    "loss_type": "grpo", "importance_sampling_level": "token", "epsilon_low": 0.2, "epsilon_high": 0.2, "beta": 0.0,
    "max_completion_length": 10, "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "use_vllm": False,
    "aux_loss_enabled": False, "entropy_coef": 0.0, "use_adaptive_entropy": False,
    "current_gradient_accumulation_steps": 1,
}  # fmt: skip
ADVANTAGES = [1.5, -0.5, -0.5, -0.5]
LENGTHS = [5, 3, 4, 1]


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(log-probs, old log-probs, mask), [4, 5] each, rounded so that they can be written down."""
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(4, 5, generator=generator) * 2 - 0.05
    new = (old + torch.randn(4, 5, generator=generator) * 0.8).clamp(max=-0.01)
    mask = torch.tensor([[float(t < length) for t in range(5)] for length in LENGTHS])
    return new.mul(1e4).round() / 1e4 * mask, old.mul(1e4).round() / 1e4 * mask, mask


def loss_of(trainer, settings: dict) -> dict:
    new, old, mask = batch()
    new.requires_grad_(True)
    stub = MagicMock(**(SETTINGS | settings))
    stub._get_per_token_logps_and_entropies = lambda *_, **__: (new, torch.zeros(4, 5), None)
    stub._metrics = defaultdict(lambda: defaultdict(list))
    stub.args.delta, stub.args.steps_per_generation, stub.args.entropy_target = None, 1, 0.0
    stub.accelerator.num_processes = 1
    stub.accelerator.gather = stub.accelerator.gather_for_metrics = lambda x: x
    stub.accelerator.reduce = lambda x, reduction: x
    ids = {"prompt_ids": torch.zeros(4, 1).long(), "completion_ids": torch.zeros(4, 5).long()}
    masks = {"prompt_mask": torch.ones(4, 1).long(), "completion_mask": mask, "num_items_in_batch": mask.sum()}
    told = {"advantages": torch.tensor(ADVANTAGES), "old_per_token_logps": old}
    loss = trainer._compute_loss(stub, None, ids | masks | told)
    loss.backward()
    return {"loss": loss.item(), "gradient": [[round(x, 7) for x in row] for row in new.grad.tolist()]}


def main() -> None:
    new, old, mask = ([[round(x, 4) for x in row] for row in part.tolist()] for part in batch())
    lengths = [30, 32, 34, 37, 40]
    penalties = get_soft_overlong_punishment(40, 8)([[1] * n for n in lengths])
    known = {
        "made_with": "TRL 1.16.0, lab/trl_losses.py", "logprobs": new, "old_logprobs": old, "mask": mask,
        "advantages": ADVANTAGES, "overlong": {"lengths": lengths, "penalties": penalties},
        "cases": {name: loss_of(*case) for name, case in CASES.items()},
    }  # fmt: skip
    print(json.dumps(known))


if __name__ == "__main__":
    main()
