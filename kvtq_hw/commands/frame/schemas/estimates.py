"""Files of commands that estimate: area, timing, power, FPGA, comparisons, energy of a token."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict

from kvtq_hw.commands.frame.schemas.words import (
    Bits,
    Block,
    ClockGate,
    Code,
    Command,
    Config,
    Generator,
    Head,
    Kld,
    KvHeads,
    LayerIndex,
    Layers,
    Library,
    Output,
    PerplexityRatio,
    Sources,
    Step,
    Tag,
    Tags,
    Tokens,
    Um2,
    about,
)

__all__ = ["ESTIMATES"]


class AreaOfBlock(Output):
    """Area of a block, all instances together."""

    instances: Annotated[int, about("instances of the block in the engine")]
    cells: Annotated[int, about("library cells")]
    um2: Um2
    nand2: Annotated[float, about("area divided by that of the smallest two-input NAND gate")]
    flip_flops: Annotated[int, about("bits in flip-flops", "bit")]
    ram_bits: Annotated[int, about("bits in memories, whose area is not counted", "bit")]
    transistors: Annotated[int, about("estimate for generic gates, without a library")]
    nand2_of_transistors: Annotated[float, about("transistors divided by those of a NAND gate")]
    cells_by_type: Annotated[dict[str, int], about("library cells by name")]


class Area(Output):
    """`kvtq-hw area`."""

    command: Command
    tag: Tag
    config: Config
    library: Library
    clock_gate: ClockGate
    clock_mhz: Annotated[int, about("clock that gates are sized for", "MHz")]
    generator: Generator
    blocks: Annotated[dict[str, AreaOfBlock], about("by block")]
    total: AreaOfBlock


class Path(Output):
    """The longest path of a block."""

    tag: Tag
    delay_ps: Annotated[float, about("delay of the path", "ps")]
    start: Annotated[str, about("port or cell at its beginning")]
    end: Annotated[str, about("port or cell at its end")]
    tool: Annotated[str, about("opensta, or abc without it")]
    fmax_mhz: Annotated[float, about("highest clock", "MHz")]


class Timing(Output):
    """`kvtq-hw timing`."""

    command: Command
    clock_mhz: Annotated[int, about("clock that gates are sized for", "MHz")]
    config: Config
    library: Library
    clock_gate: ClockGate
    tool: Annotated[str, about("name and version of the timing tool")]
    generator: Generator
    sources: Sources
    paths: Annotated[dict[str, Path], about("by block; `total` is the whole engine")]


class Energy(Output):
    """Toggles and energy of a block in one attention."""

    toggles: Annotated[int, about("changes of nets")]
    switching_pj: Annotated[float, about("energy of the nets", "pJ")]
    clock_pj: Annotated[float, about("energy of the clock pins", "pJ")]
    internal_pj: Annotated[float, about("energy inside cells; 0 without a full library", "pJ")]
    total_pj: Annotated[float, about("sum of the three", "pJ")]


class Slices(Output):
    """Slices that the lanes took."""

    key: Annotated[int, about("slices of keys")]
    value: Annotated[int, about("slices of values")]


class Variant(Output):
    """What ran: the captured attention, or a variant of it."""

    tags: Tags
    config: Config
    library: Library
    clock_gate: ClockGate
    internal_energies: Annotated[bool, about("the library has energies inside cells")]
    cycles: Annotated[int, about("cycles of the run", "cycle")]
    slices: Slices
    blocks: Annotated[dict[str, Energy], about("by block")]
    total: Energy


class Power(Output):
    """`kvtq-hw power`."""

    command: Command
    config: Config
    generator: Generator
    sources: Sources
    layer: LayerIndex
    head: Head
    step: Step
    tokens: Tokens
    attentions_per_token: Annotated[int | None, about("layers times KV heads of `--shape`")]
    variants: Annotated[dict[str, Variant], about("by variant")]


class Resources(Output):
    """Cells of an FPGA family after synthesis."""

    tag: Tag
    family: Annotated[str, about("name of the family")]
    lut: Annotated[int, about("look-up tables")]
    carry: Annotated[int, about("carry cells")]
    ff: Annotated[int, about("flip-flops")]
    lutram: Annotated[int, about("cells of memory in look-up tables")]
    bram: Annotated[int, about("block memories")]
    dsp: Annotated[int, about("multipliers")]
    cells_by_type: Annotated[dict[str, int], about("cells by name")]


class Placed(Output):
    """A block after place and route, with its harness."""

    tag: Tag
    family: Annotated[str, about("name of the family")]
    device: Annotated[str, about("the smallest device that holds the block")]
    logic_cells: Annotated[int, about("logic cells")]
    ff: Annotated[int, about("flip-flops")]
    bram: Annotated[int, about("block memories")]
    dsp: Annotated[int, about("multipliers")]
    fmax_mhz: Annotated[float, about("highest clock", "MHz")]
    tool: Annotated[str, about("name and version of nextpnr")]
    seed: Annotated[int, about("seed of the placement")]
    harness_ff: Annotated[int, about("flip-flops of the harness")]


class Fpga(Output):
    """`kvtq-hw fpga`."""

    command: Command
    config: Config
    block: Block
    generator: Generator
    sources: Sources
    families: Annotated[dict[str, Resources], about("by family")]
    place_and_route: Annotated[dict[str, Placed], about("by family; empty without the option")]


class QualityOfCode(Output):
    """What `kvtq-hw eval` measured of a code."""

    tag: Tag
    file: Annotated[str, about("the result file")]
    perplexity_ratio: PerplexityRatio
    kld: Kld
    bits_per_element: Bits


class Missed(Output):
    """A smaller engine that narrowly fails to keep up with the memory."""

    lanes: Annotated[int, about("elements of a plane per cycle")]
    key_planes: Annotated[int, about("planes of a key per cycle")]
    value_planes: Annotated[int, about("planes of a value per cycle")]
    um2: Annotated[float | None, about("area of the engine", "um^2")]
    cycles: Annotated[int, about("its cycles", "cycle")]
    allowed: Annotated[int, about("most cycles with which it would keep up", "cycle")]


class ComparedEngine(Output):
    """An engine; cycles and bytes are per KV head and layer, the mean of the layers."""

    name: Annotated[str, about("name of the format")]
    code: Code
    layers: Annotated[int, about("layers in the mean; 1 if all are alike")]
    lanes: Annotated[int, about("elements of a plane per cycle")]
    key_planes: Annotated[int, about("planes of a key per cycle")]
    value_planes: Annotated[int, about("planes of a value per cycle")]
    um2: Annotated[float | None, about("area of the engine; null with `--no-areas`", "um^2")]
    lane_um2: Annotated[float | None, about("area per lane and query head", "um^2")]
    blocks: Annotated[dict[str, float], about("area by block", "um^2")]
    cycles: Annotated[int, about("cycles if memory never delays the engine", "cycle")]
    memory_cycles: Annotated[int, about("cycles in which memory delivers the bytes", "cycle")]
    effective_cycles: Annotated[int, about("the larger of both", "cycle")]
    bytes: Annotated[int, about("bytes read", "byte")]
    missed: Missed | None
    tags: Tags
    quality: QualityOfCode | None


class Compare(Output):
    """`kvtq-hw compare`."""

    command: Command
    config: Config
    clock_gate: ClockGate
    generator: Generator
    sources: Sources
    tokens: Tokens
    ways: Annotated[dict[str, list[ComparedEngine]], about("engines by what is equal")]


class SweepRow(Output):
    """A configuration with a code; the swept fields of the configuration are further fields."""

    model_config = ConfigDict(extra="allow")

    code: Code
    um2: Um2
    nand2: Annotated[float, about("area divided by that of the smallest two-input NAND gate")]
    cells: Annotated[int, about("library cells")]
    flip_flops: Annotated[int, about("bits in flip-flops", "bit")]
    ram_bits: Annotated[int, about("bits in memories, whose area is not counted", "bit")]
    transistors: Annotated[int, about("estimate for generic gates, without a library")]
    cycles: Annotated[int, about("cycles of a KV head's attention", "cycle")]
    bytes: Annotated[int, about("bytes read", "byte")]
    bits_per_element: Bits
    perplexity_ratio: Annotated[float | None, about("as `--quality` has it; null without it")]


class Sweep(Output):
    """`kvtq-hw sweep -o FILE.json`."""

    command: Command
    config: Config
    tokens: Tokens
    block: Block
    library: Library
    clock_gate: ClockGate
    generator: Generator
    sources: Sources
    tags: Tags
    rows: Annotated[list[SweepRow], about("one per configuration and code")]


class EnergyRow(Output):
    """A format on an engine whose energy was recorded; energies are per decoded token."""

    name: Annotated[str, about("name of the format")]
    code: Code
    lanes: Annotated[int, about("elements of a plane per cycle")]
    key_planes: Annotated[int, about("planes of a key per cycle")]
    value_planes: Annotated[int, about("planes of a value per cycle")]
    bits_per_element: Bits
    moved_bytes: Annotated[int, about("read and written by a token, all layers (derived)", "byte")]
    engine_uj: Annotated[float, about("energy of the engine (projected)", "uJ")]
    on_chip_uj: Annotated[float, about("energy of the memories on the chip (projected)", "uJ")]
    kv_memory_uj: Annotated[float, about("energy of the KV memory (projected)", "uJ")]
    total_uj: Annotated[float, about("sum of the three", "uJ")]
    int8_ratio: Annotated[float | None, about("total divided by INT8's on as many lanes")]


class TokenEnergy(Output):
    """`kvtq-hw energy`."""

    command: Command
    config: Config
    layers: Layers
    kv_heads: KvHeads
    tokens: Tokens
    memory_pj: Annotated[float, about("energy per bit of the KV memory", "pJ")]
    recorded: Annotated[list[str], about("commands and files of the recorded attentions")]
    rows: Annotated[list[EnergyRow], about("one per format and engine")]


ESTIMATES: dict[str, type[Output]] = {
    "area": Area,
    "compare": Compare,
    "energy": TokenEnergy,
    "fpga": Fpga,
    "power": Power,
    "sweep": Sweep,
    "timing": Timing,
}
