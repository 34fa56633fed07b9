"""P2O: Joint Policy and Prompt Optimization (arXiv:2603.21877v3) on one GPU, or on a laptop.

GRPO learns nothing from a question whose G responses all fail: every advantage is zero. So, for each epoch,

    1. prompt evolution     GEPA searches templates that unlock last epoch's hard questions
    2. rollouts             y ~ pi(. | T(x, z)) for the hard ones, each rollout under a template z; y ~ pi(. | x) else
       hard-sample mining   questions whose whole group failed, or all but one, are hard for the next epoch
    3. policy optimization  GRPO on these rewards, but of log pi(y | x): what a template unlocked moves into the weights
    4. measure              greedy accuracy on held-out questions, bare

python p2o.py                        P2O on the tiny model that is shipped
python p2o.py --method grpo          the baseline, from the same code path
python p2o.py --help                 every option
python p2o.py demo                   both, side by side, with a report
python p2o.py study lab/studies/main.toml   variants times seeds, with a table
python p2o.py studies                       the results of all studies on one page
python p2o.py eval --help                   greedy accuracy, pass@k and majority@k of a model and adapter
python p2o.py fit --preset qwen3-4b-24gb    the memory that a run will need
python p2o.py report runs/a runs/b          the report of runs, made again or side by side
"""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch

import gepa_loop
import grpo
import verify
from support import cli
from support.data import Question, label, load_questions, that_fit
from support.errors import UserError, exit_code_of
from support.memory import adamw, longest_sequence
from support.presets import QWEN3
from support.pretrained import shortened
from support.run import Run, RunConfig, seed_for
from support.seams import check, filled
from support.teacher import teacher


def train(cfg: Config) -> dict:
    """One run (v3, Algorithm 1); returns its summary. `--method grpo` is the same loop without step 1."""
    # --- solution: part 8 ---
    run = Run(cfg)  # folder, checkpoints, journal, log: nothing below knows how
    policy, optimizer, questions, held_out = prepare(cfg)
    state = run.resume(State(), policy.model, optimizer)
    by_id = {question.id: question for question in questions}
    batches = math.ceil(len(questions) / cfg.questions_per_batch)  # of an epoch, in which every question comes once
    kept: list[grpo.Rollout] = []
    if state.step == 0:
        run.log_epoch(0, held_out_accuracy(policy, held_out, cfg, run))

    for step in run.progress(range(state.step, cfg.epochs * batches), batches):
        epoch, batch = divmod(step, batches)

        # 1. Prompt evolution: a hard question has no contrast to learn from until some prompt lets it succeed.
        if batch == 0:
            hard = [by_id[question_id] for question_id in state.hard]
            state.templates = evolve_templates(policy, hard, cfg, epoch, run) if cfg.method == "p2o" else {}
            state.hard = []

        # 2. Rollouts: G for each question, y ~ pi(. | T(x, z)) where it has templates, y ~ pi(. | x) where not.
        chosen = choose_questions(questions, state, step, cfg, policy)
        sampling = partial(sample_groups, policy, chosen, state.templates, cfg, seed_for(cfg, "rollout", step))
        rollouts = run.once(step, grpo.Rollout, sampling)  # dear, so a run that was killed does not do it again
        # Rewards count as sampled: what a template has solved leaves the hard set, and is tried bare in the next epoch.
        state.hard += [question_id for question_id in mine_hard(rollouts, cfg) if question_id not in state.hard]
        remember(state, rollouts)
        run.log_rollouts(epoch + 1, grpo.groups_of(rollouts), chosen, grpo.mismatch(policy, rollouts[:4]))

        # 3. Policy optimization of log pi(y | x), whatever y was sampled from: no template is needed at test time.
        kept += choose_rollouts(rollouts, cfg, policy=policy, questions=chosen)
        if len(grpo.groups_of(kept)) < cfg.questions_per_update and batch < batches - 1:
            continue  # too few groups were kept for an update: sample on, the policy has not moved
        updates, kept = in_updates(kept, cfg), []
        grpo.score_old(policy, updates, cfg)  # before it moves
        rate = grpo.warmed_up((step + 1) / (cfg.epochs * batches), cfg)
        for part in updates:
            run.look(part, policy.tokenizer.batch_decode, partial(grpo.logprobs_of, policy))
            run.log_update(epoch + 1, grpo.update_policy(policy, optimizer, part, cfg, rate), part)

        # 4. Measure, keep: a run that is stopped goes on from here.
        state.step = step + 1
        if batch == batches - 1:
            run.log_epoch(epoch + 1, held_out_accuracy(policy, held_out, cfg, run), len(state.hard))
        run.save(state)
    return run.finish()


