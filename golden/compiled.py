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
from collections.abc import Callable
from types import CodeType
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
        When the declaration does not name the arguments of the loop; when called, for an argument
        of another type.
    ValueError
        When called, for arrays that do not fit, or where a rule is not kept.
    """

    def decorate(function: Loop) -> Loop:
        names = tuple(inspect.signature(function).parameters)
        if set(names) != set(arguments):
            raise TypeError(f"{function.__name__} has the arguments {', '.join(names)}")
        title = function.__name__.lstrip("_")
        expected = [(name, arguments[name]) for name in names]
        fixed = {
            axis: axis
            for _, argument in expected
            if isinstance(argument, Array)
            for axis in argument.axes
            if isinstance(axis, int)
        }
        indices = [
            f"not {name}.size or 0 <= {name}.min() <= {name}.max() < {argument.below}"
            for name, argument in expected
            if isinstance(argument, Array) and argument.below
        ]
        conditions = [compile(rule, f"<rule of {title}>", "eval") for rule in (*indices, *rules)]
        texts = (*indices, *rules)
        loop = numba.njit(cache=True)(function)

        @functools.wraps(function)
        def checked(*given: Any) -> Any:
            sizes: dict[Any, Any] = dict(fixed)
            for (name, argument), value in zip(expected, given, strict=True):
                if isinstance(argument, Array):
                    argument.check(name, value, sizes)
                elif not isinstance(value, argument):
                    raise TypeError(
                        f"{name} is {type(value).__name__}; must be {argument.__name__}"
                    )
            sizes.update(zip(names, given, strict=True))
            for text, condition in zip(texts, conditions, strict=True):
                if not eval(condition, {"np": np}, sizes):
                    raise ValueError(_broken(title, text, condition, sizes))
            return loop(*given)

        return checked

    return decorate


def loop_part(function: Loop) -> Loop:
    """Make a function that compiled loops call, and nobody else: it becomes a part of them."""
    return numba.njit(inline="always")(function)


def _broken(title: str, rule: str, condition: CodeType, sizes: dict[Any, Any]) -> str:
    """Which rule a call does not keep, and the numbers in it."""
    numbers = [
        f"{name} = {sizes[name]}" for name in condition.co_names if isinstance(sizes.get(name), int)
    ]
    return f"{title}: {rule} is not true with {', '.join(numbers) or 'these arrays'}"
