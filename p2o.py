"""P2O: Joint Policy and Prompt Optimization (arXiv:2603.21877) on one GPU, or on a laptop.

for each epoch:
    policy epoch        sample G responses per question (hard ones under evolved templates), train the bare question
    hard-sample mining  questions whose whole group failed, or all but one
    prompt evolution    GEPA on the hard set; a covering set of templates; G of them for each hard question

python p2o.py                        P2O on the tiny model that is shipped
python p2o.py --method grpo          the baseline, from the same code path
python p2o.py --help                 every option
python p2o.py demo                   both, side by side, with a report
python p2o.py study studies/main.toml       variants times seeds, with a table
python p2o.py eval --help                   greedy accuracy, pass@k and majority@k of a model and adapter
python p2o.py fit --preset qwen3-4b-24gb    the memory that a run will need
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from tqdm import tqdm

import gepa_loop
import grpo
import verify
from support import checkpoint, fit, report, track
from support.data import Problem, label, load_problems
from support.errors import UserError
from support.presets import QWEN3
from support.run import (
    RUN_FILES,
    Run,
    State,
    check_folder,
    finish_run,
    load_checkpoint,
    log_epoch,
    record_rollouts,
    save_checkpoint,
    save_evolution,
    stop_after_bad_updates,
    stop_on_ctrl_c,
    write_line,
)

ROOT = Path(__file__).resolve().parent

# ------------------------------------------------------------------------------------------------------ configuration


@dataclass(frozen=True)
class Config:
    """P2O on one GPU or a laptop. Defaults are those of the preset."""

    preset: Literal["tiny", "qwen3-4b-24gb", "qwen3-1.7b-16gb", "qwen3-0.6b-8gb"] = "tiny"
    """Where the other defaults come from."""
    method: Literal["p2o", "grpo"] = "p2o"
    """p2o alternates policy and prompt optimization; grpo is the policy epoch alone, every question bare."""
    model: str = str(ROOT / "tiny" / "model")  # Model folder, or hub id
    train_data: str = str(ROOT / "tiny" / "train.jsonl")
    """JSONL or parquet file with `question` and `answer`, or a name of support/data.py: deepmath, gsm8k, ..."""
    eval_data: tuple[str, ...] = (str(ROOT / "tiny" / "hard.jsonl"), str(ROOT / "tiny" / "ood.jsonl"))
    """Held-out files or names (aime24, math500, ...), scored after every epoch: bare prompt, greedy."""
    question_suffix: str = ""  # put behind every question, after an empty line: the request for a boxed answer
    system_prompt: str = ""  # System message of every prompt; empty for none
    enable_thinking: bool = False  # Qwen3's switch; other chat templates ignore it
    name: str = ""  # The run's folder below runs/; by default preset-method-seed
    runs: str = str(ROOT / "runs")  # Where runs are kept
    seed: int = 0  # Same seed, same machine, same numbers
    track: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """A tracker that gets the lines of metrics.jsonl, too; install it yourself."""
    threads: int = 1  # CPU threads of torch; 0 leaves it to torch
    resume: bool = False  # go on from the newest checkpoint, to the same end as if the run had never stopped
    allow_changes: bool = False  # Let a resumed run's settings differ from those it was started with
    checkpoint_every: int = 20  # updates between checkpoints; epochs and prompt evolutions end with one anyway

    epochs: int = 6  # Passes over the training questions
    questions_per_batch: int = 32  # Questions sampled at once, under one policy
    questions_per_update: int = 16  # Questions per optimizer step
    group_size: int = 6  # G, responses per question
    temperature: float = 1.0  # Of sampling, and of every log-probability
    max_prompt_tokens: int = 160  # longer questions are left out; templates that leave a question no room, too
    max_response_tokens: int = 40  # A response that has not ended by then is truncated, and counted

    learning_rate: float = 5e-4  # Peak rate of AdamW, on the adapter
    warmup: float = 0.05  # Share of all updates over which the rate rises
    max_grad_norm: float = 1.0  # Gradient clipping
    lora_rank: int = 16  # Rank of the adapter on every linear layer
    lora_alpha: int = 32  # The adapter's scale is alpha / rank
    load_in_4bit: bool = False  # NF4 with double quantization, through bitsandbytes (on a CPU, too)
    gradient_checkpointing: bool = False  # Keep no activations but recompute them in backward
    sample_batch: int = 256  # Rollouts sampled at once by transformers
    micro_batch_tokens: int = 16384  # padded tokens in one forward and backward pass; an update accumulates them
    engine: Literal["hf", "vllm"] = "hf"  # who samples: transformers, or vLLM in the same process
    vllm_memory: float = 0.6  # Share of the card for vLLM while it samples; it sleeps while the policy trains
    importance_cap: float = 0.0  # weigh tokens by min(pi_trainer / pi_sampler, this), against rounding; 0 is off

    clip_low: float = 0.2  # epsilon_low of the PPO clip
    clip_high: float = 0.2  # epsilon_high; larger than clip_low is DAPO's clip-higher
    dual_clip: float = 3.0  # c of the dual clip
    aggregation: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"] = (
        "token-mean"
    )
    """How per-token losses become one number."""
    scale_by_std: bool = True  # Divide advantages by the group's standard deviation; without it they are Dr. GRPO's
    kl_coef: float = 0.0  # Weight of the k3 KL term to the base policy
    skip_zero_advantage: bool = True  # leave rollouts without advantage out of the passes: saves time, changes nothing

    distill: bool = True  # context distillation: train the bare question, not the context that was sampled from
    ratio_mask: bool = True  # Weigh tokens by the template ratio pi_old(y|x) / pi_old(y|T(x,z))
    ratio_min: float = 0.01  # Lower bound of the template ratio
    ratio_max: float = 10.0  # Upper bound of the template ratio
    soft_clip: bool = False  # Weight bound / ratio outside the bounds, rather than 0
    one_template_per_group: bool = False  # all G rollouts of a hard question share one template
    leave_one_bare: bool = False  # One rollout of each templated group is sampled from the bare question
    drop_failed_templated: bool = False  # Templated rollouts with reward 0 are left out of the loss
    near_hard: bool = True  # Questions with exactly one success count as hard, too

    hard_set_min: int = 12  # With fewer hard questions than this, no templates are evolved and the next epoch runs bare
    gepa_dev_size: int = 40  # Dev questions that score a template
    gepa_minibatch: int = 3  # Questions shown in one reflection
    gepa_parents: int = 4  # Parents advanced per iteration, as one batch
    gepa_budget: str = "500"
    """Metric calls of one evolution: a number, or GEPA's light, medium, heavy, heavy_2, heavy_3, heavy_4, heavy_16."""
    reflection: Literal["self", "policy", "teacher"] = "self"
    """Who reflects: the base policy (adapter off), the policy as it is trained, or a model behind an endpoint."""
    reflection_tokens: int = 60  # Length limit of a reflection
    reflection_temperature: float = 1.0  # Of sampling reflections
    teacher_url: str = ""  # base URL of an OpenAI-compatible endpoint; the key is read from OPENAI_API_KEY
    teacher_model: str = ""  # The model's name there
    teacher_max_calls: int = 1000  # Limit on calls of one evolution
    teacher_max_tokens: int = 2_000_000  # Limit on tokens of one evolution, prompts and replies together

    def recorded(self) -> dict:
        """What config.json keeps: everything but how the command was given."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in ("resume", "allow_changes")}

    @property
    def folder(self) -> Path:
        return Path(self.runs) / (self.name or f"{self.preset}-{self.method}-seed{self.seed}")


PRESETS = {"tiny": Config()} | {name: dataclasses.replace(Config(), preset=name, **v) for name, v in QWEN3.items()}


def check_config(cfg: Config, train: list[Problem]) -> None:
    """Refuse what cannot work, with a sentence that says why."""
    templated = [
        name
        for name in ("soft_clip", "one_template_per_group", "leave_one_bare", "drop_failed_templated")
        if getattr(cfg, name)
    ]
    rules = [
        (cfg.group_size >= 2, f"--group-size {cfg.group_size}: a group needs at least 2 rollouts to compare"),
        (
            0 < cfg.ratio_min <= 1 <= cfg.ratio_max,
            f"--ratio-min {cfg.ratio_min} --ratio-max {cfg.ratio_max}: the template ratio's range must hold 1, "
            "so 0 < ratio-min <= 1 <= ratio-max",
        ),
        (
            cfg.method == "grpo" or 4 <= cfg.hard_set_min <= len(train),
            f"--hard-set-min {cfg.hard_set_min}: must lie between 4 (two questions to train and two to score) and the "
            f"{len(train)} questions of {cfg.train_data}, or no template is ever evolved",
        ),
        (
            cfg.temperature > 0,
            f"--temperature {cfg.temperature}: must be positive, or all rollouts of a group are equal",
        ),
        (cfg.epochs >= 1, f"--epochs {cfg.epochs}: at least 1"),
        (
            1 <= cfg.questions_per_update <= cfg.questions_per_batch,
            f"--questions-per-update {cfg.questions_per_update}: between 1 and --questions-per-batch "
            f"{cfg.questions_per_batch}, since an update trains on sampled questions",
        ),
        (
            cfg.gepa_budget.isdigit() or cfg.gepa_budget in gepa_loop.BUDGETS,
            f"--gepa-budget {cfg.gepa_budget}: a number, or one of {', '.join(gepa_loop.BUDGETS)}",
        ),
        (cfg.gepa_dev_size >= 2, f"--gepa-dev-size {cfg.gepa_dev_size}: at least 2"),
        (cfg.gepa_minibatch >= 1, f"--gepa-minibatch {cfg.gepa_minibatch}: at least 1"),
        (cfg.gepa_parents >= 1, f"--gepa-parents {cfg.gepa_parents}: at least 1"),
        (cfg.kl_coef >= 0, f"--kl-coef {cfg.kl_coef}: at least 0"),
        (cfg.learning_rate > 0, f"--learning-rate {cfg.learning_rate}: must be positive"),
        (
            0 <= cfg.clip_low < 1 and cfg.clip_high >= 0,
            f"--clip-low {cfg.clip_low} --clip-high {cfg.clip_high}: 0 <= clip-low < 1 and clip-high >= 0",
        ),
        (
            cfg.importance_cap == 0 or cfg.importance_cap >= 1,
            f"--importance-cap {cfg.importance_cap}: 0 for none, or at least 1, so that equal engines get weight 1",
        ),
        (
            cfg.engine != "vllm" or max(cfg.temperature, cfg.reflection_temperature) <= 2,
            "--engine vllm: takes temperatures up to 2",
        ),
        (0 < cfg.vllm_memory < 1, f"--vllm-memory {cfg.vllm_memory}: a share of the card, between 0 and 1"),
        (cfg.dual_clip > 1, f"--dual-clip {cfg.dual_clip}: must be greater than 1"),
        (cfg.ratio_mask or not cfg.soft_clip, "--soft-clip --no-ratio-mask: the soft clip is a kind of ratio mask"),
        (
            cfg.distill or not cfg.soft_clip,
            "--soft-clip --no-distill: without distillation both contexts are the same and every ratio is 1",
        ),
        (
            cfg.reflection != "teacher" or (cfg.teacher_url and cfg.teacher_model),
            "--reflection teacher: needs --teacher-url (an OpenAI-compatible endpoint) and --teacher-model",
        ),
        (
            cfg.reflection == "teacher" or not cfg.teacher_url,
            f"--teacher-url {cfg.teacher_url}: is used by --reflection teacher only",
        ),
        (
            cfg.method == "p2o" or not templated,
            f"--method grpo: samples no templates, so it cannot have --{(templated or [''])[0].replace('_', '-')}",
        ),
        (
            min(cfg.max_prompt_tokens, cfg.max_response_tokens, cfg.reflection_tokens) >= 1,
            "--max-prompt-tokens, --max-response-tokens and --reflection-tokens must be at least 1",
        ),
    ]
    for holds, complaint in rules:
        if not holds:
            raise UserError(complaint)


# ------------------------------------------------------------------------------------------------ the alternating loop


def train(cfg: Config) -> dict:
    """One run: `cfg.epochs` times policy epoch, hard-sample mining and prompt evolution. Returns the summary."""
    # --- solution: part 8 ---
    run = start_run(cfg)
    state = run.state
    with stop_on_ctrl_c(run):
        while state.epoch < cfg.epochs:
            if state.stage == "policy":
                policy_epoch(run)
                log_epoch(run, state.epoch + 1, held_out_accuracy(run))
                state.stage = "evolution"
                save_checkpoint(run)
            if cfg.method == "p2o" and state.epoch + 1 < cfg.epochs:
                evolve_templates(run)
            state.epoch, state.stage = state.epoch + 1, "policy"
            state.hard, state.position, state.sums = [], 0, {}
            save_checkpoint(run)
    return finish_run(run)


def policy_epoch(run: Run) -> None:
    """Sample every training question in groups of G, train, and collect the hard ones."""
    cfg, state = run.cfg, run.state
    order = random.Random(f"{cfg.seed}/order/{state.epoch}").sample(run.train, len(run.train))
    progress = tqdm(total=len(order), initial=state.position, desc=f"epoch {state.epoch + 1}", unit="q", leave=False)
    with progress:
        while state.position < len(order) or state.pending:
            if not state.pending:
                problems = order[state.position : state.position + cfg.questions_per_batch]
                state.pending = sample_groups(run, problems)
                state.hard += mine_hard(state.pending, cfg.group_size, cfg.near_hard)
                state.position += len(problems)
            size = cfg.questions_per_update * cfg.group_size
            rollouts, state.pending = state.pending[:size], state.pending[size:]
            train_on(run, rollouts)
            progress.update(len(rollouts) // cfg.group_size)
            if run.interrupted or state.update % cfg.checkpoint_every == 0:
                save_checkpoint(run)
            run.stop_if_asked()


def sample_groups(run: Run, problems: list[Problem]) -> list[grpo.Rollout]:
    """G graded rollouts per question, group by group, with their advantages and token weights.

    A hard question of the last epoch is sampled under its templates, one for each rollout; any other one bare. With
    distillation, the context that is trained is the bare one in either case.
    """
    # --- solution: part 8 ---
    cfg, state, policy = run.cfg, run.state, run.policy
    pairs = [(p, z) for p in problems for z in state.templates.get(p.id, [""] * cfg.group_size)]
    sampled_contexts = [grpo.chat_ids(policy, gepa_loop.apply_template(z, p.question)) for p, z in pairs]
    bare_contexts = [grpo.chat_ids(policy, p.question) for p, _ in pairs]
    trained_contexts = bare_contexts if cfg.distill else sampled_contexts

    samples = grpo.sample(policy, sampled_contexts, seed=seed_for(cfg, "rollout", state.epoch, state.position))
    grades = verify.grade_batch([s.text for s in samples], [p.answer for p, _ in pairs])
    old_logprobs = grpo.score(policy, trained_contexts, [s.response_ids for s in samples])  # pi_old(y | x)
    rewards = torch.tensor([g.reward for g in grades])  # [B]
    advantages = grpo.group_advantages(rewards, cfg.group_size, cfg.scale_by_std).tolist()

    rollouts = [
        grpo.Rollout(
            question_id=problem.id,
            template=template,
            sampled_context=sampled,
            trained_context=trained,
            response_ids=s.response_ids,
            sampled_logprobs=s.logprobs,
            truncated=s.truncated,
            text=s.text,
            reward=grade.reward,
            well_formed=grade.well_formed,
            advantage=advantage,
            old_logprobs=old,
        )
        for (problem, template), sampled, trained, s, grade, advantage, old in zip(
            pairs, sampled_contexts, trained_contexts, samples, grades, advantages, old_logprobs, strict=True
        )
    ]
    for r in rollouts:
        r.token_weight = [1.0] * len(r.response_ids)
        if cfg.ratio_mask and r.trained_context != r.sampled_context:
            bare, templated = torch.tensor(r.old_logprobs), torch.tensor(r.sampled_logprobs)
            r.token_weight = grpo.template_ratio_weight(
                bare, templated, cfg.ratio_min, cfg.ratio_max, cfg.soft_clip
            ).tolist()
    if cfg.importance_cap:
        grpo.correct_for_sampler(policy, rollouts, cfg.importance_cap)
    record_rollouts(run, problems, rollouts)
    return rollouts


def mine_hard(rollouts: list[grpo.Rollout], group_size: int, near_hard: bool) -> list[str]:
    """Ids of the questions with no success in their group, or (near-hard) exactly one, as they were sampled."""
    # --- solution: part 8 ---
    groups = [rollouts[i : i + group_size] for i in range(0, len(rollouts), group_size)]
    most = 1 if near_hard else 0
    return [group[0].question_id for group in groups if sum(r.reward for r in group) <= most]


def train_on(run: Run, rollouts: list[grpo.Rollout]) -> None:
    """One optimizer step, and its line in metrics.jsonl."""
    cfg, state = run.cfg, run.state
    if cfg.drop_failed_templated:
        rollouts = [r for r in rollouts if r.reward or not r.template]
    updates_per_epoch = -(-len(run.train) // cfg.questions_per_update)
    rate = grpo.learning_rate(state.update, cfg.epochs * updates_per_epoch, cfg.learning_rate, cfg.warmup)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    metrics = {"rollouts": len(rollouts), "reward": mean([r.reward for r in rollouts])}
    if rollouts:
        metrics |= grpo.update_policy(
            run.policy,
            run.optimizer,
            rollouts,
            clip_low=cfg.clip_low,
            clip_high=cfg.clip_high,
            dual_clip=cfg.dual_clip,
            aggregation=cfg.aggregation,
            kl_coef=cfg.kl_coef,
            max_grad_norm=cfg.max_grad_norm,
            skip_zero_advantage=cfg.skip_zero_advantage,
        )
    state.update += 1
    stop_after_bad_updates(run, metrics, rollouts)
    write_line(run, {"kind": "update", "epoch": state.epoch + 1, "update": state.update, "lr": rate, **metrics})


def evolve_templates(run: Run) -> None:
    """Prompt evolution on the hard set; sets the templates under which the next epoch samples it."""
    cfg, state, policy = run.cfg, run.state, run.policy
    state.templates = {}
    if len(state.hard) < cfg.hard_set_min:
        return
    hard = [run.by_id[question_id] for question_id in state.hard]
    room = cfg.max_prompt_tokens - max(len(grpo.chat_ids(policy, p.question)) for p in hard)
    progress = tqdm(desc=f"evolving templates on {len(hard)} hard questions", unit="response", leave=False)

    def answer(messages: list[str], _) -> list[tuple[str, bool]]:
        run.stop_if_asked()
        samples = grpo.sample(policy, [grpo.chat_ids(policy, m) for m in messages], seed=None)
        progress.update(len(messages))
        return [(s.text, s.truncated) for s in samples]

    (run.folder / "templates").mkdir(exist_ok=True)
    journal = checkpoint.journaled(run.folder / "templates" / f"epoch-{state.epoch + 1}.journal.jsonl")
    reflect = gepa_loop.one_or_many(journal("reflect", reflection_model(run)))
    with progress:
        evolution = gepa_loop.evolve(
            hard,
            journal("answer", answer),
            reflect,
            dev_size=cfg.gepa_dev_size,
            minibatch=cfg.gepa_minibatch,
            parents_per_iteration=cfg.gepa_parents,
            budget=cfg.gepa_budget,
            fits=lambda template: len(policy.tokenizer(template).input_ids) < room,
            seed=seed_for(cfg, "gepa", state.epoch),
            log=run.log,
        )
    rng = random.Random(f"{cfg.seed}/assign/{state.epoch}")
    state.templates = gepa_loop.assign_templates(evolution, cfg.group_size, rng, cfg.one_template_per_group)
    if cfg.leave_one_bare:
        state.templates = {question_id: [*zs[:-1], ""] for question_id, zs in state.templates.items()}
    state.gepa_calls += evolution.metric_calls
    save_evolution(run, evolution)


def reflection_model(run: Run) -> Callable[[list[str], int], list[str]]:
    """The reflection model: the base policy (adapter off), the policy itself, or a teacher.

    It takes prompts and the number of this call, from which its seed is derived.
    """
    cfg, state, policy = run.cfg, run.state, run.policy
    if cfg.reflection == "teacher":
        reflect = gepa_loop.teacher(
            cfg.teacher_url,
            cfg.teacher_model,
            max_tokens=cfg.reflection_tokens,
            temperature=cfg.reflection_temperature,
            max_calls=cfg.teacher_max_calls,
            max_total_tokens=cfg.teacher_max_tokens,
        )
        return lambda prompts, _: reflect.batch(prompts)
    hot = dataclasses.replace(policy, temperature=cfg.reflection_temperature)

    def reflect_batch(prompts: list[str], number: int) -> list[str]:
        samples = grpo.sample(
            hot,
            [grpo.chat_ids(policy, prompt) for prompt in prompts],
            seed=seed_for(cfg, "reflect", state.epoch, number + 1),
            adapter=cfg.reflection == "policy",
            max_new_tokens=cfg.reflection_tokens,
        )
        return [s.text for s in samples]

    return reflect_batch


def held_out_accuracy(run: Run) -> dict[str, float]:
    """Share of each held-out file's problems that greedy decoding of the bare prompt solves."""
    scores = {}
    for name, problems in run.held_out.items():
        samples = grpo.sample(run.policy, [grpo.chat_ids(run.policy, p.question) for p in problems], seed=None)
        grades = verify.grade_batch([s.text for s in samples], [p.answer for p in problems])
        scores[name] = mean([grade.reward for grade in grades])
    return scores


