"""--engine vllm on a CPU: the same promises as the transformers engine. Run by `make test-vllm` (needs vLLM)."""

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import grpo
from lab import gpu

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")
pytestmark = pytest.mark.vllm

TEMPERATURE = 0.8  # not 1, so that log-probs that forgot it are seen


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The tiny model, with a generation config and a window of attention that would spoil sampling, if used."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(ROOT / "tiny" / "united" / "model", folder)
    spoiling = {"eos_token_id": 2, "do_sample": True, "top_k": 1, "repetition_penalty": 5}
    (folder / "generation_config.json").write_text(json.dumps(spoiling))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 16}))
    return str(folder)


@pytest.fixture(scope="module")
def engine(model):
    """(policy sampled by transformers, the same by vLLM): one engine for the file; it takes a quarter of a minute."""
    served = load(model, engine="vllm")
    return dataclasses.replace(served, engine=None), served


def load(model, **settings):
    cfg = grpo.PolicyConfig(model=model, temperature=TEMPERATURE, **settings)
    return grpo.load_policy(cfg, seed=1, longest_sequence=256)


def contexts(policy, count=24):
    lines = (ROOT / "tiny" / "train.jsonl").read_text().splitlines()[:count]
    return [grpo.chat_ids(policy, json.loads(line)["question"]) for line in lines]


def ids(samples):
    return [s.response_ids for s in samples]


def gap(policy, prompts, samples, adapter=True):
    """Largest difference between the trainer's log-probs and the sampler's."""
    trainer = grpo.logprobs_of(policy, prompts, ids(samples), adapter=adapter)
    return max(
        abs(a - b) for a, b in zip(sum(trainer, []), sum((s.sampled_logprobs for s in samples), []), strict=True)
    )


def train_a_step(policy, size=0.05):
    """Move the adapter in place, as an optimizer does, far enough to show in the log-probs."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter) * size)


def test_greedy_tokens_equal_those_of_transformers(engine):
    policy, served = engine
    prompts = contexts(policy)
    assert ids(grpo.sample(served, prompts, seed=None)) == ids(grpo.sample(policy, prompts, seed=None))


def test_sampled_logprobs_are_the_trainers_and_nothing_of_the_generation_config_is_used(engine):
    policy, served = engine
    hot = dataclasses.replace(served, cfg=dataclasses.replace(served.cfg, temperature=2.0))
    prompts = contexts(policy, 1) * 64
    samples = grpo.sample(hot, prompts, seed=5)
    assert gap(hot, prompts, samples) < 1e-4
    assert len({tuple(s.response_ids) for s in samples}) > 1  # top_k = 1 would give the same one 64 times


def test_a_seed_gives_the_same_responses_whatever_else_is_in_the_batch(engine):
    policy, served = engine
    prompts = contexts(policy)
    first = ids(grpo.sample(served, prompts, seed=7))
    assert ids(grpo.sample(served, prompts, seed=7)) == first
    assert ids(grpo.sample(served, prompts[:5], seed=7)) == first[:5]
    assert ids(grpo.sample(served, prompts, seed=8)) != first


def test_more_prompts_than_one_step_takes_up(engine):
    """Where vLLM would prefill a prompt in pieces: there a CPU's seeded generators fail."""
    policy, served = engine
    prompts = contexts(policy) * 24
    assert sum(map(len, prompts)) > 2 * 4096
    assert gap(policy, prompts, grpo.sample(served, prompts, seed=9)) < 1e-4


def test_responses_end_with_a_stop_token_or_are_truncated(engine):
    policy, served = engine
    prompts = contexts(policy, 8)
    full = grpo.sample(served, prompts, seed=1)
    assert all(s.response_ids[-1] in policy.stop_ids for s in full if not s.truncated)
    short = grpo.sample(served, prompts, seed=1, max_new_tokens=2)
    assert all(s.truncated and len(s.response_ids) == 2 for s in short)
    exact = len(full[0].response_ids)  # the stop token is the last one allowed: complete, not truncated
    assert not grpo.sample(served, prompts[:1], seed=1, max_new_tokens=exact)[0].truncated


