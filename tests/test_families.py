"""Family after family of models, as users bring them: right to 1e-4, or refused in one line.

    make test-families                   # all of them; `make test` takes the quick ones
    python tests/test_families.py        # writes the table in docs/models.md anew

Each is a small random model of that architecture, made here. What counts as right is transformers' and peft's own
word: one sequence at a time, without padding, without a cache, eager attention, float32.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import re
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_grpo import noise_adapter
from test_real_models import edit_json, make_tokenizer
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

import grpo
import p2o
from support import fast, pretrained, proofs
from support.errors import UserError

VOCABULARY, TEMPERATURE = 320, 0.8
# Under the names that the configs of most families have; a family takes those that it knows.
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    # Mixtures of experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1,
    # Windows, latent attention, linear attention
    "sliding_window": 8, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16,
    "v_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    # State spaces
    "state_size": 8, "time_step_rank": 8, "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 32,
    "mamba_n_groups": 1, "mamba_dt_rank": 8, "mamba_num_heads": 4, "mamba_head_dim": 32, "ssm_state_size": 8,
    # Older names
    "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "n_inner": 96, "ffn_dim": 96, "d_model": 64,
    "word_embed_proj_dim": 64, "rotary_dim": 8, "num_layers": 2, "num_heads": 4, "attention_heads": 4,
    "n_layers": 2, "n_heads": 4, "max_seq_len": 512, "d_ff": 96, "d_kv": 16,
    "decoder_layers": 2, "encoder_layers": 2, "decoder_attention_heads": 4, "encoder_attention_heads": 4,
    "decoder_ffn_dim": 96, "encoder_ffn_dim": 96,
}  # fmt: skip


def config_of(family, **extra):
    known = CONFIG_MAPPING[family]
    names = {field.name for field in dataclasses.fields(known)} | set(known.attribute_map)
    return known(**({name: value for name, value in SMALL.items() if name in names} | extra))


def make_family(folder, family, extra):
    """Weights so large that an error shows: log-probs spread over a nat, caps and scales are felt."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family, **extra), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2 and parameter.std() < 0.05:
                parameter.mul_(5)
    model.generation_config.update(eos_token_id=2)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@dataclasses.dataclass(frozen=True)
class Family:
    """A row of the table."""

    kind: str  # model_type in config.json
    known_as: str  # models that people know
    extra: dict = dataclasses.field(default_factory=dict)  # of its config
    refused: str = ""  # what the one line says; empty where it is right
    quick: bool = False  # in `make test`; all are in CI