Templates = dict[str, list[str]]  # hard question id -> the G templates under which an epoch samples it


@dataclass
class State:
    """Where a run is. With the adapter and the optimizer, all that it needs to go on."""

    step: int = 0  # batches that are done, of all epochs
    hard: list[str] = field(default_factory=list)  # ids of this epoch's hard questions so far
    templates: Templates = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=dict)  # question id -> its bare success rates, oldest first
    templated: dict[str, list[float]] = field(default_factory=dict)  # likewise, of what was sampled under templates


@dataclass(frozen=True)
class Config(grpo.PolicyConfig, grpo.UpdateConfig, gepa_loop.EvolutionConfig, RunConfig):
    """P2O on one GPU or a laptop. Defaults are those of the preset."""

    preset: Literal["tiny", "qwen3-4b-24gb", "qwen3-4b-24gb-paper", "qwen3-1.7b-16gb", "qwen3-0.6b-8gb"] = "tiny"
    """Where the other defaults come from."""
    method: Literal["p2o", "grpo"] = "p2o"
    """p2o alternates policy and prompt optimization; grpo is the policy epoch alone, every question bare."""
    train_data: str = str(grpo.TINY / "train.jsonl")
    """JSONL or parquet file with `question` and `answer`, or a name of support/data.py: deepmath, gsm8k, ..."""
    eval_data: tuple[str, ...] = (str(grpo.TINY / "hard.jsonl"), str(grpo.TINY / "ood.jsonl"))
    """Held-out files or names (aime24, math500, ...), scored after every epoch: bare prompt, greedy."""
    train_questions: int = 0  # Train on the first that many of the training questions; 0 is all of them
    sampled_eval: bool = False  # score one sampled response of each held-out question, too, beside the greedy one
    question_suffix: str = ""  # put behind every question, after an empty line: the request for a boxed answer
    seed: int = 0  # Same seed, same machine, same numbers
    epochs: int = 6  # Passes over the training questions
    questions_per_batch: int = 32  # Questions sampled at once, under one policy
    questions_per_update: int = 16  # Questions per optimizer step
    group_size: int = 6  # G, responses per question
    near_hard: bool = True  # Questions with exactly one success count as hard, too
    distill: bool = True  # context distillation: train the bare question, not the context that was sampled from
    drop_failed_templated: bool = False  # Templated rollouts with reward 0 are left out of the loss
    select: str = ""  # which questions are sampled: a function of variants/select.py or of my_file.py:mine; all in turn
    evolve: str = ""  # where templates come from: likewise; GEPA, and its greedy cover
    mine: str = ""  # which groups are hard: likewise; without a success, or with one (--near-hard)
    reward: str = ""  # what a response earns: likewise; exactly one boxed answer, and it is right
    keep: str = ""  # which rollouts of a group are trained: likewise; all

    def rules(self) -> dict[str, bool]:
        batch, update = self.questions_per_batch, self.questions_per_update
        names = ("evolve", "soft_clip", "one_template_per_group", "leave_one_bare", "drop_failed_templated")
        idle = [f"--{name.replace('_', '-')}" for name in names if self.method == "grpo" and getattr(self, name)]
        return {
            f"--group-size {self.group_size}: a group needs at least 2 rollouts to compare": self.group_size >= 2,
            f"--epochs {self.epochs}: at least 1": self.epochs >= 1,
            f"--train-questions {self.train_questions}: 0 for all, or more": self.train_questions >= 0,
            f"--questions-per-update {update}: from 1 to --questions-per-batch {batch}": 1 <= update <= batch,
            "--soft-clip --no-distill: without distillation every ratio is 1": self.distill or not self.soft_clip,
            f"--method grpo: it samples no templates, so it cannot have {' '.join(idle)}": not idle,
        }


PRESETS = {"tiny": Config()} | {name: Config(preset=name, **values) for name, values in QWEN3.items()}


# ------------------------------------------------------------------------------------------ the steps, in loop order


