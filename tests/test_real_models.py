"""The loading and training path of Qwen3 and its kin, for real, on small random models made on the spot: 4 bits through
bitsandbytes (which runs on a CPU), LoRA, gradient checkpointing, chat templates, the memory of a large vocabulary."""

import dataclasses
import json
import math
import os
import runpy
import shutil
import sys
import tempfile
import weakref
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, OFTConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_grpo import noise_adapter
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BloomConfig,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.models.auto import tokenization_auto

import gepa_loop
import grpo
import p2o
from support import checkpoint, fast, memory, pretrained, vllm_engine
from support.errors import UserError
from support.fast import RoomyLayer, roomy_cache
from support.log import read_lines
from support.memory import adamw, longest_sequence
from support.messages import encode_chat, shortened
from support.vllm_engine import VllmEngine

CONFIGS = {"qwen3": Qwen3Config, "qwen2": Qwen2Config, "llama": LlamaConfig, "gemma3": Gemma3TextConfig}
# Qwen3's habit in two lines: an empty thought is put into the prompt when thinking is switched off.
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def make_tokenizer(chat_template=CHAT_TEMPLATE):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(
        ["What is 2 + 2? The answer is \\boxed{4}."],
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = chat_template
    return fast


def make_model(folder, family="qwen3", chat_template=CHAT_TEMPLATE, **sizes):
    """A random model with tokenizer, saved like one from the hub; its generation config samples with top-k."""

    shape = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "eos_token_id": 2}
    torch.manual_seed(0)
    extra = {"head_dim": 32} if family == "qwen3" else {}
    model = AutoModelForCausalLM.from_config(CONFIGS[family](**(shape | extra | sizes)))
    model.generation_config.update(eos_token_id=[2, 0], do_sample=True, top_k=1, repetition_penalty=9.0)
    model.save_pretrained(folder)
    make_tokenizer(chat_template).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("qwen3"))


def load(model, adapter=None, **settings):
    defaults = {"temperature": 0.6, "max_prompt_tokens": 64, "max_response_tokens": 12, "lora_rank": 4, "lora_alpha": 8}
    return grpo.load_policy(grpo.PolicyConfig(model=model, **(defaults | settings)), adapter=adapter)


