"""Integer rounding, saturation and select, as docs/contract.md defines them."""

from __future__ import annotations

from amaranth.hdl import Cat, Mux, Value, ValueLike
from amaranth.lib import data

__all__ = ["add_selected", "rshift_round", "saturate", "select", "triple"]


def rshift_round(value: Value, amount: Value) -> Value:
    """(value + 2**(amount-1)) >> amount; the value itself for amount 0."""
    doubled = Cat(0, value)
    if value.shape().signed:
        doubled = doubled.as_signed()
    return ((doubled >> amount) + 1) >> 1


def saturate(value: Value, bits: int) -> tuple[Value, Value]:
    """Clamp a signed value to `bits` bits; also whether that changed it."""
    if len(value) <= bits:
        return value, Value.cast(0)
    sign = value[-1]
    overflow = value[bits - 1 : -1] != sign.replicate(len(value) - bits)
    limit = Cat((~sign).replicate(bits - 1), sign)
    return Mux(overflow, limit, value[:bits]).as_signed(), overflow


def select(trit: data.View, value: Value) -> Value:
    """trit * value in ones' complement: the caller adds one for each negative trit.

    So that the correction of a whole plane is one count of its negative digits.
    """
    # unsigned throughout: mixing signs in a bitwise operator would widen the result
    bits = value.as_unsigned() if value.shape().signed else Cat(value, 0)
    passes = (trit.nonzero & ~trit.negative).replicate(len(bits))
    inverts = (trit.nonzero & trit.negative).replicate(len(bits))
    # one AND-OR gate a bit; of XOR and AND synthesis makes two
    return ((bits & passes) | (~bits & inverts)).as_signed()


def add_selected(total: Value, trit: data.View, value: Value) -> Value:
    """total + trit * value in the width of `total`, by one adder.

    The low bit carries the one of a negation in.
    """
    carry = trit.nonzero & trit.negative
    result = Cat(1, total).as_signed() + Cat(carry, select(trit, value)).as_signed()
    return result[1 : len(total) + 1].as_signed()


def triple(value: ValueLike, times: int = 1) -> Value:
    """3**times * value, by one add for each factor of nine and for one of three."""
    value = Value.cast(value)
    result = value
    for shift in (3,) * (times // 2) + (1,) * (times % 2):
        result = (result << shift) + result
    result = result[: len(value) + (3**times - 1).bit_length()]
    return result.as_signed() if value.shape().signed else result
