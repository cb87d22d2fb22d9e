"""Energy per decoded token of attention and its memories: engine, on-chip SRAM, KV memory.

Three parts are added, each over all layers and KV heads of a model:

- **engine** (toggles measured, energy projected): a measured attention of `kvtq-hw power`, block by
  block, scaled to other contexts, codes and head sizes by what each block works on (`RULES`).
- **on chip** (projected): accesses of the read buffer, the score bank and the tables, each in
  macros of `SRAM`.
- **KV memory** (projected): every bit that a decode step reads and writes, times an energy per bit.

Not counted: the blocks of the accelerator around the engine, leakage, refresh, weights of the
model and the layers between the attentions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import EngineConfig, config_from_fields, load_config
from kvtq_hw.contract.errors import UserError
from kvtq_hw.estimates.candidates import Candidate, LayerFormat, integers, ternary
from kvtq_hw.estimates.traffic import MODELS

__all__ = [
    "CODE",
    "CONTEXTS",
    "RULES",
    "SRAM",
    "SYSTEMS",
    "Macro",
    "Measured",
    "System",
    "SystemEnergy",
    "Work",
    "candidates",
    "measurements",
    "nearest",
    "system_energy",
]

CONTEXTS = (1 << 10, 1 << 13, 1 << 15)

#: The uniform code that is compared with tables and integers.
CODE = CacheCode.parse("balanced:3/2,sinks=4,window=32,feedback")


@dataclass(frozen=True)
class System:
    """A model whose energy is projected.

    model : its name
    layers, kv_heads : layers of the model, KV heads per layer
    config : gives the heads' shape, packing, scales, widths and memory port; lanes, planes per
        cycle and cache format are those of the measured engines
    """

    model: str
    layers: int
    kv_heads: int
    config: EngineConfig

    @classmethod
    def known(cls, model: str, preset: str) -> Self:
        """Return the system of a model of `MODELS`, with the configuration of a preset."""
        shape = MODELS[model]
        return cls(model, shape.layers, shape.kv_heads, load_config(preset))

    def engine(self, measured: EngineConfig, tokens: int) -> EngineConfig:
        """Return the measured engine with this model's heads and room for `tokens` tokens.

        Raises
        ------
        UserError
            When the measured lanes do not divide the head dimension.
        """
        if self.config.head_dim % measured.lanes:
            raise UserError(
                f"head_dim: {self.config.head_dim} is not allowed here; must be a multiple of the "
                f"{measured.lanes} lanes whose energy was measured"
            )
        of_measured = {name: getattr(measured, name) for name in _OF_THE_ENGINE}
        most = max(self.config.max_context, 1 << (tokens - 1).bit_length())
        return self.config.replace(**of_measured, max_context=most)


#: Fields of a configuration that stay those of a measured engine.
_OF_THE_ENGINE = (
    *("cache_format", "lanes", "max_planes", "query_bits"),
    *("key_planes_per_cycle", "value_planes_per_cycle"),
)

SYSTEMS = (
    System.known("SmolLM2-135M", "smollm2"),
    System.known("Llama-3-8B", "llama3-8b"),
)


@dataclass(frozen=True)
class Macro:
    """A memory macro: its word, its energy per read or write, and the source of that number."""

    words: int
    bits: int
    picojoules: float
    source: str

    def access(self, bits: int) -> float:
        """Return the energy of reading or writing `bits` bits, in macros side by side."""
        return -(-bits // self.bits) * self.picojoules


#: SPICE characterization at 1.8 V and 25 C. The Liberty file has powers in mW at a period of
#: 6.875 ns: reads (2.392 + 2.208) / 2, writes (2.227 + 2.372) / 2, both 2.30 mW, 15.8 pJ.
SRAM = Macro(
    256,
    32,
    15.8,
    "OpenRAM's sky130_sram_1kbyte_1rw1r_32x256_8, github.com/VLSIDA/sky130_sram_macros",
)

#: Bits per factor of a feedback matrix (`rtl.layouts`), and per shift of a row.
_FACTOR_BITS, _SHIFT_BITS = 4, 3
_CENTRE_BITS = 16


@dataclass(frozen=True)
class Work:
    """What an engine does in the attention of one KV head.

    key_slices, value_slices : slices that the lanes take
    cycles : from the job's transfer to the last output
    heads : query heads
    """

    key_slices: int
    value_slices: int
    cycles: int
    heads: int


#: What the energy of each block is proportional to, by the block's `row_of`.
RULES = {
    **dict.fromkeys(("query_buffer", "select_add", "multiply_add", "plane_scaler"), "key slices"),
    **dict.fromkeys(("weight_scaler", "select_accumulate", "multiply_accumulate"), "value slices"),
    **dict.fromkeys(("online_softmax", "normalizer"), "cycles of heads"),
    **dict.fromkeys(("sequencer", "engine"), "cycles"),
}


@dataclass(frozen=True)
class Measured:
    """A measured attention: the engine, what it did, and the energy of each block in picojoules."""

    config: EngineConfig
    tokens: int
    work: Work
    blocks: Mapping[str, float]

    @property
    def planes(self) -> tuple[int, int]:
        """Planes of a key and of a value per cycle."""
        return self.config.key_planes_per_cycle, self.config.value_planes_per_cycle

    @property
    def engine(self) -> tuple[Any, ...]:
        """What tells engines apart, the shape of the heads aside."""
        return self.config.cache_format, self.config.lanes, *self.planes

    def picojoules(self, work: Work) -> float:
        """Return the engine's energy for other work, block by block.

        Raises
        ------
        UserError
            For a block that has no rule.
        """
        total = 0.0
        for block, energy in self.blocks.items():
            if (rule := RULES.get(block)) is None:
                raise UserError(
                    f"power result: block {block!r} has no rule for its energy at other contexts; "
                    f"known are {', '.join(RULES)}"
                )
            total += energy * _amount(rule, work) / _amount(rule, self.work)
        return total


def _amount(rule: str, work: Work) -> int:
    return {
        "key slices": work.key_slices * work.heads,
        "value slices": work.value_slices * work.heads,
        "cycles of heads": work.cycles * work.heads,
        "cycles": work.cycles,
    }[rule]


def measurements(files: Iterable[Mapping[str, Any]]) -> list[Measured]:
    """Return the attentions in files of ``kvtq-hw power --json``, all variants of a real decode.

    Variants with replaced digits (``no-zero-``) are left out.

    Raises
    ------
    UserError
        For a variant whose configuration cannot be built.
    """
    found = []
    for data in files:
        for name, variant in data["variants"].items():
            if name.startswith("no-zero-"):
                continue
            config = config_from_fields(variant["config"])
            slices = variant["slices"]
            work = Work(slices["key"], slices["value"], variant["cycles"], config.query_group)
            blocks = {block: row["total_pj"] for block, row in variant["blocks"].items()}
            found.append(Measured(config, data["tokens"], work, blocks))
    return found


def nearest(measured: Iterable[Measured], system: System) -> list[Measured]:
    """Return one attention per engine: of the system's heads if there is one, then the longest."""
    heads = system.config
    best: dict[tuple[Any, ...], Measured] = {}

    def rank(entry: Measured) -> tuple[bool, int]:
        config = entry.config
        shape = config.head_dim, config.query_group
        return shape == (heads.head_dim, heads.query_group), entry.tokens

    for entry in measured:
        known = best.setdefault(entry.engine, entry)
        best[entry.engine] = max(known, entry, key=rank)
    return list(best.values())


