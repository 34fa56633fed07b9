r"""Advantages of the literature: --advantage NAME. A question's rollouts in, a number for each out, or a list of T.

A group is a list of `grpo.Rollout`: reward, text, response_ids, truncated, template, sampled_logprobs. Behind `*` stand
options, and what is at hand: `batch` (all rollouts of the batch), `policy`, `questions` (of the batch).

Two papers need no function: Dr. GRPO (arXiv:2503.20783) is `--no-scale-by-std --aggregation seq-mean-token-sum-norm`,
which divides by --max-response-tokens (TRL divides by the number of rollouts, too: AdamW does not see it, the gradient
clip does); DAPO (arXiv:2503.14476) is `--clip-high 0.28 --advantage overlong --keep informative` with the token mean.

Rewards that are not 0 or 1 revive groups in which all failed, and the division by the standard deviation blows the
smallest difference up to full size: `overlong`, `dra_grpo` and `lead` say below what they do about it.
"""

from __future__ import annotations

import math
import random
from collections import Counter

import torch

import gepa_loop
import grpo
import verify
from support.seams import needs
from variants import given

Group = list[grpo.Rollout]


def rewards_of(group: Group) -> torch.Tensor:
    return torch.tensor([r.reward for r in group])


def scaled(rewards: torch.Tensor) -> list[float]:
    """GRPO's own advantages: what most papers put something before, or behind."""
    return grpo.group_advantages(rewards, len(rewards)).tolist()


def rloo(group: Group) -> list[float]:
    r"""RLOO (arXiv:2402.14740). A_i = r_i - mean_{j != i} r_j.

    Against GRPO: the baseline leaves the rollout itself out, and nothing is divided by the standard deviation.

    >>> [round(a, 3) for a in rloo(rewarded(1, 0, 0, 0))]
    [1.0, -0.333, -0.333, -0.333]
    """
    rewards = rewards_of(group)
    return (rewards - (rewards.sum() - rewards) / (len(group) - 1)).tolist()


def reinforce_pp(group: Group, *, batch: Group) -> list[float]:
    r"""REINFORCE++ with the group's baseline (arXiv:2501.03262). A_i = (r_i - mean r) / std of all r - mean r.

    Against GRPO: the scale is the whole batch's, so a question with little contrast stays small.

    >>> one, other = rewarded(1, 0, 0, 0), rewarded(1, 1, 0, 0, question="other")
    >>> [round(a, 3) for a in reinforce_pp(one, batch=one + other)]
    [1.5, -0.5, -0.5, -0.5]
    """
    centred = torch.cat([(r := rewards_of(g)) - r.mean() for g in grpo.groups_of(batch)])
    rewards = rewards_of(group)
    return ((rewards - rewards.mean()) / (centred.std() + 1e-6)).tolist()


def overlong(group: Group, *, max_response_tokens: int) -> list[float]:
    r"""DAPO's overlong shaping (arXiv:2503.14476, eq. 13). r_i - clip((|y_i| - (L - L_c)) / L_c, 0, 1), L_c = L / 5.

    Against GRPO: the last fifth of the room costs up to 1, linearly. (4,096 of 20,480 tokens in the paper, whose wrong
    answers earn -1: there the price is at most half of right against wrong, here all of it.) A group in which all fail
    gets advantages by its lengths then; only where no response is that long does it stay at zero.

    >>> [round(a, 3) for a in overlong(rewarded(0, 0, lengths=(30, 35)), max_response_tokens=40)]
    [0.707, -0.707]
    """
    lengths = torch.tensor([float(len(r.response_ids)) for r in group])
    return scaled(rewards_of(group) - (5 * lengths / max_response_tokens - 4).clamp(0, 1))


def pass_at_k(group: Group, k: int = 3) -> list[float]:
    r"""Pass@k training (arXiv:2508.10751, eq. 12-15). The mean advantage over all subsets of k that y_i is in.

    R = 1 - C(wrong, k) / C(G, k), std = sqrt(R (1 - R)); right: (1 - R) / std; wrong: (1 - R - C(wrong - 1, k - 1) /
    C(G - 1, k - 1)) / std. Against GRPO: a subset earns what its best rollout earns, so questions half solved count
    little and rare successes much.

    >>> [round(a, 3) for a in pass_at_k(rewarded(1, 0, 0, 0), k=2)]
    [1.0, -0.333, -0.333, -0.333]
    """
    wrong = sum(r.reward < 1 for r in group)
    solved = 1 - math.comb(wrong, k) / math.comb(len(group), k)
    alone = math.comb(wrong - 1, k - 1) / math.comb(len(group) - 1, k - 1) if wrong else 0.0
    std = math.sqrt(solved * (1 - solved)) + 1e-6
    return [(1 - solved - (alone if r.reward < 1 else 0.0)) / std for r in group]


