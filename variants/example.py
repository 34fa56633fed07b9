"""Rollouts to try a variant on: the examples in the docstrings of this folder, and their tests, are made of them."""

from __future__ import annotations

import grpo
from support.data import Question


def rewarded(*rewards: float, question: str = "q", texts=(), lengths=(), ids=(), logprobs=()) -> list[grpo.Rollout]:
    """A group with these rewards: responses of one token, unless texts, lengths or token ids say otherwise.

    >>> [(r.reward, r.response_ids) for r in rewarded(1, 0, lengths=(2, 3))]
    [(1.0, [0, 0]), (0.0, [0, 0, 0])]
    """
    group = []
    for i, reward in enumerate(rewards):
        response = list(ids[i]) if ids else [0] * (lengths[i] if lengths else 1)
        sampled = [logprobs[i] if logprobs else -1.0] * len(response)
        text, context = texts[i] if texts else "", {"sampled_context": [1], "trained_context": [1]}
        group.append(
            grpo.Rollout(
                question_id=question, response_ids=response, sampled_logprobs=sampled, truncated=False, text=text,
                reward=float(reward), **context,
            )
        )  # fmt: skip
    return group


def advantaged(*advantages: float | list[float], length: int = 1) -> list[grpo.Rollout]:
    """A group with these advantages, responses of `length` tokens.

    >>> [r.advantage for r in advantaged(1.5, -1.5)]
    [1.5, -1.5]
    """
    group = rewarded(*[0.0] * len(advantages), lengths=[length] * len(advantages))
    for r, advantage in zip(group, advantages, strict=True):
        r.advantage = advantage
    return group


def asked(*names: str) -> list[Question]:
    """Questions with these ids; the answer is always 1.

    >>> asked("a")
    [Question(id='a', text='a?', reference='1', columns={})]
    """
    return [Question(name, f"{name}?", "1") for name in names]
