"""Decode text with a real language model whose attention runs on the RTL, beside the golden model.

Greedy decoding through `generate()` on a cache of packed ternary planes. Backends:

- ``rtl``: prefill by the golden model, every decode step of every layer and KV head by the
  verilated accelerator, which quantizes, stores, requantizes, fetches and attends; with
  ``--check``, each output is compared with the golden model's, the memory with the golden cache at
  the end, and the tokens with those of a second run on the golden model alone;
- ``engine``: as ``rtl``, but by the engine alone, which gets planes from the golden model;
- ``golden``: the integer golden model alone;
- ``float``: float64 attention over the same planes, with the golden model's distance to it;
- ``unquantized``: the model's own cache and attention, for comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from kvtq_hw.commands.frame.options import (
    MAX_TOKENS,
    calibration_option,
    code_option,
    fitted_option,
    json_option,
    model_option,
    write_json,
)
from kvtq_hw.commands.frame.session import BACKENDS, Session, load_session, on_golden
from kvtq_hw.contract.codes import SCALE_CHOICES, CacheCode, CodeTable, ScaleChoice
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.host.steps import show_steps

if TYPE_CHECKING:
    from golden.cache.ternary_cache import TernaryCache
    from golden.llm.decoding import Decoded

__all__ = ["DecodeReport", "command"]

DEFAULT_PROMPT = (
    "Once upon a time, in a small village at the edge of a great forest, there lived a young girl "
    "named Lily who loved to"
)
#: The backend that is the model itself, without a ternary cache.
UNQUANTIZED = "unquantized"


@dataclass(kw_only=True)
class DecodeReport:
    """Results of a run, as written by ``--json``; None for a result that the run does not measure.

    Attributes
    ----------
    text, tokens : the continuation and its token ids
    tokens_identical : the tokens equal those of an independent run on the golden backend
    outputs_compared, mismatches : output elements of the RTL compared with the golden model's
    memory_bytes_compared, memory_differences : bytes of the accelerator's memory compared with the
        golden cache at the end, and the number of bytes that differ
    rtl_cycles : cycles of all jobs of all decode steps, by the RTL's own counter; None where KV
        heads ran side by side (``rtl`` with ``--no-check``)
    bound_cycles : cycles of the same jobs at one slice per cycle (`cycle_model.code_bound`)
    tokens_per_second : decode steps per second of wall time, prefill not counted
    bits_per_element : stored bits per cached number, scales and padding included
    context : tokens in the cache at the end
    saturated, saturated_share : elements of keys and values that did not fit the 16 bits of the
        calibration, and their share of all elements in the cache
    float_error_max, float_error_rms : distance of the golden model's attention outputs to float64
        attention over the same planes: largest absolute, and relative root mean square
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    tokens_identical: bool | None = None
    outputs_compared: int = 0
    mismatches: int = 0
    memory_bytes_compared: int = 0
    memory_differences: int = 0
    rtl_cycles: int | None = None
    bound_cycles: int | None = None
    tokens_per_second: float = 0.0
    bits_per_element: float | None = None
    context: int = 0
    preset: str | None = None
    code: str | None = None
    backend: str
    scale: str | None = None
    model: str
    prompt: str
    saturated: int | None = None
    saturated_share: float | None = None
    float_error_max: float | None = None
    float_error_rms: float | None = None

    def take(self, decoded: Decoded) -> None:
        """Enter text, tokens, speed and context of a decode."""
        self.text, self.tokens = decoded.text, list(decoded.tokens)
        self.tokens_per_second, self.context = decoded.tokens_per_second, decoded.context

    def take_session(self, session: Session, cache: TernaryCache, decoded: Decoded) -> None:
        """Enter the measurements of a session that decoded on a cache."""
        from golden.cache.saturation import saturation

        self.preset, self.code = session.config.name, str(session.code)
        self.scale, self.bits_per_element = session.code.scale_choice, cache.bits_per_element()
        found = saturation(cache)
        self.saturated, self.saturated_share = found.elements, found.share
        if session.hardware is not None:
            self.rtl_cycles = session.hardware.cycles
            self.bound_cycles = session.bound_cycles(decoded)
        if session.checked is not None:
            self.outputs_compared = session.checked.outputs_compared
            self.mismatches = session.checked.mismatches
        if session.measured is not None:
            self.float_error_max = session.measured.largest_error
            self.float_error_rms = session.measured.relative_error

    def table(self) -> Table:
        """Return the report as a table for the terminal."""
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for row in (*self._rows_of_the_run(), *self._rows_of_the_comparison()):
            table.add_row(*row)
        return table

    def _rows_of_the_run(self) -> Iterator[tuple[str, str]]:
        """Iterate over rows of speed, cache and cycles: name and text."""
        from golden.cache.saturation import saturated_words

        steps = len(self.tokens) - 1
        configuration = f", configuration {self.preset}" if self.preset else ""
        yield "backend", f"{self.backend}, model {self.model}{configuration}"
        yield "speed", f"{self.tokens_per_second:.2f} tokens/s ({steps} decode steps)"
        yield "context", f"{self.context} tokens"
        if self.bits_per_element is not None:
            yield "cache code", f"{self.code}, scale {self.scale}"
            bits = f"{self.bits_per_element:.4g} bits per element"
            yield "cache size", f"{bits}, everything included"
        if self.saturated:
            yield "saturated", saturated_words(self.saturated, self.saturated_share or 0)
        if self.rtl_cycles is not None and self.bound_cycles and steps:
            yield (
                "RTL cycles",
                f"{self.rtl_cycles / steps:,.0f} per token, all layers and heads; "
                f"{self.rtl_cycles / self.bound_cycles:.3f} of the bound "
                f"of one plane slice per cycle, {self.bound_cycles / steps:,.0f}",
            )

    def _rows_of_the_comparison(self) -> Iterator[tuple[str, str]]:
        """Iterate over rows of the comparison with the golden model: name and text."""
        if self.outputs_compared:
            yield (
                "compared",
                f"{self.outputs_compared:,} outputs with the golden model, "
                f"{self.mismatches:,} differ",
            )
        if self.memory_bytes_compared:
            yield (
                "memory",
                f"{self.memory_bytes_compared:,} bytes of the cache, "
                f"{self.memory_differences:,} differ from the golden model's",
            )
        if self.tokens_identical is not None:
            same = "identical to" if self.tokens_identical else "DIFFERENT from"
            yield "tokens", f"{same} those of the golden model alone"
        if self.float_error_max is not None:
            yield (
                "integer error",
                f"golden against float64: largest {self.float_error_max:.2g}, "
                f"relative rms {self.float_error_rms:.2g}",
            )