def rollouts(policy, count=6):
    """Sampled responses, the first half of them rewarded."""
    context = grpo.chat_ids(policy, "What is 2 + 2?")
    samples = grpo.sample(policy, [context] * count, seed=0)
    old = grpo.logprobs_of(policy, [context] * count, [s.response_ids for s in samples])
    rewards = [float(i < count // 2) for i in range(count)]
    advantages = grpo.group_advantages(torch.tensor(rewards), count).tolist()
    return [
        grpo.Rollout(
            **vars(s),
            question_id="q",
            sampled_context=context,
            trained_context=context,
            reward=reward,
            advantage=a,
            old_logprobs=o,
        )
        for s, reward, a, o in zip(samples, rewards, advantages, old, strict=True)
    ]


def gradients(policy):
    """The adapter's gradients of one response's log-prob, the adapter having been moved off zero."""
    noise_adapter(policy)
    policy.model.train()
    grpo.token_logprobs(policy, [[5, 6, 7]], [[8, 9, 10, 11]]).sum().backward()
    found = {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.requires_grad}
    policy.model.zero_grad()
    return found


def same_gradients(found, expected):
    """Each parameter's, by the norm of the difference: single entries may have no digits but rounding's."""
    return all((found[name] - expected[name]).norm() <= 1e-5 * expected[name].norm() for name in expected)


@pytest.mark.parametrize("family", CONFIGS)
def test_four_bits_load_sample_train_save_reload_generate(family, tmp_path):
    model = make_model(tmp_path / "base", family)
    policy = load(model, load_in_4bit=True, gradient_checkpointing=True)
    kinds = {n.rpartition(".")[2]: type(m.base_layer).__name__ for n, m in policy.model.named_modules()
             if hasattr(m, "base_layer")}  # fmt: skip
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert kinds == dict.fromkeys(linear, "Linear4bit")  # every linear layer is quantized and has an adapter
    told = policy.model.config.quantization_config
    assert told.bnb_4bit_quant_type == "nf4" and told.bnb_4bit_use_double_quant
    assert policy.stop_ids == [0, 2]  # the generation config's list and the tokenizer's
    batch = rollouts(policy)
    for r in batch:  # 4 bits or not: sampler and trainer agree, so nothing of top_k or penalties was used
        assert r.old_logprobs == pytest.approx(r.sampled_logprobs, abs=1e-4)
    optimizer = torch.optim.AdamW([p for p in policy.model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        metrics = grpo.update_policy(policy, optimizer, batch, grpo.UpdateConfig())
        assert metrics["grad_norm"] > 0
    args = [r.trained_context for r in batch], [r.response_ids for r in batch]
    trained = grpo.logprobs_of(policy, *args)
    gains = [sum(new) - sum(r.old_logprobs) for new, r in zip(trained, batch, strict=True)]
    assert sum(gains[:3]) > sum(gains[3:])  # rewarded responses have become likelier than the others

    policy.model.save_pretrained(tmp_path / "adapter")
    again = load(model, load_in_4bit=True, adapter=str(tmp_path / "adapter"))
    for row, other in zip(trained, grpo.logprobs_of(again, *args), strict=True):
        assert row == pytest.approx(other, abs=1e-4)
    prompts = [batch[0].trained_context]
    greedy = [grpo.sample(p, prompts, seed=None)[0].response_ids for p in (policy, again)]
    assert greedy[0] == greedy[1] and all(any(p.requires_grad for p in q.model.parameters()) for q in (policy, again))


def test_sampling_first_does_not_change_the_gradients_in_four_bits(qwen3):
    """bitsandbytes on a CPU repacks weights in the first pass without gradients, and loses the way back."""
    fresh, used = load(qwen3, load_in_4bit=True), load(qwen3, load_in_4bit=True)
    grpo.sample(used, [[5, 6, 7]], seed=0)
    before, after = gradients(fresh), gradients(used)
    assert same_gradients(after, before)
    assert all(g.norm() > 0 for g in before.values())


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_attention_is_16_bit_and_causal_without_a_mask_and_the_head_float32(
    tmp_path, monkeypatch, four_bit, tied, dtype
):
    """What flash attention takes, in the first pass and in the checkpoints' second; everything else would be O(L^2)."""
    model = make_model(tmp_path, tie_word_embeddings=tied)
    policy = load(model, dtype=dtype, load_in_4bit=four_bit, gradient_checkpointing=True)
    attention, calls, heads = torch.nn.functional.scaled_dot_product_attention, [], []

    def watched(query, key, value, **how):
        calls.append((query.dtype, key.dtype, value.dtype, how["attn_mask"], how["is_causal"]))
        return attention(query, key, value, **how)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    head = policy.model.get_base_model().get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, logits: heads.append((inputs[0].dtype, logits.dtype)))
    found = gradients(policy)
    sixteen = getattr(torch, dtype)
    assert len(calls) == 4 and set(calls) == {(sixteen,) * 3 + (None, True)}  # two layers, twice
    grpo.sample(policy, [[5, 6], [5, 6, 7]], seed=0)  # a batch of unequal prompts needs a mask; its dtypes are the same
    assert {call[:3] for call in calls} == {(sixteen,) * 3}
    assert set(heads) == {(torch.float32, torch.float32)}
    assert {t.dtype for t in [*policy.trainable, *found.values()]} == {torch.float32}


def cosine(some, others):
    one, other = (torch.cat([g[name].flatten().double() for name in sorted(some)]) for g in (some, others))
    return torch.cosine_similarity(one, other, dim=0).item()


@pytest.mark.parametrize("four_bit", [False, True])
def test_16_bit_gradients_point_where_float32_gradients_point(tmp_path, four_bit):
    """And sampler and trainer agree, in float16 five times as closely. The 4-bit reference has the same weights."""
    model = make_model(tmp_path, hidden_size=128, intermediate_size=256, num_hidden_layers=4)
    exact, gaps = gradients(load(model, load_in_4bit=four_bit)), {}
    for dtype, least in (("bfloat16", 0.99), ("float16", 0.999)):
        policy = load(model, dtype=dtype, load_in_4bit=four_bit)
        rounded = gradients(policy)
        assert not torch.equal(exact[min(exact)], rounded[min(exact)])  # it is not the same computation
        assert cosine(exact, rounded) >= least
        gaps[dtype] = grpo.mismatch(policy, rollouts(policy))[0]
    assert gaps["bfloat16"] < 0.02 and gaps["float16"] < gaps["bfloat16"] / 5


def test_float16_gradients_need_the_loss_scale_and_an_update_takes_it_out(tmp_path, monkeypatch):
    """As in an update of a hundred thousand tokens: each one's share of the loss, and of the gradient, is small."""
    model = make_model(tmp_path)
    updates, share = {}, 1e-5
    plain = grpo.loss_of

    def small(*args):
        loss, metrics = plain(*args)
        return loss * share, metrics

    monkeypatch.setattr(grpo, "loss_of", small)
    for name in ("float32", "float16", "float16 without a scale"):
        policy = load(model, dtype=name.split()[0])
        gradients(policy)  # moves the adapter off zero
        optimizer = adamw(policy.trainable, 1e-3)
        if "without" in name:
            optimizer.param_groups[0]["loss_scale"] = 1.0
        with monkeypatch.context() as patch:
            patch.setattr(optimizer, "step", lambda: None)
            patch.setattr(optimizer, "zero_grad", lambda set_to_none: None)  # so that the gradient can be seen
            policy.model.zero_grad()
            metrics = grpo.update_policy(policy, optimizer, same_rollouts(policy), grpo.UpdateConfig(max_grad_norm=1e9))
        updates[name] = {n: p.grad for n, p in policy.model.named_parameters() if p.requires_grad}
        assert metrics["skipped"] == 0
    assert cosine(updates["float32"], updates["float16"]) >= 0.999
    lengths = [torch.cat([g.flatten() for g in updates[name].values()]).norm().item() for name in updates]
    assert lengths[1] == pytest.approx(lengths[0], rel=0.01)  # so max_grad_norm means the same
    assert cosine(updates["float32"], updates["float16 without a scale"]) < 0.99


def same_rollouts(policy):
    """The same ones whatever the policy draws; old log-probs as the policy's own pass finds them."""
    context = grpo.chat_ids(policy, "What is 2 + 2?")
    return [
        grpo.Rollout(
            response_ids=[8, 9, 10 + i], sampled_logprobs=[-5.0] * 3, truncated=False, text="", question_id="q",
            sampled_context=context, trained_context=context, advantage=(-1.0) ** i,
        )
        for i in range(6)
    ]  # fmt: skip


def test_an_overflow_halves_the_scale_leaves_the_update_out_and_a_resumed_run_keeps_the_scale(tmp_path, capsys):
    policy = load(make_model(tmp_path / "base"), dtype="float16")
    optimizer = adamw(policy.trainable, 1e-3)
    optimizer.param_groups[0]["loss_scale"] = 2.0**40  # far too much
    for state in optimizer.state.values():  # as after a step
        state["exp_avg"].fill_(0.1)
        state["exp_avg_sq"].fill_(0.1)
    before = {n: p.clone() for n, p in policy.model.named_parameters() if p.requires_grad}
    metrics = grpo.update_policy(policy, optimizer, same_rollouts(policy), grpo.UpdateConfig())
    assert metrics["skipped"] == 1 and optimizer.param_groups[0]["loss_scale"] == 2.0**39
    assert all(torch.equal(p, before[n]) for n, p in policy.model.named_parameters() if p.requires_grad)
    for state in optimizer.state.values():
        assert state["step"] == 0 and all(state[name].eq(0.1).all() for name in ("exp_avg", "exp_avg_sq"))
    assert "overflowed float16" in capsys.readouterr().out
    checkpoint.save_optimizer(optimizer, tmp_path / "optimizer.safetensors")
    resumed = adamw(policy.trainable, 1e-3)
    checkpoint.load_optimizer(resumed, tmp_path / "optimizer.safetensors")
    assert resumed.param_groups[0]["loss_scale"] == 2.0**39
    for _ in range(40):
        metrics = grpo.update_policy(policy, resumed, same_rollouts(policy), grpo.UpdateConfig())
    scale = resumed.param_groups[0]["loss_scale"]
    assert metrics["skipped"] == 0 and 1 < scale < 2.0**39
    assert any(not torch.equal(p, before[n]) for n, p in policy.model.named_parameters() if p.requires_grad)


def test_a_loss_that_is_no_number_skips_the_update_and_leaves_the_scale(tmp_path, monkeypatch):
    """An activation that overflowed on the way forward would halve it for nothing, and it never grows."""
    policy = load(make_model(tmp_path), dtype="float16")
    optimizer, plain = adamw(policy.trainable, 1e-3), grpo.loss_of

    def overflowed(*args):
        loss, metrics = plain(*args)
        return loss * math.nan, metrics

    monkeypatch.setattr(grpo, "loss_of", overflowed)
    assert grpo.update_policy(policy, optimizer, same_rollouts(policy), grpo.UpdateConfig())["skipped"] == 1
    assert optimizer.param_groups[0]["loss_scale"] == 2.0**16


def test_a_model_whose_activations_overflow_float16_is_refused(tmp_path):
    model = make_model(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in weights:
        if "down_proj" in name or "up_proj" in name:
            weights[name] *= 1e4
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load(model, dtype="bfloat16")
    with pytest.raises(UserError, match="activations overflow float16; take --dtype bfloat16"):
        load(model, dtype="float16")


def test_a_card_computes_in_bfloat16_or_else_in_float16(monkeypatch):
    assert pretrained.compute_dtype() == torch.float32  # a CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    for capability, dtype in [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        assert pretrained.compute_dtype() == dtype
        assert pretrained.compute_dtype("float32") == torch.float32
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(UserError, match="--dtype bfloat16: Tesla T4 has none"):
        pretrained.compute_dtype("bfloat16")


@pytest.mark.parametrize("four_bit", [False, True])
def test_gradient_checkpointing_changes_memory_and_nothing_else(qwen3, four_bit):
    plain = load(qwen3, load_in_4bit=four_bit)
    frugal = load(qwen3, load_in_4bit=four_bit, gradient_checkpointing=True)

    def saved(policy):
        """Floats that the forward pass keeps for the backward pass."""
        sizes = []
        policy.model.train()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            grpo.token_logprobs(policy, [[5] * 30], [[8] * 30])
        return sum(sizes)

    a, b = gradients(plain), gradients(frugal)
    assert same_gradients(b, a)
    assert saved(frugal) < saved(plain) / 4


def test_a_card_takes_the_whole_model_in_its_16_bits(monkeypatch):
    asked = {}

    def from_pretrained(model, **how):
        asked.update(how, model=model)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", from_pretrained)
    with pytest.raises(KeyboardInterrupt):
        pretrained.load_base("some/model", None, None, False, pretrained.compute_dtype())
    assert asked == {
        "model": "some/model", "config": None, "device_map": {"": 0}, "dtype": torch.bfloat16,
        "quantization_config": None, "output_loading_info": True, "ignore_mismatched_sizes": True,
    }  # fmt: skip


def test_a_large_vocabulary_is_never_held_for_all_tokens(tmp_path, monkeypatch):
    """[B, T, V] does not exist: not as the head's output, not among what backward keeps, and nothing changes by it."""
    policy = load(make_model(tmp_path, vocab_size=20_000))
    contexts, responses = [[5, 6]] * 3, [[7] * 40, [8] * 40, [9] * 40]
    whole = grpo.token_logprobs(policy, contexts, responses)
    whole.sum().backward()
    expected = {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.requires_grad}
    policy.model.zero_grad()

    monkeypatch.setattr(grpo, "LOGIT_CHUNK", 20_000 * 8)  # 8 tokens at a time, of 120
    rows, kept = [], []
    head = policy.model.get_base_model().get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: rows.append(output.numel() // 20_000))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        chunked = grpo.token_logprobs(policy, contexts, responses)
    assert torch.allclose(chunked, whole, atol=1e-5)
    chunked.sum().backward()
    assert rows == [8] * 30  # 15 chunks forward, and again backward
    assert max(size for size in kept if size != head.weight.numel()) < 8 * 20_000
    assert same_gradients({name: p.grad for name, p in policy.model.named_parameters() if p.requires_grad}, expected)


def test_chat_templates_are_used_as_they_are(qwen3, tmp_path):
    policy = load(qwen3)

    def changed(policy, **settings):
        return dataclasses.replace(policy, cfg=dataclasses.replace(policy.cfg, **settings))

    def text(policy):
        return policy.tokenizer.decode(grpo.chat_ids(policy, "Hi"))

    plain = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert text(policy) == plain + "<think>\n\n</think>\n\n"
    assert text(changed(policy, enable_thinking=True)) == plain
    assert text(changed(policy, system_prompt="Be brief.")).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi"
    )
    with pytest.raises(UserError, match="no chat template.*chat_template.jinja"):
        load(make_model(tmp_path / "base-model", chat_template=None))


def edit_json(file, **changes):
    """Set entries of a JSON file; None takes one out."""
    entries = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in entries.items() if value is not None}))


@pytest.mark.parametrize(
    "tokenizer_says, ends_say, stop_ids",
    [
        ({"pad_token": None, "eos_token": None}, {}, [2]),  # only the chat format ends a turn
        ({"eos_token": "<|endoftext|>"}, {"eos_token_id": 0}, [0, 2]),  # as Qwen's base models
        ({"model_input_names": ["input_ids"]}, {"eos_token_id": [2, -1]}, [2]),
        ({"pad_token": "<|beyond|>", "extra_special_tokens": ["<|beyond|>"]}, {"eos_token_id": 2}, [2]),
    ],
)
def test_odd_tokenizers_sample_and_stop_as_the_plain_one(tmp_path, tokenizer_says, ends_say, stop_ids):
    """Without a padding token, with one beyond the embeddings, without a mask, without the chat format's own end."""
    folder = Path(make_model(tmp_path, vocab_size=len(make_tokenizer())))
    edit_json(folder / "tokenizer_config.json", **tokenizer_says)
    (folder / "generation_config.json").write_text(json.dumps(ends_say))
    odd, plain = load(str(folder)), load(make_model(tmp_path / "plain", vocab_size=len(make_tokenizer())))
    assert odd.stop_ids == stop_ids
    plain.stop_ids = stop_ids
    contexts = [grpo.chat_ids(plain, question) for question in ("2 + 2?", "And what is 2 + 2 + 2?")] * 2
    assert [grpo.chat_ids(odd, question) for question in ("2 + 2?", "And what is 2 + 2 + 2?")] * 2 == contexts
    assert grpo.sample(odd, contexts, seed=0) == grpo.sample(plain, contexts, seed=0)


def test_a_model_that_nothing_ends_is_refused(tmp_path):
    folder = Path(make_model(tmp_path, chat_template="{% for m in messages %}{{ m.content }}{% endfor %}"))
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    (folder / "generation_config.json").write_text("{}")
    with pytest.raises(UserError, match="names a token that ends a response"):
        load(str(folder))


@pytest.mark.parametrize("copied", [None, {"_from_model_config": True, "eos_token_id": 2}])
def test_an_end_that_was_a_config_classs_default_does_not_cut_a_response_at_a_letter(tmp_path, copied):
    """A Llama's is token 2, and is saved whether it was meant or not; here that is a letter."""
    folder = Path(make_model(tmp_path, "llama"))
    (folder / "generation_config.json").unlink()
    if copied:
        (folder / "generation_config.json").write_text(json.dumps(copied))
    assert load(str(folder)).stop_ids == [2]
    other_places = {2: 70, 70: 2}
    known = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = known["model"]["vocab"]
    known["model"]["vocab"] = {piece: other_places.get(place, place) for piece, place in vocabulary.items()}
    for token in known["added_tokens"]:
        token["id"] = other_places.get(token["id"], token["id"])
    (folder / "tokenizer.json").write_text(json.dumps(known))
    assert load(str(folder)).stop_ids == [70]


TEXT = "What is 12345 + 6.78?  It's\n\n\tf(x) = \\frac{1}{2}, e\u0301, 漢字"


@pytest.mark.parametrize("named", ["GPT2Tokenizer", "Qwen2Tokenizer", "GemmaTokenizer", "LlamaTokenizerFast", None])
@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen2", "gemma3"])
def test_texts_are_cut_as_tokenizer_json_says_whatever_class_is_named_beside_it(tmp_path, family, named):
    """transformers' class of that name, or the one for that kind of model, may cut them in a way of its own."""
    core = Tokenizer(models.BPE(ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    AutoConfig.for_model(CONFIGS[family].model_type).save_pretrained(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", tokenizer_class=named)
    loaded, expected = pretrained.load_tokenizer(str(tmp_path)), core.encode(TEXT).ids
    assert len(expected) < 12 and loaded(TEXT, add_special_tokens=False).input_ids == expected
    assert loaded.decode(expected) == TEXT and loaded.eos_token_id == 2


def test_control_tokens_are_tokens_whatever_the_tokenizers_settings_say(qwen3, tmp_path):
    """Some trainers switch that off while they read texts, and save it: <|im_start|> would be a dozen tokens."""
    shutil.copytree(qwen3, tmp_path, dirs_exist_ok=True)
    edit_json(tmp_path / "tokenizer_config.json", split_special_tokens=True)
    assert grpo.chat_ids(load(str(tmp_path)), "7?") == grpo.chat_ids(load(qwen3), "7?")


def test_a_tokenizer_that_cannot_spell_an_answer_is_told(qwen3, tmp_path, capsys):
    """Every reward would be 0: of a word that is special nothing is left in a response's text."""
    tokenizer = pretrained.load_tokenizer(qwen3)
    assert "boxed" not in capsys.readouterr().out
    shutil.copytree(qwen3, tmp_path, dirs_exist_ok=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [str(digit) for digit in range(10)]})
    tokenizer.save_pretrained(tmp_path)
    pretrained.load_tokenizer(str(tmp_path))
    assert r"its tokenizer makes '\\boxed{}' of '\\boxed{12}', so no response can hold" in capsys.readouterr().out


@pytest.mark.parametrize("changed", ["m.content | escape", "m.content[:200]", "m.content | tojson"])
def test_a_chat_template_that_changes_a_question_is_refused(tmp_path, changed):
    with pytest.raises(UserError, match="leaves out, or changes, the question"):
        load(make_model(tmp_path, chat_template=CHAT_TEMPLATE.replace("m.content", changed)))


def test_a_name_that_is_no_folder_is_asked_for_on_the_hub_in_a_line_that_says_so(tmp_path, monkeypatch, capsys):
    """Without a network that takes a minute. Before, nothing was said until it was over."""

    def from_pretrained(model, **_):
        assert "--model some/model: no folder here has that name; asking https://" in capsys.readouterr().out
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", from_pretrained)
    with pytest.raises(UserError, match="neither a model folder here nor a model that the hub"):
        pretrained.load_tokenizer("some/model")


def test_a_mistral_tokenizer_that_transformers_doubts_is_told_until_it_is_mended(tmp_path, capsys):
    """Its warning would be silenced with all others. It looks at vocabularies of more than 100,000 tokens only."""
    folder = Path(make_model(tmp_path))
    edit_json(folder / "config.json", model_type="mistral", transformers_version="4.50.0")
    known = json.loads((folder / "tokenizer.json").read_text())
    words = {
        "type": "Split",
        "pattern": {"Regex": r"\p{L}+|\p{N}|[^\p{L}\p{N}]+"},
        "behavior": "Isolated",
        "invert": False,
    }
    known["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [words, known["pre_tokenizer"] | {"use_regex": False}],
    }
    vocabulary = known["model"]["vocab"]
    known["model"]["merges"].append(["e", "B"])
    for piece in ["eB", *(f"piece {i}" for i in range(100_000))]:
        vocabulary[piece] = len(vocabulary) + 3
    (folder / "tokenizer.json").write_text(json.dumps(known))
    doubted = pretrained.load_tokenizer(str(folder))
    assert "fix_mistral_regex=True) gives" in capsys.readouterr().out
    mended = AutoTokenizer.from_pretrained(folder, fix_mistral_regex=True)
    mended.save_pretrained(folder)
    text = "An eBay of mL"
    loaded = pretrained.load_tokenizer(str(folder))
    assert "fix_mistral_regex" not in capsys.readouterr().out
    assert loaded(text).input_ids == mended(text).input_ids != doubted(text).input_ids


def test_a_mistral_model_keeps_its_chat_template_where_vllm_has_brought_mistral_common_along(tmp_path, monkeypatch):
    folder, asked = Path(make_model(tmp_path, "llama")), [{"role": "user", "content": "7?"}]
    plain = encode_chat(pretrained.load_tokenizer(str(folder)), asked)
    monkeypatch.setattr("transformers.integrations.mistral.tokenizer.is_mistral_common_available", lambda: True)
    monkeypatch.setitem(tokenization_auto.TOKENIZER_MAPPING_NAMES, "mistral", "MistralCommonBackend")
    edit_json(folder / "config.json", model_type="mistral")
    (folder / "tekken.json").write_text("{}")
    assert encode_chat(pretrained.load_tokenizer(str(folder)), asked) == plain


def test_a_tokenizer_cuts_the_same_text_in_the_same_way_each_time(qwen3, tmp_path):
    """BPE dropout is for training a model from scratch. Some tokenizer.json have kept it."""
    shutil.copytree(qwen3, tmp_path, dirs_exist_ok=True)
    known = json.loads((tmp_path / "tokenizer.json").read_text())
    known["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(known))
    tokenizer, plain = pretrained.load_tokenizer(str(tmp_path)), pretrained.load_tokenizer(qwen3)
    assert all(tokenizer(TEXT).input_ids == plain(TEXT).input_ids for _ in range(5))


@pytest.mark.parametrize(
    "made",
    [
        LoraConfig(r=4, target_modules="all-linear", use_dora=True, lora_dropout=0.3),
        LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], use_rslora=True),
        LoraConfig(r=4, target_modules=["q_proj", "embed_tokens", "lm_head"], bias="all"),
        VeraConfig(r=4, target_modules=["q_proj"]),
    ],
    ids=["DoRA, dropout", "a head of its own, rsLoRA", "on the tables, bias", "VeRA"],
)
def test_an_adapter_of_another_kind_gives_pefts_own_logprobs_and_the_base_models_without_it(qwen3, tmp_path, made):
    """`p2o.py eval --adapter` takes what other trainers have saved, too."""
    torch.manual_seed(1)
    reference = get_peft_model(AutoModelForCausalLM.from_pretrained(qwen3, dtype=torch.float32), made).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    reference.save_pretrained(tmp_path)
    policy, ids = load(qwen3, adapter=str(tmp_path), temperature=1.0), [5, 6, 7, 8, 9]
    for adapter in (True, False):
        with torch.no_grad(), nullcontext() if adapter else reference.disable_adapter():
            logprobs = reference(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(dim=-1)
        expected = logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
        [found] = grpo.logprobs_of(policy, [ids[:1]], [ids[1:]], adapter=adapter)
        assert found == pytest.approx(expected, abs=1e-5)


def saved_adapter(model, folder, made, **how):
    """peft's own, moved off zero; also the embeddings, if it is to bring its own."""
    torch.manual_seed(1)
    peft_model = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), made)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if parameter.requires_grad or how and "embed_tokens" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    peft_model.save_pretrained(folder, **how)
    return str(folder)


@pytest.mark.parametrize(
    "made, how, said",
    [
        (LoraConfig(init_lora_weights="pissa", target_modules=["q_proj"]), {}, "changes the model beneath it"),
        (LoraConfig(init_lora_weights="olora", target_modules=["q_proj"]), {}, "changes the model beneath it"),
        (LoraConfig(bias="lora_only", target_modules=["q_proj"]), {}, "changes the model beneath it"),
        (LoraConfig(layer_replication=[[0, 2], [1, 2]], target_modules=["q_proj"]), {}, "changes the model beneath it"),
        (LoraConfig(target_modules=["q_proj"]), {"save_embedding_layers": True}, "changes the model beneath it"),
        (LoraConfig(alora_invocation_tokens=[7, 8], task_type="CAUSAL_LM"), {}, "works behind certain tokens only"),
    ],
    ids=["PiSSA", "OLoRA", "biases", "replicated layers", "embeddings of its own", "aLoRA"],
)
def test_an_adapter_that_leaves_another_model_when_it_is_switched_off_is_refused(tmp_path, made, how, said):
    """The base policy reflects, and anchors the KL term: it must be the base."""
    model = make_model(tmp_path / "base", "llama", attention_bias=True)
    adapter = saved_adapter(model, tmp_path / "adapter", made, **how)
    with pytest.raises(UserError, match=said) as refusal:
        load(model, adapter=adapter)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", [AutoModelForSequenceClassification, AutoModelForTokenClassification])
def test_an_adapter_of_a_reward_model_is_refused(qwen3, tmp_path, kind):
    """All its LoRA weights fit a model that writes texts; what it has learned is in the score behind them."""
    made = LoraConfig(target_modules=["q_proj"], task_type="SEQ_CLS" if "Sequence" in kind.__name__ else "TOKEN_CLS")
    get_peft_model(kind.from_pretrained(qwen3, num_labels=1), made).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"made for another model, or to score: \d weights do not fit, .*score\."):
        load(qwen3, adapter=str(tmp_path))


