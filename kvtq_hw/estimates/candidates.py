"""Candidates of the comparison: cache formats, layer by layer, and the engines that read them.

Cycles come from the cycle model, which equals the RTL's own counter. Bytes come from the layout of
stored vectors. Both are derived and exact.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.cycle_model import code_job_cycles, code_slices, token_job_cycles
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.packing import cache_bytes, scale_bytes, token_bytes, vector_bytes
from kvtq_hw.contract.tiers import NO_TIERS, Tiers

__all__ = [
    "Candidate",
    "IntegerLayer",
    "LayerFormat",
    "TernaryLayer",
    "integers",
    "sliding_windows",
    "ternary",
]

#: Bits of an element of an integer format's sinks and window (`golden.study.baselines.integers`).
TIER_BITS = 8

#: INT4 with the conditioning of the ternary codes, as `kvtq-hw eval` spells the format.
_TIERS = Tiers(sinks=4, window=32)
CONDITIONED_INT4 = f"int4,conditioned,feedback,sinks={_TIERS.sinks},window={_TIERS.window}"


class LayerFormat(Protocol):
    """Cost of attention for one KV head of one layer, over a context of `tokens` tokens."""

    @property
    def feedback(self) -> bool:
        """Whether vectors are centred, and rounded with feedback, as they are stored."""
        ...

    def cycles(self, config: EngineConfig, tokens: int) -> int:
        """Return the engine's cycles if memory never delays it."""
        ...

    def slices(self, config: EngineConfig, tokens: int) -> tuple[int, int]:
        """Return the slices of keys and those of values: the cycles in which the lanes work."""
        ...

    def bytes(self, config: EngineConfig, tokens: int) -> int:
        """Return the bytes that the engine reads."""
        ...

    def append_bytes(self, config: EngineConfig) -> int:
        """Return the bytes that an append of one token moves, in a context longer than the tiers.

        With a window: the new token is written, the token that leaves the window is read in the
        tier's digits and written in the body's. Without one: the new token is written.
        """
        ...


@dataclass(frozen=True)
class TernaryLayer:
    """A layer in a ternary code; sinks, window and scales are counted."""

    code: CacheCode

    @property
    def feedback(self) -> bool:
        """See `LayerFormat`."""
        return self.code.feedback

    def cycles(self, config: EngineConfig, tokens: int) -> int:
        """See `LayerFormat`."""
        return code_job_cycles(config, self.code, tokens)

    def slices(self, config: EngineConfig, tokens: int) -> tuple[int, int]:
        """See `LayerFormat`."""
        return code_slices(config, self.code, tokens)

    def bytes(self, config: EngineConfig, tokens: int) -> int:
        """See `LayerFormat`."""
        return cache_bytes(config, self.code, tokens)

    def append_bytes(self, config: EngineConfig) -> int:
        """See `LayerFormat`."""
        tier = 2 * vector_bytes(config, self.code.tier_digits(config.max_planes), 1)
        return _append_bytes(self.code.tiers, tier, token_bytes(config, self.code))


