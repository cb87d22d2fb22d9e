"""The main things in one call each: a cache for a model, quality of formats, attention, Verilog.

`kvtq_hw` exports these functions and imports this module when one of them is used, so that
``import kvtq_hw`` stays fast. Generating Verilog needs the base install; the others need the extra
``golden``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kvtq_hw.contract.codes import DEFAULT_CODE, CacheCode, CodeTable, read_code
from kvtq_hw.contract.config import EngineConfig, load_config
from kvtq_hw.contract.errors import UserError
from kvtq_hw.host.packages import check_packages
from kvtq_hw.host.steps import show_steps

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from golden.cache.ternary_cache import TernaryCache
    from golden.llm.calibration import Calibration
    from golden.llm.models import LanguageModel
    from golden.study.formats import CacheFormat
    from golden.study.own_format import CodecFormat
    from golden.study.quality import Quality

__all__ = ["attention", "evaluate", "generate_verilog", "ternary_cache"]

check_packages()


def ternary_cache(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    code: str | CacheCode | CodeTable = DEFAULT_CODE,
    context: int | None = None,
    calibration: Path | str | None = None,
) -> TernaryCache:
    """Make an empty ternary cache for a model of transformers, and let the model attend over it.

    The model is calibrated on 4096 tokens that it writes itself, which takes minutes. The result is
    kept in the user's cache folder and used again for the same weights. The model's attention
    implementation becomes ``"kvtq_ternary"``; ``model.set_attn_implementation("sdpa")`` undoes it.
    Attention computes in the integers of docs/contract.md, on the model's device.

    Parameters
    ----------
    model : causal language model in evaluation mode
    tokenizer : the model's tokenizer; None loads it from where the model came from
    code : code of the cached vectors, such as ``"balanced:3/2"``, or the path of a code table; see
        `kvtq_hw.contract.codes`
    context : most tokens of the cache; None for as many as the model has positions
    calibration : file of ``kvtq-hw calibrate``; None to calibrate once and keep the result

    Returns
    -------
    The cache, for ``model.generate(..., past_key_values=cache)``. One cache serves one batch of
    sequences; make another one for the next.

    Raises
    ------
    UserError
        When the code is none, the model does not run on a ternary cache, the tokenizer is not
        found, or the file is no calibration of this model.
    """
    from golden.attend.attention import ATTENTION
    from golden.attend.backends import GoldenBackend
    from golden.llm.decoding import make_cache
    from golden.study.coding_warnings import warn_of_losses

    code = read_code(code) if isinstance(code, str) else code
    language_model = _language_model(model, tokenizer)
    config = language_model.fitted(None, [code], context or language_model.max_positions)
    with language_model.attending_with("sdpa"):
        measured = _calibration(language_model, calibration)
        warn_of_losses(language_model, measured.conditioning(feedback=code.feedback), config, code)
    model.set_attn_implementation(ATTENTION)
    return make_cache(config, code, measured, GoldenBackend(), language_model.windows)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    formats: Sequence[str | CodecFormat | CacheFormat],
    text: str | None = None,
    context: int = 1024,
    segments: int = 1,
    calibration: Path | str | None = None,
) -> dict[str, Quality]:
    """Measure what cache formats leave of a model, your own among them, and at how many true bits.

    A text is fed through each format's cache, teacher-forced, as `kvtq-hw eval` does it
    (docs/quality.md). Nothing is kept between calls, so a format may change from one to the next.

    Parameters
    ----------
    model : causal language model in evaluation mode; its attention implementation stays as it is
    tokenizer : the model's tokenizer; None loads it from where the model came from
    formats : spelled formats as for ``kvtq-hw eval --code`` (``"int4"``, ``"kivi:2"``,
        ``"balanced:3/2"``), a pair of codecs of yours (`golden.study.own_format.CodecFormat`), or
        any `golden.study.formats.CacheFormat`
    text : text to evaluate on; None for Python's documentation topics
    context, segments : the first `segments` pieces of `context` tokens are evaluated
    calibration : file of ``kvtq-hw calibrate`` for ternary codes and conditioned integers; None to
        calibrate once and keep the result

    Returns
    -------
    `golden.study.quality.Quality` by name: perplexity, divergence, agreement, bits per element. The
    first one is ``"unquantized"``, the model on its own cache.

    Raises
    ------
    UserError
        When a format is none or is there twice, a codec does not do what it should, the text is too
        short, the tokenizer is not found, or the model does not run on a ternary cache and a
        ternary code is asked for.
    """
    from rich.console import Console

    from golden.llm.progress import Work
    from golden.study.evaluating import evaluate_formats
    from golden.study.quality import cut_segments, documentation_text

    language_model = _language_model(model, tokenizer)
    pieces = cut_segments(language_model, text or documentation_text(), context, segments)
    with language_model.attending_with("sdpa"):
        chosen = _formats(language_model, formats, context, calibration)
    with show_steps(Console(stderr=True))("Evaluating formats") as on_progress:
        work = Work(on_progress, (1 + len(chosen)) * segments * context)
        return evaluate_formats(language_model, pieces, chosen, work.advance)


def _formats(
    language_model: LanguageModel,
    formats: Sequence[str | CodecFormat | CacheFormat],
    context: int,
    calibration: Path | str | None,
) -> list[CacheFormat]:
    """Make the format of each spelling and each pair of codecs."""
    from golden.attend.single_precision import SinglePrecisionBackend
    from golden.study.catalog import is_ternary, parse_format, ternary_code
    from golden.study.formats import FormatInputs
    from golden.study.own_format import CodecFormat

    @cache
    def inputs() -> FormatInputs:
        spelled = [entry for entry in formats if isinstance(entry, str)]
        codes = [ternary_code(entry) for entry in spelled if is_ternary(entry)]
        config = (
            language_model.fitted(None, codes, context)
            if codes
            else language_model.engine_config(context)
        )
        return FormatInputs(
            language_model, config, cache(lambda: _calibration(language_model, calibration))
        )

    made: list[CacheFormat] = []
    for entry in formats:
        if isinstance(entry, str):
            made.append(parse_format(entry, inputs(), SinglePrecisionBackend()))
        elif isinstance(entry, CodecFormat):
            made.append(entry.for_model(language_model.layers, language_model.head_dim))
        else:
            made.append(entry)
    return made


def _language_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> LanguageModel:
    """Return a model of transformers with its tokenizer, under the name that it was loaded by."""
    from golden.llm.models import LanguageModel

    name = model.config.name_or_path or type(model).__name__
    return LanguageModel(name, model, tokenizer or _tokenizer(name))


def _calibration(language_model: LanguageModel, file: Path | str | None) -> Calibration:
    """Read a model's calibration from a file, or calibrate the model once."""
    from rich.console import Console

    from golden.llm.calibration import load_or_calibrate

    title = f"Calibrating {language_model.name}, once"
    with show_steps(Console(stderr=True))(title) as on_progress:
        return load_or_calibrate(language_model, None if file is None else Path(file), on_progress)


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model that was loaded from `name`."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise UserError(
            f"model {name!r}: its tokenizer cannot be loaded ({first}); pass it as tokenizer="
        ) from None


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, *, code: str | CacheCode = "balanced:3/2"
) -> Tensor:
    """Compute causal attention over keys and values in ternary digits, as the hardware does.

    The formula is ``softmax(q.k / sqrt(D)) v`` per query head, with keys and values rotated,
    rounded to the digits of `code` and attended to in the integers of docs/contract.md. Nothing is
    calibrated: there are no centres, and the largest element sets the range.

    Parameters
    ----------
    queries : float [heads, I, D], of the newest I tokens
    keys, values : float [kv_heads, T, D]; `heads` is a multiple of `kv_heads`
    code : code without feedback or anchors, which need a calibration

    Returns
    -------
    float [heads, I, D], in the dtype of the queries. A warning says how many scores saturated.

    Raises
    ------
    UserError
        When the code needs a calibration, or no engine has this head dimension or query group.
    ValueError
        When the shapes do not fit each other, or an element is not finite.
    """
    from golden.llm.uncalibrated import uncalibrated_attention

    parsed = CacheCode.parse(code) if isinstance(code, str) else code
    return uncalibrated_attention(queries, keys, values, parsed)


def generate_verilog(
    config: EngineConfig | str | Path = "smollm2",
    block: str = "accelerator",
    prefix: str | None = None,
) -> str:
    """Return the Verilog of a block with everything below it, in one text.

    Parameters
    ----------
    config : a configuration, the name of a preset (``tiny``, ``smollm2``, ``llama3-8b``) or the
        path of a TOML file
    block : ``"accelerator"`` with AXI ports, ``"engine"`` for the attention core alone, or another
        name of `rtl.blocks.BLOCKS`
    prefix : beginning of every module's name; None for ``kvtq_<name>``, with the name of the
        configuration, so that several configurations live in one design

    Raises
    ------
    UserError
        When there is no such configuration or block, or the prefix begins no name in Verilog.
    """
    from rtl.blocks import emit_block, prefix_of

    if not isinstance(config, EngineConfig):
        config = load_config(config)
    return emit_block(block, config, prefix_of(config) if prefix is None else prefix)
