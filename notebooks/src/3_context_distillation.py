# %% [markdown]
# # 3 · Context distillation
#
# Notebook 2 found templates under which the policy solves hard questions. P²O samples under them and then trains *as if the
# question had been bare*: both log-probabilities in the policy loss are $\log \pi(y \mid x)$, not $\log \pi(y \mid T(x, z))$.
# This is **context distillation**: what a context (the template) brought about moves into the weights.
#
# That it works can be seen in one training run. This notebook asks *why*: how large the lesson is in the one context and in the other,
# what is wrong with it as statistics, and which tokens are left out.

# %% [start]

# %%
import math
import random

import matplotlib.pyplot as plt
import torch
from IPython.display import HTML, display

import gepa_loop
import grpo
import verify
from support.data import load_questions
from tiny.problems import FAMILIES
from tools.tokens import coloured, legend, pieces

torch.set_num_threads(1)
plt.rcParams.update({"figure.dpi": 90})
policy = grpo.load_policy(grpo.PolicyConfig())
hard = load_questions("tiny/train.jsonl")[:48]
held_out = load_questions("tiny/hard.jsonl")[:60]
TEMPLATE = " ".join(family.hints[0] for family in FAMILIES.values())  # notebook 2 shows how such a template is found
print(TEMPLATE)

# %% [markdown]
# ## One response, two contexts
#
# Sample under the template until a response is right. Then score the *same tokens* under the bare question with `grpo.logprobs_of`.
#
# **Predict:** without the template this response is 350,000 times less likely. Are all of its tokens less likely, or a few?
# <details><summary>answer</summary>
#
# A few: the `;` tokens, the decisions to go on. The numbers are as likely as under the template: the skill is there. The lesson sits in
# five tokens of sixteen.
# </details>

# %%
question = hard[0]
bare = grpo.chat_ids(policy, question.text)
templated = grpo.chat_ids(policy, gepa_loop.apply_template(TEMPLATE, question.text))
samples = grpo.sample(policy, [templated] * 20, seed=0)
sample = next(s for s in samples if verify.grade(s.text, question.reference).reward)

under_template = grpo.logprobs_of(policy, [templated], [sample.response_ids])[0]
under_bare = grpo.logprobs_of(policy, [bare], [sample.response_ids])[0]
print(f"log-prob of the whole response: {sum(under_template):.2f} under the template, {sum(under_bare):.2f} bare")
tokens = pieces(policy.tokenizer, sample.response_ids)
html = legend("logprob") + f"<p>{question.text}</p>"
html += coloured(tokens, under_template, "logprob") + " under the template<br>" + coloured(tokens, under_bare, "logprob") + " bare"
display(HTML(html))

# %% [markdown]
# The **template ratio** of a token is $\pi_\text{old}(y_t \mid x) / \pi_\text{old}(y_t \mid T(x, z))$: how much of its probability is
# left when the template is taken away.
#
# **Predict:** the template makes the model go on with 0.9 instead of 0.07. What is the ratio of a `;`? Of a number?
# <details><summary>answer</summary>
#
# $0.07 / 0.9 \approx 0.08$, and 1: so nearly all of the factor of 350,000 is $0.08^5$.
# </details>

# %%
ratio = (torch.tensor(under_bare) - torch.tensor(under_template)).exp()
display(HTML(legend("ratio") + "<br>" + coloured(tokens, ratio.tolist(), "ratio")))
for token, r, b, t in zip(tokens, ratio.tolist(), under_bare, under_template):
    if r < 0.5:
        print(f"{token!r}: {math.exp(b):.3f} bare / {math.exp(t):.3f} under the template = {r:.3f}")

# %% [markdown]
# ## The size of the lesson
#
# How hard does one token pull? Let $p_k$ be the softmax of logits $u$. Then $\log p_k = u_k - \log \sum_j e^{u_j}$, so
#
# $$\frac{\partial \log p_k}{\partial u_k} = 1 - \frac{e^{u_k}}{\sum_j e^{u_j}} = 1 - p_k .$$
#
# On the first update all ratios are 1, and the gradient of the policy loss with respect to the chosen token's logit is
# $-A\,(1 - p)$. **A token that is likely already teaches nothing**, whatever its advantage. A token with $p = 0.07$ pulls with 93 % of $A$.

