"""Griffe extension: docstrings here say what a parameter is, and leave its type to the signature.

NumPy's style has a type behind ``name :``. Griffe therefore takes the first line of a description
for a type; this extension puts the line back.
"""

from __future__ import annotations

from typing import Any

import griffe

_SECTIONS = (
    griffe.DocstringSectionParameters,
    griffe.DocstringSectionAttributes,
    griffe.DocstringSectionReturns,
)


class Descriptions(griffe.Extension):
    """Moves text that was taken for a type to the description."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Mend the parsed docstring of an object; the parsed sections are kept with it."""
        if obj.docstring is None:
            return
        sections = obj.docstring.parse(griffe.Parser("numpy"), warnings=False)
        for section in sections:
            if isinstance(section, _SECTIONS):
                for element in section.value:
                    _mend(element)
            if isinstance(section, griffe.DocstringSectionReturns):
                _join(section)
        obj.docstring.__dict__["parsed"] = sections


def _join(section: griffe.DocstringSectionReturns) -> None:
    """Make one text of the lines that say what a function returns."""
    text = " ".join(element.description for element in section.value)
    section.value = [griffe.DocstringReturn(name="", description=text, annotation=None)]


def _mend(element: Any) -> None:
    """Join what stands on the line of the name to the lines below it."""
    first = "" if element.annotation is None else str(element.annotation)
    element.annotation = None
    element.description = f"{first}\n{element.description}".strip()
