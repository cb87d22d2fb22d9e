"""Write what docs/integration.md takes from the sources: its tables and its timing diagrams."""

import tempfile
from pathlib import Path

from integration.tables import filled
from integration.waves import DIAGRAMS, diagram, record

from kvtq_hw.contract.config import load_config
from rtl.blocks import emit_block

DOCS = Path(__file__).resolve().parent.parent / "docs"


def main() -> None:
    """Write the page's tables and the pictures."""
    page = DOCS / "integration.md"
    page.write_text(filled(page.read_text("utf-8")), "utf-8")
    config = load_config("tiny")
    with tempfile.TemporaryDirectory() as folder:
        recording = record(emit_block("accelerator", config), config, Path(folder))
    for name, drawing in DIAGRAMS.items():
        picture = DOCS / "img" / f"timing-{name}.svg"
        picture.write_text(diagram(recording, drawing), "utf-8")
    print(page)


if __name__ == "__main__":
    main()
