"""Say which parts of kvtq-hw are installed here, what the others are for and how to get them."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click

from kvtq_hw import __version__
from kvtq_hw.commands.frame.cli import EXTRA_OF_MODULE
from kvtq_hw.commands.frame.options import json_option, write_json
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.folders import cache_folder
from kvtq_hw.contract.model_wheels import WHEEL_MODELS, find_wheels
from kvtq_hw.host.toolchain import Tool, icarus, opensta, verilator

__all__ = ["Finding", "command", "findings"]

#: What each extra of the distribution is for.
_EXTRAS = {
    "golden": "decode, eval, calibrate, allocate, capture; import kvtq_hw: caches, evaluation",
    "sim": "simulate, replay, power; decode on the RTL",
    "soc": "make soc",
    "report": "report",
    "plot": "pareto",
    "fpga": "fpga --place-and-route",
    "cluster": "eval and sweep with --scheduler",
}


class Finding(NamedTuple):
    """One part: whether it is here, what was found, what it is for, and how to get it.

    get : command or advice; None where the part is here
    """

    name: str
    here: bool
    found: str
    use: str
    get: str | None = None


@click.command()
@json_option
def command(json_file: Path | None) -> None:
    """Say what is installed, what is missing, what it is for and how to get it.

    Generating Verilog and estimating area need nothing but the base install. The exit status is 0
    whatever is missing.
    """
    found = list(findings())
    for part in found:
        click.echo(f"{'yes' if part.here else 'no ':<4}{part.name}: {part.found}")
        click.echo(f"    for {part.use}")
        if part.get is not None:
            click.echo(f"    get it with: {part.get}")
    missing = sum(not part.here for part in found)
    click.echo(f"{len(found) - missing} of {len(found)} parts are here")
    write_json(json_file, {"version": __version__, "parts": [part._asdict() for part in found]})


def findings() -> Iterator[Finding]:
    """Look for every part that a command can need."""
    yield Finding(
        "kvtq-hw", True, f"{__version__} on Python {platform.python_version()}", "generate, area"
    )
    for extra, use in _EXTRAS.items():
        yield _extra(extra, use)
    yield _tool("Verilator", verilator, "simulate, power, decode on the RTL")
    yield _tool("Icarus Verilog", icarus, "simulate --simulator icarus, replay")
    yield _opensta()
    for model in WHEEL_MODELS.values():
        use = f"--model {model.name}"
        try:
            place = find_wheels(model)[0].parent
        except UserError:
            yield Finding(f"model {model.name}", False, "not here", use, model.how_to_get)
        else:
            yield Finding(f"model {model.name}", True, str(place), use)
    yield _cache()


def _extra(extra: str, use: str) -> Finding:
    modules = [module for module, of in EXTRA_OF_MODULE.items() if of == extra]
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    name, get = f"extra {extra}", f"pip install 'kvtq-hw[{extra}]'"
    if absent:
        return Finding(name, False, f"without {', '.join(absent)}", use, get)
    return Finding(name, True, "complete", use)


def _tool(name: str, find: Callable[[], Tool], use: str) -> Finding:
    """Look for a tool whose finder says in one line what is missing and how to get it."""
    try:
        tool = find()
    except UserError as error:
        found, _, get = str(error).partition("; ")
        return Finding(name, False, found, use, get.removeprefix("get it with: ") or None)
    return Finding(name, True, f"{tool.version}, {tool.executable}", use)


def _opensta() -> Finding:
    use = "timing by OpenSTA; without it by abc, per block"
    tool = opensta()
    if tool is None:
        get = "apt install opensta, or the package manager of your system"
        return Finding("OpenSTA", False, "no sta on PATH", use, get)
    return Finding("OpenSTA", True, f"{tool.version}, {tool.executable}", use)


def _cache() -> Finding:
    folder, use = cache_folder(), "results, calibrations and compiled simulations of later runs"
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Finding("cache folder", True, str(folder), use)
    get = "a folder that can be written, named by XDG_CACHE_HOME"
    return Finding("cache folder", False, f"{folder} cannot be written", use, get)