def seed_for(cfg: Config, *what: object) -> int:
    """A seed of its own for every draw of a run, so that no generator's state has to be kept."""
    return int.from_bytes(hashlib.sha256(repr((cfg.seed, *what)).encode()).digest()[:6])


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


# ---------------------------------------------------------------------------------------------------- starting a run


def start_run(cfg: Config) -> Run:
    """Check everything that can be checked, then load the model and open (or resume) the run's folder."""
    started = time.time()
    train_set = load_questions(cfg, cfg.train_data)
    held_out = {label(path): load_questions(cfg, path) for path in cfg.eval_data}
    check_config(cfg, train_set)
    check_folder(cfg)
    if cfg.track != "none":
        track.library(cfg.track)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    policy = load_policy(cfg)
    fitting = fitting_problems(policy, train_set, cfg.train_data)
    held_out = {name: fitting_problems(policy, problems, name) for name, problems in held_out.items()}
    optimizer = torch.optim.AdamW(
        [p for p in policy.model.parameters() if p.requires_grad], lr=cfg.learning_rate, weight_decay=0.0
    )
    tracker = track.start(cfg.track, cfg.folder, dataclasses.asdict(cfg))
    run = Run(cfg, cfg.folder, policy, optimizer, fitting, held_out, State(), started, tracker)
    if policy.engine is not None:
        policy.engine.log = lambda line: write_line(run, {"kind": "handover", "update": run.state.update, **line})
    print(
        f"{cfg.method}: {len(fitting)} questions, {cfg.epochs} epochs, {cfg.group_size} rollouts each -> {cfg.folder}"
    )
    cfg.folder.mkdir(parents=True, exist_ok=True)
    if not (cfg.resume and load_checkpoint(run)):
        for name in RUN_FILES:
            (cfg.folder / name).write_text("")
        log_epoch(run, 0, held_out_accuracy(run))
    (cfg.folder / "config.json").write_text(json.dumps(cfg.recorded(), indent=2))
    return run


