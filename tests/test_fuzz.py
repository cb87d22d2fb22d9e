"""Structure-aware fuzzing of every format that a command reads.

Each input is a valid file with some of its structure changed (a field, a type, a shape, a range, a
name), then perhaps some of its bytes. It must be refused in one line or be good for what it is read
for: nothing else may happen. `make fuzz` tries a thousand inputs a format (`KVTQ_FUZZ_EXAMPLES`);
`make test` a few, always the same.
"""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import input_files
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from input_files import LIBERTY, tensors_of
from safetensors.torch import save
from tiny_model import tiny_model

from golden.llm.calibration import load_calibration
from golden.llm.capture import load_captured
from golden.study.spectral import SpectralRotations, load_rotations
from kvtq_hw.commands.frame.cli import run
from kvtq_hw.commands.pareto import read_points
from kvtq_hw.contract.codes import CodeTable, read_code
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.layout import MemoryLayout
from kvtq_hw.estimates.cell_energy import CellEnergy
from kvtq_hw.estimates.gates import pins_of
from kvtq_hw.estimates.liberty import load_liberty
from kvtq_hw.estimates.timing import LongestPath
from kvtq_hw.host.results import ResultStore
from kvtq_hw.report.content import Inputs
from kvtq_hw.report.sections import SECTIONS
from kvtq_hw.report.sections.recorded_files import SCHEMAS

EXAMPLES = int(os.environ.get("KVTQ_FUZZ_EXAMPLES", "50"))

fuzzed = settings(
    max_examples=EXAMPLES,
    derandomize="KVTQ_FUZZ_EXAMPLES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Valid files, and room for spoiled ones."""
    folder = tmp_path_factory.mktemp("fuzz")
    input_files.write_all(folder)
    return folder


def accepted(read: Callable[[], object]) -> bool:
    """Whether input was accepted; a refusal must be a `UserError` of one line."""
    try:
        read()
    except UserError as error:
        message = str(error)
        assert message and message.isprintable(), repr(message)
        return False
    return True


# --- what is done to a file -----------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([1 << 31, -(1 << 63), 1 << 64, 10**100]),
    st.floats(allow_nan=True, allow_infinity=True),
)
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", "tiny", "balanced:3/2", "../x", "x.toml", "nan", "\x00", "a" * 5000]),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside plain values."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return [found for key, item in items for found in ((*path, key), *places(item, (*path, key)))]


def found_at(value: Any, path: tuple[Any, ...]) -> Any:
    """What is at a path of plain values, or as near to it as they still go."""
    for key in path:
        try:
            value = value[key] if isinstance(value, dict | list) else value
        except (KeyError, IndexError, TypeError):
            break
    return value


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """Plain values with up to three places changed."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(0, 3))):
        inside = places(value)
        if not inside:
            return draw(VALUES)
        *path, last = draw(st.sampled_from(inside))
        place = found_at(value, tuple(path))
        match draw(st.sampled_from(("set", "set", "remove", "nest", "add", "copy"))):
            case "set":
                place[last] = draw(VALUES)
            case "remove":
                del place[last]
            case "nest":
                place[last] = draw(st.sampled_from(([place[last]], {"x": place[last]})))
            case "add" if isinstance(place, dict):
                place[draw(TEXTS)] = draw(VALUES)
            case "copy":
                other = found_at(value, draw(st.sampled_from(inside)))
                place[last] = json.loads(json.dumps(other))
    return value


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes, half of the time as they are, else with some of them changed."""
    kinds = ("whole",) * 6 + ("cut", "flip", "insert", "mark", "repeat", "swap")
    match draw(st.sampled_from(kinds)):
        case "cut":
            return data[: draw(st.integers(0, len(data)))]
        case "flip" if data:
            spoiled = bytearray(data)
            for _ in range(draw(st.integers(1, 8))):
                spoiled[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
            return bytes(spoiled)
        case "insert":
            at = draw(st.integers(0, len(data)))
            chunks = st.one_of(
                st.binary(max_size=20),
                st.sampled_from([b"[" * 5000, b"9" * 5000, b"{" * 5000, b'"', b"/*", b"\\", b"\0"]),
            )
            return data[:at] + draw(chunks) + data[at:]
        case "mark":
            return b"\xef\xbb\xbf" + data
        case "repeat":
            return data * 2
        case "swap":
            middle = draw(st.integers(0, len(data)))
            return data[middle:] + data[:middle]
    return data


def toml_of(value: Any) -> str:
    """TOML text of plain values, or something like it."""
    if isinstance(value, dict):
        inside = (f"{json.dumps(key)} = {toml_of(item)}" for key, item in value.items())
        return "{ " + ", ".join(inside) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_of, value)) + "]"
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


