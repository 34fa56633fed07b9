"""P2O: Joint Policy and Prompt Optimization (arXiv:2603.21877v3) on one GPU, or on a laptop.

x is a question, z a template, T(x, z) the prompt: the template, an empty line, the question. The policy pi samples G
responses y to each question. If all G fail, every advantage is zero, and GRPO learns nothing from that question. P2O
repeats, epoch by epoch:

    1. prompt evolution     GEPA searches for templates z under which the hard questions of the last epoch are solved
    2. rollouts             y ~ pi(. | T(x, z)) for a hard question x, one template a rollout; others y ~ pi(. | x)
       hard-sample mining   a question whose G rollouts all failed, or all but one, is hard in the next epoch
    3. policy optimization  GRPO on these rewards, but it trains log pi(y | x): the response to the bare question
    4. measure              accuracy on held-out questions, bare prompt, greedy decoding

Step 1 is in gepa_loop.py. The equations of step 3, from the advantage to the loss, are in grpo.py. verify.py gives the
rewards.

On the command line:

    python p2o.py                        train P2O on the tiny model that is shipped
    python p2o.py --method grpo          train the baseline, with the same code
    python p2o.py --help                 every option
    python p2o.py demo                   train both, side by side, for four epochs, and write a report
    python p2o.py study FILE.toml        train variants with several seeds each, and write a table
    python p2o.py studies                put the results of all studies on one page
    python p2o.py eval --help            greedy accuracy, pass@k and majority@k of a model and an adapter
    python p2o.py fit --preset qwen3-4b-24gb    memory and hours that a run will need; --card-gb 16: on such a card
    python p2o.py report runs/a runs/b   write the report of runs again, or of several side by side
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

import gepa_loop
import grpo
import verify
from support.data import Question, load_data, that_fit
from support.errors import UserError
from support.gepa_glue import TextLimits, leave_out_long_templates, text_limits
from support.memory import adamw, longest_sequence
from support.messages import need_system_role
from support.reflection import read_wording, teacher
from support.run import RUNS, Run, folder_below, seed_for
from support.seams import check_variants, variant
from support.settings import QWEN3, at_least, require


def train(cfg: Config) -> dict:
    """One run (Algorithm 1); returns its summary. `--method grpo` is the same loop without step 1."""
    # `run` keeps the run alive: its folder, checkpoints, log and progress bar. The algorithm can be read without it.
    # What stands behind `# --- solution: part N ---` is taken out for the students of the course in assignment/.
    run = Run(cfg)
    policy, optimizer, questions, held_out = prepare(cfg)
    # A new State; with --resume that of the newest checkpoint, whose adapter and optimizer are loaded, too.
    state = run.resume(State(), policy.model, optimizer, {"training data": questions} | held_out)
    by_id = {question.id: question for question in questions}
    batches = math.ceil(len(questions) / cfg.questions_per_batch)  # of an epoch, enough to ask every question once
    waiting: list[grpo.Rollout] = []  # rollouts that wait until there are enough for an update
    if state.step == 0:
        run.log_epoch(0, held_out_accuracy(policy, held_out, cfg, run))

    for step in run.progress(range(state.step, cfg.epochs * batches), batches):
        # `step` counts batches of questions, not optimizer steps.
        epoch, batch = divmod(step, batches)  # both from 0; the log counts epochs from 1

        # 1. Prompt evolution (Algorithm 1, lines 23 to 27, and Algorithm 3), before each epoch, on the questions that
        #    the last epoch found hard. All rollouts of such a question failed, or all but one. If all failed, all
        #    advantages were 0, and GRPO learned nothing from it. Once a template lets some rollouts succeed, rewards
        #    differ within the group, and there is a gradient again. Before the first epoch no question is known to be
        #    hard, so that epoch samples every question bare.
        if batch == 0:
            # --- solution: part 8 ---
            # (A run that was resumed on other data, with --allow-changes, may no longer have a question.)
            hard = [by_id[question_id] for question_id in state.hard if question_id in by_id]
            state.templates = evolve_templates(policy, hard, cfg, epoch, run) if cfg.method == "p2o" else {}
            state.hard = []

        # 2. Rollouts (lines 4 to 13, and 19): G responses to each question of the batch, with rewards and advantages.
        #    Sampling takes most of the time, so the rollouts are written to disk at once. A run that was killed after
        #    that reads them again when it is resumed.
        chosen = choose_questions(questions, state, step, cfg, policy)
        rollouts = run.load_rollouts(step, grpo.Rollout)
        if rollouts is None:
            # --- solution: part 8 ---
            rollouts = sample_groups(policy, chosen, state.templates, cfg, seed_for(cfg, "rollout", step))

            run.save_rollouts(step, rollouts)
        #    Hard-sample mining (lines 15 to 17, equation 3). Only the rewards of this epoch decide whether a question
        #    is hard in the next one, whether they were earned under templates or not. If it was solved at least twice
        #    under templates, it leaves the hard set, and the next epoch samples it bare. If it fails there, it comes
        #    back.
        # --- solution: part 8 ---
        state.hard += [question_id for question_id in mine_hard(rollouts, cfg) if question_id not in state.hard]

        remember_success_rates(state, rollouts)  # for --select
        #    Diagnostic, at the cost of a forward pass over four rollouts: does the trainer compute the log-probs that
        #    the sampler drew from? If not, the importance ratios below are wrong, and the run would go on silently.
        mismatch = grpo.mismatch(policy, rollouts[:4])
        run.log_rollouts(epoch + 1, grpo.groups_of(rollouts), chosen, mismatch)

        # 3. Policy optimization (line 20, equation 4): several optimizer steps on this batch. What is trained is log
        #    pi(y | x), also where y was sampled under a template. So the weights learn what the template unlocked, and
        #    no template is needed at test time.
        waiting += choose_rollouts(rollouts, cfg, policy, chosen)
        if len(grpo.groups_of(waiting)) < cfg.questions_per_update and batch < batches - 1:
            # `--select`, `--keep` or `--drop-failed-templated` has left too few groups for a full update. Sample the
            # next batch first. No checkpoint is written here, for `waiting` is in none. That is safe: a run that is
            # killed now goes on from the last checkpoint, and reads the rollouts sampled since then from the disk.
            continue
        updates = split_into_updates(waiting, cfg)
        waiting = []
        # --- solution: part 8 ---
        grpo.score_old(policy, updates, cfg)  # pi_old is the policy that sampled, so this comes before the first step
        rate = grpo.learning_rate_at((step + 1) / (cfg.epochs * batches), cfg)

        for update in updates:
            record_tokens(policy, update, run)  # diagnostic, for the report
            # --- solution: part 8 ---
            metrics = grpo.update_policy(policy, optimizer, update, cfg, rate)

            run.log_update(epoch + 1, metrics, update)

        # 4. Measure after the last batch of an epoch, and write a checkpoint after each batch that was trained.
        state.step = step + 1
        if batch == batches - 1:
            accuracy = held_out_accuracy(policy, held_out, cfg, run)
            run.log_epoch(epoch + 1, accuracy, len(state.hard))
        run.save(state)
    return run.finish()


Templates = dict[str, list[str]]  # id of a hard question -> the G templates under which an epoch samples it


@dataclass
class State:
    """Where a run is. With the adapter and the optimizer it is all that a checkpoint holds."""

    step: int = 0  # batches done so far, over all epochs
    hard: list[str] = field(default_factory=list)  # ids of the questions that this epoch has found hard so far
    templates: Templates = field(default_factory=dict)  # of this epoch
    history: dict[str, list[float]] = field(default_factory=dict)  # question id -> its bare success rates, oldest first
    templated: dict[str, list[float]] = field(default_factory=dict)  # the same for rollouts under a template


@dataclass(frozen=True)
class Config(gepa_loop.EvolutionConfig, grpo.UpdateConfig, grpo.PolicyConfig):
    """P2O on one GPU or a laptop. An option that is not given has the preset's value."""

    # The options that the loop above reads are here. The others stand beside the equations that use them: the model,
    # LoRA and sampling in grpo.PolicyConfig; rate, clip and mask in grpo.UpdateConfig; GEPA in
    # gepa_loop.EvolutionConfig. Config inherits all three, so that one object is handed on whole.

    # Set of values for the options that are not given.
    preset: Literal["tiny", "qwen3-4b-24gb", "qwen3-4b-24gb-paper", "qwen3-1.7b-16gb", "qwen3-0.6b-8gb"] = "tiny"
    # p2o alternates policy and prompt optimization. grpo samples every question bare and evolves no templates.
    method: Literal["p2o", "grpo"] = "p2o"
    # Questions to train on: a JSONL, CSV or parquet file with `question` and `answer`, or a name (deepmath, ...).
    train_data: str = str(grpo.TINY / "train.jsonl")
    # Held-out files or names (aime24, math500, ...). After every epoch they are answered bare, by greedy decoding.
    eval_data: tuple[str, ...] = (str(grpo.TINY / "hard.jsonl"), str(grpo.TINY / "ood.jsonl"))
    # Number of training questions to use, from the first on. 0 uses all of them.
    train_questions: int = 0
    # Also score one sampled response to each held-out question.
    sampled_eval: bool = False
    # Text to add behind every question, after an empty line: the request for a boxed answer.
    question_suffix: str = ""
    # Seed of all random draws. The same seed gives the same numbers on the same machine.
    seed: int = 0
    # Number of passes over the training questions.
    epochs: int = 6
    # Number of questions whose responses are sampled before the policy is updated.
    questions_per_batch: int = 32
    # Number of questions in one optimizer step.
    questions_per_update: int = 16
    # Number of responses to each question, G. More responses find rarer successes.
    group_size: int = 6
    # Count a question with exactly one success as hard, too.
    near_hard: bool = True
    # Context distillation: train the response to the bare question. Without it, to the prompt that was sampled from.
    distill: bool = True
    # Leave the rollouts that failed under a template out of the loss.
    drop_failed_templated: bool = False
    # Function that selects the questions of a batch, from variants/select.py or my_file.py:name. Default: all in turn.
    select: str = ""
    # Function that makes the templates, from variants/evolve.py or my_file.py:name. Default: GEPA, then the greedy
    # cover.
    evolve: str = ""
    # Function that says if a group is hard, from variants/mine.py or my_file.py:name. Default: no success, or one.
    mine: str = ""
    # Function that rewards a response, from variants/reward.py or my_file.py:name. Default: one boxed, right answer.
    reward: str = ""
    # Function that says which rollouts are trained, from variants/keep.py or my_file.py:name. Default: all.
    keep: str = ""
    # Name of the run's folder. Default: preset-method-seed.
    name: str = ""
    # Folder in which runs are kept.
    runs: str = str(RUNS)
    # Tracker that gets the lines of metrics.jsonl, too. Install it yourself.
    track: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    # Go on from the newest checkpoint. On a CPU the end is the same, bit for bit, as if the run had never stopped.
    resume: bool = False
    # Let a resumed run have other settings, or other data, than it was started with.
    allow_changes: bool = False

    @property
    def folder(self) -> Path:
        return folder_below(self.runs, self.name or f"{self.preset}-{self.method}-seed{self.seed}")

    def __post_init__(self) -> None:
        super().__post_init__()  # what the other groups of options require
        batch, update = self.questions_per_batch, self.questions_per_update
        require(self.group_size >= 2, f"--group-size {self.group_size}: a group needs at least 2 rollouts to compare")
        at_least(1, self, "epochs")
        at_least(0, self, "train_questions", "seed")
        require(1 <= update <= batch, f"--questions-per-update {update}: from 1 to --questions-per-batch {batch}")
        has_ratios = self.distill or not self.soft_clip
        require(has_ratios, "--soft-clip --no-distill: without distillation every template ratio is 1")
        for name in ("evolve", "soft_clip", "one_template_per_group", "leave_one_bare", "drop_failed_templated"):
            pointless = self.method == "grpo" and getattr(self, name)
            require(not pointless, f"--method grpo --{name.replace('_', '-')}: GRPO samples no templates")