def load_policy(cfg: Config, adapter: str | None = None) -> grpo.Policy:
    policy = grpo.load_policy(
        cfg.model,
        temperature=cfg.temperature,
        max_prompt_tokens=cfg.max_prompt_tokens,
        max_new_tokens=cfg.max_response_tokens,
        lora_rank=cfg.lora_rank,
        lora_alpha=cfg.lora_alpha,
        load_in_4bit=cfg.load_in_4bit,
        gradient_checkpointing=cfg.gradient_checkpointing,
        adapter=adapter,
        seed=cfg.seed,
        sample_batch=cfg.sample_batch,
        micro_batch_tokens=cfg.micro_batch_tokens,
        system_prompt=cfg.system_prompt,
        enable_thinking=cfg.enable_thinking,
    )
    if cfg.engine == "vllm":
        from support.vllm_engine import VllmEngine

        # The longest sequence is a reflection's: its prompt quotes a minibatch of prompts and responses.
        quoted = (cfg.gepa_minibatch + 1) * cfg.max_prompt_tokens + cfg.gepa_minibatch * cfg.max_response_tokens
        longest = max(quoted + cfg.reflection_tokens, cfg.max_prompt_tokens + cfg.max_response_tokens) + 512
        policy.engine = VllmEngine(policy, cfg.model, max_model_len=longest, memory=cfg.vllm_memory, seed=cfg.seed)
    return policy


