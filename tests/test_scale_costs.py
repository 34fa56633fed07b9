"""lab/scale_costs.py: the arithmetic of docs/scale.md."""

import doctest
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from lab import scale_costs


def test_the_readme_shows_what_the_script_prints():
    printed = subprocess.run(
        [sys.executable, "lab/scale_costs.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert printed.count("\n") > 10
    assert f"```\n{printed}```" in (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


def test_doctests():
    assert doctest.testmod(scale_costs) == (0, 1)


def test_more_gpus_shorten_what_is_divided_and_not_the_longest_response():
    costs = scale_costs.Costs()
    one, eight, many = (scale_costs.hours(costs, gpus) for gpus in (1, 8, 10**6))
    assert eight["training"] == pytest.approx(one["training"] / 8)
    assert eight["sampling"] > one["sampling"] / 8
    alone = costs.batches * costs.longest_response * scale_costs.decoding(costs, 1) / 3600
    assert many["sampling"] == pytest.approx(alone)


def test_the_caches_that_do_not_fit_wait_for_their_turn():
    costs = scale_costs.Costs()
    small = replace(costs, memory_for_cache=costs.memory_for_cache / 4)
    assert scale_costs.sampling(small, 768, 1) > scale_costs.sampling(costs, 768, 1)


def test_the_sizes_are_those_of_the_model():
    """Qwen3-4B's shapes, without its weights."""
    config = Qwen3Config(
        hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128, vocab_size=151936, tie_word_embeddings=True,
    )  # fmt: skip
    costs, lora = scale_costs.Costs(), LoraConfig(r=32, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(costs.parameters, rel=0.01)
        model = get_peft_model(model, lora)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == costs.adapter
