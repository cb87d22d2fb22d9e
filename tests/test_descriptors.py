"""Job descriptors of a KV head: codes that the hardware computes, and those that it does not."""

from __future__ import annotations

import pytest
from bench_matrix import TINY

from golden.quantizer import RESIDUAL_RATIOS, absmean_constant
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.layout import MemoryLayout
from sim.host.descriptors import HeadDescriptors
from sim.host.driver import descriptor_words


def described(config: EngineConfig, code: str) -> dict[int, int]:
    """Return the register words of a job under a code."""
    layout = MemoryLayout(config, [CacheCode.parse(code)], 1, 20)
    head = HeadDescriptors(layout, 0, 0, table=0, rotate=True, centre=True)
    return descriptor_words(config, head.job(3, append=True))


@pytest.mark.parametrize("dim", range(8, 257, 4))
def test_every_head_dimension_has_a_descriptor_or_one_line(dim: int) -> None:
    """The register of a constant has 12 bits; that of the fourth residual digit may need 13."""
    config = TINY.replace(head_dim=dim, lanes=dim)
    fits = absmean_constant(config, RESIDUAL_RATIOS[3]) < 1 << 12
    assert fits is (dim not in (68, 132, 136))
    for code in ("balanced:5/5,feedback", "residual:5/5", "residual:3/3,scale=absmean"):
        assert described(config, code)
    for code in ("residual:4/1,scale=absmean", "residual:1/5,scale=absmean"):
        if fits:
            assert described(config, code)
            continue
        with pytest.raises(UserError) as found:
            described(config, code)
        constant = absmean_constant(config, RESIDUAL_RATIOS[3])
        assert str(found.value) == (
            f"code: {code!r} has an absmean constant of {constant} at head_dim {dim}; the hardware "
            "allows up to 4095: take at most 3 digits, or scale=max"
        )
