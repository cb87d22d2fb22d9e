"""Draw what a command prints as a picture of a terminal.

Usage: python scripts/terminal_picture.py PICTURE.svg COMMAND [ARGUMENT ...]

The command runs here and now; the picture has its output, or nothing is written when it fails.
``python scripts/terminal_picture.py docs/img/demo.svg make demo`` draws docs/img/demo.svg.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

_COLUMNS = 88

#: Fonts that the picture would load from elsewhere.
_FONT_FACE = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)


def main() -> int:
    picture, command = Path(sys.argv[1]), sys.argv[2:]
    environment = {**os.environ, "COLUMNS": str(_COLUMNS)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode:
        print(f"{shlex.join(command)}: exit status {done.returncode}", file=sys.stderr)
        return 1
    picture.write_text(draw(shlex.join(command), done.stdout), encoding="utf-8")
    return 0


def draw(command: str, output: str) -> str:
    """Return a picture of a terminal, as SVG, that shows a command and its output."""
    console = Console(record=True, width=_COLUMNS, file=io.StringIO())
    console.print(f"[bold green]$[/] [bold]{command}[/]", highlight=False)
    console.print(output.rstrip(), markup=False, highlight=False)
    return _FONT_FACE.sub("", console.export_svg(title="kvtq-hw", theme=MONOKAI))


if __name__ == "__main__":
    sys.exit(main())
