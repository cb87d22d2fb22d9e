"""The configuration object from which every width, latency and layout is derived.

`EngineConfig` is frozen and validates itself. Golden model, RTL, benches and reports read the same
object, so each width is defined in one place. Presets are TOML files in the folder `presets`::

    >>> config = load_config("smollm2").replace(lanes=16)
    >>> config.head_dim, config.slices, config.sum_bits
    (64, 4, 12)
"""

from __future__ import annotations

import hashlib
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kvtq_hw.contract.errors import UserError, shown
from kvtq_hw.contract.files import first_problem, read_toml

__all__ = [
    "VECTOR_MAX",
    "ConfigError",
    "EngineConfig",
    "config_from_fields",
    "load_config",
    "preset_names",
]

#: Largest magnitude of an element of an incoming key or value vector: 16 bits, symmetric.
VECTOR_MAX = (1 << 15) - 1


class ConfigError(UserError, ValueError):
    """Raised for a configuration that cannot be built.

    The message is one line: field, value, what is allowed.
    """


class EngineConfig(BaseModel):
    """Parameters of one attention engine.

    Parameters
    ----------
    name : str
        Name of the configuration in Verilog headers, manifests and reports.
    head_dim : int
        Head dimension D: elements per key or value vector.
    query_group : int
        Query heads G that share one KV head and run in parallel.
    lanes : int
        Elements of a plane that the engine processes per cycle; divides `head_dim`.
    query_bits : int
        Width of a signed query element. The range is symmetric: +-(2**(query_bits-1) - 1).
    score_bits, score_fraction_bits : int
        Width and fraction bits F of a signed score in the log2 domain.
    weight_bits : int
        Fraction bits W of a softmax weight 2**-x in (0, 1].
    output_fraction_bits : int
        Fraction bits of an output element below the job's value exponent.
    scale_fraction_bits, scale_exponent_bits : int
        A plane scale is (2**scale_fraction_bits + f) * 2**e in units of the integer vectors. Zero
        fraction bits make scales powers of two: the plane scaler is then a shifter.
    cache_format : str
        Storage format of key and value vectors: "ternary" planes, or "int8" or "int4" in the
        comparison engines, whose lanes multiply. "int8" and "int4" store one two's complement
        integer per element and one scale per vector.
    max_planes : int
        Largest number of ternary planes (digits) per vector; 1 for integers, whose only "plane"
        holds the integers themselves.
    key_planes_per_cycle, value_planes_per_cycle : int
        Planes P of one run per key or value slice. A run is padded with zero planes at its most
        significant end. 1 for integers.
    block : int
        Tokens B per online softmax block, a power of two.
    packing : str
        Storage of digits: "5in8" (five digits per byte) or "2bit".
    max_context : int
        Largest number of tokens per job.
    memory_bits : int
        Data width of the AXI4 memory port, a power of two.
    address_bits : int
        Width of the memory port's byte addresses.
    table_heads : int
        KV heads, over all layers, whose head constants (centres, feedback matrices) are on chip.
    anchor_slots : int
        Longest window, in tokens, of a job with anchor tokens; 0 builds no hardware for anchors.
    read_ahead : int
        Beats of read data that may be requested or buffered ahead of the engine, a power of two.

    Raises
    ------
    pydantic.ValidationError
        For any field outside its range; `load_config` turns the error into a `ConfigError` of one
        line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")]
    head_dim: Annotated[int, Field(ge=4, le=256, multiple_of=4)]
    query_group: Annotated[int, Field(ge=1, le=8)]
    lanes: Annotated[int, Field(ge=2, le=256)]
    query_bits: Annotated[int, Field(ge=8, le=16)] = 12
    score_bits: Annotated[int, Field(ge=10, le=24)] = 16
    score_fraction_bits: Annotated[int, Field(ge=3, le=10)] = 7
    weight_bits: Annotated[int, Field(ge=6, le=16)] = 14
    output_fraction_bits: Annotated[int, Field(ge=4, le=12)] = 10
    scale_fraction_bits: Annotated[int, Field(ge=0, le=8)] = 3
    scale_exponent_bits: Annotated[int, Field(ge=4, le=5)] = 5
    cache_format: Literal["ternary", "int8", "int4"] = "ternary"
    max_planes: Annotated[int, Field(ge=1, le=5)] = 5
    key_planes_per_cycle: Annotated[int, Field(ge=1, le=5)] = 1
    value_planes_per_cycle: Annotated[int, Field(ge=1, le=5)] = 1
    block: Annotated[int, Field(ge=4, le=256)] = 32
    packing: Literal["5in8", "2bit"] = "5in8"
    max_context: Annotated[int, Field(ge=2, le=1 << 20)] = 8192
    memory_bits: Annotated[int, Field(ge=32, le=1024)] = 128
    address_bits: Annotated[int, Field(ge=16, le=64)] = 40
    table_heads: Annotated[int, Field(ge=1, le=1024)] = 1
    anchor_slots: Annotated[int, Field(ge=0, le=256)] = 32
    read_ahead: Annotated[int, Field(ge=16, le=4096)] = 256

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        if self.head_dim % self.lanes:
            raise ValueError(
                f"lanes: {self.lanes} does not divide head_dim {self.head_dim}; "
                f"allowed are divisors of {self.head_dim} from 2 on"
            )
        for field, allowed in (
            ("block", "4, 8, ... 256"),
            ("max_context", "2, 4, ... 1048576"),
            ("memory_bits", "32, 64, ... 1024"),
            ("read_ahead", "16, 32, ... 4096"),
        ):
            value = getattr(self, field)
            if value & (value - 1):
                raise ValueError(f"{field}: {value} is not a power of two; allowed are {allowed}")
        if self.score_bits - self.score_fraction_bits < 5:
            raise ValueError(
                f"score_fraction_bits: {self.score_fraction_bits} leaves fewer than 5 integer bits "
                f"of score_bits {self.score_bits}; allowed are 3..{self.score_bits - 5}"
            )
        if not self.is_ternary and self.max_planes != 1:
            raise ValueError(
                f"max_planes: {self.max_planes} planes of cache_format {self.cache_format!r}; "
                "allowed is 1"
            )
        for field in ("key_planes_per_cycle", "value_planes_per_cycle"):
            if getattr(self, field) > self.max_planes:
                raise ValueError(
                    f"{field}: {getattr(self, field)} is more than max_planes {self.max_planes}; "
                    f"allowed are 1..{self.max_planes}"
                )
        return self

    # --- derived widths -------------------------------------------------------------------------

    @property
    def slices(self) -> int:
        """Slices S per plane, one per cycle: head_dim / lanes."""
        return self.head_dim // self.lanes

    @property
    def query_max(self) -> int:
        """Largest magnitude of a query element, 2**(query_bits-1) - 1."""
        return (1 << (self.query_bits - 1)) - 1

    @property
    def is_ternary(self) -> bool:
        """Whether the cache holds ternary planes; otherwise the cache holds integers."""
        return self.cache_format == "ternary"

    @property
    def integer_bits(self) -> int:
        """Width of an element in an integer cache format; 0 for ternary planes."""
        return {"ternary": 0, "int8": 8, "int4": 4}[self.cache_format]

    @property
    def element_min(self) -> int:
        """Smallest element of a plane: a trit, or an integer."""
        return -1 if self.is_ternary else -self.code_max

    @property
    def element_max(self) -> int:
        """Largest element of a plane: a trit, or an integer."""
        return 1 if self.is_ternary else self.code_max - 1

    @property
    def code_max(self) -> int:
        """Largest magnitude of an element's code.

        (3**max_planes - 1) / 2 for a balanced ternary code, 2**(integer_bits - 1) for an integer.
        """
        if self.is_ternary:
            return (3**self.max_planes - 1) // 2
        return 1 << (self.integer_bits - 1)

    @property
    def slice_code_max(self) -> int:
        """Largest magnitude per element of a key slice: weighted sum of trits, or integer."""
        return (3**self.key_planes_per_cycle - 1) // 2 if self.is_ternary else self.code_max

    @property
    def sum_bits(self) -> int:
        """Signed width of one key slice's sum: |sum| <= lanes * query_max * slice_code_max."""
        return signed_bits(self.lanes * self.query_max * self.slice_code_max)

    @property
    def run_bits(self) -> int:
        """Signed width of the Horner sum of a run of planes.

        |t| <= sum_c 3**c * head_dim * query_max = code_max * head_dim * query_max.
        """
        return signed_bits(self.code_max * self.head_dim * self.query_max)

    @property
    def product_bits(self) -> int:
        """Signed width of a run sum times the scale mantissa (< 2**(scale_fraction_bits + 1))."""
        return signed_bits(self.code_max * self.head_dim * self.query_max * self.mantissa_max)

    @property
    def mantissa_max(self) -> int:
        """Largest scale mantissa 2**scale_fraction_bits + f; the smallest mantissa has f = 0."""
        return (1 << (self.scale_fraction_bits + 1)) - 1

    @property
    def query_exponent_bits(self) -> int:
        """Signed width of a job's query exponent (a right shift before the scale's exponent)."""
        return 8

    @property
    def scale_bits(self) -> int:
        """Stored bits of one scale."""
        return self.scale_fraction_bits + self.scale_exponent_bits

    @property
    def rotation_size(self) -> int:
        """Elements n per block of the Hadamard rotation: largest power of two in head_dim."""
        return self.head_dim & -self.head_dim

    @property
    def conditioned_max(self) -> int:
        """Largest magnitude of a conditioned element (centred, then rotated).

        A vector element and its centre are at most VECTOR_MAX each; the rotation sums n centred
        elements.
        """
        return 2 * VECTOR_MAX * self.rotation_size

    @property
    def conditioned_bits(self) -> int:
        """Signed width of a conditioned element, as it enters the quantizer."""
        return signed_bits(self.conditioned_max)

    @property
    def requantized_bits(self) -> int:
        """Signed width of an element that may have been quantized before.

        Rounding an element x to the code under a scale s gives less than twice its magnitude: a
        digit of weight w is nonzero only if ``2 |x| > w``, and the remainder is at most w / 2.
        """
        return signed_bits(2 * self.conditioned_max)

    @property
    def feedback_lanes(self) -> int:
        """Feedback sums updated per cycle: a quarter of a vector's elements."""
        return self.head_dim // 4

    @property
    def feedback_words(self) -> int:
        """Words per feedback matrix, each of `feedback_lanes` factors.

        Row k starts at the word that holds element k + 1; the last row, D - 1, is empty.
        """
        return sum(4 - k // self.feedback_lanes for k in range(1, self.head_dim))

    @property
    def score_max(self) -> int:
        """Largest score; the smallest score is -score_max - 1."""
        return (1 << (self.score_bits - 1)) - 1

    @property
    def maximum_max(self) -> int:
        """Largest integer running maximum; its smallest value comes from the smallest score.

        The running maximum is ceil(score / 2**F), or is raised above all scores. When the running
        maximum is k above all scores, a token's weight is at most 2 * 2**(W-k), rounding included,
        a learned sink's is below 2 * 2**W, and the next raise needs a sum of weights of
        `sum_limit` = L * 2**W: 2**k <= 2 * max_context / (L - 2) <= 4 * max_context / L. A raise
        adds one to the largest such k. Where a learned sink starts from a maximum above that, no
        raise follows.
        """
        ratio = self.max_context // (self.sum_limit >> self.weight_bits)
        return self.ceiling_max + (ratio.bit_length() + 2 if ratio > 1 else 0)

    @property
    def ceiling_max(self) -> int:
        """Largest ceil(score / 2**F); the smallest is -ceiling_max."""
        return 1 << (self.score_bits - 1 - self.score_fraction_bits)

    @property
    def maximum_bits(self) -> int:
        """Signed width of the integer running maximum, and of a learned sink's `sink_maximum`."""
        return signed_bits(self.maximum_max)

    @property
    def weight_width(self) -> int:
        """Unsigned width of a weight: 2**weight_bits is the weight one."""
        return self.weight_bits + 1

    @property
    def sum_limit(self) -> int:
        """Sum of weights at or above which the next block raises the running maximum.

        The limit is at least the largest sum of one block. It is so large that each of
        `max_context` equal weights keeps W - 8 bits.
        """
        return max(self.block, self.max_context >> 8) << self.weight_bits

    @property
    def sum_of_weights_max(self) -> int:
        """Largest softmax denominator.

        A block adds at most B * 2**W <= `sum_limit`, either to a sum below the limit or to half of
        a sum that is at most twice the limit. So the sum stays at most twice the limit. It starts
        below 2 * 2**W, the end of the range of a learned sink's weight, and so below the limit.
        """
        return min(2 * self.sum_limit, ((self.max_context + 2) << self.weight_bits) - 1)

    @property
    def sum_of_weights_bits(self) -> int:
        """Unsigned width of the softmax denominator."""
        return self.sum_of_weights_max.bit_length()

    @property
    def scaled_weight_max(self) -> int:
        """Largest product of weight and value scale, rounded half up.

        The value scale is aligned to the job's largest exponent and is therefore below two.
        """
        half = (1 << self.scale_fraction_bits) >> 1
        return ((self.mantissa_max << self.weight_bits) + half) >> self.scale_fraction_bits

    @property
    def scaled_weight_bits(self) -> int:
        """Unsigned width of the product of weight and value scale."""
        return self.scaled_weight_max.bit_length()

    @property
    def tripled_weight_bits(self) -> int:
        """Unsigned width of a slice's first plane's weight: scaled weight times a power of 3."""
        last = (self.max_planes - 1) // self.value_planes_per_cycle * self.value_planes_per_cycle
        return (self.scaled_weight_max * 3**last).bit_length()

    @property
    def accumulator_bits(self) -> int:
        """Signed width of an output accumulator.

        A token of weight p and scaled weight w adds at most
        w * (1 + 3 + ... + 3**(max_planes-1)) = w * code_max in one run; several shorter runs add
        less. The scaled weight is ``w <= c * p + 1/2`` with ``c = mantissa_max / 2**M``, and
        ``w <= 2 * p``. So before any rescale,
        ``|acc| <= code_max * min(c * sum + tokens / 2, 2 * sum)``.

        A rescale by s > 0 rounds the sum down to sum' and |acc| up. The bound
        ``|acc| <= a * (sum + x)`` becomes ``a * (sum' + 1 - 2**-s + x * 2**-s) + 1``; with
        ``x = 1 + 2 / a`` the first form of the bound holds after every rescale. Here `sum` is the
        tokens' part of the denominator, without a learned sink, rescaled on its own: it is at most
        the denominator, and at most max_context * 2**W.
        """
        weights = min(2 * self.sum_limit, self.max_context << self.weight_bits) + 1
        rounded = -(-self.mantissa_max * weights >> self.scale_fraction_bits)
        scaled = min(rounded + self.max_context // 2, 2 * weights)
        return signed_bits(self.code_max * scaled + 2)

    @property
    def rescale_steps(self) -> int:
        """Cycles per accumulator rescale: one-bit shifts, up to the whole accumulator width."""
        return self.accumulator_bits

    @property
    def rescale_bits(self) -> int:
        """Unsigned width of a rescale shift, clamped to accumulator_bits."""
        return self.accumulator_bits.bit_length()

    @property
    def reciprocal_bits(self) -> int:
        """Fraction bits R of the reciprocal of the softmax denominator."""
        return self.output_fraction_bits + 6

    @property
    def normalizer_turns(self) -> int:
        """Turns of the normalizer per element: query heads that share one of its multipliers.

        As many as leave the outputs of a job hidden behind the queries and the first two blocks of
        keys of the next job, whose first value slice needs the accumulators. These blocks are taken
        to be of keys of three digits, as in the default code. The reciprocals, which one divider
        makes, come before the outputs.
        """
        digits = min(3, self.max_planes)
        slices = self.slices * -(-digits // self.key_planes_per_cycle)
        hidden = self.head_dim + 2 * self.block * slices
        reciprocals = self.query_group * (self.reciprocal_bits + 2)
        turns = (hidden - reciprocals) // self.head_dim
        multipliers = -(-self.query_group // max(1, turns))
        return -(-self.query_group // multipliers)

    @property
    def output_bits(self) -> int:
        """Signed width of an output element: |o| < 2 * code_max in units of the value exponent."""
        return signed_bits((2 * self.code_max) << self.output_fraction_bits)

    @property
    def token_bits(self) -> int:
        """Unsigned width of a token index."""
        return (self.max_context - 1).bit_length()

    def replace(self, **changes: object) -> EngineConfig:
        """Return this configuration with some fields changed, checked like a new one.

        Raises
        ------
        ConfigError
            One line that names the field, its value and what is allowed.
        """
        return config_from_fields({**self.model_dump(), **changes})

    def model_copy(self, *, update: Any = None, deep: bool = False) -> Self:
        """Copy the configuration; raises `TypeError` for `update`, which pydantic does not check.

        Use `replace` for a checked copy with changes.
        """
        if update is not None:
            raise TypeError("model_copy(update=...) checks nothing; use replace(...)")
        return super().model_copy(deep=deep)

    def digest(self) -> str:
        """Return the hexadecimal SHA-256 of all fields: the key of build caches."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def signed_bits(magnitude: int) -> int:
    """Return the width in bits of a two's complement number for -magnitude..magnitude."""
    return magnitude.bit_length() + 1


def preset_names() -> list[str]:
    """Return the names of the configurations that ship with the package."""
    folder = resources.files("kvtq_hw.contract") / "presets"
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def load_config(source: str | Path) -> EngineConfig:
    """Load a preset by name or a configuration from a TOML file.

    Raises
    ------
    ConfigError
        One line that names the field, its value and what is allowed.
    """
    name = str(source)
    if name in preset_names():
        text = (resources.files("kvtq_hw.contract") / "presets" / f"{name}.toml").read_text("utf-8")
        return config_from_fields(tomllib.loads(text))
    if not name.endswith(".toml"):
        raise ConfigError(
            f"preset: {shown(name)} is unknown; allowed are {', '.join(preset_names())} "
            "or the path of a .toml file"
        )
    try:
        fields = read_toml(Path(source), "configuration file")
    except UserError as error:
        raise ConfigError(str(error)) from None
    return config_from_fields(fields)


def config_from_fields(fields: object) -> EngineConfig:
    """Build a configuration from plain values; raises `ConfigError` with one line."""
    try:
        return EngineConfig.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None


def _one_line(error: ValidationError) -> str:
    """Describe the first problem of a validation error: field, value, what is allowed."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{field}: missing; a configuration needs it"
    if first["type"] == "extra_forbidden":
        return f"{first_problem(error)}; allowed are {', '.join(EngineConfig.model_fields)}"
    return f"{first_problem(error)}{_field_range(field)}"


def _field_range(field: str) -> str:
    """Spell the whole allowed range of an integer field; empty for any other field."""
    info = EngineConfig.model_fields.get(field)
    bounds = {}
    for item in info.metadata if info else []:
        for key in ("ge", "le", "multiple_of"):
            if hasattr(item, key):
                bounds[key] = getattr(item, key)
    if "ge" not in bounds:
        return ""
    step = f", multiples of {bounds['multiple_of']}" if "multiple_of" in bounds else ""
    return f" (allowed are {bounds['ge']}..{bounds['le']}{step})"
