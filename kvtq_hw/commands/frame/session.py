"""Sessions: a language model on a ternary cache, and the backend that computes its attention.

`load_session` makes a session on the golden model. One function per backend moves the session to
that backend::

    with on_engine(load_session(load_model("smollm2"), code, context=64)) as session:
        decoded = session.decode("Once upon a time", max_new_tokens=32)

Functions import modules of the distribution's extras only when they need them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.cycle_model import code_bound
from kvtq_hw.host.steps import ShowStep, silent

if TYPE_CHECKING:
    from golden.attend.backends import CheckedBackend, MeasuredBackend
    from golden.cache.attention_job import AttentionBackend, AttentionJob
    from golden.cache.ternary_cache import TernaryCache
    from golden.engine import Attention
    from golden.llm.calibration import Calibration
    from golden.llm.decoding import Decoded, OnToken
    from golden.llm.models import LanguageModel

__all__ = [
    "BACKENDS",
    "Hardware",
    "PutOn",
    "Session",
    "load_session",
    "on_accelerator",
    "on_engine",
    "on_float",
    "on_golden",
]

#: Folder for the inputs of an attention in which hardware and golden model differ.
_MISMATCHES = Path("build/mismatch")


class Hardware(Protocol):
    """Verilated RTL that computes decode steps."""

    @property
    def cycles(self) -> int | None:
        """Clock cycles with a job in flight, summed over all jobs so far.

        None when KV heads run side by side, which one accelerator does not do.
        """
        ...

    def attend(self, job: AttentionJob) -> Attention:
        """Compute one layer's decode step."""
        ...

    def close(self) -> None:
        """End the simulation."""
        ...


