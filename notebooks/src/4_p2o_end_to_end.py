# %% [markdown]
# # 4 · P²O end to end
#
# The alternation: a **policy epoch** with GRPO, **hard-sample mining**, **prompt evolution** with GEPA, and again. Here the
# loop is written out from the modules' functions, without logging, checkpoints and command line. `p2o.train` is the same loop
# with those: open it beside this page.

# %% [start]

# %%
import random
import re

import matplotlib.pyplot as plt
import torch
from IPython.display import HTML, display
from matplotlib.ticker import MaxNLocator

import gepa_loop
import grpo
import p2o
import verify
from support.data import load_questions
from tools.tokens import coloured, legend, pieces

torch.set_num_threads(1)
plt.rcParams.update({"figure.dpi": 90, "axes.grid": True, "grid.alpha": 0.25})
questions = load_questions("tiny/train.jsonl")[:64]  # hard ones only, to be quick; the shipped runs take all 184
held_out = load_questions("tiny/hard.jsonl")[:50]
cfg = p2o.Config(
    epochs=4, questions_per_batch=8, questions_per_update=8, learning_rate=2e-3, gepa_dev_size=20, gepa_budget="250"
)
G = cfg.group_size
print(len(questions), "questions to train on,", len(held_out), "held out")

# %% [markdown]
# ## A policy step
#
# Sample each question under its templates (or bare), grade, compare within the group, and train the *bare* question.

# %%


def sample_groups(policy, batch, templates, seed):
    pairs = [(q, z) for q in batch for z in templates.get(q.id, [""] * G)]
    sampled = [grpo.chat_ids(policy, gepa_loop.apply_template(z, q.text)) for q, z in pairs]  # T(x, z)
    trained = [grpo.chat_ids(policy, q.text) for q, _ in pairs]  # x
    samples = grpo.sample(policy, sampled, seed=seed)
    rewards = [g.reward for g in verify.grade_batch([s.text for s in samples], [q.reference for q, _ in pairs])]
    advantages = grpo.group_advantages(torch.tensor(rewards), G).tolist()
    return [
        grpo.Rollout(
            question_id=q.id, template=z, sampled_context=sampled[i], trained_context=trained[i],
            reward=rewards[i], advantage=advantages[i], **vars(samples[i]),
        )
        for i, (q, z) in enumerate(pairs)
    ]


def accuracy(policy, questions):
    """Share of the questions that greedy decoding of the bare prompt solves."""
    samples = grpo.respond(policy, [q.text for q in questions], seed=None)
    grades = verify.grade_batch([s.text for s in samples], [q.reference for q in questions])
    return sum(g.reward for g in grades) / len(grades)


# %% [markdown]
# ## Prompt evolution
#
# GEPA sees two functions: one that answers (the policy as it is now, greedy), one that reflects (the base policy: the adapter
# is switched off).

# %%


def evolve(policy, hard_ids, seed):
    def answer(messages):
        return [(s.text, s.truncated) for s in grpo.respond(policy, messages, seed=None)]

    def reflect(prompts):
        rng = random.Random(f"{seed}/{prompts}")
        return [s.text for s in grpo.respond(policy, prompts, seed=rng.getrandbits(31), max_new_tokens=60, adapter=False)]

    hard = [q for q in questions if q.id in hard_ids]
    return gepa_loop.evolve(hard, answer, reflect, cfg, seed=seed)


# %% [markdown]
# ## The loop
#
# GRPO is the same loop without evolution.
#
# **Predict:** held-out accuracy after each of four epochs, for GRPO and for P²O. In which epoch can P²O first differ, and why not earlier?
# <details><summary>answer</summary>
#
# GRPO: 0 throughout, as all its groups collapse. P²O: 0 after epoch 1, which runs bare (nobody knows yet what is hard), and a jump in
# epoch 2, the first with templates.
# </details>

# %%


