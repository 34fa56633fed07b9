# %% [markdown]
# # 2 · Prompts that unlock
#
# In notebook 1 the policy failed all hard questions, and GRPO had nothing to learn from. This notebook finds **prompt
# templates** under which the same policy succeeds, with the evolutionary search GEPA.
#
# A **template** $z$ is an instruction put before the question $x$: $T(x, z) = z + $ empty line $+\, x$.

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
hard = load_questions("tiny/train.jsonl")[:48]  # all with five or six elements


def answer(messages):
    """Greedy responses: what GEPA scores templates with."""
    samples = grpo.respond(policy, messages, seed=None)
    return [(s.text, s.truncated) for s in samples]


question = hard[0]
for template in ("", "Add one digit at a time.", "Move the hand step by step."):
    message = gepa_loop.apply_template(template, question.text)
    text, truncated = answer([message])[0]
    grade = verify.grade(text, question.reference)
    print(f"{message}\n    {text}\n    {verify.feedback(grade, question.reference, truncated)}\n")

# %% [markdown]
# The right hint makes the policy work all the way through. It had the skill; the bare prompt did not call for it. The hint of
# another family does nothing.
#
# ## Which hint unlocks what
#
# Accuracy of **greedy decoding** (always the likeliest token) for each family of questions under each hint.

# %%
families = list(FAMILIES)
by_family = {f: [q for q in hard if q.text.startswith(FAMILIES[f].ask)][:10] for f in families}
templates = ["", *(FAMILIES[f].hints[0] for f in families), " ".join(FAMILIES[f].hints[0] for f in families)]
table, solved_by = [], []  # [templates][families], [templates][all 40 questions]
for template in templates:
    row = []
    solved_by.append([])
    for f in families:
        replies = answer([gepa_loop.apply_template(template, q.text) for q in by_family[f]])
        grades = verify.grade_batch([text for text, _ in replies], [q.reference for q in by_family[f]])
        row.append(sum(g.reward for g in grades) / len(grades))
        solved_by[-1] += [g.reward for g in grades]
    table.append(row)

figure, axis = plt.subplots(figsize=(6.5, 3.2))
image = axis.imshow(table, vmin=0, vmax=1, cmap="Greens", aspect="auto")
axis.set_xticks(range(len(families)), families)
axis.set_yticks(range(len(templates)), ["(bare)", *templates[1:-1], "(all four hints)"])
axis.set(xlabel="family of questions", ylabel="template", title="greedy accuracy, 10 questions each")
for y, row in enumerate(table):
    for x, value in enumerate(row):
        axis.text(x, y, f"{value:.1f}", ha="center", va="center", color="white" if value > 0.5 else "black")
figure.colorbar(image, label="accuracy")
plt.show()

# %% [markdown]
# **What to see.** In the top row nothing is green: bare prompts fail. Each hint unlocks its own family, and the combination
# unlocks all four. Nobody told the search any of this.
#
# ## One step of GEPA, by hand
#
# GEPA keeps a pool of **candidates**. It begins with the empty template. One step:
#
# 1. take a parent and run it on a **minibatch** of three hard questions,
# 2. show a **reflection model** the instruction, the questions, the responses and the verifier's feedback,
# 3. take its reply as the child, run the child on the same minibatch,
# 4. **accept** it if it beats the parent there; then score it on the whole **dev set**.
#
# First, steps 1 and 2: the records and the reflection prompt, as it is sent.

# %%


def run_minibatch(template, minibatch):
    results = gepa_loop.run_templates([(template, q) for q in minibatch], answer, verify.judge)
    return [reward for _, reward, _ in results], [record for _, _, record in results]


parent = ""
minibatch = random.Random(1).sample(hard, 3)
parent_scores, records = run_minibatch(parent, minibatch)
prompt = gepa_loop.reflection_prompt(parent, records)
print(prompt)

# %% [markdown]
# The reflection model here is the policy's own base model, with the LoRA adapter switched off (*self-reflection*). It learned
# in its training to answer such prompts with an instruction; a sampled one is often useless. So sample several replies and
# let the minibatch decide: that is steps 3 and 4.

# %%


def reflect_batch(prompts, seed):
    return [s.text for s in grpo.respond(policy, prompts, seed=seed, adapter=False, max_new_tokens=60)]


for reply in reflect_batch([prompt] * 6, seed=0):
    child = gepa_loop.parse_reflection(reply)  # what stands between the ``` marks; None if there is nothing
    if child is None:
        print("rejected: no instruction in the reply", repr(reply))
        continue
    child_scores, _ = run_minibatch(child, minibatch)
    verdict = "accepted" if sum(child_scores) > sum(parent_scores) else "rejected"
    print(f"{verdict}: {sum(parent_scores):.0f} -> {sum(child_scores):.0f} of 3   {child!r}")

# %% [markdown]
# Reflection proposes, evaluation selects. Most proposals are worth nothing, and the search still gets ahead.
#
# ## The whole search
#
# `gepa_loop.evolve` splits the hard questions into a train half (minibatches come from it) and a dev set, and runs GEPA until
# its **budget** of metric calls (scored responses) is spent.

# %%
calls = []


def reflect(prompts):  # GEPA sends the proposals of one iteration together
    replies = reflect_batch(prompts, seed=len(calls) + 1)
    calls.extend(zip(prompts, replies))
    return replies


