"""The register part of host software: jobs as register writes.

Addresses and fields come from the register map. The caller carries the words to the bus, by
cocotbext-axi or the verilated accelerator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.layout import SIDES
from kvtq_hw.contract.registers import WORD_BYTES, register_map

__all__ = ["Driver", "descriptor_words"]

Write = tuple[int, int]

#: Registers of one number, and arrays of a number per query head: the name of their only field.
_NUMBERS = {
    **dict.fromkeys(("tokens", "sink_tokens", "body_tokens", "window_tokens"), "count"),
    **dict.fromkeys(("window_start", "window_slot", "body_slot"), "slot"),
    "tier_constant": "constant",
    "anchors": "count",
    "anchor_threshold": "hits",
}
_OF_HEADS = {"query_exponent": "exponent", "sink_maximum": "maximum", "sink_weight": "weight"}


def descriptor_words(config: EngineConfig, job: Mapping[str, Any]) -> dict[int, int]:
    """Return the words of a job's descriptor by address.

    Parameters
    ----------
    job : values by the names of `rtl.control.descriptor_layout`; missing fields are zero

    Raises
    ------
    ValueError
        For a name that is not in the layout, or a value that does not fit its register.
    """
    fields, words = dict(job), {}
    registers = register_map()

    def write(name: str, place: int = 0, /, **values: int) -> None:
        register = registers[name]
        words[register.address + WORD_BYTES * place] = register.pack(**values)

    flags = [field.name for field in registers["job_flags"].fields]
    write("job_flags", **{name: int(fields.pop(name, 0)) for name in flags})
    tiers = ("tier", "key", "value")
    write("digits", **{name: fields.pop(f"{name}_digits", 0) for name in tiers})
    write("table", index=fields.pop("table", 0))
    write("value_exponent", floor=fields.pop("value_exponent", 0))
    for name, field in _NUMBERS.items():
        write(name, **{field: fields.pop(name, 0)})
    for name, field in _OF_HEADS.items():
        values = fields.pop(name, [0] * config.query_group)
        for g in range(config.query_group):
            write(name, g, **{field: values[g]})
    for side in SIDES:
        constants = fields.pop(f"{side}_constants", [])
        for run in range(config.max_planes):
            value = constants[run] if run < len(constants) else 0
            write(f"{side}_constant", run, constant=value)
        regions = dict(fields.pop(side, {}))
        for region in ("sinks", "body", "window"):
            address = regions.pop(region, 0)
            for half in range(2):
                write(f"{side}_{region}", half, address=address >> 32 * half & 0xFFFFFFFF)
        fields |= {f"{side}.{name}": value for name, value in regions.items()}
    if fields:
        raise ValueError(f"job: {sorted(fields)} are unknown")
    return words


class Driver:
    """Starts jobs on one accelerator with as few register writes as possible.

    A descriptor stays in the registers after its job has entered the queue, so the next job writes
    only the words that differ.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._written: dict[int, int] = {}

    def start(self, job: Mapping[str, Any]) -> list[Write]:
        """Return the (address, word) writes, in order, that describe a job and enqueue it."""
        words = descriptor_words(self._config, job)
        changed = [(at, word) for at, word in words.items() if self._written.get(at, 0) != word]
        self._written |= words
        control = register_map()["control"]
        return [*changed, (control.address, control.pack(start=1))]

    def forget(self) -> None:
        """Note that the accelerator has been reset, so its registers are zero."""
        self._written.clear()
