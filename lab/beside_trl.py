"""One GRPO round side by side with TRL's GRPOTrainer: the same model, LoRA, questions, lengths, updates; one thread.

    pip install -r requirements-scale.txt
    python lab/beside_trl.py            # CPU seconds of a round, interleaved, least of several; and peak memory

A round samples G responses to each question, rewards them at random (so that no group collapses) and takes two
optimizer steps on them. Both sides sample and train in the same context, under a template where the work is
`templated`; only the draws differ. `forced` responses go on to 40 tokens whatever the model says.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import gepa_loop  # noqa: E402
import grpo  # noqa: E402
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
    before = high_water_mark()
    round_of(1)
    print(high_water_mark() - before)


def high_water_mark() -> float:
    """The most memory this process has held, MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=ROOT / "lab" / "results" / "beside_trl.json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
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
