"""Vectors to packed bytes and back in one pass, for a cache on a CPU.

For balanced codes with an absmean scale, this module computes `golden.quantizer.quantize` followed
by `golden.packer.pack`, to the bit. A decode step quantizes one token at a time; as tensor
operations it would mostly pay their start-up cost, with three hundred operations per token and
layer, and with feedback several more per element. Numba compiles plain loops over integers instead.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from golden.compiled import Array, Fields, compiled, loop_part
from golden.feedback import Feedback
from golden.packer import encode_table
from golden.quantizer import BALANCED_RATIOS, absmean_constant, absmean_shift
from golden.unpacker import decode_table
from kvtq_hw.contract.config import EngineConfig

__all__ = ["PackedQuantizer"]


class Rounding(NamedTuple):
    """Parameters of rounding and packing.

    limit : largest allowed magnitude of an element
    constant, shift : a vector's scale is ``sum(|x|) * constant * 2**-shift``, see
        `golden.quantizer.absmean_constant`
    fraction_bits, largest_word : format of a scale word
    error_max : errors for feedback are clamped to ``-error_max .. error_max - 1``, their sums to
        twice that range
    factors, shifts : feedback matrices int8 [kv_heads, D, D] and int64 [kv_heads, D]; empty when
        rounding has no feedback
    bytes_of_groups : uint8 [3**group], the byte of each group of trits
    group : trits per byte
    """

    limit: int
    constant: int
    shift: int
    fraction_bits: int
    largest_word: int
    error_max: int
    factors: np.ndarray
    shifts: np.ndarray
    bytes_of_groups: np.ndarray
    group: int


class PackedQuantizer:
    """Writes and reads balanced codes of `digits` digits in the buffers of a plane store.

    Parameters
    ----------
    config : packing, scale format and head dimension
    digits : number of planes
    ratio, feedback : as in `golden.quantizer.quantize`
    """

    def __init__(
        self, config: EngineConfig, digits: int, ratio: float | None, feedback: Feedback | None
    ) -> None:
        ratio = BALANCED_RATIOS[digits - 1] if ratio is None else ratio
        factors, shifts = np.zeros((0, 0, 0), np.int8), np.zeros((0, 0), np.int64)
        if feedback is not None:
            factors = feedback.factors.numpy(force=True)
            shifts = feedback.shift.numpy(force=True)
        self._trits_of_bytes = decode_table(config.packing).numpy()
        self._rounding = Rounding(
            2 * config.conditioned_max,
            absmean_constant(config, ratio),
            absmean_shift(config),
            config.scale_fraction_bits,
            (1 << config.scale_bits) - 1,
            1 << (config.conditioned_bits - 1),
            factors,
            shifts,
            encode_table(config.packing).numpy(),
            self._trits_of_bytes.shape[1],
        )

    def __deepcopy__(self, memo: dict[int, object]) -> PackedQuantizer:
        """Return this object, which is immutable."""
        return self

    def write(self, vectors: Tensor, data: np.ndarray, words: np.ndarray, start: int) -> None:
        """Quantize vectors and pack them into the buffers.

        Parameters
        ----------
        vectors : int64 [batch, kv_heads, T, D]
        data, words : buffers uint8 [batch, kv_heads, digits, capacity, plane_bytes] and integers
            [batch, kv_heads, 1, capacity, 1], written from token `start` on

        Raises
        ------
        TypeError
            When the vectors are not int64.
        ValueError
            When an element is too large, as in `quantize`.
        """
        if vectors.dtype != torch.int64:
            raise TypeError(f"vectors are {vectors.dtype}, must be torch.int64")
        wrong = _write(vectors.numpy(), self._rounding, data, words, start)
        if wrong >= 0:
            largest = abs(vectors.flatten()[wrong].item())
            raise ValueError(
                f"x holds {largest}; allowed are magnitudes up to {self._rounding.limit}"
            )

    def read(
        self, data: np.ndarray, words: np.ndarray, start: int, stop: int, head_dim: int
    ) -> Tensor:
        """Dequantize tokens `start` to `stop` of the buffers: int64 [batch, kv_heads, T, D]."""
        vectors = torch.empty(*data.shape[:2], stop - start, head_dim, dtype=torch.int64)
        fraction_bits = self._rounding.fraction_bits
        _read(data, words, start, fraction_bits, self._trits_of_bytes, vectors.numpy())
        return vectors


_ROUNDING = Fields(
    Rounding,
    limit=int,
    constant=int,
    shift=int,
    fraction_bits=int,
    largest_word=int,
    error_max=int,
    factors=Array(np.int8, "kv_heads", "dim", "dim", optional=True),
    shifts=Array(np.int64, "kv_heads", "dim", optional=True),
    bytes_of_groups=Array(np.uint8, "groups"),
    group=int,
)


@compiled(
    "0 <= start <= capacity - tokens",
    "plane_bytes == -(-dim // group)",
    "groups == 3**group",
    "(factors.size > 0) == (shifts.size > 0)",
    vectors=Array(np.int64, "batch", "kv_heads", "tokens", "dim", strided=True),
    rounding=_ROUNDING,
    data=Array(np.uint8, "batch", "kv_heads", "digits", "capacity", "plane_bytes", written=True),
    words=Array((np.uint8, np.int16), "batch", "kv_heads", 1, "capacity", 1, written=True),
    start=int,
)
def _write(vectors, rounding, data, words, start):
    """Do the work of `PackedQuantizer.write`.

    Return -1, or stop at an element that is too large and return its index in the flat vectors.
    """
    batch, heads, tokens, dim = vectors.shape
    digits, plane_bytes = data.shape[2], data.shape[4]
    groups = np.empty((digits, plane_bytes), np.int64)  # index into bytes_of_groups of each byte
    powers = 3 ** np.arange(rounding.group)
    sums = np.empty(dim, np.int64)  # what feedback adds to each element
    for b in range(batch):
        for h in range(heads):
            for t in range(tokens):
                x = vectors[b, h, t]
                total = 0
                for k in range(dim):
                    if not -rounding.limit <= x[k] <= rounding.limit:
                        return ((b * heads + h) * tokens + t) * dim + k
                    total += abs(x[k])
                word = _scale_word(total, rounding)
                words[b, h, 0, start + t, 0] = word
                step = _step(word, rounding.fraction_bits)
                _round(x, h, step, rounding, powers, sums, groups)
                for c in range(digits):
                    for j in range(plane_bytes):
                        data[b, h, c, start + t, j] = rounding.bytes_of_groups[groups[c, j]]
    return -1


@loop_part
def _scale_word(total, rounding):
    """Return the scale word of a vector whose magnitudes sum to `total`."""
    numerator = total * rounding.constant
    dropped = -rounding.fraction_bits - 1
    while numerator >> (dropped + rounding.fraction_bits + 1):
        dropped += 1
    # a mantissa that rounds up to 2**(fraction_bits + 1) carries into the exponent by itself
    half = 1 << dropped >> 1 if dropped > 0 else 0
    mantissa = (numerator + half) >> dropped if dropped > 0 else numerator << -dropped
    exponent = dropped - rounding.shift
    word = (exponent << rounding.fraction_bits) + mantissa - (1 << rounding.fraction_bits)
    return min(max(word, 0), rounding.largest_word) if numerator else 0


@loop_part
def _step(word, fraction_bits):
    """Return the integer scale of a stored word."""
    one = 1 << fraction_bits
    return (one + (word & (one - 1))) << (word >> fraction_bits)


@loop_part
def _round(x, h, step, rounding, powers, sums, groups):
    """Round x [D] of KV head h to multiples of `step`; group the trits of the multiples into bytes.

    Parameters
    ----------
    powers : int64 [group], powers of three
    sums : int64 [D], overwritten: what feedback adds to each element
    groups : int64 [digits, plane_bytes], the result: index into `bytes_of_groups` of each byte
    """
    digits, group, error_max = groups.shape[0], rounding.group, rounding.error_max
    fed = rounding.factors.size > 0
    groups[:] = (3**group - 1) // 2
    sums[:] = 0
    for k in range(x.shape[0]):
        rest = x[k] + sums[k]
        if fed:
            rest = min(max(rest, -2 * error_max), 2 * error_max - 1)
        code = 0
        weight = 3 ** (digits - 1)
        for c in range(digits - 1, -1, -1):
            trit = int(2 * rest > weight * step) - int(2 * rest < -weight * step)
            rest -= trit * weight * step
            code += trit * weight
            groups[c, k // group] += trit * powers[k % group]
            weight //= 3
        if fed:
            error = min(max(x[k] - step * code, -error_max), error_max - 1)
            error = (error + (1 << rounding.shifts[h, k] >> 1)) >> rounding.shifts[h, k]
            for j in range(k + 1, x.shape[0]):
                added = sums[j] + error * rounding.factors[h, k, j]
                sums[j] = min(max(added, -2 * error_max), 2 * error_max - 1)


@compiled(
    "0 <= start <= capacity - tokens",
    "plane_bytes == -(-dim // group)",
    data=Array(np.uint8, "batch", "kv_heads", "digits", "capacity", "plane_bytes"),
    words=Array((np.uint8, np.int16), "batch", "kv_heads", 1, "capacity", 1),
    start=int,
    fraction_bits=int,
    trits_of_bytes=Array(np.int8, 256, "group"),
    vectors=Array(np.int64, "batch", "kv_heads", "tokens", "dim", written=True),
)
def _read(data, words, start, fraction_bits, trits_of_bytes, vectors):
    """Do the work of `PackedQuantizer.read`."""
    batch, heads, tokens, dim = vectors.shape
    digits, group = data.shape[2], trits_of_bytes.shape[1]
    for b in range(batch):
        for h in range(heads):
            for t in range(tokens):
                step = _step(int(words[b, h, 0, start + t, 0]), fraction_bits)
                for k in range(dim):
                    code = 0
                    for c in range(digits - 1, -1, -1):
                        byte = data[b, h, c, start + t, k // group]
                        code = 3 * code + trits_of_bytes[byte, k % group]
                    vectors[b, h, t, k] = step * code
