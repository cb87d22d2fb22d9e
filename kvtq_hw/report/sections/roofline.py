"""Roofline: whether lanes or memory limit the speed, by number of lanes and port width."""

from __future__ import annotations

from kvtq_hw.contract.packing import token_bytes
from kvtq_hw.report.content import Inputs, Plot, Section, Series, Table

__all__ = ["build"]

PORT_BITS = (32, 64, 128, 256, 512)


def build(inputs: Inputs) -> Section:
    """Compute tokens per cycle of the lanes and of the memory port; the smaller number counts."""
    config = inputs.config
    command = f"kvtq-hw report --preset {config.name}"
    rows, series = [], []
    for code in inputs.codes:
        lanes = 1 / ((code.key_digits + code.value_digits) * config.slices)
        bits = 8 * token_bytes(config, code)
        rates = [min(lanes, port / bits) for port in PORT_BITS]
        rows.append(
            (
                str(code),
                bits,
                round(1000 * lanes, 2),
                round(bits * lanes, 1),
                *(("lanes" if lanes <= port / bits else "memory") for port in PORT_BITS),
            )
        )
        series.append(
            Series(str(code), tuple(map(float, PORT_BITS)), tuple(1000 * rate for rate in rates))
        )
    return Section(
        "Roofline",
        f"{config.lanes} lanes take one plane of {config.head_dim} digits in {config.slices} "
        "cycle(s); a memory port brings its width a cycle. The ridge is where both keep up.",
        (
            Table(
                "What limits a token of one KV head, by width of the memory port",
                "derived",
                command,
                (
                    "code",
                    "bits per token",
                    "tokens per 1000 cycles, lanes",
                    "ridge, bits per cycle",
                    *(f"{port} bits" for port in PORT_BITS),
                ),
                tuple(rows),
            ),
        ),
        (
            Plot(
                "Attainable tokens per 1000 cycles",
                "derived",
                command,
                "line",
                "bits of the memory port",
                "tokens per 1000 cycles",
                tuple(series),
                "A line rises while the memory is the limit, and is flat from the width on with "
                "which the lanes are.",
                log_x=True,
                log_y=True,
            ),
        ),
    )
