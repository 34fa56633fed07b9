"""A group's prompt once through the model, forward and backward, instead of once for each of its responses.

The G responses of a question share their context, and so its keys and values: the contexts go through the model first,
each distinct one once, then the responses, which attend to them. Gradients flow through the shared keys and values, so
log-probs and gradients are those of the plain pass. (The idea of Prefix Grouper, arXiv:2506.05433.)
"""

from __future__ import annotations

import torch
from transformers import DynamicCache

from support.pretrained import body_of


def pays(causal_lm: torch.nn.Module, contexts: list[list[int]]) -> bool:
    """Are contexts repeated, and can this model keep their keys and values?

    Not under gradient checkpointing, which computes layers again without a cache; nor in models with another cache than
    keys and values of all tokens.
    """
    kinds = set(getattr(causal_lm.config, "layer_types", None) or ["full_attention"])
    # The name that transformers gave it, and the one that older versions know.
    name = "activation" if hasattr(causal_lm, "is_activation_checkpointing") else "gradient"
    plain = kinds == {"full_attention"} and not getattr(causal_lm, f"is_{name}_checkpointing")
    return plain and 2 * sum(map(len, set(map(tuple, contexts)))) <= sum(map(len, contexts))


def hidden_states(
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
