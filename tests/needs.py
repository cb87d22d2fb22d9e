"""What some tests need from outside the checkout, and what happens where it is missing.

A test whose need is missing is skipped, and says how to get it. The environment variable
KVTQ_REQUIRE names needs, separated by commas, whose absence fails the test instead: what continuous
integration has, it must have run. `scripts/check_tests.py` reads the reasons of skips.
"""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

__all__ = ["NEEDS", "missing", "required"]

#: Needs by name, and what each is.
NEEDS = {
    "simulators": "Verilator and Icarus Verilog",
    "model": "the wheel of SmolLM2",
    "gemma": "the wheels of Gemma 3 270M",
    "liberty": "the full Liberty file of sky130_fd_sc_hd, named by KVTQ_SKY130_LIBERTY",
    "opensta": "OpenSTA",
    "chromium": "Chromium, the browser that opens the report",
    "riscv": "GCC for RISC-V without an operating system",
}


def required() -> set[str]:
    """Needs that KVTQ_REQUIRE names.

    Raises
    ------
    ValueError
        For a name that is not in `NEEDS`.
    """
    names = {name for name in os.environ.get("KVTQ_REQUIRE", "").split(",") if name}
    if unknown := names - set(NEEDS):
        raise ValueError(
            f"KVTQ_REQUIRE: {', '.join(sorted(unknown))} unknown; allowed are {', '.join(NEEDS)}"
        )
    return names


def missing(need: str, reason: str) -> NoReturn:
    """Skip the running test because a need is missing; fail it where the need is required.

    Parameters
    ----------
    need : a name of `NEEDS`
    reason : one line that says what is missing and how to get it
    """
    if need in required():
        pytest.fail(f"{need}: {reason}")
    pytest.skip(f"{need}: {reason}")
