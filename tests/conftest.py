"""Fixtures that more than one test file uses."""

from __future__ import annotations

import os

import pytest

from kvtq_hw.errors import UserError
from kvtq_hw.toolchain import SIMULATORS, find_simulator


@pytest.fixture(params=SIMULATORS)
def simulator(request: pytest.FixtureRequest) -> str:
    """Name of each simulator in turn: a test that asks for it runs once on every one.

    Where one is missing the test is skipped, and says how to get it. With
    KVTQ_REQUIRE_SIMULATORS=1, as in continuous integration, it fails: a bench that did not run has
    not passed.
    """
    try:
        find_simulator(request.param)
    except UserError as error:
        if os.environ.get("KVTQ_REQUIRE_SIMULATORS") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))
    return request.param