def test_an_adapter_that_changes_nothing_is_told(qwen3, tmp_path, capsys):
    """As one that a sharded trainer saved without its weights: the numbers would be those of the base model."""
    load(qwen3).model.save_pretrained(tmp_path)
    load(qwen3, adapter=str(tmp_path))
    assert "the model is as without it" in capsys.readouterr().out
    load(qwen3, adapter=saved_adapter(qwen3, tmp_path, LoraConfig(target_modules=["q_proj"])))
    assert "the model is as without it" not in capsys.readouterr().out


def test_an_adapter_of_a_kind_that_peft_does_not_know_gets_one_line(qwen3, tmp_path):
    adapter = saved_adapter(qwen3, tmp_path, LoraConfig(target_modules=["q_proj"]))
    edit_json(tmp_path / "adapter_config.json", peft_type="ITS_SUCCESSOR")
    with pytest.raises(UserError, match="no adapter is there .*ITS_SUCCESSOR"):
        load(qwen3, adapter=adapter)


def test_an_adapter_beside_a_chat_template_that_writes_other_prompts_is_refused(qwen3, tmp_path):
    """Other trainers save the tokenizer that they used, often with a chat template of their own."""
    adapter = saved_adapter(qwen3, tmp_path, LoraConfig(target_modules=["q_proj"]))
    make_tokenizer("{# another way to say the same #}" + CHAT_TEMPLATE).save_pretrained(tmp_path)
    load(qwen3, adapter=adapter)
    make_tokenizer(CHAT_TEMPLATE.replace("assistant", "model")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the chat template beside it writes other prompts than that of --model"):
        load(qwen3, adapter=adapter)


@pytest.mark.parametrize("made", [VeraConfig(r=4, target_modules=["q_proj"]), OFTConfig(target_modules="all-linear")])
def test_where_an_adapter_is_on_is_said_of_other_kinds_than_lora_too(qwen3, tmp_path, made, capsys):
    load(qwen3, adapter=saved_adapter(qwen3, tmp_path, made))
    said = capsys.readouterr().out
    if isinstance(made, OFTConfig):
        assert said == ""
    else:
        assert (
            "the adapter is on 17% of the layers' weights, not model.layers.self_attn.o_proj" in said
            and "vera" not in said
        )


def test_an_adapter_that_was_made_on_a_model_of_another_name_is_told(qwen3, tmp_path, capsys):
    """Another trainer's adapter has no mark of its base. It fits the base model of the same family, too."""
    noise_adapter(load(qwen3)).model.save_pretrained(tmp_path / "adapter")
    capsys.readouterr()
    load(qwen3, adapter=str(tmp_path / "adapter"))
    assert "--adapter" not in capsys.readouterr().out
    shutil.copytree(qwen3, tmp_path / "other")
    load(str(tmp_path / "other"), adapter=str(tmp_path / "adapter"))
    assert f"it was made on {qwen3}, and is put on {tmp_path / 'other'}" in capsys.readouterr().out


def test_a_tokenizer_that_cannot_be_read_gets_one_line(qwen3, tmp_path):
    shutil.copytree(qwen3, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="its tokenizer cannot be used") as refusal:
        load(str(tmp_path))
    assert "\n" not in str(refusal.value)


def test_code_of_the_models_own_is_not_run_and_nobody_is_asked(qwen3, tmp_path, monkeypatch):
    """transformers would ask on the terminal, and wait."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    shutil.copytree(qwen3, tmp_path, dirs_exist_ok=True)
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')")
    edit_json(tmp_path / "config.json", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    load(str(tmp_path))  # of a kind that transformers knows, which is taken
    edit_json(tmp_path / "config.json", model_type="own")
    with pytest.raises(UserError, match="its config.json cannot be used .*custom code") as refusal:
        load(str(tmp_path))
    assert "\n" not in str(refusal.value)


def test_a_chat_template_that_does_not_begin_the_response_is_refused(tmp_path):
    headed = CHAT_TEMPLATE.partition("{% if add_generation_prompt")[0]
    with pytest.raises(UserError, match=r"writes '<\|im_start\|>assistant' in front of a response, but not"):
        load(make_model(tmp_path, chat_template=headed))


def test_a_chat_template_without_the_token_that_begins_a_text_is_told(tmp_path, capsys):
    folder = Path(make_model(tmp_path))
    known = json.loads((folder / "tokenizer.json").read_text())
    begins = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    names = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    known["post_processor"] = {"type": "TemplateProcessing", "single": begins, "pair": begins, "special_tokens": names}
    (folder / "tokenizer.json").write_text(json.dumps(known))
    edit_json(folder / "tokenizer_config.json", bos_token="<|endoftext|>")
    line = "its tokenizer begins a text with <|endoftext|>, its chat template does not"
    pretrained.load_tokenizer(str(folder))
    assert line in capsys.readouterr().out
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + CHAT_TEMPLATE)
    tokenizer = pretrained.load_tokenizer(str(folder))
    assert line not in capsys.readouterr().out
    assert encode_chat(tokenizer, [{"role": "user", "content": "7?"}])[:2] == [0, 1]  # and only once


def test_a_chat_template_that_ends_a_response_by_a_text_is_told(tmp_path, capsys):
    """A template put beside a tokenizer without its tokens."""
    folder = make_model(tmp_path, chat_template=CHAT_TEMPLATE)
    pretrained.load_tokenizer(folder)
    assert "ends a response" not in capsys.readouterr().out
    (tmp_path / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("<|im_end|>", "<|end|>"))
    pretrained.load_tokenizer(folder)
    assert "its chat template ends a response by '<|end|>', which is no token of its" in capsys.readouterr().out


def test_a_chat_template_saved_by_an_editor_that_marks_texts_begins_as_it_is_written(tmp_path):
    """Windows PowerShell and others begin a file in UTF-8 with U+FEFF. The prompt would begin with it."""
    folder = make_model(tmp_path, chat_template="\ufeff" + CHAT_TEMPLATE)
    assert pretrained.load_tokenizer(folder).chat_template == CHAT_TEMPLATE


def test_of_several_chat_templates_the_default_has_its_day_fixed_too(tmp_path):
    dated = "{{ strftime_now('%Y') }}" + CHAT_TEMPLATE
    folder = make_model(tmp_path, chat_template={"default": dated, "tool_use": CHAT_TEMPLATE})
    policy = load(folder)
    assert policy.tokenizer.decode(grpo.chat_ids(policy, "7?")).startswith("2024<|im_start|>user")


def test_an_adapter_beside_the_weights_is_refused(tmp_path):
    """transformers loads it with the model, and the fresh adapter would take its place without a word."""
    folder = make_model(tmp_path)
    checkpoint.save_adapter(load(folder).model, tmp_path)
    with pytest.raises(UserError, match="an adapter .* lies beside the weights"):
        load(folder)


@pytest.mark.parametrize("family, learned", [("gpt2", True), ("llama", False)])
def test_more_tokens_than_positions_are_refused_where_they_are_learned_and_told_elsewhere(
    tmp_path, family, learned, capsys, monkeypatch
):
    monkeypatch.setitem(CONFIGS, "gpt2", GPT2Config)
    folder = make_model(tmp_path, family, max_position_embeddings=70)
    load(folder, max_prompt_tokens=58)
    assert "positions" not in capsys.readouterr().out
    if learned:
        with pytest.raises(UserError, match="71 tokens of prompt and response, and it knows 70 positions: lower --max"):
            load(folder, max_prompt_tokens=59)
    else:
        load(folder, max_prompt_tokens=59)
        assert "71 tokens of prompt and response, and it knows 70 positions" in capsys.readouterr().out


def test_a_response_that_runs_out_of_tokens_is_marked(qwen3):
    policy = load(qwen3, temperature=2.0, max_response_tokens=100)
    samples = grpo.sample(policy, [[5, 6]] * 24, seed=0)
    for s in samples:
        assert s.truncated == (s.response_ids[-1] not in policy.stop_ids)
        assert len(s.response_ids) == 100 or not s.truncated
        assert not any(token in policy.stop_ids for token in s.response_ids[:-1])
    assert {s.truncated for s in samples} == {True, False}


def test_no_stop_token_is_in_a_responses_text_whatever_the_tokenizer_calls_special(qwen3, tmp_path):
    """A reward that compares whole texts would be 0 for ever."""
    shutil.copytree(qwen3, tmp_path, dirs_exist_ok=True)
    known = json.loads((tmp_path / "tokenizer.json").read_text())
    for token in known["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(known))
    edit_json(tmp_path / "tokenizer_config.json", eos_token="<|endoftext|>", added_tokens_decoder=None)
    policy = load(str(tmp_path), temperature=2.0, max_response_tokens=100)
    ended = [s for s in grpo.sample(policy, [[5, 6]] * 24, seed=0) if not s.truncated]
    assert {s.response_ids[-1] for s in ended} == {0, 2}
    assert not any(s.text.endswith(("<|im_end|>", "<|endoftext|>")) for s in ended)


def test_a_whole_run_on_a_four_bit_model(qwen3, tmp_path):
    """The command of the presets, on a random Qwen3: everything is logged, nothing is learned, nothing breaks."""
    import p2o

    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(8)]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    cfg = dataclasses.replace(
        p2o.Config(), model=qwen3, train_data=data, eval_data=(data,), runs=str(tmp_path), name="run",
        load_in_4bit=True, gradient_checkpointing=True, epochs=1, questions_per_batch=4, questions_per_update=2,
        group_size=2, max_response_tokens=8, hard_set_min=4, question_suffix="Put the answer in \\boxed{}.",
        importance_cap=2.0, micro_batch_tokens=128,
    )  # fmt: skip
    summary = p2o.train(cfg)
    assert summary["rollouts"] == 16
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    last = [line for line in lines if line["kind"] == "epoch"][-1]
    assert last["truncated"] > 0.5 and last["logprob_mismatch"] < 1e-3 and last["hard_set"] == 8


# --------------------------------------------------------------- the cache with room holds what transformers' own holds


@given(st.lists(st.one_of(st.integers(1, 9), st.lists(st.integers(0, 2), min_size=1, max_size=6)), max_size=8))
def test_after_any_tokens_and_any_choice_of_rows_it_holds_what_a_growing_cache_holds(steps):
    """A step is a number of new tokens, or the rows that go on."""
    roomy, growing, rows = RoomyLayer(), DynamicLayer(), 3
    for number, step in enumerate([2, *steps]):
        if isinstance(step, list):
            chosen = torch.tensor(step) % rows
            rows = len(step)
            roomy.reorder_cache(chosen)
            growing.reorder_cache(chosen)
        else:
            keys = torch.randn(rows, 2, step, 4, generator=torch.Generator().manual_seed(number))
            for ours, theirs in zip(roomy.update(keys, -keys), growing.update(keys, -keys), strict=True):
                assert torch.equal(ours, theirs)
        assert torch.equal(roomy.keys, growing.keys) and torch.equal(roomy.values, growing.values)
        assert roomy.get_seq_length() == growing.get_seq_length()


def test_a_token_is_written_behind_the_last_without_copying_those_before_it():
    layer, token = RoomyLayer(), torch.zeros(1, 1, 1, 4)
    layer.update(token, token)
    moves, full = set(), 0
    for _ in range(1000):
        layer.update(token, token)
        moves.add(layer.keys.data_ptr())
        full += layer.keys.shape == layer.room[0].shape
    assert len(moves) <= 10 and layer.room[0].shape[2] <= 2 * 1001
    assert full == len(moves) - 1, "every room but the last was full before it grew"


def test_layers_that_hold_something_else_than_all_tokens_stay_as_they_are():
    config = AutoConfig.from_pretrained(grpo.TINY / "united" / "model")
    config.sliding_window, config.layer_types = 8, ["sliding_attention", "full_attention"]
    assert [type(layer) for layer in roomy_cache(config).layers] == [DynamicSlidingWindowLayer, RoomyLayer]


def test_a_card_draws_the_same_tokens_with_everything_at_a_fixed_place(tiny_policy, monkeypatch):
    """What a CUDA graph records, run step by step: rows that end stay, the cache has its last size from the start."""
    contexts = [grpo.chat_ids(tiny_policy, text) for text in ("12 + 5 =", "A longer question: 3 * 3 =", "1 + 1 =")] * 2
    before = grpo.sample(tiny_policy, contexts, seed=3, temperature=3.0)
    assert len({len(s.response_ids) for s in before}) > 1, "rows must end at different steps"
    monkeypatch.setattr(fast, "step_for", fast.RecordedStep)
    after = grpo.sample(tiny_policy, contexts, seed=3, temperature=3.0)
    assert [s.response_ids for s in after] == [s.response_ids for s in before]
    for one, other in zip(after, before, strict=True):
        assert one.sampled_logprobs == pytest.approx(other.sampled_logprobs, abs=1e-4)


@pytest.fixture
def recordings(monkeypatch):
    """`recordings(error)`: on a CPU, every step is recorded as on a card, and every recording ends with that error."""
    streams, made, step = ["usual"], [], fast.RecordedStep

    @contextmanager
    def on(stream):
        before = streams[-1]
        streams.append(stream)
        try:
            yield
        finally:
            streams.append(before)

    def failing(error):
        def graph(_):
            streams.append("the recording's")  # where a recording that fails leaves torch
            raise error

        def recorded(*args):
            made.append(step(*args))
            made[-1]._record()
            return made[-1]

        for name, fake in {"graph": graph, "stream": on, "current_stream": lambda: streams[-1]}.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
        monkeypatch.setattr(fast, "RecordedStep", recorded)
        monkeypatch.setattr(fast, "RECORDED_ON", {"cpu"})
        monkeypatch.setattr(fast, "_not_recordable", weakref.WeakSet())
        return made, streams

    return failing


def test_a_recording_that_fails_is_not_tried_again_and_sampling_goes_on_where_it_was(tiny_policy, recordings):
    contexts = [grpo.chat_ids(tiny_policy, "12 + 5 =")] * 4
    before = grpo.sample(tiny_policy, contexts, seed=3)
    made, streams = recordings(RuntimeError("operation not permitted when stream is capturing"))
    for _ in range(2):
        assert [s.response_ids for s in grpo.sample(tiny_policy, contexts, seed=3)] == [s.response_ids for s in before]
        assert len(made) == 1 and made[0].recording is None and streams[-1] == "usual"


def test_a_recording_without_room_is_tried_with_fewer_rows(tiny_policy, recordings):
    policy = dataclasses.replace(tiny_policy, cfg=dataclasses.replace(tiny_policy.cfg, sample_batch=4))
    made, streams = recordings(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(UserError, match="out of memory with sample_batch = 1"):
        grpo.sample(policy, [grpo.chat_ids(policy, "12 + 5 =")] * 4, seed=3)
    assert [len(step.tokens) for step in made] == [4, 2, 1] and streams[-1] == "usual"


def test_contexts_are_not_held_twice_when_their_cache_gets_its_last_size(tiny_policy):
    cache = roomy_cache(tiny_policy.model.config)
    ids, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long)
    with torch.no_grad():
        fast.next_token_logits(tiny_policy.model, ids, mask, mask.cumsum(dim=1) - 1, cache)
    held = [layer.keys.clone() for layer in cache.layers]
    step = fast.RecordedStep(tiny_policy.model, cache, mask, 5)
    assert not cache.layers and len(held) == len(step.cache.layers)
    for keys, layer in zip(held, step.cache.layers, strict=True):
        assert torch.equal(layer.keys[:, :, :3], keys) and not layer.keys[:, :, 3:].any()


# ----------- running out of the card's memory, as far as a CPU can show it: errors raised where a card would raise them


class FakeLLM:
    """vLLM as the engine sees it; fails where it is told to."""

    def __init__(self, failing_wakes=0, full=False):
        self.failing_wakes, self.full, self.calls = failing_wakes, full, []

    def wake_up(self):
        self.calls.append("wake")
        if self.calls.count("wake") <= self.failing_wakes:
            raise RuntimeError("CUDA Error: out of memory at cumem_allocator.cpp")

    def sleep(self, level):
        self.calls.append("sleep")

    def generate(self, prompts, *_, **__):
        self.calls.append("generate")
        if self.full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[7], finish_reason="stop")]) for _ in prompts]


@pytest.fixture
def served(tiny_policy, monkeypatch):
    """`served(llm)`: the tiny policy, sampled by that LLM as on a card."""
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=lambda **_: None))

    def serve(llm):
        engine = object.__new__(VllmEngine)
        engine._sleeps, engine.llm = True, llm
        return dataclasses.replace(tiny_policy, engine=engine)

    return serve


def test_a_wake_up_that_failed_is_tried_once_more(served):
    policy = served(FakeLLM(failing_wakes=1))
    assert [s.response_ids for s in grpo.sample(policy, [[5]] * 2, seed=None, adapter=False)] == [[7], [7]]
    assert policy.engine.llm.calls == ["wake", "wake", "generate", "sleep"]


def test_a_wake_up_that_fails_twice_names_the_option(served):
    policy = served(FakeLLM(failing_wakes=2))
    with pytest.raises(UserError, match="out of memory at cumem.*--vllm-memory"):
        grpo.sample(policy, [[5]], seed=None, adapter=False)
    assert policy.engine.llm.calls == ["wake", "wake"]


def test_nothing_is_tried_again_inside_generate(served):
    """Requests of the first try stay in the queue: their responses would be taken for those of the second."""
    policy = served(FakeLLM(full=True))
    with pytest.raises(UserError, match="ran out of memory while sampling: lower --sample-batch"):
        grpo.sample(policy, [[5]] * 2, seed=None, adapter=False)
    assert policy.engine.llm.calls == ["wake", "generate"]


class StartedLLM(FakeLLM):
    """vLLM's class, as the engine starts it: keeps what it was asked for."""

    def __init__(self, **asked):
        super().__init__()
        self.asked, self.ended = asked, False
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: setattr(self, "ended", True)))