PRESETS = {"tiny": Config()} | {name: Config(preset=name, **values) for name, values in QWEN3.items()}


# ------------------------------------------------------------------------------------------ the steps, in loop order

# `variant("select", cfg, default=f)` is the function that --select names, or f. The other arguments are there for a
# function of yours that asks for them by name (support/seams.py).


def evolve_templates(policy: grpo.Policy, hard: list[Question], cfg: Config, epoch: int, run: Run) -> Templates:
    """G templates for each hard question; none if there are too few questions, or no template solves any."""
    if len(hard) < cfg.hard_set_min:
        return {}  # a score on a handful of dev questions would say nothing about a template

    # The search may take minutes. Its journal keeps every response and every reflection, in order. A run that was
    # killed searches again with the same seed, and reads them from the journal up to where it was killed.
    # `journal(name, f)` gives a function of the inputs alone, which calls f with the inputs and the call's number.
    journal = run.journal(f"templates/epoch-{epoch}")

    def respond_greedily(messages: list[str], call_number: int) -> list[tuple[str, bool]]:
        # Greedy: a dev score should say how good a template is, not how lucky its samples were.
        return [(sample.text, sample.truncated) for sample in grpo.respond(policy, messages, seed=None)]

    respond = journal("respond", respond_greedily)
    limits = limits_beside(hard, policy, cfg)

    def search(questions: list[Question]) -> gepa_loop.Evolution:
        return gepa_loop.evolve(
            questions, respond, journal("reflect", reflection_model(policy, cfg, epoch)), cfg,
            judge=verify.judge_of(cfg.reward), limits=limits, seed=seed_for(cfg, "gepa", epoch), log=run.note,
        )  # fmt: skip

    # Algorithm 3, and step 1 of Algorithm 2: candidates, their dev scores, and the few that cover the dev set. A
    # variant of the user's own may call `search`, too, or `respond`, to score templates that it has from elsewhere.
    own_evolve = variant("evolve", cfg, default=None, folder=cfg.folder, epoch=epoch, respond=respond)
    evolution = own_evolve(hard, search) if own_evolve else search(hard)
    leave_out_long_templates(evolution, limits, run.note)  # those of an `--evolve`: the search has none
    # Algorithm 2, step 2: one template for each *rollout*, not for each question. Where one template solves a question
    # and another does not, the group has rewards that differ.
    rng = random.Random(seed_for(cfg, "assign", epoch))
    templates = gepa_loop.assign_templates(evolution, cfg.group_size, rng, cfg)
    run.log_evolution(epoch, evolution, templates)
    return templates