def toml_file(value: Any) -> bytes:
    """A TOML file of a table."""
    rows = value.items() if isinstance(value, dict) else [("x", value)]
    text = "".join(f"{json.dumps(key)} = {toml_of(item)}\n" for key, item in rows)
    return text.encode("utf-8", "replace")


# --- text -----------------------------------------------------------------------------------------

CONFIG = load_config("tiny").model_dump()
TABLE = {
    "code": "balanced:1/1,window=4",
    "key_digits": [3, 2],
    "value_digits": [1, 2],
    "sliding": [8, 0],
}
QUALITY = input_files.quality()
RECORDED = input_files.recorded()


@fuzzed
@given(st.data())
def test_configurations(folder, data) -> None:
    file = folder / "fuzz.toml"
    file.write_bytes(data.draw(changed(CONFIG).map(toml_file).flatmap(damaged)))

    def read() -> None:
        config = load_config(file)
        MemoryLayout(config, (read_code("balanced:3/2"),), 1, 2)

    accepted(read)


@fuzzed
@given(st.data())
def test_code_tables(folder, data) -> None:
    file = folder / "fuzz.toml"
    file.write_bytes(data.draw(changed(TABLE).map(toml_file).flatmap(damaged)))

    def read() -> None:
        table = CodeTable.load(file)
        assert 1 <= table.most_digits <= 5
        assert str(table).startswith("fuzz.toml@")

    accepted(read)


@fuzzed
@given(st.text() | st.from_regex(r"(balanced|residual):\d/\d(,\w+=\w+){0,3}", fullmatch=True))
def test_spelled_codes(text) -> None:
    def read() -> None:
        code = read_code(text)
        assert read_code(str(code)) == code

    accepted(read)


@fuzzed
@given(st.data())
def test_results_of_eval(folder, data) -> None:
    file = folder / "fuzz.json"
    text = data.draw(changed(QUALITY).map(json.dumps))
    file.write_bytes(data.draw(damaged(text.encode())))
    accepted(lambda: read_points([file]))


@pytest.mark.parametrize("kind", SCHEMAS)
def test_recorded_results(folder, kind) -> None:
    results = folder / "fuzz" / kind
    results.mkdir(parents=True)
    section = "comparison" if kind == "compare" else kind

    @fuzzed
    @given(st.data())
    def check(data) -> None:
        text = data.draw(changed(RECORDED[kind]).map(json.dumps))
        (results / "x.json").write_bytes(data.draw(damaged(text.encode())))
        inputs = Inputs(load_config("tiny"), (), "m", results)
        accepted(lambda: SECTIONS[section](inputs))

    check()


TOKENS = LIBERTY.split(" ")
WORDS = st.sampled_from(
    [
        *TOKENS,
        "(",
        ")",
        "{",
        "}",
        ";",
        ":",
        '"',
        "*",
        "-1",
        "nan",
        "1e999",
        "cell",
        "library",
        "\\\n",
    ]
)


@st.composite
def libraries(draw: st.DrawFn) -> bytes:
    """A Liberty file with words changed, removed, added and moved, packed now and then."""
    words = list(TOKENS)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(words) - 1))
        match draw(st.sampled_from(("set", "remove", "add", "move", "repeat"))):
            case "set":
                words[at] = draw(WORDS)
            case "remove":
                del words[at]
            case "add":
                words.insert(at, draw(WORDS))
            case "move":
                words.insert(draw(st.integers(0, len(words) - 1)), words.pop(at))
            case "repeat":
                words[at:at] = words[at : at + draw(st.integers(1, 20))]
    data = draw(damaged(" ".join(words).encode()))
    return draw(damaged(gzip.compress(data))) if draw(st.integers(0, 9)) == 0 else data


@fuzzed
@given(libraries())
def test_libraries(folder, data) -> None:
    file = folder / "fuzz.lib"
    file.write_bytes(data)

    def read() -> None:
        library = load_liberty(file)
        energy = CellEnergy(library)
        assert library.nand2_area >= 0 and library.inverter in library.cells
        for name, cell in library.cells.items():
            for pin in pins_of(cell):
                energy.capacitance(name, pin)
                energy.internal(name, pin, 1.5)

    accepted(read)


# --- tensors --------------------------------------------------------------------------------------

DTYPES = (torch.int64, torch.int8, torch.uint8, torch.bool, torch.float32, torch.bfloat16)
FILLS = st.sampled_from([0, 1, -1, 2, 5, 9, 31, 32, 99, -128, 127, 10**6, -(10**6), 1 << 62])


def filled(tensor: torch.Tensor, at: int, value: float) -> torch.Tensor:
    """A tensor with one element changed, as far as its type has the value."""
    copy = tensor.clone()
    flat = copy.view(-1)
    if flat.numel():
        flat[at % flat.numel()] = torch.tensor(value).to(copy.dtype)
    return copy


