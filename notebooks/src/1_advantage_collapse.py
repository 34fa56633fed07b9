# %% [markdown]
# # 1 · Advantage collapse
#
# **Reinforcement learning with verifiable rewards** trains a language model on questions whose answers can be checked.
# The model is the **policy**: it writes a response, a **verifier** checks the answer, and the **reward** is 1 or 0.
#
# This notebook builds GRPO in six steps, from twenty lines of REINFORCE, and then shows the one case in which it cannot learn
# at all. That case is what P²O ([arXiv:2603.21877](https://arxiv.org/abs/2603.21877)) is about.
#
# Before each picture stands a **Predict**: think of an answer, then unfold ours. It runs on a laptop in under a minute.

# %% [start]

# %%
import math
import random
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from IPython.display import HTML, display
from torch.nn.functional import logsigmoid

import grpo
import verify
from gepa_loop import apply_template
from support.data import load_questions
from tiny.problems import draw
from tools.tokens import coloured, legend, pieces

torch.set_num_threads(1)
plt.rcParams.update({"figure.dpi": 90, "axes.grid": True, "grid.alpha": 0.25})

# %% [markdown]
# ## Step 1 · REINFORCE in twenty lines
#
# The smallest policy there is: one number. A question is a chain of decisions, each of them *go on* or *stop*, and the policy goes on
# with probability $p = \text{sigmoid}(\text{logit})$. Three questions need 1, 2 and 4 decisions to go on. Reward 1 if it never
# stopped too early.
#
# REINFORCE: sample responses, and raise the log-probability of each in proportion to its reward $r$,
# $\;\nabla J = \mathbb{E}[\,r\, \nabla \log \pi(y)\,]$.

# %%
DECISIONS = torch.tensor([[1], [2], [4]])  # of each question


def play(logit, G, rng):
    """G responses to each question: how often each went on [3, G], and its reward [3, G]."""
    goes = torch.rand(3, G, 4, generator=rng) < logit.sigmoid()
    went_on = goes.cumprod(dim=2).sum(dim=2).minimum(DECISIONS)  # up to the first stop
    return went_on, (went_on == DECISIONS).float()


def log_pi(logit, went_on):
    return went_on * logsigmoid(logit) + (went_on < DECISIONS) * logsigmoid(-logit)


def gradient(advantage, logit, rng, G=6):
    logit = torch.tensor(float(logit), requires_grad=True)
    went_on, reward = play(logit.detach(), G, rng)
    return torch.autograd.grad((advantage(reward) * log_pi(logit, went_on)).mean(), logit)[0]


def learn(advantage, seed, steps=40):
    rng, logit, curve = torch.Generator().manual_seed(seed), -1.0, []
    for _ in range(steps):
        curve.append(torch.tensor(logit).sigmoid().item())
        logit += gradient(advantage, logit, rng).item()  # gradient ascent, at a rate of 1
    return curve


def reinforce(reward):
    return reward


# %% [markdown]
# **Predict:** the policy begins by going on with probability 0.27. It is never told which decisions were good, only whether the whole
# response was. Will it learn to go on? Will ten runs with ten seeds look alike?
# <details><summary>answer</summary>
#
# Yes, and roughly. Responses that went on all the way are the only ones with a reward, so going on is all that is ever raised.
# The seeds differ, because each step rests on 18 responses.
# </details>

# %%
for seed in range(10):
    plt.plot(learn(reinforce, seed), color="#1f77b4", alpha=0.5)
plt.gcf().set_size_inches(5, 2.8)
plt.gca().set(xlabel="step", ylabel="probability of going on", title="REINFORCE, ten seeds", ylim=(0, 1))
plt.show()

# %% [markdown]
# That is reinforcement learning. The next five steps change only what stands in front of $\nabla \log \pi$: the **advantage** $A$ in
# the place of $r$, and then what happens when the same responses are used for more than one step.
#
# ## Step 2 · A baseline: less noise
#
# A reward of 1 says little when everybody gets 1. Subtract the mean reward: what is better than usual is raised, what is worse
# lowered. The gradient stays the same on average, because $\mathbb{E}[\nabla \log \pi] = 0$.
#
# **Predict:** 1,000 estimates of the same gradient, at $p = 0.73$, with and without the baseline. What moves: the centre, the
# width, or both?
# <details><summary>answer</summary>
#
# The width: it halves. The centre moves by 1/18 of its value only, because each of the 18 rewards is part of the mean that is
# subtracted from it.
# </details>

