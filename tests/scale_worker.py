"""What one process of `torchrun` does for tests/test_scale.py: two updates on rollouts that are read from a file.

    python scale_worker.py FOLDER           samples the rollouts, keeps them in FOLDER, trains on them
    torchrun ... scale_worker.py FOLDER     each process trains on its share of them

Prints TRL's loss and gradient norm of each update.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from tools import p2o_trl

torch.set_num_threads(1)
make_args = p2o_trl.trl_config
TEMPLATE = "Keep a running total. Move the hand step by step. Double and add for every bit."


def one_batch_twice(cfg: p2o_trl.Config, processes: int) -> p2o_trl.GRPOConfig:
    """Both updates on all that was sampled: TRL deals rollouts out to several updates at random, in each process."""
    args = make_args(cfg, processes)
    args.steps_per_generation, args.num_iterations = 1, 2
    args.generation_batch_size = args.per_device_train_batch_size * processes
    args.max_steps, args.logging_strategy, args.logging_steps, args.save_strategy = 2, "steps", 1, "no"
    return args


def main(folder: Path) -> None:
    world = int(os.environ.get("WORLD_SIZE", 1))
    cfg = p2o_trl.Config(runs=str(folder), name=f"on-{world}", warmup=0.0, micro_batch_tokens=10**6)
    p2o_trl.trl_config = one_batch_twice
    trainer, _ = p2o_trl.prepare(cfg)
    trainer.templates = {question.id: [TEMPLATE] * 4 + ["", ""] for question in trainer.by_text.values()}
    sample, file = trainer.rollout, folder / "rollouts.json"

    def recorded(prompts):
        """The same responses for one process and for two."""
        if world == 1:
            file.write_text(json.dumps(sample(prompts)))
        first, rollouts = trainer.accelerator.process_index * len(prompts), json.loads(file.read_text())
        return {name: values[first : first + len(prompts)] for name, values in rollouts.items()}

    trainer.rollout = recorded
    trainer.train()
    if trainer.accelerator.is_main_process:
        seen = [[line["loss"], line["grad_norm"]] for line in trainer.state.log_history if "grad_norm" in line]
        print("seen", json.dumps(seen), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
