"""Design-space sweep: area, cycles, bytes and quality of many configurations and codes.

An area belongs to a configuration; cycles and bytes belong to a configuration and a code. Areas
take the time: each area is stored as soon as it is measured, so that an interrupted sweep
continues where it stopped. The caller passes an executor: any of `concurrent.futures`, on this
machine, or that of a Dask cluster.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass
from typing import Any

from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.cycle_model import code_job_cycles
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.packing import bits_per_element, cache_bytes
from kvtq_hw.estimates.area import measure_area
from kvtq_hw.estimates.liberty import Liberty, load_liberty
from kvtq_hw.estimates.liberty_format import parse_liberty
from kvtq_hw.estimates.quality_files import QualityResult, quality_of
from kvtq_hw.estimates.store import design_key
from kvtq_hw.estimates.synthesis import CLOCK_MHZ
from kvtq_hw.host.results import ResultStore

__all__ = ["Progress", "configurations", "sweep_areas", "table"]

#: Type of the stored total area of a configuration: `Area.as_dict`.
_TOTAL = dict[str, int | float | dict[str, int]]

#: Fields of a configuration's total area that are columns of a row.
_AREA_FIELDS = ("um2", "nand2", "cells", "flip_flops", "ram_bits", "transistors")


@dataclass(frozen=True)
class Progress:
    """Progress of a sweep: areas known, areas wanted, and areas found in the store."""

    done: int
    total: int
    from_store: int


def configurations(
    base: EngineConfig, axes: Mapping[str, Sequence[int | str]]
) -> list[EngineConfig]:
    """Return the configurations of a grid: `base` with every combination of the axes' values.

    Raises
    ------
    UserError
        For an unknown field of a configuration, or a combination that cannot be built.
    """
    if "name" in axes:
        raise UserError("field: 'name' is not allowed; a sweep is over the fields of an engine")
    return [
        base.replace(**dict(zip(axes, values, strict=True)))
        for values in itertools.product(*axes.values())
    ]


def sweep_areas(
    configs: Sequence[EngineConfig],
    block: str | None,
    liberty: Liberty,
    store: ResultStore,
    executor: Executor,
    report: Callable[[Progress], None],
) -> list[dict[str, Any]]:
    """Return the total area of each configuration, as a dictionary of `Area.as_dict`.

    Parameters
    ----------
    configs : configurations in the order of the result; equal configurations are measured once
    block : the only block to measure; None for the whole engine
    executor : measures areas that are not in `store`; workers need this package, no shared folder
    report : called with the progress at the start and after each area
    """
    keys = [_key(config, block, liberty) for config in configs]
    wanted = {config.digest(): (config, key) for config, key in zip(configs, keys, strict=True)}
    areas = {name: area for name, (_, key) in wanted.items() if (area := store.get(key, _TOTAL))}
    from_store = len(areas)
    report(Progress(from_store, len(wanted), from_store))
    text = None if liberty.source == "shipped" else liberty.text
    library = (liberty.source, text, liberty.gating)
    waiting: dict[Future[dict[str, Any]], str] = {
        executor.submit(_area, config, block, *library): name
        for name, (config, _) in wanted.items()
        if name not in areas
    }
    try:
        for future in as_completed(waiting):
            name = waiting[future]
            areas[name] = future.result()
            store.put(wanted[name][1], areas[name])
            report(Progress(len(areas), len(wanted), from_store))
    finally:
        for future in waiting:
            future.cancel()
    return [areas[config.digest()] for config in configs]


def _key(config: EngineConfig, block: str | None, liberty: Liberty) -> dict[str, Any]:
    return {
        "what": "sweep with ram_bits",
        **liberty.key,
        "clock_mhz": CLOCK_MHZ,
        **design_key(config, block),
    }


def _area(
    config: EngineConfig, block: str | None, source: str, text: str | None, gating: bool
) -> dict[str, Any]:
    """Measure one configuration's total area in a worker; other workers use other processors."""
    if text is None:
        liberty = load_liberty(None, gating)
    else:
        liberty = Liberty(source, text, parse_liberty(text), gating)
    return measure_area(config, block, liberty, jobs=1).total.as_dict()


def table(
    configs: Sequence[EngineConfig],
    areas: Sequence[Mapping[str, Any]],
    codes: Iterable[CacheCode],
    fields: Sequence[str],
    tokens: int,
    quality: Sequence[QualityResult],
) -> list[dict[str, Any]]:
    """Return a row for every configuration and code.

    Parameters
    ----------
    fields : fields of the configuration that become columns
    tokens : context length for cycles and bytes
    quality : result files of `kvtq-hw eval`

    Returns
    -------
    list of dict
        Columns: the fields, "code", the area (measured), "cycles", "bytes" and "bits_per_element"
        of attention for one KV head over `tokens` tokens (derived), and "perplexity_ratio" of the
        code to the unquantized model (measured), None if no file has the code.
    """
    rows = []
    for code in codes:
        found = quality_of(str(code), quality)
        for config, area in zip(configs, areas, strict=True):
            rows.append(
                {field: getattr(config, field) for field in fields}
                | {"code": str(code)}
                | {name: area[name] for name in _AREA_FIELDS}
                | {
                    "cycles": code_job_cycles(config, code, tokens),
                    "bytes": cache_bytes(config, code, tokens),
                    "bits_per_element": round(bits_per_element(config, code, tokens), 4),
                    "perplexity_ratio": found and found["perplexity_ratio"],
                }
            )
    return rows
