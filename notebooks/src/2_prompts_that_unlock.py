# %% [markdown]
# # 2 · Prompts that unlock
#
# In notebook 1 the policy failed all hard questions, and GRPO had nothing to learn from. This notebook finds **prompt
# templates** under which the same policy succeeds, with the evolutionary search GEPA.
#
# A **template** $z$ is an instruction put before the question $x$: $T(x, z) = z + $ empty line $+\, x$.
#
# What is put in, and what is found? The tiny model was *taught* in its training which instruction makes it go on for which kind of question, and how
# to answer a reflection prompt: about 40 % of its replies make the right move, the others are useless. What is not scripted is the
# search: which replies come, which are tried on which questions, and which survive.

# %% [start]

# %%
import random

import matplotlib.pyplot as plt
import torch
from gepa.gepa_utils import remove_dominated_programs

import gepa_loop
import grpo
import verify
from support.data import load_questions
from support.reflection import parse_reflection
from tiny.problems import FAMILIES

torch.set_num_threads(1)
plt.rcParams.update({"figure.dpi": 90})
united = grpo.load_policy(grpo.PolicyConfig())
hard = load_questions("tiny/train.jsonl")[:48]  # all with five or six elements


def answering(policy):
    """Greedy responses (always the likeliest token): what GEPA scores templates with."""

    def answer(messages):
        return [(s.text, s.truncated) for s in grpo.respond(policy, messages, seed=None)]

    return answer


question = hard[0]
for template in ("", "Add one digit at a time.", "Move the hand step by step."):
    ((text, _, record),) = gepa_loop.run_templates([(template, question)], answering(united), verify.judge)
    print(f"{template or '(bare)'}\n    {question.text}\n    {text}\n    {record['Feedback']}\n")

# %% [markdown]
# The right hint makes the policy work all the way through. It had the skill; the bare prompt did not call for it. The hint of
# another family does nothing.
#
# ## Which hint unlocks what, in two worlds
#
# The model so far lives in a *united* world: whatever the family of questions, `;` goes on. There is a second one, trained the same way, in a
# *divided* world: every family goes on with a mark of its own, and a hint works less the more sentences stand around it.
#
# **Predict:** greedy accuracy of both models under no template, under each of four hints, and under all four hints together. Which rows are green?
# <details><summary>answer</summary>
#
# In both worlds bare prompts fail, and each hint unlocks its own family. In the united world all hints together unlock everything. In the
# divided world they dilute each other and unlock nothing: no single template is enough.
# </details>

# %%
divided = grpo.load_policy(grpo.PolicyConfig(model="tiny/divided/model"))
families = list(FAMILIES)
by_family = [[q for q in hard if q.text.startswith(FAMILIES[f].ask)][:10] for f in families]
templates = ["", *(FAMILIES[f].hints[0] for f in families), " ".join(FAMILIES[f].hints[0] for f in families)]


def solved_table(policy):
    """[templates][families][10 questions]: rewards under greedy decoding"""
    pairs = [(z, q) for z in templates for part in by_family for q in part]
    rewards = [verdict.reward for _, verdict, _ in gepa_loop.run_templates(pairs, answering(policy), verify.judge)]
    return torch.tensor(rewards).view(len(templates), len(families), -1)


solved = {"united": solved_table(united), "divided": solved_table(divided)}
figure, axes = plt.subplots(1, 2, figsize=(10, 3), sharey=True)
for axis, (world, rewards) in zip(axes, solved.items()):
    axis.imshow(rewards.mean(dim=2), vmin=0, vmax=1, cmap="Greens", aspect="auto")
    axis.set_xticks(range(len(families)), families)
    axis.set_yticks(range(len(templates)), ["(bare)", *templates[1:-1], "(all four hints)"])
    axis.set(xlabel="family of questions", title=f"{world} world: greedy accuracy")
    for (y, x), value in zip(torch.ones(6, 4).nonzero().tolist(), rewards.mean(dim=2).flatten().tolist()):
        axis.text(x, y, f"{value:.1f}", ha="center", va="center", color="white" if value > 0.5 else "black")
figure.tight_layout()
plt.show()

