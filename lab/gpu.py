"""The first hour on a card: does what was computed and tested on a CPU hold there? Eight measurements, each judged.

python lab/gpu.py                          random weights in Qwen3-4B's exact shape, about ten minutes
python lab/gpu.py --response-tokens 4096   responses as long as the preset's
python lab/gpu.py --only kernels memory    some of them
python lab/gpu.py --smoke                  a shrunken model, on a CPU if need be: does the script run?

Needs torch, transformers and peft. What else is missing (bitsandbytes, vLLM, gepa, TRL, the card itself) costs the
measurements that need it, and a line says which. No download: speed and memory do not depend on what weights say.
lab/results/gpu.json keeps what was measured, with the card and the versions; exit code 1 if anything was not as it
should be.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import grpo  # noqa: E402
from lab import chaos  # noqa: E402
from support import pretrained  # noqa: E402
from support.errors import UserError  # noqa: E402
from support.memory import adamw  # noqa: E402
from support.settings import QWEN3  # noqa: E402
from tools import fit  # noqa: E402

PRESET = QWEN3["qwen3-4b-24gb"]
CARD = 24 * fit.GIB  # the card that the preset is for; a larger one stands in for it
GROUP = 6
ON_GPU = torch.cuda.is_available()


class Skip(Exception):
    """A measurement that this machine cannot make, and why."""


def need(*modules: str, card: bool = False) -> None:
    """Skip unless all of it is there."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None] + ["a card"] * (card and not ON_GPU)
    if missing:
        raise Skip(f"{' and '.join(missing)} missing")


@dataclasses.dataclass
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
    """(2) The reserved peak of an update of two long sequences, and what `p2o.py fit` says: at most 15 % apart."""
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
    return figures, abs(reserved / estimated - 1) <= 0.15


def gradient(setup: Setup) -> tuple[dict, bool]:
    """(3) Do bf16 gradients point where those of float32 and the math kernel point? Cosine at least 0.99."""
    shape = dataclasses.replace(setup.shape, layers=min(4, setup.shape.layers))
    four = dataclasses.replace(setup, shape=shape, folder=random_model(shape, setup.folder.with_name("four-layers")))
    torch.set_float32_matmul_precision("highest")  # until the bf16 model is loaded, which lets TF32 in on a card
    with sdpa_kernel(SDPBackend.MATH):
        exact = gradient_in(torch.float32, four)
    cosine = torch.cosine_similarity(exact, gradient_in(torch.bfloat16, four), dim=0).item()
    return {"cosine": cosine, "layers": shape.layers, "nf4": four.config().load_in_4bit}, cosine >= 0.99


def gradient_in(dtype: torch.dtype, setup: Setup) -> torch.Tensor:
    """The adapter's gradient of one response's log-prob, as one vector, computed in `dtype` whatever the machine."""
    usual, pretrained.compute_dtype = pretrained.compute_dtype, lambda: dtype
    try:
        policy = setup.policy()
    finally:
        pretrained.compute_dtype = usual
    torch.manual_seed(0)
    for name, p in policy.model.named_parameters():
        if "lora_B" in name:
            p.data = torch.randn(p.shape).to(p) * 0.01  # off zero, or A has no gradient
    response = setup.rollouts(min(512, setup.sequence), 1)[0]
    grpo.token_logprobs(policy, [response.trained_context], [response.response_ids]).sum().backward()
    return torch.cat([p.grad.flatten().double().cpu() for p in policy.trainable])


