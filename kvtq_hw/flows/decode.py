"""Decode text with a real language model whose attention runs on the RTL, beside the golden model.

Greedy decoding through `generate()` on a cache of packed ternary planes. Backends:

- ``rtl``: prefill by the golden model, every decode step of every layer and KV head by the
  verilated accelerator, which quantizes, stores, requantizes, fetches and attends; outputs are
  compared with the golden model as they come (``--check``), the memory at the end, and the tokens
  with those of a second run on the golden model alone;
- ``engine``: the same by the attention core alone, to which the golden model gives planes;
- ``golden``: the integer golden model alone;
- ``float``: float64 attention over the same planes, with the golden model's distance to it;
- ``unquantized``: the model's own cache and attention, for comparison.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from kvtq_hw.codes import (
    SCALE_CHOICES,
    CacheCode,
    CodeTable,
    ScaleChoice,
)
from kvtq_hw.config import EngineConfig
from kvtq_hw.cycle_model import code_bound
from kvtq_hw.errors import UserError
from kvtq_hw.options import (
    MAX_TOKENS,
    code_option,
    fitted_option,
    json_option,
    model_option,
    write_json,
)

if TYPE_CHECKING:
    from golden.decoding import Decoded
    from golden.models import LanguageModel
    from golden.saturation import Saturation
    from sim.backends.accelerator import AcceleratorBackend
    from sim.backends.engine import EngineBackend

__all__ = ["DecodeReport", "command"]

DEFAULT_PROMPT = (
    "Once upon a time, in a small village at the edge of a great forest, there lived a young girl "
    "named Lily who loved to"
)
BACKENDS = ("rtl", "engine", "golden", "float", "unquantized")


@dataclass(frozen=True)
class DecodeReport:
    """What a run gave, as ``--json`` writes it. None: the run does not measure it.

    Attributes
    ----------
    text, tokens : the continuation and its token ids
    tokens_identical : the tokens equal those of an independent run on the golden backend
    outputs_compared, mismatches : output elements of the RTL compared with the golden model's
    memory_bytes_compared, memory_differences : bytes of the cache that the accelerator's memory
        holds at the end, compared with the golden cache's, and how many differ
    rtl_cycles : cycles of all jobs of all decode steps, by the RTL's own counter
    bound_cycles : the same jobs at one plane slice per cycle (`kvtq_hw.cycle_model.code_bound`)
    tokens_per_second : decode steps a second of wall time, prefill not counted
    bits_per_element : stored bits per cached number, scales and padding included
    context : tokens in the cache at the end
    saturated, saturated_share : elements of keys and values that did not fit the 16 bits of the
        calibration, and their share of all in the cache
    float_error_max, float_error_rms : distance of the golden model's attention outputs to float64
        attention over the same planes: largest absolute, and relative root mean square
    """

    text: str
    tokens: list[int]
    tokens_identical: bool | None
    outputs_compared: int
    mismatches: int
    memory_bytes_compared: int
    memory_differences: int
    rtl_cycles: int | None
    bound_cycles: int | None
    tokens_per_second: float
    bits_per_element: float | None
    context: int
    preset: str | None
    code: str | None
    backend: str
    scale: str | None
    model: str
    prompt: str
    saturated: int | None
    saturated_share: float | None
    float_error_max: float | None
    float_error_rms: float | None


@click.command()
@fitted_option
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
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
@click.option(
    "--calibration",
    "calibration_file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    metavar="FILE",
    help="File that `kvtq-hw calibrate` wrote for this model.  [default: calibrate once]",
)
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
    if scale is not None:
        if isinstance(code, CodeTable):
            raise UserError("--scale: a code table has its own; allowed is a spelled code")
        code = replace(code, scale=scale)
    request = _Request(
        preset, backend, code, model_name, calibration_file, prompt, max_new_tokens, check
    )
    console = Console()
    report, failure = _run(request, console)
    console.print(_summary(report))
    write_json(json_file, asdict(report))
    if failure is not None:
        raise UserError(failure)


@dataclass(frozen=True)
class _Request:
    """What the user asked for; the fields are the command's options."""

    preset: EngineConfig | None
    backend: str
    code: CacheCode | CodeTable
    model_name: str
    calibration_file: Path | None
    prompt: str
    max_new_tokens: int
    check: bool


