# %% [markdown]
# # 1 · Advantage collapse
#
# **Reinforcement learning with verifiable rewards** trains a language model on questions whose answers can be checked.
# The model is the **policy**: it writes a response, a **verifier** checks the answer, and the **reward** is 1 or 0.
#
# This notebook shows how GRPO learns from such rewards, and the one case in which it cannot learn at all. That case is what
# P²O ([arXiv:2603.21877](https://arxiv.org/abs/2603.21877)) is about.
#
# It runs on a laptop in under a minute.

# %% [start]

# %%
import math
import random
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

import grpo
import verify
from gepa_loop import apply_template
from support.data import load_questions
from tiny.problems import draw

torch.set_num_threads(1)
plt.rcParams.update({"figure.dpi": 90, "axes.grid": True, "grid.alpha": 0.25})
policy = grpo.load_policy(grpo.PolicyConfig())
questions = load_questions("tiny/train.jsonl")
hard, easy = questions[:48], questions[144:]
print(f"{sum(p.numel() for p in policy.model.parameters() if not p.requires_grad):,} parameters")
print("hard:", hard[1].text, "->", hard[1].reference)
print("easy:", easy[1].text, "->", easy[1].reference)

# %% [markdown]
# The policy is tiny: it was trained from scratch on four kinds of questions (see `tiny/`). Hard questions have five or six
# elements, easy ones have two. To solve a hard one it has to write one intermediate state for each element.
#
# ## One rollout
#
# A **rollout** is one sampled response. `verify.grade` gives reward 1 if the response has exactly one `\boxed{}` answer
# and that answer is right.

# %%
for question in (easy[1], hard[1]):
    rollout = grpo.respond(policy, [question.text], seed=0)[0]
    print(question.text, "\n  ", rollout.text, "\n  ", verify.grade(rollout.text, question.reference), "\n")

# %% [markdown]
# On the hard question it steps right, and stops too early. After each state the model decides with one token: `;` goes on, `.` stops. Without
# further instruction it mostly stops.
#
# ## Groups
#
# GRPO samples a **group** of $G$ rollouts for each question. The other rollouts of the group say what reward was to be
# expected, so no separate value network is needed.

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
rewards_of = {name: sample_rewards(questions, G)[0] for name, questions in sets.items()}

figure, axes = plt.subplots(1, 3, figsize=(10, 3.6))
for axis, (name, rewards) in zip(axes, rewards_of.items()):
    axis.imshow(rewards.view(-1, G), cmap="Greens", vmin=0, vmax=1, aspect="auto")
    axis.set(title=f"{name}: mean reward {rewards.mean():.2f}", xlabel="rollout of the group", ylabel="question")
    axis.grid(False)
figure.tight_layout()
plt.show()

# %% [markdown]
# **What to see.** Each row is a question, each column a rollout; green is reward 1. Easy questions (left) are always solved, hard
# ones (middle) never. The same hard questions under an instruction (right) are solved by some rollouts and not by others. Where
# the instruction comes from is the subject of notebook 2.
#
# ## Advantages
#
# The **advantage** of a rollout is its reward compared with its group:
#
# $$A_i = \frac{r_i - \text{mean}(r)}{\text{std}(r) + 10^{-6}}$$
#
# It is positive for rollouts that did better than their group, and those are made more likely.

# %%
for rewards in ([1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]):
    advantages = grpo.group_advantages(torch.tensor(rewards, dtype=torch.float), G)
    print(rewards, "->", [round(a, 2) for a in advantages.tolist()])

# %% [markdown]
# The rarer the success, the larger its advantage. But if all rollouts fail, or all succeed, every advantage is 0. The group
# teaches nothing. This is **advantage collapse**: at the bottom (all fail) or at the top (all succeed).

# %%
for name, rewards in rewards_of.items():
    groups = grpo.group_advantages(rewards, G).view(-1, G)
    print(f"{name}: {(groups == 0).all(dim=1).float().mean():.0%} of the groups have no advantage anywhere")

# %% [markdown]
# ## No advantage, no gradient
#
# `grpo.update_policy` makes one optimizer step on a batch of rollouts. Its `grad_norm` is the length of the gradient.

# %%


