"""Formal proofs over all inputs and all lengths of time: blocks, assumptions, and claims.

Yosys converts a proof from Amaranth to AIGER. Property directed reachability (PDR, in ABC) then
either proves that a condition can never hold for any inputs, or finds a sequence of inputs under
which the condition holds. Both tools come with the pip package pyosys.

Inputs are free in every cycle, including `rst`. Registers start at their initial values, and a
reset may come in any reachable state.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyosys
from amaranth.back import rtlil
from amaranth.hdl import Assume, Cat, Module, Shape, Signal, Value, ValueLike
from amaranth.lib import wiring
from amaranth.lib.wiring import Flow

from rtl.verilog import port_members
from rtl.yosys import run_yosys

__all__ = ["Proof", "ProofError", "Stream", "Verdict", "streams_of"]

_PASSES = (
    "proc -norom",
    "flatten",
    "opt_expr",  # no opt_dff, which fails on initial values of registers that become constant
    "opt_clean",
    "async2sync",
    "chformal -lower",
    "memory_map",
    "opt_expr -full",
    "opt_merge",
    "opt_clean",
    "techmap",
    "opt_expr",
    "opt_merge",
    "opt_clean",
    "dffunmap",
    "setundef -undriven -anyseq",
    "aigmap",
    "opt_clean",
)

_ABC = Path(pyosys.__file__).parent / "yosys-abc"


class ProofError(RuntimeError):
    """Raised when the tools reach no verdict; the message holds the end of the log."""


@dataclass(frozen=True)
class Verdict:
    """The result of a proof.

    violated : a forbidden condition that can hold, and the first cycle in which it holds; None if
        no forbidden condition can hold
    unreached : conditions claimed reachable that are not, which makes the proof vacuous
    """

    violated: tuple[str, int] | None
    unreached: tuple[str, ...]

    @property
    def proved(self) -> bool:
        """Return whether no forbidden condition can hold and all reachable ones are reached."""
        return self.violated is None and not self.unreached


@dataclass(frozen=True)
class Stream:
    """A valid/ready channel of a block: a stream or a channel of an AXI port."""

    name: str
    flow: Flow
    valid: Value
    ready: Value
    payload: Value


def streams_of(block: wiring.Component) -> list[Stream]:
    """List all channels of a block's ports, by their names in Verilog."""
    members = port_members(block)
    values = [Value.cast(value) for _, _, value in block.signature.flatten(block)]
    ports = dict(zip(members, values, strict=True))
    found = []
    for valid in (name for name in ports if name.endswith("valid")):
        stem = valid.removesuffix("valid")
        ready = f"{stem}ready"
        payload = Cat(
            value
            for name, value in ports.items()
            if name.startswith(stem) and name not in (valid, ready)
        )
        name, flow = stem.removesuffix("__"), members[valid].flow
        found.append(Stream(name, flow, ports[valid], ports[ready], payload))
    return found