def fitting_problems(policy: grpo.Policy, problems: list[Problem], name: str) -> list[Problem]:
    """The problems that fit into the prompt; nothing is ever cut, what is left out is counted."""
    fitting = [p for p in problems if len(grpo.chat_ids(policy, p.question)) <= policy.max_prompt_tokens]
    if not fitting:
        raise UserError(f"{name}: no question fits into --max-prompt-tokens {policy.max_prompt_tokens}")
    if len(fitting) < len(problems):
        longer = f"{len(problems) - len(fitting)} of {len(problems)} questions"
        print(f"{name}: {longer} are longer than --max-prompt-tokens {policy.max_prompt_tokens} and left out")
    return fitting


def load_questions(cfg: Config, path: str) -> list[Problem]:
    """The problems of a file, with the question suffix of the bare prompt; says how many answers nobody can parse."""
    problems = load_problems(path)
    odd = verify.unparseable([p.answer for p in problems])
    if odd:
        example = problems[odd[0]]
        print(
            f"{path}: {len(odd)} of {len(problems)} reference answers cannot be parsed and count only when matched "
            f"letter by letter, e.g. {example.answer[:60]!r} ({example.id})"
        )
    if not cfg.question_suffix:
        return problems
    return [dataclasses.replace(p, question=f"{p.question}\n\n{cfg.question_suffix}") for p in problems]


