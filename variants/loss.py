r"""Surrogates of the literature: --loss NAME. Loss [B, T] of the tokens from log rho [B, T] and A [B, T].

Behind `*` stand options (`clip_low`, `clip_high`, `dual_clip`) and what is at hand: `logprobs`, `mask` [B, T].
"""

from __future__ import annotations

import torch

import grpo
from support.seams import needs

Tensor = torch.Tensor


def cispo(log_ratio: Tensor, advantages: Tensor, *, clip_high: float, logprobs: Tensor, **_) -> Tensor:
    r"""CISPO (arXiv:2506.13585, eq. 4 and 5). -sg(min(rho, 1 + eps_high)) A log pi.

    Against GRPO: the clipped ratio is a constant weight, so no token ever loses its gradient. (No lower bound, as in
    the paper's experiments; verl clips on both sides. TRL's epsilon_high is the bound itself: the 5.0 that it
    recommends is --clip-high 4 here.)

    >>> cispo(torch.tensor([[1.5]]).log(), torch.ones(1, 1), clip_high=0.2, logprobs=torch.tensor([[-2.0]]))
    tensor([[2.4000]])
    """
    return -advantages * log_ratio.exp().clamp(max=1 + clip_high).detach() * logprobs


@needs(aggregation="seq-mean-token-mean")
def gmpo(log_ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float, mask: Tensor, **_) -> Tensor:
    r"""GMPO (arXiv:2507.20673). -A (prod_t min-clip rho_t)^(1 / |y|), each clipped to [exp(-eps_low), exp(eps_high)].

    Against GRPO: the geometric mean of a response's tokens instead of the arithmetic one, so a single wild token moves
    little. The paper's clip is 0.4 both ways. A token that P2O's mask takes out stays in the mean.

    >>> rho = torch.tensor([[4.0, 1.0]])
    >>> gmpo(rho.log(), torch.ones(1, 2), clip_low=0.4, clip_high=0.4, mask=torch.ones(1, 2))  # -exp(0.4 / 2)
    tensor([[-1.2214, -1.2214]])
    """
    sign = advantages.sign()
    kept = sign * torch.min(sign * log_ratio, sign * log_ratio.clamp(-clip_low, clip_high))  # pessimistic
    return -advantages * ((kept * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)).exp()


def reinforce(log_ratio: Tensor, advantages: Tensor, *, logprobs: Tensor, **_) -> Tensor:
    r"""REINFORCE. -A log pi.

    Against GRPO: no ratio and no clip. That is exact for the first update on a batch. In the next ones the policy has
    moved, and nothing holds it near the one that sampled.

    >>> reinforce(torch.zeros(1, 1), torch.tensor([[0.5]]), logprobs=torch.tensor([[-2.0]]))
    tensor([[1.]])
    """
    return -advantages * logprobs


@needs(advantage="disco")
def disco(log_ratio: Tensor, advantages: Tensor, *, logprobs: Tensor, mask: Tensor, **_) -> Tensor:
    r"""DisCO (arXiv:2505.12366). -A log pi + sg(max(0, 1000 (KL - 1e-4))) KL, KL = mean of -log rho.

    Against GRPO: no clip, but a penalty on leaving the policy that sampled. (The KL is the micro-batch's. The authors'
    function estimates it by k3 unless told otherwise.)

    >>> disco(torch.tensor([[-0.0101]]), torch.ones(1, 1), logprobs=torch.tensor([[-2.0]]), mask=torch.ones(1, 1))
    tensor([[2.1010]])
    """
    kl = grpo.aggregate(-log_ratio, mask, "token-mean")
    return -advantages * logprobs + (1000 * (kl - 1e-4)).clamp(min=0).detach() * kl


@needs(keep="luffy")
def luffy(log_ratio: Tensor, advantages: Tensor, *, logprobs: Tensor, **clips) -> Tensor:
    r"""LUFFY (arXiv:2504.14945). -A pi / (pi + 0.1) on the demonstration's tokens, GRPO's on the policy's own.

    Against GRPO: a demonstration is not clipped, and its unlikely tokens get the largest gradient. Its old log-probs
    are 0, which makes its log rho equal log pi. (A recipe derived from the authors' clips neither.)

    >>> own, shown = torch.tensor([[0.0]]), torch.tensor([[0.1]]).log()
    >>> clips = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0}
    >>> luffy(shown, torch.ones(1, 1), logprobs=shown, **clips), luffy(own, torch.ones(1, 1), logprobs=shown, **clips)
    (tensor([[-0.5000]]), tensor([[-1.]]))
    """
    rho = log_ratio.exp()
    return torch.where(
        log_ratio == logprobs, -advantages * rho / (rho + 0.1), grpo.surrogate(log_ratio, advantages, **clips)
    )