# %%


def baseline(reward):
    return reward - reward.mean()


def estimates(advantage, logit=1.0, count=1000):
    rng = torch.Generator().manual_seed(0)
    return torch.stack([gradient(advantage, logit, rng) for _ in range(count)])


figure, axis = plt.subplots(figsize=(5, 2.8))
for name, advantage in (("REINFORCE", reinforce), ("with a baseline", baseline)):
    drawn = estimates(advantage)
    axis.hist(drawn.numpy(), bins=40, alpha=0.6, label=f"{name}: {drawn.mean():.3f} ± {drawn.std():.3f}")
axis.set(xlabel="estimate of the gradient", ylabel="of 1,000", title="what the baseline changed")
axis.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## Step 3 · A group: each question is its own baseline
#
# Questions differ. If the mean goes over all of them, everybody who fails a hard question is blamed, and everybody who solves an easy
# one is praised. GRPO samples a **group** of $G$ responses for each question and takes the group's mean.
#
# **Predict:** below, a row is a question and a column a response. In the last row all six failed. What is their advantage under
# the mean of all? And under the group's mean?
# <details><summary>answer</summary>
#
# Under the mean of all: negative, all six alike (red). Under the group's mean: 0. Nobody did better than the others, so there is nothing
# to say. Remember that row: it is *advantage collapse*, the subject of this notebook.
# </details>

# %%


def group(reward):
    return reward - reward.mean(dim=1, keepdim=True)


