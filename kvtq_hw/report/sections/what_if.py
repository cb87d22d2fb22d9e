"""What if: a panel of model, context, memory, engine and code, over a grid of their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from kvtq_hw.estimates.candidates import Candidate
from kvtq_hw.estimates.synthesis import CLOCK_MHZ
from kvtq_hw.estimates.system_energy import SYSTEMS, Measured, System
from kvtq_hw.estimates.what_if import LANES, MEMORY_BITS, Attention, attention, attentions
from kvtq_hw.report.content import Control, Inputs, Panel, Section, Table
from kvtq_hw.report.sections.formats import RIVALS, short_name
from kvtq_hw.report.sections.pareto import divergences
from kvtq_hw.report.sections.recorded import recorded
from kvtq_hw.report.sections.system_energy import command_of, compared_formats

__all__ = ["Choice", "Formats", "build", "formats_of", "said", "table_rows"]

CONTEXTS = (1 << 10, 1 << 12, 1 << 13, 1 << 15, 1 << 17)

#: The engine and memory at first: the smallest ternary engine that keeps up with 64 bits.
_MEMORY_BITS, _LANES, _PLANES, _TOKENS = 64, 16, "3/2", 1 << 13

_REFERENCE = "INT8"

#: Largest clock and energy per bit that the page takes.
_MOST_MHZ, _MOST_PJ = 5000.0, 1000.0


@dataclass(frozen=True)
class Choice:
    """A state of the panel; fields are named as its controls."""

    model: str
    tokens: int
    bits: int
    pj: float
    lanes: int
    planes: str
    clock: float
    code: str


@dataclass(frozen=True)
class Formats:
    """Cache formats of the panel.

    by_model : by model and name of a format, the measured engine for each planes per cycle
    losses : KL divergence by name of a format, where it was measured
    """

    by_model: Mapping[System, Mapping[str, tuple[Candidate, Mapping[str, Measured]]]]
    losses: Mapping[str, float]

    @property
    def names(self) -> list[str]:
        """Names of all formats, the first ternary code first."""
        return list(next(iter(self.by_model.values())))

    @property
    def rivals(self) -> list[str]:
        """Names of the integer formats that stand beside the chosen code."""
        return [name for name in reversed(RIVALS) if name in self.names]

    def attention(self, choice: Choice, name: str) -> Attention:
        """Return the attention of a format in a state; integers have one plane per cycle."""
        system = next(one for one in self.by_model if one.model == choice.model)
        candidate, engines = self.by_model[system][name]
        measured = engines[choice.planes if choice.planes in engines else "1/1"]
        return attention(system, choice.tokens, candidate, measured, choice.lanes, choice.bits)


def build(inputs: Inputs) -> Section | None:
    """Compute the grid and the table of the first state."""
    formats = formats_of(inputs)
    if formats is None:
        return None
    choice = Choice(
        SYSTEMS[0].model,
        _TOKENS,
        _MEMORY_BITS,
        inputs.memory_pj,
        _LANES,
        _PLANES,
        CLOCK_MHZ,
        formats.names[0],
    )
    columns, rows = table_rows(formats, choice)
    return Section(
        "What if",
        "Choose a model, its memory, an engine and a code: one engine attends to all layers and KV "
        "heads of a model, one after the other, for each decoded token.",
        panel=Panel(
            _controls(choice, formats.names),
            said(choice),
            Table(
                "Attention of one decoded token",
                "projected",
                command_of(inputs),
                columns,
                rows,
                "Bytes and cycles (derived) are looked up, as are the energies of engine and chip "
                "(projected). The page itself only divides the clock by the cycles and multiplies "
                "the bits that move by the energy per bit, which is exact. Engine and chip are "
                f"those of the measured {_measured_engines(formats)}, whichever lanes and memory "
                "are chosen. The memory delivers one word in each cycle of the engine's clock. The "
                "model's weights and other layers are not counted. KL divergence was measured on "
                "SmolLM2 at 1,024 tokens.",
            ),
            _grid(formats),
        ),
    )


def formats_of(inputs: Inputs) -> Formats | None:
    """Return the formats whose energy was measured; None if INT8's or no ternary code's was."""
    by_model: dict[System, dict[str, tuple[Candidate, dict[str, Measured]]]] = {}
    for system, formats in compared_formats(inputs).items():
        found = by_model.setdefault(system, {})
        for candidate, engine in formats:
            _, engines = found.setdefault(candidate.name, (candidate, {}))
            engines["{}/{}".format(*engine.planes)] = engine
        _, engines = next(iter(found.values()))
        if _REFERENCE not in found or not {"1/1", _PLANES} <= set(engines):
            return None
    if not by_model:
        return None
    losses = divergences(recorded(inputs.results, "compare", inputs.config))
    codes = {name: one.code for name, (one, _) in next(iter(by_model.values())).items()}
    return Formats(by_model, {name: losses[code] for name, code in codes.items() if code in losses})


def table_rows(
    formats: Formats, choice: Choice
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return columns and rows of the panel's table in a state: the chosen code beside integers."""
    names = list(dict.fromkeys((choice.code, *formats.rivals)))
    found = [formats.attention(choice, name) for name in names]
    int8 = found[names.index(_REFERENCE)]
    rows: dict[str, list[str]] = {
        "MB read per token": [_shown(one.bytes / 1e6) for one in found],
        "million cycles per token": [_shown(one.cycles / 1e6) for one in found],
        "limit": [one.limit for one in found],
        "tokens per second": [_shown(one.tokens_per_second(choice.clock)) for one in found],
        "tokens per second, INT8 = 1": [_ratio(int8.cycles / one.cycles) for one in found],
        "engine, uJ": [_shown(one.energy.engine) for one in found],
        "on chip, uJ": [_shown(one.energy.on_chip) for one in found],
        "KV memory, uJ": [_shown(one.energy.kv_memory(choice.pj)) for one in found],
        "all, uJ": [_shown(one.energy.total(choice.pj)) for one in found],
        "all, INT8 = 1": [
            _ratio(one.energy.total(choice.pj) / int8.energy.total(choice.pj)) for one in found
        ],
        "KL divergence, nats": [_loss(formats.losses.get(name)) for name in names],
    }
    return ("", *names), tuple((label, *cells) for label, cells in rows.items())