def limits_beside(questions: list[Question], policy: grpo.Policy, cfg: Config) -> TextLimits:
    """How long a template may be: it stands in front of a question, so it must leave room for the longest of these."""
    longest = max(len(grpo.chat_ids(policy, question.text)) for question in questions)
    return text_limits(policy.tokenizer, cfg.max_prompt_tokens - longest, cfg.reflection_quote)


def reflection_model(policy: grpo.Policy, cfg: Config, epoch: int) -> Callable[[list[str], int], list]:
    """The reflection model: a function of reflection prompts, and of the number of calls before this one.

    It gives a reply to each prompt, or a pair (reply, was it cut off?).
    """
    if cfg.reflection == "teacher":
        return teacher(cfg)
    reflector = load_reflector(cfg) if cfg.reflection_model else policy
    # By default the base policy reflects: the same model, with the adapter switched off. The authors found that
    # templates become alike when the trained policy reflects.
    use_adapter = cfg.reflection == "policy"

    def reflect(prompts: list[str], call_number: int) -> list[tuple[str, bool]]:
        samples = grpo.respond(
            reflector, prompts, seed=seed_for(cfg, "reflect", epoch, call_number), adapter=use_adapter,
            temperature=cfg.reflection_temperature, max_new_tokens=cfg.reflection_tokens,
        )  # fmt: skip
        return [(sample.text, sample.truncated) for sample in samples]

    return reflect