# %%
logits = torch.tensor([0.5, -2.0, 1.0], requires_grad=True)
log_p = logits.log_softmax(dim=0)[1]
log_p.backward()
print(f"by autograd {logits.grad[1]:.4f}, by the formula {1 - log_p.exp():.4f}")

# %% [markdown]
# Now the whole of it: six rollouts of each of 48 hard questions under the template, with their advantages. All tokens of a response share one.
# Take the going-on token `;` wherever it stands, and add up $A\,(1 - p)$: once with $p$ under the template (the context in which it
# was sampled), once with $p$ of the bare question (the context in which P²O trains).
#
# **Predict:** under which context is the sum larger, and by what factor? And the `;` tokens in responses that *failed* have $A < 0$: they
# went on, rightly, and stopped later, too early. Which way do they pull, and how much?
# <details><summary>answer</summary>
#
# Bare, by about nine. Under the template $p \approx 0.9$, so $1 - p \approx 0.1$; bare $p \approx 0.07$, so $1 - p \approx 0.93$. The failing
# responses pull the wrong way and cancel about a third of the lesson, in either context: their share of blame falls on every token alike.
# </details>

# %%
G = 6


def rollouts_of(policy, questions, seed, distill=True):
    asked = [q for q in questions for _ in range(G)]
    sampled = [grpo.chat_ids(policy, gepa_loop.apply_template(TEMPLATE, q.text)) for q in asked]  # T(x, z)
    trained = [grpo.chat_ids(policy, q.text) for q in asked] if distill else sampled  # x, or not
    samples = grpo.sample(policy, sampled, seed=seed)
    rewards = [g.reward for g in verify.grade_batch([s.text for s in samples], [q.reference for q in asked])]
    advantages = grpo.group_advantages(torch.tensor(rewards), G).tolist()
    return [
        grpo.Rollout(
            question_id=q.id, sampled_context=sampled[i], trained_context=trained[i],
            reward=rewards[i], advantage=advantages[i], **vars(samples[i]),
        )
        for i, q in enumerate(asked)
    ]


go_on = policy.tokenizer.convert_tokens_to_ids(";")
rollouts = rollouts_of(policy, hard, seed=1)
bare_logprobs = grpo.logprobs_of(policy, [r.trained_context for r in rollouts], [r.response_ids for r in rollouts])
decisions = [  # (A, p bare, p under the template) of every going-on token
    (r.advantage, math.exp(b), math.exp(t))
    for r, row in zip(rollouts, bare_logprobs)
    for token, b, t in zip(r.response_ids, row, r.sampled_logprobs)
    if token == go_on
]
lesson = {
    (name, sign): sum(d[0] * (1 - d[column]) for d in decisions if d[0] * sign > 0)
    for name, column in (("bare", 1), ("templated", 2))
    for sign in (1, -1)
}
print(f"{len(rollouts)} rollouts, {sum(r.reward for r in rollouts):.0f} right, {len(decisions)} going-on tokens")
print("sum of A (1 - p):      where A > 0   where A < 0      net")
for name in ("bare", "templated"):
    up, down = lesson[name, 1], lesson[name, -1]
    print(f"{name:>20} {up:+12.0f} {down:+13.0f} {up + down:+8.0f}")
print(f"bare / templated: {lesson['bare', 1] / lesson['templated', 1]:.1f}; cancelled: {-lesson['bare', -1] / lesson['bare', 1]:.0%}")

# %%
figure, axis = plt.subplots(figsize=(6, 2.8))
for sign, colour in ((1, "#1f77b4"), (-1, "#d62728")):
    axis.bar(["under the template", "bare"], [lesson["templated", sign], lesson["bare", sign]], color=colour)
axis.axhline(0, color="black", linewidth=0.8)
axis.set(ylabel="sum of A (1 - p) on `;`", title="the size of the lesson: blue A > 0, red A < 0")
plt.show()

