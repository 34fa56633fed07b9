"""Room for the keys and values of tokens to come.

transformers' own cache copies all it holds for every new token, so that a response's cost grows with its square. Here a
layer that is full moves to memory for twice as many tokens, and a new one is written behind the last.
"""

from __future__ import annotations

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, [B, heads, tokens, D] each: the front part of `room`.

    >>> layer, token = RoomyLayer(), torch.ones(2, 1, 1, 4)
    >>> for _ in range(3):
    ...     keys, values = layer.update(token, token)
    >>> keys.shape, layer.room[0].shape
    (torch.Size([2, 1, 3, 4]), torch.Size([2, 1, 4, 4]))
    """

    room: tuple[torch.Tensor, ...] | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        held = self.get_seq_length()  # tokens; the new ones are [B, heads, new, D]
        if held == 0:
            return super().update(key_states, value_states)
        end = held + key_states.shape[-2]
        if self.room is None or end > self.room[0].shape[-2]:
            full = self.keys, self.values
            self.room = tuple(x.new_empty(*x.shape[:-2], 2 * end, x.shape[-1]) for x in full)
            for room, old in zip(self.room, full, strict=True):
                room[..., :held, :] = old
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[..., held:end, :] = new
        self.keys, self.values = (room[..., :end, :] for room in self.room)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.room = None  # the rows that go on are a copy


def roomy_cache(config) -> DynamicCache:
    """An empty cache for a model of this config; layers that keep a window only, or a state, are transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
