"""Cache formats that the report sets side by side, and short names for pictures."""

from __future__ import annotations

__all__ = ["RIVALS", "TABLES", "short_name"]

#: The integer formats to judge against: names of rows of `kvtq-hw compare`, with INT4 in the form
#: whose quality is near the ternary codes', and variants of `kvtq-hw power`.
RIVALS = {"INT8": "int8", "INT4 conditioned": "int4"}

#: Tables of digits by layer, in the folder `tables` of the results.
TABLES = ("smollm2-anchors-3.6.toml", "smollm2-anchors-2.7.toml")


def short_name(name: str) -> str:
    """Return the name of a `Candidate` for a label: without the words that all labels share."""
    return name.removeprefix("ternary ").removeprefix("smollm2-")
