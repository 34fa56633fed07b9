# %% [markdown]
# # 5 · Your model, your data, your GPU
#
# From a file of questions to a trained adapter. Everything runs here on a CPU with the tiny model. Each step says what to change
# for **Qwen3-4B** in 4 bits on one card with 24 GB.

# %% [start]

# %%
os.environ["TQDM_DISABLE"] = "1"  # progress bars do not read well in a notebook

import dataclasses
import json
import random
import shutil
from pathlib import Path

import grpo
import p2o
import verify
from support.data import load_questions
from tiny.problems import EASY, HARD, draw_many

folder = Path("runs/notebook-5")
shutil.rmtree(folder, ignore_errors=True)
folder.mkdir(parents=True)

# %% [markdown]
# ## 1 · The data
#
# A JSONL file: one JSON object a line, with `question` and `answer`. Further fields do no harm. These questions are drawn anew,
# so none of them is in the shipped files.

# %%
rng, taken = random.Random(5), {q.text for name in ("train", "hard") for q in load_questions(f"tiny/{name}.jsonl")}
sets = {
    "mine": draw_many(rng, 48, HARD, taken) + draw_many(rng, 8, EASY, taken),
    "held-out": draw_many(rng, 40, HARD, taken),
}
for name, problems in sets.items():
    rows = [{"question": p.question, "answer": str(p.states[-1])} for p in problems]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
print((folder / "mine.jsonl").read_text()[:180])

# %% [markdown]
# Three things to check with your own data, because each of them makes a run that looks alive and learns nothing:
#
# - Does the verifier understand your reference answers? `verify.unparseable` lists those that only their own text can match.
# - Do prompt and response fit? A response that is cut off has no boxed answer and no reward.
# - Are the questions of the right difficulty? With none solved and none solvable under any prompt there is nothing to learn; with
#   all solved, too.

# %%
questions = load_questions(str(folder / "mine.jsonl"))
print("not understood:", verify.unparseable([q.reference for q in questions]))
policy = grpo.load_policy(grpo.PolicyConfig())
lengths = [len(grpo.chat_ids(policy, q.text)) for q in questions]
print("longest prompt:", max(lengths), "tokens")
samples = grpo.respond(policy, [q.text for q in questions], seed=0)
print("longest response:", max(len(s.response_ids) for s in samples), "tokens; cut off:", sum(s.truncated for s in samples))
grades = verify.grade_batch([s.text for s in samples], [q.reference for q in questions])
print(f"solved at the first try, bare: {sum(g.reward for g in grades):.0f} of {len(grades)}")

# %% [markdown]
# ## 2 · The configuration
#
# Every setting is a field of `p2o.Config` and an option of `python p2o.py`; `python p2o.py --help` explains them. A **preset** is a
# set of defaults. This is what the preset for Qwen3-4B on 24 GB sets differently from the tiny one.

# %%
tiny, large = p2o.PRESETS["tiny"], p2o.PRESETS["qwen3-4b-24gb"]
print(f"{'':24} {'tiny':>10}   qwen3-4b-24gb")
for field in dataclasses.fields(p2o.Config):
    mine, theirs = getattr(tiny, field.name), getattr(large, field.name)
    if mine != theirs and field.name not in ("preset", "model", "train_data", "eval_data"):
        print(f"{field.name:24} {mine!r:>10}   {theirs!r}")

# %% [markdown]
# Why: the weights in 4 bits take about 3 GB rather than 8. Sampling is most of the time, so vLLM does it. A model that was trained on
# chats must be asked for a boxed answer (`question_suffix`). An adapter wants 10 to 20 times the learning rate of full fine-tuning.
# A dev set of 16 would be noisy where questions differ more than here.

# %%
cfg = p2o.Config(
    train_data=str(folder / "mine.jsonl"),
    eval_data=(str(folder / "held-out.jsonl"),),
    runs=str(folder),
    name="run",
    epochs=3,
    questions_per_batch=16,
    questions_per_update=8,
    learning_rate=2e-3,
    gepa_dev_size=16,
    gepa_budget="200",
)

# %% [markdown]
# The same for a real model, as a command (needs the packages of `requirements-gpu.txt`; `python p2o.py fit --preset qwen3-4b-24gb`
# says beforehand how much memory it will take):
#
# ```
# python p2o.py --preset qwen3-4b-24gb --train-data mine.jsonl --eval-data held-out.jsonl --name mine
# ```
#
# ## 3 · Training

# %%
summary = p2o.train(cfg)

# %%
print(json.dumps(summary, indent=1))

# %% [markdown]
# Read the lines above in this order. *Held out, bare* is the result. *Zero-advantage groups* says whether there was anything to
# learn from. *Hard set* says whether templates will be evolved. *Templated* is the share of rollouts that had one, *tokens masked*
# what the ratio mask took out of the loss.
#
# ## 4 · What a run leaves

# %%
for path in sorted((folder / "run").rglob("*")):
    if path.is_file() and "checkpoints" not in path.parts:
        print(f"{path.relative_to(folder)}")

# %% [markdown]
# `report.html` is for people. `metrics.jsonl` is for programs. `transcripts.jsonl` is what to read first when rewards stay at zero.
# A run that was stopped goes on with the same command and `--resume`.
#
# ## 5 · The adapter
#
# `adapter/` is a plain peft adapter: load it on top of the base model, here, in vLLM, or anywhere peft adapters go.

# %%
trained = grpo.load_policy(grpo.PolicyConfig(), adapter=str(folder / "run" / "adapter"))
question = load_questions(str(folder / "held-out.jsonl"))[0]
print(question.text, "->", question.reference)
print("base:   ", grpo.respond(trained, [question.text], seed=None, adapter=False)[0].text)
print("adapter:", grpo.respond(trained, [question.text], seed=None)[0].text)

# %% [markdown]
# **What you have seen.** A file, a configuration, a command, a folder. To change the method itself, see
# [ideas in ten lines](IDEAS.md); to build it yourself, the [assignment](../assignment/HANDOUT.md).
