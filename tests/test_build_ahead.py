"""A design is built beside the calibration, and only then."""

from __future__ import annotations

import multiprocessing
import subprocess

import pytest
from test_decoding import CODE, PROMPT, TINY

from golden.llm.decoding import needed_context
from golden.llm.models import load_model
from kvtq_hw.commands.frame import build_ahead as module
from kvtq_hw.commands.frame.build_ahead import build_ahead
from kvtq_hw.commands.frame.session import load_session
from sim.verilated import library


def build(monkeypatch: pytest.MonkeyPatch, block: str = "engine") -> None:
    """Build to the end on a machine with two processors."""
    monkeypatch.setattr(module, "processors", lambda: 2)
    build_ahead(block, TINY, quick=False)
    for process in multiprocessing.active_children():
        process.join()


def test_what_was_built_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build(monkeypatch)
    monkeypatch.setattr(subprocess, "run", None)
    monkeypatch.setattr(library, "_compile", None)
    assert library.load_library("engine", TINY).kvtq_run


def test_a_failure_is_left_to_who_needs_the_design(tmp_path, monkeypatch, capfd):
    (tmp_path / "kvtq-hw").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build(monkeypatch)
    assert capfd.readouterr() == ("", "")


def test_one_processor_builds_nothing_ahead(monkeypatch):
    monkeypatch.setattr(module, "processors", lambda: 1)
    before = multiprocessing.active_children()
    build_ahead("engine", TINY, quick=False)
    assert multiprocessing.active_children() == before


def test_a_session_builds_ahead_of_its_calibration_only(tiny_folder):
    model, calls = load_model(str(tiny_folder)), []
    for _ in range(2):
        load_session(model, CODE, needed_context(model, PROMPT, 6), preset=TINY, ahead=calls.append)
        assert calls == [TINY]