def started(policy, monkeypatch, **settings):
    monkeypatch.setattr(vllm_engine, "import_vllm", lambda on_gpu: StartedLLM)
    cfg = dataclasses.replace(policy.cfg, **settings)
    return VllmEngine(policy.model, policy.tokenizer, cfg, max_model_len=200)


@pytest.mark.parametrize("family, longest", [("gemma3", 70), ("bloom", 200)])
def test_vllm_gets_the_positions_of_a_models_text_and_needs_none(tmp_path, monkeypatch, family, longest):
    """Those of a model that also sees stand in its text's config; ALiBi has no last position."""
    monkeypatch.setitem(
        CONFIGS, "bloom", lambda **sizes: BloomConfig(vocab_size=320, hidden_size=64, n_layer=1, n_head=4)
    )
    policy = load(make_model(tmp_path, family, max_position_embeddings=70))
    if family == "gemma3":
        monkeypatch.setattr(policy.model.get_base_model(), "config", Gemma3Config(text_config=policy.model.config))
    assert started(policy, monkeypatch).llm.asked["max_model_len"] == longest


def test_vllm_computes_in_the_trainers_numbers(tiny_policy, monkeypatch):
    assert started(tiny_policy, monkeypatch).llm.asked["dtype"] == "float32"
    assert started(tiny_policy, monkeypatch, dtype="float16").llm.asked["dtype"] == "float16"


