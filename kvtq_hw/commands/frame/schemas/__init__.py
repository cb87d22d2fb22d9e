"""Schemas of the files that commands write with `--json`: every field, its type, unit and meaning.

docs/reference/json.md is made of these models, and whatever a test writes with `--json` is checked
against the command's model (`tests/conftest.py`), so no field is undocumented.
"""

from __future__ import annotations

from kvtq_hw.commands.frame.schemas.estimates import ESTIMATES
from kvtq_hw.commands.frame.schemas.hardware import HARDWARE
from kvtq_hw.commands.frame.schemas.models import MODELS
from kvtq_hw.commands.frame.schemas.words import Output

__all__ = ["SCHEMAS"]

#: The schema of each command's file.
SCHEMAS: dict[str, type[Output]] = dict(sorted((ESTIMATES | HARDWARE | MODELS).items()))
