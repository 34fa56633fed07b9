r"""GPS, generalizable predictive prompt selection (arXiv:2602.01970): how hard will a question be that was never tried?

    features     the base policy's own hidden state of the question: any model has one            features
    predict      from the success rates of the questions that were tried to those of all others   predict
    acquire      a batch half solved, and unlike what is known or already chosen                   acquire
    allocate     at test time, samples where one more is most likely to be the first right one     allocate
    calibration  what was predicted against what came                                              calibration

Against GRPO: `--select gps` samples the questions that promise contrast, whether tried before or not. The paper's
predictor is a small latent-variable model; a Gaussian process with the same inputs and outputs takes its place here.

    python -m variants.gps --help         # calibration on questions never tried, and the gain at test time
"""

from __future__ import annotations

import random

import torch

import grpo
import verify
from support.data import Question, load_questions

_KNOWN: dict[tuple, torch.Tensor] = {}  # hidden states, for the base policy does not change


@torch.no_grad()
def features(policy: grpo.Policy, questions: list[Question]) -> torch.Tensor:
    """[N, D], standardized: the base policy's last hidden states, the mean over the bare prompt's tokens."""
    model = policy.model.get_base_model().base_model
    new = [q for q in questions if (policy.cfg.model, q.text) not in _KNOWN]
    with policy.model.disable_adapter():
        for q in new:
            ids = torch.tensor([grpo.chat_ids(policy, q.text)], device=policy.device)
            _KNOWN[policy.cfg.model, q.text] = model(input_ids=ids).last_hidden_state[0].float().mean(dim=0).cpu()
    states = torch.stack([_KNOWN[policy.cfg.model, q.text] for q in questions]).double()
    return (states - states.mean(dim=0)) / (states.std(dim=0) + 1e-6)


def predict(x: torch.Tensor, tried: list[int], rates: torch.Tensor, noise: torch.Tensor):
    """Success rates of all N questions: (mean [N], covariance [N, N]) given those of the n that were tried.

    Gaussian process regression: questions with similar features (RBF kernel, median distance) have similar rates, of
    variance 1/4 around the mean of what is known. noise: [n], the variance with which a rate was measured.

    >>> x = torch.tensor([[0.0], [0.1], [3.0]]).double()
    >>> mean, covariance = predict(x, [0], torch.tensor([1.0]).double(), torch.tensor([0.01]).double())
    >>> [round(v, 2) for v in covariance.diag().tolist()]  # what resembles the question that was tried is known, too
    [0.01, 0.01, 0.17]
    """
    distances = torch.cdist(x, x)
    kernel = 0.25 * (-0.5 * (distances / distances[distances > 0].median()) ** 2).exp()  # [N, N]
    prior = rates.mean() if len(rates) else torch.tensor(0.5).double()
    gain = torch.linalg.solve(kernel[tried][:, tried] + noise.diag(), kernel[tried])  # [n, N]
    return prior + gain.T @ (rates - prior), kernel - kernel[:, tried] @ gain


def acquire(mean: torch.Tensor, covariance: torch.Tensor, count: int, curiosity: float = 0.25) -> list[int]:
    """`count` questions, one by one, by p (1 - p) + curiosity * standard deviation.

    The first term is the variance of a reward, hence a group's expected contrast. The second is diversity: a question
    that is chosen takes it from those like it, and the covariance already knows what was tried.

    >>> like = torch.tensor([[0.2, 0.2, 0.0], [0.2, 0.2, 0.0], [0.0, 0.0, 0.2]]).double()  # 0 and 1 are alike
    >>> acquire(torch.tensor([0.5, 0.5, 0.45]).double(), like, 2)
    [0, 2]
    """
    chosen, covariance, p = [], covariance.clone(), mean.clamp(0, 1)
    for _ in range(min(count, len(mean))):
        value = p * (1 - p) + curiosity * covariance.diag().clamp(min=0).sqrt()
        value[chosen] = -1.0
        best = int(value.argmax())
        chosen.append(best)
        seen = covariance[:, best].clone()
        covariance -= seen[:, None] * seen / (seen[best] + 0.04)  # as if its rate were known to 0.2
    return chosen


