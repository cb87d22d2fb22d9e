"""Measure decoding speed and memory of quantized caches on a CPU, all in one run.

Usage: python benchmarks/cache_speed.py [--context N] [--steps N] [--code CODE ...] [--json FILE]

Every cache is filled with the same tokens. Then all caches make one decode step in turn, again and
again, so that other work of the machine slows all alike. The median step counts, in processor time
of the process. With one thread on a quiet machine, processor time is wall time: set
OMP_NUM_THREADS=1. Attention on ternary codes is in single precision, as on the other caches.

Memory is measured on the filled cache in two ways: by the bytes of all tensors in the process that
did not exist before the cache (a census, which would show a hidden copy), and by the bytes that the
cache itself reports, from which bits per element are computed everywhere else.
"""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from transformers import Cache, DynamicCache

from golden.attend.single_precision import SinglePrecisionBackend
from golden.llm.calibration import load_or_calibrate
from golden.llm.models import LanguageModel, load_model
from golden.study.catalog import parse_format
from golden.study.formats import CacheFormat, FormatInputs
from golden.study.quality import DEFAULT_CHUNK, cut_segments, documentation_text
from kvtq_hw.commands.frame.options import code_option, json_option, model_option, write_json

CODES = (
    "fp16",
    "balanced:3/2",
    "balanced:2/2",
    "balanced:1/1",
    "balanced:2/1,sinks=4,window=32,feedback",
    "transformers:4",
    "transformers:2",
)


@dataclass(frozen=True)
class Measured:
    """Speed and memory of one cache.

    code : spelling of the cache format
    tokens_per_second : of the median decode step, per second of processor time
    resident_bytes : of all tensors that came with the filled cache, by census
    reported_bytes : stored bytes, as the cache reports them
    bits_per_element : computed from the reported bytes
    """

    code: str
    tokens_per_second: float
    resident_bytes: int
    reported_bytes: int
    bits_per_element: float


@click.command()
@model_option
@click.option("--context", type=click.IntRange(min=64), default=1024, show_default=True)
@click.option("--steps", type=click.IntRange(min=3), default=20, show_default=True)
@code_option("Cache format.", CODES, accepts="format")
@json_option
def main(
    model_name: str, context: int, steps: int, codes: tuple[str, ...], json_file: Path | None
) -> None:
    """Measure decode steps at a context, and the memory of each cache."""
    language_model = load_model(model_name)
    inputs = FormatInputs(
        language_model,
        language_model.engine_config(context + steps),
        lambda: load_or_calibrate(language_model),
    )
    [tokens] = cut_segments(language_model, documentation_text(), context, 1)
    formats = [parse_format(code, inputs, SinglePrecisionBackend()) for code in codes]
    states = DynamicCache()
    with language_model.attending_with("sdpa"), torch.inference_mode():
        language_model.model(tokens[None, :-1], past_key_values=states, logits_to_keep=1)
    caches, memory = [], []
    for cache_format in formats:
        before = census()
        cache = _filled(language_model, cache_format, states, tokens[-1])
        memory.append((census() - before, *cache_format.stored(cache)))
        caches.append(cache)
    seconds = _decode_in_turn(language_model, formats, caches, steps)
    results = [
        Measured(code, 1 / statistics.median(times), resident, stored, 8 * stored / elements)
        for code, times, (resident, stored, elements) in zip(codes, seconds, memory, strict=True)
    ]
    click.echo(f"{'code':40} {'tokens/s':>9} {'resident MB':>12} {'reported MB':>12} {'bits':>7}")
    for result in results:
        click.echo(
            f"{result.code:40} {result.tokens_per_second:9.2f} {result.resident_bytes / 1e6:12.3f} "
            f"{result.reported_bytes / 1e6:12.3f} {result.bits_per_element:7.3f}"
        )
    rows = [asdict(result) for result in results]
    write_json(json_file, {"context": context, "steps": steps, "rows": rows})


def census() -> int:
    """Return the bytes of the storages of all live tensors, each storage counted once."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of the objects are deprecated
        # a tensor subclass wraps plain tensors, which are in the list themselves
        alive = [
            thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)
        ]
    storages = {}
    for tensor in alive:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _filled(
    language_model: LanguageModel,
    cache_format: CacheFormat,
    states: DynamicCache,
    newest: torch.Tensor,
) -> Cache:
    """Fill a cache with keys and values of all tokens but one, and decode that token."""
    cache = cache_format.make_cache()
    chunk = min(DEFAULT_CHUNK, cache_format.longest_chunk or DEFAULT_CHUNK)
    with torch.inference_mode():
        for index, layer in enumerate(states.layers):
            pieces = zip(layer.keys.split(chunk, 2), layer.values.split(chunk, 2), strict=True)
            for keys, values in pieces:
                cache.update(keys, values, index)
        with language_model.attending_with(cache_format.attention):
            language_model.model(newest[None, None], past_key_values=cache)
    return cache


def _decode_in_turn(
    language_model: LanguageModel, formats: list[CacheFormat], caches: list[Cache], steps: int
) -> list[list[float]]:
    """Return processor seconds of each decode step on each cache, without each cache's first."""
    seconds: list[list[float]] = [[] for _ in caches]
    token = torch.tensor([[1000]])
    for step in range(steps + 1):
        for cache_format, cache, times in zip(formats, caches, seconds, strict=True):
            with language_model.attending_with(cache_format.attention), torch.inference_mode():
                start = time.process_time()
                language_model.model(token, past_key_values=cache)
                elapsed = time.process_time() - start
            if step:
                times.append(elapsed)
    return seconds


if __name__ == "__main__":
    main()
