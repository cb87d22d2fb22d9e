"""The configuration: what it refuses, with which words, and that derived widths suffice.

Widths are proven by brute force on small configurations, not by repeating their formulas.
"""

from __future__ import annotations

import itertools
import re

import pytest
from pydantic import ValidationError

from kvtq_hw.contract.config import (
    VECTOR_MAX,
    ConfigError,
    EngineConfig,
    config_from_fields,
    load_config,
    preset_names,
    signed_bits,
)
from kvtq_hw.contract.errors import UserError

SMALL = {"name": "small", "head_dim": 8, "query_group": 2, "lanes": 4}
FIELDS = ", ".join(EngineConfig.model_fields)


def small(**changes: object) -> EngineConfig:
    return config_from_fields(SMALL | changes)


def test_fields_that_a_file_leaves_out() -> None:
    """A change of one of these changes every file that leaves it out."""
    assert small().model_dump() == SMALL | {
        "query_bits": 12,
        "score_bits": 16,
        "score_fraction_bits": 7,
        "weight_bits": 14,
        "output_fraction_bits": 10,
        "scale_fraction_bits": 3,
        "scale_exponent_bits": 5,
        "cache_format": "ternary",
        "max_planes": 5,
        "key_planes_per_cycle": 1,
        "value_planes_per_cycle": 1,
        "block": 32,
        "packing": "5in8",
        "max_context": 8192,
        "memory_bits": 128,
        "address_bits": 40,
        "table_heads": 1,
        "anchor_slots": 32,
        "read_ahead": 256,
    }


# --- what it refuses ------------------------------------------------------------------------------

INTEGERS = {
    "head_dim": "4..256, multiples of 4",
    "query_group": "1..8",
    "lanes": "2..256",
    "query_bits": "8..16",
    "score_bits": "10..24",
    "score_fraction_bits": "3..10",
    "weight_bits": "6..16",
    "output_fraction_bits": "4..12",
    "scale_fraction_bits": "0..8",
    "scale_exponent_bits": "4..5",
    "max_planes": "1..5",
    "key_planes_per_cycle": "1..5",
    "value_planes_per_cycle": "1..5",
    "block": "4..256",
    "max_context": "2..1048576",
    "memory_bits": "32..1024",
    "address_bits": "16..64",
    "table_heads": "1..1024",
    "anchor_slots": "0..256",
    "read_ahead": "16..4096",
}


@pytest.mark.parametrize(("field", "allowed"), INTEGERS.items())
def test_integer_outside_its_range_is_refused(field: str, allowed: str) -> None:
    low, high = (int(bound) for bound in re.findall(r"\d+", allowed)[:2])
    step = 4 if "multiples of 4" in allowed else 1
    for value, requirement in (
        (low - step, f"be greater than or equal to {low}"),
        (high + step, f"be less than or equal to {high}"),
    ):
        with pytest.raises(ConfigError) as caught:
            small(**{field: value})
        assert str(caught.value) == (
            f"{field}: {value} is not allowed; must {requirement} (allowed are {allowed})"
        )


