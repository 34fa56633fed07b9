"""What is said about a card, tested without one: the estimates of `p2o.py fit`, and lab/gpu.py.

The estimate stands against a measured peak of small models (on a CPU, where the profiler sees every allocation), and
against a count of the tensors of the real ones. lab/gpu.py runs where most is missing, and says what it leaves out."""

import dataclasses
import json
import runpy
import shutil
import subprocess
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from peft import LoraConfig, get_peft_model
from test_real_models import load, make_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Qwen3Config, masking_utils

import grpo
import p2o
from lab import gpu, scale_costs
from support import pretrained
from tools import fit

SHAPE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8,
         "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 4000, "max_position_embeddings": 2048}  # fmt: skip


def peak_bytes(step):
    """The most that tensors made by `step` take up together."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    present = top = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            present += event.nbytes()
            top = max(top, present)
    return top


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_is_near_the_measured_peak(tmp_path, monkeypatch, four_bit, checkpointing):
    monkeypatch.setattr(grpo, "LOGIT_CHUNK", 4000 * 64)
    cfg = dataclasses.replace(
        p2o.Config(), model=make_model(tmp_path, **SHAPE), load_in_4bit=four_bit, gradient_checkpointing=checkpointing,
        micro_batch_tokens=512, lora_rank=8, max_prompt_tokens=32, max_response_tokens=224,
    )  # fmt: skip
    parts = fit.estimate(cfg, fit.architecture(cfg.model), card=24 * fit.GIB, on_gpu=False)
    policy = load(cfg.model, load_in_4bit=four_bit, gradient_checkpointing=checkpointing, lora_rank=8)
    tensors = list(policy.model.parameters())
    states = [t.quant_state for t in tensors if hasattr(t, "quant_state")]
    tensors += [t for s in states for t in (s.absmax, s.state2.absmax)]
    loaded = sum(t.nbytes for t in tensors)
    assert parts["weights"] + parts["adapter"] == pytest.approx(loaded, rel=0.03)

    policy.model.train()
    step = lambda: grpo.token_logprobs(policy, [[5] * 32] * 2, [[7] * 224] * 2).sum().backward()  # noqa: E731
    step()  # the first backward makes the gradients; now they are there
    measured = loaded + 3 * parts["adapter"] + peak_bytes(step)  # gradients, two moments
    assert parts["training"] == pytest.approx(measured, rel=0.15)


class Peak(TorchDispatchMode):
    """The most bytes that the tensors made inside take up together, by every operation's new storage and its end."""

    def __init__(self, module):
        super().__init__()
        self.present = self.top = 0
        self.owners = [t.untyped_storage() for t in (*module.parameters(), *module.buffers())]
        self.sizes = {storage._cdata: 0 for storage in self.owners}  # what a view of a weight shows is not new

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.present += storage.nbytes()
                self.top = max(self.top, self.present)
                weakref.finalize(storage, self.end, storage._cdata)
        return result

    def end(self, storage):
        self.present -= self.sizes.pop(storage)


