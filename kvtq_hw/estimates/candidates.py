"""What is compared: a cache format, layer by layer, and the engines that can read it.

Cycles come from the cycle model, which equals the RTL's own counter, bytes from the layout of
stored vectors: both are derived, and exact.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.cycle_model import code_bound, code_job_cycles, token_job_cycles
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.packing import cache_bytes, scale_bytes
from kvtq_hw.contract.tiers import NO_TIERS, Tiers

__all__ = [
    "Candidate",
    "IntegerLayer",
    "LayerFormat",
    "TernaryLayer",
    "integers",
    "ternary",
]

#: Bits of an element of an integer format's sinks and window (`golden.study.baselines.integers`).
TIER_BITS = 8

#: INT4 with what the ternary codes have, as `kvtq-hw eval` spells it.
_TIERS = Tiers(sinks=4, window=32)
CONDITIONED_INT4 = f"int4,conditioned,feedback,sinks={_TIERS.sinks},window={_TIERS.window}"


class LayerFormat(Protocol):
    """What the attention of one KV head of one layer costs, over a context of T tokens."""

    def cycles(self, config: EngineConfig, tokens: int) -> int:
        """Cycles of the engine when every byte is there in time."""
        ...

    def slices(self, config: EngineConfig, tokens: int) -> int:
        """Slices of keys and values: the cycles in which its lanes work."""
        ...

    def bytes(self, config: EngineConfig, tokens: int) -> int:
        """Bytes that it reads."""
        ...


@dataclass(frozen=True)
class TernaryLayer:
    """A layer in a ternary code; tiers and scales count in planes and bytes."""

    code: CacheCode

    def cycles(self, config: EngineConfig, tokens: int) -> int:
        """See `LayerFormat`."""
        return code_job_cycles(config, self.code, tokens)

    def slices(self, config: EngineConfig, tokens: int) -> int:
        """See `LayerFormat`."""
        return code_bound(config, self.code, tokens)

    def bytes(self, config: EngineConfig, tokens: int) -> int:
        """See `LayerFormat`."""
        return cache_bytes(config, self.code, tokens)


@dataclass(frozen=True)
class IntegerLayer:
    """A layer in integers of `bits` bits under one scale per vector; sinks and window in 8 bits.

    In lanes of fewer bits per element of the tier is counted as two halves in two slices. The
    engine as built takes no such halves: what it would need for them is in no area.
    """

    bits: int
    tiers: Tiers = NO_TIERS

    def cycles(self, config: EngineConfig, tokens: int) -> int:
        """See `LayerFormat`."""
        slices = self.tiers.per_token(tokens, *self._token_slices(config))
        return token_job_cycles(config, slices, slices)

    def slices(self, config: EngineConfig, tokens: int) -> int:
        """See `LayerFormat`."""
        return 2 * self.tiers.total(tokens, *self._token_slices(config))

    def bytes(self, config: EngineConfig, tokens: int) -> int:
        """See `LayerFormat`; a scale is as long as the engine's."""
        tier, body = (
            -(-config.head_dim * bits // 8) + scale_bytes(config) for bits in (TIER_BITS, self.bits)
        )
        return 2 * self.tiers.total(tokens, tier, body)

    def _token_slices(self, config: EngineConfig) -> tuple[int, int]:
        """Slices per vector in the tier and in the body."""
        return -(-TIER_BITS // self.bits) * config.slices, config.slices


@dataclass(frozen=True)
class Candidate:
    """A cache format and the engines for it.

    Parameters
    ----------
    name : str
        Its name in tables, for example "ternary K3/V2".
    config : EngineConfig
        The engine; its lanes are a starting point.
    code : str
        The cache code, table or baseline whose quality it stands for.
    layers : tuple of LayerFormat
        The format of each layer; one where all are alike.
    """

    name: str
    config: EngineConfig
    code: str
    layers: tuple[LayerFormat, ...]

    def engine(self, lanes: int, key_planes: int = 1, value_planes: int = 1) -> EngineConfig:
        """Its configuration with so many lanes, and planes per cycle."""
        fields = {
            "lanes": lanes,
            "key_planes_per_cycle": key_planes,
            "value_planes_per_cycle": value_planes,
        }
        return EngineConfig.model_validate(self.config.model_dump() | fields)

    def engines(self) -> list[EngineConfig]:
        """What head dimension and planes allow: fewest lanes first, then fewest planes per cycle.

        Lanes come first: each has the adder of an accumulator, which all planes of a cycle share.
        Of as many planes those have the fewest of values.
        """
        dim, most = self.config.head_dim, self.config.max_planes
        planes = itertools.product(range(1, most + 1), repeat=2)
        by_cost = sorted(planes, key=lambda pair: (sum(pair), pair[1]))
        lanes = [number for number in range(2, dim + 1) if dim % number == 0]
        return [self.engine(number, *pair) for number in lanes for pair in by_cost]

    def cycles(self, config: EngineConfig, tokens: int, memory_bits: int | None = None) -> int:
        """Cycles of the attention of one KV head of every layer, one layer after the other.

        Parameters
        ----------
        memory_bits : bits that memory delivers a cycle; a layer takes its or the engine's cycles,
            whichever are more. Without it every byte is there in time.
        """

        def of(layer: LayerFormat) -> int:
            cycles = layer.cycles(config, tokens)
            if memory_bits is None:
                return cycles
            return max(cycles, self._delivery(layer, tokens, memory_bits))

        return self._sum(of)

    def memory_cycles(self, memory_bits: int, tokens: int) -> int:
        """Cycles in which memory delivers these attentions' bytes, layers each on their own."""
        return self._sum(lambda layer: self._delivery(layer, tokens, memory_bits))

    def fixed_cycles(self, tokens: int) -> int:
        """Cycles of these attentions in which its fastest engine's lanes wait.

        Queries come in, outputs go out: no number of lanes hides that.
        """
        config = self.engines()[-1]
        return self._sum(lambda layer: layer.cycles(config, tokens) - layer.slices(config, tokens))

    def bytes(self, tokens: int) -> int:
        """Bytes that these attentions read."""
        return self._sum(lambda layer: layer.bytes(self.config, tokens))

    def _delivery(self, layer: LayerFormat, tokens: int, memory_bits: int) -> int:
        return -(-8 * layer.bytes(self.config, tokens) // memory_bits)

    def _sum(self, of: Callable[[LayerFormat], int]) -> int:
        return sum(count * of(layer) for layer, count in Counter(self.layers).items())


def ternary(config: EngineConfig, code: CacheCode | CodeTable) -> Candidate:
    """The candidate of a ternary cache code, or of a table with a code for each layer.

    Raises
    ------
    UserError
        When it has more digits than the configuration's planes.
    """
    if code.most_digits > config.max_planes:
        raise UserError(
            f"code: {str(code)!r} has {code.most_digits} digits; configuration {config.name!r} "
            f"has max_planes = {config.max_planes}"
        )
    if isinstance(code, CodeTable):
        name, codes = code.name.removesuffix(".toml"), code.codes
    else:
        name, codes = f"K{code.key_digits}/V{code.value_digits}", (code,)
    return Candidate(f"ternary {name}", config, str(code), tuple(map(TernaryLayer, codes)))


def integers(config: EngineConfig) -> list[Candidate]:
    """The candidates with multipliers, against queries of 8 bits.

    INT8 and INT4 are plain integers, one scale per vector: no rotation, no feedback, no tiers. INT4
    conditioned has what the ternary codes have: centring, rotation, feedback, sinks and window.
    """
    one = {"max_planes": 1, "key_planes_per_cycle": 1, "value_planes_per_cycle": 1}
    fields = config.model_dump() | one | {"query_bits": 8}
    int8, int4 = (
        EngineConfig.model_validate(fields | {"cache_format": name}) for name in ("int8", "int4")
    )
    return [
        Candidate("INT8", int8, "int8", (IntegerLayer(8),)),
        Candidate("INT4", int4, "int4", (IntegerLayer(4),)),
        Candidate("INT4 conditioned", int4, CONDITIONED_INT4, (IntegerLayer(4, _TIERS),)),
    ]