@dataclass(frozen=True)
class IntegerLayer:
    """A layer in integers of `bits` bits under one scale per vector; sinks and window in 8 bits.

    feedback : as in `LayerFormat`

    Lanes narrower than 8 bits take an element of sinks or window in two halves, in two slices. The
    engine as built does not support such halves: no area includes the logic for them.
    """

    bits: int
    tiers: Tiers = NO_TIERS
    feedback: bool = False

    def cycles(self, config: EngineConfig, tokens: int) -> int:
        """See `LayerFormat`."""
        slices = self.tiers.per_token(tokens, *self._token_slices(config))
        return token_job_cycles(config, slices, slices)

    def slices(self, config: EngineConfig, tokens: int) -> tuple[int, int]:
        """See `LayerFormat`."""
        of_keys = self.tiers.total(tokens, *self._token_slices(config))
        return of_keys, of_keys

    def bytes(self, config: EngineConfig, tokens: int) -> int:
        """See `LayerFormat`; a scale has as many bytes as the engine's scales."""
        return self.tiers.total(tokens, *self._token_bytes(config))

    def append_bytes(self, config: EngineConfig) -> int:
        """See `LayerFormat`."""
        return _append_bytes(self.tiers, *self._token_bytes(config))

    def _token_bytes(self, config: EngineConfig) -> tuple[int, int]:
        """Return bytes per token, key and value, of sinks and window, and of the body."""
        tier, body = (
            2 * (-(-config.head_dim * bits // 8) + scale_bytes(config))
            for bits in (TIER_BITS, self.bits)
        )
        return tier, body

    def _token_slices(self, config: EngineConfig) -> tuple[int, int]:
        """Return slices per vector of sinks and window, and per vector of the body."""
        return -(-TIER_BITS // self.bits) * config.slices, config.slices


def _append_bytes(tiers: Tiers, tier: int, body: int) -> int:
    return 2 * tier + body if tiers.window else body


@dataclass(frozen=True)
class Candidate:
    """A cache format and the engines that read it.

    Parameters
    ----------
    name : str
        Name of the candidate in tables, for example "ternary K3/V2".
    config : EngineConfig
        Configuration of the engine; lanes and planes per cycle are varied.
    code : str
        Spelled cache code, code table or baseline, under which quality was measured.
    layers : tuple of LayerFormat
        Format of each layer; a single format if all layers are alike.
    """

    name: str
    config: EngineConfig
    code: str
    layers: tuple[LayerFormat, ...]

    def engine(self, lanes: int, key_planes: int = 1, value_planes: int = 1) -> EngineConfig:
        """Return the configuration with the given lanes and planes per cycle."""
        fields = {
            "lanes": lanes,
            "key_planes_per_cycle": key_planes,
            "value_planes_per_cycle": value_planes,
        }
        return EngineConfig.model_validate(self.config.model_dump() | fields)

    def engines(self) -> list[EngineConfig]:
        """Return all possible engines, by ascending lanes, then by ascending planes per cycle.

        Lanes cost more than planes per cycle: each lane has the adder of an accumulator, which all
        planes of a cycle share. Ties are broken by fewer value planes.
        """
        dim, most = self.config.head_dim, self.config.max_planes
        planes = itertools.product(range(1, most + 1), repeat=2)
        by_cost = sorted(planes, key=lambda pair: (sum(pair), pair[1]))
        lanes = [number for number in range(2, dim + 1) if dim % number == 0]
        return [self.engine(number, *pair) for number in lanes for pair in by_cost]

    def cycles(self, config: EngineConfig, tokens: int, memory_bits: int | None = None) -> int:
        """Return the cycles of attention for one KV head of every layer, layer after layer.

        Parameters
        ----------
        memory_bits : bits that memory delivers per cycle; each layer takes the larger of the
            engine's and the memory's cycles. None: memory never delays the engine.
        """

        def of(layer: LayerFormat) -> int:
            cycles = layer.cycles(config, tokens)
            if memory_bits is None:
                return cycles
            return max(cycles, self._delivery(layer, tokens, memory_bits))

        return self._sum(of)

    def memory_cycles(self, memory_bits: int, tokens: int) -> int:
        """Return the cycles in which memory delivers the bytes of all layers, rounded per layer."""
        return self._sum(lambda layer: self._delivery(layer, tokens, memory_bits))

    def fixed_cycles(self, tokens: int) -> int:
        """Return the cycles of all layers in which the lanes of the fastest engine wait.

        The lanes wait while, for example, queries come in and outputs go out. No number of lanes
        hides these cycles.
        """
        config = self.engines()[-1]

        def of(layer: LayerFormat) -> int:
            return layer.cycles(config, tokens) - sum(layer.slices(config, tokens))

        return self._sum(of)

    def bytes(self, tokens: int) -> int:
        """Return the bytes that attention for one KV head of every layer reads."""
        return self._sum(lambda layer: layer.bytes(self.config, tokens))

    def _delivery(self, layer: LayerFormat, tokens: int, memory_bits: int) -> int:
        return -(-8 * layer.bytes(self.config, tokens) // memory_bits)

    def _sum(self, of: Callable[[LayerFormat], int]) -> int:
        return sum(count * of(layer) for layer, count in Counter(self.layers).items())


def sliding_windows(codes: Sequence[CacheCode | CodeTable]) -> tuple[int | None, ...] | None:
    """Return the sliding window of each layer of the model that codes are for.

    None if no code says any. Of the codes that do, the first table counts, or else the first
    spelled code, whose sliding window is that of all layers.
    """
    tables = [code for code in codes if isinstance(code, CodeTable)]
    layers = max((len(table.codes) for table in tables), default=1)
    for table in tables:
        windows = tuple(code.tiers.sliding for code in table.of_layers(len(table.codes)))
        if table.windows is not None or any(windows):
            return windows
    spelled = (code.tiers.sliding for code in codes if isinstance(code, CacheCode))
    window = next(filter(None, spelled), None)
    return None if window is None else (window,) * layers


def ternary(
    config: EngineConfig,
    code: CacheCode | CodeTable,
    windows: Sequence[int | None] | None = None,
) -> Candidate:
    """Return the candidate for a ternary cache code or a code table.

    Parameters
    ----------
    windows : sliding window of each layer in tokens, None in layers without; None for those of the
        code itself, which is one layer if it is no table

    Raises
    ------
    UserError
        When the code has more digits than the configuration's `max_planes`, or is for other layers
        or other sliding windows.
    """
    if code.most_digits > config.max_planes:
        raise UserError(
            f"code: {str(code)!r} has {code.most_digits} digits; configuration {config.name!r} "
            f"has max_planes = {config.max_planes}"
        )
    if isinstance(code, CodeTable):
        name, layers = code.name.removesuffix(".toml"), len(code.codes)
    else:
        name, layers = f"K{code.key_digits}/V{code.value_digits}", 1
    codes = code.of_layers(layers) if windows is None else code.for_layers(windows)
    return Candidate(f"ternary {name}", config, str(code), tuple(map(TernaryLayer, codes)))


def integers(config: EngineConfig, windows: Sequence[int | None] | None = None) -> list[Candidate]:
    """Return the candidates whose lanes multiply, with queries of 8 bits.

    INT8 and INT4 are plain integers with one scale per vector: no rotation, no feedback, no tiers.
    INT4 conditioned has centring, rotation, feedback, sinks and window, as the ternary codes have.

    Parameters
    ----------
    windows : sliding window of each layer in tokens, None in layers without; None for one layer
        without
    """
    one = {"max_planes": 1, "key_planes_per_cycle": 1, "value_planes_per_cycle": 1}
    fields = config.model_dump() | one | {"query_bits": 8}
    int8, int4 = (
        EngineConfig.model_validate(fields | {"cache_format": name}) for name in ("int8", "int4")
    )

    def layers(bits: int, tiers: Tiers, feedback: bool = False) -> tuple[IntegerLayer, ...]:
        return tuple(
            IntegerLayer(bits, tiers.sliding_over(window), feedback)
            for window in windows or (None,)
        )

    return [
        Candidate("INT8", int8, "int8", layers(8, NO_TIERS)),
        Candidate("INT4", int4, "int4", layers(4, NO_TIERS)),
        Candidate("INT4 conditioned", int4, CONDITIONED_INT4, layers(4, _TIERS, True)),
    ]
