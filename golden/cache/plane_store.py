"""An append-only store of packed vectors with equal numbers of digits, and a view of the store."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from golden.cache.packed_quantizer import PackedQuantizer
from golden.dequantizer import dequantize
from golden.feedback import Feedback
from golden.packer import pack
from golden.planes import Planes
from golden.quantizer import quantize
from golden.scale import join_scale, split_scale
from golden.unpacker import unpack
from kvtq_hw.contract.codes import CodeKind, ScaleChoice
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.packing import plane_bytes

__all__ = ["PlaneStore", "PlaneView"]

_LEAST_ROOM = 4


class PlaneView(NamedTuple):
    """The contents of a `PlaneStore` at one time; the store never changes what a view shows.

    Attributes
    ----------
    config, kind, digits : format and code of the vectors
    data : uint8 [batch, kv_heads, planes, capacity, plane_bytes], with unused room before the first
        and behind the last token
    words : scale words, integers [batch, kv_heads, scales, capacity, 1]
    first, tokens : index of the first token in the buffers, and number of tokens
    """

    config: EngineConfig
    kind: CodeKind
    digits: int
    data: Tensor
    words: Tensor
    first: int
    tokens: int

    def planes(self, start: int = 0, stop: int | None = None) -> Planes:
        """Unpack tokens from `start` to `stop`: Planes [batch, kv_heads, tokens, digits, D]."""
        stop = self.tokens if stop is None else min(stop, self.tokens)
        place = slice(self.first + start, self.first + stop)
        data = self.data[..., place, :].transpose(-3, -2)
        words = self.words[..., place, 0].transpose(-2, -1)
        fraction, exponent = split_scale(self.config, words)
        unit = torch.ones(words.shape, dtype=torch.bool, device=words.device)
        absent = self.digits - words.shape[-1]
        return Planes(
            unpack(self.config.packing, data, self.config.head_dim),
            torch.nn.functional.pad(unit, (0, absent)),
            torch.nn.functional.pad(fraction, (0, absent)),
            torch.nn.functional.pad(exponent, (0, absent)),
        )

    def without_first(self, tokens: int) -> PlaneView:
        """Return the view without its first `tokens` tokens."""
        return self._replace(first=self.first + tokens, tokens=self.tokens - tokens)

    def buffers(self) -> tuple[np.ndarray, np.ndarray]:
        """Return bytes and scale words as arrays, for compiled loops.

        Raises
        ------
        ValueError
            When the buffers are not on a CPU.
        """
        if not self.data.is_cpu:
            raise ValueError(f"stored on {self.data.device}, must be on a CPU")
        return self.data.numpy(), self.words.numpy()


class PlaneStore:
    """Stores packed vectors of all KV heads of a layer: append-only bytes with room to grow.

    Bytes are kept plane by plane, ``[batch, kv_heads, plane, token, byte]``, so that one plane of
    consecutive tokens is consecutive in memory. Spare room is 1/64 of the stored tokens.

    Parameters
    ----------
    config : packing, scale format and head dimension
    kind, digits : the code of the stored vectors
    batch, kv_heads : leading axes of the buffers
    device : device of the buffers
    scale, ratio, feedback : how vectors are quantized; see `golden.quantizer.quantize`
    most : largest number of tokens that will ever be stored, where known

    Attributes
    ----------
    tokens : number of stored tokens
    behind : number of dropped tokens, the newest ones, that `take_back` can restore
    """

    def __init__(
        self,
        config: EngineConfig,
        kind: CodeKind,
        digits: int,
        batch: int,
        kv_heads: int,
        device: torch.device,
        scale: ScaleChoice = "absmean",
        ratio: float | None = None,
        feedback: Feedback | None = None,
        most: int | None = None,
    ) -> None:
        self.config = config
        self.kind = kind
        self.digits = digits
        self.tokens = 0
        self.behind = 0
        self._first = 0  # index of the first token in the buffers
        self._shown = 0  # places below this index may be in views though nothing is stored there
        self._most = most
        self._rounding = scale, ratio, feedback
        self._packed_quantizer = (
            PackedQuantizer(config, digits, ratio, feedback)
            if (kind, scale) == ("balanced", "absmean")
            else None
        )
        scales = 1 if kind == "balanced" else digits
        with torch.inference_mode(False):  # so that the buffers can be written in any mode
            self._data = torch.zeros(
                (batch, kv_heads, digits, 0, plane_bytes(config.packing, config.head_dim)),
                dtype=torch.uint8,
                device=device,
            )
            # torch has no arithmetic on uint16; a scale word has at most 14 bits
            self._words = torch.zeros(
                (batch, kv_heads, scales, 0, 1),
                dtype=torch.uint8 if config.scale_bits <= 8 else torch.int16,
                device=device,
            )

    def __copy__(self) -> PlaneStore:
        """Make an independent copy: two stores never share bytes that one of them writes."""
        return copy.deepcopy(self)

    @property
    def device(self) -> torch.device:
        """Device of the buffers."""
        return self._data.device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PlaneStore:
        """Move the buffers; return this store, as a cache layer's offloading expects."""
        self._map(lambda x: x.to(device, non_blocking=non_blocking))
        return self

    def view(self) -> PlaneView:
        """Return a view of the stored tokens."""
        return PlaneView(
            self.config, self.kind, self.digits, self._data, self._words, self._first, self.tokens
        )

    def append(self, planes: Planes) -> None:
        """Pack planes [batch, kv_heads, tokens, digits, D] and append them.

        Raises
        ------
        ValueError
            When the planes do not have this store's batch, heads, digits and head dimension.
        """
        batch, kv_heads, _, _, _ = self._data.shape
        expected = batch, kv_heads, planes.tokens, self.digits, self.config.head_dim
        if planes.digits.shape != expected:
            raise ValueError(f"planes are {tuple(planes.digits.shape)}; must be {expected}")
        start = self._make_room(planes.tokens)
        stop = start + planes.tokens
        words = join_scale(self.config, planes.fraction, planes.exponent)
        words = words[..., : self._words.shape[-3]]  # balanced codes: only the unit plane has one
        self._data[..., start:stop, :] = pack(self.config.packing, planes.digits).transpose(-3, -2)
        self._words[..., start:stop, :] = words.transpose(-2, -1)[..., None].to(self._words.dtype)
        self.tokens += planes.tokens

    def append_vectors(self, vectors: Tensor) -> np.ndarray:
        """Quantize int64 vectors [batch, kv_heads, tokens, D], pack and append them.

        Returns
        -------
        uint8 [batch, kv_heads, tokens], the largest scale exponent of each vector
        """
        tokens = vectors.shape[-2]
        if self._packed_quantizer is None or not self._data.is_cpu:
            scale, ratio, feedback = self._rounding
            self.append(
                quantize(
                    self.config,
                    vectors,
                    self.kind,
                    self.digits,
                    scale,
                    ratio=ratio,
                    feedback=feedback,
                )
            )
            start = self._first + self.tokens - tokens
            words = self._words.numpy(force=True)
        else:
            start = self._make_room(tokens)
            words = self._words.numpy()
            self._packed_quantizer.write(vectors, self._data.numpy(), words, start)
            self.tokens += tokens
        exponents = words[..., start : start + tokens, 0] >> self.config.scale_fraction_bits
        one = exponents.shape[2] == 1  # no maximum over one scale: it takes time in a decode step
        return (exponents[:, :, 0] if one else exponents.max(2)).astype(np.uint8)

    def vectors(self, start: int, stop: int) -> Tensor:
        """Dequantize tokens from `start` to `stop`: int64 [batch, kv_heads, tokens, D].

        Raises
        ------
        ValueError
            When not all of these tokens are stored.
        """
        if not 0 <= start <= stop <= self.tokens:
            raise ValueError(f"tokens {start} to {stop}; allowed are those of {self.tokens}")
        if self._packed_quantizer is None or not self._data.is_cpu:
            return dequantize(self.config, self.planes(start, stop))
        start, stop = start + self._first, stop + self._first
        return self._packed_quantizer.read(
            self._data.numpy(), self._words.numpy(), start, stop, self.config.head_dim
        )

    def planes(self, start: int = 0, stop: int | None = None) -> Planes:
        """Unpack tokens from `start` to `stop`: Planes [batch, kv_heads, tokens, digits, D]."""
        return self.view().planes(start, stop)

    def crop(self, tokens: int) -> None:
        """Remove all but the first `tokens` tokens."""
        if tokens < self.tokens:
            self._shown = max(self._shown, self._first + self.tokens)
            self.tokens = tokens

    def drop(self, tokens: int, keep: int = 0) -> None:
        """Remove the first `tokens` tokens, and release room when much of it is unused.

        Parameters
        ----------
        keep : number of removed tokens, the newest ones, that `take_back` can restore until the
            next append or drop
        """
        self._first += tokens
        self.tokens -= tokens
        self.behind = min(keep, tokens)
        needed = self._with_room(self.tokens + self.behind)
        if self._data.shape[-2] > needed + needed // 2:
            self._resize(needed)

    def take_back(self, tokens: int) -> None:
        """Restore the newest `tokens` tokens that were dropped.

        Raises
        ------
        ValueError
            When fewer dropped tokens were kept.
        """
        if tokens > self.behind:
            raise ValueError(f"tokens: {tokens} is not allowed; must be at most {self.behind}")
        self._first -= tokens
        self.tokens += tokens
        self.behind -= tokens

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 (the batch) to the buffers."""
        self._map(function)

    def stored_bytes(self) -> int:
        """Return the bytes of the stored tokens; spare room is not counted."""
        return sum(
            x[..., : self.tokens, :].numel() * x.element_size() for x in (self._data, self._words)
        )

    def stored_elements(self) -> int:
        """Return the number of vector elements that `stored_bytes` represents."""
        batch, kv_heads = self._data.shape[:2]
        return batch * kv_heads * self.tokens * self.config.head_dim

    def _make_room(self, tokens: int) -> int:
        """Make room for `tokens` more tokens; return the index of the first in the buffers."""
        if tokens:
            self.behind = 0
        capacity, needed = self._data.shape[-2], self.tokens + tokens
        if self._first + needed > capacity:
            self._resize(self._with_room(needed))
        elif self._first + self.tokens < self._shown:
            self._resize(capacity)
        return self._first + self.tokens

    def _resize(self, capacity: int) -> None:
        """Copy the stored and the kept tokens to the front of new buffers for `capacity` tokens."""
        used = slice(self._first - self.behind, self._first + self.tokens)
        room = capacity - self.tokens - self.behind
        self._map(lambda x: torch.nn.functional.pad(x[..., used, :], (0, 0, 0, room)))
        self._first = self.behind
        self._shown = 0

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        with torch.inference_mode(False):
            self._data, self._words = function(self._data), function(self._words)

    def _with_room(self, tokens: int) -> int:
        capacity = tokens + max(_LEAST_ROOM, tokens // 64)
        return capacity if self._most is None else max(tokens, min(capacity, self._most))