@pytest.mark.parametrize("field", INTEGERS)
@pytest.mark.parametrize("value", ["8", 8.0, True, None])
def test_integer_of_another_type_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        small(**{field: value})
    assert str(caught.value) == (
        f"{field}: {value!r} is not allowed; must be a valid integer "
        f"(allowed are {INTEGERS[field]})"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"head_dim": 6},
            "head_dim: 6 is not allowed; must be a multiple of 4 "
            "(allowed are 4..256, multiples of 4)",
        ),
        (
            {"lanes": 3},
            "lanes: 3 does not divide head_dim 8; allowed are divisors of 8 from 2 on",
        ),
        (
            {"lanes": 16},
            "lanes: 16 does not divide head_dim 8; allowed are divisors of 8 from 2 on",
        ),
        ({"block": 12}, "block: 12 is not a power of two; allowed are 4, 8, ... 256"),
        (
            {"max_context": 100},
            "max_context: 100 is not a power of two; allowed are 2, 4, ... 1048576",
        ),
        (
            {"memory_bits": 96},
            "memory_bits: 96 is not a power of two; allowed are 32, 64, ... 1024",
        ),
        (
            {"read_ahead": 100},
            "read_ahead: 100 is not a power of two; allowed are 16, 32, ... 4096",
        ),
        (
            {"score_bits": 12, "score_fraction_bits": 8},
            "score_fraction_bits: 8 leaves fewer than 5 integer bits of score_bits 12; "
            "allowed are 3..7",
        ),
        (
            {"max_planes": 2, "key_planes_per_cycle": 3},
            "key_planes_per_cycle: 3 is more than max_planes 2; allowed are 1..2",
        ),
        (
            {"cache_format": "int4", "max_planes": 1, "value_planes_per_cycle": 2},
            "value_planes_per_cycle: 2 is more than max_planes 1; allowed are 1..1",
        ),
        ({"packing": "4bit"}, "packing: '4bit' is not allowed; must be '5in8' or '2bit'"),
        (
            {"cache_format": "int5", "max_planes": 1},
            "cache_format: 'int5' is not allowed; must be 'ternary', 'int8' or 'int4'",
        ),
        (
            {"cache_format": "int8", "max_planes": 3},
            "max_planes: 3 planes of cache_format 'int8'; allowed is 1",
        ),
        ({"name": 7}, "name: 7 is not allowed; must be a valid string"),
        ({"colour": "red"}, f"colour: unknown field; allowed are {FIELDS}"),
    ],
)
def test_bad_value_is_named_with_what_is_allowed(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        small(**changes)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["", "9x", "a b", "x" * 33, "line\n", "x*/y", "naïve"])
def test_name_that_does_not_fit_a_header_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        small(name=name)
    pattern = "^[A-Za-z][A-Za-z0-9_-]{0,31}$"
    assert str(caught.value) == f"name: {name!r} is not allowed; must match pattern '{pattern}'"


@pytest.mark.parametrize("field", SMALL)
def test_missing_field_is_named(field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_fields({key: value for key, value in SMALL.items() if key != field})
    assert str(caught.value) == f"{field}: missing; a configuration needs it"


def test_configuration_is_frozen() -> None:
    config = small()
    with pytest.raises(ValidationError, match="frozen"):
        config.lanes = 8
    assert config.lanes == 4


def test_bounds_themselves_are_allowed() -> None:
    smallest = config_from_fields(
        {"name": "a", "head_dim": 4, "query_group": 1, "lanes": 2, "query_bits": 8}
        | {"score_bits": 10, "score_fraction_bits": 3, "weight_bits": 6, "output_fraction_bits": 4}
        | {"scale_fraction_bits": 0, "scale_exponent_bits": 4, "max_planes": 1, "block": 4}
        | {"max_context": 2, "packing": "2bit", "memory_bits": 32, "address_bits": 16}
        | {"table_heads": 1, "read_ahead": 16}
    )
    largest = config_from_fields(
        {"name": "z" * 32, "head_dim": 256, "query_group": 8, "lanes": 256, "query_bits": 16}
        | {"score_bits": 24, "score_fraction_bits": 10, "weight_bits": 15}
        | {"output_fraction_bits": 12, "scale_fraction_bits": 8, "scale_exponent_bits": 5}
        | {"max_planes": 5, "block": 256, "max_context": 1 << 20, "memory_bits": 1024}
        | {"address_bits": 64, "table_heads": 1024, "read_ahead": 4096}
    )
    assert (smallest.slices, largest.slices) == (2, 1)


# --- presets and files ----------------------------------------------------------------------------


def test_presets_are_the_documented_ones() -> None:
    assert preset_names() == ["llama3-8b", "smollm2", "tiny"]


@pytest.mark.parametrize("name", preset_names())
def test_preset_carries_its_own_name(name: str) -> None:
    assert load_config(name).name == name


@pytest.mark.parametrize(("name", "shape"), [("smollm2", (64, 3)), ("llama3-8b", (128, 4))])
def test_preset_has_the_shape_of_its_model(name: str, shape: tuple[int, int]) -> None:
    config = load_config(name)
    assert (config.head_dim, config.query_group) == shape


def test_file_gives_the_fields_it_names(tmp_path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\nhead_dim = 32\nquery_group = 2\nlanes = 16\nblock = 8\n')
    expected = {"name": "mine", "head_dim": 32, "query_group": 2, "lanes": 16, "block": 8}
    assert load_config(file) == load_config(str(file)) == EngineConfig(**expected)


def test_file_of_the_name_of_a_preset_needs_its_ending(tmp_path, monkeypatch) -> None:
    (tmp_path / "tiny").write_text("name = 'other'")
    monkeypatch.chdir(tmp_path)
    assert load_config("tiny").name == "tiny"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "configuration file {file!r}: No such file or directory"),
        (b"\xff\xfe", "configuration file {file!r}: not UTF-8 text"),
        (
            b"lanes = ",
            "configuration file {file!r}: not TOML: Invalid value (at end of document)",
        ),
        (b"", "name: missing; a configuration needs it"),
        (b"[engine]\nlanes = 4", "name: missing; a configuration needs it"),
    ],
)
def test_bad_file_is_one_line(tmp_path, content: bytes | None, message: str) -> None:
    file = tmp_path / "bad.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value) == message.format(file=str(file))


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("smolm2")
    assert str(caught.value) == (
        "preset: 'smolm2' is unknown; allowed are llama3-8b, smollm2, tiny "
        "or the path of a .toml file"
    )


