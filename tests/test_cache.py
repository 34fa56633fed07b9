"""The cache with room holds what transformers' own holds."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

import grpo
from support.fast import RoomyLayer, roomy_cache


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
