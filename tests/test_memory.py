"""Running out of the card's memory, as far as a CPU can show it: with errors raised where a card would raise them."""

import dataclasses
import os
import runpy
import sys
import tempfile
from types import SimpleNamespace

import pytest
import torch

import gepa_loop
import grpo
import p2o
from support import memory, pretrained, vllm_engine
from support.errors import UserError
from support.memory import adamw, longest_sequence
from support.vllm_engine import VllmEngine


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


def test_vllm_computes_in_the_trainers_numbers(tiny_policy, monkeypatch):
    assert started(tiny_policy, monkeypatch).llm.asked["dtype"] == "float32"
    assert started(tiny_policy, monkeypatch, dtype="float16").llm.asked["dtype"] == "float16"


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
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    runpy.run_path(memory.__file__)
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"


def test_what_a_reflection_quotes_is_short_enough_for_the_longest_sequence(tiny_policy):
    """The longest prompt that can be: the longest template, and a minibatch of the longest questions and responses."""
    tokenizer, count = tiny_policy.tokenizer, lambda text: len(tiny_policy.tokenizer(text).input_ids)
    cfg = dataclasses.replace(p2o.Config(), max_prompt_tokens=100, max_response_tokens=400, reflection_quote=50)
    question, response = "7 " * cfg.max_prompt_tokens, "7 " * 100 + "; " * 200 + "9 " * 100
    shown = pretrained.shortened(tokenizer, response, cfg.reflection_quote)
    assert count(shown) <= cfg.reflection_quote + count(" [...] ")
    assert shown.startswith("7") and shown.endswith("9")
    assert pretrained.shortened(tokenizer, "7 ; 9", count("7 ; 9")) == "7 ; 9"  # just as long as it may be
    records = [gepa_loop.reflection_record(question, shown, "wrong; the answer is 7")] * cfg.gepa_minibatch
    longest = count(gepa_loop.reflection_prompt(question, records)) + cfg.reflection_tokens
    whole = [gepa_loop.reflection_record(question, response, "wrong; the answer is 7")] * cfg.gepa_minibatch
    assert longest < longest_sequence(cfg) < count(gepa_loop.reflection_prompt(question, whole)) + cfg.reflection_tokens