def test_error_is_one_that_the_command_line_shows() -> None:
    assert issubclass(ConfigError, UserError)
    assert issubclass(ConfigError, ValueError)


def test_digest_tells_every_field_apart() -> None:
    base = small()
    changed = [
        small(name="other"),
        small(head_dim=16),
        small(query_group=3),
        small(lanes=8),
        small(packing="2bit"),
        base.replace(cache_format="int8", max_planes=1),
        *(
            small(**{field: getattr(base, field) + step})
            for field, step in {
                "query_bits": 1,
                "score_bits": 1,
                "score_fraction_bits": 1,
                "weight_bits": 1,
                "output_fraction_bits": 1,
                "scale_fraction_bits": 1,
                "scale_exponent_bits": -1,
                "max_planes": -1,
                "key_planes_per_cycle": 1,
                "value_planes_per_cycle": 1,
                "block": base.block,
                "max_context": base.max_context,
                "memory_bits": base.memory_bits,
                "address_bits": 1,
                "table_heads": 1,
                "anchor_slots": 1,
                "read_ahead": base.read_ahead,
            }.items()
        ),
    ]
    assert len(changed) == len(EngineConfig.model_fields)
    assert len({config.digest() for config in [base, *changed]}) == len(changed) + 1
    assert base.digest() == small().digest()


# --- derived widths -------------------------------------------------------------------------------


def fits(value: int, bits: int) -> bool:
    """Whether a two's complement number of `bits` holds `value`."""
    return -(1 << (bits - 1)) <= value < 1 << (bits - 1)


def assert_signed_width(bits: int, extremes: tuple[int, int]) -> None:
    """`bits` holds both extremes, and one bit less does not hold both."""
    assert all(fits(value, bits) for value in extremes)
    assert not all(fits(value, bits - 1) for value in extremes)


def rshift_round(value: int, shift: int) -> int:
    return (value + (1 << (shift - 1))) >> shift if shift else value


@pytest.mark.parametrize("magnitude", range(1, 300))
def test_signed_bits_is_the_smallest_width(magnitude: int) -> None:
    assert_signed_width(signed_bits(magnitude), (-magnitude, magnitude))


@pytest.mark.parametrize("max_planes", range(1, 6))
def test_code_max_is_the_largest_code(max_planes: int) -> None:
    codes = {
        sum(3**place * trit for place, trit in enumerate(trits))
        for trits in itertools.product((-1, 0, 1), repeat=max_planes)
    }
    largest = small(max_planes=max_planes).code_max
    assert codes == set(range(-largest, largest + 1))


@pytest.mark.parametrize("query_bits", range(8, 17))
def test_query_max_is_the_largest_query_element(query_bits: int) -> None:
    largest = small(query_bits=query_bits).query_max
    assert fits(largest, query_bits)
    assert not fits(largest + 1, query_bits)


