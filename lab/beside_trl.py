"""One GRPO round side by side with TRL's GRPOTrainer: the same model, LoRA, questions, lengths, updates; one thread.

    pip install -r requirements-scale.txt
    python lab/beside_trl.py            # CPU seconds of a round, interleaved, least of several; and peak memory

A round samples G responses to each question, rewards them at random (so that no group collapses) and takes two
optimizer steps on them. Both sides sample and train in the same context, under a template where the work is
`templated`; only the draws differ. `forced` responses go on to 40 tokens whatever the model says.

    python lab/beside_trl.py --losses > tests/data/trl_losses.json      # what TRL's trainers say of one small batch

TRL computes its losses inside its trainers, so a trainer's method is called here on a stub that has the settings, and
gives the log-probs instead of a model. `cispo` caps the ratio itself in TRL, at 1.2; ours caps it at 1 + clip_high.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import MagicMock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import gepa_loop  # noqa: E402
import grpo  # noqa: E402
from lab.costs import megabytes  # noqa: E402
from support.data import load_questions  # noqa: E402

HINTS = (
    "Keep a running total.",
    "Move the hand step by step.",
    "Double and add for every bit.",
    "Write down every result.",
)
FORCED = 40  # tokens


@dataclass(frozen=True)
class Work:
    questions: int
    group_size: int
    template: str = ""
    forced: bool = False

    def messages(self) -> list[str]:
        questions = load_questions(str(grpo.TINY / "train.jsonl"))[40 : 40 + self.questions]
        return [gepa_loop.apply_template(self.template, question.text) for question in questions]


WORKS = {
    "192 bare": Work(32, 6),
    "192 templated": Work(32, 6, " ".join(HINTS)),
    "192 forced to 40 tokens": Work(32, 6, forced=True),
    "96 (G = 8) forced to 40 tokens": Work(12, 8, forced=True),
}


def our_round(work: Work) -> Callable[[int], float]:
    """A function of the seed that does one round with this repository's functions; its CPU seconds."""
    policy, cfg = grpo.load_policy(grpo.PolicyConfig()), grpo.UpdateConfig()
    optimizer = torch.optim.AdamW(policy.trainable, lr=1e-6)
    if work.forced:
        policy.stop_ids = [policy.tokenizer.unk_token_id]  # never drawn
    messages = work.messages()

    def round_of(seed: int) -> float:
        started = time.process_time()
        contexts = [grpo.chat_ids(policy, message) for message in messages for _ in range(work.group_size)]
        rng, rollouts = random.Random(seed), []
        for i, (context, s) in enumerate(zip(contexts, grpo.sample(policy, contexts, seed=seed), strict=True)):
            place = {"question_id": str(i // work.group_size), "sampled_context": context, "trained_context": context}
            rollouts.append(grpo.Rollout(**vars(s), **place, reward=float(rng.random() < 0.5)))
        for group in grpo.groups_of(rollouts):
            for r, advantage in zip(group, grpo.advantages_of(group, cfg), strict=True):
                r.advantage = advantage
        half = len(rollouts) // 2
        grpo.score_old(policy, [rollouts[:half], rollouts[half:]], cfg)
        for part in (rollouts[:half], rollouts[half:]):
            grpo.update_policy(policy, optimizer, part, cfg)
        return time.process_time() - started

    return round_of


def trl_round(work: Work, out: str) -> Callable[[int], float]:
    """The same with GRPOTrainer, its two steps timed from the first one's beginning to the second one's end."""
    warnings.filterwarnings("ignore")
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    rollouts, limit = work.questions * work.group_size, grpo.PolicyConfig().max_response_tokens
    cfg = grpo.PolicyConfig()
    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            marks.append(time.process_time())

        def on_step_end(self, *_, **__):
            marks.append(time.process_time())

    rng = random.Random(0)
    model = AutoModelForCausalLM.from_pretrained(cfg.model, dtype=torch.float32)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [float(rng.random() < 0.5) for _ in completions],
        args=GRPOConfig(
            output_dir=out, per_device_train_batch_size=rollouts // 2, generation_batch_size=rollouts,
            num_generations=work.group_size, max_completion_length=limit, max_steps=2, learning_rate=1e-6, beta=0.0,
            use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True, logging_strategy="no",
            gradient_checkpointing=False, generation_kwargs={"min_new_tokens": FORCED} if work.forced else None,
        ),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": m}]} for m in work.messages()]),
        processing_class=AutoTokenizer.from_pretrained(cfg.model, padding_side="left"),
        peft_config=LoraConfig(
            r=cfg.lora_rank, lora_alpha=cfg.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[Clock()],
    )  # fmt: skip

    def round_of(seed: int) -> float:
        marks.clear()
        trainer.args.seed = seed
        trainer.train()
        return marks[3] - marks[0]

    return round_of


def compare(work: Work, rounds: int, out: str) -> tuple[float, float]:
    """(ours, TRL's) least CPU seconds of a round, the two in turn."""
    torch.set_num_threads(1)
    ours, theirs = our_round(work), trl_round(work, out)
    best = [float("inf"), float("inf")]
    for seed in range(rounds + 1):
        spent = [ours(seed), theirs(seed)]
        if seed:  # the first round warms up
            best = list(map(min, best, spent))
    return best[0], best[1]


def peak_memory(side: str, work: str) -> float:
    """MiB that one side needs for a round beyond what its imports and model take, in a process of its own (Linux)."""
    command = [sys.executable, __file__, "--child", side, work]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def child(side: str, work: Work, out: str) -> None:
    torch.set_num_threads(1)
    round_of = our_round(work) if side == "ours" else trl_round(work, out)
    Path("/proc/self/clear_refs").write_text("5")  # what loading took at its peak is forgotten
    before = megabytes("VmHWM")
    round_of(1)
    print(megabytes("VmHWM") - before)


# ------------------------------------------------------------------------------------------- one update, for lab/gpu.py


def update_on_a_card(model: Path, rollouts: list[grpo.Rollout], preset: dict, settle: Callable[[], None]) -> dict:
    """Seconds and GiB of GRPOTrainer's second update, its sampling replaced by the rollouts of one group.

    `settle` waits for the card, and forgets what was its peak.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    on_gpu, count = torch.cuda.is_available(), len(rollouts)
    device = "cuda" if on_gpu else "cpu"
    tensors = {
        "prompt_ids": torch.tensor([r.trained_context for r in rollouts], device=device),
        "completion_ids": torch.tensor([r.response_ids for r in rollouts], device=device),
        "advantages": torch.tensor([r.advantage for r in rollouts], device=device),
    }
    for part in ("prompt", "completion"):
        tensors[f"{part}_mask"] = torch.ones_like(tensors[f"{part}_ids"])
    tensors["num_items_in_batch"] = tensors["completion_mask"].sum()

    class Fixed(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            return dict(tensors)

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            settle()
            self.started = time.perf_counter()

        def on_step_end(self, *_, **__):
            peak = torch.cuda.max_memory_reserved() / 2**30  # before `settle` forgets it
            settle()
            self.figures = {"seconds": time.perf_counter() - self.started, "peak_gib": peak}

    settings = GRPOConfig(
        output_dir=str(model.parent / "trl"), max_steps=2, per_device_train_batch_size=2, num_generations=count,
        gradient_accumulation_steps=count // 2, gradient_checkpointing=True, bf16=on_gpu, use_cpu=not on_gpu,
        max_completion_length=len(rollouts[0].response_ids), report_to="none", save_strategy="no", disable_tqdm=True,
        temperature=preset["temperature"], beta=0.0, loss_type="dapo",
        model_init_kwargs={"dtype": "bfloat16" if on_gpu else "float32"},
    )  # fmt: skip
    clock = Clock()
    lora = LoraConfig(
        r=preset["lora_rank"], lora_alpha=preset["lora_alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
    )
    Fixed(
        model=str(model), reward_funcs=lambda completions, **_: [0.0] * len(completions), args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["What is 2 + 2?"] * 2 * count}), peft_config=lora,
        callbacks=[clock],
    ).train()  # fmt: skip
    return clock.figures


# --------------------------------------------------------------------------------------------------------- TRL's losses

LOSSES = {
    "grpo": {},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "gspo": {"importance_sampling_level": "sequence", "epsilon_low": 0.02, "epsilon_high": 0.02},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.2},
    "gmpo": {"epsilon_low": 0.4, "epsilon_high": 0.4},
}
SETTINGS = {
    "loss_type": "grpo", "importance_sampling_level": "token", "epsilon_low": 0.2, "epsilon_high": 0.2, "beta": 0.0,
    "max_completion_length": 10, "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "use_vllm": False,
    "aux_loss_enabled": False, "entropy_coef": 0.0, "use_adaptive_entropy": False,
    "current_gradient_accumulation_steps": 1,
}  # fmt: skip
ADVANTAGES = [1.5, -0.5, -0.5, -0.5]
LENGTHS = [5, 3, 4, 1]


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(log-probs, old log-probs, mask), [4, 5] each, rounded so that they can be written down."""
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(4, 5, generator=generator) * 2 - 0.05
    new = (old + torch.randn(4, 5, generator=generator) * 0.8).clamp(max=-0.01)
    mask = torch.tensor([[float(t < length) for t in range(5)] for length in LENGTHS])
    return new.mul(1e4).round() / 1e4 * mask, old.mul(1e4).round() / 1e4 * mask, mask


def loss_by_trl(trainer, settings: dict) -> dict:
    new, old, mask = batch()
    new.requires_grad_(True)
    stub = MagicMock(**(SETTINGS | settings))
    stub._get_per_token_logps_and_entropies = lambda *_, **__: (new, torch.zeros(4, 5), None)
    stub._metrics = defaultdict(lambda: defaultdict(list))
    stub.args.delta, stub.args.steps_per_generation, stub.args.entropy_target = None, 1, 0.0
    stub.accelerator.num_processes = 1
    stub.accelerator.gather = stub.accelerator.gather_for_metrics = lambda x: x
    stub.accelerator.reduce = lambda x, reduction: x
    ids = {"prompt_ids": torch.zeros(4, 1).long(), "completion_ids": torch.zeros(4, 5).long()}
    masks = {"prompt_mask": torch.ones(4, 1).long(), "completion_mask": mask, "num_items_in_batch": mask.sum()}
    told = {"advantages": torch.tensor(ADVANTAGES), "old_per_token_logps": old}
    loss = trainer._compute_loss(stub, None, ids | masks | told)
    loss.backward()
    return {"loss": loss.item(), "gradient": [[round(x, 7) for x in row] for row in new.grad.tolist()]}


def print_losses() -> None:
    from trl.experimental.gmpo.gmpo_trainer import GMPOTrainer
    from trl.rewards import get_soft_overlong_punishment
    from trl.trainer.grpo_trainer import GRPOTrainer

    new, old, mask = ([[round(x, 4) for x in row] for row in part.tolist()] for part in batch())
    lengths = [30, 32, 34, 37, 40]
    penalties = get_soft_overlong_punishment(40, 8)([[1] * n for n in lengths])
    known = {
        "made_with": "TRL 1.16.0, lab/beside_trl.py --losses", "logprobs": new, "old_logprobs": old, "mask": mask,
        "advantages": ADVANTAGES, "overlong": {"lengths": lengths, "penalties": penalties},
        "cases": {
            name: loss_by_trl(GMPOTrainer if name == "gmpo" else GRPOTrainer, case) for name, case in LOSSES.items()
        },
    }  # fmt: skip
    print(json.dumps(known))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=ROOT / "lab" / "results" / "beside_trl.json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--losses", action="store_true", help="print what TRL's trainers say of one small batch")
    args = parser.parse_args()
    if args.losses:
        return print_losses()
    scratch = str(ROOT / "runs" / "bench-trl")
    if args.child:
        return child(args.child[0], WORKS[args.child[1]], scratch)
    rows = []
    for name, work in WORKS.items():
        ours, theirs = compare(work, args.rounds, scratch)
        memory = [peak_memory(side, name) for side in ("ours", "trl")]
        rows.append({"work": name, "ours": ours, "trl": theirs, "times": theirs / ours, "ours_mib": memory[0],
                     "trl_mib": memory[1]})  # fmt: skip
        print(f"{name}: {ours:.2f} s against {theirs:.2f} s of CPU, {theirs / ours:.2f} times; peak above the loaded "
              f"model {memory[0]:.0f} MiB against {memory[1]:.0f} MiB", flush=True)  # fmt: skip
    record = {"command": "python lab/beside_trl.py", "rounds": args.rounds, "rows": rows}
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