def speed(setup: Setup) -> tuple[dict, bool]:
    """(4) Tokens per second of sampling, scoring and update, and the minutes of one of the preset's batches."""
    policy = setup.policy(max_response_tokens=setup.response_tokens)
    made = setup.rollouts(setup.response_tokens * 5 // 4)
    contexts, responses = [r.trained_context for r in made], [r.response_ids for r in made]
    grpo.sample(policy, contexts, seed=0, max_new_tokens=2)  # compile and warm up
    step = update_of(policy, made)
    step()
    drawn = GROUP * setup.response_tokens
    passed = sum(len(c) + len(r) for c, r in zip(contexts, responses, strict=True))
    rates = {
        "sampling": drawn / seconds_of(lambda: grpo.sample(policy, contexts, seed=1)),
        "scoring": passed / seconds_of(lambda: grpo.logprobs_of(policy, contexts, responses)),
        "update": passed / seconds_of(step),
    }
    if ON_GPU and all(map(importlib.util.find_spec, ("vllm", "bitsandbytes"))):
        policy.engine = engine_for(policy, setup.response_tokens * 2)
        many = contexts * (PRESET["sample_batch"] // GROUP)
        grpo.sample(policy, many, seed=0, max_new_tokens=2)
        taken = seconds_of(lambda: grpo.sample(policy, many, seed=1))
        rates["sampling"] = len(many) * setup.response_tokens / taken
        rates["preempted"] = policy.engine.preemptions() / len(many)
    # As `fit` assumes: a response of half the longest, half of the groups taught, and the later half of them scored.
    tokens = PRESET["questions_per_batch"] * GROUP * PRESET["max_response_tokens"] * fit.RESPONSE_SHARE
    weights = {"sampling": 1.0, "scoring": fit.TAUGHT / 2, "update": fit.TAUGHT}
    minutes = {name: weight * tokens / rates[name] / 60 for name, weight in weights.items()}
    figures = {"tokens_per_second": rates, "minutes_per_batch": minutes | {"all": sum(minutes.values())}}
    return figures, rates.get("preempted", 0) < 0.1


def engine_for(policy: grpo.Policy, longest: int):
    """vLLM beside the policy, with the preset's share of a 24 GiB card, whatever card it is."""
    from support.vllm_engine import VllmEngine

    share = PRESET["vllm_memory"] * min(1.0, CARD / torch.cuda.get_device_properties(0).total_memory)
    cfg = dataclasses.replace(policy.cfg, vllm_memory=share, sample_batch=PRESET["sample_batch"], engine="vllm")
    return VllmEngine(policy.model, policy.tokenizer, cfg, max_model_len=longest)


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


def vllm(setup: Setup) -> tuple[dict, bool]:
    """(5) Twenty cycles of sleep, wake and update beside vLLM under 24 GiB: what it keeps, whether it stays in step."""
    need("vllm", "bitsandbytes", card=True)
    policy = setup.policy(max_response_tokens=min(256, setup.response_tokens))
    step = update_of(policy, setup.rollouts(setup.sequence, 2), rate=1e-4)
    step()
    with ballast():
        before = taken()
        policy.engine = engine_for(policy, 2 * setup.sequence)
        rollouts, residues, gaps = setup.rollouts(640), [], []
        contexts = [r.sampled_context for r in rollouts]
        for cycle in range(20):
            samples = grpo.sample(policy, contexts, seed=cycle)
            if cycle in (0, 3):  # before any hand-over of a moved adapter, and after three
                drawn = [dataclasses.replace(r, **vars(s)) for r, s in zip(rollouts, samples, strict=True)]
                gaps.append(grpo.mismatch(policy, drawn)[0])
            step()
            residues.append(taken() - before)
        same = [[s.response_ids for s in grpo.sample(policy, contexts, seed=7)] for _ in range(2)]
    drift = residues[-1] - residues[1]
    figures = {"residue_gib": residues[-1], "drift_gib": drift, "mismatch": gaps, "seeds_hold": same[0] == same[1]}
    figures["preempted"] = policy.engine.preemptions() / (22 * GROUP)
    good = max(residues) <= 1.5 and abs(drift) <= 0.1 and max(gaps) <= 0.02 and same[0] == same[1]
    return figures, good and figures["preempted"] < 0.1


def out_of_memory(setup: Setup) -> tuple[dict, bool]:
    """(6) Too little memory on purpose: training goes on in smaller pieces, vLLM says one line."""
    need(card=True)
    policy = setup.policy()
    step, size = update_of(policy, setup.rollouts(setup.sequence)), policy.cfg.micro_batch_tokens
    seconds_of(step)  # from here on the peak is that of an update
    total = torch.cuda.get_device_properties(0).total_memory
    loaded, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_reserved()
    torch.cuda.set_per_process_memory_fraction((loaded + 0.75 * (peak - loaded)) / total)
    free()
    metrics = step()
    torch.cuda.set_per_process_memory_fraction(1.0)
    figures = {"micro_batch_tokens": [size, policy.cfg.micro_batch_tokens], "grad_norm": metrics["grad_norm"]}
    good = policy.cfg.micro_batch_tokens < size and not metrics["skipped"]
    if all(map(importlib.util.find_spec, ("vllm", "bitsandbytes"))):
        policy.engine = engine_for(policy, 2 * setup.sequence)
        free()
        held = torch.empty(int(torch.cuda.mem_get_info()[0] * 0.95), dtype=torch.uint8, device="cuda")
        try:
            grpo.sample(policy, [[5, 6]], seed=0, max_new_tokens=2)
        except UserError as error:
            figures["vllm"] = str(error)
        del held
        good = good and "--vllm-memory" in figures.get("vllm", "")
    return figures, good


def tiny_world(setup: Setup) -> tuple[dict, bool]:
    """(7) P2O on the tiny model, killed after its second epoch and resumed: 0.99 on hard problems, 0.99 beyond."""
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
    length = setup.response_tokens * 5 // 4
    rollouts = setup.rollouts(length)
    figures = {}
    policy = setup.policy(load_in_4bit=False, micro_batch_tokens=2 * length)
    step = update_of(policy, rollouts)
    step()
    figures["p2o"] = {"seconds": seconds_of(step), "peak_gib": torch.cuda.max_memory_reserved() / fit.GIB}
    del policy, step
    figures["trl"] = trl_update(setup, rollouts)
    return figures, True  # a comparison: there is nothing that it should be


def trl_update(setup: Setup, rollouts: list[grpo.Rollout]) -> dict:
    """Seconds and peak of TRL's second update, its sampling replaced by these rollouts."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    device = "cuda" if ON_GPU else "cpu"
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
            free()
            self.started = time.perf_counter()

        def on_step_end(self, *_, **__):
            peak = torch.cuda.max_memory_reserved() / fit.GIB  # before `free` resets it
            free()
            self.figures = {"seconds": time.perf_counter() - self.started, "peak_gib": peak}

    settings = GRPOConfig(
        output_dir=str(setup.folder.parent / "trl"), max_steps=2, per_device_train_batch_size=2, num_generations=GROUP,
        gradient_accumulation_steps=GROUP // 2, gradient_checkpointing=True, bf16=ON_GPU, use_cpu=not ON_GPU,
        max_completion_length=setup.response_tokens, report_to="none", save_strategy="no", disable_tqdm=True,
        temperature=PRESET["temperature"], beta=0.0, loss_type="dapo",
        model_init_kwargs={"dtype": "bfloat16" if ON_GPU else "float32"},
    )  # fmt: skip
    clock = Clock()
    lora = LoraConfig(
        r=PRESET["lora_rank"], lora_alpha=PRESET["lora_alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
    )
    Fixed(
        model=str(setup.folder), reward_funcs=lambda completions, **_: [0.0] * len(completions), args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["What is 2 + 2?"] * 2 * GROUP}), peft_config=lora,
        callbacks=[clock],
    ).train()  # fmt: skip
    return clock.figures


MEASUREMENTS = (kernels, memory, gradient, speed, out_of_memory, tiny_world, beside_trl, vllm)  # the longest last


# --------------------------------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "transformers", "peft", "bitsandbytes", "vllm", "trl"):
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


def alone(measurement: Callable, setup: Setup) -> dict:
    """`judged` in a process of its own: what a measurement leaves on the card, vLLM above all, ends with it."""
    values = dataclasses.asdict(setup) | {"folder": str(setup.folder)}
    command = [sys.executable, str(Path(__file__).resolve()), "--child", measurement.__name__, json.dumps(values)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    last = done.stdout.rpartition(MARK)[2]
    return json.loads(last) if MARK in done.stdout else {"verdict": "FAILED", "why": f"ended with {done.returncode}"}


def child(name: str, values: str) -> int:
    """The other end of `alone`."""
    fields = json.loads(values)
    fields |= {"shape": fit.Architecture(**fields["shape"]), "folder": Path(fields["folder"])}
    measurement = next(m for m in MEASUREMENTS if m.__name__ == name)
    print(MARK + json.dumps(judged(measurement, Setup(**fields))))
    return 0


MARK = "--- measured: "  # what stands before a child's figures, after whatever its libraries print


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a shrunken model and short responses")
    parser.add_argument("--response-tokens", type=int, default=1024)
    parser.add_argument("--only", nargs="+", choices=[m.__name__ for m in MEASUREMENTS])
    parser.add_argument("--out", type=Path, default=ROOT / "lab" / "results" / "gpu.json")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    shape, sequence, response = fit.KNOWN["Qwen/Qwen3-4B"], 5120, args.response_tokens
    if args.smoke:
        shape = dataclasses.replace(shape, layers=2, hidden=128, intermediate=384, heads=4, kv_heads=2, head_dim=32)
        shape, sequence, response = dataclasses.replace(shape, vocabulary=4000), 64, 16
    record = {"command": shlex.join(["python", "lab/gpu.py", *sys.argv[1:]]), "versions": versions()}
    record["card"] = torch.cuda.get_device_name() if ON_GPU else "none"
    with tempfile.TemporaryDirectory() as temporary:
        folder = random_model(shape, Path(temporary) / "model")
        setup = Setup(shape, folder, response, sequence, args.smoke)
        for measurement in MEASUREMENTS:
            name = measurement.__name__
            if args.only and name not in args.only:
                continue
            record[name] = (alone if ON_GPU else judged)(measurement, setup)
            print(f"{name}: {json.dumps(record[name])}", flush=True)
            args.out.write_text(json.dumps(record, indent=1) + "\n")  # after each, for the hour may end early
    bad = [name for name, r in record.items() if isinstance(r, dict) and r.get("verdict") in ("NOT GOOD", "FAILED")]
    print(f"written to {args.out}; " + (f"NOT as it should be: {', '.join(bad)}" if bad else "all as it should be"))
    return bool(bad)


if __name__ == "__main__":
    sys.exit(child(*sys.argv[2:]) if sys.argv[1:2] == ["--child"] else main())