def gps(
    order: list[Question], history: dict[str, list[float]], count: int, rng: random.Random, *, policy: grpo.Policy,
    group_size: int,
) -> list[Question]:  # fmt: skip
    """GPS (arXiv:2602.01970). The batch with the largest p (1 - p) + 0.25 std, p predicted from the hidden state.

    Against GRPO: questions that promise contrast, whether tried before or not, and unlike each other.
    """
    tried = [i for i, q in enumerate(order) if history.get(q.id)]
    if not tried:
        return order[:count]
    rates, noise = zip(*(faded(history[order[i].id], group_size) for i in tried), strict=True)
    mean, covariance = predict(
        features(policy, order), tried, torch.tensor(rates).double(), torch.tensor(noise).double()
    )
    return [order[i] for i in acquire(mean, covariance, count)]


def faded(rates: list[float], group_size: int, fade: float = 0.5) -> tuple[float, float]:
    """(success rate, its variance): older groups, of an older policy, count half as much each time.

    >>> faded([0.0, 1.0], group_size=6)
    (0.6666666666666666, 0.027777777777777776)
    """
    weights = [fade**k for k in range(len(rates))][::-1]
    rate = sum(w * r for w, r in zip(weights, rates, strict=True)) / sum(weights)
    return rate, 0.25 / (group_size * sum(weights))


def allocate(mean: torch.Tensor, budget: int) -> list[int]:
    """Samples for each question at test time: each goes where it is most likely to be the first right one.

    The nth sample of a question with success rate p is that with probability p (1 - p)^(n - 1), which falls with n, so
    one by one is best.

    >>> allocate(torch.tensor([1.0, 0.4, 0.0]), 6)  # the sure one needs one sample, the hopeless one gets none
    [1, 5, 0]
    """
    p, counts = mean.clamp(0.001, 0.999), [0] * len(mean)
    gains = p.clone()
    for _ in range(budget):
        best = int(gains.argmax())
        counts[best] += 1
        gains[best] *= 1 - p[best]
    return counts


def calibration(predicted: list[float], observed: list[float], bins: int = 5) -> list[tuple[int, float, float]]:
    """(questions, mean prediction, mean success rate) of each bin of the predictions.

    >>> calibration([0.1, 0.1, 0.9], [0.0, 0.5, 1.0], bins=2)
    [(2, 0.1, 0.25), (1, 0.9, 1.0)]
    """
    rows = []
    for b in range(bins):
        inside = [i for i, p in enumerate(predicted) if min(int(max(p, 0.0) * bins), bins - 1) == b]
        if inside:
            means = [sum(values[i] for i in inside) / len(inside) for values in (predicted, observed)]
            rows.append((len(inside), *means))
    return rows


def main(
    data: str = str(grpo.TINY / "train.jsonl"), model: str = str(grpo.TINY / "united" / "model"), group_size: int = 12
) -> None:
    """Sample every question, predict half of them from the other half, and say how well that went.

    Args:
        data: Questions; half of them are tried, the other half predicted.
        model: The policy, and the source of the features.
        group_size: Responses per question.
    """
    policy, questions = grpo.load_policy(grpo.PolicyConfig(model=model)), load_questions(data)
    random.Random(0).shuffle(questions)
    samples = grpo.respond(policy, [q.text for q in questions for _ in range(group_size)], seed=0)
    asked = [q for q in questions for _ in range(group_size)]
    verdicts = verify.judge([s.text for s in samples], asked, [s.truncated for s in samples])
    right = torch.tensor([v.reward for v in verdicts]).view(-1, group_size).double()  # [N, G]
    half, rates = len(questions) // 2, right.mean(dim=1)
    noise = torch.full((half,), 0.25 / group_size).double()
    mean, covariance = predict(features(policy, questions), list(range(half)), rates[:half], noise)
    new, seen = mean[half:].clamp(0, 1), rates[half:]
    print(f"{len(new)} questions never tried, predicted from {half} that were, G = {group_size}\n")
    print("| questions | predicted | success rate |\n| --- | --- | --- |")
    for n, p, rate in calibration(new.tolist(), seen.tolist()):
        print(f"| {n} | {p:.2f} | {rate:.2f} |")
    constant = (seen - rates[:half].mean()).square().mean()
    print(f"\nsquared error {(new - seen).square().mean():.4f}; of the mean of those tried {constant:.4f}")
    for budget in (1, 2, 4):  # samples per question, on average; nobody gets more than were drawn
        solved = {}
        for name, counts in (("alike", [budget] * len(new)), ("allocated", allocate(new, budget * len(new)))):
            found = [bool(row[:n].any()) for row, n in zip(right[half:], counts, strict=True)]
            solved[name] = sum(found) / len(found)
        print(f"{budget} samples a question: solved {solved['alike']:.2f} alike, {solved['allocated']:.2f} allocated")


if __name__ == "__main__":
    import tyro

    tyro.cli(main, prog="python -m variants.gps")