def _run(request: _Request, console: Console) -> tuple[DecodeReport, str | None]:
    """Load, decode and report; the second value says what went wrong, if anything did."""
    from golden.backends import (
        AttentionBackend,
        CheckedBackend,
        FloatBackend,
        GoldenBackend,
        MeasuredBackend,
        MismatchError,
        SplitBackend,
    )
    from golden.calibration import load_calibration, load_or_calibrate
    from golden.decoding import Decoded, decode, decode_unquantized, make_cache
    from golden.key_error import warn_of_keys
    from golden.models import load_model
    from golden.saturation import saturation

    with console.status(f"Loading model {request.model_name}"):
        language_model = load_model(request.model_name, ternary=request.backend != "unquantized")
    if request.backend == "unquantized":
        with _Screen(console, request, "decoding") as screen:
            decoded = decode_unquantized(
                language_model, request.prompt, request.max_new_tokens, screen.show
            )
        return _report(request, None, decoded), None

    code = request.code
    prompt_tokens = len(language_model.tokenizer(request.prompt).input_ids)
    config = language_model.fitted(
        request.preset,
        [code],
        prompt_tokens + request.max_new_tokens - 1,  # the last new token is never read
        tables=request.backend == "rtl",
    )
    with console.status("Calibrating"):
        if request.calibration_file is None:
            calibration = load_or_calibrate(language_model)
        else:
            calibration = load_calibration(request.calibration_file, language_model)
    warn_of_keys(language_model, calibration.conditioning(), config, code)
    golden = GoldenBackend()
    backend: AttentionBackend = golden
    rtl: EngineBackend | AcceleratorBackend | None = None
    checked = measured = accelerator = None
    if request.backend == "engine":
        from sim.backends.engine import EngineBackend

        with console.status("Building the verilated engine"):
            rtl = engine = EngineBackend(config)
        if request.check:
            checked = CheckedBackend(golden, engine, Path("build/mismatch"))
        backend = SplitBackend(prefill=golden, decode=checked or engine)
    elif request.backend == "rtl":
        from sim.backends.accelerator import AcceleratorBackend, LoadingBackend

        codes = code.for_layers(language_model.layers)
        conditioning, kv_heads = calibration.conditioning(), language_model.kv_heads
        with console.status("Building the verilated accelerator"):
            accelerator = AcceleratorBackend(config, codes, conditioning, kv_heads)
        rtl = accelerator
        if request.check:
            checked = CheckedBackend(golden, accelerator, Path("build/mismatch"))
        backend = SplitBackend(LoadingBackend(golden, accelerator), checked or accelerator)
    elif request.backend == "float":
        backend = measured = MeasuredBackend(FloatBackend(), golden)

    cache = make_cache(config, code, calibration, backend)
    failure = identical = None
    with _Screen(console, request, "decoding") as screen:
        try:
            decoded = decode(
                language_model, request.prompt, request.max_new_tokens, cache, screen.show
            )
        except MismatchError as error:
            failure = f"the RTL differs from the golden model: {error}"
            decoded = screen.latest or Decoded((), (), "", 0.0)
    if checked is not None and failure is None:
        again = make_cache(config, code, calibration, golden)
        with _Screen(console, request, "the same on the golden model", quiet=True) as screen:
            reference = decode(
                language_model, request.prompt, request.max_new_tokens, again, screen.show
            )
        identical = decoded.tokens == reference.tokens
        if not identical:
            failure = f"the golden model alone continues differently: {reference.text!r}"

    memory_bytes = memory_differences = 0
    if accelerator is not None and request.check and failure is None:
        memory_bytes, memory_differences = accelerator.compare_memory(cache)
        if memory_differences:
            failure = f"the memory differs from the golden cache in {memory_differences} bytes"

    report = _report(
        request,
        config,
        decoded,
        tokens_identical=identical,
        outputs_compared=checked.outputs_compared if checked else 0,
        mismatches=checked.mismatches if checked else 0,
        memory_bytes_compared=memory_bytes,
        memory_differences=memory_differences,
        rtl_cycles=rtl.cycles if rtl else None,
        bound_cycles=_bound(config, code, decoded, language_model) if rtl else None,
        bits_per_element=cache.bits_per_element(),
        saturated=saturation(cache),
        float_error_max=measured.largest_error if measured else None,
        float_error_rms=measured.relative_error if measured else None,
    )
    return report, failure


def _bound(
    config: EngineConfig,
    code: CacheCode | CodeTable,
    decoded: Decoded,
    language_model: LanguageModel,
) -> int:
    """Bound on the cycles of all decode steps, every layer and KV head."""
    prompt = len(decoded.prompt_tokens)
    first = prompt + 1 if prompt > 1 else 1  # a prompt of one token is a decode step as well
    return language_model.kv_heads * sum(
        code_bound(config, of_layer, tokens)
        for of_layer in code.for_layers(language_model.layers)
        for tokens in range(first, prompt + decoded.steps + 1)
    )


