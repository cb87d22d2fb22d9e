"""Integer rounding, saturation and select, as docs/contract.md defines them."""

from __future__ import annotations

from amaranth.hdl import Cat, Mux, Value, ValueLike
from amaranth.lib import data

__all__ = ["add_selected", "rshift_round", "saturate", "select", "triple"]


def rshift_round(value: Value, amount: Value) -> Value:
    """Return (value + 2**(amount-1)) >> amount; the value itself for amount 0."""
    doubled = Cat(0, value)
    if value.shape().signed:
        doubled = doubled.as_signed()
    return ((doubled >> amount) + 1) >> 1


def saturate(value: Value, bits: int) -> tuple[Value, Value]:
    """Clamp a signed value to `bits` bits; also return whether clamping changed the value."""
    if len(value) <= bits:
        return value, Value.cast(0)
    sign = value[-1]
    overflow = value[bits - 1 : -1] != sign.replicate(len(value) - bits)
    limit = Cat((~sign).replicate(bits - 1), sign)
    return Mux(overflow, limit, value[:bits]).as_signed(), overflow


def select(trit: data.View, value: Value) -> Value:
    """Return trit * value in ones' complement: the caller adds one for each negative trit.

    The correction of a whole plane is then one count of its negative digits.
    """
    # unsigned throughout: mixing signs in a bitwise operator would widen the result
    bits = value.as_unsigned() if value.shape().signed else Cat(value, 0)
    passes = (trit.nonzero & ~trit.negative).replicate(len(bits))
    inverts = (trit.nonzero & trit.negative).replicate(len(bits))
    # one AND-OR gate per bit; from XOR and AND synthesis would make two
    return ((bits & passes) | (~bits & inverts)).as_signed()


def add_selected(total: Value, trit: data.View, value: Value) -> Value:
    """Return total + trit * value in the width of `total`, by one adder.

    An extra low bit carries in the one of a negation.
    """
    carry = trit.nonzero & trit.negative
    result = Cat(1, total).as_signed() + Cat(carry, select(trit, value)).as_signed()
    return result[1 : len(total) + 1].as_signed()


def triple(value: ValueLike, times: int = 1) -> Value:
    """Return 3**times * value, by one adder per factor of nine and one for a factor of three."""
    value = Value.cast(value)
    result = value
    for shift in (3,) * (times // 2) + (1,) * (times % 2):
        result = (result << shift) + result
    result = result[: len(value) + (3**times - 1).bit_length()]
    return result.as_signed() if value.shape().signed else result