# %% [markdown]
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
    results = gepa_loop.run_templates([(template, q) for q in minibatch], answering(united), verify.judge)
    return [verdict.reward for _, verdict, _ in results], [record for _, _, record in results]


parent = ""
minibatch = random.Random(1).sample(hard, 3)
parent_scores, records = run_minibatch(parent, minibatch)
prompt = gepa_loop.reflection_prompt(parent, records)
print(prompt)

# %% [markdown]
# The reflection model is the policy's own base model, with the LoRA adapter switched off (*self-reflection*).
#
# **Predict:** of six sampled replies, how many will be accepted on this minibatch, in which all three questions are of one family?
# <details><summary>answer</summary>
#
# One here. Reflection proposes, evaluation selects. Most proposals are worth nothing, and the search still gets ahead, because a
# minibatch of three is a cheap test.
# </details>

# %%


def reflect_batch(policy, prompts, seed):
    return [s.text for s in grpo.respond(policy, prompts, seed=seed, adapter=False, max_new_tokens=60)]


for reply in reflect_batch(united, [prompt] * 6, seed=0):
    child = parse_reflection(reply)  # what stands between the ``` marks; None if there is nothing
    if child is None:
        print("rejected: no instruction in the reply", repr(reply))
        continue
    child_scores, _ = run_minibatch(child, minibatch)
    verdict = "accepted" if sum(child_scores) > sum(parent_scores) else "rejected"
    print(f"{verdict}: {sum(parent_scores):.0f} -> {sum(child_scores):.0f} of 3   {child!r}")

# %% [markdown]
# ## The whole search
#
# `gepa_loop.evolve` splits the hard questions into a train half (minibatches come from it) and a dev set, and runs GEPA until
# its **budget** of metric calls (scored responses) is spent, or one template solves the whole dev set. Both worlds, same settings:
#
# **Predict:** which search ends before its budget?
# <details><summary>answer</summary>
#
# The united world's: combined hints solve everything. In the divided world every accepted candidate is a specialist, and the budget runs out. (It
# overshoots a little: it is checked between iterations.)
# </details>

# %%
cfg = gepa_loop.EvolutionConfig(gepa_dev_size=20, gepa_budget="400", gepa_parents=4)


def search(policy, seed=0):
    calls = []

    def reflect(prompts):  # GEPA sends the proposals of one iteration together
        calls.extend(prompts)
        return reflect_batch(policy, prompts, seed=len(calls))

    evolution = gepa_loop.evolve(hard, answering(policy), reflect, cfg, seed=seed)
    accepted = len(evolution.candidates) - 1
    print(f"{len(calls)} reflections, {accepted} accepted, {evolution.metric_calls} responses scored")
    print("  k  from  dev score  template")
    for k, (template, parents, scores) in enumerate(zip(evolution.candidates, evolution.parents, evolution.dev_scores)):
        origin = ", ".join(str(p) for p in parents if p is not None) or "-"
        print(f"{k:3d}  {origin:>4}  {sum(scores) / len(scores):9.2f}  {template or '(empty)'}")
    return evolution


print("united:", end=" ")
evolution_united = search(united)
print("\ndivided:", end=" ")
evolution = search(divided)

# %% [markdown]
# ## The Pareto front
#
# One candidate is good at clocks, another at binary numbers. Which is the better parent? GEPA asks for each dev question which
# candidates score best on it. Candidates that are best somewhere form the **Pareto front**. But before it draws, GEPA drops candidates that are
# **dominated**: wherever such a one is among the best, a candidate that stays is, too. A parent is drawn with a probability proportional to
# the number of questions on which it is among the best, of those that stay. So specialists survive, and copies do not.
#
# **Predict:** five candidates of the divided world (3, 4, 5, 6 and 8) solve the clock questions and nothing else. How often will each be drawn?
# <details><summary>answer</summary>
#
# One of them as often as any other specialist, the other four never: they are copies. Grey below is how often a candidate is among the best,
# blue is how likely it is drawn. Charted by the grey bars, even the empty template would seem to have a chance.
# </details>

# %%