MIXED = {"layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
PER_LAYER = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 16}  # embeddings of its own
LATENT = {"num_key_value_heads": 4}  # of multi-head latent attention: keys and values come from one compressed state
# What the line says
DISAGREE, OWN_WAY = "sampler and trainer disagree", "does not work with"
LOST = "a checkpoint would not be the policy"
AHEAD, TWO_PARTS = "reads tokens that come later", "an encoder and a decoder"
REASONS = {
    DISAGREE: "its recurrent state is not in the cache that the sampler hands over",
    OWN_WAY: "it takes a cache of its own kind only",
    LOST: "peft saves an adapter of it under names that it does not find again",
    AHEAD: "it reads tokens that come later",
    TWO_PARTS: "an encoder and a decoder",
}
FAMILIES = [
    Family("llama", "Llama 2 and 3, SmolLM2, Yi, TinyLlama", quick=True),
    Family("qwen2", "Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen"),
    Family("qwen3", "Qwen3"),
    Family("qwen3_moe", "Qwen3-30B-A3B"),
    Family("qwen2_moe", "Qwen1.5-MoE, Qwen2-57B-A14B"),
    Family("qwen3_next", "Qwen3-Next", LINEAR, quick=True),
    Family("qwen3_5_text", "Qwen3.5, text", LINEAR),
    Family("qwen3_5_moe_text", "Qwen3.5-35B-A3B, text", LINEAR),
    Family("mistral", "Mistral 7B", quick=True),
    Family("ministral", "Ministral"),
    Family("ministral3", "Ministral 3"),
    Family("mixtral", "Mixtral", quick=True),
    Family("gemma", "Gemma"),
    Family("gemma2", "Gemma 2", {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0}, quick=True),
    Family("gemma3_text", "Gemma 3 1B, 270M", MIXED),
    Family("gemma3", "Gemma 3 4B and up, with its vision tower", {
        "text_config": SMALL | MIXED | {"model_type": "gemma3_text"},
        "vision_config": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                          "image_size": 28, "patch_size": 14}}, quick=True),
    Family("gemma3n_text", "Gemma 3n, text", {
        "num_hidden_layers": 4, "layer_types": MIXED["layer_types"] * 2, "num_kv_shared_layers": 2, "laurel_rank": 8,
        "activation_sparsity_pattern": [0.0] * 4} | PER_LAYER),
    Family("gemma4_text", "Gemma 4, text", PER_LAYER),
    Family("phi", "Phi-1, Phi-2", {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attention_dropout": 0.1}),
    Family("phi3", "Phi-3, Phi-4", {"resid_pdrop": 0.1, "sliding_window": None}),
    Family("phimoe", "Phi-3.5-MoE", quick=True),
    Family("gpt2", "GPT-2, DistilGPT-2", quick=True),
    Family("gpt_neo", "GPT-Neo", {"attention_types": [[["global", "local"], 1]], "resid_dropout": 0.1}),
    Family("gpt_neox", "Pythia, GPT-NeoX", {"hidden_dropout": 0.1}),
    Family("gptj", "GPT-J", {"resid_pdrop": 0.1}),
    Family("gpt_bigcode", "StarCoder"),
    Family("gpt_oss", "gpt-oss"),
    Family("opt", "OPT", quick=True),
    Family("bloom", "BLOOM", {"hidden_dropout": 0.1, "attention_dropout": 0.1}),
    Family("falcon", "Falcon", {"hidden_dropout": 0.1}),
    Family("falcon_h1", "Falcon-H1", {"mamba_d_ssm": 128, "mamba_chunk_size": 8}, quick=True),
    Family("mpt", "MPT"),
    Family("llama4_text", "Llama 4, text", {"attention_chunk_size": 8}, quick=True),
    Family("deepseek_v2", "DeepSeek-V2-Lite", LATENT),
    Family("deepseek_v3", "DeepSeek-V3, R1, Moonlight", LATENT),
    Family("glm", "GLM-4 9B"),
    Family("glm4", "GLM-4-0414"),
    Family("glm4_moe", "GLM-4.5"),
    Family("glm4_moe_lite", "GLM-4.7-Flash", LATENT),
    Family("granite", "Granite 3", {"logits_scaling": 2.0, "embedding_multiplier": 4.0}, quick=True),
    Family("granitemoe", "Granite 3 MoE", {"logits_scaling": 8.0}),
    Family("granitemoehybrid", "Granite 4", {"layer_types": ["mamba", "attention"], "logits_scaling": 8.0}),
    Family("cohere", "Command R, Aya", {"logit_scale": 0.25}, quick=True),
    Family("cohere2", "Command R7B, Aya Expanse", {"logit_scale": 0.25}),
    Family("olmo", "OLMo"),
    Family("olmo2", "OLMo 2"),
    Family("olmo3", "OLMo 3", MIXED),
    Family("olmoe", "OLMoE"),
    Family("smollm3", "SmolLM3"),
    Family("stablelm", "StableLM"),
    Family("starcoder2", "StarCoder2"),
    Family("nemotron", "Nemotron, Minitron"),
    Family("nemotron_h", "Nemotron-H, Nemotron Nano 2", {"n_groups": 1, "chunk_size": 8}),
    Family("exaone4", "EXAONE 4"),
    Family("ernie4_5", "ERNIE 4.5 0.3B"),
    Family("ernie4_5_moe", "ERNIE 4.5 21B-A3B", {"moe_num_experts": 4, "moe_k": 2}),
    Family("hunyuan_v1_dense", "Hunyuan dense"),
    Family("hunyuan_v1_moe", "Hunyuan MoE"),
    Family("hyperclovax", "HyperCLOVA X SEED", {"logits_scaling": 4.0}),
    Family("minicpm3", "MiniCPM3", LATENT | {"dim_model_base": 16}),
    Family("minimax_m2", "MiniMax-M2"),
    Family("lfm2", "LFM2", {"layer_types": ["conv", "full_attention"]}),
    Family("lfm2_moe", "LFM2-8B-A1B", {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    Family("jamba", "Jamba", {"attn_layer_period": 2, "attn_layer_offset": 1}),
    Family("bamba", "Bamba", {"attn_layer_indices": [1], "mamba_chunk_size": 8}),
    Family("seed_oss", "Seed-OSS"),
    Family("nanochat", "nanochat"),
    Family("vaultgemma", "VaultGemma"),
    Family("modernbert-decoder", "Ettin decoders", quick=True),
    Family("apertus", "Apertus"),
    Family("arcee", "AFM-4.5B"),
    Family("helium", "Helium"),
    Family("bitnet", "BitNet"),
    Family("xglm", "XGLM"),
    Family("biogpt", "BioGPT"),
    Family("codegen", "CodeGen"),
    Family("persimmon", "Persimmon"),
    Family("dots1", "dots.llm1"),
    Family("afmoe", "Trinity"),
    Family("cwm", "CWM"),
    Family("doge", "Doge"),
    Family("exaone_moe", "EXAONE MoE"),
    Family("flex_olmo", "FlexOlmo"),
    Family("mimo_v2_flash", "MiMo-V2-Flash"),
    Family("olmo_hybrid", "OLMo Hybrid"),
    Family("youtu", "Youtu-LLM", LATENT),
    Family("mamba", "Mamba", refused=DISAGREE, quick=True),
    Family("mamba2", "Mamba-2, Codestral Mamba", {"num_heads": 4, "head_dim": 32, "n_groups": 1}, refused=DISAGREE),
    Family("falcon_mamba", "Falcon Mamba", refused=DISAGREE),
    Family("recurrent_gemma", "RecurrentGemma", {"num_hidden_layers": 3, "attention_window_size": 8, "lru_width": 64},
           refused=DISAGREE, quick=True),
    Family("rwkv", "RWKV-4", {"attention_hidden_size": 64}, refused=DISAGREE),
    Family("minimax", "MiniMax-Text-01, M1", refused=OWN_WAY),
    Family("laguna", "Laguna", refused=LOST),
    Family("bert", "BERT and other masked models", refused=AHEAD, quick=True),
    Family("roberta", "RoBERTa", refused=AHEAD),
    Family("bart", "BART", refused=TWO_PARTS, quick=True),
    Family("t5", "T5, Flan-T5", refused=TWO_PARTS),
]  # fmt: skip
SETTINGS = {"temperature": TEMPERATURE, "max_prompt_tokens": 64, "max_response_tokens": 12, "lora_rank": 4}


def load(folder, **settings):
    return grpo.load_policy(grpo.PolicyConfig(model=folder, **(SETTINGS | settings)))


def some_contexts():
    """Of unequal lengths, some of them more than once."""
    generator = torch.Generator().manual_seed(3)
    short, long, middle = (torch.randint(3, 300, (n,), generator=generator).tolist() for n in (5, 17, 9))
    return [short, long, short, middle, long, middle]


class Reference:
    """transformers and peft alone: eager attention, float32, one sequence at a time, no padding and no cache."""

    def __init__(self, folder, policy, tmp_path, quantization=None):
        from peft import PeftModel

        policy.model.save_pretrained(tmp_path / "adapter")
        base = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32, quantization_config=quantization
        )
        for module in base.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False  # its kernel rounds to 16 bits; the reference is not to
        self.model = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True).eval()

    def logits(self, context, response):
        """[T, V], in front of each token of the response."""
        return self.model(input_ids=torch.tensor([context + response])).logits[0, len(context) - 1 : -1].float()

    def logprobs(self, contexts, responses):
        """[M] of all responses' tokens."""
        values = []
        for context, response in zip(contexts, responses, strict=True):
            logprobs = (self.logits(context, response) / TEMPERATURE).log_softmax(dim=-1)
            values.append(logprobs.gather(1, torch.tensor(response)[:, None])[:, 0])
        return torch.cat(values)


def flat_gradient(model):
    named = sorted((name, p) for name, p in model.named_parameters() if p.requires_grad)
    gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for _, p in named])
    model.zero_grad()
    return gradient


