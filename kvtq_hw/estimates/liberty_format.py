"""A parser of Liberty files: groups and attributes.

The parser reads a full file of 13 MB in a second. Nothing of the grammar beyond groups and
attributes matters here. Source of the format: Liberty user guide, volumes 1 and 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from kvtq_hw.contract.errors import shown

__all__ = ["Group", "parse_liberty"]

#: Most levels of nested groups: a full library has four.
_MOST_GROUPS = 32

_TOKEN = re.compile(
    # an unterminated comment or string extends to the end of the text: no character is read twice
    r'/\*.*?(?:\*/|\Z)|\\\r?\n|"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[{}();:,]|[^\s{}();:,"]+',
    re.DOTALL,
)


@dataclass
class Group:
    """A group ``kind (names) { ... }`` of a Liberty file.

    Parameters
    ----------
    kind : str
        For example "cell", "pin" or "timing".
    names : list[str]
        The arguments in brackets.
    attributes : dict[str, list[str]]
        Values of each attribute: one for a simple attribute, any number for a complex attribute.
        The last occurrence of a repeated attribute counts.
    groups : list[Group]
        The groups directly inside, in their order.
    """

    kind: str
    names: list[str]
    attributes: dict[str, list[str]] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)

    def all(self, kind: str) -> Iterator[Group]:
        """Iterate over the groups of a kind directly inside."""
        return (group for group in self.groups if group.kind == kind)

    def get(self, attribute: str) -> str | None:
        """Return the first value of an attribute; None if the group lacks the attribute."""
        values = self.attributes.get(attribute)
        return values[0] if values else None


def parse_liberty(text: str) -> Group:
    """Parse the text of a Liberty file and return its library group.

    Raises
    ------
    ValueError
        When the text is no Liberty file, or ends in the middle of a group.
    """
    tokens = [t for t in _TOKEN.findall(text) if not t.startswith(("/*", "\\"))]
    if tokens and tokens[-1].startswith('"'):
        raise ValueError("it ends in the middle of a string")
    top = Group("", [])
    open_groups, position = [top], 0
    try:
        while position < len(tokens):
            if tokens[position] == "}" and len(open_groups) > 1:
                open_groups.pop()
                position += 1
            elif len(open_groups) == 1 and top.groups:
                break  # more text behind the library group
            else:
                position = _statement(tokens, position, open_groups)
            while position < len(tokens) and tokens[position] == ";":
                position += 1
    except IndexError:
        raise ValueError("it ends in the middle of a group") from None
    if len(open_groups) > 1 or not tokens:
        raise ValueError("it ends in the middle of a group")
    if position != len(tokens) or [group.kind for group in top.groups] != ["library"]:
        raise ValueError("it holds no library, or more than one")
    return top.groups[0]


def _statement(tokens: list[str], position: int, open_groups: list[Group]) -> int:
    """Read an attribute into the innermost open group, or open a group; return where it ends."""
    name, separator = tokens[position], tokens[position + 1]
    position += 2
    values: list[str] = []
    if separator == ":":
        while tokens[position] not in (";", "}"):
            values.append(tokens[position].strip('"'))
            position += 1
        open_groups[-1].attributes[name] = [" ".join(values)]
        return position
    if separator != "(":
        raise ValueError(f"{shown(separator)} after {shown(name)}, where ':' or '(' must stand")
    while tokens[position] != ")":
        if tokens[position] != ",":
            values.append(tokens[position].strip('"'))
        position += 1
    position += 1
    if position < len(tokens) and tokens[position] == "{":
        if len(open_groups) > _MOST_GROUPS:
            raise ValueError(f"it has more than {_MOST_GROUPS} groups within each other")
        group = Group(name, values)
        open_groups[-1].groups.append(group)
        open_groups.append(group)
        return position + 1
    open_groups[-1].attributes[name] = values
    return position