# %% [markdown]
# **This is why distillation works.** The very same rollouts, with the very same rewards and advantages, hold nearly nine times the lesson if
# they are trained where the decision is unlikely. Trained where they were sampled, they tell the policy to do what it does there anyway.
#
# ## It is biased, and has to be
#
# The objective is the reward of *bare* sampling. Its gradient is an expectation over $y \sim \pi(\cdot \mid x)$, but these $y$ come from
# $\pi(\cdot \mid T(x, z))$. An unbiased estimate would weigh each response with $w = \prod_t \pi(y_t \mid x) / \pi(y_t \mid T(x, z))$.
# P²O drops $w$.
#
# **Predict:** how large is $w$ for a right response? What would be left of the lesson if it were kept?
# <details><summary>answer</summary>
#
# Each `;` contributes a factor of about 0.08: four of them $4 \cdot 10^{-5}$, five $3 \cdot 10^{-6}$. Nearly nothing would be left, and rightly: the bare
# policy solves one such question in a hundred thousand tries (notebook 1), so the true gradient of its reward *is* nearly zero. That is advantage collapse once more. An
# unbiased method cannot leave it.
# </details>

# %%
weights = [math.exp(sum(row) - sum(r.sampled_logprobs)) for r, row in zip(rollouts, bare_logprobs)]
right = sorted(w for r, w in zip(rollouts, weights) if r.reward)
print(f"w of a right response: median {right[len(right) // 2]:.1e}, largest {right[-1]:.1e}")
kept = [
    w * r.advantage * (1 - math.exp(b))
    for r, row, w in zip(rollouts, bare_logprobs, weights)
    for token, b in zip(r.response_ids, row)
    if token == go_on and r.advantage > 0
]
print(f"sum of A (1 - p) where A > 0: {lesson['bare', 1]:.0f} without w, {sum(kept):.4f} with it")

# %% [markdown]
# So what P²O follows is not the gradient of the bare reward. It is imitation: *make likelier, bare, what did better than its group
# under the template, and less likely what did worse*. Three things follow.
#
# - It can learn what unbiased methods cannot.
# - It learns whatever came with success under the template, useful or not; and the failing responses push down good decisions, too (red
#   above). In the loss, "old" is the bare policy as well, so $\rho$ starts at 1 and the clip works as in notebook 1.
# - The further the two contexts are apart, the less the response says about the bare policy. Hence the mask, below.
#
# **Predict:** what if "old" were $\pi_\text{old}(y_t \mid T(x, z))$, what the sampler reports? Then $\rho$ starts at the template ratio, 0.08 for a `;`.
# With $A > 0$: does the clip throw the token away?
# <details><summary>answer</summary>
#
# No. Where $A > 0$ only $\rho > 1.2$ is clipped. The gradient is there, but it carries the factor $\rho$: 13 times smaller, on just those tokens that matter.
# </details>

# %%
for name, old in (("bare", 0.07), ("under the template", 0.90)):
    new = torch.tensor([[math.log(0.07)]], requires_grad=True)
    loss, metrics = grpo.policy_loss(new, torch.tensor([[math.log(old)]]), torch.tensor([1.0]), torch.ones(1, 1))
    loss.backward()
    print(f"old = {old} ({name}): gradient {new.grad.item():+.3f}, clipped: {metrics['clip_fraction']:.0%}")

# %% [markdown]
# ### Another correction with a similar name
#
# `--importance-cap` also multiplies a ratio of two policies into the loss. It has nothing to do with templates. A fast sampling engine
# rounds differently from the trainer, so even in the *same* context $\pi_\text{sampler} \ne \pi_\text{trainer}$. Truncated importance
# sampling weighs each token by $\min(\pi_\text{trainer} / \pi_\text{sampler},\, c)$. Here the two are close, so the weight can be kept.
#
# **Predict:** the sampler below is the same model, rounded to 16 bits. How far are the weights from 1?
# <details><summary>answer</summary>
#
# A tenth of a percent on average, a few percent where a token was unlikely. That is small, but it is there in every step. If it is large, the
# sampler holds a stale adapter or another temperature: `mismatch` in `metrics.jsonl` watches it.
# </details>

# %%
sampler = grpo.load_policy(grpo.PolicyConfig())
sampler.model.to(torch.bfloat16)
contexts = [r.sampled_context for r in rollouts[:60]]
rounded = grpo.sample(sampler, contexts, seed=2)
trainer = grpo.logprobs_of(policy, contexts, [s.response_ids for s in rounded])
gaps = torch.tensor([new - old for s, row in zip(rounded, trainer) for new, old in zip(row, s.sampled_logprobs)])
cap = 2.0
weights = gaps.exp().clamp(max=cap)
print(f"mean |w - 1| {(weights - 1).abs().mean():.4f}, largest {(weights - 1).abs().max():.3f}, at the cap: {(weights == cap).sum()}")

