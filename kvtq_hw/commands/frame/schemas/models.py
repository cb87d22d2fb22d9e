"""Files of commands that run language models or list them."""

from __future__ import annotations

from typing import Annotated

from kvtq_hw.commands.frame.schemas.words import (
    Bits,
    Code,
    Command,
    Config,
    Head,
    Kld,
    KvHeads,
    LayerIndex,
    Layers,
    Model,
    ModelFingerprint,
    Output,
    PerplexityRatio,
    Step,
    Tokens,
    Written,
    about,
)

__all__ = ["MODELS"]


class EvalRow(Output):
    """A cache format."""

    code: Code
    attention: Annotated[str, about("integer (docs/contract.md) or float")]
    bits_per_element: Bits
    perplexity: Annotated[float, about("over all predicted positions")]
    perplexity_ratio: PerplexityRatio
    kld: Kld
    top1_agreement: Annotated[float, about("share of positions with the same most likely token")]
    tokens: Annotated[int, about("predicted positions", "token")]
    saturated: Annotated[int, about("elements that did not fit the calibration's 16 bits")]
    saturated_share: Annotated[float, about("their share of all elements")]
    needle: Annotated[float | None, about("share of hidden numbers found; null if not asked for")]
    needles: Annotated[int, about("hidden numbers")]


class Eval(Output):
    """`kvtq-hw eval`."""

    model: Model
    model_fingerprint: ModelFingerprint
    device: Annotated[str, about("kind of device that the model computed on")]
    dtype: Annotated[str, about("numbers that the model computed in")]
    text: Annotated[str, about("name of the text")]
    text_sha256: Annotated[str, about("SHA-256 of the text")]
    context: Annotated[int, about("tokens of a segment", "token")]
    segments: Annotated[int, about("segments of the text")]
    chunk: Annotated[int, about("tokens that are fed at a time", "token")]
    config: Config
    rows: Annotated[list[EvalRow], about("one per cache format")]


class Decode(Output):
    """`kvtq-hw decode`; null for what a backend does not measure."""

    text: Annotated[str, about("the continuation")]
    tokens: Annotated[list[int], about("its token ids")]
    tokens_identical: Annotated[bool | None, about("they equal those of the golden model alone")]
    outputs_compared: Annotated[int, about("output elements of the RTL that were compared")]
    mismatches: Annotated[int, about("and how many differed")]
    memory_bytes_compared: Annotated[int, about("bytes of memory that were compared", "byte")]
    memory_differences: Annotated[int, about("and how many differed", "byte")]
    rtl_cycles: Annotated[int | None, about("cycles by the RTL's own counter", "cycle")]
    bound_cycles: Annotated[int | None, about("cycles at one slice per cycle", "cycle")]
    tokens_per_second: Annotated[float, about("decode steps per second of wall time", "1/s")]
    bits_per_element: Annotated[float | None, about("stored bits per cached element", "bit")]
    context: Annotated[int, about("tokens in the cache at the end", "token")]
    preset: Annotated[str | None, about("name of the configuration")]
    code: Annotated[str | None, about("the cache format, as `--code` spells it")]
    backend: Annotated[str, about("who computed the attention")]
    scale: Annotated[str | None, about("choice of the scale")]
    model: Model
    prompt: Annotated[str, about("the continued text")]
    saturated: Annotated[int | None, about("elements that did not fit the calibration's 16 bits")]
    saturated_share: Annotated[float | None, about("their share of all elements")]
    float_error_max: Annotated[float | None, about("largest distance to float64 attention")]
    float_error_rms: Annotated[float | None, about("relative root mean square of the distance")]


class Calibrate(Output):
    """`kvtq-hw calibrate`."""

    command: Command
    model: Model
    model_fingerprint: ModelFingerprint
    text_digest: Annotated[str, about("SHA-256 of the tokens")]
    tokens: Annotated[int, about("tokens of the text", "token")]
    layers: Layers
    kv_heads: KvHeads
    head_dim: Annotated[int, about("elements of a head vector")]
    file: Written


class Allocate(Output):
    """`kvtq-hw allocate`."""

    command: Command
    model: Model
    model_fingerprint: ModelFingerprint
    config: Config
    context: Annotated[int, about("context at which the budget holds", "token")]
    tokens: Annotated[int, about("tokens that sensitivity was measured on", "token")]
    digits: Annotated[list[int], about("digits of keys and of values, layer by layer")]
    budget_spent: Annotated[float, about("share of the budget that is spent")]
    expected_kld: Annotated[float, about("expected divergence from the unquantized model", "nat")]
    file: Written


class Captured(Output):
    """A captured attention."""

    file: Written
    layer: LayerIndex
    head: Head
    step: Step
    tokens: Tokens


class Capture(Output):
    """`kvtq-hw capture`."""

    command: Command
    model: Model
    config: Config
    files: Annotated[list[Captured], about("one per layer, KV head and step")]


class KnownModel(Output):
    """A model that `--model` knows by name."""

    name: Annotated[str, about("its name")]
    about: Annotated[str, about("what it is")]
    layers: Layers
    kv_heads: KvHeads
    query_group: Annotated[int, about("query heads per KV head")]
    head_dim: Annotated[int, about("elements of a head vector")]
    windows: Annotated[list[int | None], about("sliding window by layer; null without", "token")]
    gguf_bytes: Annotated[int, about("size of its file", "byte")]
    gguf_sha256: Annotated[str, about("SHA-256 of its file")]
    terms: Annotated[str, about("its licence")]
    wheels: Annotated[list[str], about("its wheels here; empty if it is not here")]
    get: Annotated[str, about("how to get it")]


class Models(Output):
    """`kvtq-hw models`."""

    models: Annotated[list[KnownModel], about("all of them")]


class Point(Output):
    """A point of the picture."""

    code: Code
    bits: Bits
    perplexity_ratio: PerplexityRatio
    needle: Annotated[float | None, about("share of hidden numbers found")]


class Pareto(Output):
    """`kvtq-hw pareto`."""

    points: Annotated[list[Point], about("one per cache format")]


MODELS: dict[str, type[Output]] = {
    "allocate": Allocate,
    "calibrate": Calibrate,
    "capture": Capture,
    "decode": Decode,
    "eval": Eval,
    "models": Models,
    "pareto": Pareto,
}