def _report(
    request: _Request,
    config: EngineConfig | None,
    decoded: Decoded,
    *,
    tokens_identical: bool | None = None,
    outputs_compared: int = 0,
    mismatches: int = 0,
    memory_bytes_compared: int = 0,
    memory_differences: int = 0,
    rtl_cycles: int | None = None,
    bound_cycles: int | None = None,
    bits_per_element: float | None = None,
    saturated: Saturation | None = None,
    float_error_max: float | None = None,
    float_error_rms: float | None = None,
) -> DecodeReport:
    quantized = request.backend != "unquantized"
    return DecodeReport(
        text=decoded.text,
        tokens=list(decoded.tokens),
        tokens_identical=tokens_identical,
        outputs_compared=outputs_compared,
        mismatches=mismatches,
        memory_bytes_compared=memory_bytes_compared,
        memory_differences=memory_differences,
        rtl_cycles=rtl_cycles,
        bound_cycles=bound_cycles,
        tokens_per_second=decoded.tokens_per_second,
        bits_per_element=bits_per_element,
        context=decoded.context,
        preset=config.name if config else None,
        code=str(request.code) if quantized else None,
        backend=request.backend,
        scale=request.code.scale_choice if quantized else None,
        model=request.model_name,
        prompt=request.prompt,
        saturated=saturated.elements if saturated else None,
        saturated_share=saturated.share if saturated else None,
        float_error_max=float_error_max,
        float_error_rms=float_error_rms,
    )


class _Screen:
    """The text as it grows, above a progress bar.

    Attributes
    ----------
    latest : what had been decoded when the last token came
    """

    def __init__(
        self, console: Console, request: _Request, title: str, quiet: bool = False
    ) -> None:
        self.latest: Decoded | None = None
        self._prompt = request.prompt
        self._quiet = quiet
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("tokens"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[speed]}"),
        )
        self._task = self._progress.add_task(title, total=request.max_new_tokens, speed="")
        self._live = Live(console=console)

    def __enter__(self) -> _Screen:
        self._live.__enter__()
        self._draw("")
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.__exit__(None, None, None)
        if not self._live.console.is_terminal:  # there it is left at the end of the last line
            self._live.console.print()

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


def _summary(report: DecodeReport) -> Table:
    """The report as a table."""
    from golden.saturation import saturated_words

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    steps = len(report.tokens) - 1
    configuration = f", configuration {report.preset}" if report.preset else ""
    rows: list[tuple[str, str]] = [
        ("backend", f"{report.backend}, model {report.model}{configuration}"),
        ("speed", f"{report.tokens_per_second:.2f} tokens/s ({steps} decode steps)"),
        ("context", f"{report.context} tokens"),
    ]
    if report.bits_per_element is not None:
        rows.append(("cache code", f"{report.code}, scale {report.scale}"))
        rows.append(
            ("cache size", f"{report.bits_per_element:.4g} bits per element, everything included")
        )
    if report.saturated:
        rows.append(("saturated", saturated_words(report.saturated, report.saturated_share or 0)))
    if report.rtl_cycles is not None and report.bound_cycles and steps:
        rows.append(
            (
                "RTL cycles",
                f"{report.rtl_cycles / steps:,.0f} per token, all layers and heads; "
                f"{report.rtl_cycles / report.bound_cycles:.3f} of the bound "
                f"of one plane slice a cycle, {report.bound_cycles / steps:,.0f}",
            )
        )
    if report.outputs_compared:
        rows.append(
            (
                "compared",
                f"{report.outputs_compared:,} outputs with the golden model, "
                f"{report.mismatches:,} differ",
            )
        )
    if report.memory_bytes_compared:
        rows.append(
            (
                "memory",
                f"{report.memory_bytes_compared:,} bytes of the cache, "
                f"{report.memory_differences:,} differ from the golden model's",
            )
        )
    if report.tokens_identical is not None:
        same = "identical to" if report.tokens_identical else "DIFFERENT from"
        rows.append(("tokens", f"{same} those of the golden model alone"))
    if report.float_error_max is not None:
        rows.append(
            (
                "integer error",
                f"golden against float64: largest {report.float_error_max:.2g}, "
                f"relative rms {report.float_error_rms:.2g}",
            )
        )
    for row in rows:
        table.add_row(*row)
    return table
