"""Broken and hostile input, through the command line: one line, the right status, nothing left.

Each format has a valid file and a command that reads it; a case spoils the file in one way. What is
given must be refused before anything is measured: the measurements themselves raise here.
"""

from __future__ import annotations

import gzip
import json
import math
import socket
from collections.abc import Callable
from pathlib import Path

import input_files
import pytest
import torch
from input_files import CONFIG, LIBERTY, TABLE, with_item, with_tensors
from tiny_model import tiny_model

from kvtq_hw.commands.frame.cli import run
from kvtq_hw.report.sections.recorded import read_results

pytest.importorskip("matplotlib")

Spoil = Callable[[bytes, Path], bytes]

DIGITS = "9" * 5000
DEEP = 50_000


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> Path:
    """A folder with a valid file of every format."""
    folder = tmp_path_factory.mktemp("valid")
    input_files.write_all(folder)
    return folder


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def place(tmp_path, valid, model, monkeypatch) -> Path:
    """A copy of the valid files to work in; what would take long is not allowed to begin."""

    def begin(*_: object, **__: object) -> None:
        raise AssertionError("the measurement began")

    for name in (
        "kvtq_hw.estimates.area.measure_area",
        "kvtq_hw.estimates.timing.measure_timing",
        "kvtq_hw.estimates.sweep.sweep_areas",
        "kvtq_hw.estimates.fpga.fpga_resources",
        "golden.llm.decoding.decode",
        "golden.study.quality.evaluate_reference",
        "golden.llm.calibration.calibrate",
        "sim.bench.runner.run_bench",
        "rtl.blocks.emit_block",
    ):
        monkeypatch.setattr(name, begin)
    monkeypatch.setattr("golden.llm.models.load_model", lambda name, **_: model)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for file in valid.rglob("*"):
        if file.is_file():
            copy = tmp_path / file.relative_to(valid)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
    return tmp_path


def files_of(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder but the user's cache; None stands for what is no file."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.relative_to(folder).parts[0] != "cache"
    }


def refused(arguments: list[str], folder: Path, capfd) -> str:
    """Run a command that must be refused; its one line."""
    before = files_of(folder)
    status = run(arguments)
    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("kvtq-hw: error: ") and len(lines[0]) < 1100
    assert status in (1, 2), captured.err
    assert "Traceback" not in captured.out and captured.out == ""
    assert files_of(folder) == before
    return lines[0].removeprefix("kvtq-hw: error: ")


# --- text that is none, in every format of text ---------------------------------------------------

TEXT_FILES = {
    "config.toml": ["layout", "--preset", "config.toml"],
    "table.toml": ["layout", "--preset", "tiny", "--code", "table.toml", "--layers", "2"],
    "quality.json": ["pareto", "quality.json", "-o", "p.svg"],
    "results/sweep.json": ["report", "--preset", "tiny", "--results", "results", "-o", "r"],
    "cells.lib": ["area", "--preset", "tiny", "--liberty", "cells.lib"],
}