@dataclass(frozen=True)
class Session:
    """A language model on a ternary cache, and the backend that computes its attention.

    The end of a `with` block ends the hardware's simulation.

    Attributes
    ----------
    model : the language model
    config : configuration of the engine and of the cache
    code : code of the cache, or a code table
    calibration : calibration of the model
    backend : computes the attention
    hardware : the verilated RTL that the backend runs; None if there is none
    checked : compares each output of the hardware with the golden model's; None without a check
    measured : measures the golden model's distance to float attention; None on other backends
    compare_memory : compares the memory of the hardware with a cache of the golden model and
        returns the numbers of compared and differing bytes; None without a check or a memory
    """

    model: LanguageModel
    config: EngineConfig
    code: CacheCode | CodeTable
    calibration: Calibration
    backend: AttentionBackend
    hardware: Hardware | None = None
    checked: CheckedBackend | None = None
    measured: MeasuredBackend | None = None
    compare_memory: Callable[[TernaryCache], tuple[int, int]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.hardware is not None:
            self.hardware.close()

    def new_cache(self) -> TernaryCache:
        """Return an empty cache, whose attention the backend computes."""
        from golden.llm.decoding import make_cache

        return make_cache(
            self.config, self.code, self.calibration, self.backend, self.model.windows
        )

    def decode(
        self,
        prompt: str,
        max_new_tokens: int,
        cache: TernaryCache | None = None,
        on_token: OnToken | None = None,
    ) -> Decoded:
        """Continue a prompt greedily, on a new cache or on a cache from `new_cache`.

        Raises
        ------
        UserError
            When the prompt is empty, or prompt and new tokens do not fit the cache.
        """
        from golden.llm.decoding import decode

        cache = self.new_cache() if cache is None else cache
        return decode(self.model, prompt, max_new_tokens, cache, on_token)

    def bound_cycles(self, decoded: Decoded) -> int:
        """Return the bound in cycles of all decode steps of a run, over all layers and KV heads."""
        prompt = len(decoded.prompt_tokens)
        first = prompt + 1 if prompt > 1 else 1  # a prompt of one token is a decode step too
        return self.model.kv_heads * sum(
            code_bound(self.config, of_layer, tokens)
            for of_layer in self.code.for_layers(self.model.windows)
            for tokens in range(first, prompt + decoded.steps + 1)
        )


class PutOn(Protocol):
    """Moves a session to another backend; returns an open session, to be closed by the caller."""

    def __call__(self, session: Session, check: bool = False, step: ShowStep = silent) -> Session:
        """Move a session to this backend.

        `check` compares outputs with the golden model; `step` shows the build of a simulator.
        """
        ...


def load_session(
    model: LanguageModel,
    code: CacheCode | CodeTable,
    context: int,
    *,
    preset: EngineConfig | None = None,
    calibration_file: Path | None = None,
    tables: bool = False,
    ahead: Callable[[EngineConfig], None] | None = None,
    step: ShowStep = silent,
) -> Session:
    """Make a session on the golden model: fit a configuration to the model, calibrate the model.

    Warns of keys that the code rounds badly, and of layers that lose far more than others.

    Parameters
    ----------
    context : most tokens of the cache
    preset : configuration to use; None for a configuration fitted to the model
    calibration_file : file of `kvtq-hw calibrate`; None to calibrate once and keep the result
    tables : whether the chip must have the head constants of all heads, as for `on_accelerator`
    ahead : called with the configuration before a calibration that takes long
    step : shows the calibration

    Raises
    ------
    UserError
        When the configuration does not fit the model, or the file is no calibration of this model.
    """
    from golden.attend.backends import GoldenBackend
    from golden.llm.calibration import is_calibrated, load_or_calibrate
    from golden.study.coding_warnings import warn_of_losses

    config = model.fitted(preset, [code], context, tables=tables)
    if ahead is not None and calibration_file is None and not is_calibrated(model):
        ahead(config)
    with step("Calibrating") as on_progress:
        calibration = load_or_calibrate(model, calibration_file, on_progress)
    warn_of_losses(model, calibration.conditioning(feedback=code.feedback), config, code)
    return Session(model, config, code, calibration, GoldenBackend())


def on_golden(session: Session, check: bool = False, step: ShowStep = silent) -> Session:
    """Move the session to the integer golden model alone, where there is nothing to check."""
    from golden.attend.backends import GoldenBackend

    return Session(
        session.model, session.config, session.code, session.calibration, GoldenBackend()
    )


def on_float(session: Session, check: bool = False, step: ShowStep = silent) -> Session:
    """Move the session to float64 attention, and measure the golden model's distance to it."""
    from golden.attend.backends import FloatBackend, GoldenBackend, MeasuredBackend

    measured = MeasuredBackend(FloatBackend(), GoldenBackend())
    return replace(on_golden(session), backend=measured, measured=measured)


def on_engine(session: Session, check: bool = False, step: ShowStep = silent) -> Session:
    """Move the session's decode steps to the verilated engine; prefill is on the golden model.

    Parameters
    ----------
    check : compare every output with the golden model
    step : shows that the simulator is being built
    """
    from golden.attend.backends import GoldenBackend, SplitBackend
    from sim.backends.engine import EngineBackend

    with step("Building the verilated engine"):
        engine = EngineBackend(session.config)
    checked = _checked(engine) if check else None
    backend = SplitBackend(prefill=GoldenBackend(), decode=checked or engine)
    return replace(on_golden(session), backend=backend, hardware=engine, checked=checked)


def on_accelerator(
    session: Session,
    check: bool = False,
    step: ShowStep = silent,
    accelerators: int | None = None,
) -> Session:
    """Move the session's decode steps and cache to the verilated accelerator.

    The golden model computes the prefill, and the golden cache is loaded into the accelerator's
    memory.

    Parameters
    ----------
    check : compare every output with the golden model, and make the memory comparable; the
        simulation is then of the generated Verilog itself, else of a text that simulates quicker
    step : shows that the simulator is being built
    accelerators : number that are simulated side by side, each for its share of the KV heads; one
        is what a chip has, and its cycles are counted. When None, one with a check or on a single
        processor, else one per KV head

    Raises
    ------
    UserError
        For a code that the hardware does not compute, or a model with more KV heads than the
        hardware's `table_heads`.
    """
    from golden.attend.backends import GoldenBackend, SplitBackend
    from kvtq_hw.estimates.workers import processors
    from sim.backends.accelerator import AcceleratorBackend, LoadingBackend

    model, codes = session.model, session.code.for_layers(session.model.windows)
    if accelerators is None:
        accelerators = 1 if check or processors() == 1 else model.kv_heads
    with step("Building the verilated accelerator"):
        conditioning = session.calibration.conditioning(feedback=session.code.feedback)
        accelerator = AcceleratorBackend(
            session.config,
            codes,
            conditioning,
            model.kv_heads,
            accelerators=accelerators,
            quick=not check,
        )
    checked = _checked(accelerator) if check else None
    prefill = LoadingBackend(GoldenBackend(), accelerator)
    return replace(
        on_golden(session),
        backend=SplitBackend(prefill, checked or accelerator),
        hardware=accelerator,
        checked=checked,
        compare_memory=accelerator.compare_memory if check else None,
    )


def _checked(hardware: Hardware) -> CheckedBackend:
    """Return a backend that compares each output of the hardware with the golden model's."""
    from golden.attend.backends import CheckedBackend, GoldenBackend

    return CheckedBackend(GoldenBackend(), hardware, _MISMATCHES)


#: Function that moves a session to each backend, by the user's name of the backend.
BACKENDS: dict[str, PutOn] = {
    "rtl": on_accelerator,
    "engine": on_engine,
    "golden": on_golden,
    "float": on_float,
}
