"""A verilated design as a Python object: its shared library, its simulation, and its calls.

This is the base of all designs; `sim.verilated.engine`, `accelerator` and `append_path` define the
inputs and outputs of each::

    with VerilatedEngine(config) as engine:
        outputs = engine.run(jobs).outputs
"""

from __future__ import annotations

import ctypes
import weakref
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from kvtq_hw.contract.config import EngineConfig
from sim.verilated.library import SimulationError, load_library

__all__ = ["SimulationError", "VerilatedDesign"]


class VerilatedDesign:
    """A simulated design that keeps its state, clock and counters between calls.

    Parameters
    ----------
    config : EngineConfig
    waves : Path, optional
        Record every signal into this VCD file, until `close`.
    cache : Path, optional
        Folder of cached builds; a user cache folder by default.
    quick : bool
        Simulate `sim.verilated.quick_verilog`'s text instead of the generated one: where results
        are not compared. It records no waves.

    Raises
    ------
    kvtq_hw.contract.errors.UserError
        When Verilator is not installed, or the cache cannot be written.
    SimulationError
        When the design does not build.
    """

    #: The block, and the C++ file of this folder that is compiled with it.
    block: ClassVar[str]

    def __init__(
        self,
        config: EngineConfig,
        *,
        waves: Path | None = None,
        cache: Path | None = None,
        quick: bool = False,
    ) -> None:
        self.config = config
        self._waves = None if waves is None else bytes(waves)
        self._library = load_library(
            self.block, config, cache, trace=waves is not None, quick=quick
        )
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the simulation and complete the waves. Closing a closed design has no effect."""
        self._end()

    def _open(self) -> None:
        """Begin a simulation from reset. It ends with `close`, at the latest with this object."""
        self._simulation = self._library.kvtq_open(self._waves)
        self._end = weakref.finalize(self, self._library.kvtq_close, self._simulation)

    def _reset(self) -> None:
        """End the simulation and begin another one from reset."""
        self._check_open()
        self.close()
        self._open()

    def _run(self, call: ctypes.Structure) -> None:
        """Run a call, a structure of `sim.verilated.interface`, to its end or its cycle limit.

        Raises
        ------
        ValueError
            When the design is closed.
        SimulationError
            When a stream or an access program did less or more than the call asks for.
        """
        self._check_open()
        self._library.kvtq_run(self._simulation, ctypes.byref(call))
        parts = ((name, getattr(call, name)) for name, *_ in call._fields_)
        wrong = [
            f"{name} {part.done} of {part.count}"
            for name, part in parts
            if hasattr(part, "done") and part.done != part.count
        ]
        if wrong:
            verb = "hangs" if call.cycles == call.cycle_limit else "went wrong"
            raise SimulationError(
                f"the verilated {self.block} {verb}: done after {call.cycles} cycles are "
                f"{', '.join(wrong)}"
            )

    def _check_open(self) -> None:
        if not self._end.alive:
            raise ValueError(f"the verilated {self.block} is closed; make another one")