@pytest.mark.parametrize("lanes", [2, 4])
@pytest.mark.parametrize("query_bits", [8, 9, 16])
def test_sum_bits_holds_every_slice_sum(lanes: int, query_bits: int) -> None:
    config = config_from_fields(SMALL | {"lanes": lanes, "query_bits": query_bits})
    # A sum is linear in every query element and every trit: its extremes are at theirs.
    corners = itertools.product((-config.query_max, config.query_max), (-1, 0, 1))
    products = [query * trit for query, trit in corners]
    sums = [sum(chosen) for chosen in itertools.product(sorted(set(products)), repeat=lanes)]
    assert_signed_width(config.sum_bits, (min(sums), max(sums)))


@pytest.mark.parametrize("planes", [1, 2, 3])
def test_sum_bits_holds_every_sum_of_a_slice_of_several_planes(planes: int) -> None:
    config = small(lanes=2, query_bits=8, key_planes_per_cycle=planes)
    codes = [
        sum(3**c * t for c, t in enumerate(ts)) for ts in itertools.product((-1, 1), repeat=planes)
    ]
    products = [query * code for query in (-127, 127) for code in codes]
    sums = [a + b for a in products for b in products]
    assert_signed_width(config.sum_bits, (min(sums), max(sums)))


@pytest.mark.parametrize("max_planes", range(1, 6))
@pytest.mark.parametrize("scale_fraction_bits", [0, 1, 3, 8])
def test_run_and_product_bits_hold_every_run(max_planes: int, scale_fraction_bits: int) -> None:
    config = small(max_planes=max_planes, scale_fraction_bits=scale_fraction_bits)
    sums = (-config.head_dim * config.query_max, config.head_dim * config.query_max)
    runs = [
        sum(3**place * plane_sum for place, plane_sum in enumerate(plane_sums))
        for plane_sums in itertools.product(sums, repeat=max_planes)
    ]
    assert_signed_width(config.run_bits, (min(runs), max(runs)))
    mantissas = range(1 << scale_fraction_bits, 2 << scale_fraction_bits)
    assert config.mantissa_max == max(mantissas)
    products = [run * mantissa for run in runs for mantissa in mantissas]
    assert_signed_width(config.product_bits, (min(products), max(products)))


@pytest.mark.parametrize("scale_fraction_bits", [0, 1, 3, 8])
@pytest.mark.parametrize("weight_bits", [6, 7])
def test_scaled_weight_bits_hold_every_weight(weight_bits: int, scale_fraction_bits: int) -> None:
    config = small(weight_bits=weight_bits, scale_fraction_bits=scale_fraction_bits, max_planes=3)
    largest = max(
        rshift_round(weight * mantissa, scale_fraction_bits + shift)
        for weight in range((1 << weight_bits) + 1)
        for mantissa in range(1 << scale_fraction_bits, 2 << scale_fraction_bits)
        for shift in range(weight_bits)
    )
    assert config.scaled_weight_max == largest
    assert config.scaled_weight_bits == len(f"{largest:b}")
    assert config.tripled_weight_bits == len(f"{3 * 3 * largest:b}")
    assert config.weight_width == len(f"{1 << weight_bits:b}")


@pytest.mark.parametrize(("planes", "last"), [(1, 81), (2, 81), (3, 27), (4, 81), (5, 1)])
def test_tripled_weight_bits_hold_the_weight_of_a_run_of_most_planes(
    planes: int, last: int
) -> None:
    config = small(value_planes_per_cycle=planes)
    assert config.tripled_weight_bits == len(f"{last * config.scaled_weight_max:b}")


@pytest.mark.parametrize("max_planes", [1, 2, 5])
@pytest.mark.parametrize("max_context", [2, 64])
def test_sum_and_accumulator_bits_hold_the_longest_job(max_planes: int, max_context: int) -> None:
    config = small(max_planes=max_planes, max_context=max_context)
    accumulator = 0
    weights = (2 << config.weight_bits) - 1  # the heaviest learned sink
    for _ in range(max_context):  # every token with the weight one, and its code all ones
        weights += 1 << config.weight_bits
        accumulator += sum(config.scaled_weight_max * 3**place for place in range(max_planes))
    assert config.sum_of_weights_bits == len(f"{weights:b}")
    assert_signed_width(config.accumulator_bits, (-accumulator, accumulator))
    # Rescaling by the whole width leaves a sign; rescale_bits holds that shift.
    assert {accumulator >> config.accumulator_bits, -accumulator >> config.accumulator_bits} == {
        0,
        -1,
    }
    assert config.accumulator_bits < 1 << config.rescale_bits


