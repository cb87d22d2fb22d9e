"""The door to compiled loops: what does not fit is refused, and never read or written."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from golden import conditioning, hadamard
from golden.attend import packed_attention
from golden.cache import packed_quantizer
from golden.compiled import Array, Fields, compiled
from golden.packer import encode_table
from golden.unpacker import decode_table
from kvtq_hw.estimates import gate_simulation as gates


@compiled(
    "0 <= start <= capacity - tokens",
    data=Array(np.uint8, "capacity", written=True),
    x=Array((np.uint8, np.int16), "tokens", 1),
    table=Array(np.int64, "entries", optional=True, below="capacity"),
    start=int,
    factor=float,
)
def _copy(data, x, table, start, factor):
    for t in range(x.shape[0]):
        data[start + t] = x[t, 0]
    return factor


def call(**changes):
    arguments = {
        "data": np.zeros(6, np.uint8),
        "x": np.arange(4, dtype=np.int16)[:, None],
        "table": np.array([0, 5]),
        "start": 2,
        "factor": 0.5,
    } | changes
    return _copy(*arguments.values()), arguments["data"]


def test_arguments_that_fit_reach_the_loop():
    factor, data = call()
    assert factor == 0.5
    assert data.tolist() == [0, 0, 0, 1, 2, 3]
    call(table=np.zeros((0, 3), np.int64))


def read_only() -> np.ndarray:
    data = np.zeros(6, np.uint8)
    data.flags.writeable = False
    return data


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"start": 3}, ValueError, r"^copy: 0 <= start <= capacity - tokens is not true with "),
        ({"start": -1}, ValueError, r"with start = -1, capacity = 6, tokens = 4$"),
        ({"start": 1.0}, TypeError, r"^start is float; must be int$"),
        ({"factor": 1}, TypeError, r"^factor is int; must be float$"),
        ({"data": [0] * 6}, TypeError, r"^data is list; must be an array of uint8$"),
        ({"data": torch.zeros(6)}, TypeError, r"^data is Tensor; must be an array of uint8$"),
        ({"data": np.zeros(6, np.int8)}, TypeError, r"^data is int8; must be an array of uint8$"),
        ({"x": np.zeros((4, 1), np.int32)}, TypeError, r"must be an array of uint8 or int16$"),
        ({"x": np.zeros((4, 1), ">i2")}, TypeError, r"^x is >i2; must be an array of"),
        (
            {"x": np.zeros((4, 2), np.uint8)},
            ValueError,
            r"^x has shape \(4, 2\); must be \[4, 1\]$",
        ),
        ({"x": np.zeros(4, np.uint8)}, ValueError, r"^x has shape \(4,\); must be \[tokens, 1\]$"),
        ({"data": np.zeros(12, np.uint8)[::2]}, ValueError, r"^data has strides \(2,\); must be C"),
        ({"data": read_only()}, ValueError, r"^data is read-only; must be writeable$"),
        ({"table": np.array([0, 6])}, ValueError, r"^copy: \(not table\.size or 0 <= table\.min"),
        ({"table": np.array([-1, 0])}, ValueError, r"is not true with capacity = 6$"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, kind, message):
    with pytest.raises(kind, match=message) as caught:
        call(**changes)
    assert "\n" not in str(caught.value)


def test_a_declaration_names_every_argument():
    with pytest.raises(TypeError, match=r"^_loop has the arguments a, b$"):

        @compiled(a=int)
        def _loop(a, b):
            return a


def test_an_axis_has_a_name_of_its_own():
    with pytest.raises(TypeError, match=r"^a is an argument of loop and no axis$"):

        @compiled(a=int, b=Array(np.uint8, "a"))
        def _loop(a, b):
            return a


class Place(NamedTuple):
    """Where a loop writes."""

    data: np.ndarray
    start: int


_PLACE = Fields(Place, data=Array(np.uint8, "capacity", written=True), start=int)


@compiled("0 <= start < capacity", place=_PLACE, x=int)
def _put(place, x):
    place.data[place.start] = x
    return place.start


def test_fields_of_a_named_tuple_are_arguments_of_their_own():
    data = np.zeros(3, np.uint8)
    assert _put(Place(data, 2), 7) == 2
    assert data.tolist() == [0, 0, 7]


@pytest.mark.parametrize(
    ("place", "kind", "message"),
    [
        (Place(np.zeros(3, np.uint8), 3), ValueError, r"is not true with start = 3, capacity = 3$"),
        (Place(np.zeros(3, np.int8), 0), TypeError, r"^data is int8; must be an array of uint8$"),
        (Place(np.zeros(3, np.uint8), 1.0), TypeError, r"^start is float; must be int$"),
        ((np.zeros(3, np.uint8), 0), TypeError, r"^place is tuple; must be Place$"),
    ],
)
def test_fields_that_do_not_fit_are_refused(place, kind, message):
    with pytest.raises(kind, match=message):
        _put(place, 7)


def test_a_declaration_names_every_field_once():
    with pytest.raises(TypeError, match=r"^Place has the fields data, start$"):
        Fields(Place, data=int)
    with pytest.raises(TypeError, match=r"^loop has two arguments or fields 'start'$"):

        @compiled(place=_PLACE, start=int)
        def _loop(place, start):
            return start


# --- the project's loops --------------------------------------------------------------------------

TRITS, BYTES = decode_table("5in8").numpy(), encode_table("5in8").numpy()


def tables(*shape: int) -> np.ndarray:
    return np.zeros((*shape, 256, 4), np.float32)


def written(**changes) -> tuple[object, ...]:
    """Arguments of the quantizer's loop: one token of 8 elements in 2 digits of 2 bytes."""
    values = {
        "vectors": np.ones((1, 2, 1, 8), np.int64),
        "limit": 1000,
        "constant": 100,
        "shift": 11,
        "fraction_bits": 3,
        "largest_word": 255,
        "error_max": 1 << 20,
        "factors": np.zeros((2, 8, 8), np.int8),
        "shifts": np.zeros((2, 8), np.int64),
        "bytes_of_groups": BYTES,
        "group": 5,
        "data": np.zeros((1, 2, 2, 3, 2), np.uint8),
        "words": np.zeros((1, 2, 1, 3, 1), np.uint8),
        "start": 2,
    } | changes
    rounding = packed_quantizer.Rounding(*(values[x] for x in packed_quantizer.Rounding._fields))
    return values["vectors"], rounding, values["data"], values["words"], values["start"]