def test_a_rank_that_vllm_has_no_kernel_for_is_refused(tiny_policy, monkeypatch):
    lora = tiny_policy.model.peft_config["default"]
    for rank, served in ((9, 16), (512, 512)):
        monkeypatch.setattr(lora, "r", rank)
        assert started(tiny_policy, monkeypatch).llm.asked["max_lora_rank"] == served
    monkeypatch.setattr(lora, "r", 513)
    with pytest.raises(UserError, match="--lora-rank 513: .*up to rank 512"):
        started(tiny_policy, monkeypatch)


def test_an_adapter_that_vllm_cannot_serve_is_refused(qwen3, tmp_path, monkeypatch):
    made = IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    policy = load(qwen3, adapter=saved_adapter(qwen3, tmp_path, made))
    with pytest.raises(UserError, match="it serves LoRA, not IA3; take --engine hf"):
        started(policy, monkeypatch)


@pytest.mark.parametrize("capability, dtype, invariant, said", [
    ((7, 5), torch.float16, "0", "a card is older than Ampere"),
    ((9, 0), torch.float32, "0", "adapters compute in 16 bits only"),
    ((8, 9), torch.bfloat16, "1", "VLLM_BATCH_INVARIANT=1: on a card"),
    ((8, 9), torch.bfloat16, "0", None), ((9, 0), torch.float16, "1", None), ((12, 0), torch.bfloat16, "1", None),
])  # fmt: skip
def test_what_vllm_cannot_do_on_a_card_is_refused(monkeypatch, capability, dtype, invariant, said):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", invariant)
    with pytest.raises(UserError, match=said) if said else nullcontext():
        vllm_engine.refuse_what_a_card_cannot_do(dtype)