def train(method):
    policy = grpo.load_policy(grpo.PolicyConfig())
    optimizer = torch.optim.AdamW(policy.trainable, lr=cfg.learning_rate, weight_decay=0.0)
    templates, rollouts, metric_calls = {}, 0, 0
    history = [{"accuracy": accuracy(policy, held_out), "responses": 0}]
    transcripts, evolutions = [], []
    for epoch in range(cfg.epochs):
        epoch_rollouts = []
        order = random.Random(epoch).sample(questions, len(questions))
        for start in range(0, len(order), cfg.questions_per_update):  # policy epoch
            batch = order[start : start + cfg.questions_per_update]
            sampled = sample_groups(policy, batch, templates, seed=1000 * epoch + start)
            grpo.score_old(policy, [sampled], cfg)  # log pi_old(y | x) and the ratio mask, where a template was used
            grpo.update_policy(policy, optimizer, sampled, cfg)
            epoch_rollouts += sampled
        hard_ids = p2o.mine_hard(epoch_rollouts, cfg)  # hard-sample mining
        templates = {}
        if method == "p2o" and len(hard_ids) >= cfg.hard_set_min and epoch + 1 < cfg.epochs:  # prompt evolution
            evolution = evolve(policy, hard_ids, seed=epoch)
            templates = gepa_loop.assign_templates(evolution, G, random.Random(epoch))
            metric_calls += evolution.metric_calls
            evolutions.append(evolution)
        rollouts += len(epoch_rollouts)
        history.append(
            {
                "accuracy": accuracy(policy, held_out),
                "hard": len(hard_ids),
                "collapsed": sum(r.advantage == 0 for r in epoch_rollouts) / len(epoch_rollouts),
                "responses": rollouts + metric_calls,
            }
        )
        transcripts.append(epoch_rollouts)
        shown = {name: round(value, 2) for name, value in history[-1].items()}
        print(f"{method} epoch {epoch + 1}: {shown}")
    return {"policy": policy, "history": history, "transcripts": transcripts, "evolutions": evolutions}


runs = {method: train(method) for method in ("grpo", "p2o")}

# %% [markdown]
# ## Learning curves
#
# **Predict:** how much does the search for templates cost, in epochs of rollouts?
# <details><summary>answer</summary>
#
# Here 213 responses, against 384 of an epoch: about half an epoch.
# </details>

# %%
COLOURS = {"grpo": "#9a9a9a", "p2o": "#1f77b4"}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
for method, run in runs.items():
    history = run["history"]
    axes[0].plot([h["accuracy"] for h in history], "o-", color=COLOURS[method], label=method)
    axes[1].plot([h["responses"] for h in history], [h["accuracy"] for h in history], "o-", color=COLOURS[method])
axes[0].set(xlabel="epoch", ylabel="held-out accuracy, bare", ylim=(-0.05, 1.05), title="by epoch")
axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
axes[0].legend(frameon=False)
axes[1].set(xlabel="responses sampled, GEPA's included", title="by cost")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## The hard set over time
#
# **Predict:** at the start of epoch 2 all 64 questions are hard. How many at its end? And what happens to the share of rollouts without any
# advantage: does it fall and stay low?
# <details><summary>answer</summary>
#
# Few: questions that templates solve leave the hard set; in the next epoch they are tried bare, and mostly stay out of it. The share falls when
# templates come in, and rises again for the opposite reason: whole groups are right, and equal rewards carry no advantage either. Collapse at
# the top is what success looks like.
# </details>

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3))
for method, run in runs.items():
    history, epochs = run["history"][1:], range(1, cfg.epochs + 1)
    axes[0].plot(epochs, [h["hard"] for h in history], "o-", color=COLOURS[method], label=method)
    axes[1].plot(epochs, [h["collapsed"] for h in history], "o-", color=COLOURS[method], label=method)
axes[0].set(xlabel="epoch", ylabel="questions", title="hard set (at most 1 of 6 right)", ylim=(-2, len(questions) + 2))
axes[1].set(xlabel="epoch", ylabel="share of rollouts", title="rollouts without any advantage", ylim=(-0.05, 1.05))
for axis in axes:
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
axes[0].legend(frameon=False)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## The templates
#
# **Predict:** what do the templates look like that the search chose? Elegant prompts?
# <details><summary>answer</summary>
#
# Whatever works: hints, and now and then something that looks like an accident. (That the reflector knows the hints was taught to it; see notebook 2.)
# </details>

# %%
for number, evolution in enumerate(runs["p2o"]["evolutions"], start=1):
    print(f"evolution {number}: {len(evolution.candidates)} candidates, {evolution.metric_calls} responses scored")
    for k, weight in zip(evolution.chosen, evolution.weights):
        print(f"    dev score {weight:.2f}  {evolution.candidates[k]!r}")

# %% [markdown]
# The stray number at the end looks useless. Take the sentences of the first template away one at a time, and ask the base policy again.
#
# **Predict:** what does "24." do? For the clock questions ("Turn the minute hand by") there is no hint in this template at all.
# <details><summary>answer</summary>
#
# It unlocks the clock questions, but only together with "Read the bits from the left."; alone it does nothing. Nobody taught that to the model, and nobody would
# have written it. The search found a quirk of this model. Selection keeps what works, not what makes sense.
# </details>

