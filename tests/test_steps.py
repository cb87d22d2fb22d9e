"""Long steps of commands: what a terminal shows, and that a pipe gets nothing."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from tiny_model import tiny_model

from golden.llm.calibration import calibrate
from kvtq_hw.host import steps


def shown(*, terminal: bool, worth: float, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a console shows of a step of three parts."""
    monkeypatch.setattr(steps, "_WORTH_A_LINE", worth)
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120)
    with steps.show_steps(console)("Calibrating [model]") as on_progress:
        for done in (1, 2, 3):
            on_progress(done, 3)
    return text.getvalue()


def test_a_terminal_shows_title_bar_and_time(monkeypatch):
    text = shown(terminal=True, worth=0, monkeypatch=monkeypatch)
    assert "Calibrating [model]" in text
    assert "━" in text
    assert text.rstrip("\x1b[0m\n").endswith("Calibrating [model]: 0 s")


def test_a_short_step_leaves_no_line(monkeypatch):
    assert ": 0 s" not in shown(terminal=True, worth=60, monkeypatch=monkeypatch)


def test_a_pipe_gets_nothing(monkeypatch):
    assert shown(terminal=False, worth=0, monkeypatch=monkeypatch) == ""


@pytest.mark.parametrize("text", [None, " ".join(["of"] * 400)], ids=["sampled", "given"])
def test_calibration_tells_how_far_it_is(text):
    seen = []
    calibrate(tiny_model(), text, 300, lambda *progress: seen.append(progress))
    done = [amount for amount, _ in seen]
    assert done == sorted(done)
    [total] = {amount for _, amount in seen}
    assert total == (900 if text is None else 600)
    assert 0.98 * total <= done[-1] <= total
