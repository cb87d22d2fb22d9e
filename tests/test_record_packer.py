"""Records: what stands where in their bytes."""

from __future__ import annotations

import pytest
import torch
from bench_matrix import CONFIGS, PACKED_CONFIGS, check_bench

from golden.packer import pack
from golden.planes import Planes
from golden.quantizer import quantize
from golden.record_packer import pack_record
from kvtq_hw.contract.config import EngineConfig, load_config
from kvtq_hw.contract.packing import plane_bytes, vector_bytes

CONFIG = load_config("smollm2")
#: Scale words of two bytes.
WIDE = CONFIG.replace(name="wide-scales", scale_fraction_bits=5)


def vectors(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return (torch.randn(count, 64, generator=generator) * 100000).long()


@pytest.mark.parametrize("config", [CONFIG, WIDE], ids=["byte", "two bytes"])
def test_key_record_is_a_scale_and_planes_from_the_top_digit_down(config: EngineConfig) -> None:
    planes = quantize(config, vectors(3), "balanced", 4, "absmean")
    data = pack_record(config, planes, unit_first=False)
    assert data.shape == (3, vector_bytes(config, 4, 1))
    word = int(planes.fraction[1, 0]) | int(planes.exponent[1, 0]) << config.scale_fraction_bits
    start = -(-config.scale_bits // 8)
    assert int.from_bytes(bytes(data[1, :start].tolist()), "little") == word
    for place, digit in enumerate((3, 2, 1, 0)):
        begin = start + place * plane_bytes(config.packing, 64)
        found = data[1, begin : begin + plane_bytes(config.packing, 64)]
        assert torch.equal(found, pack(config.packing, planes.digits[1, digit]))


def test_value_record_has_the_unit_plane_first() -> None:
    planes = quantize(CONFIG, vectors(2), "balanced", 2, "absmean")
    data = pack_record(CONFIG, planes, unit_first=True)
    assert torch.equal(data[:, 1:14], pack("5in8", planes.digits[:, 0]))
    assert torch.equal(data[:, 14:], pack("5in8", planes.digits[:, 1]))


@pytest.mark.parametrize("unit_first", [False, True])
def test_residual_record_is_a_scale_and_a_plane_a_run(unit_first: bool) -> None:
    planes = quantize(CONFIG, vectors(2), "residual", 3, "max")
    data = pack_record(CONFIG, planes, unit_first)
    words = planes.fraction | planes.exponent << CONFIG.scale_fraction_bits
    runs = data.unflatten(-1, (3, 14))
    assert torch.equal(runs[..., 0].long(), words)
    assert torch.equal(runs[..., 1:], pack("5in8", planes.digits))


def test_vectors_with_other_runs_are_refused() -> None:
    balanced = quantize(CONFIG, vectors(1), "balanced", 2, "absmean")
    residual = quantize(CONFIG, vectors(1), "residual", 2, "max")
    with pytest.raises(
        ValueError, match=r"^planes: vectors differ in their runs; must be the same"
    ):
        pack_record(CONFIG, Planes.join([balanced, residual]), unit_first=True)


BENCHES = {**PACKED_CONFIGS, "odd": CONFIGS["odd"], "wide-scales": WIDE}


@pytest.mark.parametrize("config", BENCHES.values(), ids=BENCHES)
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("record_packer", config, simulator)