NO_TEXT: dict[str, Spoil] = {
    "empty": lambda data, _: b"",
    "not UTF-8": lambda data, _: data + b"\xff",
    "UTF-16": lambda data, _: data.decode().encode("utf-16"),
    "null bytes": lambda data, _: bytes(1000),
    "cut in the middle": lambda data, _: data[: len(data) // 2],
    "a byte too few": lambda data, _: data.rstrip()[:-1],
    "random bytes": lambda data, _: bytes((i * i * 31 + 7) % 256 for i in range(5000)),
    "twice": lambda data, _: data + data,
    "brackets": lambda data, _: b"[" * DEEP,
    "braces": lambda data, _: b"{" * DEEP,
    "deep arrays": lambda data, _: b"x = " + b"[" * DEEP + b"]" * DEEP,
    "a lone number": lambda data, _: DIGITS.encode(),
    "a line of quotes": lambda data, _: b'"' * 10_001,
}


@pytest.mark.parametrize("spoil", NO_TEXT)
@pytest.mark.parametrize("file", TEXT_FILES)
def test_text_that_is_none(place, capfd, file: str, spoil: str) -> None:
    path = place / file
    path.write_bytes(NO_TEXT[spoil](path.read_bytes(), place))
    refused(TEXT_FILES[file], place, capfd)


# --- fields of text formats -----------------------------------------------------------------------


def toml(text: str, **changes: str) -> str:
    """TOML text with the values of some fields replaced."""
    lines = dict(line.split(" = ") for line in text.splitlines())
    return "".join(f"{name} = {value}\n" for name, value in (lines | changes).items())


CONFIGS = {
    "an integer of 5000 digits": toml(CONFIG, lanes=DIGITS),
    "a hexadecimal integer of 5000 digits": toml(CONFIG, lanes="0x" + "f" * 5000),
    "a float of 5000 digits": toml(CONFIG, lanes=DIGITS + ".0"),
    "not a number": toml(CONFIG, lanes="nan"),
    "infinity": toml(CONFIG, lanes="inf"),
    "true": toml(CONFIG, lanes="true"),
    "text": toml(CONFIG, lanes='"4"'),
    "a date": toml(CONFIG, lanes="2026-01-01"),
    "a table": toml(CONFIG, lanes="{ a = 1 }"),
    "negative": toml(CONFIG, lanes="-4"),
    "zero": toml(CONFIG, head_dim="0"),
    "huge": toml(CONFIG, max_context=str(1 << 70)),
    "no power of two": toml(CONFIG, block="5"),
    "a long name": toml(CONFIG, name='"' + "a" * 100_000 + '"'),
    "a name with a newline": toml(CONFIG, name='"a\\nb"'),
    "a name of a path": toml(CONFIG, name='"../../etc/passwd"'),
    "an unknown field": toml(CONFIG, **{"a" * 5000: "1"}),
    "a field twice": CONFIG + "lanes = 2\n",
    "a field too few": CONFIG.replace("lanes = 4\n", ""),
    "an array of tables": CONFIG + "[[lanes2]]\n" * 1000,
    "an unknown packing": toml(CONFIG, packing='"zip"'),
    "no integer": toml(CONFIG, lanes="4.0"),
    "inline tables in each other": "x = " + "{a=" * 2000 + "1" + "}" * 2000,
    "dotted keys": ".".join("a" * 20_000) + " = 1\n",
    "dotted keys on many lines": "".join(f"a{'.b' * 200}{i} = 1\n" for i in range(400)),
    "larger than a configuration is": CONFIG + "#" * (1 << 18),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations(place, capfd, case: str) -> None:
    (place / "config.toml").write_text(CONFIGS[case])
    refused(["layout", "--preset", "config.toml"], place, capfd)


TABLES = {
    "digits of 5000 digits": toml(TABLE, key_digits=f"[3, {DIGITS}]"),
    "digits of hexadecimal": toml(TABLE, key_digits="[3, 0x" + "f" * 5000 + "]"),
    "no digits": toml(TABLE, key_digits="[]", value_digits="[]"),
    "zero digits": toml(TABLE, key_digits="[0, 2]"),
    "six digits": toml(TABLE, value_digits="[1, 6]"),
    "digits as text": toml(TABLE, key_digits='["3", "2"]'),
    "digits as floats": toml(TABLE, key_digits="[3.0, 2.0]"),
    "digits as truth": toml(TABLE, key_digits="[true, true]"),
    "digits in arrays": toml(TABLE, key_digits="[[3], [2]]"),
    "digits as a table": toml(TABLE, key_digits="{ a = 3 }"),
    "digits of more layers": toml(TABLE, key_digits="[3, 2, 1]"),
    "digits of 10,000 layers": toml(
        TABLE, key_digits=str([1] * 10_000), value_digits=str([1] * 10_000)
    ),
    "another number of layers": toml(TABLE, key_digits="[3]", value_digits="[1]", sliding="[8]"),
    "sliding windows of 5000 digits": toml(TABLE, sliding=f"[8, {DIGITS}]"),
    "no sliding windows": toml(TABLE, sliding="[]"),
    "a negative sliding window": toml(TABLE, sliding="[-1, 0]"),
    "a sliding window of two million tokens": toml(TABLE, sliding="[2000000, 0]"),
    "sliding windows as text": toml(TABLE, sliding='["8", "0"]'),
    "sliding windows as floats": toml(TABLE, sliding="[8.0, 0.0]"),
    "sliding windows as truth": toml(TABLE, sliding="[true, false]"),
    "sliding windows of one layer": toml(TABLE, sliding="[8]"),
    "sliding windows of more layers": toml(TABLE, sliding="[8, 0, 8]"),
    "sliding windows as a number": toml(TABLE, sliding="8"),
    "sliding windows twice": toml(TABLE, code='"balanced:1/1,sliding=8"'),
    "no code": toml(TABLE, code='""'),
    "a code that is a number": toml(TABLE, code="1"),
    "an unknown code": toml(TABLE, code='"ternary:1/1"'),
    "a code that is a table": toml(TABLE, code='"table.toml"'),
    "a code with another window": toml(TABLE, code='"balanced:1/1,window=999999999"'),
    "a code with two lines": toml(TABLE, code='"balanced:1/1\\n"'),
    "a code with digits of other scripts": toml(TABLE, code='"balanced:\u0661/1"'),
    "an unknown field": TABLE + "depth = 3\n",
}


@pytest.mark.parametrize("case", TABLES)
def test_code_tables(place, capfd, case: str) -> None:
    (place / "table.toml").write_text(TABLES[case])
    refused(TEXT_FILES["table.toml"], place, capfd)


QUALITY = input_files.quality()
QUALITIES = {
    "an array": [],
    "text": "rows",
    "null": None,
    "no rows": with_item(QUALITY, "rows", []),
    "rows that are none": with_item(QUALITY, "rows", {}),
    "rows of null": with_item(QUALITY, "rows", [None]),
    "rows in rows": with_item(QUALITY, "rows", [[QUALITY["rows"][0]]]),
    "a ratio of text": with_item(QUALITY, "rows/0/perplexity_ratio", "x"),
    "a ratio of null": with_item(QUALITY, "rows/0/perplexity_ratio", None),
    "a ratio in an array": with_item(QUALITY, "rows/0/perplexity_ratio", [1.0]),
    "a ratio of zero": with_item(QUALITY, "rows/1/perplexity_ratio", 0),
    "a ratio that is none": with_item(QUALITY, "rows/1/perplexity_ratio", math.nan),
    "a ratio without end": with_item(QUALITY, "rows/1/perplexity_ratio", math.inf),
    "negative bits": with_item(QUALITY, "rows/0/bits_per_element", -1.5),
    "truth for bits": with_item(QUALITY, "rows/0/bits_per_element", True),
    "a needle of two": with_item(QUALITY, "rows/0/needle", 2.0),
    "a code of null": with_item(QUALITY, "rows/0/code", None),
    "a code of 100,000 letters": with_item(QUALITY, "rows/0/code", "a" * 100_000),
    "no code": with_item(QUALITY, "rows/0/code", ...),
    "a context of text": with_item(QUALITY, "context", "1024"),
    "segments of zero": with_item(QUALITY, "segments", 0),
    "no model": with_item(QUALITY, "model", ...),
}

_TINY = ["--preset", "tiny", "--context", "32"]
QUALITY_COMMANDS = {
    "pareto": ["pareto", "quality.json", "-o", "p.svg"],
    "compare": ["compare", *_TINY, "--quality", "quality.json"],
    "sweep": ["sweep", *_TINY, "--quality", "quality.json", "-o", "t.csv"],
}


@pytest.mark.parametrize("case", QUALITIES)
@pytest.mark.parametrize("command", QUALITY_COMMANDS)
def test_results_of_eval(place, capfd, command: str, case: str) -> None:
    (place / "quality.json").write_text(json.dumps(QUALITIES[case]))
    line = refused(QUALITY_COMMANDS[command], place, capfd)
    assert line.startswith("result of kvtq-hw eval 'quality.json': ")


JSON_TEXTS = {
    "an integer of 5000 digits": json.dumps(QUALITY).replace("1024", DIGITS),
    "a number that is too large": json.dumps(QUALITY).replace("1.01", "1e999"),
    "a key twice": json.dumps(QUALITY).replace('"model"', '"segments": 1, "model"', 1),
    "half a surrogate": json.dumps(QUALITY).replace('"m"', '"\\ud800"'),
    "deep objects": '{"rows":' * DEEP + "1" + "}" * DEEP,
    "something behind": json.dumps(QUALITY) + "{}",
    "a trailing comma": json.dumps(QUALITY)[:-1] + ",}",
    "a comment": "// quality\n" + json.dumps(QUALITY),
    "single quotes": json.dumps(QUALITY).replace('"', "'"),
}


@pytest.mark.parametrize("case", JSON_TEXTS)
def test_json_that_is_none(place, capfd, case: str) -> None:
    (place / "quality.json").write_text(JSON_TEXTS[case])
    refused(QUALITY_COMMANDS["compare"], place, capfd)


RECORDED = {
    "compare": {
        "tokens": "32",
        "ways": [],
        "ways/equal lanes: 4": [],
        "ways/equal lanes: 4/0/name": "INT4",
        "ways/equal lanes: 4/0/um2": 0,
        "ways/equal lanes: 4/0/quality": {"perplexity_ratio": "x"},
    },
    "fpga": {
        "block": ...,
        "families": None,
        "families/ecp5/lut": -1,
        "place_and_route/ecp5/fmax_mhz": "x",
    },
    "power": {
        "variants/captured/blocks": {},
        "variants/captured/total/total_pj": None,
        "variants/captured/library": "l",
        "variants/captured/slices": {"key": 0, "value": 2},
        "variants/captured/config": "c",
        "step": -1,
        "attentions_per_token": "x",
    },
    "sweep": {"rows": [], "rows/0/um2": "x", "rows/0/code": 3, "rows/0/lanes": [4], "tokens": 0},
    "timing": {"paths/total/delay_ps": "fast", "paths": [1], "library": {}, "config": "tiny"},
}


def test_recorded_results_are_good_before_they_are_spoiled(place) -> None:
    """Else each would be refused for something else."""
    names = {name for name, _ in read_results(place / "results")}
    assert names >= {f"{kind}.json" for kind in RECORDED}


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind, fields in RECORDED.items() for field in fields]
)
def test_recorded_results(place, capfd, kind: str, field: str) -> None:
    file = place / "results" / f"{kind}.json"
    file.write_text(
        json.dumps(with_item(json.loads(file.read_text()), field, RECORDED[kind][field]))
    )
    line = refused(TEXT_FILES["results/sweep.json"], place, capfd)
    assert line.startswith(f"result 'results/{kind}.json': ")