@pytest.mark.parametrize("invariant", ["0", "1"])
def test_vllm_leaves_tf32_to_the_trainers_head_unless_it_is_to_be_batch_invariant(monkeypatch, invariant):
    """It sets the whole process's precision. Batch invariance forbids TF32 by another setting: the two would clash."""
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=StartedLLM))
    monkeypatch.setattr(os, "environ", {"VLLM_BATCH_INVARIANT": invariant})
    assert vllm_engine.import_vllm(on_gpu=True) is StartedLLM
    assert os.environ.get("VLLM_FLOAT32_MATMUL_PRECISION") == {"0": "high", "1": None}[invariant]


def test_a_float32_policy_takes_back_the_tf32_that_a_16_bit_policy_let_in(tiny_policy, monkeypatch):
    """On a card the setting holds for the process; float32 layers computed in TF32 were refused as wrong on an H200."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        pretrained.mix_precision(tiny_policy.model)
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("error", [ValueError, RuntimeError, AssertionError])
def test_a_vllm_that_does_not_start_is_told_in_one_line_and_its_process_group_is_ended(tiny_policy, monkeypatch, error):
    def failing(**_):
        raise error("no room for one sequence")

    monkeypatch.setattr(VllmEngine, "started", False)
    monkeypatch.setattr(vllm_engine, "import_vllm", lambda on_gpu: failing)
    with pytest.raises(UserError, match="vLLM did not start with --vllm-memory 0.6.*no room for one sequence"):
        VllmEngine(tiny_policy.model, tiny_policy.tokenizer, tiny_policy.cfg, max_model_len=200)
    ended = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: ended.append(True))
    vllm_engine.shut_down()  # atexit calls it
    assert ended == [True]


def test_engines_that_are_there_at_exit_are_shut_down(tiny_policy, monkeypatch):
    engine = started(tiny_policy, monkeypatch)
    vllm_engine.shut_down()  # atexit calls it
    assert engine.llm.ended


def test_the_copy_of_the_same_model_gets_the_same_path_unless_it_is_in_use(tiny_policy, monkeypatch, tmp_path):
    """vLLM finds by the path what it has compiled, and two runs must not write one folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "own").mkdir()
    first = vllm_engine.folder_for_copy(tiny_policy.model, tmp_path / "own")
    assert first.parent == tmp_path and vllm_engine.folder_for_copy(tiny_policy.model, tmp_path / "own") != first
    first.rmdir()
    assert vllm_engine.folder_for_copy(tiny_policy.model, tmp_path / "own") == first
    first.rmdir()
    weight = next(p for p in tiny_policy.model.parameters() if not p.requires_grad)
    with monkeypatch.context() as patch:
        patch.setattr(weight, "data", weight.data + 1)
        assert vllm_engine.folder_for_copy(tiny_policy.model, tmp_path / "own") != first  # another model


