"""transformers' own `QuantizedCache`: ``transformers:4`` and ``transformers:2``.

The backend is quanto (package `optimum-quanto`), with the library's defaults: groups of 64, and up
to 128 newest tokens unquantized. When there are 128 unquantized tokens, the library dequantizes the
whole cache and quantizes it again together with these tokens. The library returns tensors in the
model's dtype, which the model's own attention reads. A forward pass sees its own tokens
unquantized, so chunks are as long as the window: every query then sees the same as token by token,
except that the library quantizes the very first forward pass of a sequence at once.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass

from torch import Tensor
from transformers import Cache, QuantizedCache
from transformers.configuration_utils import PreTrainedConfig

from golden.study.formats import FormatInputs
from kvtq_hw.contract.errors import UserError

__all__ = ["EXAMPLES", "TransformersFormat", "parse", "resident_bytes"]

EXAMPLES = ("transformers:4",)
WINDOW = 128


@dataclass(frozen=True)
class TransformersFormat:
    """See `golden.study.formats.CacheFormat`."""

    name: str
    bits: int
    model_config: PreTrainedConfig
    attention: str = "sdpa"
    arithmetic: str = "float"
    longest_chunk: int | None = WINDOW

    def make_cache(self) -> QuantizedCache:
        """Make an empty cache."""
        return QuantizedCache("quanto", self.model_config, nbits=self.bits, residual_length=WINDOW)

    def stored(self, cache: Cache) -> tuple[int, int]:
        """Return the bytes of all tensors in the layers, and the elements they represent."""
        text_config = self.model_config.get_text_config()
        heads = getattr(text_config, "num_key_value_heads", None) or text_config.num_attention_heads
        head_dim = getattr(text_config, "head_dim", None) or (
            text_config.hidden_size // text_config.num_attention_heads
        )
        elements = 2 * heads * head_dim * sum(layer.get_seq_length() for layer in cache.layers)
        return sum(resident_bytes(vars(layer)) for layer in cache.layers), elements

    @property
    def modules(self) -> tuple[str, ...]:
        """This module."""
        return (__name__,)

    def identity(self) -> str:
        """Return an empty identity: the distribution determines the library's version."""
        return ""


def parse(text: str, inputs: FormatInputs) -> TransformersFormat | None:
    """Parse a spelled format; return None if it is not of this family."""
    if not text.startswith("transformers:"):
        return None
    match = re.fullmatch(r"transformers:([24])", text)
    if match is None:
        raise UserError(
            f"code: {text!r} is not a code of transformers' cache; allowed are transformers:4 and "
            "transformers:2"
        )
    if importlib.util.find_spec("optimum") is None:
        raise UserError(f"code: {text!r} needs a package; get it with: pip install optimum-quanto")
    return TransformersFormat(text, int(match[1]), inputs.language_model.model.config)


def resident_bytes(held: object) -> int:
    """Return the bytes of all tensors in dictionaries, sequences and tensor subclasses."""
    if isinstance(held, dict):
        return sum(resident_bytes(value) for value in held.values())
    if isinstance(held, list | tuple):
        return sum(resident_bytes(value) for value in held)
    if not isinstance(held, Tensor):
        return 0
    if hasattr(held, "__tensor_flatten__"):  # a subclass that is made of other tensors
        names, _ = held.__tensor_flatten__()
        return sum(resident_bytes(getattr(held, name)) for name in names)
    return held.numel() * held.element_size()