def parent_chances(evolution):
    """(on how many dev questions each candidate is among the best, its probability of being drawn as a parent)"""
    scores = torch.tensor(evolution.dev_scores)  # [K, N]
    front = {n: set((column == column.max()).nonzero().flatten().tolist()) for n, column in enumerate(scores.T)}
    stays = remove_dominated_programs(front, scores=scores.mean(dim=1).tolist())  # GEPA's own
    best, drawn = torch.zeros(len(scores)), torch.zeros(len(scores))
    for n in front:
        best[list(front[n])] += 1
        drawn[list(stays[n])] += 1
    return best, drawn / drawn.sum()


best, chance = parent_chances(evolution)
K = len(best)
figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), gridspec_kw={"width_ratios": [3, 1, 1]}, sharey=True)
axes[0].imshow(evolution.dev_scores, cmap="Greens", vmin=0, vmax=1, aspect="auto")
axes[0].set(xlabel="dev question", ylabel="candidate k", title="solved (green) by each candidate", yticks=range(K), xticks=range(0, 20, 2))
axes[1].barh(range(K), best, color="#9a9a9a")
axes[1].set(xlabel="questions", title="among the best")
axes[2].barh(range(K), chance, color="#1f77b4")
axes[2].set(xlabel="probability", title="drawn as a parent")
figure.tight_layout()
plt.show()

# %% [markdown]
# Columns without any green are questions that nothing solves yet. On those, all candidates are equally "best", with a score of 0; that is why
# even the empty template has a grey bar.
#
# ## The lineage
#
# **Predict:** in which world do children solve more than their parents?
# <details><summary>answer</summary>
#
# In the united one, where hints add up: dots get darker to the right. In the divided world a child solves *other* questions than its parent, not more.
# </details>

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.2))
for axis, name, shown in zip(axes, ("united", "divided"), (evolution_united, evolution)):
    depth = []
    for parents in shown.parents:
        depth.append(1 + max((depth[p] for p in parents if p is not None), default=-1))
    height = [depth[:k].count(d) for k, d in enumerate(depth)]
    means = [sum(s) / len(s) for s in shown.dev_scores]
    for k, parents in enumerate(shown.parents):
        for p in parents:
            if p is not None:
                axis.plot([depth[p], depth[k]], [height[p], height[k]], color="grey", linewidth=0.8, zorder=1)
    dots = axis.scatter(depth, height, c=means, cmap="Greens", vmin=0, vmax=1, s=420, edgecolors="black", zorder=2)
    for k, (x, y) in enumerate(zip(depth, height)):
        axis.text(x, y, str(k), ha="center", va="center", color="white" if means[k] > 0.5 else "black", zorder=3)
    axis.set(xlabel="generation", title=f"{name}: candidates k", yticks=[])
    axis.set_xticks(range(max(depth) + 1))
    axis.margins(0.15, 0.3)
figure.colorbar(dots, ax=axes, label="mean dev score")
plt.show()

# %% [markdown]
# ## The greedy cover
#
# P²O does not keep one winner. It chooses the smallest set that solves every dev question that any candidate solves, greedily:
# each time the candidate that solves most questions not covered yet; the first one on ties.
#
# **Predict:** how many templates are chosen in each world?
# <details><summary>answer</summary>
#
# One in the united world, as its last candidate solves everything. In the divided world three, one for each family that has been unlocked. (Nobody
# found a hint for the chains; there is a next epoch.)
# </details>

# %%
for name, shown in (("united", evolution_united), ("divided", evolution)):
    covered = set()
    print(f"{name}:")
    for k in shown.chosen:
        solves = {n for n, value in enumerate(shown.dev_scores[k]) if value > 0}
        print(f"  candidate {k} solves {len(solves):2d}, {len(solves - covered):2d} of them new: {shown.candidates[k]!r}")
        covered |= solves
    assert shown.chosen == gepa_loop.greedy_cover(shown.dev_scores)

