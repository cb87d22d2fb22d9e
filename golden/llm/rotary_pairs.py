"""Find the pairs of key channels that rotary position embedding (RoPE) turns together.

Models lay out the pairs in different ways: channel i with i + D/2, neighbours, some channels only,
some layers only. The model itself is asked, and not its name or its configuration. It runs on one
token at several positions, where the token attends to itself alone. Every layer then computes the
same key each time, turned by RoPE: the channels of a pair change, but the sum of their squares
stays the same.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from golden.llm.models import LanguageModel
from golden.llm.watching import LayerInputs, watched

__all__ = ["rotary_partners"]

# Tokens that are tried: a channel that happens to be zero for one is found with another.
_TOKENS = 4
# Positions are 0, 1, 3, 7, ... for fast channels and slow ones, up to this one or the model's last.
_FARTHEST = 1 << 17
# Largest change of a pair's sum of squares, relative to the changes of both channels' squares.
_CONSTANT = 0.01


def rotary_partners(language_model: LanguageModel) -> Tensor:
    """Return the channel that RoPE turns together with each channel; the channel itself if none.

    A model whose code takes no positions has no RoPE.

    Returns
    -------
    int64 [layers, D]
    """
    layers, dim = language_model.layers, language_model.head_dim
    alone = torch.arange(dim).expand(layers, dim)
    if "position_ids" not in inspect.signature(language_model.model.forward).parameters:
        return alone
    squares = _squared_keys(language_model)  # [tokens, positions, layers, kv_heads, D]
    changes = (squares - squares.mean(1, keepdim=True)).permute(2, 4, 0, 1, 3).flatten(2)
    changes = changes / changes.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-300)
    products = changes @ changes.mT  # [layers, D, D]
    own = products.diagonal(dim1=1, dim2=2)
    both = own[:, :, None] + own[:, None, :]
    left = (both + 2 * products) / both.clamp(min=1e-300)
    left.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    least, partner = left.min(-1)
    mutual = partner.gather(-1, partner) == alone
    found = mutual & (least < _CONSTANT) & (own > 0)
    return torch.where(found, partner, alone)


def _squared_keys(language_model: LanguageModel) -> Tensor:
    """Return squares of keys, float64 [tokens, positions, layers, kv_heads, D]."""
    last = min(language_model.max_positions, _FARTHEST) - 1
    positions = torch.tensor(
        sorted({min((1 << power) - 1, last) for power in range(_FARTHEST.bit_length())})
    )
    vocabulary = language_model.model.config.get_text_config().vocab_size
    tokens = (torch.arange(_TOKENS) + 1) * vocabulary // (_TOKENS + 1)
    ids, where = tokens.repeat_interleave(len(positions)), positions.repeat(_TOKENS)
    layers: dict[int, Tensor] = {}

    def attend(inputs: LayerInputs) -> Tensor:
        """Keep the keys, and let each token attend to itself alone."""
        layers[inputs.layer] = inputs.keys.double().square().cpu()
        group = len(inputs.queries) // len(inputs.values)
        return inputs.values.repeat_interleave(group, 0)

    with watched(language_model, attend), torch.no_grad():
        language_model.model(
            language_model.placed(ids)[None],
            position_ids=language_model.placed(where)[None],
            use_cache=False,
        )
    squares = torch.stack([layers[layer] for layer in range(language_model.layers)])
    return squares.permute(2, 0, 1, 3).unflatten(0, (_TOKENS, -1))
