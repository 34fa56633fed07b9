"""--engine vllm: rollouts sampled by vLLM in the same process, on the same card, from the same weights.

`VllmEngine.sample` promises what grpo.sample does: token ids in and out, the trainer's temperature and stop tokens,
nothing of the model's generation config, log-probs of the distribution that was drawn from. A run measures whether that
holds: it computes some of each batch's sampled log-probs again with the trainer, and logs the difference.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import shutil
import tempfile
import weakref
from pathlib import Path

import torch

from support.errors import UserError
from support.pretrained import compute_dtype, fingerprint, has_bfloat16

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the adapter ranks that vLLM has kernels for

# What one step may prefill sets how much vLLM keeps free for activations instead of the KV cache.
CARD = {"enable_sleep_mode": True, "max_num_batched_tokens": 4096}
# A prompt prefilled in pieces takes back a step of its seeded generator, which torch has on GPUs only.
CPU = {"enforce_eager": True, "enable_chunked_prefill": False}

_engines: weakref.WeakSet[VllmEngine] = weakref.WeakSet()


@atexit.register
def shut_down() -> None:
    """End vLLM's engines, then their process group: torch warns of one that is still there at exit."""
    for engine in list(_engines):
        engine.llm.llm_engine.engine_core.shutdown()
    if VllmEngine.started and torch.distributed.is_initialized():  # left by an engine that is gone
        torch.distributed.destroy_process_group()


def import_vllm(on_gpu: bool) -> type:
    """vLLM's LLM, imported under the environment that it reads then."""
    # In-process: adapters go through a folder, and the card's memory has one owner.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    defaults = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    if not on_gpu:
        defaults |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # GiB; torch's threads
    elif not batch_invariant():
        # vLLM sets torch's precision of float32 products when it starts, for the trainer in this process, too: at its
        # "highest", the trainer's head would lose TF32 (pretrained.mix_precision).
        defaults["VLLM_FLOAT32_MATMUL_PRECISION"] = "high"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    try:
        from vllm import LLM
    except ImportError as error:
        cure = "pip install -r requirements-gpu.txt (without a GPU: make test-vllm), or use --engine hf"
        raise UserError(f"--engine vllm: vLLM is not installed; {cure} ({error})") from error
    return LLM


def batch_invariant() -> bool:
    return os.environ.get("VLLM_BATCH_INVARIANT", "0") == "1"


def refuse_what_a_card_cannot_do(dtype: torch.dtype) -> None:
    """UserError where vLLM would fail on this card, or the trainer beside it would. Read in vLLM 0.30's source."""
    card = torch.cuda.get_device_name()
    if not has_bfloat16():
        raise UserError(f"--engine vllm: {card} is older than Ampere, where this was never tried; use --engine hf")
    if dtype == torch.float32:
        told = "on a card, vLLM's kernels for adapters compute in 16 bits only"
        raise UserError(f"--engine vllm: {told}; take --dtype bfloat16 or float16, or --engine hf")
    if batch_invariant() and torch.cuda.get_device_capability()[0] == 8:
        told = f"on {card} (Ampere or Ada), vLLM replaces torch's linear layers by kernels that have no backward pass"
        cure = "leave it out, or use --engine hf"
        raise UserError(f"VLLM_BATCH_INVARIANT=1: {told}, and this process trains as well; {cure}")