def flat_weights(model):
    named = sorted((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return torch.cat([p.detach().flatten() for _, p in named])


def relative(one, other):
    return ((one - other).norm() / other.norm()).item()


def dense_to_flat(dense, responses):
    return torch.cat([row[: len(response)] for row, response in zip(dense, responses, strict=True)])


def check_family(folder, tmp_path, **settings):
    policy = noise_adapter(load(folder, **settings))
    reference = Reference(folder, policy, tmp_path)
    contexts = some_contexts()
    stop_ids, policy.stop_ids = policy.stop_ids, list(range(0, VOCABULARY, 9))  # rows end early
    samples = grpo.sample(policy, contexts, seed=0)
    responses = [s.response_ids for s in samples]
    assert len({len(response) for response in responses}) > 1

    # Sampler and trainer against the reference.
    expected = reference.logprobs(contexts, responses)
    sampled = torch.tensor(sum((s.sampled_logprobs for s in samples), []))
    assert expected.std() > 0.1, "so narrow a distribution would hide an error"
    assert (sampled - expected).abs().max() < 1e-4
    trained = dense_to_flat(grpo.token_logprobs(policy, contexts, responses), responses)
    assert (trained - expected).abs().max() < 1e-4

    # On a card, steps are recorded: with room for all tokens from the start, and a mask. A CPU can do that unrecorded.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "RECORDED_ON", {"cpu"})
        for one, other in zip(samples, grpo.sample(policy, contexts, seed=0), strict=True):
            assert one.response_ids == other.response_ids
            assert one.sampled_logprobs == pytest.approx(other.sampled_logprobs, abs=1e-4)

    # The gradient of a sum of log-probs with random weights.
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
    (expected * weights).sum().backward()
    (trained * weights).sum().backward()
    gradient = flat_gradient(reference.model)
    assert relative(flat_gradient(policy.model), gradient) < 1e-4

    # Greedy decoding takes the likeliest token, or one that is as likely.
    with torch.no_grad():
        for context, greedy in zip(contexts, grpo.sample(policy, contexts, seed=None), strict=True):
            logits = reference.logits(context, greedy.response_ids)
            taken = logits.gather(1, torch.tensor(greedy.response_ids)[:, None])[:, 0]
            assert (logits.amax(dim=1) - taken).max() < 1e-4

    # One update: -A times the importance ratio, the mean over tokens, one step against the gradient.
    policy.stop_ids = stop_ids
    advantages = [1.0, -0.5, 0.0, 2.0, -1.5, 0.5]
    rollouts = [
        grpo.Rollout(question_id="q", sampled_context=context, trained_context=context, advantage=advantage, **vars(s))
        for context, s, advantage in zip(contexts, samples, advantages, strict=True)
    ]
    before = flat_weights(policy.model)
    metrics = grpo.update_policy(
        policy, torch.optim.SGD(policy.trainable, lr=0.1), rollouts, grpo.UpdateConfig(max_grad_norm=1e9)
    )
    assert metrics["grad_norm"] > 0
    expected = reference.logprobs(contexts, responses)
    per_token = torch.tensor([a for a, response in zip(advantages, responses, strict=True) for _ in response])
    (-per_token * (expected - expected.detach()).exp()).mean().backward()
    step = -0.1 * flat_gradient(reference.model)
    assert relative(flat_weights(policy.model) - before, step) < 1e-3  # differences of float32 weights


CASES = [pytest.param(f, id=f.kind, marks=[] if f.quick else [pytest.mark.families]) for f in FAMILIES]


PAGE = ROOT / "docs" / "models.md"
BEGIN = "<!-- the table: python tests/test_families.py -->"


def table():
    """The rows of docs/models.md."""
    rows = ["| `model_type` | models | here |", "|---|---|---|"]
    for family in sorted(FAMILIES, key=lambda family: (bool(family.refused), family.kind)):
        verdict = f"refused: {REASONS[family.refused]}" if family.refused else "right"
        rows.append(f"| `{family.kind}` | {family.known_as} | {verdict} |")
    return "\n".join(rows)


def test_the_table_in_the_docs_says_what_is_tested_here():
    assert PAGE.read_text().split(BEGIN)[1].strip() == table()


@pytest.mark.parametrize("family", CASES)
def test_a_family_is_right_or_refused_in_one_line(family, tmp_path):
    if family.refused == TWO_PARTS:  # refused by its config, and not every one of them can be made as a decoder
        folder = tmp_path / "base"
        config_of(family.kind).save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
    else:
        folder = make_family(tmp_path / "base", family.kind, family.extra)
    if family.refused:
        with pytest.raises(UserError, match=family.refused) as refusal:
            load(str(folder))
        assert "\n" not in str(refusal.value)
    else:
        check_family(folder, tmp_path)


# --------------------------------------------------------------------------------------------------- modes of training


def of_kind(kind):
    return next(family for family in FAMILIES if family.kind == kind)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "xglm", "seed_oss", "phi"])