def test_adam_has_its_state_before_the_first_update_and_steps_as_if_it_had_not():
    torch.manual_seed(0)
    one = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]
    other = [torch.nn.Parameter(p.detach().clone()) for p in one]
    early, lazy = adamw(one, 0.1), torch.optim.AdamW(other, lr=0.1, weight_decay=0.0)
    assert sum(state["exp_avg"].numel() + state["exp_avg_sq"].numel() for state in early.state.values()) == 20
    for _ in range(3):
        for p, q in zip(one, other, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        early.step()
        lazy.step()
    assert all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


def test_the_allocator_is_told_before_the_card_is_first_used(monkeypatch):
    """By the import of a module that grpo imports: done once more here, for it has long been done."""
    assert grpo.halve_when_out_of_memory is memory.halve_when_out_of_memory
    cublas = ("CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE")
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "VLLM_BATCH_INVARIANT", *cublas):
        monkeypatch.setenv(name, "")  # so that whatever is set below is taken back
        monkeypatch.delenv(name)
    runpy.run_path(memory.__file__)
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert not any(name in os.environ for name in cublas)
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    runpy.run_path(memory.__file__)
    assert [os.environ[name] for name in cublas] == [":16:8", "1"]


def test_a_reflection_fits_into_learned_positions_or_the_run_is_refused_at_its_start(tmp_path, monkeypatch):
    """60 of template, 2 x (60 + 8) quoted, 20 to answer, 512 around them. On a card, more would end the process."""
    monkeypatch.setitem(CONFIGS, "gpt2", GPT2Config)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"question": f"{i} + 1?", "answer": str(i + 1)}) + "\n" for i in range(8)))
    cfg = dataclasses.replace(
        p2o.Config(), model=make_model(tmp_path / "728", "gpt2", max_position_embeddings=728), train_data=str(data),
        eval_data=(str(data),), runs=str(tmp_path), name="run", epochs=2, group_size=2, max_prompt_tokens=60,
        max_response_tokens=8, hard_set_min=4, gepa_minibatch=2, gepa_budget="12", reflection_tokens=20,
    )  # fmt: skip
    p2o.train(cfg)
    evolution = json.loads((tmp_path / "run" / "templates" / "epoch-1.json").read_text())
    assert evolution["rejected_replies"] > 0 and "Error" not in str(evolution["stopped_early"])
    cfg = dataclasses.replace(cfg, model=make_model(tmp_path / "727", "gpt2", max_position_embeddings=727))
    with pytest.raises(
        UserError, match="728 tokens of a reflection and what it quotes, and it knows 727 .*lower.*-quote"
    ):
        p2o.prepare(cfg)
    p2o.prepare(dataclasses.replace(cfg, method="grpo"))  # which reflects on nothing
    with pytest.raises(UserError, match="728 tokens of a reflection"):
        p2o.prepare(dataclasses.replace(cfg, model=str(tmp_path / "728"), reflection_model=cfg.model))