def rollouts_of(questions, seed=0):
    rewards, samples = sample_rewards(questions, G, seed)
    advantages = grpo.group_advantages(rewards, G).tolist()
    rollouts = []
    for i, (s, reward, advantage) in enumerate(zip(samples, rewards.tolist(), advantages)):
        q = questions[i // G]
        contexts = dict.fromkeys(("sampled_context", "trained_context"), grpo.chat_ids(policy, q.text))
        rollouts.append(
            grpo.Rollout(question_id=q.id, reward=reward, advantage=advantage, **contexts, **vars(s))
        )
    return rollouts


optimizer = torch.optim.SGD(policy.trainable, lr=0.0)  # look, but do not step
for name, questions in sets.items():
    metrics = grpo.update_policy(policy, optimizer, rollouts_of(questions[:16]), grpo.UpdateConfig())
    print(f"{name}: grad_norm {metrics['grad_norm']:.3f}, loss {metrics['loss']:.5f}")

# %% [markdown]
# Without advantages the gradient is exactly zero. Whatever the learning rate, nothing moves. Only the groups with mixed rewards
# have something to say.
#
# ## Why twice the rollouts hardly help
#
# The obvious cure is to sample more. A group of $G$ has a success with probability $1 - (1 - p)^G$, where $p$ is the
# **pass rate**, the chance of one rollout. It is too small to be counted, but it can be computed: in this world only the full
# chain of states is right, so $p$ is the probability of that one response, the product of its tokens' probabilities.

# %%
rng = random.Random(0)
lengths, pass_rates = [3, 4, 5, 6], []
for length in lengths:
    drawn = [draw(rng, family, (length,)) for family in ("total", "binary", "chain", "clock") for _ in range(10)]
    contexts = [grpo.chat_ids(policy, p.question) for p in drawn]
    right = [policy.tokenizer(f"{p.response()}<|end|>").input_ids for p in drawn]  # token ids of the right response
    logprobs = grpo.logprobs_of(policy, contexts, right)  # log pi(y_t | x, y_<t) of each token
    pass_rates.append(torch.tensor([sum(row) for row in logprobs]).exp().mean().item())
    print(f"{length} elements: pass rate {pass_rates[-1]:.1e}")
print("one right response:", [policy.tokenizer.decode([i]) for i in right[0]])
print("its log-probs:     ", [round(x, 1) + 0.0 for x in logprobs[0]])

# %% [markdown]
# The numbers are sure (log-prob 0). Each `;` costs about 2.6 nats: going on has a probability of about 0.07.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
axes[0].semilogy(lengths, pass_rates, "o-")
axes[0].set(xlabel="elements in the question", ylabel="pass rate of one rollout", title="bare prompt", xticks=lengths)
sizes = torch.logspace(0, 6, 200, dtype=torch.double)
for length, p in zip(lengths, pass_rates):
    axes[1].semilogx(sizes, 1 - (1 - p) ** sizes, label=f"{length} elements")
axes[1].axvline(6, color="grey", linewidth=0.8)
axes[1].axvline(12, color="grey", linewidth=0.8, linestyle="--")
axes[1].set(xlabel="group size G", ylabel="chance of a success in the group", title="what more rollouts buy")
axes[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
figure.tight_layout()
plt.show()
for size in (6, 12):
    chance = 1 - (1 - pass_rates[2]) ** size
    print(f"5 elements: a group of {size} holds a success with probability {chance:.5f}")

# %% [markdown]
# **What to see.** Left: every further element costs the same factor, since one more decision has to go the unlikely way. Right: the
# grey lines are $G = 6$ and $G = 12$. For five and six elements both lie at the flat left end. Doubling $G$ doubles a chance that
# is nearly zero; it would take tens of thousands of rollouts for each question. A better prompt is cheaper: notebook 2.
#
# ## The policy loss, by hand
#
# Two tokens, one with a positive and one with a negative advantage. The **ratio** $\rho = \pi_\text{new}/\pi_\text{old}$
# says how far the policy has moved on a token since it was sampled. PPO clips it:
#
# $$L = \max(-A\rho,\; -A\,\text{clip}(\rho, 0.8, 1.2)), \qquad \text{and where } A < 0:\; L \leftarrow \min(-3A,\, L)$$

# %%
new, old = [math.log(0.30), math.log(0.40)], [math.log(0.20), math.log(0.10)]
A = [1.0, -1.0]

ratios = [math.exp(n - o) for n, o in zip(new, old)]  # 1.5 and 4.0
first = max(-A[0] * ratios[0], -A[0] * 1.2)  # A > 0, ratio above 1.2: the clip holds, -1.2
second = min(-A[1] * 3.0, max(-A[1] * ratios[1], -A[1] * 1.2))  # A < 0: 4.0, bounded by the dual clip to 3.0
by_hand = (first + second) / 2  # mean over tokens

logprobs = torch.tensor([new], requires_grad=True)  # [B, T] with B = 1 response of T = 2 tokens
loss, metrics = grpo.policy_loss(logprobs, torch.tensor([old]), torch.tensor([A]), torch.ones(1, 2))
print(f"by hand {by_hand:.4f}, grpo.policy_loss {loss.item():.4f}")
print(metrics)
assert abs(by_hand - loss.item()) < 1e-6

# %% [markdown]
# Both tokens are clipped, so neither has a gradient: the policy has moved far enough already.
#
# ## The shape of the loss

# %%
ratios = torch.linspace(0.01, 5, 300)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
for axis, advantage in zip(axes, (1.0, -1.0)):
    values = [
        grpo.policy_loss(r.log().view(1, 1), torch.zeros(1, 1), torch.tensor([advantage]), torch.ones(1, 1))[0].item()
        for r in ratios
    ]
    axis.plot(ratios, values)
    axis.axvspan(0.8, 1.2, alpha=0.15)
    axis.set(xlabel="ratio new / old", ylabel="loss of the token", title=f"advantage {advantage:+.0f}")
figure.tight_layout()
plt.show()

# %% [markdown]
# **What to see.** The shaded band is the clip range. Left: making a good token more likely pays until the ratio is 1.2. Right:
# making a bad token less likely pays until 0.8; above 3, the dual clip keeps a single bad token from dominating the batch.
#
# ## The loss starts at zero, and that is no bug
#
# In the first update the policy is still the one that sampled. All ratios are 1, the loss is the mean of $-A$ over tokens, and the
# advantages of a group sum to zero. With responses of equal length the loss is zero; the gradient is not. (Above, for the instructed
# questions, it was not quite zero: right responses are longer there, and longer ones have more tokens in the mean.)

# %%
logprobs = torch.full((2, 1), math.log(0.5), requires_grad=True)
loss, _ = grpo.policy_loss(logprobs, logprobs.detach(), torch.tensor([1.0, -1.0]), torch.ones(2, 1))
loss.backward()
print("loss", loss.item(), "gradient", logprobs.grad.flatten().tolist())

# %% [markdown]
# **What you have seen.** GRPO compares rollouts within a group. If none succeeds there is nothing to compare, and more
# sampling is a slow way out. Next: [2 · Prompts that unlock](2_prompts_that_unlock.ipynb).