@click.command()
@fitted_option
@click.option(
    "--backend",
    type=click.Choice([*BACKENDS, UNQUANTIZED]),
    default="golden",
    show_default=True,
    help="Who computes the attention.",
)
@code_option(
    "Cache code: balanced or residual, digits of keys and of values, then any of "
    ",sinks=N ,window=N ,tier=N ,feedback ,scale=CHOICE."
)
@click.option(
    "--scale",
    type=click.Choice(SCALE_CHOICES),
    default=None,
    help="Choice of the scale.  [default: absmean for balanced codes, max for residual ones]",
)
@model_option
@calibration_option
@click.option("--prompt", default=DEFAULT_PROMPT, show_default=True, help="Text to continue.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1, MAX_TOKENS),
    default=32,
    show_default=True,
    help="Most tokens to generate.",
)
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="Compare every output of the RTL with the golden model, and the tokens at the end.",
)
@json_option
def command(
    preset: EngineConfig | None,
    backend: str,
    code: CacheCode | CodeTable,
    scale: ScaleChoice | None,
    model_name: str,
    calibration_file: Path | None,
    prompt: str,
    max_new_tokens: int,
    check: bool,
    json_file: Path | None,
) -> None:
    """Continue a prompt with a language model on a ternary KV cache."""
    from golden.llm.decoding import decode_unquantized, needed_context
    from golden.llm.models import load_model

    if scale is not None:
        if isinstance(code, CodeTable):
            raise UserError("--scale: a code table has its own; allowed is a spelled code")
        code = replace(code, scale=scale)
    console = Console()
    report, failure = DecodeReport(backend=backend, model=model_name, prompt=prompt), None
    screen = partial(_Screen, console, prompt, max_new_tokens)
    step = show_steps(console)
    with step(f"Loading model {model_name}"):
        model = load_model(model_name, ternary=backend != UNQUANTIZED)
    if backend == UNQUANTIZED:
        with screen("decoding") as shown:
            report.take(decode_unquantized(model, prompt, max_new_tokens, shown.show))
    else:
        loaded = load_session(
            model,
            code,
            needed_context(model, prompt, max_new_tokens),
            preset=preset,
            calibration_file=calibration_file,
            tables=backend == "rtl",
            ahead=_builder(backend, check),
            step=step,
        )
        with BACKENDS[backend](loaded, check, step) as session:
            failure = _decode(session, report, screen)
    console.print(report.table())
    write_json(json_file, asdict(report))
    if failure is not None:
        raise UserError(failure)


