"""Write the texts that the models of `kvtq-hw models` are calibrated on, as they write them.

Usage: python scripts/write_own_texts.py

Each model of the table that is installed samples its text anew, which takes minutes. The files go
to golden/llm/own_texts. A file changes with the model, with `golden.llm.sampling`, and may change
with the build of PyTorch.
"""

from __future__ import annotations

from pathlib import Path

from golden.llm.calibration import DEFAULT_TOKENS, SEGMENT
from golden.llm.models import load_model
from golden.llm.own_text import save_own_text
from kvtq_hw.contract.model_wheels import WHEEL_MODELS

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "llm" / "own_texts"


def main() -> None:
    for name in WHEEL_MODELS:
        print(save_own_text(load_model(name), DEFAULT_TOKENS, SEGMENT, FOLDER))


if __name__ == "__main__":
    main()