LIBRARIES = {
    "groups in each other": "library (a) {" + "b () {" * 100_000,
    "whole groups in each other": "library (a) {" + "b () {" * DEEP + "}" * DEEP + "}",
    "a cell named *": LIBERTY.replace("(NOT)", "(*)"),
    "a cell named with a space": LIBERTY.replace("(NOT)", '("NOT 1")'),
    "a cell named as an option": LIBERTY.replace("(NOT)", "(-liberty)"),
    "a cell without a name": LIBERTY.replace("(NOT)", "()"),
    "a cell named with a semicolon": LIBERTY.replace("(NOT)", '("a; shell id")'),
    "a cell twice": LIBERTY.replace('("NA2")', "(NOT)"),
    "a pin twice": LIBERTY.replace("pin (B)", "pin (A)"),
    "an area of text": LIBERTY.replace("2.5", "large"),
    "an area that is no number": LIBERTY.replace("2.5", "nan"),
    "an area without end": LIBERTY.replace("2.5", "1e999"),
    "a negative area": LIBERTY.replace("2.5", "-1"),
    "a capacitance of text": LIBERTY.replace("0.01", "small"),
    "no voltage": LIBERTY.replace("1.8", "0"),
    "no unit": LIBERTY.replace("(1, pf)", "(pf)"),
    "a function of 100,000 operators": LIBERTY.replace("A'", "!" * 100_000 + "A"),
    "a function of 100,000 brackets": LIBERTY.replace("A'", "(" * 100_000 + "A"),
    "a function of 50 inputs": LIBERTY.replace("A'", "&".join(f"A{i}" for i in range(50))),
    "a flip-flop with one name": LIBERTY.replace("(IQ, IQN)", "(IQ)"),
    "a table of text": LIBERTY.replace('"1, 2", "3, 4"', '"a, b", "c, d"'),
    "a table of another size": LIBERTY.replace('"1, 2", "3, 4"', '"1, 2, 3"'),
    "an axis that falls": LIBERTY.replace('"0.1, 0.2"', '"0.2, 0.1"'),
    "an axis that stands": LIBERTY.replace('"0.1, 0.2"', '"0.1, 0.1"'),
    "two libraries": LIBERTY + LIBERTY,
    "no inverter": LIBERTY.replace("A'", "A"),
    "comments without an end": LIBERTY + "/*" * 500_000,
    "quotes without an end": LIBERTY + '"' + "\\\n" * 100_000,
    "escaped quotes without an end": LIBERTY + '"' + '\\"' * 100_000 + "\\",
    "no colon": LIBERTY.replace("area : 2.5", "area = 2.5"),
}


