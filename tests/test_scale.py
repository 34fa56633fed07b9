"""tools/p2o_trl.py against grpo.py, and with several processes. Run by `make test-scale` (needs trl)."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from test_grpo import GradientSpy

import grpo
import verify
from support.errors import UserError

pytest.importorskip("trl", reason="trl is not installed: make test-scale")
from tools import p2o_trl  # noqa: E402

TEMPLATE = "Keep a running total. Move the hand step by step. Double and add for every bit."
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]  # on a free port


# ---------------------------------------------------------------------------------------------------------- parity


def move(model, size, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def fixed_batch(cfg):
    """(trainer, TRL's batch, the same rollouts as grpo.py has them): 16 groups, 4 of 6 rollouts under a template."""
    trainer, _ = p2o_trl.prepare(cfg)
    trainer.current_gradient_accumulation_steps = 1  # what a training step would set
    trainer.args.steps_per_generation, trainer.num_iterations = 1, 2  # one update is the whole batch, pi_old is scored
    trainer.model.train()
    move(trainer.model, 0.02, seed=0)  # an adapter that is not zero
    questions = list(trainer.by_text.values())[:16]
    trainer.templates = {question.id: [TEMPLATE] * 4 + ["", ""] for question in questions}
    taken, sample = {}, trainer.rollout
    trainer.rollout = lambda prompts: taken.update(sample(prompts)) or taken
    rows = [{"prompt": [{"role": "user", "content": q.text}]} for q in questions for _ in range(cfg.group_size)]
    batch = trainer._generate_and_score_completions(rows)
    assert trainer.model.training  # in eval mode TRL would leave the number of updates out of the loss's scale
    return trainer, batch, own_rollouts(scoring_policy(trainer), questions, taken, cfg)


def scoring_policy(trainer):
    """The trainer's policy only samples; to compute log-probs it needs its head, which loading would have found."""
    policy = trainer.policy()
    policy.head = policy.model.get_base_model().get_output_embeddings()
    return policy


def own_rollouts(policy, questions, taken, cfg):
    rollouts = []
    for i, (ids, logprobs) in enumerate(zip(taken["completion_ids"], taken["logprobs"], strict=True)):
        question = questions[i // cfg.group_size]
        bare = grpo.chat_ids(policy, question.text)
        text = policy.tokenizer.decode(ids, skip_special_tokens=True)
        sampled = bare if i % cfg.group_size >= 4 else [*bare, 0]  # another context than the one that is trained
        reward = verify.grade(text, question.reference, question.text).reward
        contexts = {"sampled_context": sampled, "trained_context": bare, "question_id": question.id, "reward": reward}
        rollouts.append(grpo.Rollout(ids, logprobs, False, text, **contexts))
    advantages(rollouts, cfg, eps=1e-6)
    grpo.score_old(policy, [[], rollouts], cfg)  # as a later update's: the policy will have moved
    return rollouts


def advantages(rollouts, cfg, eps):
    values = grpo.group_advantages(torch.tensor([r.reward for r in rollouts]), cfg.group_size, cfg.scale_by_std, eps)
    for rollout, value in zip(rollouts, values.tolist(), strict=True):
        rollout.advantage = value


def gaps(trainer, batch, rollouts, cfg):
    """((relative difference of the loss, of the gradient), our metrics) between TRL and update_policy."""
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    trainer.model.zero_grad()
    loss.backward()
    policy = scoring_policy(trainer)
    theirs = torch.cat([p.grad.flatten() for p in policy.trainable])
    spy = GradientSpy(policy)
    metrics = grpo.update_policy(policy, spy, rollouts, cfg)
    gradient = ((theirs - spy.gradient).norm() / spy.gradient.norm()).item()
    return (abs(loss.item() - metrics["loss"]) / abs(metrics["loss"]), gradient), metrics


CASES = {  # what is set, how far the policy moves between sampling and the update, what the case must have in it
    "on-policy": ({}, 0.0, None),
    "clipped": ({}, 0.05, "clip_fraction"),
    "masked": ({"ratio_min": 0.5, "ratio_max": 2.0}, 0.02, "masked"),
    "dual-clipped": ({"dual_clip": 1.25}, 0.05, "dual_clip_fraction"),
    "temperature": ({"temperature": 0.7}, 0.05, "clip_fraction"),
    "kl": ({"kl_coef": 0.05}, 0.03, "kl"),
}


@pytest.mark.parametrize("case", CASES)
def test_trl_computes_the_loss_and_gradient_of_update_policy(case, tmp_path):
    """To 2.5e-4, and to rounding once both add the same eps to the standard deviation: TRL 1e-4, the authors 1e-6.

    The least deviation in a group of 6 is that of one success, 0.408: 1e-4 / 0.408 = 2.45e-4.
    """
    settings, moved, must_have = CASES[case]
    cfg = p2o_trl.Config(runs=str(tmp_path), micro_batch_tokens=10**6, max_grad_norm=1e9, **settings)
    trainer, batch, rollouts = fixed_batch(cfg)
    move(trainer.model, moved, seed=5)
    found, metrics = gaps(trainer, batch, rollouts, cfg)
    assert max(found) < 2.5e-4
    assert must_have is None or metrics[must_have] > 0
    advantages(rollouts, cfg, eps=1e-4)
    assert max(gaps(trainer, batch, rollouts, cfg)[0]) < 1e-5


# ------------------------------------------------------------------------------------------------ several processes


def run(*command, **environment):
    """Its output; the exit code must be 0."""
    done = subprocess.run(
        [*command], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


trl_config = p2o_trl.trl_config


def one_batch_twice(cfg, processes):
    """Both updates on all that was sampled: TRL deals rollouts out to several updates at random, in each process."""
    args = trl_config(cfg, processes)
    args.steps_per_generation, args.num_iterations = 1, 2
    args.generation_batch_size = args.per_device_train_batch_size * processes
    args.max_steps, args.logging_strategy, args.logging_steps, args.save_strategy = 2, "steps", 1, "no"
    return args


def train_recorded(folder):
    """Two updates on rollouts that one process samples and keeps in the folder, and each of two takes its share of.

    Prints TRL's loss and gradient norm of each update.
    """
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


def test_two_processes_have_the_loss_and_gradient_of_one_with_the_batch_of_both(tmp_path):
    """Two updates on the same 96 rollouts, 4 of 6 templated; the second one depends on the first one's step."""
    seen = []
    for launcher in ([sys.executable], TORCHRUN):
        lines = run(*launcher, __file__, str(tmp_path)).splitlines()
        seen.append(torch.tensor(json.loads(next(line for line in lines if line.startswith("seen"))[5:])))
    assert seen[0].shape == (2, 2) and seen[0].abs().min() > 0.01
    assert ((seen[0] - seen[1]) / seen[0]).abs().max() < 1e-4


def ranks(launcher):
    """Process ids of what torchrun has started."""
    return list(map(int, Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc: Linux")
def test_a_killed_process_ends_all_and_the_run_goes_on_from_its_checkpoint(tmp_path):
    """kill -9 of the second process in epoch 4; then --resume, to the accuracy of a run that was left alone."""
    command = [*TORCHRUN, "-m", "tools.p2o_trl", "--runs", str(tmp_path), "--name", "two"]
    log, metrics = tmp_path / "log", tmp_path / "two" / "metrics.jsonl"
    with log.open("w") as output:
        launcher = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        while not (metrics.exists() and '"epoch": 3, "acc' in metrics.read_text()):
            assert launcher.poll() is None, log.read_text()[-2000:]
            time.sleep(0.2)
        while not (tmp_path / "two" / "checkpoint-30" / "hard.json").exists():
            time.sleep(0.2)
        first, second = ranks(launcher.pid)
        os.kill(second, signal.SIGKILL)
        assert launcher.wait(timeout=120) != 0
    assert "Signal 9 (SIGKILL)" in log.read_text()
    assert not Path(f"/proc/{first}").exists()
    run(*command, "--resume")
    epochs = [line for line in map(json.loads, metrics.read_text().splitlines()) if line["kind"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [0, 1, 2, 3, 4, 5, 6]
    assert epochs[-1]["accuracy"]["hard"] >= 0.95
    assert all(line["rollouts"] == 960 for line in epochs[1:])


@pytest.mark.parametrize("asked", [1, 3, 5])
def test_every_process_samples_an_equal_share_and_all_get_everything_in_order(asked, tiny_policy, monkeypatch):
    contexts = [grpo.chat_ids(tiny_policy, f"Add these digits: {i}, {i}.") for i in range(1, 1 + asked)]
    shares = []
    for rank in range(3):
        monkeypatch.setattr(p2o_trl, "PartialState", lambda r=rank: SimpleNamespace(process_index=r, num_processes=3))
        monkeypatch.setattr(p2o_trl, "gather_object", lambda drawn: shares.append(drawn) or drawn)
        p2o_trl.Together(tiny_policy).sample(contexts, tiny_policy.stop_ids, None, 1.0, 8, True)
    assert len({len(share) for share in shares}) == 1
    alone = [s.response_ids for s in grpo.sample(tiny_policy, contexts, seed=None, max_new_tokens=8)]
    assert [ids for ids, _, _ in sum(shares, [])][:asked] == alone


def test_a_process_that_cannot_sample_ends_and_is_not_taken_for_a_bad_reflection(tiny_policy):
    with pytest.raises(SystemExit, match="process 0 cannot sample"):
        p2o_trl.Together(tiny_policy).sample([["no token"]], tiny_policy.stop_ids, None, 1.0, 8, True)


def test_processes_that_differ_end_the_run(monkeypatch):
    p2o_trl.must_agree("evolved different templates", {"q": ["a"]})
    monkeypatch.setattr(p2o_trl, "gather_object", lambda mine: [*mine, json.dumps({"q": ["b"]})])
    with pytest.raises(UserError, match="the processes evolved different templates"):
        p2o_trl.must_agree("evolved different templates", {"q": ["a"]})


def test_a_teacher_is_asked_by_the_first_process_and_its_failure_is_everyones(monkeypatch):
    assert p2o_trl.first_asks(lambda: ["reply"]) == ["reply"]
    monkeypatch.setattr(p2o_trl, "PartialState", lambda: SimpleNamespace(is_main_process=False))
    for told, error in ((["reply"], None), (RuntimeError("down"), "down")):
        monkeypatch.setattr(p2o_trl, "broadcast_object_list", lambda box, told=told: box.__setitem__(0, told))
        if error is None:
            assert p2o_trl.first_asks(pytest.fail) == told
        else:
            with pytest.raises(RuntimeError, match=error):
                p2o_trl.first_asks(pytest.fail)


# ------------------------------------------------------------------------------------------------------------- vLLM


class StandInVllm:
    """TRL's vLLM as we call it: the arguments are checked against TRL's own, the answers are made up."""

    temperature, max_completion_length = 1.0, 40

    def __init__(self):
        self.syncs, self.asked = 0, []

    def sync_weights(self):
        self.syncs += 1

    def generate(self, *args, **kwargs):
        from trl.generation.vllm_generation import VLLMGeneration

        bound = inspect.signature(VLLMGeneration.generate).bind(self, *args, **kwargs).arguments
        self.asked.append((self.temperature, self.max_completion_length, bound["num_generations"]))
        return bound["prompts"], [(5, 7)] * len(bound["prompts"]), [[[-0.1], [-0.2]]] * len(bound["prompts"]), None


def test_vllm_is_synced_once_an_update_and_asked_for_every_prompt():
    """On a stand-in: TRL's vLLM wants a GPU. What it is promised, and what it is left with."""
    vllm = StandInVllm()
    trainer = SimpleNamespace(vllm_generation=vllm, state=SimpleNamespace(global_step=4), _last_loaded_step=2)
    engine = p2o_trl.TrlVllm(trainer)
    drawn = engine.sample([[1], [2]], [7], None, 0.6, 9, True)
    assert drawn == [([5, 7], [-0.1, -0.2], False)] * 2
    assert engine.sample([[1]], [8], 3, 0.6, 60, True)[0][2]  # 7 ends no response here: truncated
    assert vllm.syncs == 1 and trainer._last_loaded_step == 4
    assert vllm.asked == [(0.0, 9, 1), (0.6, 60, 1)]  # greedy without a seed
    assert (vllm.temperature, vllm.max_completion_length) == (1.0, 40)


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"questions_per_update": 32}, "--questions-per-batch 32: a multiple of --questions-per-update 32, from twice"),
        ({"loss": "cispo", "load_in_4bit": True}, "--loss --load-in-4bit: TRL's trainer has no place for it"),
        ({"engine": "vllm"}, "leave no base policy; take --reflection policy, or teacher"),
        ({"lora_rank": 0}, "leave no base policy; take --reflection policy, or teacher"),
        ({"dual_clip": 1.1}, "--dual-clip 1.1: at least 1 "),
        ({"vllm_server": "http://localhost:8000"}, "--vllm-server: it needs --engine vllm"),
    ],
)
def test_settings_that_trl_cannot_do_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        p2o_trl.Config(**settings)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP and ZeRO-3 shard the weights.* --engine vllm"),
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "FSDP and ZeRO-3 shard the weights.* --engine vllm"),
        ({"WORLD_SIZE": "7"}, "7 processes cannot equally share the 96 rollouts of an update"),
    ],
)
def test_launches_that_would_fail_late_are_refused(environment, said, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        p2o_trl.prepare(p2o_trl.Config())


def test_accelerate_launch_on_cpus_starts_one_process_and_is_refused(tmp_path):
    launch = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "tools.p2o_trl"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "--runs", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert done.stderr.count("p2o: accelerate launch --cpu starts one process") == 1


@pytest.mark.parametrize("preset", ["tiny", "qwen3-4b-24gb", "qwen3-0.6b-8gb"])
@pytest.mark.parametrize("processes", [1, 2, 8, 64])
def test_an_update_has_its_rollouts_on_any_number_of_processes_and_pi_old_is_computed(preset, processes, monkeypatch):
    cfg = p2o_trl.parse_config([f"--preset={preset}"])
    assert cfg.model.endswith("tiny/united/model") == (preset == "tiny") and not cfg.load_in_4bit
    if cfg.questions_per_update * cfg.group_size % processes:
        pytest.skip("refused: the rollouts cannot be shared equally")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = p2o_trl.trl_config(cfg, processes)
    update = args.per_device_train_batch_size * processes * args.gradient_accumulation_steps
    assert update == cfg.questions_per_update * cfg.group_size
    sampled = args.per_device_train_batch_size * processes * args.steps_per_generation
    assert sampled == cfg.questions_per_batch * cfg.group_size
    assert args.gradient_accumulation_steps % (args.steps_per_generation * args.num_iterations)  # TRL's own condition


if __name__ == "__main__":  # a process of test_two_processes_...; torchrun starts two such
    torch.set_num_threads(1)
    train_recorded(Path(sys.argv[1]))
