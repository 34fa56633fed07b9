"""What training Qwen3-4B in 4 bits takes on one card: peak memory and tokens per second of sampling, log-probs, update.

python bench/gpu.py                     a random model of Qwen3-4B's exact architecture, G = 6, 4,096-token responses
python bench/gpu.py --engine vllm       the same, sampled by vLLM (requirements-gpu.txt)
python bench/gpu.py --smoke             a shrunken model, on a CPU if need be: does the script run?

No download: speed and memory do not depend on what the weights say. The process is capped at 24 GiB, so a larger card
stands in for a smaller one; what vLLM's sleeping weights take is outside of torch's allocator and of that cap, and is
bounded by its own memory share. Prints the figures, beside support/fit.py's estimates, and writes them as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import grpo  # noqa: E402
import p2o  # noqa: E402
from support import fit  # noqa: E402

PROMPT_TOKENS = 512


def random_model(shape: fit.Architecture, folder: str) -> None:
    """A model of that shape with random weights, and the tiny model's tokenizer, saved like one from the hub."""
    config = Qwen3Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, tie_word_embeddings=shape.tied, max_position_embeddings=40960, eos_token_id=None,
    )  # fmt: skip
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "tiny" / "model").save_pretrained(folder)


def measure(step, tokens: int) -> dict:
    """Seconds, tokens per second, and the peak of torch's allocator (GiB; None on a CPU) of one step."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    step()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = {name: getattr(torch.cuda, f"max_memory_{name}")() / fit.GIB if on_gpu else None
            for name in ("allocated", "reserved")}  # fmt: skip
    return {"seconds": seconds, "tokens_per_second": tokens / seconds, "peak_gib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a shrunken model and short responses")
    parser.add_argument("--engine", choices=["hf", "vllm"], default="hf")
    parser.add_argument("--cap-gib", type=float, default=24.0, help="memory that the process may take")
    parser.add_argument("--out", type=Path, default=Path("bench-gpu.json"))
    args = parser.parse_args()

    shape = fit.KNOWN["Qwen/Qwen3-4B"]
    cfg = dataclasses.replace(p2o.PRESETS["qwen3-4b-24gb"], engine=args.engine)
    cfg = dataclasses.replace(cfg, sample_batch=cfg.group_size)
    prompt_tokens = PROMPT_TOKENS
    if args.smoke:
        shape = dataclasses.replace(shape, layers=2, hidden=128, intermediate=384, heads=4, kv_heads=2, head_dim=32)
        cfg = dataclasses.replace(cfg, max_response_tokens=64, max_prompt_tokens=64, micro_batch_tokens=160)
        prompt_tokens = 32
    on_gpu = torch.cuda.is_available()
    card = torch.cuda.get_device_name() if on_gpu else "CPU"

    with tempfile.TemporaryDirectory() as folder:
        random_model(shape, folder)
        if on_gpu:
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, args.cap_gib * fit.GIB / total))
            # vLLM takes its share of the card there is, not of the card there might be.
            cfg = dataclasses.replace(
                cfg, vllm_memory=min(cfg.vllm_memory, cfg.vllm_memory * args.cap_gib * fit.GIB / total)
            )
        policy = p2o.load_policy(dataclasses.replace(cfg, model=folder))
        optimizer = torch.optim.AdamW([p for p in policy.model.parameters() if p.requires_grad], lr=cfg.learning_rate)

        # Ids of ordinary words: any would do, but for the stop token.
        contexts = [[5 + i % 200 for i in range(prompt_tokens)]] * cfg.group_size
        policy.stop_ids = [shape.vocabulary - 1]  # nearly no response ends early, so all are of full length
        results, samples = {}, []
        grpo.sample(policy, contexts, seed=0, max_new_tokens=4)  # compile and warm up
        length = cfg.group_size * cfg.max_response_tokens
        results["sampling"] = measure(lambda: samples.extend(grpo.sample(policy, contexts, seed=1)), length)
        responses = [s.response_ids for s in samples]
        tokens = sum(map(len, contexts)) + sum(map(len, responses))
        scores = []
        results["log-probs"] = measure(lambda: scores.extend(grpo.score(policy, contexts, responses)), tokens)
        rollouts = [
            grpo.Rollout("q", "", c, c, s.response_ids, s.logprobs, s.truncated, "", 0.0, True, (-1.0) ** i, old)
            for i, (c, s, old) in enumerate(zip(contexts, samples, scores, strict=True))
        ]
        for r in rollouts:
            r.token_weight = [1.0] * len(r.response_ids)
        grpo.update_policy(policy, optimizer, rollouts[:1])  # the optimizer's moments are there from here on
        results["update"] = measure(lambda: grpo.update_policy(policy, optimizer, rollouts), tokens)

    gaps = [abs(a - b) for old, s in zip(scores, samples, strict=True) for a, b in zip(old, s.logprobs, strict=True)]
    record = {
        "command": shlex.join(["python", "bench/gpu.py", *sys.argv[1:]]),
        "card": card,
        "cap_gib": args.cap_gib if on_gpu else None,
        "torch": torch.__version__,
        "parameters": shape.layers * sum(i * o for i, o in shape.linear) + shape.vocabulary * shape.hidden,
        "group_size": cfg.group_size,
        "response_tokens": cfg.max_response_tokens,
        "micro_batch_tokens": cfg.micro_batch_tokens,
        "mismatch_mean": sum(gaps) / len(gaps),
        "mismatch_max": max(gaps),
        "results": results,
        "estimated_gib": {k: v / fit.GIB for k, v in fit.estimate(cfg, shape, args.cap_gib * fit.GIB, on_gpu).items()},
    }
    args.out.write_text(json.dumps(record, indent=1))
    print(f"{card}: {record['parameters'] / 1e9:.2f} B parameters, G = {cfg.group_size}, "
          f"{cfg.max_response_tokens} response tokens, engine {args.engine}")  # fmt: skip
    for name, r in results.items():
        peak = r["peak_gib"]["reserved"]
        memory = "not measured on a CPU" if peak is None else f"{peak:.2f} GiB"
        print(f"{name:10} {r['tokens_per_second']:10,.0f} tokens/s   peak {memory}")
    estimated = record["estimated_gib"]
    if on_gpu:
        print(f"estimated: training {estimated['training']:.2f} GiB, sampling {estimated['sampling']:.2f} GiB")
    print(f"sampled against trained log-probs: mean {record['mismatch_mean']:.2g}, max {record['mismatch_max']:.2g}")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
