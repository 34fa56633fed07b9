"""What a token subset saves: bytes that an update keeps for backward, all tokens against S-GRPO's and T-SPMO's.

    python lab/token_subset.py

On the tiny model, one templated batch of 16 questions times 6. The subset alone saves nothing: a pass computes every
token; `--keep trained_part` ends a response with its last trained token.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import grpo  # noqa: E402
import p2o  # noqa: E402
from support.data import load_questions  # noqa: E402
from tiny.problems import FAMILIES  # noqa: E402
from variants.keep import trained_part  # noqa: E402


def kept_bytes(policy: grpo.Policy, rollouts: list[grpo.Rollout], cfg: p2o.Config) -> int:
    """Of all tensors that the pass keeps for backward, weights apart; each storage once."""
    kept, weights = {}, {p.untyped_storage().data_ptr() for p in policy.model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = grpo.loss_of(policy, [r for r in rollouts if r.teaches], cfg, (len(rollouts), 1, 40))
    del loss
    return sum(kept.values())


def main() -> None:
    cfg = p2o.Config()
    policy, questions = grpo.load_policy(cfg), load_questions(cfg.train_data)[:16]
    hints = " ".join(family.hints[0] for family in FAMILIES.values())
    print("| | all tokens' passes | with --keep trained_part |\n| --- | --- | --- |")
    for name in ("", "s_grpo", "t_spmo"):
        chosen = dataclasses.replace(cfg, advantage=name)
        rollouts = p2o.sample_groups(policy, questions, {q.id: [hints] * 6 for q in questions}, chosen, 0)
        whole = kept_bytes(policy, rollouts, chosen)
        part = kept_bytes(policy, trained_part(copy.deepcopy(rollouts)), chosen)
        print(f"| {name or 'GRPO'} | {whole / 2**20:.1f} MiB | {part / 2**20:.1f} MiB |")


if __name__ == "__main__":
    main()