def lead(group: Group, alpha: float = 0.05) -> list[float]:
    r"""GRPO-LEAD (arXiv:2504.09696). r_i = exp(-alpha z_i) if right (z: its length among the right ones), else -1.

    A_i = w(p) GRPO(r)_i if that is positive, w(1 - p) if not; w(p) = 0.4 + 1.1 / (1 + exp(10 (p - 0.75))), p the share
    of right ones. Against GRPO: short answers earn more, hard questions weigh more. Where all are right, their lengths
    alone give advantages of full size: that is the paper's. w(1) = 0.48 halves the positive ones, and w(0) = 1.5 makes
    the negative ones larger still.

    >>> [round(a, 3) for a in lead(rewarded(1, 0, 0, 0))]
    [2.239, -0.475, -0.475, -0.475]
    """
    lengths, right = torch.tensor([float(len(r.response_ids)) for r in group]), rewards_of(group) > 0
    mean = lengths[right].mean()  # of none: not a number, and not used
    z = (lengths - mean) / ((lengths[right] - mean).square().mean().sqrt() + 1e-6)
    share = right.float().mean().item()
    advantages = scaled(torch.where(right, (-alpha * z).exp(), -1.0))
    return [a * (0.4 + 1.1 / (1 + math.exp(10 * ((share if a > 0 else 1 - share) - 0.75)))) for a in advantages]


def seed_grpo(group: Group, alpha: float = 0.5) -> list[float]:
    r"""SEED-GRPO (arXiv:2505.12346). A_i = GRPO_i (1 - alpha H / log G), H the entropy of the group's answers.

    Against GRPO: the more the answers disagree, the smaller the step. (The paper, too, lets the entropy of what the
    responses mean modulate the advantages. Its exact factor was not at hand: the form here is ours.)

    >>> boxed = ["\\boxed{1}", "\\boxed{2}", "\\boxed{3}", "\\boxed{4}"]
    >>> [round(a, 3) for a in seed_grpo(rewarded(1, 0, 0, 0, texts=boxed))]  # four answers: H = log 4
    [0.75, -0.25, -0.25, -0.25]
    """
    counts = Counter(verify.extract_boxed(r.text) for r in group).values()
    entropy = -sum(n / len(group) * math.log(n / len(group)) for n in counts)
    return [a * (1 - alpha * entropy / math.log(len(group))) for a in scaled(rewards_of(group))]


def dra_grpo(group: Group) -> list[float]:
    r"""DRA-GRPO (arXiv:2505.09655). GRPO of r_i / (1 + sum_{j != i} s(y_i, y_j)); s is the overlap of token sets here.

    Against GRPO: a reward is shared with those who say the same. (The paper's s compares sentence embeddings.) Where
    all succeed, who is unlike the others gains, at full size; where all fail, nothing is revived, for 0 stays 0.

    >>> same, other = [1, 2], [3, 4]
    >>> [round(a, 3) for a in dra_grpo(rewarded(1, 1, 1, ids=(same, same, other)))]  # rewards 1/2, 1/2, 1
    [-0.577, -0.577, 1.155]
    """
    used = [set(r.response_ids) for r in group]
    alike = [sum(len(a & b) / len(a | b) for b in used) for a in used]  # from 1, like no other, to G
    return scaled(rewards_of(group) / torch.tensor(alike))


def t_spmo(group: Group) -> list[list[float]]:
    r"""T-SPMO (arXiv:2504.20834). A_it = mean reward of the group's rollouts that begin y_<=t, less that of y_<t.

    Against GRPO: each token earns what it changed in the mean reward. Behind the place where a rollout parts from all
    others the advantage is 0, so `--keep trained_part` saves those passes. (The paper counts a token that several share
    once; here each of them carries it.)

    >>> [[round(a, 3) for a in row] for row in t_spmo(rewarded(1, 0, 0, ids=([7, 8], [7, 9], [5])))]
    [[0.167, 0.5], [0.167, -0.5], [-0.333]]
    """
    advantages = []
    for r in group:
        alike, means = group, [sum(o.reward for o in group) / len(group)]
        for t, token in enumerate(r.response_ids):
            alike = [o for o in alike if o.response_ids[t : t + 1] == [token]]
            means.append(sum(o.reward for o in alike) / len(alike))
        advantages.append([after - before for before, after in zip(means, means[1:], strict=False)])
    return advantages