_, reward = play(torch.tensor(0.0), 6, torch.Generator().manual_seed(16))
figure, axes = plt.subplots(1, 2, figsize=(8, 2.4), sharey=True)
for axis, name, advantage in zip(axes, ("mean of all", "mean of the group"), (baseline(reward), group(reward))):
    axis.imshow(advantage, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    for y, x in [(y, x) for y in range(3) for x in range(6)]:
        axis.text(x, y, f"r={reward[y, x]:.0f}\n{advantage[y, x]:+.2f}", ha="center", va="center", fontsize=8)
    axis.set(title=name, xlabel="response", yticks=range(3), yticklabels=["1 decision", "2", "4"])
    axis.grid(False)
plt.show()
print({a.__name__: f"{estimates(a).mean():.3f} ± {estimates(a).std():.3f}" for a in (baseline, group)})

# %% [markdown]
# The line below the picture is the price: the mean of six rewards is a poorer baseline than the mean of 18, so the estimate is noisier.
# In a model with millions of weights, where questions do not share one number, fairness is worth it.
#
# ## Step 4 · The standard deviation: rare successes count
#
# Divide by the group's standard deviation:
#
# $$A_i = \frac{r_i - \text{mean}(r)}{\text{std}(r) + 10^{-6}}$$
#
# **Predict:** a group of six with one success, and one with three. How much larger is the lone success's advantage, before and after
# the division? And how much does the whole group push, $\sum_i |A_i|$?
# <details><summary>answer</summary>
#
# Before: 0.83 against 0.50. After: 2.04 against 0.91. The whole group: without the division a group with three successes
# pushes 1.8 times as hard as one with a single success (3.0 against 1.67), with it 1.3 times (5.5 against 4.1). Groups at 0 and 6 push
# not at all, and no division helps them: 0 / 0 is kept at 0 by the $10^{-6}$.
# </details>

# %%
successes = range(7)
groups = [torch.tensor([1.0] * k + [0.0] * (6 - k)) for k in successes]
scaled = [grpo.group_advantages(r, 6) for r in groups]  # the repository's own: steps 3 and 4
unscaled = [grpo.group_advantages(r, 6, scale_by_std=False) for r in groups]
figure, axes = plt.subplots(1, 2, figsize=(8, 2.6))
for name, advantages in (("mean only", unscaled), ("divided by std", scaled)):
    axes[0].plot(successes[1:], [a.max() for a in advantages[1:]], "o-", label=name)
    axes[1].plot(successes, [a.abs().sum() for a in advantages], "o-", label=name)
axes[0].set(xlabel="successes of 6", ylabel="advantage of a success")
axes[1].set(xlabel="successes of 6", ylabel="sum of |A| of the group")
axes[0].legend(frameon=False)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Step 5 · The clip: several steps on the same responses
#
# Sampling is dear, so one batch serves several steps. But after the first step it was sampled from an *older* policy. The **ratio**
# $\rho = \pi_\text{new} / \pi_\text{old}$ of each token corrects for that, and PPO's **clip** says when to stop:
#
# $$L = \max(-A\rho,\; -A\,\text{clip}(\rho, 0.8, 1.2))$$
#
# Making a good token more likely gains nothing beyond $\rho = 1.2$; making a bad one less likely gains nothing below 0.8.
# `grpo.surrogate` is this loss of each token.
#
# **Predict:** one batch of 18 responses, 60 steps on it. Where does $p$ end without the clip, and where with it?
# <details><summary>answer</summary>
#
# Without: it is on its way to 1. Eighteen responses, four of them right, are taken for the whole truth. With the clip it stops where the
# tokens that push have reached their bounds: an update can only go so far on what one batch knows.
# </details>

# %%
rng = torch.Generator().manual_seed(45)
old = torch.tensor(-1.0)
went_on, reward = play(old, 6, rng)
A = grpo.group_advantages(reward.flatten(), 6).view(3, 6)


def steps_on_one_batch(clip_low, clip_high, dual_clip=1e9, steps=60):
    logit, curve = old.clone().requires_grad_(), []
    for _ in range(steps):
        curve.append(logit.sigmoid().item())
        bounds = {"clip_low": clip_low, "clip_high": clip_high, "dual_clip": dual_clip}
        going = grpo.surrogate(logsigmoid(logit) - logsigmoid(old), A, **bounds)  # the loss of each `go on` token
        stopping = grpo.surrogate(logsigmoid(-logit) - logsigmoid(-old), A, **bounds)  # of each `stop` token
        loss = (went_on * going + (went_on < DECISIONS) * stopping).mean()
        logit = (logit - 0.5 * torch.autograd.grad(loss, logit)[0]).detach().requires_grad_()
    return curve


figure, axis = plt.subplots(figsize=(5, 2.8))
for name, bounds in (("ratio alone", (1.0, 1e9)), ("clip at 0.8 and 1.2", (0.2, 0.2))):
    curve = steps_on_one_batch(*bounds)
    axis.plot(curve, label=f"{name}: ends at {curve[-1]:.2f}")
axis.set(xlabel="step on the same batch", ylabel="probability of going on", title="what the clip changed", ylim=(0, 1))
axis.legend(frameon=False, fontsize=8)
plt.show()
print(f"{reward.sum():.0f} of {reward.numel()} responses were right")

# %% [markdown]
# ## Step 6 · The dual clip: a bound on blame
#
# The larger of the two losses counts, so moving the *wrong* way is always charged. Where $A < 0$ that charge has no bound: a bad token
# that has become 50 times likelier pulls 50 times as hard as its neighbours. The **dual clip** bounds it:
# where $A < 0$, $L \leftarrow \min(-3A, L)$.
#
# **Predict:** draw the loss of a token with $A = -1$ against its ratio, from 0 to 5. Where is it flat?
# <details><summary>answer</summary>
#
# Below 0.8 (it has moved far enough, the right way: PPO's clip) and above 3 (it has moved far, the *wrong* way: the dual clip silences
# it). In between it is a straight line.
# </details>

# %%
ratios = torch.linspace(0.01, 5, 300)
figure, axes = plt.subplots(1, 2, figsize=(9, 2.8))
for axis, advantage in zip(axes, (1.0, -1.0)):
    for name, dual in (("PPO's clip", 1e9), ("and the dual clip at 3", 3.0)):
        bounds = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": dual}
        axis.plot(ratios, grpo.surrogate(ratios.log(), torch.tensor(advantage), **bounds), label=name, alpha=0.8)
    axis.axvspan(0.8, 1.2, alpha=0.15)
    axis.set(xlabel="ratio new / old", ylabel="loss of the token", title=f"A = {advantage:+.0f}")
axes[1].legend(frameon=False, fontsize=8)
figure.tight_layout()
plt.show()

# %% [markdown]
# That is GRPO: REINFORCE with the group's mean and standard deviation in the advantage, and two clips in the loss. `grpo.py` holds
# these lines; here they are on two tokens, by hand and by `grpo.policy_loss`.
#
# **Predict:** a token with $A = +1$ went from 0.2 to 0.3, one with $A = -1$ from 0.1 to 0.4. What is the gradient of each?
# <details><summary>answer</summary>
#
# Zero, both. The ratios are 1.5 and 4, and each is beyond a bound: why, and which, stands below the numbers.
# </details>

# %%
new, old = [math.log(0.30), math.log(0.40)], [math.log(0.20), math.log(0.10)]
A = [1.0, -1.0]

ratios = [math.exp(n - o) for n, o in zip(new, old)]  # 1.5 and 4.0
first = max(-A[0] * ratios[0], -A[0] * 1.2)  # A > 0, ratio above 1.2: the clip holds, -1.2
second = min(-A[1] * 3.0, max(-A[1] * ratios[1], -A[1] * 1.2))  # A < 0: 4.0, bounded by the dual clip to 3.0
by_hand = (first + second) / 2  # mean over tokens

logprobs = torch.tensor([new], requires_grad=True)  # [B, T] with B = 1 response of T = 2 tokens
loss, metrics = grpo.policy_loss(logprobs, torch.tensor([old]), torch.tensor([A]), torch.ones(1, 2))
loss.backward()
print(f"by hand {by_hand:.4f}, grpo.policy_loss {loss.item():.4f}, gradient {logprobs.grad.tolist()}")
print({name: round(value, 3) for name, value in metrics.items()})
assert abs(by_hand - loss.item()) < 1e-6

# %% [markdown]
# Neither token has a gradient, for opposite reasons. The first has moved far enough in the direction that $A$ asks for: PPO's clip,
# `clip_fraction` 0.5. The second has moved far in the *wrong* direction, and the dual clip silences it: `dual_clip_fraction` 0.5.
# `approx_kl` is the mean of $-\log\rho$, which estimates how far the new policy is from the old one: $\text{KL}(\text{old} \,\|\,
# \text{new})$. That holds for tokens sampled from the old policy; for two tokens chosen by hand it can even be negative, as here.
#
# # From one number to a language model
#
# The policy is now a small language model (0.8 M parameters), trained from scratch on four kinds of questions (see `tiny/`). Hard questions
# have five or six elements, easy ones have two. To solve one it has to write an intermediate state for each element. After each state it
# decides with one token: `;` goes on, `.` stops.
#
# Be clear about what was put in. The model was *made* so that it mostly stops early (and always goes on where the question is easy),
# and so that a fitting instruction makes it go on. What it then learns, and what the search of notebook 2 finds, is not scripted.

# %%
policy = grpo.load_policy(grpo.PolicyConfig())
questions = load_questions("tiny/train.jsonl")
hard, easy = questions[:48], questions[144:]
print(f"{sum(p.numel() for p in policy.model.parameters() if not p.requires_grad):,} parameters\n")
for question in (easy[1], hard[1]):
    rollout = grpo.respond(policy, [question.text], seed=0)[0]  # a rollout is one sampled response
    print(question.text, "\n  ", rollout.text, "\n  ", verify.grade(rollout.text, question.reference), "\n")

# %% [markdown]
# `verify.grade` gives reward 1 if the response has exactly one `\boxed{}` answer and that answer is right. On the hard question the model
# steps right, and stops too early.
#
# ## Groups
#
# **Predict:** groups of six for the 40 easy questions, the 48 hard ones, and the hard ones again under an instruction that tells it to work
# step by step. Green is reward 1. How will the three pictures look?
# <details><summary>answer</summary>
#
# All green, all white, and a mixture. Only the mixture has contrast within its rows. Where the instruction comes from is the subject of
# notebook 2.
# </details>

# %%
G = 6


def sample_rewards(questions, group_size, seed=0):
    asked = [q for q in questions for _ in range(group_size)]
    samples = grpo.respond(policy, [q.text for q in asked], seed=seed)
    rewards = [g.reward for g in verify.grade_batch([s.text for s in samples], [q.reference for q in asked])]
    return torch.tensor(rewards), samples  # [questions * G]


INSTRUCTION = (
    "Add one digit at a time. Double and add for every bit. Apply one operation at a time. Move the hand step by step."
)
instructed = [replace(q, text=apply_template(INSTRUCTION, q.text)) for q in hard]
sets = {"easy": easy, "hard": hard, "hard, instructed": instructed}
sampled = {name: sample_rewards(questions, G) for name, questions in sets.items()}

figure, axes = plt.subplots(1, 3, figsize=(10, 3.6))
for axis, (name, (rewards, _)) in zip(axes, sampled.items()):
    axis.imshow(rewards.view(-1, G), cmap="Greens", vmin=0, vmax=1, aspect="auto")
    axis.set(title=f"{name}: mean reward {rewards.mean():.2f}", xlabel="rollout of the group", ylabel="question")
    axis.grid(False)
figure.tight_layout()
plt.show()

# %% [markdown]
# One group of each kind, its responses coloured by their advantage: blue will be made more likely, red less, and what is not coloured
# teaches nothing. (All tokens of a response share one advantage.)
#
# **Predict:** which of the three groups has any colour?
# <details><summary>answer</summary>
#
# Only the instructed one. In the others all six earned the same, right or wrong, so all six advantages are 0.
# </details>

# %%
html = legend("advantage")
for name, (rewards, samples) in sampled.items():
    html += f"<p>{name}: {sets[name][1].text.splitlines()[-1]}</p>"
    for sample, advantage in zip(samples[G : 2 * G], grpo.group_advantages(rewards[G : 2 * G], G).tolist()):
        html += coloured(pieces(policy.tokenizer, sample.response_ids), advantage, "advantage") + f" {advantage:+.2f}<br>"
display(HTML(html))

# %% [markdown]
# ## Collapse
#
# If all rollouts of a group fail, or all succeed, every advantage is 0. The group teaches nothing. This is **advantage collapse**: at the
# bottom (all fail) or at the top (all succeed). `grpo.update_policy` makes one optimizer step on a batch of rollouts; its
# `grad_norm` is the length of the gradient.
#
# **Predict:** what is the gradient of the easy questions, which are all right? Of the hard ones, all wrong?
# <details><summary>answer</summary>
#
# Exactly zero, both. Whatever the learning rate, nothing moves. Being right is as silent as being wrong when everybody is.
# </details>

# %%


def rollouts_of(questions, rewards, samples):
    rollouts = []
    for i, advantage in enumerate(grpo.group_advantages(rewards, G).tolist()):
        context = grpo.chat_ids(policy, questions[i // G].text)  # the question in the model's chat format, as token ids
        rollouts.append(
            grpo.Rollout(
                question_id=questions[i // G].id, sampled_context=context, trained_context=context,
                reward=rewards[i].item(), advantage=advantage, **vars(samples[i]),
            )
        )
    return rollouts


optimizer = torch.optim.SGD(policy.trainable, lr=0.0)  # look, but do not step
for name, questions in sets.items():
    rollouts = rollouts_of(questions, *sampled[name])
    collapsed = sum(not any(r.has_signal for r in group) for group in grpo.groups_of(rollouts)) / len(questions)
    metrics = grpo.update_policy(policy, optimizer, rollouts[: 16 * G], grpo.UpdateConfig())
    print(f"{name:>16}: {collapsed:4.0%} of the groups collapsed, grad_norm {metrics['grad_norm']:.3f}, loss {metrics['loss']:.3f}")

# %% [markdown]
# The loss of the instructed questions is not a number to watch. In the first update the policy is still the one that sampled: all ratios are
# 1, the loss is the mean of $-A$ over tokens, and the advantages of a group sum to zero. With responses of equal length it is zero
# though the gradient is not; here right responses are longer, so they have more tokens in the mean. **A loss that begins near zero is no bug.**
#
# **Predict:** one token with $A = +1$, one with $A = -1$, both at ratio 1. What is the loss, and what is its gradient?
# <details><summary>answer</summary>
#
# The loss is $(-1 + 1) / 2 = 0$. The gradient with respect to the log-probs is $-A / 2$: one goes up, one goes down.
# </details>

# %%
logprobs = torch.full((2, 1), math.log(0.5), requires_grad=True)
loss, _ = grpo.policy_loss(logprobs, logprobs.detach(), torch.tensor([1.0, -1.0]), torch.ones(2, 1))
loss.backward()
print("loss", loss.item(), "gradient", logprobs.grad.flatten().tolist())

# %% [markdown]
# ## Why twice the rollouts hardly help
#
# The obvious cure is to sample more. A group of $G$ has a success with probability $1 - (1 - p)^G$, where $p$ is the
# **pass rate**, the chance of one rollout. It is too small to be counted, but it can be computed: in this world only the full
# chain of states is right, so $p$ is the probability of that one response, the product of its tokens' probabilities.
#
# **Predict:** going on has a probability of about 0.07, and six elements need five decisions to go on. How many rollouts does one
# success take?
# <details><summary>answer</summary>
#
# $0.07^5 \approx 1.7 \cdot 10^{-6}$: about 600,000 rollouts for one question. With five elements it is about 40,000.
# </details>

# %%
rng = random.Random(0)
lengths, pass_rates = [3, 4, 5, 6], []
for length in lengths:
    drawn = [draw(rng, family, (length,)) for family in ("total", "binary", "chain", "clock") for _ in range(10)]
    contexts = [grpo.chat_ids(policy, problem.question) for problem in drawn]
    right = [policy.tokenizer(f"{problem.response()}<|end|>").input_ids for problem in drawn]  # the right responses
    logprobs = grpo.logprobs_of(policy, contexts, right)  # log pi(y_t | x, y_<t) of each token
    pass_rates.append(torch.tensor([sum(row) for row in logprobs]).exp().mean().item())
    print(f"{length} elements: pass rate {pass_rates[-1]:.1e}, one success in {1 / pass_rates[-1]:,.0f} rollouts")
display(HTML(legend("logprob") + "<br>" + coloured(pieces(policy.tokenizer, right[0]), logprobs[0], "logprob")))
print([round(x, 1) + 0.0 for x in logprobs[0]])

# %% [markdown]
# The numbers are sure (log-prob 0). Each `;` costs about 2.6 nats: $e^{-2.6} = 0.07$.
#
# **Predict:** what does a group of 12 buy, compared with a group of 6?
# <details><summary>answer</summary>
#
# For five and six elements twice nearly nothing, which is nearly nothing. The grey lines below are $G = 6$ and $G = 12$: both lie at the
# flat left end. A better prompt is cheaper: notebook 2.
# </details>

# %%
figure, axis = plt.subplots(figsize=(6.5, 3))
sizes = torch.logspace(0, 7, 200, dtype=torch.double)
for length, p in zip(lengths, pass_rates):
    axis.semilogx(sizes, 1 - (1 - p) ** sizes, label=f"{length} elements")
axis.axvline(6, color="grey", linewidth=0.8)
axis.axvline(12, color="grey", linewidth=0.8, linestyle="--")
axis.set(xlabel="group size G", ylabel="chance of a success in the group", title="what more rollouts buy")
axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
for size in (6, 12):
    print(f"5 elements: a group of {size} holds a success with probability {1 - (1 - pass_rates[2]) ** size:.5f}")

# %% [markdown]
# ## Feel it: collapse at the bottom and at the top
#
# Five elements, four decisions. A group teaches if it holds both successes and failures: with $q = p_\text{go on}^4$ that happens with
# probability $1 - (1 - q)^G - q^G$.
#
# **Predict:** where between 0 and 1 should the probability of going on lie, so that a group of six teaches? And is a hint that
# always makes the model go on the best hint?
# <details><summary>answer</summary>
#
# In the hump, between about 0.6 and 0.97. The bare prompt (0.07) lies left of it: collapse at the *bottom*. A hint of strength 1.0
# lies right of it: all succeed, all advantages are 0, collapse at the *top*. The tiny model's hints make it go on with 0.9.
# </details>

# %%
figure, axis = plt.subplots(figsize=(6.5, 3))
going_on = torch.linspace(0, 1, 400, dtype=torch.double)
for size in (2, 6, 12, 48):
    axis.plot(going_on, 1 - (1 - going_on**4) ** size - going_on ** (4 * size), label=f"G = {size}")
for x, name in ((0.07, "bare"), (0.9, "hint")):
    axis.axvline(x, color="grey", linewidth=0.8)
    axis.text(x, 1.07, name, ha="center")
axis.set(xlabel="probability of going on", ylabel="chance that a group teaches", ylim=(0, 1.15))
axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# Where widgets run (Jupyter, not on a page that only shows the notebook), drag: push the bare probability up until its groups
# get colours, push the hint's strength to 1, then try to save either with $G$.

# %%
from ipywidgets import FloatSlider, IntSlider, interact


def groups_drawn(bare, hint, G):
    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    for axis, name, going_on in zip(axes, ("bare", "under the hint"), (bare, hint)):
        rewards = (torch.rand(24, G, 4, generator=torch.Generator().manual_seed(0)) < going_on).all(dim=2).float()
        axis.imshow(rewards, cmap="Greens", vmin=0, vmax=1, aspect="auto")
        teaching = (rewards.std(dim=1) > 0).float().mean()
        axis.set(title=f"{name}: {rewards.mean():.0%} right,\n{teaching:.0%} of the groups teach", xlabel="rollout")
        axis.grid(False)
    figure.tight_layout()
    plt.show()


sliders = {
    name: FloatSlider(value=value, min=0.01, max=1.0, step=0.01, continuous_update=False)
    for name, value in (("bare", 0.07), ("hint", 0.9))
}
interact(groups_drawn, **sliders, G=IntSlider(value=6, min=2, max=48, continuous_update=False));

# %% [markdown]
# ## Exercises
#
# **1.** How large must a group be so that a question with six elements has an even chance of one success? Compute it from `pass_rates`.
# <details><summary>solution</summary>
#
# ```python
# size = math.log(0.5) / math.log1p(-pass_rates[3])  # (1 - p)^G = 1/2
# print(f"{size:,.0f} rollouts")
# assert 1e5 < size < 1e6 and abs(1 - (1 - pass_rates[3]) ** size - 0.5) < 1e-3
# ```
# </details>
#
# **2.** RLOO compares each rollout with the mean of the *other* rollouts. Write it, and show that it is the mean-only advantage times
# $G / (G - 1)$. (So the factor 5/6 by which step 3's estimate was too small is gone.)
# <details><summary>solution</summary>
#
# ```python
# def leave_one_out(rewards):
#     others = (rewards.sum() - rewards) / (len(rewards) - 1)
#     return rewards - others
#
# rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
# expected = grpo.group_advantages(rewards, 6, scale_by_std=False) * 6 / 5
# assert torch.allclose(leave_one_out(rewards), expected)
# print(leave_one_out(rewards))
# ```
# </details>
#
# **3.** For which ratios has a token no gradient, if $A = +1$? If $A = -1$? Find out with autograd, not by thinking.
# <details><summary>solution</summary>
#
# ```python
# bounds = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0}
# for advantage in (1.0, -1.0):
#     ratios = torch.linspace(0.1, 5, 50, requires_grad=True)
#     grpo.surrogate(ratios.log(), torch.tensor(advantage), **bounds).sum().backward()
#     silent = ratios[ratios.grad.abs() < 1e-6].tolist()
#     print(f"A = {advantage:+.0f}: no gradient at", [round(r, 1) for r in silent])
#     assert all(r > 1.15 if advantage > 0 else r < 0.85 or r > 2.95 for r in silent)
# ```
# </details>
#
# **What you have seen.** GRPO compares rollouts within a group. If none succeeds there is nothing to compare, and more
# sampling is a slow way out. Next: [2 · Prompts that unlock](2_prompts_that_unlock.ipynb).