def run_of_planes(**changes) -> tuple[object, object, object]:
    """Arguments of the loops of attention: two planes of 7 tokens, at the end of a context of 9."""
    values = {
        "data": np.zeros((1, 2, 2, 10, 2), np.uint8),
        "words": np.zeros((1, 2, 1, 10, 1), np.uint8),
        "low": 0,
        "high": 2,
        "scale": 0,
        "first": 3,
        "tokens": 7,
        "fraction_bits": 3,
        "tables": tables(1, 2, 1, 2),
        "start": 2,
        "per_token": np.zeros((1, 2, 1, 4, 9), np.float32),
    } | changes
    kind = packed_attention.PackedRun
    run = kind(*(values[name] for name in kind._fields))
    return run, values["tables"], values["per_token"]


def add_scores(run, tables, scores) -> None:
    packed_attention._add_scores(run, tables, scores)


def scatter_weights(run, tables, weights) -> None:
    packed_attention._scatter_weights(run, weights, tables)


def test_the_smallest_that_fits_is_taken():
    packed_quantizer._write(*written())
    add_scores(*run_of_planes())
    scatter_weights(*run_of_planes())


@pytest.mark.parametrize(
    "changes",
    [
        {"start": 3},
        {"start": -1},
        {"vectors": np.ones((2, 2, 1, 8), np.int64)},  # another batch than the buffers
        {"vectors": np.ones((1, 3, 1, 8), np.int64)},
        {"vectors": np.ones((1, 2, 1, 11), np.int64)},  # 3 bytes per plane
        {"factors": np.zeros((1, 8, 8), np.int8)},
        {"factors": np.zeros((2, 8, 7), np.int8)},
        {"shifts": np.zeros((0, 0), np.int64)},
        {"bytes_of_groups": BYTES[:-1]},
        {"group": 4},
        {"words": np.zeros((1, 2, 1, 2, 1), np.uint8)},
        {"data": np.zeros((1, 2, 2, 3, 1), np.uint8)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_quantizer_writes_nowhere_else(changes):
    with pytest.raises(ValueError, match=r"must be|is not true"):
        packed_quantizer._write(*written(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"data": np.zeros((2, 2, 2, 10, 2), np.uint8)},
        {"data": np.zeros((1, 1, 2, 10, 2), np.uint8)},
        {"data": np.zeros((1, 2, 2, 10, 1), np.uint8)},
        {"words": np.zeros((1, 2, 1, 9, 1), np.uint8)},
        {"tables": tables(1, 2, 1, 3)},
        {"tables": tables(1, 2, 2, 2)},
        {"high": 3},
        {"low": -1},
        {"scale": 1},
        {"first": 4},
        {"first": -1},
        {"tokens": -1},
        {"start": 3},
        {"per_token": np.zeros((1, 2, 1, 4, 8), np.float32)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_attention_reads_nowhere_else(changes):
    for loop in (add_scores, scatter_weights):
        with pytest.raises(ValueError, match=r"must be|is not true"):
            loop(*run_of_planes(**changes))


@pytest.mark.parametrize(
    ("loop", "arguments"),
    [
        (packed_quantizer._read, (0, 1, 2, 8)),  # a byte missing
        (packed_quantizer._read, (1, 2, 2, 8)),  # a token missing
        (packed_quantizer._read, (-1, 1, 2, 8)),
    ],
)
def test_the_reader_reads_nowhere_else(loop, arguments):
    start, tokens, plane_bytes, dim = arguments
    data = np.zeros((1, 1, 2, 2, plane_bytes - (start == 0)), np.uint8)
    words = np.zeros((1, 1, 1, 2, 1), np.uint8)
    with pytest.raises(ValueError, match="is not true"):
        loop(data, words, start, 3, TRITS, np.zeros((1, 1, tokens, dim), np.int64))


def test_tables_and_transforms_stay_within_their_arrays():
    queries, outputs = np.ones((1, 2, 3, 1, 8)), np.ones((1, 2, 5, 1, 8))
    packed_attention._fill_tables(queries, 1.0, 5, BYTES, tables(1, 2, 1, 2))
    for digits, groups, shape in ((5, BYTES, (1, 2, 1, 1)), (4, BYTES, (1, 2, 1, 2))):
        with pytest.raises(ValueError, match="is not true"):
            packed_attention._fill_tables(queries, 1.0, digits, groups, tables(*shape))
    with pytest.raises(ValueError, match="quads \\* 4 >= members is not true"):
        packed_attention._empty_tables(tables(1, 2, 1, 2), 5, BYTES, outputs)
    for digits, groups, shape in ((5, BYTES, (1, 2, 2, 1)), (4, BYTES, (1, 2, 2, 2))):
        with pytest.raises(ValueError, match="is not true"):
            packed_attention._empty_tables(tables(*shape), digits, groups, outputs)
    with pytest.raises(ValueError, match=r"^before has shape \(4,\); must be \[8\]$"):
        hadamard._transform(np.ones((3, 8)), np.ones(4), np.ones(8))
    with pytest.raises(ValueError, match=r"^integers has shape \(3,\); must be \[4\]$"):
        conditioning._round(np.ones(4), 1.0, np.zeros(3, np.int64))


# --- netlists -------------------------------------------------------------------------------------

XOR = (False, True, True, False)
MEMORY = {
    "RD_ADDR": [2],
    "RD_EN": [gates.ONE],
    "RD_DATA": [4, 5],
    "WR_ADDR": [3],
    "WR_DATA": [2, 3],
    "WR_EN": [gates.ONE, gates.ONE],
}


def simulate(net=6, inputs=(4, 5), table=XOR, memory=MEMORY, port=(2, 3), stimulus=1, clocks=()):
    node = gates.Node(net, inputs, table)
    netlist = gates.Gates(7, {"x": port, "y": [6]}, [node], [], [memory], clocks)
    values = np.full((5, 2), stimulus, np.uint8)
    return gates.simulate(netlist, {"x": values}, {"y": np.zeros((5, 1), np.uint8)})


def test_a_netlist_with_a_memory():
    """Both bits are written in every cycle and read in the next: their difference stays zero."""
    assert simulate().tolist() == [0, 0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    "changes",
    [
        {"net": 7},
        {"net": -1},
        {"inputs": (4, 7)},
        {"inputs": (-1, 4)},
        {"table": XOR[:3]},
        {"inputs": (2, 3, 4)},  # a table of eight
        {"port": (2, 7)},
        {"stimulus": 2},  # no bit: it would be a row beyond the table
        {"clocks": [(7, 2)]},
        {"clocks": [(6, -1)]},
        {"memory": MEMORY | {"RD_ADDR": [7]}},
        {"memory": MEMORY | {"RD_DATA": [4]}},
        {"memory": MEMORY | {"WR_EN": [1]}},
        {"memory": MEMORY | {"RD_EN": []}},
    ],
    ids=str,
)
def test_a_netlist_that_points_elsewhere_is_refused(changes):
    with pytest.raises(ValueError, match=r"is not true|must be equally wide"):
        simulate(**changes)
