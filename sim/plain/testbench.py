"""The files of a testbench: its Verilog, the vectors as hexadecimal text, and an index of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from kvtq_hw.contract.files import json_text
from rtl.reset import Reset
from rtl.verilog import config_header
from sim.plain.session import AccessKind, Beat, Session

__all__ = ["files_of_testbench"]

_FIELDS_OF_ACCESS = (("kind", 8), ("address", 32), ("data", 32), ("mask", 32))


def files_of_testbench(
    top: str, session: Session, reset: Reset = Reset.SYNC_HIGH
) -> dict[str, str]:
    """Return the texts of a testbench by their names, ``TOP_tb.v`` and those in ``TOP_vectors``.

    Parameters
    ----------
    top : name of the accelerator's module
    session : what the testbench does and expects
    reset : kind of the accelerator's reset
    """
    config, folder, bench = session.config, f"{top}_vectors", f"{top}_tb"
    environment = _environment()
    environment.filters["wide"] = lambda signal: _wide(signal, config.address_bits)
    verilog = environment.get_template("testbench.v.j2").render(
        top=top,
        reset=reset,
        bench=bench,
        folder=folder,
        header=[f"// {line}".rstrip() for line in config_header(bench, config).splitlines()],
        config=config,
        session=session,
        word_bytes=config.memory_bits // 8,
        words=8 * len(session.before) // config.memory_bits,
        kinds={kind.name: int(kind) for kind in AccessKind},
    )
    return {f"{bench}.v": verilog} | {
        f"{folder}/{name}": text for name, text in _vectors(top, session).items()
    }


def _environment() -> Environment:
    """Return an environment for Verilog, which has braces of its own."""
    return Environment(
        loader=PackageLoader("sim.plain", ""),
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="${",
        variable_end_string="}",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _wide(signal: str, bits: int) -> str:
    """Return a signal of `bits` bits with zeros in front, 64 bits in all."""
    return signal if bits == 64 else f"{{{64 - bits}'d0, {signal}}}"


def _vectors(top: str, session: Session) -> dict[str, str]:
    """Return the vectors' files and ``index.json``."""
    config = session.config
    group, bits = config.query_group, config.memory_bits
    streams = (
        ("table", session.tables, 32, 0, "words of tables and anchors, taken by s_axis_table"),
        ("key_value", session.pairs, 32, 0, "new keys and values, taken by s_axis_key_value"),
        ("query", session.queries, 16 * group, 0, "queries, taken by s_axis_query"),
        ("output", session.outputs, 32 * group, 8, "expected outputs of m_axis_output"),
    )
    texts, entries = {}, []

    def add(name: str, text: str, what: str, fields: Sequence[tuple[str, int]]) -> None:
        texts[f"{name}.hex"] = text
        entry = {"name": f"{name}.hex", "what": what, "lines": text.count("\n")}
        entries.append(entry | {"fields": _places(fields)})

    lines = (
        f"{access.kind:02x}_{access.address:08x}_{access.data:08x}_{access.mask:08x}"
        f" // {access.kind.name.lower()} {access.name}"
        for access in session.accesses
    )
    add("registers", _lines(lines), "the host's program, on s_axil", _FIELDS_OF_ACCESS)
    for name, beats, data, user, what in streams:
        fields = [("last", 4), *([("user", user)] if user else []), ("data", data)]
        add(name, _lines(_beat(beat, data, user) for beat in beats), what, fields)
    for name, image, what in (
        ("memory_before", session.before, "words of the memory before the first job"),
        ("memory_after", session.after, "words that the memory must have at the end"),
    ):
        add(name, _lines(_words(image, bits)), what, [("word", bits)])
    index = {
        "accelerator": top,
        "configuration": config.model_dump(),
        "digest": config.digest(),
        "source": session.source,
        "jobs": session.jobs,
        "attentions": session.attentions,
        "memory": {
            "base": session.base,
            "bytes": len(session.before),
            "word_bytes": bits // 8,
        },
        "kinds": {kind.name.lower(): int(kind) for kind in AccessKind},
        "files": entries,
    }
    return texts | {"index.json": json_text(index)}


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _beat(beat: Beat, data: int, user: int) -> str:
    """Return a beat in digits: last, user where there is one, data."""
    middle = f"{beat.user:0{user // 4}x}_" if user else ""
    return f"{beat.last:x}_{middle}{beat.data:0{data // 4}x}"


def _words(image: NDArray[np.uint8], bits: int) -> Iterable[str]:
    """Return the words of an image of the memory, the byte at the lowest address last."""
    return (bytes(row[::-1]).hex() for row in image.reshape(-1, bits // 8))


def _places(fields: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """Return name, offset and width of a line's fields, the last of which begins at bit 0."""
    places, offset = [], sum(width for _, width in fields)
    for name, width in fields:
        offset -= width
        places.append({"name": name, "offset": offset, "width": width})
    return places