@pytest.mark.parametrize("case", LIBRARIES)
def test_libraries(place, capfd, monkeypatch, case: str) -> None:
    if case == "no inverter":  # it is seen when the library is used
        monkeypatch.undo()
        monkeypatch.chdir(place)
        monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    (place / "cells.lib").write_text(LIBRARIES[case])
    refused(
        ["area", "--preset", "tiny", "--block", "packer", "--liberty", "cells.lib"], place, capfd
    )


PACKED: dict[str, Spoil] = {
    "cut": lambda data, _: gzip.compress(data)[:-20],
    "a wrong sum": lambda data, _: gzip.compress(data)[:-8] + bytes(8),
    "nothing in it": lambda data, _: gzip.compress(b""),
    "packed twice": lambda data, _: gzip.compress(gzip.compress(data)),
    "rubbish behind": lambda data, _: gzip.compress(data) + b"\x1f\x8b\x08" + bytes(100),
    "larger than any": lambda data, _: gzip.compress(bytes(1 << 24)),
}


@pytest.mark.parametrize("case", PACKED)
def test_packed_libraries(place, capfd, monkeypatch, case: str) -> None:
    monkeypatch.setattr("kvtq_hw.estimates.liberty.LARGEST_FILE", 1 << 20)
    (place / "cells.lib").write_bytes(PACKED[case](LIBERTY.encode(), place))
    refused(TEXT_FILES["cells.lib"], place, capfd)


