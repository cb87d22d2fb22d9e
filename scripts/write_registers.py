"""Write docs/registers.md from the register map, kvtq_hw/contract/registers.rdl."""

from pathlib import Path

from kvtq_hw.contract.registers import markdown

if __name__ == "__main__":
    target = Path(__file__).resolve().parent.parent / "docs" / "registers.md"
    target.write_text(markdown(), encoding="utf-8")
    print(target)