def test_what_a_reflection_quotes_is_short_enough_for_the_longest_sequence(tiny_policy):
    """The longest prompt that can be: the longest template, and a minibatch of the longest questions and responses."""
    tokenizer, count = tiny_policy.tokenizer, lambda text: len(tiny_policy.tokenizer(text).input_ids)
    cfg = dataclasses.replace(p2o.Config(), max_prompt_tokens=100, max_response_tokens=400, reflection_quote=50)
    question, response = "7 " * cfg.max_prompt_tokens, "7 " * 100 + "; " * 200 + "9 " * 100
    shown = shortened(tokenizer, response, cfg.reflection_quote)
    assert count(shown) <= cfg.reflection_quote + count(" [...] ")
    assert shown.startswith("7") and shown.endswith("9")
    assert shortened(tokenizer, "7 ; 9", count("7 ; 9")) == "7 ; 9"  # just as long as it may be
    records = [gepa_loop.reflection_record(question, shown, "wrong; the answer is 7")] * cfg.gepa_minibatch
    longest = count(gepa_loop.reflection_prompt(question, records)) + cfg.reflection_tokens
    whole = [gepa_loop.reflection_record(question, response, "wrong; the answer is 7")] * cfg.gepa_minibatch
    assert longest < longest_sequence(cfg) < count(gepa_loop.reflection_prompt(question, whole)) + cfg.reflection_tokens
