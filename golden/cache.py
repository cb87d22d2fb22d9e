"""A KV cache for transformers that holds packed ternary planes and nothing else.

`TernaryCache` is given to `generate()` as ``past_key_values``; its layers hand themselves on to the
attention function of `golden.attention`, which reads planes instead of keys and values. Storage is
append-only: a token is quantized when it arrives and, where the code has a window of recent tokens
in more digits, once more when it leaves that window, from those digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

from golden.cache_layer import StoredLayer
from golden.conditioning import Conditioning, to_integers
from golden.dequantizer import dequantize
from golden.engine import Recent
from golden.feedback import Feedback
from golden.packed_quantizer import PackedQuantizer
from golden.packer import pack
from golden.planes import Planes
from golden.quantizer import FEEDBACK_RATIOS, quantize
from golden.scale import join_scale, split_scale
from golden.unpacker import unpack
from golden.value_exponents import ValueExponents
from kvtq_hw.codes import CacheCode, CodeKind, CodeTable, ScaleChoice
from kvtq_hw.config import EngineConfig
from kvtq_hw.errors import UserError
from kvtq_hw.packing import plane_bytes

if TYPE_CHECKING:
    from golden.backends import AttentionBackend

__all__ = ["PlaneStore", "TernaryCache", "TernaryCacheLayer", "TieredStore"]

_LEAST_ROOM = 4


class PlaneStore:
    """Packed vectors of all KV heads of a layer: append-only bytes with room to grow.

    Parameters
    ----------
    config : packing, scale format and head dimension
    kind, digits : the code of the stored vectors
    batch, kv_heads : leading axes of everything stored
    device : where the bytes live
    scale, ratio, feedback : how vectors are quantized; see `golden.quantizer.quantize`

    most : tokens that will ever be stored, where that is known

    Bytes are kept plane by plane, ``[batch, kv_heads, plane, token, byte]``, so that one plane of
    consecutive tokens is consecutive in memory. Room for more is a 64th of what is stored.
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
        self._first = 0  # place of the first token in the buffers
        self._most = most
        self._rounding = scale, ratio, feedback
        self._packed_quantizer = (
            PackedQuantizer(config, digits, ratio, feedback)
            if (kind, scale, device.type) == ("balanced", "absmean", "cpu")
            else None
        )
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
        self._map(lambda x: x)

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
        start = self._make_room(planes.tokens)
        stop = start + planes.tokens
        words = join_scale(self.config, planes.fraction, planes.exponent)
        words = words[..., : self._scales.shape[-3]]  # a balanced code: the unit plane's only
        self._bytes[..., start:stop, :] = pack(self.config.packing, planes.trits).transpose(-3, -2)
        self._scales[..., start:stop, :] = words.transpose(-2, -1)[..., None].to(self._scales.dtype)
        self.tokens += planes.tokens

    def append_vectors(self, vectors: Tensor) -> None:
        """Quantize int64 vectors [batch, kv_heads, tokens, D] and pack them behind."""
        if self._packed_quantizer is None or self._arrays is None:
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
            return
        start = self._make_room(vectors.shape[-2])
        self._packed_quantizer.write(vectors, *self._arrays, start)
        self.tokens += vectors.shape[-2]

    def vectors(self, start: int, stop: int) -> Tensor:
        """What tokens from `start` to `stop` stand for: int64 [batch, kv_heads, tokens, D]."""
        if self._packed_quantizer is None or self._arrays is None:
            return dequantize(self.config, self.planes(start, stop))
        start, stop = start + self._first, stop + self._first
        return self._packed_quantizer.read(*self._arrays, start, stop, self.config.head_dim)

    def planes(self, start: int = 0, stop: int | None = None) -> Planes:
        """Unpack tokens from `start` to `stop`: Planes [batch, kv_heads, tokens, digits, D]."""
        stop = self.tokens if stop is None else min(stop, self.tokens)
        place = slice(self._first + start, self._first + stop)
        data = self._bytes[..., place, :].transpose(-3, -2)
        words = self._scales[..., place, 0].transpose(-2, -1)
        fraction, exponent = split_scale(self.config, words)
        unit = torch.ones(words.shape, dtype=torch.bool, device=words.device)
        absent = self.digits - words.shape[-1]
        return Planes(
            unpack(self.config.packing, data, self.config.head_dim),
            torch.nn.functional.pad(unit, (0, absent)),
            torch.nn.functional.pad(fraction, (0, absent)),
            torch.nn.functional.pad(exponent, (0, absent)),
        )

    def exponents(self, newest: int) -> np.ndarray:
        """Largest scale exponent of each of the newest tokens: [batch, kv_heads, newest]."""
        words = self._scales.cpu().numpy() if self._arrays is None else self._arrays[1]
        stop = self._first + self.tokens
        newest_words = words[..., stop - newest : stop, 0]
        return (newest_words >> self.config.scale_fraction_bits).max(-2).astype(np.uint8)

    def buffers(self) -> tuple[np.ndarray, np.ndarray, int]:
        """What is stored on a CPU, as it is, with room before and behind.

        Returns
        -------
        Bytes [batch, kv_heads, planes, capacity, plane_bytes], scale words [batch, kv_heads,
        scales, capacity, 1], and the place of the first token.

        Raises
        ------
        ValueError
            When it is elsewhere.
        """
        if self._arrays is None:
            raise ValueError(f"stored on {self.device}, must be on a CPU")
        return *self._arrays, self._first

    def crop(self, tokens: int) -> None:
        """Forget all but the first `tokens` tokens."""
        self.tokens = min(self.tokens, tokens)

    def drop(self, tokens: int) -> None:
        """Forget the first `tokens` tokens, and give back room when most of it is unused."""
        self._first += tokens
        self.tokens -= tokens
        if self._bytes.shape[-2] > 2 * self._with_room(self.tokens):
            self._resize(self._with_room(self.tokens))

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 to what is stored."""
        self._map(function)

    def stored_bytes(self) -> int:
        """Bytes of the stored tokens; room for tokens to come is not counted."""
        return sum(
            x[..., : self.tokens, :].numel() * x.element_size() for x in (self._bytes, self._scales)
        )

    def stored_elements(self) -> int:
        """Numbers that those bytes stand for."""
        batch, kv_heads = self._bytes.shape[:2]
        return batch * kv_heads * self.tokens * self.config.head_dim

    def _make_room(self, tokens: int) -> int:
        """Place for tokens to come, at the end of the buffers' used part."""
        capacity, needed = self._bytes.shape[-2], self.tokens + tokens
        if self._first + needed > capacity:
            self._resize(capacity if needed <= capacity else self._with_room(needed))
        return self._first + self.tokens

    def _resize(self, capacity: int) -> None:
        """Move what is stored to the front of buffers for `capacity` tokens."""
        used, room = slice(self._first, self._first + self.tokens), capacity - self.tokens
        self._map(lambda x: torch.nn.functional.pad(x[..., used, :], (0, 0, 0, room)))
        self._first = 0

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        self._bytes, self._scales = function(self._bytes), function(self._scales)
        # for compiled loops, which take arrays: making one costs more than a token's loop
        on_cpu = self.device.type == "cpu"
        self._arrays = (self._bytes.numpy(), self._scales.numpy()) if on_cpu else None

    def _with_room(self, tokens: int) -> int:
        capacity = tokens + max(_LEAST_ROOM, tokens // 64)
        return capacity if self._most is None else max(tokens, min(capacity, self._most))


@dataclass(frozen=True)
class Written:
    """What appending T tokens wrote.

    came : uint8 [batch, kv_heads, T], largest scale exponent of each token as it came
    left : uint8 [batch, kv_heads, T], that of the token that it made leave the window; 0 if none
    window : of several tokens, the window with them, before any left it; None where it is one,
        which sees what is stored afterwards, or the code has no window
    """

    came: np.ndarray
    left: np.ndarray
    window: Planes | None


class TieredStore:
    """The keys, or the values, of a layer in three parts, chronological: sinks, body, window.

    Sinks (the first tokens) and window (the newest) are in the tier's digits, the body is in the
    short code. What leaves the window is requantized from its digits, all that is left of it by
    then. Without a window tokens are quantized once. Cropping shortens what came last; what has
    left the window stays in the body.

    Parameters
    ----------
    config, code : format and tiers
    which : "key" or "value", for the number of digits
    feedback : matrices for rounding the body; None rounds each element on its own
    """

    def __init__(
        self,
        config: EngineConfig,
        code: CacheCode,
        which: Literal["key", "value"],
        feedback: Feedback | None,
        batch: int,
        kv_heads: int,
        device: torch.device,
    ) -> None:
        self._code = code
        digits = code.key_digits if which == "key" else code.value_digits
        ratio = FEEDBACK_RATIOS[which][digits - 1] if feedback else None
        tier_digits = code.tier_digits(config.max_planes)
        shape = batch, kv_heads, device
        self.sinks = PlaneStore(config, "balanced", tier_digits, *shape, most=code.sinks)
        self.body = PlaneStore(
            config, code.kind, digits, *shape, code.scale_choice, ratio, feedback
        )
        self.window = PlaneStore(config, "balanced", tier_digits, *shape)

    @property
    def tokens(self) -> int:
        """Stored tokens."""
        return self.sinks.tokens + self.body.tokens + self.window.tokens

    @property
    def settled(self) -> int:
        """Tokens whose planes do not change any more: sinks and body."""
        return self.sinks.tokens + self.body.tokens

    @property
    def device(self) -> torch.device:
        """Where the bytes live."""
        return self.body.device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TieredStore:
        """Move the bytes; returns this store, as a cache layer's offloading expects."""
        for part in self._parts:
            part.to(device, non_blocking)
        return self

    def append(self, vectors: Tensor) -> Written:
        """Quantize int64 vectors [batch, kv_heads, tokens, D] behind what is stored."""
        tokens = vectors.shape[-2]
        sinks = max(0, min(self._code.sinks - self.tokens, tokens))
        written = []
        if sinks:
            self.sinks.append_vectors(vectors[..., :sinks, :])
            written.append(self.sinks.exponents(sinks))
            vectors = vectors[..., sinks:, :]
        rest = self.window if self._code.window else self.body
        rest.append_vectors(vectors)
        written.append(rest.exponents(tokens - sinks))
        came = np.concatenate(written, -1)
        left, before = np.zeros_like(came), None
        if self._code.window:
            before = self.window.planes() if tokens > 1 else None
            leaving = self.window.tokens - self._code.window
            if leaving > 0:
                self.body.append_vectors(self.window.vectors(0, leaving))
                # the newest token makes the last one leave, the one before it the last but one ...
                left[..., tokens - leaving :] = self.body.exponents(leaving)
                self.window.drop(leaving)
        return Written(came, left, before)

    def planes(self, start: int = 0) -> Planes:
        """Unpack tokens from `start` on: Planes [batch, kv_heads, tokens, planes, D]."""
        parts, offset = [], 0
        for part in self._parts:
            parts.append(part.planes(min(max(start - offset, 0), part.tokens)))
            offset += part.tokens
        filled = [part for part in parts if part.tokens]
        return Planes.join(filled or [parts[1]])

    def depths(self, start: int = 0) -> Tensor:
        """Number of planes of each token from `start` on, int64 [tokens]."""
        digits = torch.tensor([part.digits for part in self._parts])
        counts = torch.tensor([part.tokens for part in self._parts])
        return digits.repeat_interleave(counts)[start:]

    def crop(self, tokens: int) -> None:
        """Forget all but the first `tokens` tokens."""
        for part in self._parts:
            part.crop(max(tokens, 0))
            tokens -= part.tokens

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 to what is stored."""
        for part in self._parts:
            part.map_batch(function)

    def stored_bytes(self) -> int:
        """Bytes of the stored tokens; room for tokens to come is not counted."""
        return sum(part.stored_bytes() for part in self._parts)

    def stored_elements(self) -> int:
        """Numbers that those bytes stand for."""
        return sum(part.stored_elements() for part in self._parts)

    @property
    def _parts(self) -> tuple[PlaneStore, PlaneStore, PlaneStore]:
        return self.sinks, self.body, self.window


class TernaryCacheLayer(StoredLayer[TieredStore]):
    """One layer of a `TernaryCache`: conditions, quantizes, packs and appends.

    Attributes
    ----------
    config, code : the format of what is stored
    conditioning : what happens to keys and values before
    backend : who computes the attention of this layer
    saturated : elements so far that did not fit the 16 bits that calibration chose
    revision : counts changes other than appending. Who keeps a copy of the planes elsewhere needs
        only what came after the tokens that were `settled` when it was made, as long as this number
        stays the same.
    """

    is_croppable = True

    def __init__(
        self,
        config: EngineConfig,
        code: CacheCode,
        conditioning: Conditioning,
        backend: AttentionBackend,
    ) -> None:
        super().__init__()
        self.config = config
        self.code = code
        self.conditioning = conditioning
        self.backend = backend
        self.revision = 0
        self.saturated = 0
        self._passing: tuple[Planes, Planes] | None = None
        self._vectors: tuple[Tensor, Tensor] | None = None
        self._newest: Written | None = None  # values whose exponents do not count yet

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
        shape = batch, kv_heads, self.device
        condition, used = self.conditioning, self.code.feedback
        self.keys = TieredStore(
            self.config, self.code, "key", condition.key_feedback if used else None, *shape
        )
        self.values = TieredStore(
            self.config, self.code, "value", condition.value_feedback if used else None, *shape
        )
        self._value_exponents = ValueExponents(batch, kv_heads)
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
        condition = self.conditioning
        keys, saturated_keys = to_integers(key_states, condition.key_exponent)
        values, saturated_values = to_integers(value_states, condition.value_exponent)
        self.saturated += saturated_keys + saturated_values
        self._vectors = (keys, values) if key_states.shape[-2] == 1 else None
        keys, values = condition.rotated(condition.centred(keys)), condition.rotated(values)
        if self._newest is not None:
            self._count_exponents(self._newest, None)
        window, written = self.keys.append(keys).window, self.values.append(values)
        self._newest = replace(written, window=None)
        self._passing = None
        if window is not None and written.window is not None:
            self._passing = window, written.window
        return self, self

    def take_recent(self, queries: int) -> Recent | None:
        """The window as the newest `queries` tokens saw it, who appended themselves last.

        A query sees itself and the tokens before it, the newest `window` of them in the tier. None
        where all see what is stored now. It is handed out once, and not kept.
        """
        passing, self._passing = self._passing, None
        if passing is None:
            return None
        keys, values = passing
        tokens = self.get_seq_length()
        position = torch.arange(tokens - queries, tokens)[:, None]
        token = torch.arange(tokens - keys.tokens, tokens)
        return Recent(keys, values, (token > position - self.code.window) & (token <= position))

    def value_exponent(self, queries: int, visible: Tensor | None = None) -> Tensor:
        """The contract's `value_exponent` of the newest `queries` tokens.

        The largest exponent of any value scale written until each of them had come, in whatever
        pieces they came. Padding, which no query sees, does not count.

        Parameters
        ----------
        queries : at most the tokens of the newest update
        visible : as in `golden.backends.AttentionJob`

        Returns
        -------
        int64 [batch, kv_heads, queries]
        """
        if self._newest is not None:
            self._count_exponents(self._newest, visible)
        return torch.from_numpy(self._value_exponents.newest[..., -queries:]).to(self.device).long()

    def _count_exponents(self, newest: Written, visible: Tensor | None) -> None:
        """Go on with the running maximum over what the newest update wrote."""
        came, left = newest.came, newest.left
        tokens, new = self.get_seq_length(), came.shape[-1]
        if visible is not None:
            used = visible.any(-2).cpu().numpy()
            came = came * used[..., tokens - new :]
            # at first there are fewer tokens than a window in front of the new ones
            known = np.pad(used, ((0, 0), (0, 0), (self.code.window, 0)))
            left = left * known[..., tokens - new : tokens]
        self._value_exponents.write(np.maximum(came, left), tokens)
        self._newest = None

    def take_vectors(self) -> tuple[Tensor, Tensor] | None:
        """Key and value of the newest token as 16-bit integers, int64 [batch, kv_heads, 1, D].

        What hardware gets that stores them on its own. None after an update of several tokens.
        They are handed out once, and not kept.
        """
        vectors, self._vectors = self._vectors, None
        return vectors

    def get_max_length(self) -> int:
        """Most tokens that can be stored."""
        return self.config.max_context

    def reset(self) -> None:
        """Forget everything."""
        if self.is_initialized:
            self.crop(-self.get_seq_length())

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens, and what they did to the value exponent.

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
        if self._newest is not None:
            self._count_exponents(self._newest, None)
        kept = max(self.get_seq_length() + tokens_to_remove, 0)
        self._value_exponents.crop(kept)
        self.keys.crop(kept)
        self.values.crop(kept)
        self.revision += 1

    def key_planes(self, start: int = 0) -> Planes:
        """Planes of the keys from token `start` on, [batch, kv_heads, tokens, digits, D]."""
        return self.keys.planes(start)

    def value_planes(self, start: int = 0) -> Planes:
        """Planes of the values from token `start` on, [batch, kv_heads, tokens, digits, D]."""
        return self.values.planes(start)

    @property
    def settled(self) -> int:
        """Tokens whose planes do not change any more, whatever is appended."""
        return self.keys.settled if self.is_initialized else 0

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Rearrange what is stored, and the value exponents with it."""
        super().map_batch(function)
        if self.is_initialized:
            if self._newest is not None:
                self._count_exponents(self._newest, None)
            self._value_exponents.map_batch(function)
            self.revision += 1


class TernaryCache(Cache):
    """A whole model's cache of ternary planes, to be passed as ``past_key_values``.

    The model must run with `golden.attention.ATTENTION` as its attention implementation.

    Parameters
    ----------
    code : one for all layers, or a table with one for each
    conditioning : one entry a layer
    """

    def __init__(
        self,
        config: EngineConfig,
        code: CacheCode | CodeTable,
        conditioning: Sequence[Conditioning],
        backend: AttentionBackend,
    ) -> None:
        codes = code.for_layers(len(conditioning))
        super().__init__(
            layers=[
                TernaryCacheLayer(config, of_layer, entry, backend)
                for of_layer, entry in zip(codes, conditioning, strict=True)
            ]
        )

    def bits_per_element(self) -> float:
        """Stored bits per cached number: everything that is stored for a token is counted."""
        stored = sum(layer.stored_bytes() for layer in self.layers)
        return 8 * stored / sum(layer.stored_elements() for layer in self.layers)
