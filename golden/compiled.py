"""Compiles loops with Numba, and checks the arguments of a compiled loop before every call.

A compiled loop does not check indices: an index outside an array reads or writes other memory of
the process. So `compiled` declares the type and shape that each argument of a loop must have, and
rules that keep all indices of the loop inside the arrays. Every call is checked first::

    @compiled("0 <= start <= capacity - tokens", data=Array(np.uint8, "capacity", written=True),
              x=Array(np.uint8, "tokens"), start=int)
    def _copy(x, data, start):
        for t in range(x.shape[0]):
            data[start + t] = x[t]

No other module of the project imports Numba (`tests/test_house.py`), so no loop can avoid the
check.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import DTypeLike

__all__ = ["Array", "Fields", "compiled", "loop_part"]

numba.config.SLP_VECTORIZE = 1  # merges equal operations on neighbours into a vector operation

Loop = Callable[..., Any]


class Array:
    """Declares an array argument.

    Parameters
    ----------
    dtype : allowed dtype, or dtypes
    axes : a name or a size for each axis; a name stands for one size in all arguments of a loop
    written : the loop writes to the array, so the array must be writeable
    strided : the loop takes any layout; otherwise the array must be C-contiguous
    optional : the array may also be empty, with any axes
    below : exclusive upper limit of all elements, which are indices: a number, or the name of an
        axis of any argument
    """

    def __init__(
        self,
        dtype: DTypeLike | tuple[DTypeLike, ...],
        *axes: str | int,
        written: bool = False,
        strided: bool = False,
        optional: bool = False,
        below: str | int | None = None,
    ) -> None:
        self.dtypes = tuple(map(np.dtype, dtype if isinstance(dtype, tuple) else (dtype,)))
        self.axes = axes
        self.written = written
        self.strided = strided
        self.optional = optional
        self.below = below

    def check(self, name: str, value: object, sizes: dict[str | int, int]) -> None:
        """Check an argument against this declaration, and record the sizes of its axes.

        Raises
        ------
        TypeError
            When the argument is no array, or has another dtype.
        ValueError
            When the shape or the layout of the argument does not fit.
        """
        if not isinstance(value, np.ndarray) or value.dtype not in self.dtypes:
            found = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
            allowed = " or ".join(map(str, self.dtypes))
            raise TypeError(f"{name} is {found}; must be an array of {allowed}")
        shape = value.shape
        if self.optional and not value.size:
            return
        fits = len(shape) == len(self.axes)
        if fits:
            for axis, size in zip(self.axes, shape, strict=True):
                if sizes.setdefault(axis, size) != size:
                    fits = False
        if not fits:
            axes = ", ".join(str(sizes.get(axis, axis)) for axis in self.axes)
            raise ValueError(f"{name} has shape {shape}; must be [{axes}]")
        if not (self.strided or value.flags.c_contiguous):
            raise ValueError(f"{name} has strides {value.strides}; must be C-contiguous")
        if self.written and not value.flags.writeable:
            raise ValueError(f"{name} is read-only; must be writeable")


Part = Array | type[int] | type[float]


class Fields:
    """Declares a named-tuple argument, field by field.

    Parameters
    ----------
    kind : type of the named tuple
    fields : declaration of each field; rules and axes name fields like arguments

    Raises
    ------
    TypeError
        When `fields` are not the fields of `kind`.
    """

    def __init__(self, kind: type[NamedTuple], **fields: Part) -> None:
        names = kind._fields
        if set(names) != set(fields):
            raise TypeError(f"{kind.__name__} has the fields {', '.join(names)}")
        self.kind: type[Any] = kind
        self.fields = {name: fields[name] for name in names}


def compiled(*rules: str, **arguments: Part | Fields) -> Callable[[Loop], Loop]:
    """Compile a loop, and check its arguments before every call.

    Parameters
    ----------
    rules : Python expressions over names of axes and arguments (and `np`) that must be true
    arguments : declaration of each argument of the loop; integers must fit 64 bits

    Raises
    ------
    TypeError
        At declaration, when the names are not those of the loop's arguments, or when a name is used
        twice among arguments, fields and axes. At a call, for an argument of another type.
    ValueError
        At a call, for arrays that do not fit, or when a rule is false.
    """

    def decorate(function: Loop) -> Loop:
        names = tuple(inspect.signature(function).parameters)
        if set(names) != set(arguments):
            raise TypeError(f"{function.__name__} has the arguments {', '.join(names)}")
        declared = _Declared(
            function.__name__.lstrip("_"), {name: arguments[name] for name in names}, rules
        )
        loop = numba.njit(cache=True)(function)
        return functools.wraps(function)(declared.entrance(loop))

    return decorate


def loop_part(function: Loop) -> Loop:
    """Compile a function that only compiled loops call, and that becomes a part of them."""
    return numba.njit(function)


class _Declared:
    """Checks a loop's arguments in two forms: a quick check, and a slow one with error messages.

    Parameters
    ----------
    title : name of the loop in messages
    arguments : declaration of each argument, in the order of the loop's parameters
    rules : see `compiled`
    """

    def __init__(
        self,
        title: str,
        arguments: dict[str, Part | Fields],
        rules: Sequence[str],
    ) -> None:
        self.title = title
        self.arguments = arguments
        self.parts: dict[str, Part] = {}  # arguments, with fields in place of named tuples
        for name, argument in arguments.items():
            parts = argument.fields if isinstance(argument, Fields) else {name: argument}
            twice = [part for part in parts if part in self.parts]
            if twice:
                raise TypeError(f"{title} has two arguments or fields {twice[0]!r}")
            self.parts |= parts
        arrays = {name: x for name, x in self.parts.items() if isinstance(x, Array)}
        for name in (*arguments, *self.parts):
            if any(name in x.axes for x in arrays.values()):
                raise TypeError(f"{name} is an argument of {title} and no axis")
        self.fixed = {
            axis: axis for x in arrays.values() for axis in x.axes if isinstance(axis, int)
        }
        indices = [
            f"(not {name}.size or 0 <= {name}.min() <= {name}.max() < {x.below})"
            for name, x in arrays.items()
            if x.below
        ]
        self.rules = [*indices, *rules]

    def entrance(self, loop: Loop) -> Loop:
        """Return a function that calls the loop if its arguments fit, and raises an error if not.

        A decode step enters some twenty loops per layer, and interpreting the declaration at every
        call would take as long as the loops. So the declaration is turned into the source code of
        one function without loops, as the standard library does for dataclasses.
        """

        def refused(*given: Any) -> Any:
            self.check(*given)
            return loop(*given)  # valid after all: a bool for an int, or a subclass

        call = f"({', '.join(self.arguments)})"
        lines = [f"def entrance{call}:"]
        scope: dict[str, Any] = {"np": np, "_array": np.ndarray, "_refused": refused, "_loop": loop}
        for name, argument in self.arguments.items():
            if isinstance(argument, Fields):
                scope[f"_{name}_kind"] = argument.kind
                lines.append(f" if type({name}) is not _{name}_kind: return _refused{call}")
                lines.append(f" {', '.join(argument.fields)}, = {name}")
        known: set[str | int] = set()
        last = sorted(  # optional arrays last: their axes must be known from other arguments
            self.parts.items(), key=lambda item: isinstance(item[1], Array) and item[1].optional
        )
        for name, part in last:
            if isinstance(part, Array):
                scope[f"_{name}_types"] = part.dtypes
                lines += _array_lines(name, part, known, f"return _refused{call}")
            else:
                lines.append(f" if type({name}) is not {part.__name__}: return _refused{call}")
        lines += [f" if not ({rule}): return _refused{call}" for rule in self.rules]
        lines.append(f" return _loop{call}")
        exec("\n".join(lines), scope)
        return scope["entrance"]

    def check(self, *given: Any) -> None:
        """Raise an error with a message for arguments that do not fit.

        Raises
        ------
        TypeError, ValueError
            See `compiled`.
        """
        values: list[Any] = []
        for (name, argument), value in zip(self.arguments.items(), given, strict=True):
            if isinstance(argument, Fields) and not isinstance(value, argument.kind):
                kind = argument.kind.__name__
                raise TypeError(f"{name} is {type(value).__name__}; must be {kind}")
            values += value if isinstance(argument, Fields) else [value]
        sizes: dict[Any, Any] = dict(self.fixed)
        for (name, part), value in zip(self.parts.items(), values, strict=True):
            if isinstance(part, Array):
                part.check(name, value, sizes)
            elif not isinstance(value, part):
                raise TypeError(f"{name} is {type(value).__name__}; must be {part.__name__}")
        sizes.update(zip(self.parts, values, strict=True))
        for rule in self.rules:
            condition = compile(rule, f"<rule of {self.title}>", "eval")
            if not eval(condition, {"np": np}, sizes):
                numbers = [
                    f"{name} = {sizes[name]}"
                    for name in condition.co_names
                    if isinstance(sizes.get(name), int)
                ]
                raise ValueError(
                    f"{self.title}: {rule} is not true with {', '.join(numbers) or 'these arrays'}"
                )


def _array_lines(name: str, array: Array, known: set[str | int], refuse: str) -> list[str]:
    """Return the source lines that check one array and bind the axes that are not known yet."""
    wrong = [f"type({name}) is not _array", f"{name}.dtype not in _{name}_types"]
    lines = [f" if {' or '.join(wrong)}: {refuse}"]
    wrong = [f"{name}.ndim != {len(array.axes)}"]
    wrong += [] if array.strided else [f"not {name}.flags.c_contiguous"]
    wrong += [f"not {name}.flags.writeable"] if array.written else []
    space = " "
    if array.optional:
        lines.append(f" if {name}.size:")
        space = "  "
    lines.append(f"{space}if {' or '.join(wrong)}: {refuse}")
    targets, compared = [], []
    for index, axis in enumerate(array.axes):
        new = isinstance(axis, str) and axis not in known
        targets.append(str(axis) if new else f"_{index}")
        if new:
            known.add(axis)
        else:
            compared.append(f"_{index} != {axis}")
    lines.append(f"{space}{', '.join(targets)}, = {name}.shape")
    if compared:
        lines.append(f"{space}if {' or '.join(compared)}: {refuse}")
    return lines