class VllmEngine:
    """vLLM with the weights of a peft model's base; the adapter is handed over when it has changed.

    `max_model_len`: tokens of the longest prompt and its response together. `cfg`: grpo.PolicyConfig. Between two calls
    vLLM sleeps, its weights parked in the host's memory, so that training has the card.
    """

    started = False  # in this process, be it in vain: its process group is there all the same

    def __init__(
        self, peft_model: torch.nn.Module, tokenizer, cfg, *, max_model_len: int, seed: int = 0,
        enforce_eager: bool = False,
    ):  # fmt: skip
        """`enforce_eager` compiles nothing: a faster start, and slower tokens (lab/gpu.py measures both)."""
        adapter = peft_model.peft_config["default"]
        if adapter.peft_type != "LORA":
            raise UserError(f"--engine vllm: it serves LoRA, not {adapter.peft_type.value}; take --engine hf")
        rank = adapter.r
        if rank > RANKS[-1]:
            raise UserError(f"--lora-rank {rank}: vLLM has kernels up to rank {RANKS[-1]}; take less, or --engine hf")
        on_gpu = next(peft_model.parameters()).is_cuda
        dtype = compute_dtype(cfg.dtype)
        if on_gpu:
            refuse_what_a_card_cannot_do(dtype)
        LLM = import_vllm(on_gpu)
        self.peft_model, model = peft_model, cfg.model
        self._folder = tempfile.TemporaryDirectory(prefix="p2o-vllm-")  # removed with the engine
        self._adapter, copied = Path(self._folder.name) / "adapter", None
        self._version, self._request, self.handovers = None, None, 0
        self._sleeps = on_gpu  # vLLM knows sleep mode on GPUs only
        if getattr(peft_model.get_base_model(), "is_loaded_in_4bit", False):
            copied = folder_for_copy(peft_model, self._folder.name)
            model = dequantized_copy(peft_model, tokenizer, copied, dtype)
        # In the config of the text's part, where a model also sees. Some name no limit.
        positions = getattr(peft_model.config.get_text_config(), "max_position_embeddings", None)
        longest = min(max_model_len, positions or max_model_len)
        overrides = {"head_dtype": "float32"}  # as the trainer's: rounded logits are most of the mismatch
        if getattr(peft_model.config, "sliding_window", 0) is None:
            overrides["sliding_window"] = None  # vLLM would read again the one that `load_model` has taken out
        machine = CARD | {"gpu_memory_utilization": cfg.vllm_memory, "enforce_eager": enforce_eager} if on_gpu else CPU
        VllmEngine.started = True
        try:
            self.llm = LLM(
                model=model, max_model_len=longest, max_num_seqs=cfg.sample_batch, seed=seed, enable_lora=True,
                max_loras=1, max_lora_rank=next(r for r in RANKS if r >= rank), dtype=str(dtype).removeprefix("torch."),
                **machine,
                # The default, "auto", would sample with the top-k, top-p and penalties of the model's own config.
                generation_config="vllm",
                logprobs_mode="processed_logprobs",  # the default is those of the untempered logits
                hf_overrides=overrides,
                disable_log_stats=False,  # or preemptions are not counted
            )  # fmt: skip
        # No room for the share, or in it for one whole sequence; an assertion says that a process has vLLM already.
        except (ValueError, RuntimeError, AssertionError) as error:
            told = f"vLLM did not start with --vllm-memory {cfg.vllm_memory} and sequences of {longest} tokens"
            raise UserError(f"--engine vllm: {told}; python p2o.py fit says what needs how much ({error})") from error
        finally:
            if copied:
                shutil.rmtree(copied, ignore_errors=True)  # gigabytes that nobody needs once they are loaded
        _engines.add(self)
        self._sleep()

    def sample(
        self, contexts: list[list[int]], stop_ids: list[int], seed: int | None, temperature: float, length: int,
        adapter: bool,
    ) -> list[tuple[list[int], list[float], bool]]:  # fmt: skip
        """(token ids, log-probs, truncated) of each response. Each has a seed of its own, whatever else is sampled.

        Greedy ones have NaN for log-probs: vLLM computes these at temperature 1. Nothing trains on them; if something
        did, NaN would show at once.
        """
        from vllm import SamplingParams

        self._wake()
        if adapter:
            self._hand_over()
        common = {
            "temperature": temperature if seed is not None else 0.0,
            "max_tokens": length,
            "stop_token_ids": stop_ids,
            "ignore_eos": True,  # the stop ids are all that stops, as for the trainer
            "logprobs": None if seed is None else 0,  # 0: of the sampled token alone
            "detokenize": False,
        }
        seeds = [None if seed is None else (seed + i) % 2**63 for i in range(len(contexts))]
        params = [SamplingParams(seed=s, **common) for s in seeds]
        prompts = [{"prompt_token_ids": context} for context in contexts]
        request = self._request if adapter else None
        try:
            outputs = [o.outputs[0] for o in self.llm.generate(prompts, params, lora_request=request, use_tqdm=False)]
        except torch.OutOfMemoryError as error:
            # The requests stay in vLLM's queue: a second try would get responses to the first one's prompts.
            raise UserError("vLLM ran out of memory while sampling: lower --sample-batch or --vllm-memory") from error
        self._sleep()
        drawn = []
        for output in outputs:
            ids = list(output.token_ids)
            logprobs = [math.nan if seed is None else output.logprobs[t][token].logprob for t, token in enumerate(ids)]
            drawn.append((ids, logprobs, output.finish_reason == "length"))
        return drawn

    def _hand_over(self) -> None:
        """Give vLLM the adapter as it is now, if it has changed since the last time.

        A fresh id each time: vLLM keeps serving the old weights under an id that it knows, whatever its folder holds.
        A fresh name, too: cached prompt prefixes are found by the adapter's name.
        """
        from vllm.lora.request import LoRARequest

        # torch counts in-place changes of a tensor, and that is how optimizers and load_state_dict write.
        version = [(id(p), p._version) for n, p in self.peft_model.named_parameters() if "lora_" in n]
        if version == self._version:
            return
        self.peft_model.save_pretrained(self._adapter, save_embedding_layers=False)
        self.handovers += 1
        self._version = version
        self._request = LoRARequest(f"adapter-{self.handovers}", self.handovers, str(self._adapter))
        self.llm.llm_engine.add_lora(self._request)  # now, while the folder holds these weights

    def _sleep(self) -> None:
        if self._sleeps:
            self.llm.sleep(level=1)

    def _wake(self) -> None:
        """Take the card back from the trainer. What woke before a failure stays awake: a second try goes on."""
        if not self._sleeps:
            return
        for last_try in (False, True):
            torch.cuda.empty_cache()  # what the trainer's allocator holds in reserve is what vLLM wakes up into
            try:
                self.llm.wake_up()
                return
            except RuntimeError as error:  # of vLLM's own allocator, which knows no torch.OutOfMemoryError
                if last_try:
                    cure = "lower --vllm-memory, or end what else runs there"
                    raise UserError(f"vLLM found no room on the card to wake up ({error}): {cure}") from error

    def preemptions(self) -> int:
        """How often a response so far lost its place in the KV cache to another, and was computed again."""
        return sum(m.value for m in self.llm.get_metrics() if m.name == "vllm:num_preemptions")