def test_bounded_sums_keep_the_longest_context_in_int64() -> None:
    """The golden model multiplies an accumulator by a reciprocal of R + 1 bits."""
    widest = {"max_context": 1 << 20, "weight_bits": 16, "output_fraction_bits": 12, "block": 256}
    config = small(**widest)
    assert config.accumulator_bits + config.reciprocal_bits < 62
    assert config.sum_of_weights_max == 2 * 4096 << 16
    # from two blocks to 256 blocks a longer context needs no wider sum
    for tokens in (512, 1 << 16):
        assert small(**widest | {"max_context": tokens}).sum_of_weights_max == 2 * 256 << 16


@pytest.mark.parametrize("score_bits", [10, 14, 16])
@pytest.mark.parametrize("fraction_bits", [3, 5])
def test_maximum_bits_hold_the_ceiling_of_every_score(score_bits: int, fraction_bits: int) -> None:
    config = small(score_bits=score_bits, score_fraction_bits=fraction_bits)
    ceilings = [
        -(-score // (1 << fraction_bits))
        for score in range(-config.score_max - 1, config.score_max + 1)
    ]
    assert_signed_width(config.maximum_bits, (min(ceilings), max(ceilings)))


@pytest.mark.parametrize("max_context", [2, 4, 64, 1 << 20])
def test_token_bits_hold_the_last_token(max_context: int) -> None:
    config = small(max_context=max_context, weight_bits=6)
    assert config.token_bits == len(f"{max_context - 1:b}")


@pytest.mark.parametrize(("head_dim", "rotation"), [(4, 4), (64, 64), (80, 16), (96, 32)])
def test_conditioned_bits_hold_the_largest_rotated_element(head_dim: int, rotation: int) -> None:
    config = small(head_dim=head_dim, lanes=2)
    assert config.rotation_size == rotation
    assert config.conditioned_max == rotation * (VECTOR_MAX + VECTOR_MAX)
    assert_signed_width(config.conditioned_bits, (-config.conditioned_max, config.conditioned_max))


WIDTHS = (
    "sum_bits",
    "run_bits",
    "product_bits",
    "scale_bits",
    "maximum_bits",
    "weight_width",
    "sum_of_weights_bits",
    "scaled_weight_bits",
    "tripled_weight_bits",
    "accumulator_bits",
    "rescale_bits",
    "reciprocal_bits",
    "output_bits",
    "token_bits",
)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("head_dim", (8, 16, 64, 256)),
        ("query_bits", range(8, 17)),
        ("score_bits", range(12, 25)),
        ("weight_bits", range(6, 17)),
        ("output_fraction_bits", range(4, 13)),
        ("scale_fraction_bits", range(9)),
        ("scale_exponent_bits", range(4, 6)),
        ("max_planes", range(1, 6)),
        ("max_context", (2, 4, 1 << 10, 1 << 13)),
    ],
)
def test_no_width_shrinks_when_a_field_grows(field: str, values) -> None:
    rows = [[getattr(small(**{field: value}), width) for width in WIDTHS] for value in values]
    for narrow, wide in itertools.pairwise(rows):
        assert all(a <= b for a, b in zip(narrow, wide, strict=True))
    assert rows[0] != rows[-1]  # the field counts for something


def test_a_changed_configuration_is_checked_like_a_new_one() -> None:
    config = load_config("tiny")
    changed = config.replace(lanes=8, max_planes=3)
    assert changed == config_from_fields({**config.model_dump(), "lanes": 8, "max_planes": 3})
    with pytest.raises(ConfigError, match=r"^max_planes: 99 is not allowed; must be"):
        config.replace(max_planes=99)
    with pytest.raises(ConfigError, match=r"^lanes: 7 does not divide head_dim 8; allowed are"):
        config.replace(lanes=7)
    with pytest.raises(ConfigError, match=r"^colour: unknown field; allowed are name, "):
        config.replace(colour="red")
    with pytest.raises(TypeError, match=r"checks nothing; use replace"):
        config.model_copy(update={"lanes": 7, "max_planes": 99})