# %% [markdown]
# ## Templates for the next epoch
#
# Each hard question gets $G = 6$ templates, one per rollout, drawn with the mean dev scores as weights. A dev question draws
# only from templates that are known to solve it; a train question, of which nothing is known, from all chosen ones.
#
# **Predict:** the six templates of a dev question in the divided world that one template solves; of a dev question that nothing solves; of a train question.
# <details><summary>answer</summary>
#
# Six times the same; a mixture; a mixture. In the united world all are the one chosen template.
# </details>

# %%
assignment = gepa_loop.assign_templates(evolution, 6, random.Random(0))
texts = {q.id: q.text for q in hard}
solvable = [any(scores[n] for scores in evolution.dev_scores) for n in range(len(evolution.dev_ids))]
print("weights:", {k: round(w, 2) for k, w in zip(evolution.chosen, evolution.weights)})
for kind, question_id in (
    ("dev, solved", evolution.dev_ids[solvable.index(True)]),
    ("dev, unsolved", evolution.dev_ids[solvable.index(False)]),
    ("train", evolution.train_ids[0]),
    ("train", evolution.train_ids[1]),
):
    drawn = [evolution.candidates.index(z) for z in assignment[question_id]]
    print(f"{kind:>14}  {texts[question_id]:<44} candidates {drawn}")

# %% [markdown]
# ## What this buys
#
# **Predict:** the mean reward of sampled groups, bare and under the assigned templates, in both worlds. Where will templates help less?
# <details><summary>answer</summary>
#
# In the divided world: the chains, for which no template was found, stay at 0, and a train question draws another family's template two times in three.
# But a group needs a single success to teach.
# </details>

# %%
for world, policy, found in (("united", united, evolution_united), ("divided", divided, evolution)):
    assigned = gepa_loop.assign_templates(found, 6, random.Random(0))
    for name, templates_of in (("bare", lambda q: [""] * 6), ("assigned", lambda q: assigned[q.id])):
        pairs = [(q, z) for q in hard for z in templates_of(q)]
        samples = grpo.respond(policy, [gepa_loop.apply_template(z, q.text) for q, z in pairs], seed=7)
        grades = verify.grade_batch([s.text for s in samples], [q.reference for q, _ in pairs])
        rewards = torch.tensor([g.reward for g in grades])
        collapsed = (grpo.group_advantages(rewards, 6).view(-1, 6) == 0).all(dim=1).float().mean()
        print(f"{world:>8}, {name:>8}: mean reward {rewards.mean():.2f}, groups without any advantage {collapsed:.0%}")

# %% [markdown]
# ## Exercises
#
# **1.** The four single hints of the united world's table, without the combination: what does the cover choose? And with the combination?
# <details><summary>solution</summary>
#
# ```python
# scores = solved["united"].flatten(1).tolist()  # [templates][40 questions]
# print(gepa_loop.greedy_cover(scores[:-1]), "and", gepa_loop.greedy_cover(scores))
# assert len(gepa_loop.greedy_cover(scores[:-1])) == 4 and len(gepa_loop.greedy_cover(scores)) == 1
# ```
# </details>
#
# **2.** Greedy is not always smallest. Find scores of three candidates on six questions for which the greedy cover takes three although two are
# enough.
# <details><summary>solution</summary>
#
# ```python
# scores = [[0, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]  # the first is the largest, and not needed
# print(gepa_loop.greedy_cover(scores))
# assert len(gepa_loop.greedy_cover(scores)) == 3
# ```
# </details>
#
# **3.** With a single template in the cover, every dev question draws it six times. Which options of `p2o.py` bring contrast back? Try one with
# `evolution_united`.
# <details><summary>solution</summary>
#
# ```python
# # --leave-one-bare keeps one rollout of each group bare.
# bare_too = gepa_loop.EvolutionConfig(leave_one_bare=True)
# drawn = gepa_loop.assign_templates(evolution_united, 6, random.Random(0), bare_too)
# print([len(z) > 0 for z in drawn[evolution_united.dev_ids[0]]])
# assert all(group[-1] == "" and all(group[:-1]) for group in drawn.values())
# ```
# </details>
#
# **What you have seen.** Templates found by reflection and selection turn groups that teach nothing into groups that do. But
# at test time there is no template. How the lesson gets into the weights: [3 · Context distillation](3_context_distillation.ipynb).
