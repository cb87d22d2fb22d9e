"""The memory layout: addresses by hand, slots over the life of a context, what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvtq_hw.commands.frame.cli import run
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.layout import MemoryLayout, Region
from kvtq_hw.contract.packing import cache_bytes

TINY = load_config("tiny")  # planes of 2 bytes, scales of 1, words of 4
SMOLLM2 = load_config("smollm2")  # planes of 13 bytes, scales of 1, words of 16
CODE = CacheCode.parse("balanced:2/1,sinks=3,window=6")


def layout_of(code: CacheCode, tokens: int = 20, **parameters: int) -> MemoryLayout:
    return MemoryLayout(TINY, [code, code], kv_heads=2, tokens=tokens, **parameters)


def regions(layout: MemoryLayout) -> list[Region]:
    return [
        region
        for heads in layout.heads
        for head in heads
        for vectors in (head.key, head.value)
        for region in vectors.regions.values()
    ]


def test_addresses() -> None:
    layout = layout_of(CODE, base=0x100)
    key, value = layout.heads[0][0].key, layout.heads[0][0].value
    # 3 + 11 + 6 tokens; tier records of 1 + 5 * 2 bytes, bodies of 1 + 2 * 2 and 1 + 2
    assert key.sinks == Region(0x100, 3, 5, False, 11)  # 33 bytes: 36 with padding
    assert key.body == Region(0x124, 11, 2, False, 5)  # 55: 56
    assert key.window == Region(0x15C, 6, 5, False, 11)  # 66: 68
    assert value.sinks == Region(0x1A0, 3, 5, False, 11)
    assert value.body == Region(0x1C4, 11, 1, False, 3)  # 33: 36
    assert value.window == Region(0x1E8, 6, 5, False, 11)
    assert layout.heads[0][1].key.sinks.base == 0x22C
    assert layout.heads[1][0].key.sinks.base == 0x100 + 2 * (0x22C - 0x100)
    assert (layout.end, layout.bytes) == (0x100 + 4 * 0x12C, 4 * 0x12C)
    assert key.body.address(10) == 0x124 + 50


def test_scale_of_every_plane_in_a_residual_code() -> None:
    head = layout_of(CacheCode.parse("residual:2/3,window=1")).heads[1][1]
    assert head.key.body == Region(head.key.body.base, 19, 2, True, 2 * 3)
    assert head.value.body == Region(head.value.body.base, 19, 3, True, 3 * 3)
    assert (head.key.window.residual, head.key.window.record_bytes) == (False, 11)


@pytest.mark.parametrize("code", ["balanced:2/1", "balanced:3/3,sinks=4,window=7", "residual:1/2"])
@pytest.mark.parametrize("tokens", [1, 5, 11, 64])
def test_regions_do_not_overlap(code: str, tokens: int) -> None:
    layout = layout_of(CacheCode.parse(code), tokens)
    end = layout.base
    for region in regions(layout):
        assert region.base % 4 == 0
        assert 0 <= region.base - end < 4
        end = region.base + region.bytes
    assert 0 <= layout.end - end < 4
    assert sum(r.bytes for r in regions(layout)) == 4 * cache_bytes(TINY, layout.codes[0], tokens)


@pytest.mark.parametrize(
    "code", ["balanced:2/1", "balanced:2/1,sinks=3", "balanced:2/1,window=6", str(CODE)]
)
def test_slots_over_the_life_of_a_context(code: str) -> None:
    """Token by token: who is where, against a memory in which each token is really moved."""
    cache_code = CacheCode.parse(code)
    vectors = layout_of(cache_code, tokens=40).heads[0][0].key
    sinks: list[int] = []
    body: list[int] = []
    ring: list[int | None] = [None] * cache_code.tiers.window
    for token in range(40):
        if token < cache_code.tiers.sinks:
            sinks.append(token)
        elif cache_code.tiers.window:
            slot = (token - cache_code.tiers.sinks) % cache_code.tiers.window
            leaving = ring[slot]
            if leaving is not None:
                body.append(leaving)
            ring[slot] = token
        else:
            body.append(token)
        spread = cache_code.tiers.spread(token + 1)
        present = [t for t in ring if t is not None]
        assert spread[:3] == (len(sinks), len(body), len(present))
        if present:
            assert ring[spread.window_start] == min(present)
        contents = ((vectors.sinks, sinks), (vectors.body, body), (vectors.window, ring))
        for region, tokens in contents:
            for slot, held in enumerate(tokens):
                if held is not None:
                    assert vectors.place(held, token + 1) == (region, slot)


def test_outside() -> None:
    vectors = layout_of(CODE).heads[0][0].key
    with pytest.raises(ValueError, match=r"^token: 5 is not allowed; must be 0\.\.4$"):
        vectors.place(5, 5)
    with pytest.raises(ValueError, match=r"^slot: 3 is not allowed; must be 0\.\.2$"):
        vectors.sinks.address(3)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"codes": []}, "layers: 0 is not allowed; must be at least 1"),
        ({"kv_heads": 0}, "kv_heads: 0 is not allowed; must be at least 1"),
        ({"tokens": 0}, "context: 0 is not allowed; must be 1..64, the configuration's max_conte"),
        ({"tokens": 65}, "context: 65 is not allowed; must be 1..64, the configuration's max_con"),
        ({"base": 6}, "base: 0x6 is not allowed; must be a multiple of the memory word, 4 bytes"),
        ({"base": -4}, "base: -0x4 is not allowed; must be a multiple of the memory word, 4 byte"),
        (
            {"base": (1 << 20) - 4},
            "context: 20 tokens need addresses up to 0x100128; the configuration has address_bits "
            "= 20",
        ),
    ],
)
def test_refused(parameters: dict[str, object], message: str) -> None:
    everything = {"codes": [CODE], "kv_heads": 1, "tokens": 20, "base": 0} | parameters
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        MemoryLayout(TINY, **everything)  # type: ignore[arg-type]


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["layout", "--code", "balanced:2/1,sinks=4,window=32", "--kv-heads", "2"]
    assert run([*arguments, "--layers", "2", "--context", "100", "--base", "0x40"]) == 0
    lines = capsys.readouterr().out.splitlines()
    layout = MemoryLayout(
        SMOLLM2, [CacheCode.parse("balanced:2/1,sinks=4,window=32")] * 2, 2, 100, base=0x40
    )
    assert len(lines) == 1 + len(regions(layout)) + 1
    titles = ["layer", "head", "side", "tier", "address", "digits", "bytes", "records"]
    assert lines[0].split() == titles
    assert lines[1].split() == ["0", "0", "key", "sinks", "0x00040", "5", "66", "4"]
    found = [int(line.split()[4], 16) for line in lines[1:-1]]
    assert found == [region.base for region in regions(layout)]
    total = f"{layout.bytes} bytes up to {layout.end:#x}, 100 tokens, words of 128 bits"
    assert lines[-1] == total


def test_command_on_a_hybrid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "hybrid.toml"
    table.write_text(
        'code = "balanced:1/1,sinks=4,window=32"\nkey_digits = [3, 2, 2]\n'
        "value_digits = [2, 1, 1]\nsliding = [64, 0, 64]\n"
    )
    assert run(["layout", "--code", str(table), "--layers", "3", "--context", "500"]) == 0
    *rows, windows, total = capsys.readouterr().out.splitlines()
    slots = {"sinks": [4] * 6, "body": [32, 32, 464, 464, 32, 32], "window": [32] * 6}
    for tier, expected in slots.items():
        found = [int(row.split()[-1]) for row in rows[1:] if row.split()[3] == tier]
        assert found == expected, tier
    assert windows == "2 of 3 layers have a sliding window of 64 tokens: their body is a ring"
    assert " bytes up to " in total


def test_command_leaves_empty_regions_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["layout", "--code", "balanced:2/1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2:4] for line in lines[1:-1]] == [["key", "body"], ["value", "body"]]
    assert lines[1].split()[-1] == "8192"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--context", "0"], "Invalid value for '--context': 0 is not in the range 1<=x<=1048576."),
        (["--context", "8193"], "context: 8193 is not allowed; must be 1..8192, the configuration"),
        (["--base", "12"], "base: 0xc is not allowed; must be a multiple of the memory word, 16 "),
        (["--base", "here"], "Invalid value for --base: 'here' is not allowed; must be an addr"),
        (["--layers", "0"], "Invalid value for '--layers': 0 is not in the range 1<=x<=1024."),
    ],
)
def test_command_refuses(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["layout", *arguments]) != 0
    error = capsys.readouterr().err
    assert error.startswith(f"kvtq-hw: error: {message}")
    assert error.count("\n") == 1