@functools.lru_cache(maxsize=1)
def load_reflector(cfg: Config) -> grpo.Policy:
    """The model of --reflection-model, beside the policy, once for the whole run. Its adapter is never used."""
    cfg = dataclasses.replace(cfg, model=cfg.reflection_model, reflection_model="", engine="hf")
    try:
        return grpo.load_policy(cfg, longest_sequence=longest_sequence(cfg))
    except UserError as error:
        raise UserError(str(error).replace("--model ", "--reflection-model ", 1)) from error


def choose_questions(questions: list[Question], state: State, step: int, cfg: Config, policy=None) -> list[Question]:
    """The questions of a batch: all in turn, in another order each epoch. `--select` may look at their history."""
    epoch, batch = divmod(step, math.ceil(len(questions) / cfg.questions_per_batch))
    # The order is drawn from the seed each time, so a resumed run need not know how far an earlier one had drawn.
    order = random.Random(f"{cfg.seed}/order/{epoch}").sample(questions, len(questions))
    start = batch * cfg.questions_per_batch
    count = min(cfg.questions_per_batch, len(order) - start)
    this_batch_first = order[start:] + order[:start]
    select = variant("select", cfg, default=None, policy=policy, templated=state.templated)
    if select is None:
        return this_batch_first[:count]
    return select(this_batch_first, state.history, count, random.Random(seed_for(cfg, "select", step)))


