"""Vectors to packed bytes and back in one pass, for the cache of a CPU.

The same function as `golden.quantizer.quantize` followed by `golden.packer.pack`, to the bit, for
balanced codes with an absmean scale. A decode step quantizes one token at a time, so as a chain of
tensor operations it would spend its time on starting them: three hundred a token and layer, and
with feedback some for each element. Here Numba compiles plain loops over integers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from golden.compiled import Array, compiled
from golden.feedback import Feedback
from golden.packer import encode_table
from golden.quantizer import BALANCED_RATIOS, absmean_constant, absmean_shift
from golden.unpacker import decode_table
from kvtq_hw.contract.config import EngineConfig

__all__ = ["PackedQuantizer"]


class PackedQuantizer:
    """Writes and reads balanced codes of one number of digits in the buffers of a plane store.

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
        self._limit = 2 * config.conditioned_max
        self._scale = (
            absmean_constant(config, ratio),
            absmean_shift(config),
            config.scale_fraction_bits,
            (1 << config.scale_bits) - 1,
        )
        self._error_max = 1 << (config.conditioned_bits - 1)
        self._factors, self._shifts = np.zeros((0, 0, 0), np.int8), np.zeros((0, 0), np.int64)
        if feedback is not None:
            self._factors = feedback.factors.numpy(force=True)
            self._shifts = feedback.shift.numpy(force=True)
        self._bytes_of_groups = encode_table(config.packing).numpy()
        self._trits_of_bytes = decode_table(config.packing).numpy()

    def __deepcopy__(self, memo: dict[int, object]) -> PackedQuantizer:
        """The same one: it never changes."""
        return self

    def write(self, vectors: Tensor, data: np.ndarray, words: np.ndarray, start: int) -> None:
        """Quantize and pack.

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
            For elements that are too large, as `quantize` does.
        """
        if vectors.dtype != torch.int64:
            raise TypeError(f"vectors are {vectors.dtype}, must be torch.int64")
        wrong = _write(
            vectors.numpy(),
            self._limit,
            *self._scale,
            self._error_max,
            self._factors,
            self._shifts,
            self._bytes_of_groups,
            self._trits_of_bytes.shape[1],
            data,
            words,
            start,
        )
        if wrong >= 0:
            largest = abs(vectors.flatten()[wrong].item())
            raise ValueError(f"x holds {largest}; allowed are magnitudes up to {self._limit}")

    def read(
        self, data: np.ndarray, words: np.ndarray, start: int, stop: int, head_dim: int
    ) -> Tensor:
        """What tokens from `start` to `stop` stand for: int64 [batch, kv_heads, T, D]."""
        vectors = torch.empty(*data.shape[:2], stop - start, head_dim, dtype=torch.int64)
        _read(
            data,
            words,
            start,
            self._scale[2],
            self._trits_of_bytes,
            vectors.numpy(),
        )
        return vectors


@compiled(
    "0 <= start <= capacity - tokens",
    "plane_bytes == -(-dim // group)",
    "groups == 3**group",
    "(factors.size > 0) == (shifts.size > 0)",
    vectors=Array(np.int64, "batch", "kv_heads", "tokens", "dim", strided=True),
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
    data=Array(np.uint8, "batch", "kv_heads", "digits", "capacity", "plane_bytes", written=True),
    words=Array((np.uint8, np.int16), "batch", "kv_heads", 1, "capacity", 1, written=True),
    start=int,
)
def _write(
    vectors,
    limit,
    constant,
    shift,
    fraction_bits,
    largest_word,
    error_max,
    factors,
    shifts,
    bytes_of_groups,
    group,
    data,
    words,
    start,
):
    """See `PackedQuantizer.write`; stops at an element that is too large, whose place it returns.

    The place is that in the flat vectors, or -1.
    """
    batch, heads, tokens, dim = vectors.shape
    digits, plane_bytes = data.shape[2], data.shape[4]
    one = 1 << fraction_bits
    powers = 3 ** np.arange(group)
    groups = np.empty((digits, plane_bytes), np.int64)  # index of each byte's trits
    sums = np.empty(dim, np.int64)  # what feedback adds to each element
    for b in range(batch):
        for h in range(heads):
            for t in range(tokens):
                x = vectors[b, h, t]
                total = 0
                for k in range(dim):
                    if not -limit <= x[k] <= limit:
                        return ((b * heads + h) * tokens + t) * dim + k
                    total += abs(x[k])
                # the nearest scale; a mantissa that rounds up to 2 * one carries by itself
                numerator = total * constant
                dropped = -fraction_bits - 1
                while numerator >> (dropped + fraction_bits + 1):
                    dropped += 1
                if dropped > 0:
                    mantissa = (numerator + (1 << dropped >> 1)) >> dropped
                else:
                    mantissa = numerator << -dropped
                word = ((dropped - shift) << fraction_bits) + mantissa - one
                word = min(max(word, 0), largest_word) if numerator else 0
                words[b, h, 0, start + t, 0] = word
                step = (one + (word & (one - 1))) << (word >> fraction_bits)
                # the digits
                groups[:] = (3**group - 1) // 2
                sums[:] = 0
                for k in range(dim):
                    rest = x[k] + sums[k]
                    if factors.size:
                        rest = min(max(rest, -2 * error_max), 2 * error_max - 1)
                    code = 0
                    weight = 3 ** (digits - 1)
                    for c in range(digits - 1, -1, -1):
                        trit = int(2 * rest > weight * step) - int(2 * rest < -weight * step)
                        rest -= trit * weight * step
                        code += trit * weight
                        groups[c, k // group] += trit * powers[k % group]
                        weight //= 3
                    if factors.size:
                        error = min(max(x[k] - step * code, -error_max), error_max - 1)
                        error = (error + (1 << shifts[h, k] >> 1)) >> shifts[h, k]
                        for j in range(k + 1, dim):
                            added = sums[j] + error * factors[h, k, j]
                            sums[j] = min(max(added, -2 * error_max), 2 * error_max - 1)
                for c in range(digits):
                    for j in range(plane_bytes):
                        data[b, h, c, start + t, j] = bytes_of_groups[groups[c, j]]
    return -1


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
    """See `PackedQuantizer.read`."""
    batch, heads, tokens, dim = vectors.shape
    digits, group = data.shape[2], trits_of_bytes.shape[1]
    one = 1 << fraction_bits
    for b in range(batch):
        for h in range(heads):
            for t in range(tokens):
                word = int(words[b, h, 0, start + t, 0])
                step = (one + (word & (one - 1))) << (word >> fraction_bits)
                for k in range(dim):
                    code = 0
                    for c in range(digits - 1, -1, -1):
                        byte = data[b, h, c, start + t, k // group]
                        code = 3 * code + trits_of_bytes[byte, k % group]
                    vectors[b, h, t, k] = step * code
