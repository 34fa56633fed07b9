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
from tools import report

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
#
# **Predict:** of these 48 hard and 8 easy questions, how many does the base model solve at the first try?
# <details><summary>answer</summary>
#
# The 8 easy ones: it always goes on where a question has two elements. That is what it was made to do.
# </details>

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
# set of defaults. Below is what the preset for Qwen3-4B on 24 GB sets differently from the tiny one.
#
# **Predict:** which learning rate is larger, that of 0.8 million parameters or that of 4 billion? Which dev set, and why?
# <details><summary>answer</summary>
#
# The tiny model's rate, by a factor of about 30. The large model's dev set (100 against 40): its questions differ more from each other, so a score over few of them is noisy.
# </details>

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
#
# For the run below everything is smaller still than the tiny preset: 56 questions, 3 epochs, a dev set of 16, 200 metric calls.

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
# The same for a real model, as a command (needs the packages of `requirements/gpu.txt`; `python p2o.py fit --preset qwen3-4b-24gb`
# says beforehand how much memory it will take):
#
# ```
# python p2o.py --preset qwen3-4b-24gb --train-data mine.jsonl --eval-data held-out.jsonl --name mine
# ```
#
# ## 3 · Training
#
# **Predict:** three epochs. In which of them will rollouts be templated, and where will the share of zero-advantage groups be 100 %?
# <details><summary>answer</summary>
#
# Epoch 1 runs bare: hard questions all fail, easy ones all succeed, 100 %. In epoch 2 the hard questions are templated. In epoch 3 they are tried bare,
# if few are still hard.
# </details>

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
#
# The command line writes the report by itself; a script asks for it.

# %%
report.write_report([folder / "run"], folder / "run")
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
#
# **Predict:** the same held-out question, bare and greedy, to the base and to the adapter. Where does each response end?
# <details><summary>answer</summary>
#
# The base after the first state, the adapter after the last.
# </details>

# %%
trained = grpo.load_policy(grpo.PolicyConfig(), adapter=str(folder / "run" / "adapter"))
question = load_questions(str(folder / "held-out.jsonl"))[0]
print(question.text, "->", question.reference)
print("base:   ", grpo.respond(trained, [question.text], seed=None, adapter=False)[0].text)
print("adapter:", grpo.respond(trained, [question.text], seed=None)[0].text)

# %% [markdown]
# ## Exercises
#
# **1.** An answer in *two* boxes earns nothing, even if both are right. Write a reward for `--reward` that gives 0.5 to a right answer that stands somewhere else, and
# try it on three responses. (It takes the response and the question, and returns the reward and the feedback that reflection sees.)
# <details><summary>solution</summary>
#
# ```python
# def lenient(response, question):
#     grade = verify.grade(response, question.reference)
#     half = not grade.reward and question.reference in response.split()
#     return (0.5 if half else grade.reward), verify.feedback(grade, question.reference)
#
# example = dataclasses.replace(question, reference="24")
# rewards = [lenient(text, example)[0] for text in (r"\boxed{24}", "it is 24 I think", r"\boxed{7}")]
# print(rewards)
# assert rewards == [1.0, 0.5, 0.0]
# ```
# </details>
#
# **2.** From `metrics.jsonl`: the mean reward of each batch of rollouts, and the gradient norm of each update. Which updates took no step?
# <details><summary>solution</summary>
#
# ```python
# lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
# print("reward:   ", [round(line["reward"] / line["rollouts"], 2) for line in lines if line["kind"] == "rollouts"])
# norms = [line["grad_norm"] for line in lines if line["kind"] == "update"]
# print("grad_norm:", [round(norm, 2) for norm in norms])
# assert norms[0] == 0 and max(norms) > 0  # the first epoch is bare, all its groups collapse
# ```
# </details>
#
# **3.** Settings that cannot work are refused when the configuration is made. Find three.
# <details><summary>solution</summary>
#
# ```python
# from support.errors import UserError
#
# for wrong in ({"group_size": 1}, {"temperature": 0.0}, {"method": "grpo", "leave_one_bare": True}):
#     try:
#         dataclasses.replace(cfg, **wrong)
#         raise AssertionError("was accepted")
#     except UserError as error:
#         print(error)
# ```
# </details>
#
# **What you have seen.** A file, a configuration, a command, a folder. To change the method itself, see
# [ideas in ten lines](IDEAS.md); to build it yourself, the [assignment](../assignment/HANDOUT.md).
