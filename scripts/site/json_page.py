"""MkDocs hook: the fields of every file that a command writes, instead of one marker line."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from kvtq_hw.commands.frame.schemas import SCHEMAS
from kvtq_hw.commands.frame.schemas.words import Output

_MARKER = "<!-- fields of every file -->"
_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", NoneType: "null"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marker by a table for each command."""
    return markdown.replace(_MARKER, tables()) if _MARKER in markdown else markdown


def tables() -> str:
    """Return Markdown with a section per command: path, type, unit and meaning of each field."""
    sections = []
    for name, schema in SCHEMAS.items():
        rows = [" | ".join(row) for row in fields(schema)]
        head = ["| field | type | unit | meaning |", "|---|---|---|---|"]
        lines = [*head, *(f"| {row} |" for row in rows)]
        sections.append(f"## {name}\n\n" + "\n".join(lines))
    return "\n\n".join(sections)


def fields(schema: type[Output], path: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield the fields of a schema and of the objects in it."""
    for name, field in schema.model_fields.items():
        kind, inner, below = _kind(field.annotation)
        extra = field.json_schema_extra
        unit = str(extra.get("unit", "")) if isinstance(extra, dict) else ""
        meaning = field.description or (inner.__doc__ if inner else None)
        if not meaning:
            raise LookupError(f"{schema.__name__}.{name} has no meaning")
        yield f"`{path}{name}`", kind, unit, meaning.strip().rstrip(".").replace("|", "\\|")
        if inner is not None:
            yield from fields(inner, f"{path}{name}{below}.")


def _kind(annotation: Any) -> tuple[str, type[Output] | None, str]:
    """Return the name of a type, the object in it, and what leads there: `[]` or `.*`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        kinds = [_kind(argument) for argument in arguments]
        inner = next((kind for kind in kinds if kind[1] is not None), kinds[0])
        return " or ".join(kind[0] for kind in kinds), inner[1], inner[2]
    if origin is list:
        kind, inner_type, below = _kind(arguments[0])
        return f"list of {kind}", inner_type, f"[]{below}"
    if origin is dict:
        kind, inner_type, below = _kind(arguments[1])
        return f"by name: {kind}", inner_type, f".*{below}"
    if isinstance(annotation, type) and issubclass(annotation, Output):
        return "object", annotation, ""
    return _NAMES.get(annotation, "object"), None, ""