# %% [markdown]
# ## The mask and its two bounds
#
# A token whose template ratio leaves $[0.01, 10]$ gets weight 0 (`grpo.template_ratio_weight`). The weight multiplies the token's loss; the
# denominator still counts it.
#
# - **The lower bound**, 0.01: the token is *too unlikely when bare*. Learning it would be a leap, not a step.
# - **The upper bound**, 10: the bare policy *prefers* it; the template had talked the policy out of it, and it slipped through. It says nothing about
#   what the template unlocked.
#
# **Predict:** in which of these four cases does the mask act? Divide first.
#
# | token | bare | under the template |
# | --- | --- | --- |
# | go on | 0.07 | 0.90 |
# | go on, a shyer model | 0.005 | 0.90 |
# | stop early | 0.93 | 0.10 |
# | stop early, a stronger hint | 0.93 | 0.05 |
#
# <details><summary>answer</summary>
#
# 0.078 and 9.3 are inside, 0.0056 and 18.6 outside: the second and the last are masked. The tiny model was made so that the authors' bounds leave
# its lesson alone. With your own model, look where the lesson lies before you trust the bounds.
# </details>

# %%
cases = {
    "go on": (0.07, 0.90), "go on, a shyer model": (0.005, 0.90),
    "stop early": (0.93, 0.10), "stop early, a stronger hint": (0.93, 0.05),
}
for name, (b, t) in cases.items():
    weight = grpo.template_ratio_weight(torch.tensor([[b]]).log(), torch.tensor([[t]]).log()).item()
    print(f"{name:>28}: {b} / {t} = {b / t:7.4f}, weight {weight:.0f}")

# %% [markdown]
# **Predict:** a histogram of the template ratios of all tokens of the 288 rollouts. Where are the heaps?
# <details><summary>answer</summary>
#
# One at $10^0$: most tokens do not care about the template. One near $10^{-1.1}$: the decisions to go on. One just below $10^1$: decisions to
# stop, which the bare policy prefers.
# </details>

# %%
log_ratios = torch.tensor([b - t for r, row in zip(rollouts, bare_logprobs) for b, t in zip(row, r.sampled_logprobs)])
figure, axis = plt.subplots(figsize=(7, 2.8))
axis.hist((log_ratios / math.log(10)).numpy(), bins=60, log=True)
for bound in (-2, 1):
    axis.axvline(bound, color="crimson")
axis.set(xlabel="log10 of the template ratio", ylabel="tokens", title=f"{len(log_ratios)} tokens, the bounds in red")
plt.show()
ratios = log_ratios.exp()
masked = (ratios < 0.01) | (ratios > 10)
print(f"smallest ratio {ratios.min():.4f}, largest {ratios.max():.2f}; masked: {masked.float().mean():.2%} of the tokens")

# %% [markdown]
# **A warning about the soft clip.** `--soft-clip` gives a token outside the bounds the weight bound / ratio instead of 0. Above the upper bound that
# is a weight below 1.
#
# **Predict:** what is it below the lower bound, for a token with a ratio of $e^{-13.9}$, one in a million?
# <details><summary>answer</summary>
#
# 0.01 / 0.00000092 = 10,881. The soft clip **amplifies** just those tokens that the hard clip deletes, the more the unlikelier they are. One such token
# outweighs all others of its batch.
# </details>

# %%
for log_ratio in (-2.5, -4.6, -7.0, -13.9, 3.0):
    bare_logprob = torch.tensor([[log_ratio]])
    hard_weight, soft_weight = (grpo.template_ratio_weight(bare_logprob, torch.zeros(1, 1), soft=s).item() for s in (False, True))
    print(f"ratio e^{log_ratio:<6} = {math.exp(log_ratio):9.2e}: hard clip {hard_weight:.0f}, soft clip {soft_weight:,.2f}")

