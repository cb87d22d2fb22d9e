"""Headline: costs and savings of cache codes against fp16, INT8 and INT4, on one screen."""

from __future__ import annotations

from kvtq_hw.contract.cycle_model import code_job_cycles
from kvtq_hw.estimates.traffic import MODELS, traffic
from kvtq_hw.report.content import Inputs, Section, Table
from kvtq_hw.report.sections.results import QualityRow, quality_rows

__all__ = ["build"]

CONTEXT = 1024
#: The model whose cache the section is about: its name for ``--model``, and in `MODELS`.
MODEL, SHAPE = "smollm2", "SmolLM2-135M"
_COUNTERPART = {"fp16": "unquantized", "int8": "int8", "int4": "int4"}


def build(inputs: Inputs) -> Section:
    """Make one row per format: size, speed if memory is the limit, cycles, and text quality."""
    config = inputs.config
    shape = MODELS[SHAPE]
    context = min(CONTEXT, config.max_context)
    formats = traffic(shape, context, config, inputs.codes)
    int8 = next(entry for entry in formats if entry.format == "int8")
    cycles = {str(code): code_job_cycles(config, code, context) for code in inputs.codes}
    quality = [row for row in quality_rows(inputs.results) if row.model == MODEL]
    rows = []
    for entry in formats:
        measured = _best_match(quality, _COUNTERPART.get(entry.format, entry.format))
        rows.append(
            (
                entry.format,
                round(entry.bits_per_element, 3),
                round(int8.cache_bytes / entry.cache_bytes, 2),
                cycles.get(entry.format),
                None if measured is None else f"{100 * (measured.ratio - 1):+.2f} %",
                None if measured is None else measured.setting,
            )
        )
    return Section(
        "Ternary against multipliers",
        "A decode step reads the whole cache, so where memory is the limit its speed is one over "
        "the stored bits. Ternary digits buy bits without a multiplier in any lane; what they cost "
        "is a cycle for each digit plane, and quality as measured below.",
        (
            Table(
                f"Cache formats at {context} tokens, one KV head of {config.head_dim} elements",
                "derived",
                f"kvtq-hw report --preset {config.name}",
                (
                    "format",
                    "true bits per element",
                    "tokens/s at equal bandwidth, INT8 = 1",
                    "engine cycles per KV head and step",
                    "perplexity against unquantized",
                    "measured on",
                ),
                tuple(rows),
                "Bits and bandwidth are exact functions of the format; cycles are the model's, "
                "held equal to the RTL's counter below; perplexities are measured, see Quality.",
            ),
        ),
    )


def _best_match(rows: list[QualityRow], code: str) -> QualityRow | None:
    """Return the row of a code from the largest setting that has the code; None without any."""
    return next((row for row in rows if row.code == code), None)
