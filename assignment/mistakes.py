"""Mistakes that people make, each one planted in the reference. They serve twice.

When an answer is wrong, the grader looks which of them gives just this answer, and prints its hint; and the tests plant
each one to see that it costs its part and no other, and that its own hint is what is printed.
"""

from __future__ import annotations

from typing import NamedTuple


class Mistake(NamedTuple):
    part: int
    file: str
    right: str  # as the reference has it
    wrong: str
    hint: str


MISTAKES = [
    Mistake(
        1, "grpo.py", "rewards.view(-1, group_size)", "rewards.view(group_size, -1).T.contiguous()",
        "The other axis: neighbours belong together, .view(G, -1) mixes questions.",
    ),
    Mistake(
        1, "grpo.py", "groups.mean(dim=1, keepdim=True)", "groups.mean()",
        "The mean of the whole batch compares easy questions with hard ones: it is the group's that counts.",
    ),
    Mistake(
        1, "grpo.py", "groups.std(dim=1, keepdim=True)", "groups.std(dim=1, keepdim=True, correction=0)",
        "That is the population's standard deviation; the sample's divides by n - 1.",
    ),
    Mistake(
        1, "grpo.py", "(groups.std(dim=1, keepdim=True) + eps)", "(groups.var(dim=1, keepdim=True) + eps).sqrt()",
        "eps stands inside the root: add it to the standard deviation, not to the variance.",
    ),
    Mistake(
        1, "grpo.py", "(groups.std(dim=1, keepdim=True) + eps)", "(groups.var(dim=1, keepdim=True) + eps)",
        "That is the variance: divide by its root, the standard deviation.",
    ),
    Mistake(
        1, "grpo.py", "groups - groups.mean(dim=1, keepdim=True)",
        "groups - (groups.sum(dim=1, keepdim=True) - groups) / (group_size - 1)",
        "The mean of the others (leave-one-out): GRPO's mean is over all G, this response included.",
    ),
    Mistake(
        1, "grpo.py", "    if scale_by_std:\n", "    if not scale_by_std:\n", "scale_by_std is upside down.",
    ),
    Mistake(
        1, "grpo.py", "keepdim=True) + eps)", "keepdim=True) + 1e-6)",
        "eps is an argument; you took 1e-6 whatever it says.",
    ),
    Mistake(
        1, "grpo.py", "(groups.std(dim=1, keepdim=True) + eps)", "groups.std(dim=1, keepdim=True).clamp(min=eps)",
        "eps is a lower bound there: it is added to the standard deviation.",
    ),
    Mistake(
        1, "grpo.py", "(groups.std(dim=1, keepdim=True) + eps)", "groups.std(dim=1, keepdim=True)",
        "eps is missing: it is added to the standard deviation.",
    ),
    Mistake(
        2, "grpo.py", "(sums / counts.clamp(min=1)).sum() / rollouts",
        "(sums / counts.clamp(min=1)).sum() / (update_size[0] if update_size else (counts > 0).sum().clamp(min=1))",
        "A response without tokens was left out of the mean: it counts as a response, with mean 0.",
    ),
    Mistake(
        2, "grpo.py", "per_token.masked_fill(mask == 0, 0.0).sum(dim=1), mask.sum(dim=1)",
        "(per_token * mask).sum(dim=1), mask.sum(dim=1)\n    sums = (sums / counts).nan_to_num() * counts",
        "0 / 0 was mended behind the division (nan_to_num, where), and its gradient is NaN: clamp the count instead.",
    ),
    Mistake(
        2, "grpo.py", "sums.sum() / tokens", "per_token.mean()",
        "A mean over [B, T] counts the padding: multiply by the mask, sum, divide by the response tokens.",
    ),
    Mistake(
        2, "grpo.py", "update_size or (mask.shape[0], counts.sum().clamp(min=1), mask.shape[1])",
        "(mask.shape[0], counts.sum().clamp(min=1), mask.shape[1])",
        "`update_size` is ignored: a micro-batch is a part of its update, and takes the update's denominators.",
    ),
    Mistake(
        2, "grpo.py", "(logprobs - old_logprobs).clamp(-20, 20)", "logprobs - old_logprobs",
        "The log-ratio is not clamped: +-20, before exp.",
    ),
    Mistake(
        2, "grpo.py", "pessimistic = torch.max(", "pessimistic = torch.min(",
        "The smaller loss: that is the optimistic clip. Max of losses is min of objectives.",
    ),
    Mistake(
        2, "grpo.py", "torch.where(advantages < 0, bounded, pessimistic)", "bounded",
        "The dual clip acts where A > 0, too: only negative advantages have a loss without a bound.",
    ),
    Mistake(
        2, "grpo.py", "torch.where(advantages < 0, bounded, pessimistic)", "pessimistic",
        "There is no dual clip: where A < 0 the loss is at most -A c.",
    ),
    Mistake(
        2, "grpo.py", "rho.clamp(1 - clip_low, 1 + clip_high)\n    pessimistic",
        "log_ratio.clamp(-clip_low, clip_high).exp()\n    pessimistic",
        "The log ratio is clipped there: clip rho itself to [1 - clip_low, 1 + clip_high].",
    ),
    Mistake(
        2, "grpo.py", "rho.clamp(1 - clip_low, 1 + clip_high)\n    pessimistic",
        "rho.clamp(1 - clip_low, 1 + clip_low)\n    pessimistic",
        "clip_high is ignored: the two bounds may differ.",
    ),
    Mistake(
        2, "grpo.py", "per_token = per_token * token_weight", "per_token = per_token * token_weight**2",
        "token_weight counts twice.",
    ),
    Mistake(
        2, "grpo.py", "    if token_weight is not None:\n        # Before aggregation",
        "    if token_weight is not None:\n"
        "        bounds = {'clip_low': clip_low, 'clip_high': clip_high, 'dual_clip': dual_clip}\n"
        "        per_token = loss(log_ratio, advantages * token_weight, **bounds, logprobs=logprobs, mask=mask)\n"
        "        token_weight = torch.ones_like(token_weight)\n        # Before aggregation",
        "token_weight went into the advantages: it multiplies what `loss` returns, whatever `loss` is.",
    ),
    Mistake(
        2, "grpo.py", "    return aggregate(per_token, mask, aggregation, update_size), metrics",
        "    mask = mask if token_weight is None else mask * token_weight\n"
        "    return aggregate(per_token, mask, aggregation, update_size), metrics",
        "token_weight went into the mask: a token of weight 0 still counts in the denominator.",
    ),
    Mistake(
        2, "grpo.py", "ratio(logprobs, old_logprobs, mask)",
        "ratio(logprobs.detach(), old_logprobs, mask) + 0 * logprobs",
        "The gradient does not flow through the ratio: the new log-probs were detached.",
    ),
    Mistake(
        2, "grpo.py", '"approx_kl": -log_ratio', '"approx_kl": log_ratio',
        "approx_kl has the wrong sign: it is -(new - old).",
    ),
    Mistake(
        2, "grpo.py", "(clipped > unclipped).float()", "(clipped >= unclipped).float()",
        "clip_fraction counts ties: a tie is no clip, count where the clipped loss is strictly larger.",
    ),
    Mistake(
        2, "grpo.py", 'aggregate(value, mask, "token-mean", update_size)', 'aggregate(value, mask, "token-mean")',
        "The metrics are divided by the update's tokens, too: pass update_size on.",
    ),
    Mistake(
        2, "grpo.py", "advantages[:, None].expand_as(logprobs)", "advantages[None, :].expand_as(logprobs)",
        "The advantages run along the tokens: a response's A belongs to its row, advantages[:, None].",
    ),
    Mistake(
        2, "grpo.py", 'aggregate(value, mask, "token-mean", update_size)',
        'aggregate(value * (1 if token_weight is None else token_weight), mask, "token-mean", update_size)',
        "The metrics are weighted with token_weight: they count every token alike.",
    ),
    Mistake(
        2, "grpo.py", "advantages[:, None].expand_as(logprobs)", "advantages[:, None]",
        "`loss` gets the advantages as [B, 1]: they are [B, T], one for each token (expand_as).",
    ),
    Mistake(
        3, "grpo.py", "(bare_logprobs - templated_logprobs).clamp", "(templated_logprobs - bare_logprobs).clamp",
        "The ratio is upside down: bare above, templated below.",
    ),
    Mistake(
        3, "grpo.py", "(bounded == template_ratio).to(template_ratio.dtype)",
        "(bounded == template_ratio) * template_ratio",
        "Inside the range you give the ratio itself: the weight says whether a token counts, and is 1.",
    ),
    Mistake(
        3, "grpo.py", "(bounded == template_ratio).to(template_ratio.dtype)",
        "((template_ratio > ratio_min) & (template_ratio < ratio_max)).to(template_ratio.dtype)",
        "The interval is open: a ratio on a bound is still inside.",
    ),
    Mistake(
        3, "grpo.py", "(bare_logprobs - templated_logprobs).clamp(-20, 20).exp()",
        "(bare_logprobs - templated_logprobs).exp()", "The difference is not clamped: +-20, before exp.",
    ),
    Mistake(
        3, "grpo.py", "(bare_logprobs - templated_logprobs).clamp(-20, 20).exp()",
        "(bare_logprobs - templated_logprobs).sum(dim=1, keepdim=True).clamp(-20, 20).exp().expand_as(bare_logprobs)",
        "One ratio for the whole response: each token has its own.",
    ),
    Mistake(
        3, "grpo.py", "(bare_logprobs - templated_logprobs).clamp(-20, 20).exp()", "bare_logprobs / templated_logprobs",
        "That is the quotient of log-probs: the ratio of probabilities is exp of their difference.",
    ),
    Mistake(
        3, "grpo.py", "(bare_logprobs - templated_logprobs).clamp(-20, 20).exp()",
        "(bare_logprobs - templated_logprobs).exp().clamp(-20, 20)", "Clamped behind exp: +-20 bounds the difference.",
    ),
    Mistake(
        3, "grpo.py", "return bounded / template_ratio", "return (bounded / template_ratio).clamp(max=1)",
        "The soft weight is capped at 1: below ratio_min, bound / s is above 1.",
    ),
    Mistake(
        3, "grpo.py", "return bounded / template_ratio", "return template_ratio / bounded",
        "The soft weight is upside down: it is bound / s.",
    ),
    Mistake(
        3, "grpo.py", "return bounded / template_ratio", "return bounded",
        "The soft clip gives the bounded ratio: it is bound / s, so that s times the weight is the bound.",
    ),
    Mistake(
        3, "grpo.py", "    if soft:\n        return bounded / template_ratio\n", "", "`soft` is ignored.",
    ),
    Mistake(
        4, "grpo.py", "range(len(context) - 1, len(context) - 1 + len(response))",
        "range(len(context) - 2, len(context) - 2 + len(response))",
        "One position too early: take len(context) - 1 + t.",
    ),
    Mistake(
        4, "grpo.py", "range(len(context) - 1, len(context) - 1 + len(response))",
        "[min(p, longest - 1) for p in range(len(context), len(context) + len(response))]",
        "One position too late: a token is predicted by the position before it, len(context) - 1 + t.",
    ),
    Mistake(
        4, "grpo.py", "head(hidden).float() / temperature", "head(hidden).float()",
        "The temperature is missing: logits are divided by it.",
    ),
    Mistake(
        4, "grpo.py", "head(hidden).float() / temperature", "head(hidden).float() * temperature",
        "Multiplied by the temperature: logits are divided by it.",
    ),
    Mistake(
        4, "grpo.py", "    return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(dim=1)",
        "    logits = head(hidden).float()\n"
        "    return (logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(dim=1)) / temperature",
        "The log-probs are divided by the temperature: divide the logits, before the softmax.",
    ),
    Mistake(
        4, "grpo.py", "    return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(dim=1)",
        "    return logits.softmax(dim=1).gather(1, tokens[:, None]).squeeze(1)",
        "Those are probabilities: take the logarithm (log_softmax).",
    ),
    Mistake(
        4, "grpo.py", "    logprobs = torch.zeros(len(responses), max(map(len, responses)), device=policy.device)",
        "    longest = max(map(len, (c + r for c, r in zip(contexts, responses, strict=True))))\n"
        "    logprobs = torch.zeros(len(responses), longest, device=policy.device)",
        "The result is as wide as the longest sequence: its width is that of the longest response.",
    ),
    Mistake(4, "grpo.py", "    pretrained.set_training_mode(policy.model)\n", "", ""),
    Mistake(
        4, "grpo.py", "logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(dim=1)",
        "logits.gather(1, tokens[:, None]).squeeze(1)", "Those are logits: take the logsumexp off.",
    ),
    Mistake(
        5, "gepa_loop.py", "gains = [len(solved - covered) for solved in solves]",
        "gains = [len(s) * (k not in chosen) for k, s in enumerate(solves)]",
        "What is covered already counts again: only uncovered questions are a gain.",
    ),
    Mistake(
        5, "gepa_loop.py", "best = gains.index(max(gains))", "best = len(gains) - 1 - gains[::-1].index(max(gains))",
        "The last one wins on ties: it is the first.",
    ),
    Mistake(
        5, "gepa_loop.py", "enumerate(scores) if score > 0}", "enumerate(scores) if score >= 1}",
        "Only a full score counts as solved: any above 0 does.",
    ),
    Mistake(
        5, "gepa_loop.py", "enumerate(scores) if score > 0}", "enumerate(scores) if score}",
        "A score below 0 counts as solved: only one above 0 does.",
    ),
    Mistake(
        5, "gepa_loop.py", "gains = [len(solved - covered) for solved in solves]",
        "gains = [sum(dev_scores[k][n] for n in solved - covered) for k, solved in enumerate(solves)]",
        "Scores were added up: a gain is the number of questions, whatever their scores above 0.",
    ),
    Mistake(
        5, "gepa_loop.py", "    while True:\n        gains",
        "    for k in sorted(range(len(solves)), key=lambda k: -len(solves[k])):\n"
        "        chosen += [k] if solves[k] - covered else []\n        covered |= solves[k]\n"
        "    while True:\n        gains",
        "The order was fixed before the first choice: gains are counted anew after each one.",
    ),
    Mistake(
        5, "gepa_loop.py", "        if not any(gains):", "        if max(gains, default=0) <= 1:",
        "It stops too early: a candidate that adds one question is chosen, too.",
    ),
    Mistake(
        5, "gepa_loop.py", "for scores in dev_scores]", "for scores in zip(*dev_scores, strict=True)]",
        "Rows and columns are exchanged: dev_scores[k][n] is candidate k's score on question n.",
    ),
    Mistake(
        5, "gepa_loop.py", "            return chosen\n        best", "            return sorted(chosen)\n        best",
        "The indices are sorted: they stand in the order of choice.",
    ),
    Mistake(
        5, "gepa_loop.py", "        covered |= solves[best]\n",
        "        covered |= solves[best]\n        for scores in dev_scores:\n            scores[best] = 0\n", "",
    ),
    Mistake(
        6, "gepa_loop.py", "if question_id in evolution.dev_ids:", "if False:",
        "Dev questions draw from all chosen templates: those that solve them come first.",
    ),
    Mistake(
        6, "gepa_loop.py", "rng.choices(pool, [weights[i] for i in pool], k=draws)", "rng.choices(pool, k=draws)",
        "The draws have no weights: evolution.weights says how likely each is.",
    ),
    Mistake(
        6, "gepa_loop.py", "[weights[i] for i in pool], k=draws)",
        "[1 if question_id in evolution.dev_ids else weights[i] for i in pool], k=draws)",
        "Dev questions draw without weights: those of the templates in their pool count there, too.",
    ),
    Mistake(
        6, "gepa_loop.py", "[weights[i] for i in pool], k=draws)", "weights[: len(pool)], k=draws)",
        "The weights of the first so many templates were taken: each template of a pool has its own, weights[i].",
    ),
    Mistake(
        6, "gepa_loop.py", "if evolution.dev_scores[chosen[i]][n] > 0]", "if evolution.dev_scores[chosen[i]][n]]",
        "A score below 0 counts as solved: a dev question draws from templates with a score above 0 on it.",
    ),
    Mistake(6, "gepa_loop.py", "    cfg = cfg or EvolutionConfig()\n    chosen", "    chosen", ""),
    Mistake(
        6, "gepa_loop.py", "evolution.candidates[chosen[i]] for i in picks", "evolution.candidates[i] for i in picks",
        "A place in the cover was taken for a candidate's number: chosen[i] is the candidate.",
    ),
    Mistake(
        6, "gepa_loop.py", "    chosen, weights = evolution.chosen, evolution.weights",
        "    chosen = list(range(len(evolution.candidates)))\n"
        "    weights = [max(sum(s) / len(s), 1e-6) for s in evolution.dev_scores]",
        "All candidates are given out: only the cover's are.",
    ),
    Mistake(
        6, "gepa_loop.py", "rng.choices(pool", "random.choices(pool",
        "You draw from the global generator: `rng` makes a run repeatable.",
    ),
    Mistake(
        6, "gepa_loop.py", "draws = 1 if cfg.one_template_per_group else", "draws = 1 or",
        "One draw for the whole group: each rollout has its own, but with cfg.one_template_per_group.",
    ),
    Mistake(
        6, "gepa_loop.py", "rng.choices(pool",
        "(random.Random(hash(rng.getstate())) if draws == 1 else rng).choices(pool",
        "One draw for all questions: with cfg.one_template_per_group, too, each question has a draw of its own.",
    ),
    Mistake(
        6, "gepa_loop.py", '[*templates[:-1], ""]', '[*templates, ""]',
        "cfg.leave_one_bare appends a template: it replaces the last one.",
    ),
    Mistake(
        6, "gepa_loop.py", '[*templates[:-1], ""]', "templates",
        "cfg.leave_one_bare is ignored.",
    ),
    Mistake(
        7, "verify.py", "float(correct and well_formed)", "float(correct)",
        "Any number of boxes earns the reward: a response that boxes several has hedged its bets.",
    ),
    Mistake(
        7, "verify.py", "well_formed = len(found) == 1", "well_formed = len({box[2] for box in found}) == 1",
        "Two equal boxes are two: well formed is exactly one.",
    ),
    Mistake(
        7, "verify.py", "answers = [found[-1][2] if", "answers = [found[0][2] if",
        "The first box was graded: it is the last that counts.",
    ),
    Mistake(
        7, "verify.py", "correct = same and bool(found)", "correct = answer == reference and bool(found)",
        "Answers were compared as strings: 0.5 is \\frac{1}{2}.",
    ),
    Mistake(
        7, "verify.py", "verdicts = same_answers(pairs, questions)",
        "known = {a: v for (a, _), v in reversed(list(zip(pairs, same_answers(pairs, questions))))}\n"
        "    verdicts = [known[a] for a, _ in pairs]",
        "Verdicts were kept by the answer alone: the same answer may be right for one question and wrong for another.",
    ),
    Mistake(
        7, "verify.py", "same_answers(pairs, questions)", "same_answers([pair[::-1] for pair in pairs], questions)",
        "The arguments are swapped: the answer comes first, then the reference.",
    ),
    Mistake(
        7, "verify.py", '(answer or "", unboxed(reference))', '(answer or "", reference)',
        "The reference kept its box and the text around it: compare with unboxed(reference).",
    ),
    Mistake(
        7, "verify.py", "same_answers(pairs, questions)", "[same_answers([pair])[0] for pair in pairs]",
        "same_answers was called for each pair: one call compares them all.",
    ),
    Mistake(
        7, "verify.py", "same_answers(pairs, questions)",
        "(same_answers([p for p in pairs if p[0]]) + [False] * len(pairs))[: len(pairs)]",
        "Pairs without an answer were left out, and the verdicts are out of step: use the answer '' there.",
    ),
    Mistake(
        7, "verify.py", "boxes_in(_after_thinking(response)) for", "boxes_in(response) for",
        "A box among the thoughts is no answer: _after_thinking(response) is what counts.",
    ),
    Mistake(
        7, "verify.py", "same_answers(pairs, questions)", "same_answers(pairs)",
        "The questions are not handed on: same_answers(pairs, questions) learns from them what a letter stands for.",
    ),
    Mistake(
        7, "verify.py", " and not is_copied(answer, reference, question)", "",
        "A formula that was copied from the question earns the reward: is_copied tells.",
    ),
    Mistake(
        8, "p2o.py", "return [group[0].question_id for group in grpo.groups_of(rollouts) if is_hard(group)]",
        "return [r.question_id for group in grpo.groups_of(rollouts) if is_hard(group) for r in group if not r.reward]",
        "An id for each rollout: one for each group is wanted.",
    ),
    Mistake(
        8, "p2o.py", "most_successes = 1 if cfg.near_hard else 0", "most_successes = 1",
        "Near-hard questions count whatever cfg.near_hard says.",
    ),
    Mistake(
        8, "p2o.py", "sum(max(rollout.reward, 0.0) for", "sum(rollout.reward for",
        "A reward below 0 cancels a success: it counts as 0.",
    ),
    Mistake(
        8, "p2o.py", "for rollout in group) <= most_successes", "for rollout in group) == most_successes",
        "Exactly that many successes are too few questions: up to that many.",
    ),
    Mistake(
        8, "p2o.py", "[grpo.chat_ids(policy, q.text) for q, _ in pairs] if cfg.distill else sampled_contexts",
        "sampled_contexts", "The templated context is trained: with distillation it is the bare question.",
    ),
    Mistake(
        8, "p2o.py", "if cfg.distill else sampled_contexts", "",
        "cfg.distill is ignored: without it the sampled context is trained.",
    ),
    Mistake(
        8, "p2o.py", "judge = verify.judge_of(cfg.reward)\n    verdicts", "judge = verify.judge\n    verdicts",
        "cfg.reward is ignored: verify.judge_of(cfg.reward) knows it.",
    ),
    Mistake(
        8, "p2o.py", "advantages_of(group, cfg, ", "advantages_of(group, Config(), ",
        "Advantages are scaled whatever cfg.scale_by_std says: hand cfg on.",
    ),
    Mistake(
        8, "p2o.py", "grpo.sample(policy, sampled_contexts, seed=seed)",
        "grpo.sample(policy, trained_contexts, seed=seed)",
        "Responses are sampled from the bare question: it is the template that unlocks them.",
    ),
    Mistake(
        8, "p2o.py", "advantages_of(group, cfg, batch=rollouts, ", "advantages_of(group, cfg, batch=group, ",
        "`batch` is the whole batch, not the group: an advantage may compare groups.",
    ),
    # What only a run shows: the hint is then that of the first figure that differs.
    Mistake(8, "p2o.py", "state.templates = evolve_", "state.templates |= evolve_", ""),
    Mistake(8, "p2o.py", " if question_id in by_id]", "]", ""),
    Mistake(8, "p2o.py", "            state.hard = []\n", "", ""),
    Mistake(8, "p2o.py", "grpo.learning_rate_at((step + 1) / ", "grpo.learning_rate_at(step / ", ""),
    Mistake(8, "p2o.py", 'seed_for(cfg, "rollout", step)', 'seed_for(cfg, "rollout", batch)', ""),
    Mistake(8, "p2o.py", "chosen, state.templates, cfg, seed", "chosen, {}, cfg, seed", ""),
    Mistake(8, "p2o.py", "state.hard += [", "state.hard = [", ""),
    Mistake(8, "p2o.py", "mine_hard(rollouts, cfg) if question_id not in state.hard]", "mine_hard(rollouts, cfg)]", ""),
    Mistake(8, "p2o.py", "        grpo.score_old(policy, updates, cfg)", "        ", ""),
    Mistake(
        8, "p2o.py", "            metrics = grpo.update_policy(",
        "            grpo.score_old(policy, [update], cfg)\n            metrics = grpo.update_policy(", "",
    ),
    Mistake(8, "p2o.py", 'hard, cfg, epoch, run) if cfg.method == "p2o" else {}', "hard, cfg, epoch, run)", ""),
    Mistake(
        8, "p2o.py", "grpo.update_policy(policy, optimizer, update, cfg, rate)",
        "grpo.update_policy(policy, optimizer, update, cfg)", "",
    ),
]  # fmt: skip


def plant(files: dict[str, str], mistake: Mistake) -> dict[str, str]:
    """The files with the mistake in them."""
    source = files[mistake.file]
    if source.count(mistake.right) != 1:
        raise ValueError(f"{mistake.file} does not hold this once: {mistake.right!r}")
    return files | {mistake.file: source.replace(mistake.right, mistake.wrong)}
