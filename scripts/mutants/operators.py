"""Mutation operators: Cosmic Ray's that make plausible mistakes, and operators of our own for RTL.

Our operators are subclasses of Cosmic Ray's `Operator`. Cosmic Ray's plugins find them as
``rtl/NAME``, beside its own ``core/NAME``, and list and apply both in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import parso
from cosmic_ray import plugins
from cosmic_ray.operators.operator import Example, Operator

__all__ = ["OWN", "operator_names"]

Position = tuple[tuple[int, int], tuple[int, int]]

#: Replacements ORIGINAL_MISTAKE of binary operators. Others would be type errors in Amaranth, or
#: absurd.
_BINARY = (
    *("Add_Sub", "Sub_Add", "Mul_FloorDiv", "FloorDiv_Mul", "Mod_FloorDiv", "Div_Mul", "Pow_Mul"),
    *("RShift_LShift", "LShift_RShift", "BitOr_BitAnd", "BitAnd_BitOr", "BitXor_BitOr"),
)
_COMPARISON = (
    *("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is"),
    *("Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt"),
)
_UNARY = ("Delete_USub", "Delete_Invert", "Delete_Not")
_CORE = (
    *(f"ReplaceBinaryOperator_{name}" for name in _BINARY),
    *(f"ReplaceComparisonOperator_{name}" for name in _COMPARISON),
    *(f"ReplaceUnaryOperator_{name}" for name in _UNARY),
    *("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak"),
    *("NumberReplacer", "ZeroIterationForLoop"),
)


def _text(node: Any) -> str:
    """Return the source of a node without the whitespace and comments before it."""
    return node.get_code(include_prefix=False)


def _instead(node: Any, code: str) -> Any:
    """Return a replacement for the node: `code` parsed, with the node's prefix."""
    return parso.parse(node.get_first_leaf().prefix + code)


def _arguments(node: Any, *names: str) -> list[Any]:
    """Return the arguments of a call to one of `names`; none if the node is no such call."""
    if node.type != "atom_expr":
        return []
    call = node.children[-1]
    if call.type != "trailer" or _text(call)[0] != "(" or len(call.children) != 3:
        return []
    if "".join(map(_text, node.children[:-1])) not in names:
        return []
    inside = call.children[1]
    return inside.children[::2] if inside.type == "arglist" else [inside]


class DropTerm(Operator):
    """Drop one term of a conjunction or disjunction, of bits or of conditions."""

    _TYPES = ("and_expr", "expr", "and_test", "or_test")

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        if node.type in self._TYPES:
            for term in node.children[::2]:
                yield term.start_pos, term.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        terms = [_text(term) for term in node.children[::2]]
        del terms[index]
        return _instead(node, f" {_text(node.children[1])} ".join(terms))

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (
            Example("x = a & b & ~c", "x = a & b", occurrence=2),
            Example("x = a | b", "x = b"),
            Example("if a and b: pass", "if a: pass", occurrence=1),
        )


class DeleteStatement(Operator):
    """Delete an augmented assignment like ``m.d.sync += ...``, or a call that is a statement."""

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        if node.type != "simple_stmt":
            return
        statement = node.children[0]
        augmented = statement.type == "expr_stmt" and _text(statement.children[1])[-1] == "="
        augmented = augmented and statement.children[1].type == "operator"
        augmented = augmented and len(_text(statement.children[1])) > 1
        if augmented or (statement.type == "atom_expr" and _text(statement)[-1] == ")"):
            yield statement.start_pos, statement.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        return _instead(node, "pass\n")

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (
            Example("if a:\n    m.d.sync += b.eq(c)\n", "if a:\n    pass\n"),
            Example("send(a)\n", "pass\n"),
        )


class DropAssignment(Operator):
    """Drop one assignment from a list of assignments, ``m.d.comb += [...]``."""

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        for element in self._list(node)[::2]:
            yield element.start_pos, element.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        listed = self._list(node)
        comma = 2 * index + 1 if 2 * index + 1 < len(listed) else 2 * index - 1
        for place in sorted((comma, 2 * index), reverse=True):
            del listed[place]
        return node

    @staticmethod
    def _list(node: Any) -> list[Any]:
        """Return the assignments and the commas between them; none if the node has no such list."""
        if node.type != "expr_stmt" or not _text(node).startswith("m.d."):
            return []
        listed = node.children[-1]
        if listed.type != "atom" or listed.children[1].type != "testlist_comp":
            return []
        inside = listed.children[1].children
        return inside if _text(inside[1]) == "," and len(inside) > 2 else []

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (
            Example("m.d.comb += [a.eq(b), c.eq(d)]", "m.d.comb += [ c.eq(d)]"),
            Example("m.d.comb += [a.eq(b), c.eq(d)]", "m.d.comb += [a.eq(b)]", occurrence=1),
        )


class InvertCondition(Operator):
    """Negate the condition of an ``m.If`` or ``m.Elif``."""

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        for condition in _arguments(node, "m.If", "m.Elif"):
            yield condition.start_pos, condition.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        condition = node.children[-1].children[1]
        node.children[-1].children[1] = parso.parse(f"({_text(condition)}) == 0")
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("with m.If(a & b): pass", "with m.If((a & b) == 0): pass"),)


class SwapMux(Operator):
    """Exchange the two inputs of a ``Mux``."""

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        if len(_arguments(node, "Mux")) == 3:
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        condition, yes, no = map(_text, _arguments(node, "Mux"))
        return _instead(node, f"Mux({condition}, {no}, {yes})")

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("x = Mux(a, b, c)", "x = Mux(a, c, b)"),)


class ChangeNext(Operator):
    """Make ``m.next`` name another state of the machine, which may be the present state."""

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        for _ in self._others(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        return _instead(node, f"m.next = {self._others(node)[index]}")

    @classmethod
    def _others(cls, node: Any) -> list[str]:
        """Return the other states that ``m.next`` could name, as the source spells them."""
        if node.type != "expr_stmt" or _text(node.children[0]) != "m.next":
            return []
        machine = node
        while machine.type not in ("funcdef", "file_input"):
            machine = machine.parent
        states = dict.fromkeys(cls._states(machine))
        return [state for state in states if state != _text(node.children[2])]

    @classmethod
    def _states(cls, node: Any) -> Iterator[str]:
        yield from map(_text, _arguments(node, "m.State"))
        for child in getattr(node, "children", ()):
            yield from cls._states(child)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        machine = 'with m.State("A"):\n    m.next = "B"\nwith m.State("B"):\n    pass\n'
        return (Example(machine, machine.replace('= "B"', '= "A"')),)


#: Our own operators by name.
OWN = {
    operator.__name__: operator
    for operator in (
        *(DropTerm, DeleteStatement, DropAssignment),
        *(InvertCondition, SwapMux, ChangeNext),
    )
}

plugins.OPERATOR_PROVIDERS["rtl"] = OWN


def operator_names() -> tuple[str, ...]:
    """Return the names by which `cosmic_ray.plugins.get_operator` finds the operators in use."""
    return (*(f"core/{name}" for name in _CORE), *(f"rtl/{name}" for name in OWN))