class Proof:
    """Collects assumptions and claims about blocks with free inputs, and proves them.

    Parameters
    ----------
    blocks : blocks by the names of their submodules. The caller lists inputs that `module` does not
        drive with `free`

    Attributes
    ----------
    module : module for the logic of conditions; `rst` resets its registers together with the blocks
    """

    def __init__(self, **blocks: wiring.Component) -> None:
        self.module = Module()
        for name, block in blocks.items():
            self.module.submodules[name] = block
        self._inputs: list[Value] = []
        self._never: dict[str, Value] = {}
        self._reachable: dict[str, Value] = {}

    def free(self, *values: Any) -> None:
        """Let inputs of blocks, or signals of the module, take any value in every cycle."""
        self._inputs += [Value.cast(value) for value in values if len(Value.cast(value))]

    def free_block(self, block: wiring.Component) -> None:
        """Let all inputs of a block be free, except that input streams keep the stream rules."""
        for _, member, value in block.signature.flatten(block):
            if member.flow is Flow.In and Shape.cast(member.shape).width:
                self.free(value)
        for channel in streams_of(block):
            if channel.flow is Flow.In:
                self.assume(self._keeps_its_offer(channel))

    def assume(self, condition: ValueLike) -> None:
        """Restrict the proof to sequences of inputs in which `condition` always holds."""
        self.module.d.comb += Assume(condition)

    def never(self, name: str, condition: ValueLike) -> None:
        """Claim that `condition` never holds."""
        self._never[name] = Value.cast(condition)

    def reachable(self, name: str, condition: ValueLike) -> None:
        """Claim that `condition` can hold, which detects contradictory assumptions."""
        self._reachable[name] = Value.cast(condition)

    def stream_rules(self, block: wiring.Component) -> None:
        """Claim that output channels hold valid, with the same payload, until ready."""
        for channel in streams_of(block):
            if channel.flow is Flow.Out:
                kept = self._keeps_its_offer(channel)
                self.never(f"{channel.name} changes what it offers", ~kept)
                self.reachable(f"{channel.name} waits", channel.valid & ~channel.ready)

    def still(self, value: Any) -> None:
        """Assume that an input never changes from one cycle to the next."""
        bits = Value.cast(value)
        first, before = Signal(init=1), Signal(len(bits))
        self.module.d.sync += [first.eq(0), before.eq(bits)]
        self.assume(first | (bits == before))

    def _keeps_its_offer(self, channel: Stream) -> Value:
        waits = Signal(name=f"{channel.name}_waits")
        offered = Signal(len(channel.payload), name=f"{channel.name}_offered")
        self.module.d.sync += [
            waits.eq(channel.valid & ~channel.ready),
            offered.eq(channel.payload),
        ]
        return ~waits | (channel.valid & (channel.payload == offered))

    def check(self, seconds: int = 600, frames: int = 200) -> Verdict:
        """Prove or refute the claims.

        Parameters
        ----------
        seconds : time limit of each of the two searches, in seconds
        frames : cycles within which reachable conditions must be reached

        Raises
        ------
        ValueError
            When there is no `never` claim, or no `reachable` claim.
        ProofError
            When there is no verdict within the limits.
        """
        if not self._never or not self._reachable:
            raise ValueError("a proof needs something that must never be, and something that can")
        violated = Signal(len(self._never))
        reached = Signal(len(self._reachable))
        self.module.d.comb += [
            violated.eq(Cat(self._never.values())),
            reached.eq(Cat(self._reachable.values())),
        ]
        ports = [*self._inputs, violated, reached]
        text = rtlil.convert(self.module, name="top", ports=ports, emit_src=False)
        with tempfile.TemporaryDirectory(prefix="kvtq-") as folder:
            directory = Path(folder)
            (directory / "top.il").write_text(text, encoding="utf-8")
            commands = ["read_rtlil top.il", *_PASSES, "design -save top"]
            for name, other in (("violated", "reached"), ("reached", "violated")):
                commands += [
                    f"delete -output w:{other}",
                    f"write_aiger -I -B -zinit {name}.aig",
                    "design -load top",
                ]
            run_yosys(commands, directory)
            log = _run_abc(directory, "violated.aig", f"scorr; dc2; print_stats; pdr -T {seconds}")
            violations = _asserted(log)
            # no search is left if induction (scorr) has made all outputs constant
            solved = re.search(r"lat = +0 +and = +0 .*All outputs solved", log, re.DOTALL)
            if not violations and not solved and "Property proved" not in log:
                raise ProofError(f"no verdict on what must never be:\n{log[-600:]}")
            log = _run_abc(directory, "reached.aig", f"bmc3 -a -F {frames} -T {seconds}")
            reached_outputs = {output for output, _ in _asserted(log)}
        first = next(((list(self._never)[output], frame) for output, frame in violations), None)
        names = enumerate(self._reachable)
        return Verdict(first, tuple(name for i, name in names if i not in reached_outputs))


def _run_abc(directory: Path, file: str, search: str) -> str:
    """Run a search on an AIGER file, with constraints folded into the outputs; return the log."""
    commands = f"read_aiger {file}; fold; strash; {search}"
    done = subprocess.run(
        [_ABC, "-c", commands], cwd=directory, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def _asserted(log: str) -> list[tuple[int, int]]:
    """Return the outputs that a search found high, each with its frame."""
    found = re.findall(r"[Oo]utput +(\d+) .*?asserted in frame +(\d+)", log)
    return [(int(output), int(frame)) for output, frame in found]