def evolve_templates(policy: grpo.Policy, hard: list[Question], cfg: Config, epoch: int, run: Run) -> Templates:
    """The templates of this epoch; none if there are too few hard questions to search on."""
    if len(hard) < cfg.hard_set_min:
        return {}
    room = cfg.max_prompt_tokens - max(len(grpo.chat_ids(policy, question.text)) for question in hard)
    # Dev scores are to say how well a template does, not how lucky it was: greedy.
    journal = run.journal(f"templates/epoch-{epoch}")  # every response and reflection: a kill costs none
    greedy = partial(grpo.respond, policy, seed=None)
    search = partial(
        gepa_loop.evolve, cfg=cfg, judge=verify.judge_of(cfg.reward),
        respond=journal("respond", lambda messages, _: [(s.text, s.truncated) for s in greedy(messages)]),
        reflect=journal("reflect", reflection_model(policy, cfg, epoch)),
        tokens=lambda text: len(policy.tokenizer(text).input_ids), room=room,
        quote=partial(shortened, policy.tokenizer, limit=cfg.reflection_quote),
        seed=seed_for(cfg, "gepa", epoch), log=run.note,
    )  # fmt: skip
    evolution = filled("evolve", cfg, lambda hard, search: search(hard), folder=cfg.folder, epoch=epoch)(hard, search)
    # One template for each rollout, not for each question: where some solve it and some do not, there is contrast.
    rng = random.Random(seed_for(cfg, "assign", epoch))
    templates = gepa_loop.assign_templates(evolution, cfg.group_size, rng, cfg)
    run.log_evolution(epoch, evolution, templates)
    return templates


def reflection_model(policy: grpo.Policy, cfg: Config, epoch: int) -> Callable[[list[str], int], list[str]]:
    """The reflection model: takes prompts and the number of this call, from which its seed is derived.

    By default the base policy: the authors found that templates lose diversity when the trained one reflects.
    """
    if cfg.reflection == "teacher":
        ask = teacher(cfg, cfg.reflection_tokens, cfg.reflection_temperature)
        return lambda prompts, _: ask(prompts)
    how = {"temperature": cfg.reflection_temperature, "max_new_tokens": cfg.reflection_tokens}
    drawn = partial(grpo.respond, policy, **how, adapter=cfg.reflection == "policy")
    return lambda prompts, number: [s.text for s in drawn(prompts, seed=seed_for(cfg, "reflect", epoch, number))]


def choose_questions(questions: list[Question], state: State, step: int, cfg: Config, policy=None) -> list[Question]:
    """The questions of a batch. By default all in turn, in a new order each epoch; --select may use the history."""
    epoch, batch = divmod(step, math.ceil(len(questions) / cfg.questions_per_batch))
    # Drawn from the seed each time, so that a resumed run need not know where an earlier one had got to.
    order = random.Random(f"{cfg.seed}/order/{epoch}").sample(questions, len(questions))
    start = batch * cfg.questions_per_batch
    count = min(cfg.questions_per_batch, len(order) - start)
    select = filled("select", cfg, lambda order, *_: order[:count], policy=policy, templated=state.templated)
    return select(order[start:] + order[:start], state.history, count, random.Random(seed_for(cfg, "select", step)))


def sample_groups(
    policy: grpo.Policy, questions: list[Question], templates: Templates, cfg: Config, seed: int
) -> list[grpo.Rollout]:
    """G rewarded rollouts of each question, group by group, with their advantages.

    A question with templates is sampled under them, one for each rollout; any other one bare. With distillation, the
    context that is trained is the bare one in either case (v3, eq. 4).
    """
    # --- solution: part 8 ---
    pairs = [(q, z) for q in questions for z in templates.get(q.id, [""] * cfg.group_size)]
    sampled = [grpo.chat_ids(policy, gepa_loop.apply_template(z, q.text)) for q, z in pairs]  # T(x, z)
    trained = [grpo.chat_ids(policy, q.text) for q, _ in pairs] if cfg.distill else sampled  # x
    samples = grpo.sample(policy, sampled, seed=seed)
    judge = verify.judge_of(cfg.reward)
    verdicts = judge([s.text for s in samples], [q for q, _ in pairs], [s.truncated for s in samples])
    rollouts = [
        grpo.Rollout(question_id=q.id, template=z, sampled_context=context, trained_context=target, **vars(drawn),
                     reward=verdict.reward, well_formed=verdict.well_formed)
        for (q, z), context, target, drawn, verdict in zip(pairs, sampled, trained, samples, verdicts, strict=True)
    ]  # fmt: skip
    # Only now: a variant's advantage may look at texts and lengths, and at the whole batch.
    advantages_of = partial(grpo.advantages_of, cfg=cfg, batch=rollouts, policy=policy, questions=questions)
    for group in grpo.groups_of(rollouts):
        for rollout, advantage in zip(group, advantages_of(group), strict=True):
            rollout.advantage = advantage
    return rollouts


