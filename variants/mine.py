"""Which groups are hard, and go to the next prompt evolution: --mine NAME. A group of rollouts in, yes or no out."""

from __future__ import annotations

import grpo
from support.seams import needs


@needs(leave_one_bare=True)
def bare(group: list[grpo.Rollout]) -> bool:
    """P2O's own. Hard is what the bare rollout of the group failed, whatever the templated ones did.

    Against GRPO: a question that only a template solves stays in the hard set until the bare policy solves it, too.

    >>> group = rewarded(1, 1, 0)
    >>> group[0].template = group[1].template = "Think."
    >>> bare(group), bare(group[:2]), bare(rewarded(1, 0))
    (True, False, False)
    """
    return not any(r.reward > 0 for r in [r for r in group if not r.template] or group)
