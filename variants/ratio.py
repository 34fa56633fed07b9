r"""Importance ratios of the literature: --ratio NAME. log rho [B, T] of the tokens from log-probs [B, T].

`logprobs` are the policy's, `old_logprobs` those of the policy that sampled, both of the bare question; behind `*`
`sampled_logprobs`, of the context that was sampled from.
"""

from __future__ import annotations

import torch

from support.seams import needs


@needs(aggregation="seq-mean-token-mean")
def gspo(logprobs: torch.Tensor, old_logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    r"""GSPO (arXiv:2507.18071, eq. 7). log s_i = mean_t log rho_it, for all tokens of y_i.

    Against GRPO: one ratio for the response, so it is clipped as a whole; the paper clips at 3e-4 and 4e-4
    (--clip-low, --clip-high). With a mean over tokens of the batch, long responses would count by their length.

    >>> gspo(torch.tensor([[-1.0, -3.0]]), torch.tensor([[-2.0, -2.0]]), torch.tensor([[1.0, 0.0]]))
    tensor([[1., 1.]])
    """
    mean = ((logprobs - old_logprobs) * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)  # [B, 1]
    return mean.clamp(-20, 20).expand_as(logprobs)


@needs(ratio_mask=False)
def sampler(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, mask: torch.Tensor, *, sampled_logprobs: torch.Tensor
) -> torch.Tensor:
    r"""The true importance ratio. rho_t = pi(y_t | x) / pi_old(y_t | T(x, z)), in place of P2O's mask.

    Against GRPO: a token is weighed by how likely the bare policy is to write it, and clipped; unbiased token by token,
    but the lesson (rho = 0.08 for a step that only the template takes) counts a thirteenth. The authors' code has it as
    a switch (`fix_importance_ratio`) that excludes the mask; its README's scripts set the mask.

    >>> bare, templated = torch.tensor([[0.07]]).log(), torch.tensor([[0.9]]).log()
    >>> sampler(bare, bare, torch.ones(1, 1), sampled_logprobs=templated).exp()
    tensor([[0.0778]])
    """
    return (logprobs - sampled_logprobs).clamp(-20, 20)