def s_grpo(group: Group, first: int = 5, share: float = 0.5, most: int = 15) -> list[list[float]]:
    r"""S-GRPO (arXiv:2504.20834). A_it = GRPO_i m_it; m is 1 at first, then with probability `share`, else 0.

    At most `most` tokens of a response are trained; with `--keep trained_part` the rest costs no pass. Against GRPO: a
    random part of the tokens stands for all, which saves memory where responses are long. (The numbers are for
    responses of 40 tokens.)

    >>> [[round(a, 3) for a in row] for row in s_grpo(rewarded(1, 0, ids=([1, 2, 3], [4])), first=1, share=0.0)]
    [[0.707, 0.0, 0.0], [-0.707]]
    """
    masks = []
    for r in group:
        rng = random.Random(repr((r.question_id, r.response_ids)))  # the same after a resume
        chosen = [t for t in range(len(r.response_ids)) if t < first or rng.random() < share][:most]
        masks.append([float(t in chosen) for t in range(len(r.response_ids))])
    return [[a * kept for kept in mask] for a, mask in zip(scaled(rewards_of(group)), masks, strict=True)]


@needs(loss="disco", aggregation="seq-mean-token-mean")
def disco(group: Group, tau: float = 10.0) -> list[float]:
    r"""DisCO (arXiv:2505.12366). A_i = 1 / n_right if right, else -softmax_i(s / tau) of the wrong ones.

    s is the mean log-prob; for it the authors recommend tau = 10, and 1 for likelihood ratios. Against GRPO: the weight
    of a question does not depend on the share of right responses, and the likeliest wrong one is pushed down most. What
    was sampled under a template is scored under it, for pi(y | x) is not yet known here.

    >>> [round(a, 3) for a in disco(rewarded(1, 1, 0, 0, logprobs=(-1.0, -1.0, -1.0, -3.0)))]
    [0.5, 0.5, -0.55, -0.45]
    """
    right = rewards_of(group)
    if right.min() == right.max():
        return [0.0] * len(group)
    score = torch.tensor([sum(r.sampled_logprobs) / len(r.sampled_logprobs) for r in group])
    return (right / right.sum() - (score / tau).masked_fill(right > 0, -torch.inf).softmax(dim=0)).tolist()


@needs(loss="reinforce")
def successes(group: Group) -> list[float]:
    r"""SFT on one's own successes (arXiv:2304.06767, RAFT). A_i = r_i.

    Against GRPO: no baseline, so failures teach nothing, and groups that are all right go on teaching. Given what P2O
    is given. Under P2O it distils the templates by supervised learning.

    >>> successes(rewarded(1, 0, 1))
    [1.0, 0.0, 1.0]
    """
    return [r.reward for r in group]


def spectral(group: Group, *, questions: list) -> list[float]:
    r"""Spectral policy optimization (arXiv:2505.11595). GRPO, but where all fail the rewards are a judge's.

    Against GRPO: a group in which all fail has contrast if one response goes further than another. Given a judge that
    finds the first wrong step of a response, which P2O does not need.

    >>> from support.data import Question
    >>> add = Question("q", "Add these digits: 7, 9, 8.", "24")
    >>> further = rewarded(0, 0, texts=["7; 16. \\boxed{16}", "7. \\boxed{7}"])
    >>> [round(a, 3) for a in spectral(further, questions=[add])]
    [0.707, -0.707]
    """
    question = next(q for q in questions if q.id == group[0].question_id)
    judged = [r.reward if any(o.reward for o in group) else given.right_steps(question, r.text) for r in group]
    return scaled(torch.tensor(judged))


def sdpo(group: Group, *, policy: grpo.Policy, questions: list) -> list[list[float]]:
    r"""SDPO, OPSD (arXiv:2601.20802, 2601.18734). A_it = GRPO_i + log pi(y_t | T(x, z)) - log pi(y_t | x).

    Against GRPO: the policy under a template is the teacher, and a token of a bare response gains the log-prob that the
    template adds to it. This is the form of the sampled token, and it is added to GRPO's advantage here. SDPO's code
    minimizes a divergence (JSD, or KL either way) of the whole next-token distributions instead, or of their top k.
    There the teacher is shown a response that succeeded, and feedback; in OPSD, the reference solution; here, a
    template. Needs bare samples of templated questions: `git apply variants/sdpo.diff`, then `--sample-bare`;
    without it the second term has lost its meaning. Given what P2O is given, and one more pass.
    """
    text = next(q.text for q in questions if q.id == group[0].question_id)
    teachers = [grpo.chat_ids(policy, gepa_loop.apply_template(r.template, text)) for r in group]
    wished = grpo.logprobs_of(policy, teachers, [r.response_ids for r in group])
    return [
        [a + bool(r.template) * (w - own) for w, own in zip(row, r.sampled_logprobs, strict=True)]
        for a, r, row in zip(scaled(rewards_of(group)), group, wished, strict=True)
    ]
