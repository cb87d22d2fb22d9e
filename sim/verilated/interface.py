"""The structures that Python and the C++ of verilated designs exchange, described once for both.

Python passes the structures below through ctypes. `sim.verilated.header` generates their C++ header
when a design is built, so every field is declared here only::

    call = EngineCall(query=stream(words), ..., cycle_limit=1000)

Arrays are passed by `pointer`, which checks their type; the caller keeps them alive during the
call.
"""

from __future__ import annotations

import ctypes
from enum import Enum, IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtl.axi import Response
from rtl.layouts import counters_layout

__all__ = [
    "ENUMERATIONS",
    "STRUCTURES",
    "UNIT",
    "AcceleratorCall",
    "Access",
    "AccessKind",
    "AppendPathCall",
    "EngineCall",
    "Memory",
    "Packets",
    "Program",
    "Stream",
    "packets",
    "pointer",
    "stream",
    "units",
]

_u8, _i8, _u32, _u64 = ctypes.c_uint8, ctypes.c_int8, ctypes.c_uint32, ctypes.c_uint64

#: Fixed-point 1 of probabilities and of words per cycle.
UNIT = 256


class AccessKind(IntEnum):
    """Kind of a register access.

    AWAIT reads until ``word & mask == data``, AWAIT_OTHER until ``word & mask != data``.
    """

    WRITE = 0
    READ = 1
    AWAIT = 2
    AWAIT_OTHER = 3


class Stream(ctypes.Structure):
    """Payloads of one stream of a design.

    payloads : payloads of `words` 32-bit words each
    stall : stall probability per cycle, in units of 1 / `UNIT`
    count : payloads to send or to receive
    done : result, payloads transferred, including received payloads beyond `count`
    cycles : result, clock cycle of each transfer; may be null
    """

    _fields_ = (
        ("payloads", ctypes.POINTER(_u32)),
        ("words", _u32),
        ("stall", _u32),
        ("count", _u64),
        ("done", _u64),
        ("cycles", ctypes.POINTER(_u64)),
    )


class EngineCall(ctypes.Structure):
    """Jobs of the engine, back to back, as the engine's streams by name.

    seed : seed of the random stalls
    cycles : result, clock cycles of this call
    counters : result, the engine's counters, in the order of `rtl.layouts.counters_layout`
    """

    _fields_ = (
        ("job", Stream),
        ("value_exponent", Stream),
        ("query", Stream),
        ("keys", Stream),
        ("values", Stream),
        ("output", Stream),
        ("seed", _u64),
        ("cycle_limit", _u64),
        ("cycles", _u64),
        ("counters", _u32 * len(counters_layout().members)),
    )


class AppendPathCall(ctypes.Structure):
    """Tasks of the append path, back to back, and the tables of one head.

    factors : `matrix_words` words of the feedback matrix, each of `factor_words` 32-bit words
    matrix_words : number of words in `factors`
    shifts, centre : [D]; elements of the centre have 16 bits
    seed, cycles : as in `EngineCall`
    """

    _fields_ = (
        ("task", Stream),
        ("vectors", Stream),
        ("leaving", Stream),
        ("records", Stream),
        ("written", Stream),
        ("factors", ctypes.POINTER(_u32)),
        ("factor_words", _u32),
        ("matrix_words", _u32),
        ("shifts", ctypes.POINTER(_u32)),
        ("centre", ctypes.POINTER(_u32)),
        ("head_dim", _u32),
        ("seed", _u64),
        ("cycle_limit", _u64),
        ("cycles", _u64),
    )


class Memory(ctypes.Structure):
    """The memory behind AXI: its bytes and its timing.

    bytes : bytes at addresses base .. base + size - 1
    latency : cycles from an address to its first word, or from a write to its response
    words_per_cycle : words per cycle, reads and writes together, in units of 1 / `UNIT`
    refresh_interval : cycles between the starts of two refreshes; 0: no refresh
    refresh_cycles : cycles of a refresh, in which no word moves
    outstanding : bursts that the memory accepts ahead
    """

    _fields_ = (
        ("bytes", ctypes.POINTER(_u8)),
        ("base", _u64),
        ("size", _u64),
        ("latency", _u32),
        ("words_per_cycle", _u32),
        ("refresh_interval", _u32),
        ("refresh_cycles", _u32),
        ("outstanding", _u32),
    )


class Access(ctypes.Structure):
    """One access to a register.

    kind : an `AccessKind`
    data : the word to write or to await; result, the word that was read
    """

    _fields_ = (("kind", _u32), ("address", _u32), ("data", _u32), ("mask", _u32))


class Program(ctypes.Structure):
    """Accesses to registers, one after the other.

    done : result, number of accesses that have ended
    """

    _fields_ = (("accesses", ctypes.POINTER(Access)), ("count", _u64), ("done", _u64))


class Packets(ctypes.Structure):
    """Beats of an AXI stream.

    words, last, user : TDATA in 32-bit words, TLAST and TUSER of each beat; null without TUSER
    count, done : as in `Stream`
    """

    _fields_ = (
        ("words", ctypes.POINTER(_u32)),
        ("last", ctypes.POINTER(_u8)),
        ("user", ctypes.POINTER(_i8)),
        ("count", _u64),
        ("done", _u64),
    )


class AcceleratorCall(ctypes.Structure):
    """Register accesses and streams of the accelerator, by name.

    cycles : result, clock cycles of this call
    """

    _fields_ = (
        ("memory", Memory),
        ("registers", Program),
        ("key_value", Packets),
        ("query", Packets),
        ("table", Packets),
        ("output", Packets),
        ("cycle_limit", _u64),
        ("cycles", _u64),
    )


#: All structures above; each follows the structures that it contains.
STRUCTURES: tuple[type[ctypes.Structure], ...] = (
    Stream,
    EngineCall,
    AppendPathCall,
    Memory,
    Access,
    Program,
    Packets,
    AcceleratorCall,
)

#: Enumerations that the C++ header declares.
ENUMERATIONS: tuple[type[Enum], ...] = (AccessKind, Response)


def pointer(array: NDArray[Any], kind: Any) -> Any:
    """Return a pointer to an array's first element, valid as long as the array lives.

    Raises
    ------
    TypeError
        When the array's elements are not of `kind`, a type of ctypes, or not contiguous.
    """
    if array.dtype != np.dtype(kind) or not array.flags.c_contiguous:
        raise TypeError(f"the array of {array.dtype} must be contiguous and of {np.dtype(kind)}")
    return array.ctypes.data_as(ctypes.POINTER(kind))


def units(fraction: float) -> int:
    """Return a probability, or words per cycle, in units of 1 / `UNIT`."""
    return round(UNIT * fraction)


def stream(
    payloads: NDArray[np.uint32], stall: float = 0, cycles: NDArray[np.uint64] | None = None
) -> Stream:
    """Return a stream that sends an array of payloads, or that fills it with received payloads.

    Parameters
    ----------
    payloads : uint32 [count, words]
    stall : probability that the stream waits in a cycle
    cycles : uint64 [count], filled with the clock cycle of each transfer
    """
    count, words = payloads.shape
    when = None if cycles is None else pointer(cycles, _u64)
    return Stream(pointer(payloads, _u32), words, units(stall), count, 0, when)


def packets(
    words: NDArray[np.uint32], last: NDArray[np.uint8], user: NDArray[np.int8] | None = None
) -> Packets:
    """Return beats to send from, or receive into: uint32 [beats, words], TLAST and TUSER."""
    user_pointer = None if user is None else pointer(user, _i8)
    return Packets(pointer(words, _u32), pointer(last, _u8), user_pointer, len(words), 0)