@st.composite
def with_changes(draw: st.DrawFn, tensors: dict, texts: dict) -> bytes:
    """A safetensors file with up to three tensors or texts changed."""
    tensors, texts = dict(tensors), dict(texts)
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(sorted(tensors)))
        tensor = tensors[name]
        match draw(st.integers(0, 9)):
            case 0:
                tensors.pop(name)
                tensors["other"] = torch.zeros(2)
            case 1:
                tensors[name] = tensor.to(draw(st.sampled_from(DTYPES)))
            case 2:
                tensors[name] = tensor[: draw(st.integers(0, 3))]
            case 3:
                tensors[name] = tensor[..., None] if draw(st.booleans()) else tensor.flatten()
            case 4 | 5 | 6:
                tensors[name] = filled(tensor, draw(st.integers(0, 500)), draw(FILLS))
            case 7 if tensor.is_floating_point():
                bad = draw(st.sampled_from([float("nan"), float("inf"), 1e30]))
                tensors[name] = filled(tensor, draw(st.integers(0, 500)), bad)
            case 8:
                tensors[name] = tensors[draw(st.sampled_from(sorted(tensors)))].clone()
            case _:
                key = draw(st.sampled_from(sorted(texts)))
                texts[key] = draw(text_of(texts[key]))
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, texts)


def text_of(text: str) -> st.SearchStrategy[str]:
    """Other texts in the place of one, which may be JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        return TEXTS
    return st.one_of(changed(value).map(json.dumps), TEXTS)


@fuzzed
@given(st.data())
def test_calibrations(folder, data) -> None:
    file, model = folder / "fuzz.safetensors", tiny_model()
    tensors, texts = tensors_of(folder / "calibration.safetensors")
    file.write_bytes(data.draw(with_changes(tensors, texts).flatmap(damaged)))
    accepted(lambda: load_calibration(file, model).conditioning())


@fuzzed
@given(st.data())
def test_captured_attentions(folder, data) -> None:
    file = folder / "fuzz.safetensors"
    tensors, texts = tensors_of(folder / "captured.safetensors")
    file.write_bytes(data.draw(with_changes(tensors, texts).flatmap(damaged)))
    accepted(lambda: load_captured(file).golden())


# --- the user's cache -----------------------------------------------------------------------------


@fuzzed
@given(st.data())
def test_rotations(folder, data) -> None:
    """What is accepted is orthogonal."""
    file, model = folder / "fuzz.safetensors", tiny_model()
    tensors, texts = tensors_of(folder / "rotations.safetensors")
    file.write_bytes(data.draw(with_changes(tensors, texts).flatmap(damaged)))
    found: list[SpectralRotations] = []
    if accepted(lambda: found.append(load_rotations(file, model))):
        for rotation in vars(found[0]).values():
            assert (rotation.mT @ rotation - torch.eye(8)).abs().max() < 1e-3


PATH = {"delay_ps": 5.0, "start": "a", "end": "b", "tool": "abc"}


@fuzzed
@given(st.data())
def test_rows_of_the_store(folder, data) -> None:
    """A row is what was asked for, or not there."""
    file = folder / "fuzz.sqlite"
    store = ResultStore(file)
    row = data.draw(st.one_of(changed(PATH).map(json.dumps), VALUES.map(str), st.binary()))
    with closing(sqlite3.connect(file)) as database, database:
        text = row.encode("utf-8", "replace").decode() if isinstance(row, str) else row
        database.execute("REPLACE INTO results VALUES (?, ?)", ("{}", text))
    assert isinstance(store.get({}, LongestPath), LongestPath | None)
    store.put({}, PATH)
    assert store.get({}, LongestPath) == LongestPath(5.0, "a", "b", "abc")


@fuzzed
@given(st.data())
def test_files_of_the_store(folder, data) -> None:
    """Whatever the file is, the store has what it was given."""
    file = folder / "spoiled.sqlite"
    for leftover in folder.glob("spoiled.sqlite*"):
        leftover.unlink()
    ResultStore(file).put({"a": 1}, PATH)
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    store = ResultStore(file)
    assert isinstance(store.get({"a": 1}, LongestPath), LongestPath | None)
    store.put({"a": 2}, PATH)
    assert store.get({"a": 2}, LongestPath) == LongestPath(5.0, "a", "b", "abc")


# --- the command line -----------------------------------------------------------------------------

ARGUMENTS = st.one_of(
    TEXTS,
    NUMBERS.map(str),
    st.sampled_from(
        ["--preset", "--code", "--layers", "--kv-heads", "--context", "--base", "tiny"]
    ),
    st.sampled_from(["-h", "--", "-", "--base=-1", "--layers=2", "\u00b2", "--5", "0x10"]),
)


@fuzzed
@given(st.lists(ARGUMENTS, max_size=6))
def test_arguments(tmp_path_factory, arguments) -> None:
    """A command that does its work at once: status 0, 1 or 2, and a crash file never."""
    assert run(["layout", *arguments]) in (0, 1, 2)
