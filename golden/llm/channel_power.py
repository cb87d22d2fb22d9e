"""The sizes of key and value channels on a text, and the equalizers that follow from them.

With rounding with feedback, what a layer loses is proportional to the *geometric* mean of what its
channels lose when all of them have the same power; the power of the stored vectors sets the
rounding step. An equalizer takes the powers closer to each other. docs/short-code.md has the
measurements behind the constants.
"""

from __future__ import annotations

import torch
from torch import Tensor

from golden.equalizer import Equalizer
from golden.llm.watching import LayerInputs

__all__ = ["FIRST_TOKENS", "KEY_EXPONENT", "VALUE_SHRINKAGE", "ChannelPower"]

#: Tokens at the start of a text, which attract attention and are stored in more digits.
FIRST_TOKENS = 4

#: A key scale is ``power**(KEY_EXPONENT / 2)``, power that of the channel's RoPE pair.
KEY_EXPONENT = 1.0
#: A value basis is ``C**(-1 / 2)``, C the second moments with products of two channels this much
#: smaller.
VALUE_SHRINKAGE = 0.8

# Least power of a channel, as a share of the usual one: a channel may be larger on another text.
_LEAST = 1e-3


class ChannelPower:
    """Accumulates second moments of one layer's keys and values over the pieces of a text.

    Attributes
    ----------
    tokens : number of tokens so far
    largest_key, largest_value : largest magnitudes so far
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.largest_key = self.largest_value = torch.tensor(0.0)
        self._counted = 0
        zero = torch.tensor(0.0, dtype=torch.float64)
        self._key_sum = self._key_squares = self._value_moments = zero

    def add(self, inputs: LayerInputs) -> None:
        """Add the attention inputs of one piece."""
        self.tokens += inputs.keys.shape[1]
        self.largest_key = torch.maximum(self.largest_key, inputs.keys.float().abs().max().cpu())
        self.largest_value = torch.maximum(
            self.largest_value, inputs.values.float().abs().max().cpu()
        )
        keys, values = (x[:, FIRST_TOKENS:].double() for x in (inputs.keys, inputs.values))
        self._counted += keys.shape[1]
        self._key_sum = self._key_sum + keys.sum(1).cpu()
        self._key_squares = self._key_squares + keys.square().sum(1).cpu()
        self._value_moments = self._value_moments + (values.mT @ values).cpu()

    @property
    def finite(self) -> bool:
        """Whether all keys and values so far are finite."""
        return bool(self.largest_key.isfinite() and self.largest_value.isfinite())

    def equalizer(self, partners: Tensor) -> Equalizer:
        """Return the layer's equalizer.

        Parameters
        ----------
        partners : channel that RoPE turns together with each channel, int64 [D]; see
            `golden.llm.rotary_pairs`
        """
        tokens = max(self._counted, 1)
        power = (self._key_squares / tokens - (self._key_sum / tokens).square()).clamp(min=0)
        scales = _raised((power + power[:, partners]) / 2) ** (KEY_EXPONENT / 2)
        scales = scales / scales.log().mean(-1, keepdim=True).exp()
        return Equalizer(scales, _inverse_root(self._value_moments / tokens))


def _raised(power: Tensor) -> Tensor:
    """Return powers [kv_heads, D] with none far below the usual one, and none that is zero."""
    usual = power.median(-1, keepdim=True).values
    usual = torch.where(usual > 0, usual, power.mean(-1, keepdim=True))
    return torch.where(usual > 0, power + _LEAST * usual, 1.0)


def _inverse_root(moments: Tensor) -> Tensor:
    """Return ``C**(-1 / 2)`` of second moments [kv_heads, D, D], scaled to determinant one."""
    power = _raised(moments.diagonal(dim1=1, dim2=2))
    shrunk = (1 - VALUE_SHRINKAGE) * moments
    shrunk.diagonal(dim1=1, dim2=2).copy_(power)
    values, vectors = torch.linalg.eigh(shrunk)
    logarithms = values.log()
    factors = ((logarithms.mean(-1, keepdim=True) - logarithms) / 2).exp()
    return (vectors * factors[:, None, :]) @ vectors.mT