def sample_groups(
    policy: grpo.Policy, questions: list[Question], templates: Templates, cfg: Config, seed: int
) -> list[grpo.Rollout]:
    """G rewarded rollouts of each question, group by group, with their advantages.

    A question with templates is sampled under them (equation 2), one for each rollout; any other question bare.
    """
    # --- solution: part 8 ---
    # One pair for each rollout. The empty template stands for the bare question.
    bare = [""] * cfg.group_size
    pairs = [(question, template) for question in questions for template in templates.get(question.id, bare)]

    # Each rollout has two contexts. It is sampled from T(x, z). With distillation it is trained on x, so the weights
    # learn to give this response without the template. Without, it is trained on T(x, z), and the bare prompt gains
    # only what spills over, for both contexts share the weights.
    sampled_contexts = [grpo.chat_ids(policy, gepa_loop.apply_template(z, q.text)) for q, z in pairs]
    trained_contexts = [grpo.chat_ids(policy, q.text) for q, _ in pairs] if cfg.distill else sampled_contexts
    samples = grpo.sample(policy, sampled_contexts, seed=seed)

    # The reward of a response: 0 or 1, unless `--reward` gives other numbers. The verifier sees the bare question.
    judge = verify.judge_of(cfg.reward)
    verdicts = judge([s.text for s in samples], [q for q, _ in pairs], [s.truncated for s in samples])

    rollouts = []
    for (question, template), sampled_context, trained_context, sample, verdict in zip(
        pairs, sampled_contexts, trained_contexts, samples, verdicts, strict=True
    ):
        rollout = grpo.Rollout(
            question_id=question.id, template=template, sampled_context=sampled_context,
            trained_context=trained_context, response_ids=sample.response_ids, text=sample.text,
            sampled_logprobs=sample.sampled_logprobs, truncated=sample.truncated,
            reward=verdict.reward, well_formed=verdict.well_formed,
        )  # fmt: skip
        rollouts.append(rollout)

    # Advantages compare the rollouts of one question, whichever templates they had. They come last because a variant
    # may look at texts and lengths, and at the whole batch.
    for group in grpo.groups_of(rollouts):
        advantages = grpo.advantages_of(group, cfg, batch=rollouts, policy=policy, questions=questions)
        for rollout, advantage in zip(group, advantages, strict=True):
            rollout.advantage = advantage
    return rollouts


def mine_hard(rollouts: list[grpo.Rollout], cfg: Config) -> list[str]:
    """Ids of the hard questions (equation 3): none of the group's rollouts succeeded or, with `near_hard`, just one."""
    # --- solution: part 8 ---
    most_successes = 1 if cfg.near_hard else 0

    def has_few_successes(group: list[grpo.Rollout]) -> bool:
        # With rewards of 0 and 1 the sum is the number of successes. A reward below 0 is a failure, and cancels none.
        return sum(max(rollout.reward, 0.0) for rollout in group) <= most_successes

    is_hard = variant("mine", cfg, default=has_few_successes)
    return [group[0].question_id for group in grpo.groups_of(rollouts) if is_hard(group)]


def remember_success_rates(state: State, rollouts: list[grpo.Rollout]) -> None:
    """Add each question's success rate to its history. Bare and templated rates stay apart: only the bare one says
    what the policy can do by itself."""
    for group in grpo.groups_of(rollouts):
        # As a rule a group is bare or templated as a whole. `--leave-one-bare` makes it both.
        for rates, with_template in ((state.history, False), (state.templated, True)):
            rewards = [r.reward for r in group if bool(r.template) == with_template]
            if rewards:
                rates.setdefault(group[0].question_id, []).append(sum(rewards) / len(rewards))


def choose_rollouts(
    rollouts: list[grpo.Rollout], cfg: Config, policy=None, questions: list[Question] | None = None
) -> list[grpo.Rollout]:
    """The rollouts that are trained: all, unless `--keep` or `--drop-failed-templated` leave some out."""
    keep = variant("keep", cfg, default=None, policy=policy, questions=questions)
    if keep is not None:
        rollouts = [r for group in grpo.groups_of(rollouts) for r in keep(group)]
    if cfg.drop_failed_templated:
        rollouts = [r for r in rollouts if r.reward > 0 or not r.template]
    return rollouts


def split_into_updates(rollouts: list[grpo.Rollout], cfg: Config) -> list[list[grpo.Rollout]]:
    """The rollouts of each optimizer step: `questions_per_update` groups; the last step has what is left."""
    groups = grpo.groups_of(rollouts)
    # All chosen rollouts of a question go into one step, since their advantages compare them with each other.
    updates = []
    for start in range(0, len(groups), cfg.questions_per_update):
        several_groups = groups[start : start + cfg.questions_per_update]
        updates.append([rollout for group in several_groups for rollout in group])
    return updates


