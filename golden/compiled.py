"""The door to every loop that Numba compiles: arguments are checked before they go in.

A compiled loop trusts its arguments: where an index leaves an array it reads or writes whatever
lies there in the process. So `compiled` declares for each argument of a loop what it must be, and
for all of them together which indices the loop makes of them, and looks before every call::

    @compiled("0 <= start <= capacity - tokens", data=Array(np.uint8, "capacity", written=True),
              x=Array(np.uint8, "tokens"), start=int)
    def _copy(x, data, start):
        for t in range(x.shape[0]):
            data[start + t] = x[t]

Nothing else in the project imports Numba (`tests/test_house.py`), so there is no other way in.
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

numba.config.SLP_VECTORIZE = 1  # makes operations on a few neighbours one vector operation

Loop = Callable[..., Any]


class Array:
    """What an array argument must be.

    Parameters
    ----------
    dtype : its type, or the types that it may have
    axes : a name, or a size, for each axis; a name stands for one size in all arguments of a loop
    written : the loop writes to it, so that it must be writeable
    strided : the loop takes any layout; otherwise the array must be C-contiguous
    optional : it may be empty instead, whatever its axes
    below : a number, or an axis of any argument, that all its numbers are indices below
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
        """Compare an argument with what it must be, and note the sizes of its axes.

        Raises
        ------
        TypeError
            When it is no array, or one of another type.
        ValueError
            When its shape does not fit, or its layout.
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
    """What an argument must be that is a named tuple: each of its fields on its own.

    Parameters
    ----------
    kind : its type
    fields : what each field must be; rules and axes name fields as they name arguments

    Raises
    ------
    TypeError
        When these are not the fields of the type.
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
    arguments : what each argument of the loop must be; integers must fit 64 bits

    Raises
    ------
    TypeError
        When the declaration does not name the arguments of the loop, or gives one name to two
        arguments, fields or an axis; when called, for an argument of another type.
    ValueError
        When called, for arrays that do not fit, or where a rule is not kept.
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
    """Make a function that compiled loops call, and nobody else: it becomes a part of them."""
    return numba.njit(function)


class _Declared:
    """What a loop's arguments must be, in two forms: a quick one, and one that says what is wrong.

    Parameters
    ----------
    title : name of the loop in messages
    arguments : what each must be, in their order
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
        self.parts: dict[str, Part] = {}  # the same with fields in the place of their tuples
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
        """Make a function that calls the loop if its arguments fit, and else says what does not.

        A decode step enters some twenty loops per layer, and going through the declaration every
        time would take as long as their work. So the declaration is written down as the straight
        lines of one function, as the standard library does for dataclasses.
        """

        def refused(*given: Any) -> Any:
            self.check(*given)
            return loop(*given)  # bool for int, or a subclass: what is exact is only quicker

        call = f"({', '.join(self.arguments)})"
        lines = [f"def entrance{call}:"]
        scope: dict[str, Any] = {"np": np, "_array": np.ndarray, "_refused": refused, "_loop": loop}
        for name, argument in self.arguments.items():
            if isinstance(argument, Fields):
                scope[f"_{name}_kind"] = argument.kind
                lines.append(f" if type({name}) is not _{name}_kind: return _refused{call}")
                lines.append(f" {', '.join(argument.fields)}, = {name}")
        known: set[str | int] = set()
        last = sorted(  # the axes of what may be empty must be known from elsewhere
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
        """Refuse arguments that do not fit, in words.

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
    """Lines of an entrance that look at one array, and name the axes that are not known yet."""
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
