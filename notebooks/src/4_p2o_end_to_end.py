# %% [markdown]
# # 4 · P²O end to end
#
# The alternation: a **policy epoch** with GRPO, **hard-sample mining**, **prompt evolution** with GEPA, and again. Here the
# loop is written out from the modules' functions, without logging, checkpoints and command line. `p2o.train` is the same loop
# with those.

# %% [start]

# %%
import random

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import MaxNLocator

import gepa_loop
import grpo
import p2o
import verify
from support.data import load_questions

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

# %%
COLOURS = {"grpo": "#9a9a9a", "p2o": "#1f77b4"}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
for method, run in runs.items():
    history = run["history"]
    axes[0].plot([h["accuracy"] for h in history], "o-", color=COLOURS[method], label=method)
    axes[1].plot([h["responses"] for h in history], [h["accuracy"] for h in history], "o-", color=COLOURS[method])
axes[0].set(xlabel="epoch", ylabel="held-out accuracy, bare, greedy", ylim=(-0.05, 1.05), title="by epoch")
axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
axes[0].legend(frameon=False)
axes[1].set(xlabel="responses sampled, GEPA's included", title="by cost")
figure.tight_layout()
plt.show()

# %% [markdown]
# **What to see.** Left: GRPO stays at the bottom, P²O leaves it in epoch 2, the first one with templates. Right: the same
# against all responses that were sampled. The search for templates costs about as much as half an epoch of rollouts.
#
# ## The hard set over time

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
# **What to see.** Left: questions that templates solve leave the hard set. In the next epoch they are tried bare, and mostly
# stay out of it. Right: for GRPO every rollout has advantage zero. For P²O the share falls when templates come in, and rises
# again later for the opposite reason: whole groups are right, and equal rewards carry no advantage either.
#
# ## The templates

# %%
for number, evolution in enumerate(runs["p2o"]["evolutions"], start=1):
    print(f"evolution {number}: {len(evolution.candidates)} candidates, {evolution.metric_calls} responses scored")
    for k, weight in zip(evolution.chosen, evolution.weights):
        print(f"    dev score {weight:.2f}  {evolution.candidates[k]!r}")

# %% [markdown]
# ## Transcripts, before and after
#
# One question: a rollout of epoch 1 (bare), one of epoch 2 (under a template), one of the last epoch (bare again).

# %%
name = next(r.question_id for r in runs["p2o"]["transcripts"][1] if r.template and r.reward)
question = next(q for q in questions if q.id == name)
print(question.text, "  answer:", question.reference)
for epoch in (0, 1, cfg.epochs - 1):
    group = [r for r in runs["p2o"]["transcripts"][epoch] if r.question_id == name]
    shown = max(group, key=lambda r: r.reward)
    print(f"\nepoch {epoch + 1}, {sum(r.reward for r in group):.0f} of {G} right")
    print(f"    template: {shown.template or '(none)'}\n    response: {shown.text}")

# %% [markdown]
# ## Where it stands
#
# What the trained policy does with harder questions than it has ever seen (seven and eight elements), bare.

# %%
harder = load_questions("tiny/ood.jsonl")[:50]
for method, run in runs.items():
    print(f"{method}: held out {run['history'][-1]['accuracy']:.2f}, out of distribution {accuracy(run['policy'], harder):.2f}")

# %% [markdown]
# This was one seed on a third of the questions. The repository's README has the tables with several seeds and all questions, from
# `python p2o.py study studies/main.toml`. Next: [5 · Your model, your data, your GPU](5_your_model_your_data_your_gpu.ipynb).