cfg = gepa_loop.EvolutionConfig(gepa_dev_size=16, gepa_budget="300", gepa_parents=4)
evolution = gepa_loop.evolve(hard, answer, reflect, cfg, seed=0)
print(f"{len(calls)} reflections, {len(evolution.candidates) - 1} accepted, {evolution.metric_calls} responses scored\n")
print("  k  from  dev score  template")
for k, (template, parents, scores) in enumerate(zip(evolution.candidates, evolution.parents, evolution.dev_scores)):
    origin = ", ".join(str(p) for p in parents if p is not None) or "-"
    print(f"{k:3d}  {origin:>4}  {sum(scores) / len(scores):9.2f}  {template or '(empty)'}")

# %% [markdown]
# ## The Pareto front
#
# One candidate is good at clocks, another at binary numbers. Which is the better parent? GEPA asks for each dev question which
# candidates score best on it. Candidates that are best somewhere form the **Pareto front**. A parent is drawn with a
# probability proportional to the number of questions on which it is among the best. So specialists survive.

# %%
scores = torch.tensor(evolution.dev_scores)  # [K, N]
best = scores.max(dim=0).values  # [N]
on_front = ((scores == best) & (best > 0)).sum(dim=1)  # [K]

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), gridspec_kw={"width_ratios": [3, 1]}, sharey=True)
axes[0].imshow(scores, cmap="Greens", vmin=0, vmax=1, aspect="auto")
axes[0].set(xlabel="dev question", ylabel="candidate k", title="solved (green) by each candidate")
axes[0].set_yticks(range(len(scores)))
axes[1].barh(range(len(scores)), on_front, color="#1f77b4")
axes[1].set(xlabel="questions", title="among the best")
figure.tight_layout()
plt.show()

# %% [markdown]
# **What to see.** Left: each row is a candidate, each column a dev question. Early candidates solve one family's columns,
# later ones join several. Right: how often a candidate is among the best; it is drawn as a parent that often.
#
# ## The lineage

# %%
depth = []
for parents in evolution.parents:
    depth.append(1 + max((depth[p] for p in parents if p is not None), default=-1))
height = [depth[:k].count(d) for k, d in enumerate(depth)]
means = [sum(s) / len(s) for s in evolution.dev_scores]

figure, axis = plt.subplots(figsize=(7.5, 3.2))
for k, parents in enumerate(evolution.parents):
    for p in parents:
        if p is not None:
            axis.plot([depth[p], depth[k]], [height[p], height[k]], color="grey", linewidth=0.8, zorder=1)
dots = axis.scatter(depth, height, c=means, cmap="Greens", vmin=0, vmax=1, s=420, edgecolors="black", zorder=2)
for k, (x, y) in enumerate(zip(depth, height)):
    axis.text(x, y, str(k), ha="center", va="center", color="white" if means[k] > 0.5 else "black", zorder=3)
axis.set(xlabel="generation", title="candidate k, coloured by its mean dev score")
axis.set_xticks(range(max(depth) + 1))
axis.set_yticks([])
axis.margins(0.15, 0.3)
figure.colorbar(dots, label="mean dev score")
plt.show()

# %% [markdown]
# **What to see.** Candidate 0 is the empty template. A line leads from a parent to its child; dots further right have more
# ancestors and, as they keep what worked, mostly solve more.
#
# ## The greedy cover
#
# P²O does not keep one winner. It chooses the smallest set that solves every dev question that any candidate solves, greedily:
# each time the candidate that solves most questions not covered yet.

# %%
covered = set()
for k in evolution.chosen:
    solved = {n for n, value in enumerate(evolution.dev_scores[k]) if value > 0}
    print(f"candidate {k} solves {len(solved):2d}, {len(solved - covered):2d} of them new: {evolution.candidates[k]!r}")
    covered |= solved
assert evolution.chosen == gepa_loop.greedy_cover(evolution.dev_scores)

# %% [markdown]
# When one candidate solves everything, the cover is that one. When all are specialists, it takes several. The table above shows
# both: the four single hints, and then the combination with them.

# %%
for shown in (templates[:-1], templates):
    cover = gepa_loop.greedy_cover(solved_by[: len(shown)])
    print(f"of {len(shown)} templates: {[shown[k] for k in cover]}")

# %% [markdown]
# ## Templates for the next epoch
#
# Each hard question gets $G = 6$ templates, one per rollout, drawn with the mean dev scores as weights. A dev question draws
# only from templates that are known to solve it. (With a cover of one template, all draws are that one.)

# %%
assignment = gepa_loop.assign_templates(evolution, 6, random.Random(0))
questions = {q.id: q.text for q in hard}
for question_id in [evolution.dev_ids[0], evolution.dev_ids[1], evolution.train_ids[0]]:
    drawn = [evolution.candidates.index(z) for z in assignment[question_id]]
    print(f"{questions[question_id]:<42} candidates {drawn}")

# %% [markdown]
# ## What this buys
#
# The mean reward of sampled groups, bare and under the assigned templates.

# %%
for name, templates_of in (("bare", lambda q: [""] * 6), ("assigned", lambda q: assignment[q.id])):
    pairs = [(q, z) for q in hard for z in templates_of(q)]
    samples = grpo.respond(policy, [gepa_loop.apply_template(z, q.text) for q, z in pairs], seed=7)
    grades = verify.grade_batch([s.text for s in samples], [q.reference for q, _ in pairs])
    rewards = torch.tensor([g.reward for g in grades])
    collapsed = (grpo.group_advantages(rewards, 6).view(-1, 6) == 0).all(dim=1).float().mean()
    print(f"{name:>8}: mean reward {rewards.mean():.2f}, groups without any advantage {collapsed:.0%}")

# %% [markdown]
# **What you have seen.** Templates found by reflection and selection turn groups that teach nothing into groups that do. But
# at test time there is no template. How the lesson gets into the weights: [3 · Context distillation](3_context_distillation.ipynb).
