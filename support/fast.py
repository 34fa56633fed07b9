"""What makes the same numbers faster: a cache with room for tokens to come, steps recorded, a group's prompt read once.

Sampling. transformers' own cache copies all it holds for every new token, so a response costs as its length squared.
Here a layer that is full moves to memory for twice as many tokens, and a new one is written behind the last. On a card,
a step is thousands of small kernels, and Python takes longer to launch them than the card to run them. So the second
step of a batch is recorded as a CUDA graph, and each later one is a single launch of it.

Training. The G responses of a question share its keys and values. Each distinct context goes through the model once,
then the responses, which attend to it. Gradients flow through the shared keys and values, so log-probs and gradients
are those of the plain pass. (The idea of Prefix Grouper, arXiv:2506.05433.)
"""

from __future__ import annotations

import weakref

import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

from support.pretrained import body_of

# Padding is masked, or stands where nobody looks, so any token will do. A tokenizer's own padding token may be missing,
# or lie beyond the model's embeddings.
PAD = 0


def each_context_once(contexts: list[list[int]], device: torch.device) -> tuple[torch.Tensor, ...]:
    """(ids, mask, positions), [C, W] each, of the C distinct contexts, and for each of the B contexts its row in them.

    They are padded on the left, so that all end in the last column, behind which their responses begin. Position 0 is
    where a context begins, however much padding is in front.

    >>> each_context_once([[5, 6], [7], [5, 6]], torch.device("cpu"))
    (tensor([[5, 6],
            [0, 7]]), tensor([[1, 1],
            [0, 1]]), tensor([[0, 1],
            [0, 0]]), tensor([0, 1, 0]))
    """
    row_of = {context: row for row, context in enumerate(dict.fromkeys(map(tuple, contexts)))}
    width = max(map(len, row_of))
    ids = torch.tensor([[PAD] * (width - len(context)) + list(context) for context in row_of], device=device)
    mask = torch.tensor([[0] * (width - len(context)) + [1] * len(context) for context in row_of], device=device)
    rows = torch.tensor([row_of[tuple(context)] for context in contexts], device=device)
    return ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0), rows


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


# --------------------------------------------------------------------------- a token more for every response, to sample


def next_token_logits(model, tokens, mask, positions, cache) -> torch.Tensor:
    """Logits [rows, V] of the token after the last column of `tokens` [rows, columns]."""
    place = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
    return model(input_ids=tokens, logits_to_keep=1, **place).logits[:, -1]


RECORDED_ON = {"cuda"}  # kinds of devices; the tests add the CPU, which takes every step as usual


def step_for(model: torch.nn.Module, cache: DynamicCache, mask: torch.Tensor, length: int) -> Step:
    """A step for responses of at most `length` tokens, behind contexts that `cache` holds and `mask` [B, W] shows."""
    recorded = mask.device.type in RECORDED_ON and can_be_recorded(model, cache)
    return RecordedStep(model, cache, mask, length) if recorded else Step(model, cache, mask)


def can_be_recorded(model: torch.nn.Module, cache: DynamicCache) -> bool:
    """Does every layer keep all tokens, does attention take any mask, and do no numbers decide what is computed?"""
    causal_lm, kinds = model.get_base_model(), {type(layer) for layer in cache.layers}
    any_mask = causal_lm.config._attn_implementation == "sdpa"
    compilable = getattr(causal_lm, "_can_compile_fullgraph", False) and causal_lm not in _not_recordable
    return kinds == {RoomyLayer} and any_mask and compilable


_not_recordable: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()  # those with which it was tried, and failed


class Step:
    """Reads one more token of every response, and gives the logits of the token after it."""

    def __init__(self, model: torch.nn.Module, cache: DynamicCache, mask: torch.Tensor):
        self.model, self.cache, self.mask = model, cache, mask

    def keep(self, rows: torch.Tensor) -> None:
        """Only these of the present rows go on: the others' responses have ended."""
        self.mask = self.mask[rows]
        self.cache.reorder_cache(rows)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """[rows, 1] -> [rows, V]"""
        self.mask = torch.cat([self.mask, torch.ones_like(tokens)], dim=1)  # [rows, W + t + 1]
        return next_token_logits(self.model, tokens, self.mask, self.mask.sum(dim=1, keepdim=True) - 1, self.cache)