# %%
base = grpo.load_policy(grpo.PolicyConfig())
template = runs["p2o"]["evolutions"][0].candidates[runs["p2o"]["evolutions"][0].chosen[0]]
sentences = re.findall(r"[^.]+\.", template)
families = {"total": "Add", "binary": "Read", "chain": "Work", "clock": "Turn"}
kept = {"all": sentences} | {f"without {s.strip()!r}": [k for k in sentences if k != s] for s in sentences}
kept[f"only {sentences[-1].strip()!r}"] = sentences[-1:]
for name, part in kept.items():
    asked = [gepa_loop.apply_template("".join(part).strip(), q.text) for q in questions]
    samples = grpo.respond(base, asked, seed=None)
    grades = verify.grade_batch([s.text for s in samples], [q.reference for q in questions])
    shares = {f: [g.reward for q, g in zip(questions, grades) if q.text.startswith(word)] for f, word in families.items()}
    print({f: round(sum(s) / len(s), 2) for f, s in shares.items()}, name)

# %% [markdown]
# ## Transcripts, before and after
#
# One question: a rollout of epoch 1 (bare), one of epoch 2 (under a template), one of the last epoch (bare again). Coloured is the template ratio:
# red tokens are those that the template made likely, and that distillation trains.
#
# **Predict:** in which of the three can there be any colour?
# <details><summary>answer</summary>
#
# In the second only. The others were sampled bare, so both contexts are the same and every ratio is 1.
# </details>

# %%
name = next(r.question_id for r in runs["p2o"]["transcripts"][1] if r.template and r.reward)
question = next(q for q in questions if q.id == name)
print(question.text, "  answer:", question.reference)
html = legend("ratio")
for epoch in (0, 1, cfg.epochs - 1):
    group = [r for r in runs["p2o"]["transcripts"][epoch] if r.question_id == name]
    shown = max(group, key=lambda r: r.reward)
    print(f"epoch {epoch + 1}, {sum(r.reward for r in group):.0f} of {G} right, template: {shown.template or '(none)'}")
    bare_logprobs = shown.old_logprobs or shown.sampled_logprobs
    ratio = (torch.tensor(bare_logprobs) - torch.tensor(shown.sampled_logprobs)).exp().tolist()
    html += f"<p>epoch {epoch + 1}: " + coloured(pieces(runs["p2o"]["policy"].tokenizer, shown.response_ids), ratio, "ratio") + "</p>"
display(HTML(html))

# %% [markdown]
# ## Where it stands
#
# What the trained policy does with harder questions than it has ever seen (seven and eight elements), bare.
#
# **Predict:** it was trained on five and six elements. Will it go on for eight?
# <details><summary>answer</summary>
#
# Yes. What was distilled is a decision, *go on*, and not a length.
# </details>

# %%
harder = load_questions("tiny/ood.jsonl")[:50]
for method, run in runs.items():
    print(f"{method}: held out {run['history'][-1]['accuracy']:.2f}, out of distribution {accuracy(run['policy'], harder):.2f}")

# %% [markdown]
# ## Exercises
#
# **1.** In the last epoch most groups have no advantage. How many collapsed at the top, how many at the bottom?
# <details><summary>solution</summary>
#
# ```python
# groups = grpo.groups_of(runs["p2o"]["transcripts"][-1])
# top = sum(all(r.reward for r in group) for group in groups)
# bottom = sum(not any(r.reward for r in group) for group in groups)
# print(f"{top} at the top, {bottom} at the bottom, {len(groups) - top - bottom} teach")
# assert top > bottom
# ```
# </details>
#
# **2.** Without near-hard questions (`--no-near-hard`), how many would have been hard after epochs 2, 3 and 4? Would templates have been evolved?
# <details><summary>solution</summary>
#
# ```python
# from dataclasses import replace
#
# strict = replace(cfg, near_hard=False)
# counts = [len(p2o.mine_hard(rollouts, strict)) for rollouts in runs["p2o"]["transcripts"][1:]]
# print(counts, "of at least", cfg.hard_set_min)
# assert all(a <= h["hard"] for a, h in zip(counts, runs["p2o"]["history"][2:]))
# ```
# </details>
#
# **3.** What did the ratio mask take out in epoch 2? (`token_weight` of the rollouts that teach.)
# <details><summary>solution</summary>
#
# ```python
# weights = [w for r in runs["p2o"]["transcripts"][1] if r.has_signal and r.is_distilled for w in r.token_weight]
# print(f"{weights.count(0.0)} of {len(weights)} tokens")
# assert weights.count(0.0) < 0.05 * len(weights)
# ```
# </details>
#
# This was one seed on a third of the questions. The repository's README has the tables with several seeds and all questions, from
# `python p2o.py study lab/studies/main.toml`. Next: [5 · Your model, your data, your GPU](5_your_model_your_data_your_gpu.ipynb).
