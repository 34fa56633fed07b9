"""What makes the same numbers faster: a cache with room for the tokens to come, and a group's prompt read once.

Sampling. transformers' own cache copies all it holds for every new token, so that a response's cost grows with its
square. Here a layer that is full moves to memory for twice as many tokens, and a new one is written behind the last.

Training. The G responses of a question share their context, and so its keys and values: the contexts go through the
model first, each distinct one once, then the responses, which attend to them. Gradients flow through the shared keys
and values, so log-probs and gradients are those of the plain pass. (The idea of Prefix Grouper, arXiv:2506.05433.)
"""

from __future__ import annotations

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from support.pretrained import body_of

# ----------------------------------------------------------------------------------------- a cache with room, to sample


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


# ----------------------------------------------------------------------------------------- a prompt read once, to train


def can_share_prompts(causal_lm: torch.nn.Module, contexts: list[list[int]]) -> bool:
    """Are contexts repeated, and can this model keep their keys and values?

    Not under gradient checkpointing, which computes layers again without a cache; nor in models with another cache than
    keys and values of all tokens.
    """
    kinds = set(getattr(causal_lm.config, "layer_types", None) or ["full_attention"])
    # The name that transformers gave it, and the one that older versions know.
    name = "activation" if hasattr(causal_lm, "is_activation_checkpointing") else "gradient"
    plain = kinds == {"full_attention"} and not getattr(causal_lm, f"is_{name}_checkpointing")
    return plain and 2 * sum(map(len, set(map(tuple, contexts)))) <= sum(map(len, contexts))


def hidden_states_of_shared_prompts(
    causal_lm: torch.nn.Module, contexts: list[list[int]], responses: list[list[int]], pad: int
) -> torch.Tensor:
    """The last hidden state in front of each response token, response after response: [N, D], N tokens in all."""
    device = next(causal_lm.parameters()).device
    place = {context: i for i, context in enumerate(dict.fromkeys(map(tuple, contexts)))}
    rows = torch.tensor([place[tuple(context)] for context in contexts], device=device)  # [B], into the C contexts
    width, length = max(map(len, place)), max(map(len, responses))
    # Contexts are padded on the left, so that all end where their responses begin.
    ids = torch.tensor([[pad] * (width - len(c)) + list(c) for c in place], device=device)  # [C, W]
    mask = torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in place], device=device)
    cache = DynamicCache()
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    model = body_of(causal_lm)
    read = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    hidden = [read.last_hidden_state[rows, -1:]]  # [B, 1, D]: what predicts the first token
    if length > 1:
        cache.batch_select_indices(rows)  # differentiable: each context's gradient is the sum over its responses
        tokens = torch.tensor([r + [pad] * (length - len(r)) for r in responses], device=device)[:, :-1]
        full = torch.cat([mask[rows], torch.ones_like(tokens)], dim=1)  # what is padded on the right is not read
        positions = mask.sum(dim=1)[rows, None] + torch.arange(length - 1, device=device)
        written = model(input_ids=tokens, attention_mask=full, position_ids=positions, past_key_values=cache)
        hidden.append(written.last_hidden_state)
    counts = torch.tensor([len(r) for r in responses], device=device)
    return torch.cat(hidden, dim=1)[torch.arange(length, device=device) < counts[:, None]]  # [B, T, D] -> [N, D]