def flash(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
    """A kernel that keeps no scores. Torch chooses it by the device, which this tensor does not have."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def config_of(shape):
    return Qwen3Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, tie_word_embeddings=shape.tied,
    )  # fmt: skip


def on_paper(shape, rank):
    """A policy of the real shape as on a card, but for NF4: tensors of the right sizes and dtypes, without contents."""
    base = AutoModelForCausalLM.from_config(config_of(shape), dtype=torch.bfloat16).requires_grad_(False)
    pretrained.checkpoint_activations(base)
    model = get_peft_model(base, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    pretrained.mix_precision(model)
    tokenizer, head = SimpleNamespace(pad_token_id=0), base.get_output_embeddings()
    return grpo.Policy(model.train(), tokenizer, grpo.PolicyConfig(), [0], head=head)


@pytest.mark.parametrize("name", fit.KNOWN)
def test_the_estimate_is_near_a_count_of_the_real_architectures_tensors(name, monkeypatch):
    """Two sequences of 5,120 tokens, as the presets have them, on paper: a flash kernel, checkpointing, bf16.

    That no layer keeps anything of 5,120 x 5,120 is part of it: such scores would be 100 times too much.
    """
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", flash)
    monkeypatch.setattr(masking_utils, "is_tracing", lambda *_: True)  # or it would look into a tensor
    cfg = p2o.PRESETS["qwen3-4b-24gb"]
    shape = fit.KNOWN[name]
    if name != cfg.model:  # each layer is counted, and all are alike: only the preset's own model has all of them
        shape = dataclasses.replace(shape, layers=8)
    with torch.device("meta"):
        policy = on_paper(shape, cfg.lora_rank)
        weights = sum(p.nbytes for p in policy.model.parameters())
        with Peak(policy.model) as peak:
            grpo.token_logprobs(policy, [[5] * 4670] * 2, [[7] * 450] * 2).sum().backward()
    parts = fit.estimate(dataclasses.replace(cfg, load_in_4bit=False), shape, card=24 * fit.GIB)
    assert parts["weights"] + parts["adapter"] == pytest.approx(weights, rel=0.01)
    passing = parts["activations kept"] + max(parts["one layer's backward"], parts["logits"])
    assert parts["gradients"] + passing == pytest.approx(peak.top, rel=0.15)


@pytest.mark.parametrize("name", fit.KNOWN)
def test_the_table_of_architectures_counts_the_weights_of_the_real_ones(name):
    a = fit.KNOWN[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(a))
    weights = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert weights == a.layers * sum(i * o for i, o in a.linear) + a.vocabulary * a.hidden
    # "4B" and its like, as the model cards round
    assert weights / 1e9 == pytest.approx(float(name.partition("-")[2].removesuffix("B")), rel=0.02)


def test_the_24_gb_preset_fits_and_a_small_card_is_told_what_to_lower(capsys):
    p2o.main(["fit", "--preset", "qwen3-4b-24gb", "--card-gb", "24"])
    assert "DOES NOT FIT" not in (text := capsys.readouterr().out) and "training peak" in text
    assert "lower" not in text and "estimated hours on an RTX 4090" in text  # nothing to lower: it ends within a day
    assert "T4" not in text and "from the rates of an H200" in text
    p2o.main(["fit", "--preset", "qwen3-4b-24gb", "--engine", "hf", "--card-gb", "24"])
    assert "T4" in capsys.readouterr().out  # where vLLM is refused
    p2o.main(["fit", "--preset", "qwen3-4b-24gb-paper"])
    assert "lower --train-questions" in capsys.readouterr().out
    p2o.main(["fit", "--preset", "qwen3-4b-24gb", "--card-gb", "8", "--no-gradient-checkpointing"])
    text = capsys.readouterr().out
    assert "DOES NOT FIT" in text and "--gradient-checkpointing" in text and "--micro-batch-tokens 5120" in text
    assert p2o.main(["fit", "--model", "nobody/knows"]) == 2
    assert "config.json" in capsys.readouterr().err
    for option in ("--train-data", "--eval-data"):  # an estimate for as many questions as the paper has would mislead
        assert p2o.main(["fit", option, "TYPO"]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("p2o: TYPO: no such file") and not said.out
    p2o.main(["fit", "--preset", "qwen3-4b-24gb", "--train-data", "gsm8k", "--train-questions", "0"])
    assert "for 5,000 training questions; the estimate fetches no data set" in capsys.readouterr().out
    for size in ("abc", "-3", "0", "nan", ""):
        for given in (["--card-gb", size], [f"--card-gb={size}"]):
            assert p2o.main(["fit", *given]) == 2
            assert f"--card-gb {size}: the GiB of a card's memory" in capsys.readouterr().err
    assert p2o.main(["fit", "--card-gb"]) == 2
    p2o.main(["fit", "--card-gb=16"])
    assert "card of 16.0 GiB" in capsys.readouterr().out


def test_a_run_on_a_card_begins_with_its_estimate_and_an_unknown_model_does_not_stop_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=22 * fit.GIB))
    trained = []
    monkeypatch.setattr(p2o, "train", trained.append)
    monkeypatch.setattr("tools.report.main", lambda argv: None)
    assert p2o.main(["--preset", "qwen3-4b-24gb"]) == 0
    text = capsys.readouterr().out
    assert "card of 22.0 GiB" in text and "estimated hours on an L4" in text and "lower --train-questions" in text
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L40S")  # three times an L4
    p2o.main(["fit", "--preset", "qwen3-4b-24gb"])
    assert "estimated hours on an RTX 4090" in capsys.readouterr().out
    assert p2o.main(["--model", "nobody/knows"]) == 0
    assert "no estimate: --model nobody/knows" in capsys.readouterr().out and len(trained) == 2
    sizes = {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": [8, 16], "num_attention_heads": 2}
    for config, complaint in (
        ('{"n_head": 12}', "has no 'num_hidden_layers'"),  # GPT-2's
        (json.dumps(sizes), "has no 'intermediate_size' that is a number"),  # one for each layer
        ("[]", "has no 'num_hidden_layers'"),
        ("{", "not JSON"),
    ):
        (tmp_path / "config.json").write_text(config)
        assert p2o.main(["--model", str(tmp_path)]) == 0
        assert complaint in capsys.readouterr().out and trained.pop().model == str(tmp_path)
    assert p2o.main([]) == 0  # the tiny model: its launches take longer than its arithmetic, and are not counted
    assert "estimated hours: 0; so small a run" in capsys.readouterr().out


def test_hours_count_the_responses_of_a_run():
    """1,000 questions, 2 epochs, G = 6; GEPA's light budget once; three held-out sets, three times. By hand."""
    cfg = p2o.PRESETS["qwen3-4b-24gb"]
    assert fit.responses_of(cfg) == {"sampling": 12_000, "evolution": 780, "evaluation": 3 * (30 + 40 + 500)}
    limited = dataclasses.replace(cfg, gepa_tokens=1_024_000)  # of responses of 2,048 tokens each, on average
    assert fit.responses_of(limited)["evolution"] == 500
    assert fit.responses_of(dataclasses.replace(cfg, gepa_tokens=10**9))["evolution"] == 780
    tiny = fit.responses_of(p2o.Config(sampled_eval=True))  # local files are counted
    assert (tiny["sampling"], tiny["evaluation"]) == (6 * 184 * 6, 7 * 2 * (100 + 100))
    more_than_there_are = dataclasses.replace(cfg, train_data=p2o.Config().train_data)  # 1,000 of 184
    assert fit.responses_of(more_than_there_are)["sampling"] == 2 * 184 * 6
    shape, card = fit.KNOWN["Qwen/Qwen3-4B"], fit.CARDS["RTX 4090"]
    once = fit.hours(cfg, shape, card, 8 * fit.GIB)
    twice = fit.hours(dataclasses.replace(cfg, train_questions=2000), shape, card, 8 * fit.GIB)
    for part in ("sampling", "scoring", "update"):
        assert twice[part] == pytest.approx(2 * once[part])
    # 12,000 responses, half of the groups taught, of 2,248 tokens; 6 operations for each of 4.02e9 weights
    assert once["update"] == pytest.approx(6 * 4.02e9 * 6000 * 2248 / (165e12 * 0.23) / 3600, rel=0.01)


def h200():
    """The last record of the H200 with the speeds, in lab/results/gpu.json."""
    records = json.loads((ROOT / "lab" / "results" / "gpu.json").read_text())
    return next(r for r in reversed(records) if "H200" in r["card"] and "speed" in r)


def test_the_hours_rest_on_the_measured_rates():
    cfg, shape, measured = p2o.PRESETS["qwen3-4b-24gb"], fit.KNOWN["Qwen/Qwen3-4B"], h200()
    rates = measured["speed"]["tokens_per_second"]
    seconds = {name: 3600 * value for name, value in fit.hours(cfg, shape, fit.CARDS["H200"], 8 * fit.GIB).items()}
    trained = 6000 * 2248
    assert trained / seconds["update"] == pytest.approx(rates["update"], rel=0.1)
    assert trained / 2 / seconds["scoring"] == pytest.approx(rates["scoring"], rel=0.1)
    six = dataclasses.replace(cfg, engine="hf", sample_batch=6)
    sampled = 12_000 * 2048 / (3600 * fit.hours(six, shape, fit.CARDS["H200"], 24 * fit.GIB)["sampling"])
    assert sampled == pytest.approx(rates["sampling"], rel=0.1)
    # vLLM sampled 512 tokens behind prompts of 128, 48 at once: 384 tokens in the cache on average, here 200 + 184.
    short = dataclasses.replace(cfg, max_response_tokens=368)
    sampled = 12_000 * 184 / (3600 * fit.hours(short, shape, fit.CARDS["H200"], 24 * fit.GIB)["sampling"])
    assert sampled == pytest.approx(measured["vllm"]["tokens_per_second"]["sampling"], rel=0.1)


def test_the_operations_of_an_update_are_those_that_torch_counts(tmp_path):
    model = make_model(tmp_path, **(SHAPE | {"num_hidden_layers": 8}))
    for checkpointing in (False, True):
        policy = load(model, gradient_checkpointing=checkpointing, lora_rank=8)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            grpo.token_logprobs(policy, [[5] * 100], [[7] * 300]).sum().backward()
        parts = fit.update_flops(fit.architecture(model), policy.cfg, 100, 300)
        # The math kernel computes what the causal mask drops, too. (The first layer's input needs no gradient.)
        counted = sum(parts.values()) + parts["attention"]
        assert counter.get_total_flops() == pytest.approx(counted, rel=0.05)
        assert min(parts.values()) > 0.02 * counted  # so that an error in any of them would show


# ----------------------------------------------------- lab/scale_costs.py: the arithmetic of docs/scale.md, many GPUs


def test_the_page_on_scale_shows_what_the_script_prints(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(ROOT)])
    runpy.run_path(str(ROOT / "lab" / "scale_costs.py"), run_name="__main__")
    assert sys.path[0] == str(ROOT), "started from anywhere, it finds the repository's modules"
    printed = capsys.readouterr().out
    assert printed.count("\n") > 10
    assert f"```\n{printed}```" in (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


def test_more_gpus_shorten_what_is_divided_and_not_the_longest_response():
    costs = scale_costs.Costs()
    one, eight, many = (scale_costs.hours(costs, gpus) for gpus in (1, 8, 10**6))
    assert eight["training"] == pytest.approx(one["training"] / 8)
    assert eight["sampling"] > one["sampling"] / 8
    alone = costs.batches * costs.longest_response * scale_costs.decoding(costs, 1) / 3600
    assert many["sampling"] == pytest.approx(alone)


def test_the_caches_that_do_not_fit_wait_for_their_turn():
    costs = scale_costs.Costs()
    small = dataclasses.replace(costs, memory_for_cache=costs.memory_for_cache / 4)
    assert scale_costs.sampling(small, 768, 1) > scale_costs.sampling(costs, 768, 1)


def test_the_sizes_are_those_of_the_model():
    """Qwen3-4B's shapes, without its weights."""
    costs, lora = scale_costs.Costs(), LoraConfig(r=32, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(fit.KNOWN["Qwen/Qwen3-4B"]))
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(costs.parameters, rel=0.01)
        model = get_peft_model(model, lora)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == costs.adapter


# ----------------------------------------------------------------------- lab/gpu.py, where most of a card is missing

# A module that is None in sys.modules cannot be imported or found, as if it were not installed.
RUN = """
import gc, runpy, sys
gc.disable()  # the collector takes a third of such a start, and as much again when it looks at all that was imported
for name in {missing}:
    sys.modules[name] = None
import grpo
gc.freeze()
sys.argv = ["lab/gpu.py", "--smoke", *{arguments}]
runpy.run_path("lab/gpu.py", run_name="__main__")
"""
BEYOND_BARE = ("tyro", "gepa", "vllm", "bitsandbytes", "trl", "datasets", "math_verify", "pyarrow", "matplotlib")


def test_on_a_bare_machine_it_measures_what_it_can_and_names_what_is_missing(tmp_path):
    out = tmp_path / "gpu.json"
    code = RUN.format(missing=BEYOND_BARE, arguments=["--out", str(out)])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [found] = json.loads(out.read_text())
    assert [name for name, r in found.items() if isinstance(r, dict) and r.get("verdict") == "good"] == [
        "kernels", "gradient", "speed", "agreement", "agreement_bfloat16",
    ]  # fmt: skip
    assert "flash" in str(found["kernels"]["update"]) and found["gradient"]["cosine"]["float16"] > 0.999
    assert 0 < found["speed"]["share_of_peak"] < 1 and found["agreement"]["transformers"] < 0.005
    assert found["memory"]["why"] == "a card missing" and "gepa" in found["tiny_world"]["why"]
    assert "trl" in found["beside_trl"]["why"] and "vllm and bitsandbytes" in found["vllm"]["why"]
    assert found["versions"]["torch"] and found["card"] == "none" and found["date"]


def test_where_bitsandbytes_is_there_it_measures_four_bits_and_earlier_records_stay(tmp_path, monkeypatch):
    out = tmp_path / "gpu.json"
    out.write_text('[{"card": "another"}]')
    monkeypatch.setattr(sys, "argv", ["lab/gpu.py", "--smoke", "--only", "gradient", "--out", str(out)])
    code = gpu.main()
    another, found = json.loads(out.read_text())
    assert code == 0, found["gradient"]
    assert another == {"card": "another"}
    assert found["gradient"]["nf4"] and found["gradient"]["verdict"] == "good"


def test_measurements_in_a_process_of_their_own_come_one_by_one_and_one_that_dies_takes_no_other(tmp_path, monkeypatch):
    """As on a card."""
    shape = dataclasses.replace(gpu.fit.KNOWN["Qwen/Qwen3-0.6B"], layers=1, hidden=64, intermediate=64, vocabulary=2000)
    setup = gpu.Setup(shape, gpu.random_model(shape, tmp_path / "model"), 8, 32, True)
    kept = []
    gpu.in_a_process(["memory", "kernels"], setup, lambda *result: kept.append(result))
    assert [name for name, _ in kept] == ["memory", "kernels"] and kept[0][1]["verdict"] == "skipped"
    assert kept[1][1]["verdict"] == "good" and kept[1][1]["update"] == gpu.judged(gpu.kernels, setup)["update"]
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    dead = []
    gpu.in_a_process(["memory", "kernels"], setup, lambda *result: dead.append(result))
    assert [(name, record["why"]) for name, record in dead] == [("memory", "ended with 1"), ("kernels", "ended with 1")]


def test_a_shallow_copy_of_the_saved_model_is_its_first_layers(tmp_path):
    shape = dataclasses.replace(gpu.fit.KNOWN["Qwen/Qwen3-0.6B"], layers=3, hidden=64, intermediate=64, vocabulary=2000)
    setup = gpu.Setup(shape, gpu.random_model(shape, tmp_path / "model"), 8, 32, True)
    one, three = (s.policy(load_in_4bit=False).model.get_base_model() for s in (gpu.shallow(setup, 1), setup))
    assert len(one.model.layers) == 1 and len(three.model.layers) == 3
    weights = three.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in one.state_dict().items() if "lora" not in name)


def test_compilation_pays_from_where_faster_tokens_have_made_up_for_the_start():
    def figures(start, rate):
        return {"start_seconds": start, "tokens_per_second": {"sampling": rate}}

    assert gpu.compilation_pays_from(figures(90, 2000), figures(30, 1000)) == pytest.approx(120_000)  # 60 s each
    assert gpu.compilation_pays_from(figures(20, 2000), figures(30, 1000)) == 0
    assert gpu.compilation_pays_from(figures(90, 1000), figures(30, 1000)) is None
    assert gpu.compilation_pays_from({"verdict": "FAILED"}, figures(30, 1000)) is None


@pytest.mark.parametrize("figure, verdict", [(0.5, "NOT GOOD"), (2.0, "good")])
def test_a_bad_figure_is_judged_and_an_error_in_one_measurement_is_kept_from_the_others(figure, verdict):
    assert gpu.judged(lambda setup: ({"figure": figure}, figure > 1), None)["verdict"] == verdict

    def broken(setup):
        raise RuntimeError("no such kernel")

    assert gpu.judged(broken, None)["why"] == "RuntimeError: no such kernel"