# %% [markdown]
# ## With and without distillation
#
# Two copies of the policy, the same template, the same number of rollouts. One is trained on the bare question, the other on
# the context that was sampled from. Everything else is equal.
#
# **Predict:** held-out accuracy with the *bare* prompt after three passes, for both.
# <details><summary>answer</summary>
#
# With distillation it rises from 0 to 0.98 in two passes, and then falls back to 0.83: the learning rate is high and constant, twice the preset's, and
# nothing stops the policy from overshooting. Do not take the last point of a curve for its end.
# Without, the policy is trained where it succeeds already, and the bare question gains nothing that shows in the accuracy.
# </details>

# %%
cfg = grpo.UpdateConfig()


def train(distill, passes=3, questions_per_update=8):
    policy = grpo.load_policy(grpo.PolicyConfig())
    optimizer = torch.optim.AdamW(policy.trainable, lr=1e-3, weight_decay=0.0)
    curve = [accuracies(policy)]
    for step in range(passes):
        order = random.Random(step).sample(hard, len(hard))
        for start in range(0, len(order), questions_per_update):
            rollouts = rollouts_of(policy, order[start : start + questions_per_update], 100 * step + start, distill)
            grpo.score_old(policy, [rollouts], cfg)  # log pi_old in the trained context, and the mask
            grpo.update_policy(policy, optimizer, rollouts, cfg)
        curve.append(accuracies(policy))
    return policy, curve


def accuracies(policy):
    """Held-out accuracy, greedy: (bare, under the template)"""
    result = []
    for template in ("", TEMPLATE):
        samples = grpo.respond(policy, [gepa_loop.apply_template(template, q.text) for q in held_out], seed=None)
        grades = verify.grade_batch([s.text for s in samples], [q.reference for q in held_out])
        result.append(sum(g.reward for g in grades) / len(grades))
    return result


distilled, curve_with = train(distill=True)
undistilled, curve_without = train(distill=False)
figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
for axis, name, curve in zip(axes, ("with distillation", "without"), (curve_with, curve_without)):
    axis.plot([c[0] for c in curve], "o-", label="bare question")
    axis.plot([c[1] for c in curve], "s--", color="grey", label="under the template")
    axis.set(xlabel="passes over 48 questions", title=name, ylim=(-0.05, 1.05), xticks=range(len(curve)))
    axis.grid(alpha=0.25)
axes[0].set_ylabel("held-out accuracy, greedy")
axes[0].legend(frameon=False)
figure.tight_layout()
plt.show()
print("bare, with distillation:", [round(c[0], 2) for c in curve_with], " without:", [round(c[0], 2) for c in curve_without])

# %% [markdown]
# ## What changed inside
#
# **Predict:** the probability of going on after the first state of a bare question was 0.07. What is it now, with distillation? And without: exactly
# 0.07 still?
# <details><summary>answer</summary>
#
# About 0.9 with distillation, as under the template. Without it rises a little, too: both contexts share the weights, so a lesson learnt in one spills
# over into the other. How much depends on the rate and the number of passes. Distillation does not leave it to chance.
# </details>

# %%


def going_on(policy, question):
    response = grpo.respond(policy, [question.text], seed=None)[0].response_ids
    context = grpo.chat_ids(policy, question.text) + response[:1]  # the question and the first state
    return math.exp(grpo.logprobs_of(policy, [context], [[go_on]])[0][0])


for name, p in (("before", policy), ("with distillation", distilled), ("without", undistilled)):
    print(f"{name:>18}: {sum(going_on(p, q) for q in held_out[:20]) / 20:.2f}")

# %% [markdown]
# The same response as at the top, coloured by $\pi_\text{distilled}(y_t \mid x) / \pi_\text{base}(y_t \mid x)$: the tokens that distillation
# has moved. Struck through are those that PPO's clip would silence if it were one update ($A > 0$, ratio above 1.2).
#
# **Predict:** which tokens have moved, by what factor, and could a single batch have done it?
# <details><summary>answer</summary>
#
# The `;`, from 0.07 to nearly 1: some fourteen times likelier. A single batch hardly could: beyond 1.2 the clip ends a token's pull, and each
# new batch starts again from ratio 1.
# </details>

# %%
moved = grpo.logprobs_of(distilled, [bare], [sample.response_ids])[0]
ratio = (torch.tensor(moved) - torch.tensor(under_bare)).exp()
display(HTML(legend("importance") + "<br>" + coloured(tokens, ratio.tolist(), "importance", (ratio > 1.2).tolist())))

