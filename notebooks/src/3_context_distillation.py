# %% [markdown]
# # 3 · Context distillation
#
# Notebook 2 found templates under which the policy solves hard questions. P²O samples under them and then trains *as if the
# question had been bare*: both log-probabilities in the policy loss are $\log \pi(y \mid x)$, not $\log \pi(y \mid T(x, z))$.
# This is **context distillation**: what a context (the template) brought about moves into the weights.
#
# The notebook looks at one response under both contexts, token by token, and then trains with and without distillation.

# %% [start]

# %%
import random

import matplotlib.pyplot as plt
import torch

import gepa_loop
import grpo
import verify
from support.data import load_questions
from tiny.problems import FAMILIES

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
# Sample under the template until a response is right. Then score the *same tokens* under the bare question with `grpo.score`.

# %%
question = hard[0]
bare = grpo.chat_ids(policy, question.text)
templated = grpo.chat_ids(policy, gepa_loop.apply_template(TEMPLATE, question.text))
samples = grpo.sample(policy, [templated] * 20, seed=0)
sample = next(s for s in samples if verify.grade(s.text, question.reference).reward)

under_template = grpo.logprobs_of(policy, [templated], [sample.response_ids])[0]
under_bare = grpo.logprobs_of(policy, [bare], [sample.response_ids])[0]
tokens = [policy.tokenizer.decode([i]) for i in sample.response_ids]
print(question.text, "->", sample.text)
print(f"log-prob of the whole response: {sum(under_template):.2f} under the template, {sum(under_bare):.2f} bare")

# %%
figure, axis = plt.subplots(figsize=(10, 2.6))
image = axis.imshow([under_template, under_bare], cmap="viridis", vmin=-3, vmax=0, aspect="auto")
axis.set_xticks(range(len(tokens)), tokens, fontsize=8, rotation=45)
axis.set_yticks([0, 1], ["T(x, z)", "x (bare)"])
axis.set(xlabel="token of the response", ylabel="context", title="log-probability of each token")
figure.colorbar(image, label="log-prob (nats)")
plt.show()

# %% [markdown]
# **What to see.** Bright is likely. Under the template all tokens are. Under the bare question the numbers are as likely as
# before: the skill is there. Only the `;` tokens, the decisions to go on, are dark. The lesson sits in a few tokens.
#
# ## The template ratio and its mask
#
# The **template ratio** of a token is $\pi_\text{old}(y_t \mid x) / \pi_\text{old}(y_t \mid T(x, z))$. A token whose ratio leaves
# $[0.01, 10]$ gets weight 0: the bare policy finds it so unlikely that learning it would be a leap.

# %%
b, t = torch.tensor([under_bare]), torch.tensor([under_template])
ratio = (b - t).exp()[0]
print("token   ratio   weight   weight with ratio_min = 0.2   soft clip with ratio_min = 0.2")
weights = grpo.template_ratio_weight(b, t)[0]
strict = grpo.template_ratio_weight(b, t, ratio_min=0.2)[0]
soft = grpo.template_ratio_weight(b, t, ratio_min=0.2, soft=True)[0]
for token, *values in zip(tokens, ratio.tolist(), weights.tolist(), strict.tolist(), soft.tolist()):
    print(f"{token:>6} {values[0]:7.3f} {values[1]:8.0f} {values[2]:14.0f} {values[3]:32.2f}")

# %% [markdown]
# With the paper's bounds no token of this response is masked. With a lower bound of 0.2 the mask would take out just the
# tokens that matter. How are the ratios spread over many rollouts?

# %%
contexts = [grpo.chat_ids(policy, gepa_loop.apply_template(TEMPLATE, q.text)) for q in hard for _ in range(2)]
samples = grpo.sample(policy, contexts, seed=1)
responses = [s.response_ids for s in samples]
bare_contexts = [grpo.chat_ids(policy, q.text) for q in hard for _ in range(2)]
scored = grpo.logprobs_of(policy, bare_contexts, responses)
log_ratios = torch.tensor([x - y for s, row in zip(samples, scored) for x, y in zip(row, s.sampled_logprobs)])

