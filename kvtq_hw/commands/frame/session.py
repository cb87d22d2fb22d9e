"""Sessions: a language model on a ternary cache, and who computes its attention.

`load_session` makes one on the golden model; a function for each other backend puts it there::

    with on_engine(load_session(load_model("smollm2"), code, context=64)) as session:
        decoded = session.decode("Once upon a time", max_new_tokens=32)

Modules of the extras are imported by the functions that need them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.cycle_model import code_bound

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
    "Status",
    "load_session",
    "on_accelerator",
    "on_engine",
    "on_float",
    "on_golden",
]

#: Where inputs are saved of an attention in which hardware and golden model differ.
_MISMATCHES = Path("build/mismatch")

Status = Callable[[str], AbstractContextManager[object]]
"""Shows what is being done while a block runs, as `rich.console.Console.status` does."""


class Hardware(Protocol):
    """Verilated RTL that computes decode steps.

    Attributes
    ----------
    cycles : clock cycles with a job in flight, of all jobs so far
    """

    cycles: int

    def attend(self, job: AttentionJob) -> Attention:
        """Compute one layer's decode step."""
        ...

    def close(self) -> None:
        """End the simulation."""
        ...


@dataclass(frozen=True)
class Session:
    """A language model on a ternary cache, and who computes its attention.

    The end of a `with` block ends the simulation of hardware.

    Attributes
    ----------
    model : the language model
    config : configuration of the engine and of the cache
    code : of the cache, or a table of codes by layer
    calibration : of the model
    backend : computes the attention
    hardware : the verilated RTL that the backend runs; None without any
    checked : compares each output of the hardware with the golden model's; None without a check
    measured : measures the distance of the golden model to the backend; None where nobody does
    compare_memory : compares the memory of the hardware with a cache of the golden model: bytes
        compared, and how many differ; None without a check or a memory
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
        """An empty cache, whose attention the backend computes."""
        from golden.llm.decoding import make_cache

        return make_cache(self.config, self.code, self.calibration, self.backend)

    def decode(
        self,
        prompt: str,
        max_new_tokens: int,
        cache: TernaryCache | None = None,
        on_token: OnToken | None = None,
    ) -> Decoded:
        """Continue a prompt greedily, on a new cache or on one of `new_cache`.

        Raises
        ------
        UserError
            When the prompt is empty, or prompt and new tokens do not fit the cache.
        """
        from golden.llm.decoding import decode

        cache = self.new_cache() if cache is None else cache
        return decode(self.model, prompt, max_new_tokens, cache, on_token)

    def bound_cycles(self, decoded: Decoded) -> int:
        """Bound on the clock cycles of all decode steps of a run, every layer and KV head."""
        prompt = len(decoded.prompt_tokens)
        first = prompt + 1 if prompt > 1 else 1  # a prompt of one token is a decode step as well
        return self.model.kv_heads * sum(
            code_bound(self.config, of_layer, tokens)
            for of_layer in self.code.for_layers(self.model.layers)
            for tokens in range(first, prompt + decoded.steps + 1)
        )


class PutOn(Protocol):
    """Puts a session on another backend; the outcome is a session, open until it is closed."""

    def __call__(
        self, session: Session, check: bool = False, status: Status = nullcontext
    ) -> Session:
        """`check` compares with the golden model, `status` shows that a simulator is built."""
        ...


def load_session(
    model: LanguageModel,
    code: CacheCode | CodeTable,
    context: int,
    *,
    preset: EngineConfig | None = None,
    calibration_file: Path | None = None,
    tables: bool = False,
    status: Status = nullcontext,
) -> Session:
    """Make a session on the golden model: fit a configuration to the model, and calibrate it.

    Warns of keys that the code rounds badly.

    Parameters
    ----------
    context : most tokens of the cache
    preset : configuration to use; None for one that is made for the model
    calibration_file : what `kvtq-hw calibrate` wrote; None to calibrate once and keep it
    tables : the configuration must have the tables of all heads on chip, for `on_accelerator`
    status : shows that it is calibrating

    Raises
    ------
    UserError
        When the configuration does not fit the model, or the file is none of this model.
    """
    from golden.attend.backends import GoldenBackend
    from golden.llm.calibration import load_calibration, load_or_calibrate
    from golden.study.key_error import warn_of_keys

    config = model.fitted(preset, [code], context, tables=tables)
    with status("Calibrating"):
        if calibration_file is None:
            calibration = load_or_calibrate(model)
        else:
            calibration = load_calibration(calibration_file, model)
    warn_of_keys(model, calibration.conditioning(), config, code)
    return Session(model, config, code, calibration, GoldenBackend())


def on_golden(session: Session, check: bool = False, status: Status = nullcontext) -> Session:
    """The session on the integer golden model alone. There is nothing to check."""
    from golden.attend.backends import GoldenBackend

    return Session(
        session.model, session.config, session.code, session.calibration, GoldenBackend()
    )


def on_float(session: Session, check: bool = False, status: Status = nullcontext) -> Session:
    """The session on float64 attention, with the golden model's distance to it measured."""
    from golden.attend.backends import FloatBackend, GoldenBackend, MeasuredBackend

    measured = MeasuredBackend(FloatBackend(), GoldenBackend())
    return replace(on_golden(session), backend=measured, measured=measured)


def on_engine(session: Session, check: bool = False, status: Status = nullcontext) -> Session:
    """The session with decode steps on the verilated engine, prefill on the golden model.

    Parameters
    ----------
    check : compare every output with the golden model
    status : shows that the simulator is being built
    """
    from golden.attend.backends import GoldenBackend, SplitBackend
    from sim.backends.engine import EngineBackend

    with status("Building the verilated engine"):
        engine = EngineBackend(session.config)
    checked = _checked(engine) if check else None
    backend = SplitBackend(prefill=GoldenBackend(), decode=checked or engine)
    return replace(on_golden(session), backend=backend, hardware=engine, checked=checked)


def on_accelerator(session: Session, check: bool = False, status: Status = nullcontext) -> Session:
    """The session with decode steps and the cache on the verilated accelerator.

    The golden model computes the prefill, and its cache is loaded into the accelerator's memory.

    Parameters
    ----------
    check : compare every output with the golden model, and make the memory comparable
    status : shows that the simulator is being built

    Raises
    ------
    UserError
        For a code that the hardware does not compute, or a model with more heads than its tables.
    """
    from golden.attend.backends import GoldenBackend, SplitBackend
    from sim.backends.accelerator import AcceleratorBackend, LoadingBackend

    model, codes = session.model, session.code.for_layers(session.model.layers)
    with status("Building the verilated accelerator"):
        accelerator = AcceleratorBackend(
            session.config, codes, session.calibration.conditioning(), model.kv_heads
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
    """The hardware, compared with the golden model output by output."""
    from golden.attend.backends import CheckedBackend, GoldenBackend

    return CheckedBackend(GoldenBackend(), hardware, _MISMATCHES)


#: What puts a session on each backend, by the name that a user gives it.
BACKENDS: dict[str, PutOn] = {
    "rtl": on_accelerator,
    "engine": on_engine,
    "golden": on_golden,
    "float": on_float,
}