def said(choice: Choice) -> str:
    """Return a sentence that says a state, for print and for readers without the controls."""
    return (
        f"{choice.model}, {choice.tokens:,} tokens; memory of {choice.bits} bits per cycle, "
        f"{choice.pj:g} pJ per bit; {choice.lanes} lanes, {choice.planes} planes per cycle, "
        f"{choice.clock:g} MHz; {choice.code}."
    )


def _controls(choice: Choice, names: list[str]) -> tuple[Control, ...]:
    def options(values: Any, label: str = "{}") -> tuple[tuple[str, str], ...]:
        return tuple((str(value), label.format(value)) for value in values)

    return (
        Control("model", "Model", choice.model, options(one.model for one in SYSTEMS)),
        Control("tokens", "Context, tokens", str(choice.tokens), options(CONTEXTS, "{:,}")),
        Control(
            "code",
            "Cache code",
            choice.code,
            tuple((name, short_name(name)) for name in names),
        ),
        Control("bits", "Memory, bits per cycle", str(choice.bits), options(MEMORY_BITS)),
        Control("pj", "Memory, pJ per bit", f"{choice.pj:g}", least=0.0, most=_MOST_PJ),
        Control("lanes", "Lanes", str(choice.lanes), options(LANES)),
        Control(
            "planes",
            "Planes per cycle, key/value (ternary codes)",
            choice.planes,
            options(("1/1", _PLANES)),
        ),
        Control("clock", "Clock, MHz", f"{choice.clock:g}", least=1.0, most=_MOST_MHZ),
    )


def _grid(formats: Formats) -> dict[str, Any]:
    """Return the numbers of every state, apart from clock and energy per bit."""
    return {
        "rivals": formats.rivals,
        "reference": _REFERENCE,
        "losses": {name: _loss(loss) for name, loss in formats.losses.items()},
        "points": {
            system.model: {
                str(tokens): {
                    name: {
                        planes: _point(system, tokens, candidate, engine)
                        for planes, engine in engines.items()
                    }
                    for name, (candidate, engines) in found.items()
                }
                for tokens in CONTEXTS
            }
            for system, found in formats.by_model.items()
        },
    }


def _measured_engines(formats: Formats) -> str:
    """Say the lanes of all measured engines, and the memory ports of all systems."""
    lanes = {
        engine.config.lanes
        for found in formats.by_model.values()
        for _, engines in found.values()
        for engine in engines.values()
    }
    ports = {system.config.memory_bits for system in formats.by_model}
    of_lanes, of_ports = (" or ".join(map(str, sorted(one))) for one in (lanes, ports))
    return f"{of_lanes} lanes with a port of {of_ports} bits"


def _point(system: System, tokens: int, candidate: Candidate, measured: Measured) -> dict[str, Any]:
    """Return the numbers of a format on a measured engine, by lanes and bits of the memory."""
    at = attentions(system, tokens, candidate, measured)
    any_of = at[LANES[0], MEMORY_BITS[0]]
    return {
        "bytes": any_of.bytes,
        "moved_bits": any_of.energy.moved_bits,
        "engine": any_of.energy.engine,
        "on_chip": any_of.energy.on_chip,
        "cycles": {
            str(lanes): {str(bits): at[lanes, bits].cycles for bits in MEMORY_BITS}
            for lanes in LANES
        },
        "limit": {
            str(lanes): {str(bits): at[lanes, bits].limit for bits in MEMORY_BITS}
            for lanes in LANES
        },
    }


def _shown(value: float) -> str:
    """Format a number to about three digits; half is rounded up, as the page's script does."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return _fixed(value, decimals)


def _ratio(value: float) -> str:
    return _fixed(value, 2)


def _loss(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else _fixed(value, 4)


def _fixed(value: float, decimals: int) -> str:
    rounded = Decimal(value).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)
    return f"{rounded:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