# ------------------------------------------------------------------------------------------------------- command line


def parse_config(argv: list[str]) -> Config:
    preset = re.search(r"--preset[ =](\S+)", " ".join(argv))  # the preset gives the other options' defaults
    default = PRESETS.get(preset.group(1), Config()) if preset else Config()
    return tyro.cli(Config, default=default, args=argv, prog="p2o.py", description=__doc__)


def demo(cfg: Config) -> None:
    """GRPO and P2O side by side: same seed, same questions, same number of rollouts; then the comparison."""
    base = Path(cfg.runs) / (cfg.name or "demo")
    while base.exists():  # a second demo stands beside the first
        stem, _, number = base.name.rpartition("-")
        base = base.with_name(f"{stem}-{int(number) + 1}" if number.isdigit() else f"{base.name}-2")
    folders = [base / method for method in ("grpo", "p2o")]
    for folder in folders:
        train(dataclasses.replace(cfg, method=folder.name, runs=str(base), name=folder.name))
    print("\n" + report.comparison_table(folders))
    print(f"\nreport: {report.write_report(folders, base)}")


def main(argv: list[str]) -> int:
    command, rest = (argv[0], argv[1:]) if argv and argv[0] in ("demo", "study", "eval", "fit") else ("train", argv)
    try:
        if command == "train":
            train(parse_config(rest))
        elif command == "demo":
            demo(parse_config(rest))
        elif command == "fit":
            fit.command(rest, parse_config)
        else:
            from support import evaluate, study

            tyro.cli(
                {"study": study.run_study, "eval": evaluate.evaluate}[command], args=rest, prog=f"p2o.py {command}"
            )
    except KeyboardInterrupt:
        return 130
    except UserError as error:
        print(f"p2o: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