def folder_for_copy(peft_model: torch.nn.Module, otherwise: str) -> Path:
    """A new folder for the dequantized copy, with the same path for the same model.

    vLLM keeps what it has compiled, and finds it by the model's path, among others. Under a new path it compiles again,
    for a minute. Where the folder is in use, or left by a run that was killed, the copy goes into `otherwise`.
    """
    same = Path(tempfile.gettempdir()) / f"p2o-vllm-of-{fingerprint(peft_model)}"
    try:
        same.mkdir(mode=0o700)
    except FileExistsError:
        same = Path(otherwise) / "base"
        same.mkdir()
    return same


def dequantized_copy(peft_model: torch.nn.Module, tokenizer, folder: Path, dtype: torch.dtype) -> str:
    """Write the base weights as the 4-bit trainer sees them, in full width, for vLLM to load; returns the folder.

    vLLM no longer reads NF4 itself, and weights that were never quantized would be another policy than the trained one.
    """
    from bitsandbytes.functional import dequantize_4bit
    from huggingface_hub import save_torch_state_dict

    base = peft_model.get_base_model()
    weights = {}
    for name, parameter in base.named_parameters():  # a tied head is listed once, as the embedding
        if "lora_" not in name:
            state = getattr(parameter, "quant_state", None)
            full = parameter if state is None else dequantize_4bit(parameter.data, state)
            weights[name.replace(".base_layer", "")] = full.detach().to("cpu", dtype).contiguous()
    save_torch_state_dict(weights, folder)
    config = base.config.to_dict()
    config.pop("quantization_config", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(folder)
    return str(folder)
