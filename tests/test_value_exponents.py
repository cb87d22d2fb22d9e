"""Value exponents, by their bench on both simulators."""

from __future__ import annotations

import numpy as np
import pytest
from bench_matrix import CONFIGS, check_bench

from golden.value_exponents import ExponentHistory
from kvtq_hw.contract.config import EngineConfig


@pytest.mark.parametrize("config", [CONFIGS["tiny"], CONFIGS["odd"]], ids=["tiny", "odd"])
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("value_exponents", config, simulator)


def test_a_history_forgets_the_maxima_of_tokens_that_are_gone() -> None:
    history = ExponentHistory(1, 1, window=0)
    for exponent in (3, 9):
        history.write(np.full((1, 1, 1), exponent, np.uint8), np.zeros((1, 1, 1), np.uint8))
        history.settle(history.newest, None)
    assert history.newest.before.item() == 9
    history.crop(1)
    assert (history.newest.tokens, history.newest.before.item()) == (1, 3)
