"""Steps of a command that take long, as a terminal shows them: what runs, how far, for how long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["OnProgress", "ShowStep", "show_steps", "silent"]

OnProgress = Callable[[int, int], None]
"""Takes the amounts of work that are done and that there are in all."""

ShowStep = Callable[[str], AbstractContextManager[OnProgress]]
"""Shows a step's title while a block runs, and how far the step is when that is known."""

#: Seconds from which a step that has ended stays on the screen, with its time.
_WORTH_A_LINE = 1


def show_steps(console: Console) -> ShowStep:
    """Show steps on a terminal; where output is no terminal, show nothing."""

    @contextmanager
    def step(title: str) -> Iterator[OnProgress]:
        begun = time.monotonic()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
        )
        unseen = not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=unseen) as screen:
            task = screen.add_task(title, total=None)

            def on_progress(done: int, total: int) -> None:
                if len(screen.columns) == len(columns):  # a bar only where there is a total
                    left = TextColumn("elapsed,"), TimeRemainingColumn(), TextColumn("left")
                    screen.columns = (*columns[:2], BarColumn(), columns[2], *left)
                screen.update(task, completed=done, total=total)

            yield on_progress
        seconds = time.monotonic() - begun
        if console.is_terminal and seconds >= _WORTH_A_LINE:
            line = f"{title}: {seconds:.0f} s"
            console.print(line, style="dim", markup=False, highlight=False)

    return step


@contextmanager
def silent(title: str) -> Iterator[OnProgress]:
    """Show nothing of a step."""
    yield lambda done, total: None
