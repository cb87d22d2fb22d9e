"""What if: attention of one decoded token on other memories, lanes and contexts.

An engine works through all layers and KV heads of a model, job after job, beside a memory that
delivers one word per cycle. Cycles come from the cycle model, bytes from the memory layout (both
derived), energies from `system_energy` (projected).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvtq_hw.estimates.candidates import Candidate
from kvtq_hw.estimates.system_energy import (
    Measured,
    System,
    SystemEnergy,
    system_energy,
)

__all__ = ["LANES", "MEMORY_BITS", "Attention", "attention", "attentions"]

#: Lanes of an engine, divisors of every system's head dimension.
LANES = (8, 16, 32, 64)

#: Bits that a memory delivers per cycle.
MEMORY_BITS = (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Attention:
    """Attention of one decoded token, over all layers and KV heads.

    bytes : bytes that the attention reads (derived)
    cycles : in each layer the larger of the engine's and the memory's cycles (derived)
    waiting, layers : layers in which the memory takes longer, and layers of the format: one if all
        layers are alike
    energy : energy by part, of the measured engine and its port, whichever lanes and memory are
        chosen (projected)
    """

    bytes: float
    cycles: float
    waiting: int
    layers: int
    energy: SystemEnergy

    @property
    def limit(self) -> str:
        """What limits the speed: the memory, the engine, or each in some layers."""
        if self.waiting in (0, self.layers):
            return "memory" if self.waiting else "engine"
        return f"memory in {self.waiting} of {self.layers} layers"

    def tokens_per_second(self, clock_mhz: float) -> float:
        """Return the tokens per second of attention alone, at a clock of the engine."""
        return 1e6 * clock_mhz / self.cycles


def attention(
    system: System,
    tokens: int,
    candidate: Candidate,
    measured: Measured,
    lanes: int,
    memory_bits: int,
) -> Attention:
    """Return what the attention of one decoded token takes.

    A code table with another number of layers than the model counts with its mean layer.

    Parameters
    ----------
    tokens : cached tokens, more than sinks and window
    candidate : format of the cache, with any configuration
    measured : an attention on an engine for this format; its planes per cycle count for the
        cycles, all of it for the energy
    memory_bits : bits that the memory delivers per cycle of the engine's clock
    """
    at = attentions(system, tokens, candidate, measured, (lanes,), (memory_bits,))
    return at[lanes, memory_bits]


def attentions(
    system: System,
    tokens: int,
    candidate: Candidate,
    measured: Measured,
    lanes: Iterable[int] = LANES,
    memory_bits: Sequence[int] = MEMORY_BITS,
) -> dict[tuple[int, int], Attention]:
    """Return `attention` by lanes and bits of the memory, for each of both."""
    energy = system_energy(system, tokens, candidate, measured)
    share = system.layers * system.kv_heads / len(candidate.layers)
    fitting = system.engine(measured.config, tokens)
    found = {}
    for number in lanes:
        config = fitting.replace(lanes=number)
        layers = [
            (count, layer.bytes(config, tokens), layer.cycles(config, tokens))
            for layer, count in Counter(candidate.layers).items()
        ]
        for bits in memory_bits:
            memory = [-(-8 * size // bits) for _, size, _ in layers]
            both = list(zip(layers, memory, strict=True))
            found[number, bits] = Attention(
                bytes=share * sum(count * size for count, size, _ in layers),
                cycles=share * sum(count * max(engine, wait) for (count, _, engine), wait in both),
                waiting=sum(count for (count, _, engine), wait in both if wait > engine),
                layers=len(candidate.layers),
                energy=energy,
            )
    return found