def test_dropout_is_off_in_layers_that_are_recomputed(kind, tmp_path):
    """They run in training mode, for transformers recomputes in no other, and some of them drop out by themselves."""
    folder = make_family(tmp_path / "base", kind, of_kind(kind).extra)
    rates = [value for name, value in AutoConfig.from_pretrained(folder).to_dict().items() if "drop" in name]
    assert any(rates), "this family's config would show nothing"
    contexts, responses, gradients = some_contexts(), [[5, 6, 7]] * 6, []
    for checkpointing in (False, True):
        policy = noise_adapter(load(folder, gradient_checkpointing=checkpointing))
        grpo.token_logprobs(policy, contexts, responses).sum().backward()
        gradients.append(flat_gradient(policy.model))
    assert relative(*gradients) < 1e-5


@pytest.mark.families
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.kind)
def test_sixteen_bits_are_told_from_what_is_wrong(family, dtype, tmp_path):
    """As on a card: the rounding of every family that is right is accepted, and nothing else."""
    if family.refused == TWO_PARTS:
        pytest.skip("refused before it has any bits")
    folder = make_family(tmp_path / "base", family.kind, family.extra)
    with pytest.raises(UserError, match=family.refused) if family.refused else nullcontext():
        load(folder, dtype=dtype)


@pytest.mark.parametrize("kind", ["opt", "modernbert-decoder", "gemma2", "granite"])
def test_sixteen_bits_reach_every_part_of_a_model_and_its_head_is_float32(kind, tmp_path):
    """As on a card. OPT passes its body by, ModernBERT's decoder has layers behind it, the others scale or cap."""
    policy = load(make_family(tmp_path / "base", kind, of_kind(kind).extra), dtype="bfloat16")
    contexts = some_contexts()
    samples = grpo.sample(policy, contexts, seed=0)
    trained = grpo.logprobs_of(policy, contexts, [s.response_ids for s in samples])
    sampled = sum((s.sampled_logprobs for s in samples), [])
    assert (torch.tensor(sum(trained, [])) - torch.tensor(sampled)).abs().mean() < 0.02
    assert policy.head(torch.randn(3, 64, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("kind", ["gemma3n_text", "phimoe", "granite", "gpt2"])
def test_four_bits_train_what_transformers_and_peft_train_in_four_bits(kind, tmp_path):
    folder = make_family(tmp_path / "base", kind, of_kind(kind).extra)
    policy = noise_adapter(load(folder, load_in_4bit=True))
    reference = Reference(folder, policy, tmp_path, policy.model.config.quantization_config)
    contexts, responses = some_contexts(), [[5, 6, 7], [8], [9, 10], [11, 12, 13], [14], [15, 16]]
    trained = dense_to_flat(grpo.token_logprobs(policy, contexts, responses), responses)
    expected = reference.logprobs(contexts, responses)
    assert (trained - expected).abs().max() < 1e-4
    trained.sum().backward()
    expected.sum().backward()
    assert relative(flat_gradient(policy.model), flat_gradient(reference.model)) < 1e-4


def test_a_cap_is_seen_however_small_the_logits_are(tmp_path):
    """A cap of 30 changes a logit of 0.1 by 4e-7, and a run that is on its way to larger logits by more."""
    policy = load(make_family(tmp_path / "base", "gemma2", {"final_logit_softcapping": 30.0}))
    large = 1000 * torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    assert policy.head(large).abs().max() <= 30 < policy.model.get_output_embeddings()(large).abs().max()


def test_what_has_no_adapter_or_no_four_bits_is_said(tmp_path, capsys):
    """The share, and the largest first."""
    folder = make_family(tmp_path / "experts", "phimoe", {})
    capsys.readouterr()
    policy = load(folder, load_in_4bit=True)
    adapter, bits = capsys.readouterr().out.splitlines()
    experts = "model.layers.mlp.experts.gate_up_proj, model.layers.mlp.experts.down_proj, model.layers.mlp.router"
    assert adapter.startswith("the adapter is on ") and adapter.endswith(f"% of the layers' weights, not {experts}")
    assert bits.startswith("--load-in-4bit holds for ") and experts.split(", ")[0] in bits
    assert not any("router" in name for name, _ in policy.model.named_parameters() if "lora_" in name)
    load(make_family(tmp_path / "plain", "llama", {}), load_in_4bit=True)
    assert capsys.readouterr().out == ""


def test_a_vision_tower_has_no_adapter(tmp_path, capsys):
    policy = load(make_family(tmp_path / "base", "gemma3", of_kind("gemma3").extra))
    adapted = [name for name, _ in policy.model.named_parameters() if "lora_A" in name]
    assert len(adapted) == 14 and all("language_model" in name for name in adapted)
    assert "vision_tower" in capsys.readouterr().out


def test_no_adapter_is_on_a_layer_whose_weights_are_read_past_it(tmp_path):
    """Jamba calls `dt_proj` in 4 bits only: what an adapter on it learns there would be lost in full width."""
    policy = noise_adapter(load(make_family(tmp_path / "base", "jamba", of_kind("jamba").extra)))
    grpo.token_logprobs(policy, some_contexts(), [[5, 6, 7, 8]] * 6).sum().backward()
    assert all(parameter.grad.any() for parameter in policy.trainable)


def test_a_refused_model_leaves_nothing_behind(tmp_path, capsys):
    """One line, exit code 2, no folder."""
    folder = make_family(tmp_path / "base", "mamba", {})
    assert p2o.main(["--model", folder, "--runs", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("p2o: --model") and "differ by" in said and "\n" not in said
    assert not (tmp_path / "runs").exists()


def test_the_checks_leave_the_policy_and_every_generator_as_they_were(fresh_policy):
    with torch.no_grad():
        for weight in fresh_policy.trainable:
            weight.add_(0.01)  # or what its own loading had left in them would be what is left in them again
    before, weights = torch.get_rng_state(), flat_weights(fresh_policy.model)
    contexts = [grpo.chat_ids(fresh_policy, text) for text in pretrained.PROBES]
    prove = inspect.unwrap(proofs.prove)  # this model has been proved before
    prove(fresh_policy, contexts, grpo.sample, grpo.logprobs_of, longest=200)
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(flat_weights(fresh_policy.model), weights)


def test_a_model_that_does_not_look_at_padding_is_refused_however_short_prompts_may_be(tmp_path):
    """Prompts that are cut to the same length need no padding, and would say nothing of it."""
    folder = make_family(tmp_path / "base", "trocr", {})
    for most in (64, 8, 2):
        with pytest.raises(UserError, match=DISAGREE):
            load(folder, max_prompt_tokens=most)


def test_a_path_past_the_adapter_is_seen_although_a_fresh_one_adds_nothing(tmp_path):
    """As a fused kernel that reads a layer's weights, on one of the two paths."""
    policy = load(make_family(tmp_path / "base", "llama", {}))
    logprobs_of = partial(grpo.logprobs_of, adapter=False)
    with pytest.raises(UserError, match=DISAGREE):
        proofs.prove(policy, some_contexts()[:2], grpo.sample, logprobs_of, longest=76)


# ----------------------------------------------------------------------------------------------- files that are refused


@pytest.fixture
def model(tmp_path):
    return Path(make_family(tmp_path / "model", "qwen3", {}))


def refusal(folder, **settings):
    with pytest.raises(UserError) as error:
        load(str(folder), **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1071\n"


@pytest.mark.parametrize("broken", ["half of it", "a pointer", "nothing"])
def test_weights_that_cannot_be_read_are_refused(model, broken):
    file = model / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(
        {"half of it": content[: len(content) // 2], "a pointer": POINTER.encode(), "nothing": b""}[broken]
    )
    assert "its weights cannot be read" in refusal(model) and "git lfs pull" in refusal(model)


def test_a_folder_without_weights_is_refused(model):
    (model / "model.safetensors").unlink()
    assert "no file named model.safetensors" in refusal(model)


@pytest.mark.parametrize("how", ["missing", "another shape"])
def test_weights_that_would_be_random_are_refused(model, how):
    file = model / "model.safetensors"
    weights = load_file(file)
    for name in [name for name in weights if "layers.1.mlp" in name]:
        if how == "missing":
            del weights[name]
        else:
            weights[name] = weights[name][:3].clone()
    save_file(weights, file, metadata={"format": "pt"})
    assert "lack 3 weights" in refusal(model) and "model.layers.1.mlp.down_proj.weight" in refusal(model)


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_model_under_another_models_name_is_refused_for_the_biases_that_would_be_left_out(tmp_path):
    """A Qwen2 that says it is a Llama: transformers loads it without its biases, and only warns."""
    folder = Path(make_family(tmp_path, "qwen2", {}))
    edit_json(folder / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
    said = refusal(folder)
    assert "hold 6 weights for which LlamaForCausalLM has no place: model.layers.0.self_attn.k_proj.bias" in said


def test_quantized_weights_without_their_scales_are_refused(model):
    """As 8 bits of a kind that transformers does not know: it would take the numbers as they are."""

    def quantize(weights):
        for name in [name for name in weights if "down_proj" in name]:
            weights[name] = (weights[name] * 100).to(torch.float8_e4m3fn)
            weights[f"{name}_scale"] = torch.tensor(0.01)

    change_weights(model, quantize)
    edit_json(model / "config.json", quantization_config={"quant_method": "modelopt"})
    assert "hold 2 weights for which Qwen3ForCausalLM has no place: model.layers.0.mlp.down_proj.weight_scale" in (
        refusal(model)
    )


def test_an_adapter_that_was_not_merged_is_not_left_out(model):
    """Weights of LoRA among the model's own, as some trainers save them."""
    lora = {f"model.layers.0.mlp.up_proj.lora_{name}.weight": torch.ones(4, 64) for name in "AB"}
    change_weights(model, lambda weights: weights.update(lora))
    assert "hold 2 weights for which Qwen3ForCausalLM has no place: model.layers.0.mlp.up_proj.lora_A" in refusal(model)


@pytest.mark.parametrize(
    "file, change, said",
    [
        ("config.json", {"rope_scaling": {"type": "nonsense", "factor": 2.0}}, "transformers cannot load it"),
        ("config.json", {"rms_norm_eps": "1e-6"}, "its config.json cannot be used .*'rms_norm_eps': TypeError"),
        ("generation_config.json", {"eos_token_id": "2"}, "does not work with this code's"),
    ],
)
def test_settings_that_transformers_reads_and_cannot_follow_are_refused_in_one_line(model, file, change, said):
    edit_json(model / file, **change)
    assert re.search(said, refusal(model))


@pytest.mark.parametrize("encoding, text", [("utf-8", '{"eos_token_id": [2, '), ("utf-16", '{"eos_token_id": 7}')])
def test_a_generation_config_that_cannot_be_read_is_refused(model, encoding, text):
    """transformers says nothing, and a response would go on behind the end tokens that it names."""
    (model / "generation_config.json").write_text(text, encoding=encoding)
    assert "generation_config.json cannot be read (" in refusal(model)


def test_a_config_that_cannot_be_read_is_not_said_to_be_missing(model):
    (model / "config.json").write_text("{")
    assert "its config.json cannot be used (It looks like the config file" in refusal(model)


@pytest.mark.parametrize("scheme", ["dynamic", "static"])
def test_a_checkpoint_in_eight_bits_is_unpacked_with_its_scales(tmp_path, scheme):
    """FP8 as Qwen's (a scale for each block of 128) and Mistral's (one for each layer, and one for what goes in)."""
    folder = Path(make_family(tmp_path, "llama", {}))
    full = load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    scale = torch.full((1, 1) if scheme == "dynamic" else (), 1 / 256)

    def quantize(weights):
        for name in [name for name in weights if "proj" in name]:
            weights[name] = (weights[name] * 256).to(torch.float8_e4m3fn)
            weights[f"{name}_scale_inv"] = scale.clone()
            if scheme == "static":
                weights[name.replace("weight", "activation_scale")] = scale.clone()

    change_weights(folder, quantize)
    block = [128, 128] if scheme == "dynamic" else None
    said = {"quant_method": "fp8", "activation_scheme": scheme, "fmt": "e4m3", "weight_block_size": block}
    edit_json(folder / "config.json", quantization_config=said)
    up = load(str(folder)).model.get_base_model().model.layers[0].mlp.up_proj.base_layer
    assert 0 < (up.weight - full).abs().max() < full.abs().max() / 16  # three bits behind the point


@pytest.mark.parametrize("kind, said", [("mpt", "and it knows 70 positions: lower"), ("xlnet", AHEAD)])
def test_the_number_of_positions_has_other_names_too(kind, said, tmp_path):
    """Without it, a run would end at its first long response. XLNet's is -1, for there is no last one."""
    folder = make_family(tmp_path / kind, kind, {"max_seq_len": 70} if kind == "mpt" else {})
    assert said in refusal(folder)


def test_other_weights_that_have_no_place_are_told(model, capsys):
    """As a reward model's head, or more layers than the config has."""
    change_weights(model, lambda weights: weights.update({"score.weight": torch.ones(1, 64)}))
    edit_json(model / "config.json", num_hidden_layers=1, layer_types=None)
    load(str(model))
    assert "hold 12 weights for which Qwen3ForCausalLM has no place: model.layers.1." in capsys.readouterr().out


@pytest.mark.parametrize("value, said", [(math.nan, "logits are not numbers"), (0.0, "logits are all 0")])
def test_damaged_weights_are_refused(model, value, said):
    change_weights(model, lambda weights: [weight.fill_(value) for weight in weights.values()])
    assert said in refusal(model)


def test_quantized_weights_that_nothing_trains_through_are_refused(model):
    scales = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
    edit_json(model / "config.json", quantization_config=scales)
    names = [name for name in load_file(model / "model.safetensors") if "proj" in name]
    change_weights(model, lambda weights: weights.update({f"{name}_scale": torch.ones(1) for name in names}))
    assert "quantized (bitnet), and transformers cannot train through them" in refusal(model)


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_a_config_that_says_of_full_weights_that_they_are_quantized_is_refused(model, bits):
    """As after a merge that left it there: transformers makes layers for 4 bits, and fills them with full weights."""
    edit_json(model / "config.json", quantization_config={"quant_method": "bitsandbytes", bits: True})
    assert "says that its weights are quantized, and they are not; take quantization_config" in refusal(model)


def test_a_path_that_leads_to_no_model_is_refused_with_what_to_give_instead(model, tmp_path):
    """An adapter, a trainer's output whose checkpoints are the models, a file."""
    adapter, output = tmp_path / "adapter", tmp_path / "output"
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig()).save_pretrained(adapter)
    assert "that is an adapter; merge it into its base model" in refusal(adapter)
    for step in (500, 1000):
        shutil.copytree(model, output / f"checkpoint-{step}")
        os.utime(output / f"checkpoint-{step}" / "config.json", (step, step))
    assert refusal(output).endswith(f"holds no config.json; {output / 'checkpoint-1000'} has one")
    assert "that is a file; give a model's folder" in refusal(model / "model.safetensors")


def test_a_model_that_sees_and_has_no_class_for_texts_alone_is_refused(model):
    """transformers would list the hundred kinds of models that have one."""
    edit_json(model / "config.json", model_type="qwen2_5_vl")
    assert "qwen2_5_vl is no kind of model that AutoModelForCausalLM loads: it sees or hears" in refusal(model)


@pytest.mark.parametrize("saved", ["a whole model", "a wrapped model"])
def test_weights_of_torchs_own_format_that_are_no_plain_state_dict_are_refused(model, saved):
    """torch says what to do in bold letters, and another trainer's wrapper puts its name in front of every weight."""
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    wrapped = {f"_orig_mod.{name}": weight for name, weight in weights.items()}
    torch.save(torch.nn.Linear(2, 2) if saved == "a whole model" else wrapped, model / "pytorch_model.bin")
    said = refusal(model)
    assert "\x1b" not in said
    if saved == "a whole model":
        assert "its weights cannot be read" in said and "a whole model that torch.save pickled" in said
    else:
        assert f"what they hold instead begins with {min(wrapped)}. Is it" in said


def test_a_control_token_that_the_model_was_never_trained_on_is_told(model, capsys):
    """A chat template put beside a base model, whose embeddings of such tokens are still 0."""
    change_weights(model, lambda weights: weights["model.embed_tokens.weight"][1:3].zero_())
    load(str(model))
    assert "prompts hold <|im_start|>, <|im_end|>, of which its embeddings are 0" in capsys.readouterr().out


def test_a_checkpoint_in_four_bits_computes_in_the_dtype_that_is_asked_for(model, tmp_path):
    """It names one of its own, as those that unsloth publishes."""
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, quantization_config=four_bits)
    base.save_pretrained(tmp_path / "quantized")
    make_tokenizer().save_pretrained(tmp_path / "quantized")
    found, made = load(str(tmp_path / "quantized")), load(str(model), load_in_4bit=True)
    responses = [[5, 6, 7]] * 6
    for policy in (found, made):
        noise_adapter(policy)
    for adapter in (False, True):
        assert grpo.logprobs_of(found, some_contexts(), responses, adapter=adapter) == grpo.logprobs_of(
            made, some_contexts(), responses, adapter=adapter
        )


def test_an_output_layer_in_four_bits_is_refused(model, tmp_path):
    four_bits = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["none of them"])
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, quantization_config=four_bits)
    base.save_pretrained(tmp_path / "quantized")
    make_tokenizer().save_pretrained(tmp_path / "quantized")
    assert "the output layer of Qwen3ForCausalLM is quantized" in refusal(tmp_path / "quantized")


def test_a_layer_whose_kernel_has_no_backward_pass_is_refused(model, monkeypatch):
    """As bitsandbytes' for AVX512, and those for 8 bits: what comes out does not depend on what went in, says torch."""
    forward = torch.nn.Linear.forward

    def kernel(layer, inputs):
        out = forward(layer, inputs)
        return out.detach() if layer.out_features == 96 else out

    monkeypatch.setattr(torch.nn.Linear, "forward", kernel)
    said = refusal(model)
    assert "4 of its layers" in said and "mlp.gate_proj first, compute in a way that has no backward pass" in said


def test_a_tokenizer_with_more_tokens_than_the_model_is_text_where_it_can_be_and_else_refused(model):
    """An index error on a CPU. On a card, an assertion that ends the process, at the first question with that token."""
    rows = load_file(model / "model.safetensors")["model.embed_tokens.weight"].shape[0]
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<extra{i}>" for i in range(rows - len(tokenizer) + 1)])
    tokenizer.save_pretrained(model)
    policy, name = load(str(model)), f"<extra{rows - len(make_tokenizer())}>"
    assert policy.tokenizer.convert_tokens_to_ids(name) == rows
    ids = grpo.chat_ids(policy, f"7 {name} 9?")
    assert max(ids) < rows and name in policy.tokenizer.decode(ids)
    tokenizer.chat_template = name + tokenizer.chat_template
    tokenizer.save_pretrained(model)
    assert f"a prompt holds '{name}' (token {rows}), and the model has embeddings for {rows} tokens" in refusal(model)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "gpt2"])
def test_what_a_trainer_has_left_in_the_config_changes_nothing(kind, tmp_path):
    """Outputs as a tuple, no cache, a loss for routers, attention's weights: many a fine-tuned model has them."""
    folder = Path(make_family(tmp_path, kind, of_kind(kind).extra))
    plain = load(str(folder))
    left = {"return_dict": False, "use_cache": False, "output_attentions": True, "output_hidden_states": True}
    edit_json(folder / "config.json", **left | ({} if kind == "gpt2" else {"output_router_logits": True}))
    assert grpo.sample(load(str(folder)), some_contexts(), seed=0) == grpo.sample(plain, some_contexts(), seed=0)


@pytest.mark.parametrize("kernel", ["flash_attention_2", "eager", "nonsense"])
def test_the_makers_kernels_are_not_asked_for(tmp_path, kernel):
    """They may not be installed here, or take memory quadratic in the length."""
    folder = Path(make_family(tmp_path, "mixtral", {}))
    usual = load(str(folder)).model.config
    edit_json(folder / "config.json", attn_implementation=kernel, experts_implementation=kernel)
    found = load(str(folder)).model.config
    assert found._attn_implementation == usual._attn_implementation == "sdpa"
    assert found._experts_implementation == usual._experts_implementation != "eager"


@pytest.mark.parametrize(
    "left",
    [
        {"sliding_window": 8},
        {"attention_chunk_size": 8},
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ],
)
def test_a_window_that_another_architecture_left_in_the_config_is_not_the_caches(left, tmp_path):
    """As in a Mistral model that was renamed to Llama. The cache would drop tokens, or its mask would not fit."""
    folder = Path(make_family(tmp_path / "base", "llama", {}))
    edit_json(folder / "config.json", **left)
    check_family(str(folder), tmp_path)


def test_a_window_through_which_a_model_looks_stays_the_caches(tmp_path):
    for kind in ("mistral", "gemma2", "llama4_text"):
        policy = load(make_family(tmp_path / kind, kind, of_kind(kind).extra))
        assert any(fast.roomy_cache(policy.model.config).is_sliding)


@pytest.mark.parametrize("per_layer_type", [False, True])
def test_longrope_is_refused_beyond_its_original_context(tmp_path, per_layer_type):
    """There a sequence's log-probs depend on how long the others in its batch are."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [3.0] * 8,
            "original_max_position_embeddings": 64, "partial_rotary_factor": 1.0}  # fmt: skip
    rope = {"full_attention": rope, "sliding_attention": {"rope_type": "default"}} if per_layer_type else rope
    own = (
        {} if per_layer_type else {"original_max_position_embeddings": 64, "sliding_window": None}
    )  # Phi-3's name for it
    config = config_of("gemma3_text" if per_layer_type else "phi3", rope_parameters=rope, **own)
    config.save_pretrained(tmp_path / "beyond")
    make_tokenizer().save_pretrained(tmp_path / "beyond")
    assert "76 tokens of prompt and response are beyond its original context of 64" in refusal(tmp_path / "beyond")
    if not per_layer_type:
        within = make_family(tmp_path / "within", "phi3", own | {"rope_parameters": rope})
        check_family(within, tmp_path, max_prompt_tokens=52)


if __name__ == "__main__":
    PAGE.write_text(f"{PAGE.read_text().split(BEGIN)[0]}{BEGIN}\n\n{table()}\n")