def test_after_every_update_the_new_adapter_is_sampled_from_and_the_base_is_still_there(engine):
    policy, served = engine
    prompts = contexts(policy)
    for update in range(3):
        train_a_step(policy)
        handovers = served.engine.handovers
        samples = grpo.sample(served, prompts, seed=update)
        assert gap(policy, prompts, samples) < 1e-4
        assert gap(policy, prompts, samples, adapter=False) > 0.1  # a stale adapter would be seen
        assert served.engine.handovers == handovers + 1
        assert ids(grpo.sample(served, prompts, seed=None)) == ids(grpo.sample(policy, prompts, seed=None))
    base = grpo.sample(served, prompts, seed=3, adapter=False)
    assert gap(policy, prompts, base, adapter=False) < 1e-4
    grpo.sample(served, prompts, seed=4)
    assert served.engine.handovers == handovers + 1  # nothing has changed: nothing is handed over


def test_evaluation_by_vllm_finds_what_transformers_finds(model, tmp_path):
    import p2o

    found = []
    for engine in ("hf", "vllm"):
        out = tmp_path / f"{engine}.json"
        command = ["eval", "--model", model, "--data", str(ROOT / "tiny" / "ood.jsonl"), "--samples", "0"]
        assert p2o.main([*command, "--max-response-tokens", "40", "--engine", engine, "--out", str(out)]) == 0
        found.append(json.loads(out.read_text())["results"])
    assert found[0] == found[1] and found[0][0]["questions"] > 0


def test_the_copy_for_vllm_is_deleted_once_it_is_loaded(model):
    policy = load(model, load_in_4bit=True, engine="vllm")
    assert [p.name for p in Path(policy.engine._folder.name).iterdir()] == ["adapter"]
    assert not list(Path(tempfile.gettempdir()).glob("p2o-vllm-of-*"))
    assert gap(policy, contexts(policy, 4), grpo.sample(policy, contexts(policy, 4), seed=0)) < 1e-3


def test_a_four_bit_policy_is_served_as_its_trainer_sees_it(model, tmp_path):
    """The dequantized copy, read by transformers: log-probs equal, and not those of the weights before rounding."""
    from support.vllm_engine import dequantized_copy

    policy = load(model, load_in_4bit=True)
    copied = load(dequantized_copy(policy.model, policy.tokenizer, tmp_path, torch.float32))
    prompts = contexts(policy, 8)
    samples = grpo.sample(policy, prompts, seed=0)
    assert gap(copied, prompts, samples) < 1e-4
    assert gap(load(model), prompts, samples) > 1e-3


def test_at_exit_vllm_is_shut_down_and_nothing_is_said_of_process_groups(model):
    """Whether the engine is still there then, or gone like one of a function that has returned."""
    code = (
        "import sys, torch, atexit, grpo\n"
        "atexit.register(lambda: print('left:', torch.distributed.is_initialized()))\n"  # runs after all later ones
        "policy = grpo.load_policy(grpo.PolicyConfig(model=sys.argv[1], engine='vllm'))\n"
        "if sys.argv[2] == 'gone':\n    del policy\n"
    )
    for engine in ("there", "gone"):
        done = subprocess.run([sys.executable, "-c", code, model, engine], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "left: False" in done.stdout, done.stdout + done.stderr
        assert "destroy_process_group" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("dtype, limit", [("bfloat16", 0.05), ("float16", 0.005)])
def test_in_16_bits_vllm_and_the_trainer_compute_in_the_same_ones(model, dtype, limit):
    served = load(model, engine="vllm", dtype=dtype)
    train_a_step(served)
    assert str(served.engine.llm.llm_engine.model_config.dtype) == f"torch.{dtype}"
    assert gpu.gap(served, contexts(served)) < limit