def _builder(backend: str, check: bool) -> Callable[[EngineConfig], None] | None:
    """Return what begins to build the design of a backend; None if it has none."""
    block = {"rtl": "accelerator", "engine": "engine"}.get(backend)
    if block is None:
        return None
    from kvtq_hw.commands.frame.build_ahead import build_ahead

    return partial(build_ahead, block, quick=block == "accelerator" and not check)


def _decode(session: Session, report: DecodeReport, screen: Callable[..., _Screen]) -> str | None:
    """Decode on a session and fill in the report; return the failure's message, or None."""
    from golden.attend.backends import MismatchError
    from golden.llm.decoding import Decoded

    failure = None
    cache = session.new_cache()
    with screen("decoding") as shown:
        try:
            decoded = shown.decode(session, cache)
        except MismatchError as error:
            failure = f"the RTL differs from the golden model: {error}"
            decoded = shown.latest or Decoded((), (), "", 0.0)
    report.take(decoded)
    report.take_session(session, cache, decoded)
    if session.checked is not None and failure is None:
        failure = _compare_tokens(session, report, screen)
    if session.compare_memory is not None and failure is None:
        report.memory_bytes_compared, different = session.compare_memory(cache)
        report.memory_differences = different
        if different:
            failure = f"the memory differs from the golden cache in {different} bytes"
    return failure


def _compare_tokens(
    session: Session, report: DecodeReport, screen: Callable[..., _Screen]
) -> str | None:
    """Decode again on the golden model alone; return the failure's message, or None."""
    golden = on_golden(session)
    with screen("the same on the golden model", quiet=True) as shown:
        reference = shown.decode(golden, golden.new_cache())
    report.tokens_identical = report.tokens == list(reference.tokens)
    if report.tokens_identical:
        return None
    return f"the golden model alone continues differently: {reference.text!r}"


class _Screen:
    """Shows the growing text above a progress bar.

    Attributes
    ----------
    latest : everything decoded up to the last token; None before the first token
    """

    def __init__(
        self,
        console: Console,
        prompt: str,
        max_new_tokens: int,
        title: str,
        quiet: bool = False,
    ) -> None:
        self.latest: Decoded | None = None
        self._prompt = prompt
        self._max_new_tokens = max_new_tokens
        self._quiet = quiet
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("tokens"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[speed]}"),
        )
        self._task = self._progress.add_task(title, total=max_new_tokens, speed="")
        self._live = Live(console=console)

    def __enter__(self) -> _Screen:
        self._live.__enter__()
        self._draw("")
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.__exit__(None, None, None)
        if not self._live.console.is_terminal:  # the cursor is still behind the last line
            self._live.console.print()

    def decode(self, session: Session, cache: TernaryCache) -> Decoded:
        """Continue the prompt on a session's cache and show the growing text."""
        return session.decode(self._prompt, self._max_new_tokens, cache, self.show)

    def show(self, decoded: Decoded) -> None:
        """Take everything decoded so far; called after each token."""
        self.latest = decoded
        speed = f"{decoded.tokens_per_second:.1f} tokens/s" if decoded.steps else ""
        self._progress.update(self._task, completed=len(decoded.tokens), speed=speed)
        self._draw(decoded.text)

    def _draw(self, text: str) -> None:
        if self._quiet:
            self._live.update(self._progress)
        else:
            grown = Text.assemble((self._prompt, "dim"), (text, "bold"))
            self._live.update(Group(grown, self._progress))
