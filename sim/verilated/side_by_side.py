"""Several verilated accelerators on one memory: KV heads are simulated side by side.

KV heads share no state: each has its own regions of the memory, of whole memory words, and its own
tables. So any number of accelerators writes the same bytes and sends the same outputs as one
accelerator does. Only cycles differ: one accelerator overlaps the end of a job with the next one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from kvtq_hw.contract.config import EngineConfig
from sim.verilated.accelerator import (
    IDEAL,
    AcceleratorJob,
    AcceleratorRun,
    MemorySettings,
    VerilatedAccelerator,
)

__all__ = ["SideBySide"]

Result = TypeVar("Result")


class SideBySide:
    """Accelerators on one memory, each of which does all jobs of its KV heads.

    Head `head` of a layer belongs to accelerator ``head % accelerators``. Each accelerator has a
    memory port and a timing of its own.

    Parameters
    ----------
    config, memory, base, settings, quick : as `VerilatedAccelerator` takes them
    accelerators : number of accelerators, at least 1

    Raises
    ------
    ValueError
        When `accelerators` is below 1.
    """

    def __init__(
        self,
        config: EngineConfig,
        memory: NDArray[np.uint8],
        accelerators: int,
        *,
        base: int = 0,
        settings: MemorySettings = IDEAL,
        quick: bool = False,
    ) -> None:
        if accelerators < 1:
            raise ValueError(f"accelerators: {accelerators} is not allowed; must be at least 1")
        self._accelerators = [
            VerilatedAccelerator(config, memory, base=base, settings=settings, quick=quick)
            for _ in range(accelerators)
        ]

    def close(self) -> None:
        """End all simulations. A second call has no effect."""
        for accelerator in self._accelerators:
            accelerator.close()

    def load_tables(self, sections: Sequence[NDArray[np.uint32]], head: int | None = None) -> None:
        """Send sections of `rtl.tables` to the accelerator of a KV head; to all when None."""
        count = len(self._accelerators)
        chosen = self._accelerators if head is None else [self._accelerators[head % count]]
        self._each([partial(accelerator.load_tables, sections) for accelerator in chosen])

    def run(self, jobs: Sequence[AcceleratorJob]) -> AcceleratorRun:
        """Run one job of each KV head of a layer, in the order of the heads; each attends.

        An accelerator runs its jobs back to back. Cycles and counters of the result are sums over
        the accelerators.

        Raises
        ------
        SimulationError
            As `VerilatedAccelerator.run` does; all simulations end.
        """
        count = min(len(self._accelerators), len(jobs))
        runs = self._each(
            [
                partial(accelerator.run, jobs[place::count])
                for place, accelerator in enumerate(self._accelerators[:count])
            ]
        )
        counters: Counter[str] = Counter()
        for run in runs:
            counters.update(run.counters)
        outputs = [iter(run.outputs) for run in runs]
        exponents = [iter(run.exponents) for run in runs]
        return AcceleratorRun(
            np.stack([next(outputs[head % count]) for head in range(len(jobs))]),
            np.stack([next(exponents[head % count]) for head in range(len(jobs))]),
            sum(run.cycles for run in runs),
            dict(counters),
        )

    def _each(self, work: Sequence[Callable[[], Result]]) -> list[Result]:
        """Do all work side by side; after an error, wait for the others and close."""
        with ThreadPoolExecutor(len(work)) as threads:
            futures = [threads.submit(each) for each in work]
        errors = [error for each in futures if (error := each.exception()) is not None]
        if errors:
            self.close()
            raise errors[0]
        return [each.result() for each in futures]