figure, axis = plt.subplots(figsize=(7, 3))
axis.hist((log_ratios / torch.log(torch.tensor(10.0))).numpy(), bins=60, log=True)
for bound in (-2, 1):
    axis.axvline(bound, color="crimson")
axis.set(xlabel="log10 of the template ratio", ylabel="tokens", title=f"{len(log_ratios)} tokens, bounds 0.01 and 10 in red")
plt.show()
print(f"masked: {((log_ratios.exp() < 0.01) | (log_ratios.exp() > 10)).float().mean():.2%} of the tokens")

# %% [markdown]
# **What to see.** Most tokens stand at 0: the template did not change them. The hump near $-1$ is the decisions to go on; those
# just below $+1$ are decisions to stop, which the bare policy prefers. The red bounds leave the lesson alone.
#
# ## With and without distillation
#
# Two copies of the policy, the same template, the same number of rollouts. One is trained on the bare question, the other on
# the context that was sampled from. Everything else is equal.

# %%
G = 6
cfg = grpo.UpdateConfig()


def rollouts_of(policy, questions, distill, seed):
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


def train(distill, passes=3, questions_per_update=8):
    policy = grpo.load_policy(grpo.PolicyConfig())
    optimizer = torch.optim.AdamW(policy.trainable, lr=1e-3, weight_decay=0.0)
    curve = [accuracies(policy)]
    for step in range(passes):
        order = random.Random(step).sample(hard, len(hard))
        for start in range(0, len(order), questions_per_update):
            rollouts = rollouts_of(policy, order[start : start + questions_per_update], distill, seed=100 * step + start)
            grpo.score_old(policy, [rollouts], cfg)  # log pi_old under the trained context, and the mask
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
print("pass   with distillation (bare, templated)   without (bare, templated)")
for i, (w, o) in enumerate(zip(curve_with, curve_without)):
    print(f"{i:4d} {w[0]:16.2f} {w[1]:10.2f} {o[0]:22.2f} {o[1]:10.2f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
for axis, name, curve in zip(axes, ("with distillation", "without"), (curve_with, curve_without)):
    axis.plot([c[0] for c in curve], "o-", label="bare question")
    axis.plot([c[1] for c in curve], "s--", color="grey", label="under the template")
    axis.set(xlabel="passes over 48 questions", title=name, ylim=(-0.05, 1.05), xticks=range(len(curve)))
    axis.grid(alpha=0.25)
axes[0].set_ylabel("held-out accuracy, greedy")
axes[0].legend(frameon=False)
figure.tight_layout()
plt.show()

# %% [markdown]
# **What to see.** The same template, the same number of rollouts. With distillation the blue line (bare) rises to near the level of
# the template; it moves about a little after that (60 questions, a high and constant learning rate). Without distillation the policy
# is trained in a context in which it succeeds already, and the bare question gains nothing that shows in the accuracy.
#
# ## What changed inside
#
# The probability of going on (`;`) after the first state of a bare question, before and after.

# %%
go_on = policy.tokenizer.convert_tokens_to_ids(";")


def going_on(policy, question):
    response = grpo.respond(policy, [question.text], seed=None)[0].response_ids
    context = grpo.chat_ids(policy, question.text) + response[:1]  # the question and the first state
    return torch.tensor(grpo.logprobs_of(policy, [context], [[go_on]])[0][0]).exp().item()


for name, p in (("before", policy), ("with distillation", distilled), ("without", undistilled)):
    print(f"{name:>18}: {sum(going_on(p, q) for q in held_out[:20]) / 20:.2f}")

# %% [markdown]
# Without distillation it rises a little, too: both contexts share the weights, so a lesson learnt in one spills over into the other. How
# much depends on the learning rate and the number of passes. Distillation does not leave it to chance.
#
# **What you have seen.** A template changes a few decisive tokens. Distillation trains those tokens where they will be needed:
# without the template. Next, all parts together: [4 · P²O end to end](4_p2o_end_to_end.ipynb).