def mine_hard(rollouts: list[grpo.Rollout], cfg: Config) -> list[str]:
    """Ids of the questions with no success in their group, or (near-hard) one, as they were sampled (v3, eq. 3)."""
    # --- solution: part 8 ---
    most = 1 if cfg.near_hard else 0
    is_hard = filled("mine", cfg, lambda group: sum(r.reward for r in group) <= most)
    return [group[0].question_id for group in grpo.groups_of(rollouts) if is_hard(group)]


def remember(state: State, rollouts: list[grpo.Rollout]) -> None:
    """Add each question's success rate to its past: bare and templated apart, a template's is not the policy's own."""
    for group in grpo.groups_of(rollouts):
        for past, templated in ((state.history, False), (state.templated, True)):
            rewards = [r.reward for r in group if bool(r.template) == templated]
            if rewards:
                past.setdefault(group[0].question_id, []).append(sum(rewards) / len(rewards))


def choose_rollouts(rollouts: list[grpo.Rollout], cfg: Config, **at_hand) -> list[grpo.Rollout]:
    """Those that are trained; all by default. A group of which `--keep` leaves nothing does not fill an update."""
    keep = filled("keep", cfg, list, **at_hand)
    kept = [r for group in grpo.groups_of(rollouts) for r in keep(group)]
    return [r for r in kept if r.reward or not r.template] if cfg.drop_failed_templated else kept


def in_updates(rollouts: list[grpo.Rollout], cfg: Config) -> list[list[grpo.Rollout]]:
    """The rollouts of each optimizer step: `questions_per_update` groups, the last with what is left."""
    groups, size = grpo.groups_of(rollouts), cfg.questions_per_update
    return [sum(groups[i : i + size], []) for i in range(0, len(groups), size)]


HeldOut = dict[str, list[Question]]  # name of a held-out file -> its questions


def held_out_accuracy(policy: grpo.Policy, held_out: HeldOut, cfg: Config, run: Run) -> dict[str, float]:
    """Share of each held-out file's questions that the bare prompt solves, by greedy decoding (and sampled once)."""
    accuracy, ways = {}, {"": None} | ({", sampled": seed_for(cfg, "held out")} if cfg.sampled_eval else {})
    for (file, questions), (way, seed) in itertools.product(held_out.items(), ways.items()):
        samples = grpo.respond(policy, [q.text for q in questions], seed=seed)
        verdicts = verify.judge_of(cfg.reward)([s.text for s in samples], questions, [s.truncated for s in samples])
        accuracy[file + way] = sum(verdict.reward for verdict in verdicts) / len(verdicts)
        run.note_families(file + way, questions, verdicts)
    return accuracy


# ------------------------------------------------------------------------------------------ preparing; command line


def prepare(cfg: Config) -> tuple[grpo.Policy, torch.optim.Optimizer, list[Question], HeldOut]:
    """Policy, optimizer, training questions, held-out questions by name. What can be refused is refused at once."""
    check(cfg)
    read = partial(load_questions, suffix=cfg.question_suffix, unparseable=None if cfg.reward else verify.unparseable)
    questions, held_out = read(cfg.train_data), {label(path): read(path) for path in cfg.eval_data}
    questions = questions[: cfg.train_questions or None]
    if cfg.method == "p2o" and cfg.hard_set_min > len(questions):
        raise UserError(f"--hard-set-min {cfg.hard_set_min}: no template is ever evolved on {len(questions)} questions")
    policy = grpo.load_policy(cfg, seed=cfg.seed, longest_sequence=longest_sequence(cfg))
    fitting = partial(that_fit, length=lambda q: len(grpo.chat_ids(policy, q.text)), limit=cfg.max_prompt_tokens)
    questions, held_out = fitting(cfg.train_data, questions), {name: fitting(name, q) for name, q in held_out.items()}
    optimizer = adamw(policy.trainable, cfg.learning_rate)
    print(f"{cfg.method}: {len(questions)} questions, {cfg.epochs} epochs, G = {cfg.group_size} -> {cfg.folder}")
    return policy, optimizer, questions, held_out


parse_config = partial(cli.parse, presets=PRESETS, description=__doc__)


def main(argv: list[str]) -> int:
    return exit_code_of(partial(cli.command, argv, parse_config, train))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