# %% [markdown]
# ### How far has it moved? k3
#
# The distance between the trained policy and its base is $\text{KL} = \mathbb{E}_{y \sim \pi}[\log \pi - \log \pi_\text{ref}]$. The plain
# estimate of a token (k1) is $\log \pi - \log \pi_\text{ref}$ itself: right on average, but it can be negative. With $d = \log \pi_\text{ref} -
# \log \pi$, **k3** is $e^d - d - 1$: also right on average, never negative. `--kl-coef` adds it to the loss; P²O does not use it.
#
# **Predict:** one policy has moved a little (trained without distillation), one far (with). For which of them do k1 and k3 agree? Which varies less from
# token to token?
# <details><summary>answer</summary>
#
# For the near one, and there k3 varies less: adding $e^d - 1$, whose mean is 0, takes out noise. For the far one k3 is too small. Its mean needs the rare
# tokens that the base likes a hundred times more (the early stops); they hardly ever come, and `grpo.kl_k3` limits each to 10. And for the samples of
# *another* policy, here the base, neither is right: k1 is even negative.
# </details>

# %%
contexts = [grpo.chat_ids(policy, q.text) for q in held_out for _ in range(4)]
for name, p, adapter in (("near", undistilled, True), ("far", distilled, True), ("far, base's samples", distilled, False)):
    responses = [s.response_ids for s in grpo.sample(p, contexts, seed=3, adapter=adapter)]
    new, ref = (torch.tensor(sum(grpo.logprobs_of(p, contexts, responses, adapter=a), [])) for a in (True, False))
    k1, k3 = new - ref, grpo.kl_k3(new, ref)
    print(f"{name:>20}: k1 {k1.mean():+.3f} ± {k1.std():.2f}   k3 {k3.mean():+.3f} ± {k3.std():.2f}   per token")

# %% [markdown]
# ## Exercises
#
# **1.** The failing responses push good decisions down. Leave out every rollout with $A < 0$ (the option `--drop-failed-templated`
# is close to it). How much larger is the net lesson on `;`? What is lost?
# <details><summary>solution</summary>
#
# ```python
# net, positive = lesson["bare", 1] + lesson["bare", -1], lesson["bare", 1]
# print(f"net {net:.0f}, positive part alone {positive:.0f}: {positive / net:.1f} times")
# stop = policy.tokenizer.convert_tokens_to_ids(".")
# early = sum(
#     r.advantage * (1 - math.exp(b))
#     for r, row in zip(rollouts, bare_logprobs)
#     for token, b in zip(r.response_ids, row)
#     if token == stop and r.advantage < 0
# )
# print(f"lost: {early:.0f} on the early stops themselves, which is little, as the bare policy is so sure of them")
# assert positive > 1.2 * net and abs(early) < positive / 5
# ```
# </details>
#
# **2.** Suppose that the base went on with 0.3 rather than 0.07 when bare, and with 0.9 under the hint. What would the ratio of the two lessons be?
# From which bare probability on is distillation worth less than twice the templated lesson?
# <details><summary>solution</summary>
#
# ```python
# def factor(bare, hint=0.9):
#     return (1 - bare) / (1 - hint)
#
# print(f"{factor(0.07):.1f} at 0.07, {factor(0.3):.1f} at 0.3; twice at {1 - 2 * (1 - 0.9):.1f}")
# assert abs(factor(0.8) - 2) < 1e-6
# ```
# </details>
#
# **3.** Check the bound of the soft clip: at which ratio below 0.01 does one token weigh as much as 100 ordinary ones?
# <details><summary>solution</summary>
#
# ```python
# log_ratio = math.log(0.01 / 100)  # bound / ratio = 100
# weight = grpo.template_ratio_weight(torch.tensor([[log_ratio]]), torch.zeros(1, 1), soft=True).item()
# print(f"at a ratio of {math.exp(log_ratio):.4f} the weight is {weight:.0f}")
# assert abs(weight - 100) < 0.1
# ```
# </details>
#
# **What you have seen.** A template changes a few decisive tokens. The lesson $A(1 - p)$ of a token is large where the token is unlikely, so distillation
# trains those tokens where they will be needed: without the template. Next, all parts together:
# [4 · P²O end to end](4_p2o_end_to_end.ipynb).
