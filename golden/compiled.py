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
from typing import Any

import numba
import numpy as np
from numpy.typing import DTypeLike

__all__ = ["Array", "compiled", "loop_part"]

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


def compiled(*rules: str, **arguments: Array | type[int] | type[float]) -> Callable[[Loop], Loop]:
    """Compile a loop, and check its arguments before every call.

    Parameters
    ----------
    rules : Python expressions over names of axes and arguments (and `np`) that must be true
    arguments : what each argument of the loop must be; integers must fit 64 bits

    Raises
    ------
    TypeError
        When the declaration does not name the arguments of the loop, or an axis as one of them;
        when called, for an argument of another type.
    ValueError
        When called, for arrays that do not fit, or where a rule is not kept.
    """

    def decorate(function: Loop) -> Loop:
        names = tuple(inspect.signature(function).parameters)
        if set(names) != set(arguments):
            raise TypeError(f"{function.__name__} has the arguments {', '.join(names)}")
        for name in names:
            if any(name in x.axes for x in arguments.values() if isinstance(x, Array)):
                raise TypeError(f"{name} is an argument of {function.__name__} and no axis")
        declared = _Declared(
            function.__name__.lstrip("_"), {name: arguments[name] for name in names}, rules
        )
        loop = numba.njit(cache=True)(function)
        return functools.wraps(function)(declared.entrance(loop))

    return decorate


def loop_part(function: Loop) -> Loop:
    """Make a function that compiled loops call, and nobody else: it becomes a part of them."""
    return numba.njit(inline="always")(function)


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
        arguments: dict[str, Array | type[int] | type[float]],
        rules: Sequence[str],
    ) -> None:
        self.title = title
        self.arguments = arguments
        arrays = {name: x for name, x in arguments.items() if isinstance(x, Array)}
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
        """A function that calls the loop if its arguments fit, and else says what does not.

        A decode step enters some twenty loops a layer, and going through the declaration each time
        would take as long as their work. So the declaration is written down as the straight lines
        of one function, as the standard library does for dataclasses.
        """

        def refused(*given: Any) -> Any:
            self.check(*given)
            return loop(*given)  # bool for int, or a subclass: what is exact is only quicker

        call = f"({', '.join(self.arguments)})"
        lines = [f"def entrance{call}:"]
        scope: dict[str, Any] = {"np": np, "_array": np.ndarray, "_refused": refused, "_loop": loop}
        known: set[str | int] = set()
        last = sorted(  # the axes of what may be empty must be known from elsewhere
            self.arguments.items(), key=lambda item: isinstance(item[1], Array) and item[1].optional
        )
        for name, argument in last:
            if not isinstance(argument, Array):
                lines.append(f" if type({name}) is not {argument.__name__}: return _refused{call}")
                continue
            scope[f"_{name}_types"] = argument.dtypes
            wrong = [f"type({name}) is not _array", f"{name}.dtype not in _{name}_types"]
            lines.append(f" if {' or '.join(wrong)}: return _refused{call}")
            wrong = [f"{name}.ndim != {len(argument.axes)}"]
            wrong += [] if argument.strided else [f"not {name}.flags.c_contiguous"]
            wrong += [f"not {name}.flags.writeable"] if argument.written else []
            space = " "
            if argument.optional:
                lines.append(f" if {name}.size:")
                space = "  "
            lines.append(f"{space}if {' or '.join(wrong)}: return _refused{call}")
            targets, compared = [], []
            for index, axis in enumerate(argument.axes):
                new = isinstance(axis, str) and axis not in known
                targets.append(str(axis) if new else f"_{index}")
                if new:
                    known.add(axis)
                else:
                    compared.append(f"_{index} != {axis}")
            lines.append(f"{space}{', '.join(targets)}, = {name}.shape")
            if compared:
                lines.append(f"{space}if {' or '.join(compared)}: return _refused{call}")
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
        sizes: dict[Any, Any] = dict(self.fixed)
        for (name, argument), value in zip(self.arguments.items(), given, strict=True):
            if isinstance(argument, Array):
                argument.check(name, value, sizes)
            elif not isinstance(value, argument):
                raise TypeError(f"{name} is {type(value).__name__}; must be {argument.__name__}")
        sizes.update(zip(self.arguments, given, strict=True))
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