# --- tensors --------------------------------------------------------------------------------------


def set_first(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Change the first element."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        copy.view(-1)[0] = value
        return copy

    return change


def edit(tensors=None, texts=None) -> Spoil:
    """A safetensors file with tensors and texts of its header changed."""
    return lambda data, file: with_tensors(file, tensors, texts)


NO_TENSORS: dict[str, Spoil] = {
    "empty": lambda data, _: b"",
    "eight bytes": lambda data, _: bytes(8),
    "cut": lambda data, _: data[:-7],
    "longer": lambda data, _: data + bytes(7),
    "a long header": lambda data, _: (1 << 62).to_bytes(8, "little") + data[8:],
    "a header that is no JSON": lambda data, _: data[:8] + b"x" + data[9:],
    "a deep header": lambda data, _: (DEEP).to_bytes(8, "little") + b"[" * DEEP,
    "a pickle": lambda data, _: b"\x80\x04\x95" + data[3:],
    "text": lambda data, _: b"tensors",
    "no texts": edit(None, {"format": None, "config": None, "place": None, "tokens": None,
                            "model_name": None, "model_fingerprint": None,
                            "text_digest": None}),
    "another tensor": edit({"more": lambda _: torch.zeros(3)}),
}  # fmt: skip

CALIBRATIONS: dict[str, Spoil] = {
    **NO_TENSORS,
    "no fingerprint": edit(None, {"model_fingerprint": None}),
    "a fingerprint of another": edit(None, {"model_fingerprint": "0" * 64}),
    "a fingerprint that is none": edit(None, {"model_fingerprint": "x"}),
    "no tokens": edit(None, {"tokens": None}),
    "tokens {": edit(None, {"tokens": "{"}),
    "tokens of 5000 digits": edit(None, {"tokens": DIGITS}),
    "tokens of null": edit(None, {"tokens": "null"}),
    "no text digest": edit(None, {"text_digest": None}),
    "another format": edit(None, {"format": "kvtq-hw calibration 7"}),
    "no centres": edit({"key_centres": None}),
    "centres that are none": edit({"key_centres": set_first(math.nan)}),
    "centres without end": edit({"key_centres": set_first(math.inf)}),
    "centres that do not fit": edit({"key_centres": set_first(1e9)}),
    "centres of doubles": edit({"key_centres": lambda t: t.double()}),
    "centres of another D": edit({"key_centres": lambda t: t[..., :4]}),
    "centres of three layers": edit({"key_centres": lambda t: torch.cat([t, t[:1]])}),
    "centres of one head": edit({"key_centres": lambda t: t[:, :1]}),
    "no elements": edit({"key_centres": lambda t: t[:0]}),
    "scales that are none": edit({"key_scales": set_first(math.nan)}),
    "a scale of zero": edit({"key_scales": set_first(0)}),
    "a negative scale": edit({"key_scales": set_first(-1)}),
    "scales of floats": edit({"key_scales": lambda t: t.float()}),
    "a basis without inverse": edit({"value_bases": torch.zeros_like}),
    "bases of another D": edit({"value_bases": lambda t: t[..., :4]}),
    "exponents + 10**6": edit({"key_exponents": lambda t: t + 10**6}),
    "exponents - 10**6": edit({"value_exponents": lambda t: t - 10**6}),
    "exponents of floats": edit({"key_exponents": lambda t: t.float()}),
    "exponents of one layer": edit({"value_exponents": lambda t: t[:1]}),
    "factors of 100": edit({"key_feedback": lambda t: torch.where(t != 0, 100, 0).char()}),
    "factors of floats": edit({"key_feedback": lambda t: t.float()}),
    "factors below the diagonal": edit({"value_feedback": lambda t: t.mT}),
    "shifts of 99": edit({"key_shifts": set_first(99)}),
    "shifts of -1": edit({"value_shifts": set_first(-1)}),
}


@pytest.mark.parametrize("case", CALIBRATIONS)
def test_calibrations(place, capfd, case: str) -> None:
    file = place / "calibration.safetensors"
    file.write_bytes(CALIBRATIONS[case](file.read_bytes(), file))
    arguments = ["decode", "--preset", "tiny", "--prompt", "w1 w2", "--max-new-tokens", "1"]
    line = refused([*arguments, "--calibration", file.name], place, capfd)
    assert line.startswith("calibration file 'calibration.safetensors': ")


def place_text(**changes: object) -> str:
    values = {"layer": 0, "head": 1, "step": 0, "value_exponent": 9} | changes
    return json.dumps({name: value for name, value in values.items() if value is not ...})


CAPTURED: dict[str, Spoil] = {
    **NO_TENSORS,
    "digits of another D": edit({"keys.digits": lambda t: t[..., :4]}),
    "digits of 2": edit({"keys.digits": set_first(2)}),
    "digits of -128": edit({"values.digits": set_first(-128)}),
    "digits of floats": edit({"keys.digits": lambda t: t.float()}),
    "digits of one dimension": edit({"keys.digits": lambda t: t.flatten()}),
    "tokens too few": edit({"keys.digits": lambda t: t[:-1]}),
    "no tokens": edit({name: lambda t: t[:0] for name in (
        *(f"{of}.{field}" for of in ("keys", "values")
          for field in ("digits", "unit", "fraction", "exponent")),
        "key_depths", "value_depths")}),
    "exponents of floats": edit({"keys.exponent": lambda t: t.double()}),
    "exponents of 32": edit({"keys.exponent": set_first(32)}),
    "exponents of -1": edit({"values.exponent": set_first(-1)}),
    "fractions of 8": edit({"values.fraction": set_first(8)}),
    "units of integers": edit({"keys.unit": lambda t: t.long()}),
    "units that open nothing": edit({"keys.unit": lambda t: torch.zeros_like(t)}),
    "key depths of 9": edit({"key_depths": set_first(9)}),
    "key depths of 0": edit({"key_depths": set_first(0)}),
    "depths below the planes": edit({"key_depths": lambda t: torch.ones_like(t)}),
    "six planes": edit({f"keys.{field}": lambda t: torch.cat([t, t[:, :1]], 1)
                        for field in ("digits", "unit", "fraction", "exponent")}),
    "queries beyond their width": edit({"queries.values": set_first(128)}),
    "queries of another G": edit({"queries.values": lambda t: t[:1]}),
    "query exponents of 10**6": edit({"queries.exponent": set_first(10**6)}),
    "other outputs": edit({"expected": lambda t: t + 1}),
    "outputs of floats": edit({"expected": lambda t: t.float()}),
    "no outputs": edit({"expected": None}),
    "a place in a place": edit(None, {"place": '{"layer": ' * 5000}),
    "a place without a layer": edit(None, {"place": place_text(layer=...)}),
    "a place with more": edit(None, {"place": place_text(more=1)}),
    "a layer of text": edit(None, {"place": place_text(layer="0")}),
    "a step of 5000 digits": edit(None, {"place": place_text(step=1).replace("1", DIGITS)}),
    "a value exponent x": edit(None, {"place": place_text(value_exponent="x")}),
    "a value exponent of 0": edit(None, {"place": place_text(value_exponent=0)}),
    "a value exponent of 10**6": edit(None, {"place": place_text(value_exponent=10**6)}),
    "a place of null": edit(None, {"place": "null"}),
    "a configuration of null": edit(None, {"config": "null"}),
    "a configuration that is none": edit(None, {"config": '{"name": "x"}'}),
    "a configuration with NaN": edit(None, {"config": '{"lanes": NaN}'}),
    "no configuration": edit(None, {"config": None}),
}  # fmt: skip


@pytest.mark.parametrize("case", CAPTURED)
def test_captured_attentions(place, capfd, case: str) -> None:
    file = place / "captured.safetensors"
    file.write_bytes(CAPTURED[case](file.read_bytes(), file))
    refused(["replay", file.name, "--simulator", "icarus", "--build-folder", "b"], place, capfd)


# --- the command line -----------------------------------------------------------------------------

SWEEP = ["sweep", "--preset", "tiny", "--context", "32", "-o", "t.csv"]
ALLOCATE = ["allocate", "--preset", "tiny", "-o", "t.toml"]
LAYOUT = ["layout", "--preset", "tiny"]
DECODE = ["decode", "--preset", "tiny"]

ARGUMENTS = {
    "lanes of --5": [*SWEEP, "--set", "lanes=--5"],
    "lanes of a raised two": [*SWEEP, "--set", "lanes=\u00b2"],
    "lanes of Arabic digits": [*SWEEP, "--set", "lanes=\u0664"],
    "lanes of 5000 digits": [*SWEEP, "--set", f"lanes={DIGITS}"],
    "lanes of a space": [*SWEEP, "--set", "lanes= 4"],
    "lanes of an underscore": [*SWEEP, "--set", "lanes=4_0"],
    "lanes of nan": [*SWEEP, "--set", "lanes=nan"],
    "lanes without a value": [*SWEEP, "--set", "lanes"],
    "lanes twice": [*SWEEP, "--set", "lanes=4", "--set", "lanes=8"],
    "a grid without end": [*SWEEP, *(word for field in ("lanes", "block", "weight_bits")
                                     for word in ("--set", f"{field}=" + ",".join(["4"] * 99)))],
    "a field that is none": [*SWEEP, "--set", f"{'a' * 5000}=1"],
    "a scheduler that is none": [*SWEEP, "--scheduler", "foo"],
    "a scheduler of another kind": [*SWEEP, "--scheduler", "gopher://x:1"],
    "a scheduler without a port": [*SWEEP, "--scheduler", "tcp://127.0.0.1"],
    "a scheduler with a huge port": [*SWEEP, "--scheduler", "tcp://127.0.0.1:99999"],
    "a scheduler that is not there": [*SWEEP, "--scheduler", "tcp://127.0.0.1:1"],
    "bits of nan": [*ALLOCATE, "--bits", "nan"],
    "bits of inf": [*ALLOCATE, "--bits", "inf"],
    "bits of -inf": [*ALLOCATE, "--bits=-inf"],
    "bits of -1": [*ALLOCATE, "--bits=-1"],
    "bits of 1e999": [*ALLOCATE, "--bits", "1e999"],
    "bits of 5000 digits": [*ALLOCATE, "--bits", DIGITS],
    "cycles of -1": [*ALLOCATE, "--cycles=-1"],
    "cycles of 5000 digits": [*ALLOCATE, "--cycles", DIGITS],
    "a billion layers": [*LAYOUT, "--layers", "1000000000"],
    "a billion heads": [*LAYOUT, "--kv-heads", "1000000000"],
    "layers of -1": [*LAYOUT, "--layers=-1"],
    "layers of 5000 digits": [*LAYOUT, "--layers", DIGITS],
    "a context of 5000 digits": [*LAYOUT, "--context", DIGITS],
    "a base of 5000 digits": [*LAYOUT, "--base", DIGITS],
    "a base of 0x": [*LAYOUT, "--base", "0x"],
    "a base without end": [*LAYOUT, "--base", "0x" + "f" * 5000],
    "a negative base": [*LAYOUT, "--base=-4"],
    "a code of 5000 digits": [*LAYOUT, "--code", f"balanced:{DIGITS}/1"],
    "a window of 5000 digits": [*LAYOUT, "--code", f"balanced:1/1,window={DIGITS}"],
    "a code of 100,000 options": [*LAYOUT, "--code", "balanced:1/1" + ",window=1" * 100_000],
    "a code with a newline": [*LAYOUT, "--code", "balanced:1/1\n"],
    "a preset of 100,000 letters": ["layout", "--preset", "a" * 100_000],
    "a preset of a newline": ["layout", "--preset", "tiny\n"],
    "a file of 1000 letters": ["layout", "--preset", "a" * 1000 + ".toml"],
    "a prompt that is not UTF-8": [*DECODE, "--prompt", "caf\udce9"],
    "a billion tokens": [*DECODE, "--max-new-tokens", "1000000000"],
    "minus one token": [*DECODE, "--max-new-tokens=-1"],
    "tokens of 5000 digits": [*DECODE, "--max-new-tokens", DIGITS],
    "a billion calibration tokens": ["calibrate", "--tokens", "1000000000", "-o", "c"],
    "a billion segments": ["eval", "--segments", "1000000000"],
    "a context of one": ["eval", "--context", "1"],
    "a group of 5000 digits": ["eval", "--code", f"int4,group={DIGITS}"],
    "a group of Arabic digits": ["eval", "--code", "int4,group=\u0664"],
    "a window of KIVI's of 5000 digits": ["eval", "--code", f"kivi:2,window={DIGITS}"],
    "a window of OSCAR's of 5000 digits": ["eval", "--code", f"oscar,window={DIGITS}"],
    "a percentile of 5000 digits": ["eval", "--code", f"oscar,clip={DIGITS}/9"],
    "bits of 5000 digits for integers": ["eval", "--code", f"int{DIGITS}"],
    "a published code of 5000 digits": ["eval", "--code", f"kvtq:{DIGITS}/1"],
    "a step of a billion": ["capture", "--preset", "tiny", "--step", "1000000000"],
    "a seed of 5000 digits": ["simulate", "--preset", "tiny", "--seed", DIGITS],
    "a block that is none": ["simulate", "--preset", "tiny", "a" * 5000],
    "an fpga that is none": ["fpga", "--preset", "tiny", "--block", "\x00"],
    "a clock of nothing": ["timing", "--preset", "tiny", "--liberty", "cells.lib",
                           "--clock-mhz", "0"],
    "a memory of 5000 digits": ["compare", "--preset", "tiny", "--memory-bits", DIGITS],
    "an option that is none": ["layout", "--" + "a" * 5000],
    "a command that is none": ["a" * 5000],
    "a command of a path": ["../../layout"],
}  # fmt: skip


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments(place, capfd, case: str) -> None:
    refused(ARGUMENTS[case], place, capfd)


# --- files that are none --------------------------------------------------------------------------

READ = {
    "configuration": ["layout", "--preset", "X.toml"],
    "code table": ["layout", "--preset", "tiny", "--code", "X.toml"],
    "calibration": ["decode", "--preset", "tiny", "--calibration", "X.toml"],
    "captured": ["replay", "X.toml"],
    "power": ["power", "X.toml"],
    "quality": ["compare", "--preset", "tiny", "--context", "32", "--quality", "X.toml"],
    "pareto": ["pareto", "X.toml", "-o", "p.svg"],
    "liberty": ["area", "--preset", "tiny", "--liberty", "X.toml"],
    "timing": ["timing", "--preset", "tiny", "--liberty", "X.toml"],
    "text": ["eval", "--text", "X.toml"],
    "calibration text": ["calibrate", "--text", "X.toml", "-o", "c"],
}


def as_folder(path: Path) -> None:
    path.mkdir()


def as_loop(path: Path) -> None:
    path.symlink_to(path)


def as_broken_link(path: Path) -> None:
    path.symlink_to("nowhere")


def as_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)  # relative: the name of a socket is short


