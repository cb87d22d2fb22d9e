"""Cache and traffic: size, bytes per decode step and memory energy, by model and context."""

from __future__ import annotations

from kvtq_hw.estimates.traffic import CONTEXTS, MEMORIES, MODELS, traffic
from kvtq_hw.report.content import Cell, Inputs, Plot, Section, Series, Table

__all__ = ["build"]

_ENERGY_CONTEXT = 1 << 17


def build(inputs: Inputs) -> Section:
    """Tabulate sizes of every model at every context, and energies at one context."""
    config, codes = inputs.config, inputs.codes
    command = f"kvtq-hw report --preset {config.name}"
    at = {
        (model, context): traffic(shape, context, config, codes)
        for model, shape in MODELS.items()
        for context in CONTEXTS
    }
    formats = [entry.format for entry in next(iter(at.values()))]
    sizes: list[tuple[Cell, ...]] = [
        (model, context, *(_size(entry.cache_bytes) for entry in entries))
        for (model, context), entries in at.items()
    ]
    energies: list[tuple[Cell, ...]] = [
        (
            model,
            memory,
            *(
                round(entry.millijoules(MEMORIES[memory]), 3)
                for entry in at[model, _ENERGY_CONTEXT]
            ),
        )
        for model in MODELS
        for memory in MEMORIES
    ]
    largest = "Llama-3-70B"
    sources = "; ".join(
        f"{name} {memory.picojoules_per_bit} pJ/bit ({memory.source})"
        for name, memory in MEMORIES.items()
    )
    return Section(
        "Cache and traffic",
        "A decode step reads every cached key and value once: the size of the cache is what it "
        "reads. Scales and padding included; INT8 and INT4 with one 16-bit scale per vector.",
        (
            Table(
                "Size of the cache, and bytes read by a decode step",
                "derived",
                command,
                ("model", "tokens", *formats),
                tuple(sizes),
            ),
            Table(
                f"Energy of reading the cache at {_ENERGY_CONTEXT} tokens, mJ a decode step",
                "projected",
                command,
                ("model", "memory", *formats),
                tuple(energies),
                f"Size times {sources}.",
            ),
        ),
        (
            Plot(
                f"Bytes read by a decode step of {largest}",
                "derived",
                command,
                "line",
                "tokens in the cache",
                "GB a step",
                tuple(
                    Series(
                        name,
                        tuple(map(float, CONTEXTS)),
                        tuple(at[largest, n][index].cache_bytes / 1e9 for n in CONTEXTS),
                    )
                    for index, name in enumerate(formats)
                ),
                "A line's height is what a decode step waits for where memory is the limit; "
                "formats keep their distance at every context.",
                log_x=True,
                log_y=True,
            ),
        ),
    )


def _size(number: int) -> str:
    """Format a number of bytes in the unit in which the number is 1 to 999."""
    value, units = float(number), ("B", "kB", "MB", "GB", "TB")
    for unit in units:
        if value < 1000 or unit == units[-1]:
            break
        value /= 1000
    return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"