class RecordedStep(Step):
    """The same with everything at a fixed place in memory, as a recording must have it.

    So the cache has room for all tokens from the start, and a mask hides what is not written yet. No row is dropped:
    one that has ended is still computed, and not looked at.
    """

    def __init__(self, model: torch.nn.Module, cache: DynamicCache, mask: torch.Tensor, length: int):
        count, self.written = mask.shape  # B, W
        room = -(-(self.written + length) // 8) * 8  # attention kernels like multiples of 8
        self.model, self.cache = model, StaticCache(model.config, max_cache_len=room)
        for full in self.cache.layers:
            layer = cache.layers.pop(0)  # taken out, so that the contexts are not held twice
            full.update(layer.keys, layer.values)
        self.visible = mask.new_zeros(count, 1, 1, room, dtype=torch.bool)
        self.visible[..., : self.written] = mask[:, None, None, :].bool()
        self.positions = mask.sum(dim=1, keepdim=True) - 1
        self.tokens, self.rows = torch.zeros_like(self.positions), torch.arange(count, device=mask.device)
        self.steps, self.recording, self.logits = 0, None, None

    def keep(self, rows: torch.Tensor) -> None:
        self.rows = self.rows[rows]

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        self.tokens[self.rows] = tokens
        self.visible[..., self.written + self.steps] = True
        self.positions += 1
        self.steps += 1
        # The first step runs as usual: what libraries prepare at first use must not be recorded.
        if self.steps == 2 and self.tokens.is_cuda:
            self._record()
        if self.recording is None:
            self._read()
        else:
            self.recording.replay()
        return self.logits[self.rows]

    def _read(self) -> None:
        self.logits = next_token_logits(self.model, self.tokens, self.visible, self.positions, self.cache)

    def _record(self) -> None:
        """Record a step, without running it. Where that fails, the steps go on as usual."""
        recording = torch.cuda.CUDAGraph()
        try:
            # The outer context restores the stream: torch.cuda.graph stays on its own one if a recording fails.
            with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(recording):
                self._read()
        except torch.OutOfMemoryError:
            raise  # grpo.sample goes on with smaller batches
        except RuntimeError:
            # Not tried again with this model: torch keeps the memory of a recording that failed (pytorch#190308).
            _not_recordable.add(self.model.get_base_model())
            return
        self.recording = recording


# ----------------------------------------------------------------------------------------- a prompt read once, to train


def can_share_prompts(causal_lm: torch.nn.Module, contexts: list[list[int]]) -> bool:
    """Do repeated contexts make up half of the tokens, and can this model keep the keys and values of all of them?

    Under gradient checkpointing it cannot: layers are computed again, without a cache.
    """
    kinds = set(getattr(causal_lm.config, "layer_types", None) or ["full_attention"])
    plain = kinds == {"full_attention"} and not causal_lm.is_activation_checkpointing
    return plain and 2 * sum(map(len, set(map(tuple, contexts)))) <= sum(map(len, contexts))


def hidden_states_of_shared_prompts(
    causal_lm: torch.nn.Module, contexts: list[list[int]], responses: list[list[int]]
) -> torch.Tensor:
    """The last hidden state in front of each response token, response after response: [M, D], M tokens in all."""
    device, length = next(causal_lm.parameters()).device, max(map(len, responses))
    ids, mask, positions, rows = each_context_once(contexts, device)  # [C, W] each, [B]
    model, cache = body_of(causal_lm), DynamicCache()
    read = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    hidden = [read.last_hidden_state[rows, -1:]]  # [B, 1, D]: what predicts the first token
    if length > 1:
        cache.batch_select_indices(rows)  # differentiable: each context's gradient is the sum over its responses
        tokens = torch.tensor([r + [PAD] * (length - len(r)) for r in responses], device=device)[:, :-1]
        full = torch.cat([mask[rows], torch.ones_like(tokens)], dim=1)  # what is padded on the right is not read
        positions = mask.sum(dim=1)[rows, None] + torch.arange(length - 1, device=device)
        written = model(input_ids=tokens, attention_mask=full, position_ids=positions, past_key_values=cache)
        hidden.append(written.last_hidden_state)
    counts = torch.tensor([len(r) for r in responses], device=device)
    return torch.cat(hidden, dim=1)[torch.arange(length, device=device) < counts[:, None]]  # [B, T, D] -> [M, D]
