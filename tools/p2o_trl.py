"""P2O on several GPUs or machines: TRL's GRPOTrainer trains and distributes, this file adds what P2O is on top of GRPO.

    torchrun --nproc_per_node 2 -m tools.p2o_trl                        two CPU processes, the tiny model
    accelerate launch --num_processes 8 -m tools.p2o_trl --help         eight GPUs; more launch lines in docs/scale.md

    rollout       y ~ pi(. | T(x, z)), but the ids of x go to the trainer    `P2OTrainer.rollout`, TRL's hook
    weight        the template-ratio weight, as advantages of shape [B, T]   `P2OTrainer`, the one override
    alternation   evolve before an epoch; mine and measure after it          `Alternation`, a callback of the trainer
    processes     the steps of p2o.py, with a sampler that splits the work   `Together`, an engine of grpo.sample

Every process runs the same seeded GEPA. What costs (sampling) is split between them and gathered, so all see the same
responses and come to the same templates; that they did is checked, and a difference ends the run.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
import tyro
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

import gepa_loop
import grpo
import p2o
import verify
from support.data import Question, labelled, load_questions, that_fit
from support.errors import UserError, exit_code_of
from support.memory import longest_sequence
from support.pretrained import load_tokenizer, silence_libraries
from support.run import check_folder, folder_below, recorded, seed_for
from support.settings import QWEN3, require
from tools.cli import given, refuse_lists_given_twice

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is experimental: the version is pinned
# Options of p2o.py that TRL's trainer has no place for: those at their defaults are no loss.
ABSENT = ("select", "keep", "advantage", "ratio", "loss", "aggregation", "drop_failed_templated", "importance_cap",
          "load_in_4bit", "dtype", "evolve", "mine", "track", "reflection_model", "decay")  # fmt: skip


@dataclass(frozen=True)
class Config(p2o.Config):
    """The options of p2o.py, and where vLLM runs."""

    vllm_server: str = ""  # URL of `trl vllm-serve`; without one --engine vllm shares each GPU with the trainer
    lora_rank: int = 16  # Rank of the adapter on every linear layer; 0 trains all weights
    smallest_rank: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        absent = [f"--{name.replace('_', '-')}" for name in ABSENT if getattr(self, name) != getattr(p2o.Config, name)]
        require(not absent, f"{' '.join(absent)}: TRL's trainer has no place for it; on one machine, python p2o.py has")
        # TRL scores pi_old only if it makes several updates of what it has sampled; the ratio mask needs pi_old.
        batch, update = self.questions_per_batch, self.questions_per_update
        several = batch // update >= 2 and batch % update == 0
        require(several, f"--questions-per-batch {batch}: a multiple of --questions-per-update {update}, from twice on")
        merged = self.engine == "vllm"
        no_base = (merged or not self.lora_rank) and self.method == "p2o" and self.reflection == "self"
        require(
            not no_base,
            "--reflection self: --engine vllm (TRL serves the adapter merged into the weights) and --lora-rank 0 leave "
            "no base policy; take --reflection policy, or teacher",
        )
        # TRL bounds the loss that is not clipped, then takes the larger one: a bound below the clip would do nothing.
        beyond_clip = self.dual_clip >= 1 + self.clip_high
        require(beyond_clip, f"--dual-clip {self.dual_clip}: at least 1 + --clip-high")
        require(merged or not self.vllm_server, "--vllm-server: it needs --engine vllm")

    @property
    def folder(self) -> Path:
        return folder_below(self.runs, self.name or f"trl-{self.preset}-{self.method}-seed{self.seed}")


class Earned(NamedTuple):
    """What p2o.mine_hard asks of a rollout."""

    question_id: str
    reward: float


# ------------------------------------------------------------------------------------------------------ the trainer


class P2OTrainer(GRPOTrainer):
    """GRPOTrainer whose rollouts may come from another context than the one that is trained."""

    def __init__(self, cfg: Config, questions: list[Question], **kwargs):
        self.cfg, self.by_text = cfg, {question.text: question for question in questions}
        self.templates: dict[str, list[str]] = {}  # question id -> its G templates, in this epoch
        self.earned: list[Earned] = []  # of this process, in this epoch
        super().__init__(reward_funcs=self.reward, rollout_func=lambda prompts, _: self.rollout(prompts), **kwargs)

    def policy(self, together: bool = False) -> grpo.Policy:
        """The model that is trained, as grpo.py knows it, sampled by this process alone or by all of them together."""
        model = self.accelerator.unwrap_model(self.model)
        engine = TrlVllm(self) if self.use_vllm else None
        alone = grpo.Policy(model, self.processing_class, self.cfg, self.eos_token_ids, engine)
        return replace(alone, engine=Together(alone)) if together else alone

    def rollout(self, prompts: list[list[dict]]) -> dict[str, list]:
        """One response for each prompt of this process, where a question comes G times in a row.

        Bare ids beside the log-probs of T(x, z): all that TRL does from here on, pi_old included, is about x.
        """
        cfg, policy, rank = self.cfg, self.policy(), self.accelerator.process_index
        questions, bare = [self.by_text[prompt[-1]["content"]] for prompt in prompts], [""] * cfg.group_size
        first = rank * len(prompts)  # a group may lie across two processes
        zs = [self.templates.get(q.id, bare)[(first + i) % cfg.group_size] for i, q in enumerate(questions)]
        asked = zip(zs, questions, strict=True)
        sampled = [grpo.chat_ids(policy, gepa_loop.apply_template(z, q.text)) for z, q in asked]  # T(x, z)
        samples = grpo.sample(policy, sampled, seed=seed_for(cfg, "rollout", self.state.global_step, rank))
        self.model.train()  # sampling leaves it in eval mode, in which TRL would scale the loss in another way
        return {
            "prompt_ids": [grpo.chat_ids(policy, q.text) for q in questions] if cfg.distill else sampled,  # x
            "completion_ids": [s.response_ids for s in samples],
            "logprobs": [s.sampled_logprobs for s in samples],  # log pi_old(y | T(x, z))
        }

    def reward(self, prompts: list[list[dict]], completions: list[list[dict]], **_) -> list[float]:
        questions, texts = [self.by_text[p[-1]["content"]] for p in prompts], [c[0]["content"] for c in completions]
        verdicts = verify.judge_of(self.cfg.reward)(texts, questions, [False] * len(texts))
        self.earned += [Earned(q.id, verdict.reward) for q, verdict in zip(questions, verdicts, strict=True)]
        return [verdict.reward for verdict in verdicts]

    def _generate_and_score_completions(self, inputs):
        """The one override. The clipped loss is homogeneous in A, so w L(A) = L(w A) for every w >= 0."""
        batch, cfg = super()._generate_and_score_completions(inputs), self.cfg
        if cfg.ratio_mask:
            bare, templated = batch["old_per_token_logps"], batch["sampling_per_token_logps"]  # [B, T] each
            weight = grpo.template_ratio_weight(bare, templated, cfg.ratio_min, cfg.ratio_max, cfg.soft_clip)
            batch["advantages"] = batch["advantages"][:, None] * weight  # [B, T]
        return batch


# ----------------------------------------------------------------------------------- who samples: grpo.sample's engines


@dataclass
class Together:
    """All processes sample what all of them ask for: each its share, and everyone gets everything.

    They must all call it, with the same contexts. The shares are equal (the last context is repeated), because vLLM's
    server cuts what it is sent into equal parts.
    """

    alone: grpo.Policy  # as this process samples

    def sample(self, contexts, stop_ids, seed, temperature, length, adapter) -> list[tuple]:
        rank, world = PartialState().process_index, PartialState().num_processes
        share = -(-len(contexts) // world)  # rounded up
        filled = contexts + contexts[-1:] * (share * world - len(contexts))
        mine, seed = filled[rank * share :][:share], None if seed is None else seed + rank
        how = {"temperature": temperature, "max_new_tokens": length, "adapter": adapter}
        try:
            samples = grpo.sample(self.alone, mine, seed=seed, **how)
        except Exception as error:  # GEPA would take it for a failed reflection, and the others would wait for ever
            raise SystemExit(f"p2o: process {rank} cannot sample: {type(error).__name__}: {error}") from error
        return gather_object([(s.response_ids, s.sampled_logprobs, s.truncated) for s in samples])[: len(contexts)]


@dataclass
class TrlVllm:
    """TRL's vLLM, in this process or behind a server.

    It draws from a generator of its own, which no seed reaches, and has no base policy: Config refuses what needs one.
    """

    trainer: P2OTrainer

    def sample(self, contexts, stop_ids, seed, temperature, length, adapter) -> list[tuple]:
        trainer, vllm = self.trainer, self.trainer.vllm_generation
        if trainer._last_loaded_step != trainer.state.global_step:  # TRL itself does this for rollouts only
            vllm.sync_weights()
            trainer._last_loaded_step = trainer.state.global_step
        usual = vllm.temperature, vllm.max_completion_length
        vllm.temperature, vllm.max_completion_length = 0.0 if seed is None else temperature, length
        # The server answers each num_generations-th prompt only: every prompt counts, so that is 1.
        _, responses, logprobs, _ = vllm.generate(contexts, images=None, num_generations=1)
        vllm.temperature, vllm.max_completion_length = usual
        drawn = zip(map(list, responses), logprobs, strict=True)
        return [(ids, [token[0] for token in values], ids[-1] not in stop_ids) for ids, values in drawn]


# ---------------------------------------------------------------------------------------- alternation, epoch by epoch


class Alternation(TrainerCallback):
    """p2o.train's loop as TRL's trainer goes through it: evolve, (sample and train,) mine, measure."""

    def __init__(self, trainer: P2OTrainer, held_out: dict[str, list[Question]]):
        self.trainer, self.held_out, self.cfg = trainer, held_out, trainer.cfg
        self.hard: list[str] = []  # ids of the last epoch's hard questions: with TRL's checkpoint, all that is needed

    def on_train_begin(self, args, state, control, **_):
        if state.global_step:  # resumed
            self.hard = json.loads(Path(newest_checkpoint(self.cfg), "hard.json").read_text())
        else:
            self.measure(0)

    def on_epoch_begin(self, args, state, control, **_):
        trainer, cfg, epoch = self.trainer, self.cfg, round(state.epoch or 0)
        by_id = {question.id: question for question in trainer.by_text.values()}
        hard, policy = [by_id[question_id] for question_id in self.hard], trainer.policy(together=True)
        trainer.templates = p2o.evolve_templates(policy, hard, cfg, epoch, run=self) if cfg.method == "p2o" else {}
        must_agree("evolved different templates", trainer.templates)

    def on_epoch_end(self, args, state, control, **_):
        earned = sorted(gather_object(self.trainer.earned))
        self.hard, self.trainer.earned = p2o.mine_hard(earned, self.cfg), []
        reward = sum(rollout.reward for rollout in earned) / len(earned)
        self.measure(round(state.epoch), rollouts=len(earned), reward=round(reward, 3), hard_set=len(self.hard))

    def on_save(self, args, state, control, **_):
        """The hard set is written last: a checkpoint that has it is whole."""
        if state.is_world_process_zero:
            Path(args.output_dir, f"checkpoint-{state.global_step}", "hard.json").write_text(json.dumps(self.hard))

    def measure(self, epoch: int, **numbers) -> None:
        accuracy = p2o.held_out_accuracy(self.trainer.policy(together=True), self.held_out, self.cfg, run=self)
        self.log("epoch", epoch=epoch, accuracy=accuracy, **numbers)

    # What the steps of p2o.py ask of a support.run.Run; the first process writes.

    def note(self, line: str, file: str = "run.log") -> None:
        if self.trainer.accelerator.is_main_process:
            with (self.cfg.folder / file).open("a", encoding="utf-8") as lines:
                lines.write(line + "\n")

    def log(self, kind: str, **numbers) -> None:
        line = json.dumps({"kind": kind} | numbers)
        self.note(line, "metrics.jsonl")
        self.trainer.accelerator.print(line, flush=True)

    def log_evolution(self, epoch: int, evolution: gepa_loop.Evolution, templates: dict[str, list[str]]) -> None:
        chosen = [evolution.candidates[k] for k in evolution.chosen]
        self.log("evolution", epoch=epoch, metric_calls=evolution.metric_calls, chosen=chosen)

    def measuring(self, held_out: dict[str, list]) -> Iterable[tuple[str, list]]:
        return held_out.items()

    def note_families(self, *_) -> None:
        """For the report of one machine; not kept."""

    def journal(self, name: str) -> Callable:
        """No journal: after a kill those of two processes could end at different calls. A search begins again.

        A teacher is asked by the first process only: two would get two answers.
        """

        def wrap(kind: str, call: Callable) -> Callable:
            numbers, teacher = count(), kind == "reflect" and self.cfg.reflection == "teacher"
            asks = first_asks if teacher else lambda ask: ask()
            return lambda inputs: asks(partial(call, inputs, next(numbers)))

        return wrap


def first_asks(ask: Callable[[], list]) -> list:
    """What the first process is told, or the error that it got, for all processes alike."""
    told: list = [None]
    if PartialState().is_main_process:
        try:
            told = [ask()]
        except Exception as error:  # a teacher that is down: GEPA will end the search, in all processes
            told = [error]
    broadcast_object_list(told)
    if isinstance(told[0], Exception):
        raise told[0]
    return told[0]


def must_agree(complaint: str, value: object) -> None:
    """UserError in every process if they do not all have the same value."""
    if len(set(gather_object([json.dumps(value, sort_keys=True)]))) > 1:
        raise UserError(f"the processes {complaint}: do they run the same code on the same kind of machine?")


# --------------------------------------------------------------------------------------------- preparing; command line


def refuse(cfg: Config, processes: int) -> None:
    """UserError for a launch that would do something else than it says, before anything is loaded."""
    on = {name for name, value in os.environ.items() if value.lower() == "true"}
    sharded = "ACCELERATE_USE_FSDP" in on or os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"
    rollouts = cfg.questions_per_update * cfg.group_size
    if "ACCELERATE_USE_CPU" in on and "WORLD_SIZE" not in os.environ:
        raise UserError("accelerate launch --cpu starts one process, whatever it is told: torchrun --nproc_per_node N")
    if sharded and cfg.engine == "hf":
        raise UserError("FSDP and ZeRO-3 shard the weights, from which transformers cannot sample: --engine vllm")
    if rollouts % processes:
        raise UserError(f"{processes} processes cannot equally share the {rollouts} rollouts of an update")


def trl_config(cfg: Config, processes: int) -> GRPOConfig:
    """p2o.py's settings in TRL's words."""
    gpu, share = torch.cuda.is_available(), cfg.questions_per_update * cfg.group_size // processes
    room = max(1, cfg.micro_batch_tokens // (cfg.max_prompt_tokens + cfg.max_response_tokens))
    at_once = max(n for n in range(1, min(room, share) + 1) if share % n == 0)  # rollouts of a pass, of each process
    where = {"vllm_mode": "server", "vllm_server_base_url": cfg.vllm_server} if cfg.vllm_server else {}
    return GRPOConfig(
        output_dir=str(cfg.folder), seed=cfg.seed, num_train_epochs=cfg.epochs, save_strategy="epoch",
        logging_strategy="epoch", report_to="none", disable_tqdm=True, use_cpu=not gpu, bf16=gpu,
        model_init_kwargs={"dtype": "bfloat16" if gpu and cfg.lora_rank else "float32"},
        gradient_checkpointing=cfg.gradient_checkpointing, ddp_find_unused_parameters=False,
        ddp_timeout=24 * 3600,  # a slow search is no dead process
        per_device_train_batch_size=at_once, gradient_accumulation_steps=share // at_once,
        steps_per_generation=share // at_once * (cfg.questions_per_batch // cfg.questions_per_update),
        num_generations=cfg.group_size, max_completion_length=cfg.max_response_tokens, temperature=cfg.temperature,
        loss_type="dapo", scale_rewards="group" if cfg.scale_by_std else "none", epsilon=cfg.clip_low,
        epsilon_high=cfg.clip_high, delta=cfg.dual_clip, max_grad_norm=cfg.max_grad_norm, weight_decay=0.0, **where,
        learning_rate=cfg.learning_rate, lr_scheduler_type="constant_with_warmup", warmup_steps=cfg.warmup,
        use_vllm=cfg.engine == "vllm", vllm_gpu_memory_utilization=cfg.vllm_memory, beta=cfg.kl_coef,
        vllm_max_model_length=longest_sequence(cfg), use_bias_correction_kl=False,  # grpo.kl_k3 has no weight
        vllm_importance_sampling_correction=False,  # it would take the template's shift for the sampler's error
    )  # fmt: skip


def newest_checkpoint(cfg: Config) -> str | None:
    whole = [str(file.parent) for file in cfg.folder.glob("checkpoint-*/hard.json")]
    return max(whole, key=lambda folder: int(folder.rpartition("-")[2]), default=None)


def prepare(cfg: Config) -> tuple[P2OTrainer, dict[str, list[Question]]]:
    """The trainer and the held-out questions. What can be refused is refused before a model is loaded."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    refuse(cfg, processes)
    args = trl_config(cfg, processes)
    read = partial(load_questions, suffix=cfg.question_suffix, unparseable=None if cfg.reward else verify.unparseable)
    read, names = partial(read, empty_answers=bool(cfg.reward)), labelled(cfg.eval_data)
    tokenizer = load_tokenizer(cfg.model)
    asking = grpo.Policy(None, tokenizer, cfg, [])  # enough of one to count a prompt's tokens
    fitting = partial(that_fit, length=lambda q: len(grpo.chat_ids(asking, q.text)), limit=cfg.max_prompt_tokens)
    found, *rest = [fitting(path, read(path)) for path in (cfg.train_data, *cfg.eval_data)]
    questions = found[: cfg.train_questions or None]
    if cfg.reward:
        verify.judge_of(cfg.reward)(["\\boxed{0}"], questions[:1], [False])  # tried once before the model is loaded
    if left := len(questions) % cfg.questions_per_batch:
        print(f"{cfg.train_data}: TRL trains full batches only, {len(questions) - left} of {len(questions)} an epoch")
    lora = LoraConfig(r=cfg.lora_rank, lora_alpha=cfg.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": question.text}]} for question in questions])
    how = {"model": cfg.model, "args": args, "peft_config": lora if cfg.lora_rank else None}
    trainer = P2OTrainer(cfg, questions, train_dataset=rows, processing_class=tokenizer, **how)
    return trainer, dict(zip(names, rest, strict=True))


def train(cfg: Config) -> None:
    """One run; `--resume` goes on from the newest whole checkpoint."""
    torch.set_num_threads(cfg.threads or torch.get_num_threads())
    silence_libraries()
    check_folder(cfg)
    trainer, held_out = prepare(cfg)
    trainer.add_callback(Alternation(trainer, held_out))
    trainer.remove_callback(PrinterCallback)
    if trainer.accelerator.is_main_process:  # all have looked into the folder: they have met since
        (cfg.folder / "config.json").write_text(json.dumps(recorded(cfg), indent=1))
    trainer.train(resume_from_checkpoint=newest_checkpoint(cfg))
    trainer.save_model()


def parse_config(argv: list[str]) -> Config:
    """The presets are those of one card, without what only p2o.py has, and without the base policy."""
    refuse_lists_given_twice(argv)
    preset = named if (named := given(argv, "preset")) in QWEN3 else "tiny"
    absent = {name: getattr(p2o.Config, name) for name in ABSENT} | {"reflection": "policy"} if preset in QWEN3 else {}
    default = Config(preset=preset, **QWEN3.get(preset, {}) | absent)
    return tyro.cli(Config, default=default, args=argv, prog="tools.p2o_trl", description=__doc__)


def main(argv: list[str]) -> int:
    return exit_code_of(lambda: train(parse_config(argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
