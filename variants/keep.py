r"""Which rollouts of a question are trained: --keep NAME. A group with its advantages in, rollouts out.

A group of which nothing is left does not fill an update, so sampling goes on; what is kept may also be shorter than
what was sampled, or added to it. Behind `*` stand options, and what is at hand: `policy`, `questions` (of the batch).
"""

from __future__ import annotations

import torch

import grpo
from support.messages import encode_text
from support.seams import needs
from variants import given

Group = list[grpo.Rollout]


def strength(r: grpo.Rollout) -> float:
    """The largest |A| of a rollout's tokens."""
    return max(map(abs, r.advantage)) if isinstance(r.advantage, list) else abs(r.advantage)


def informative(group: Group) -> Group:
    r"""DAPO's dynamic sampling (arXiv:2503.14476). A group in which all A are 0 is left out.

    Against GRPO: every update is full of groups with contrast. Beware where few groups have any: then as many responses
    give fewer updates, and an epoch without contrast gives none. (Here no question is sampled twice in an epoch to fill
    an update up: what is left at the epoch's end is trained as it is.)

    >>> informative(advantaged(0.0, 0.0)), len(informative(advantaged(1.0, -1.0)))
    ([], 2)
    """
    return [r for r in group if any(o.has_signal for o in group)]


def cppo(group: Group) -> Group:
    r"""CPPO (arXiv:2503.22342). The half of the group with the largest |A_i|.

    Against GRPO: half the passes of an update. (A half is our choice, and the mildest in the authors' table, which goes
    from 50 to 93.75 % pruned. The paper then fills the passes with more questions: raise --questions-per-update.)

    >>> [r.advantage for r in cppo(advantaged(1.5, -0.5, -0.4, -0.6))]
    [1.5, -0.6]
    """
    return sorted(group, key=strength, reverse=True)[: len(group) // 2]


def positives(group: Group) -> Group:
    r"""Positives only (arXiv:2504.11343). The rollouts with A_i > 0.

    Against GRPO: right responses are pushed up, and no response is pushed down. (The paper's RAFT++ gives every right
    response the weight 1, in groups that are all right, too; here GRPO's A stays, and such a group has none. What the
    paper finds to help most is that all-wrong groups teach nothing, which GRPO has anyway; its Reinforce-Rej leaves out
    the all-right ones as well.)

    >>> [r.advantage for r in positives(advantaged(1.5, -0.5, -0.5, -0.5))]
    [1.5]
    """
    return [r for r in group if (max(r.advantage) if isinstance(r.advantage, list) else r.advantage) > 0]


@needs(ratio="", loss="", kl_coef=0.0)
def trained_part(group: Group) -> Group:
    r"""Shorter passes for S-GRPO and T-SPMO (arXiv:2504.20834). A response ends with its last token whose A is not 0.

    Against GRPO: the passes are shorter, and the gradient of what is left is the same, for causal attention never looks
    ahead; means over tokens count only the tokens that are left. Losses of the whole response are refused.

    >>> [(r.response_ids, r.advantage) for r in trained_part(advantaged([0.5, -0.5, 0.0], 0.0, length=3))]
    [([0, 0], [0.5, -0.5]), ([0, 0, 0], 0.0)]
    """
    for r in group:
        if isinstance(r.advantage, list) and r.has_signal:
            end = max(t for t, a in enumerate(r.advantage) if a) + 1
            for name in ("response_ids", "sampled_logprobs", "advantage"):
                setattr(r, name, getattr(r, name)[:end])
    return group


@needs(loss="luffy", advantage="")
def luffy(group: Group, *, policy: grpo.Policy, questions: list, scale_by_std: bool = True) -> Group:
    r"""LUFFY (arXiv:2504.14945). A demonstration takes the place of the group's last rollout; the A_i are drawn anew.

    Against GRPO: no group is without contrast unless all are right. The demonstration's writer is taken to have been
    sure of each token, so its old log-probs are 0. Given a right response to every question, which P2O does not need.
    (A recipe derived from the authors' has one demonstration to seven rollouts, no division by the standard deviation
    and no mean over tokens: `--group-size 8 --no-scale-by-std --aggregation seq-mean-token-sum-norm`. It does not clip
    either.)
    """
    question = next(q for q in questions if q.id == group[0].question_id)
    text, bare = given.demonstration(question, policy.cfg.model), group[0].trained_context
    ids = [*encode_text(policy.tokenizer, text), policy.stop_ids[0]]
    sure = {"sampled_logprobs": [0.0] * len(ids), "old_logprobs": [0.0] * len(ids)}
    shown = {"sampled_context": bare, "trained_context": bare, "truncated": False, "text": text, "reward": 1.0}
    mixed = [*group[:-1], grpo.Rollout(question_id=question.id, response_ids=ids, **sure, **shown)]
    advantages = grpo.group_advantages(torch.tensor([r.reward for r in mixed]), len(mixed), scale_by_std).tolist()
    for r, advantage in zip(mixed, advantages, strict=True):
        r.advantage = advantage
    return mixed