def as_zeros(path: Path) -> None:
    path.symlink_to("/dev/null")


SHAPES = [as_folder, as_loop, as_broken_link, as_socket, as_zeros]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", READ)
def test_files_that_are_none(place, capfd, monkeypatch, kind: str, shape) -> None:
    if kind == "calibration text":  # how many tokens it has is known when it is read
        monkeypatch.setattr("golden.llm.calibration.calibrate", input_files.calibrate)
    shape(place / "X.toml")
    refused(READ[kind], place, capfd)


WRITTEN = {
    "calibrate": ["calibrate", "-o"],
    "allocate": ["allocate", "--preset", "tiny", "--bits", "3", "-o"],
    "sweep": ["sweep", "--preset", "tiny", "--context", "32", "-o"],
    "area": ["area", "--preset", "tiny", "--json"],
    "compare": ["compare", "--preset", "tiny", "--context", "32", "--json"],
    "fpga": ["fpga", "--preset", "tiny", "--json"],
    "timing": ["timing", "--preset", "tiny", "--liberty", "cells.lib", "--json"],
    "power": ["power", "captured.safetensors", "--json"],
    "decode": ["decode", "--preset", "tiny", "--json"],
    "eval": ["eval", "--csv"],
    "eval's table": ["eval", "--markdown"],
    "eval's numbers": ["eval", "--json"],
    "pareto": ["pareto", "quality.json", "-o"],
    "generate": ["generate", "--preset", "tiny", "-o"],
    "capture": ["capture", "--preset", "tiny", "-o"],
    "report": ["report", "--preset", "tiny", "--results", "results", "-o"],
    "simulate": ["simulate", "--preset", "tiny", "--build-folder"],
    "replay": ["replay", "captured.safetensors", "--build-folder"],
    "power's builds": ["power", "captured.safetensors", "--build-folder"],
}

PLACES = {
    "in a file": "config.toml/x/y.toml",
    "in a link to nowhere": "broken/y.toml",
    "under a name too long": "a" * 300 + ".toml",
    "under /proc": "/proc/nowhere/y.toml",
}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("command", WRITTEN)
def test_places_that_cannot_be_written(place, capfd, command: str, where: str) -> None:
    """Said before the work begins, which here would raise."""
    (place / "broken").symlink_to("nowhere/at/all")
    refused([*WRITTEN[command], PLACES[where]], place, capfd)
