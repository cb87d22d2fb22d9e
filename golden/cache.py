"""A KV cache for transformers that holds packed ternary planes and nothing else.

`TernaryCache` is given to `generate()` as ``past_key_values``; its layers hand themselves on to the
attention function of `golden.attention`, which reads planes instead of keys and values. A token is
quantized once, when it arrives, and never again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from golden.conditioning import Conditioning
from golden.packer import pack
from golden.planes import Planes
from golden.quantizer import quantize
from golden.scale import join_scale, split_scale
from golden.unpacker import unpack
from kvtq_hw.codes import CacheCode, CodeKind, ScaleChoice
from kvtq_hw.config import EngineConfig
from kvtq_hw.errors import UserError
from kvtq_hw.packing import plane_bytes

if TYPE_CHECKING:
    from golden.backends import AttentionBackend

__all__ = ["PlaneStore", "TernaryCache", "TernaryCacheLayer"]

_FIRST_CAPACITY = 64


class PlaneStore:
    """Packed vectors of all KV heads of a layer: append-only bytes with room to grow.

    Parameters
    ----------
    config : packing, scale format and head dimension
    kind, digits : the code of the stored vectors
    batch, kv_heads : leading axes of everything stored
    device : where the bytes live

    Bytes are kept plane by plane, ``[batch, kv_heads, plane, token, byte]``, so that one plane of
    consecutive tokens is consecutive in memory. Capacity doubles when it is used up.
    """

    def __init__(
        self,
        config: EngineConfig,
        kind: CodeKind,
        digits: int,
        batch: int,
        kv_heads: int,
        device: torch.device,
    ) -> None:
        self.config = config
        self.kind = kind
        self.digits = digits
        self.tokens = 0
        scales = 1 if kind == "balanced" else digits
        self._bytes = torch.zeros(
            (batch, kv_heads, digits, 0, plane_bytes(config.packing, config.head_dim)),
            dtype=torch.uint8,
            device=device,
        )
        # torch has no arithmetic on uint16; a scale word has at most 14 bits
        self._scales = torch.zeros(
            (batch, kv_heads, scales, 0, 1),
            dtype=torch.uint8 if config.scale_bits <= 8 else torch.int16,
            device=device,
        )

    @property
    def device(self) -> torch.device:
        """Where the bytes live."""
        return self._bytes.device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PlaneStore:
        """Move the bytes; returns this store, as a cache layer's offloading expects."""
        self._map(lambda x: x.to(device, non_blocking=non_blocking))
        return self

    def append(self, planes: Planes) -> None:
        """Pack planes [batch, kv_heads, tokens, digits, D] behind what is stored."""
        start, stop = self.tokens, self.tokens + planes.tokens
        capacity = self._bytes.shape[-2]
        if stop > capacity:
            grown = max(_FIRST_CAPACITY, 2 * capacity, stop) - capacity
            self._map(lambda x: torch.nn.functional.pad(x, (0, 0, 0, grown)))
        words = join_scale(self.config, planes.fraction, planes.exponent)
        words = words[..., : self._scales.shape[-3]]  # a balanced code: the unit plane's only
        self._bytes[..., start:stop, :] = pack(self.config.packing, planes.trits).transpose(-3, -2)
        self._scales[..., start:stop, :] = words.transpose(-2, -1)[..., None].to(self._scales.dtype)
        self.tokens = stop

    def planes(self, start: int = 0) -> Planes:
        """Unpack tokens from `start` on: Planes [batch, kv_heads, tokens, digits, D]."""
        data = self._bytes[..., start : self.tokens, :].transpose(-3, -2)
        words = self._scales[..., start : self.tokens, 0].transpose(-2, -1)
        fraction, exponent = split_scale(self.config, words)
        unit = torch.ones(words.shape, dtype=torch.bool, device=words.device)
        absent = self.digits - words.shape[-1]
        return Planes(
            unpack(self.config.packing, data, self.config.head_dim),
            torch.nn.functional.pad(unit, (0, absent)),
            torch.nn.functional.pad(fraction, (0, absent)),
            torch.nn.functional.pad(exponent, (0, absent)),
        )

    def crop(self, tokens: int) -> None:
        """Forget all but the first `tokens` tokens."""
        self.tokens = min(self.tokens, tokens)

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 to what is stored."""
        self._map(function)

    def stored_bytes(self) -> int:
        """Bytes of the stored tokens; room for tokens to come is not counted."""
        return sum(x[..., : self.tokens, :].numel() * x.element_size() for x in self._tensors())

    def stored_elements(self) -> int:
        """Numbers that those bytes stand for."""
        batch, kv_heads = self._bytes.shape[:2]
        return batch * kv_heads * self.tokens * self.config.head_dim

    def _tensors(self) -> tuple[Tensor, Tensor]:
        return self._bytes, self._scales

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        self._bytes, self._scales = function(self._bytes), function(self._scales)


class TernaryCacheLayer(CacheLayerMixin):
    """One layer of a `TernaryCache`: conditions, quantizes, packs and appends.

    Attributes
    ----------
    config, code, scale : the format of what is stored
    conditioning : what happens to keys and values before
    backend : who computes the attention of this layer
    saturated : elements so far that did not fit the 16 bits that calibration chose
    revision : counts changes other than appending. Who keeps a copy of the planes elsewhere needs
        only what came after the tokens it has seen, as long as this number stays the same.
    """

    is_croppable = True
    # of the base class, where they are tensors
    keys: PlaneStore
    values: PlaneStore

    def __init__(
        self,
        config: EngineConfig,
        code: CacheCode,
        scale: ScaleChoice,
        conditioning: Conditioning,
        backend: AttentionBackend,
    ) -> None:
        super().__init__()
        self.config = config
        self.code = code
        self.scale: ScaleChoice = scale
        self.conditioning = conditioning
        self.backend = backend
        self.revision = 0
        self.saturated = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make empty stores for the batch and the heads of the first tokens."""
        for name, states in (("keys", key_states), ("values", value_states)):
            if states.shape[-1] != self.config.head_dim:
                raise ValueError(
                    f"{name} have head dimension {states.shape[-1]}, "
                    f"configuration {self.config.name!r} needs {self.config.head_dim}"
                )
        batch, kv_heads = key_states.shape[:2]
        self.device = key_states.device
        self.keys, self.values = (
            PlaneStore(self.config, self.code.kind, digits, batch, kv_heads, self.device)
            for digits in (self.code.key_digits, self.code.value_digits)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[TernaryCacheLayer, TernaryCacheLayer]:
        """Append tokens [batch, kv_heads, tokens, D]; returns this layer for keys and values.

        Raises
        ------
        UserError
            When the context grows beyond `max_context`.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        tokens = self.get_seq_length() + key_states.shape[-2]
        if tokens > self.config.max_context:
            raise UserError(
                f"context: {tokens} tokens; configuration {self.config.name!r} allows at most "
                f"max_context = {self.config.max_context}"
            )
        keys, saturated_keys = self.conditioning.condition_keys(key_states)
        values, saturated_values = self.conditioning.condition_values(value_states)
        self.saturated += saturated_keys + saturated_values
        self.keys.append(self._quantized(keys, "key"))
        self.values.append(self._quantized(values, "value"))
        return self, self

    def get_mask_sizes(self, query_length: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Tokens that a forward of `query_length` tokens attends to, and the first one's index."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """Stored tokens."""
        return self.keys.tokens if self.is_initialized else 0

    def get_max_length(self) -> int:
        """Most tokens that can be stored."""
        return self.config.max_context

    def reset(self) -> None:
        """Forget everything."""
        if self.is_initialized:
            self.crop(-self.get_seq_length())

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rearrange the batch for beam search."""
        self._map_batch(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens.

        Raises
        ------
        ValueError
            For a positive number, as the layers of transformers do.
        """
        if tokens_to_remove > 0:
            raise ValueError(
                f"tokens_to_remove: {tokens_to_remove} is not allowed; must be zero or negative"
            )
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        kept = max(self.get_seq_length() + tokens_to_remove, 0)
        self.keys.crop(kept)
        self.values.crop(kept)
        self.revision += 1

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence of the batch."""
        self._map_batch(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences of the batch."""
        self._map_batch(lambda x: x[indices])

    def key_planes(self, start: int = 0) -> Planes:
        """Planes of the keys from token `start` on, [batch, kv_heads, tokens, digits, D]."""
        return self.keys.planes(start)

    def value_planes(self, start: int = 0) -> Planes:
        """Planes of the values from token `start` on, [batch, kv_heads, tokens, digits, D]."""
        return self.values.planes(start)

    def stored_bytes(self) -> int:
        """Bytes of keys and values: planes, scales and padding."""
        return self.keys.stored_bytes() + self.values.stored_bytes() if self.is_initialized else 0

    def stored_elements(self) -> int:
        """Numbers that those bytes stand for."""
        if not self.is_initialized:
            return 0
        return self.keys.stored_elements() + self.values.stored_elements()

    def _quantized(self, states: Tensor, which: str) -> Planes:
        digits = self.code.key_digits if which == "key" else self.code.value_digits
        return quantize(self.config, states, self.code.kind, digits, self.scale)

    def _map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        if self.is_initialized:
            self.keys.map_batch(function)
            self.values.map_batch(function)
            self.revision += 1


class TernaryCache(Cache):
    """A whole model's cache of ternary planes, to be passed as ``past_key_values``.

    The model must run with `golden.attention.ATTENTION` as its attention implementation.

    Parameters
    ----------
    conditioning : one entry a layer
    """

    def __init__(
        self,
        config: EngineConfig,
        code: CacheCode,
        scale: ScaleChoice,
        conditioning: Sequence[Conditioning],
        backend: AttentionBackend,
    ) -> None:
        super().__init__(
            layers=[
                TernaryCacheLayer(config, code, scale, entry, backend) for entry in conditioning
            ]
        )

    def bits_per_element(self) -> float:
        """Stored bits per cached number: everything that is stored for a token is counted."""
        stored = sum(layer.stored_bytes() for layer in self.layers)
        return 8 * stored / sum(layer.stored_elements() for layer in self.layers)
