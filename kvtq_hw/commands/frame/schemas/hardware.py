"""Files of commands that generate, simulate and lay out, and of `doctor`."""

from __future__ import annotations

from typing import Annotated

from kvtq_hw.commands.frame.schemas.words import (
    Command,
    Config,
    Head,
    KvHeads,
    LayerIndex,
    Layers,
    Log,
    Output,
    Simulator,
    Step,
    Tokens,
    Waves,
    about,
)

__all__ = ["HARDWARE"]


class Region(Output):
    """Where vectors of one side and tier lie."""

    layer: LayerIndex
    head: Head
    side: Annotated[str, about("key or value")]
    tier: Annotated[str, about("sinks, body, window or anchors")]
    address: Annotated[int, about("address of the first byte")]
    digits: Annotated[int, about("digits per element")]
    record_bytes: Annotated[int, about("bytes of a record", "byte")]
    records: Annotated[int, about("records that there is room for")]


class Layout(Output):
    """`kvtq-hw layout`."""

    command: Command
    config: Config
    layers: Layers
    kv_heads: KvHeads
    tokens: Annotated[int, about("tokens that there is room for", "token")]
    sliding: Annotated[list[int | None], about("sliding window by layer; null without", "token")]
    bytes: Annotated[int, about("size of all regions", "byte")]
    end: Annotated[int, about("address behind the last byte")]
    regions: Annotated[list[Region], about("by layer, KV head, side and tier")]


class BenchTest(Output):
    """A test of a bench."""

    name: Annotated[str, about("its name")]
    passed: Annotated[bool, about("whether it passed")]
    seconds: Annotated[float, about("its time", "s")]
    message: Annotated[str, about("why it failed; empty if it passed")]
    simulated: Annotated[bool, about("simulated time passed in it")]


class Bench(Output):
    """A bench's run."""

    tests: Annotated[list[BenchTest], about("its tests")]
    passed: Annotated[int, about("tests that passed")]
    failed: Annotated[int, about("tests that failed")]
    log: Log
    waves: Waves


class Simulate(Output):
    """`kvtq-hw simulate`."""

    command: Command
    config: Config
    simulator: Simulator
    seed: Annotated[int, about("the random seed")]
    blocks: Annotated[dict[str, Bench], about("by block")]


class Replay(Output):
    """`kvtq-hw replay`."""

    command: Command
    config: Config
    simulator: Simulator
    layer: LayerIndex
    head: Head
    step: Step
    tokens: Tokens
    outputs_compared: Annotated[int, about("output elements")]
    cycles: Annotated[int, about("cycles of the attention", "cycle")]
    differences: Annotated[list[str], about("what differed; empty if nothing did")]
    log: Log
    waves: Waves


class Generate(Output):
    """`kvtq-hw generate`."""

    command: Command
    config: Config
    files: Annotated[list[str], about("the written files")]


class Part(Output):
    """A part that commands may need."""

    name: Annotated[str, about("its name")]
    here: Annotated[bool, about("whether it is here")]
    found: Annotated[str, about("its version and place, or what is missing")]
    use: Annotated[str, about("what it is for")]
    get: Annotated[str | None, about("how to get it; null where it is here")]


class Doctor(Output):
    """`kvtq-hw doctor`."""

    version: Annotated[str, about("version of kvtq-hw")]
    parts: Annotated[list[Part], about("all of them")]


HARDWARE: dict[str, type[Output]] = {
    "doctor": Doctor,
    "generate": Generate,
    "layout": Layout,
    "replay": Replay,
    "simulate": Simulate,
}
