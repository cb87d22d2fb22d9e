"""Cache size and memory traffic per decode step, by model, context and cache format.

A decode step reads the keys and values of all cached tokens of every layer and KV head once, and
writes the key and value of one token. A layer with a sliding window caches the tokens of its
sliding window, in every format. Sizes are exact, derived from the storage format. Energies
are projected: size times a published energy per bit of a kind of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.model_wheels import WHEEL_MODELS
from kvtq_hw.contract.packing import cache_bytes
from kvtq_hw.contract.tiers import NO_TIERS

__all__ = ["CONTEXTS", "MEMORIES", "MODELS", "Memory", "ModelShape", "Traffic", "traffic"]


@dataclass(frozen=True)
class ModelShape:
    """Shape of a model's attention layers, which decides the size of its cache.

    layers, kv_heads, head_dim : as in the model's published configuration; KV heads per layer
    sliding : sliding window of each layer in tokens, None in layers without; empty if no layer has
        one
    """

    layers: int
    kv_heads: int
    head_dim: int
    sliding: tuple[int | None, ...] = ()

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Sliding window of each layer in tokens, None in layers without."""
        return self.sliding or (None,) * self.layers


#: Shapes by name, from each model's `config.json`; Mistral-7B since version 0.2.
MODELS = {
    "SmolLM2-135M": ModelShape(30, 3, 64),
    "SmolLM2-1.7B": ModelShape(24, 32, 64),
    "Llama-3.2-1B": ModelShape(16, 8, 64),
    "Llama-3.2-3B": ModelShape(28, 8, 128),
    "Qwen2.5-7B": ModelShape(28, 4, 128),
    "Mistral-7B": ModelShape(32, 8, 128),
    "Llama-3-8B": ModelShape(32, 8, 128),
    "Llama-3-70B": ModelShape(80, 8, 128),
    "Gemma-3-270M": ModelShape(18, 1, 256, WHEEL_MODELS["gemma3-270m"].windows),
}

#: Contexts from a thousand tokens to a million.
CONTEXTS = (1 << 10, 1 << 12, 1 << 14, 1 << 17, 1 << 20)


@dataclass(frozen=True)
class Memory:
    """A kind of memory: energy per bit read, and the publication of that number."""

    picojoules_per_bit: float
    source: str


#: Energies of whole accesses: activation (1.21 pJ/bit in HBM2), movement on the chip (2.24),
#: interface (0.3). HBM2's and DDR's are taken from works that cite the two papers. For
#: LPDDR4 simulations of dies give more: 13 to 14 pJ/bit (H. Ha's thesis, Stanford).
MEMORIES = {
    "HBM2": Memory(3.92, "O'Connor et al., Fine-Grained DRAM, MICRO 2017, ECC included"),
    "LPDDR4": Memory(8.0, "Accelergy's CACTI plug-in (Wu, Emer and Sze, ICCAD 2019)"),
    "DDR": Memory(20.3, "Horowitz, ISSCC 2014: 1.3 to 2.6 nJ for 64 bits, the lower end"),
}


@dataclass(frozen=True)
class Traffic:
    """Cache size of one format at one context.

    format : spelling of the cache format
    bits_per_element : stored bits per cached element, everything included
    cache_bytes : bytes of all layers and KV heads; a decode step reads them once
    """

    format: str
    bits_per_element: float
    cache_bytes: int

    def millijoules(self, memory: Memory) -> float:
        """Return the energy of reading the cache once, in millijoules (projected)."""
        return self.cache_bytes * 8 * memory.picojoules_per_bit * 1e-9


def traffic(
    shape: ModelShape, context: int, config: EngineConfig, codes: Sequence[CacheCode]
) -> list[Traffic]:
    """Return the traffic of a model in fp16, INT8, INT4 and the given codes.

    INT8 and INT4 have a 16-bit scale per vector.

    Parameters
    ----------
    config : gives packing and scale format of the ternary codes

    Raises
    ------
    UserError
        When a code has a sliding window that the model does not have.
    ValueError
        For a context without tokens.
    """
    if context < 1:
        raise ValueError(f"context: {context} is not allowed; must be at least 1")
    vectors = 2 * sum(NO_TIERS.sliding_over(n).spread(context).tokens for n in shape.windows)
    fitting = config.replace(head_dim=shape.head_dim, lanes=shape.head_dim)
    of_a_head = {
        "fp16": vectors * 2 * shape.head_dim,
        "int8": vectors * (shape.head_dim + 2),
        "int4": vectors * (shape.head_dim // 2 + 2),
    } | {
        str(code): sum(
            cache_bytes(fitting, of_layer, context) for of_layer in code.for_layers(shape.windows)
        )
        for code in codes
    }
    return [
        Traffic(name, 8 * size / (vectors * shape.head_dim), shape.kv_heads * size)
        for name, size in of_a_head.items()
    ]