def record_tokens(policy: grpo.Policy, update: list[grpo.Rollout], run: Run) -> None:
    """Diagnostic: the log-probs of the rollouts that the report shows token by token, as this update finds them.

    At most six rollouts of a batch are shown. Each one that has old log-probs costs a forward pass.
    """
    for rollout in run.transcripts_among(update):
        new_logprobs = None
        if rollout.has_signal and rollout.old_logprobs is not None:
            [new_logprobs] = grpo.logprobs_of(policy, [rollout.trained_context], [rollout.response_ids])
        run.record_tokens(rollout, policy.tokenizer, new_logprobs)


HeldOut = dict[str, list[Question]]  # name of a held-out file -> its questions


def held_out_accuracy(policy: grpo.Policy, held_out: HeldOut, cfg: Config, run: Run) -> dict[str, float]:
    """Share of each held-out file's questions that the bare prompt solves, by greedy decoding.

    With `--sampled-eval` there is a second number for each file, from one sampled response to each question.
    """
    seeds = {"": None}  # suffix of the file's name -> seed that its responses are drawn with; None decodes greedily
    if cfg.sampled_eval:
        seeds[", sampled"] = seed_for(cfg, "held out")
    judge = verify.judge_of(cfg.reward)
    accuracy = {}
    # No template here, whatever the method: what counts is what has moved into the weights.
    for file, questions in run.measuring(held_out):
        for suffix, seed in seeds.items():
            samples = grpo.respond(policy, [question.text for question in questions], seed=seed)
            verdicts = judge([s.text for s in samples], questions, [s.truncated for s in samples])
            accuracy[file + suffix] = sum(verdict.reward for verdict in verdicts) / len(verdicts)
            run.note_families(file + suffix, questions, verdicts)
    return accuracy


# ------------------------------------------------------------------------------------------ preparing; command line


def prepare(cfg: Config) -> tuple[grpo.Policy, torch.optim.Optimizer, list[Question], HeldOut]:
    """Policy, optimizer, training questions, held-out questions by name. Bad input is refused here, at the start."""
    check_variants(cfg)
    read_wording(cfg.reflection_prompt, "")  # UserError if the file is bad
    questions, held_out = load_data(cfg, verify.unparseable)
    # A reward function of the user's own is tried on one made-up response: better now than after an hour of sampling.
    verify.judge_of(cfg.reward)(["\\boxed{0}"], questions[:1], [False])
    refuse_too_few(questions, cfg)
    # What has been read so far is cheap. Loading the model is not, so it comes after all that can be refused before it.
    policy = grpo.load_policy(cfg, seed=cfg.seed, longest_sequence=longest_sequence(cfg))
    if cfg.gepa_system:
        need_system_role(policy.tokenizer, "--gepa-system")
    if cfg.method == "p2o" and cfg.reflection_model:
        load_reflector(cfg)

    def prompt_length(question: Question) -> int:
        return len(grpo.chat_ids(policy, question.text))

    # Too long a question is left out and counted. Cut short, it would be another question.
    limit = cfg.max_prompt_tokens
    questions = that_fit(cfg.train_data, questions, prompt_length, limit)
    refuse_too_few(questions, cfg)
    held_out = {name: that_fit(name, asked, prompt_length, limit) for name, asked in held_out.items()}
    if cfg.gepa_seed_template:
        limits_beside(questions, policy, cfg).require_room_for_seed(cfg.gepa_seed_template)
    optimizer = adamw(policy.trainable, cfg.learning_rate)
    print(f"{cfg.method}: {len(questions)} questions, {cfg.epochs} epochs, G = {cfg.group_size} -> {cfg.folder}")
    return policy, optimizer, questions, held_out


def refuse_too_few(questions: list[Question], cfg: Config) -> None:
    """UserError if there are fewer questions than a prompt evolution needs hard ones."""
    enough = cfg.method == "grpo" or len(questions) >= cfg.hard_set_min
    require(enough, f"--hard-set-min {cfg.hard_set_min}: no template is ever evolved on {len(questions)} questions")


def main(argv: list[str]) -> int:
    from tools import cli  # here, and not on top: the command line and the tools stand on this module

    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