def candidates(config: EngineConfig, tables: Iterable[CodeTable]) -> list[Candidate]:
    """Return the formats that are compared: `CODE`, the tables, conditioned INT4 and INT8.

    Ternary ones only for a ternary configuration.
    """
    int8, _, conditioned = integers(config)
    codes: list[CacheCode | CodeTable] = [CODE, *tables] if config.is_ternary else []
    return [*(ternary(config, code) for code in codes), conditioned, int8]


@dataclass(frozen=True)
class SystemEnergy:
    """Energy per decoded token of one format, by part.

    bits_per_element : stored bits per cached element, everything included (derived)
    engine, on_chip : microjoules (projected)
    moved_bits : bits that are read from the KV memory and written to it (derived)
    """

    bits_per_element: float
    engine: float
    on_chip: float
    moved_bits: float

    def kv_memory(self, picojoules_per_bit: float) -> float:
        """Return the energy of the KV memory, microjoules (projected)."""
        return self.moved_bits * picojoules_per_bit / 1e6

    def total(self, picojoules_per_bit: float) -> float:
        """Return the sum of the parts, microjoules, for an energy per bit of the KV memory."""
        return self.engine + self.on_chip + self.kv_memory(picojoules_per_bit)


def system_energy(
    system: System,
    tokens: int,
    candidate: Candidate,
    measured: Measured,
) -> SystemEnergy:
    """Project the energy per decoded token at a context.

    A code table with another number of layers than the model counts with its mean layer.

    Parameters
    ----------
    tokens : cached tokens, more than sinks and window
    candidate : format of the cache, with any configuration
    measured : an attention on an engine for this format; its lanes and planes per cycle count
    """
    config = system.engine(measured.config, tokens)
    layers = Counter(candidate.layers)
    share = system.layers * system.kv_heads / len(candidate.layers)
    engine = on_chip = stored = moved = 0.0
    for layer, count in layers.items():
        size = layer.bytes(config, tokens)
        work = Work(*layer.slices(config, tokens), layer.cycles(config, tokens), config.query_group)
        engine += count * measured.picojoules(work)
        on_chip += count * _on_chip(config, layer, tokens)
        stored += count * size
        moved += count * (size + layer.append_bytes(config))
    elements = 2 * config.head_dim * tokens * len(candidate.layers)
    return SystemEnergy(
        bits_per_element=8 * stored / elements,
        engine=share * engine / 1e6,
        on_chip=share * on_chip / 1e6,
        moved_bits=share * moved * 8,
    )


def _on_chip(config: EngineConfig, layer: LayerFormat, tokens: int) -> float:
    """Return the energy of the on-chip memories for one KV head, picojoules.

    Each word of the KV memory is written to the read buffer and read from it, each token's scores
    to and from the score bank. With an append the quantizers read a centre per key element, and
    with feedback both matrices and their shifts.
    """
    words = -(-8 * layer.bytes(config, tokens) // config.memory_bits)
    energy = 2 * words * SRAM.access(config.memory_bits)
    energy += 2 * tokens * SRAM.access(config.query_group * config.score_bits)
    if layer.feedback:
        energy += config.head_dim * SRAM.access(_CENTRE_BITS)
        factors = config.feedback_words * SRAM.access(_FACTOR_BITS * config.feedback_lanes)
        energy += 2 * (factors + config.head_dim * SRAM.access(_SHIFT_BITS))
    return energy
