import torch

from grpo import group_advantages


def price_on_length(group):
    """Every token costs 0.01."""
    rewards = torch.tensor([r.reward - 0.01 * len(r.response_ids) for r in group])
    return group_advantages(rewards, len(group)).tolist()
