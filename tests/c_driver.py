"""The driver in C, compiled for this machine and called by ctypes: structures, compiler, bus."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from ctypes import POINTER, c_bool, c_int8, c_int32, c_uint32, c_uint64, c_void_p
from enum import IntEnum
from pathlib import Path
from typing import Protocol

from needs import missing

from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.packing import DIGITS_PER_BYTE, scale_bytes
from kvtq_hw.contract.registers import c_header, register_map
from sim.host.c_driver import c_driver

__all__ = [
    "FLAGS", "FUNCTIONS", "Bus", "Device", "Failure", "Head", "Job", "Memory", "Result", "Step",
    "attach", "code_of", "compilers", "device_of", "format_of", "load", "words_of", "write_sources",
]  # fmt: skip

FLAGS = [
    "-std=c11", "-ffreestanding", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion",
    "-Wsign-conversion", "-Wshadow", "-Wundef", "-Werror",
]  # fmt: skip
FIRST, LAST = (register_map()[name].address for name in ("job_flags", "anchor_threshold"))
WORDS = (LAST - FIRST) // 4 + 1


class Result(IntEnum):
    """`enum kvtq_result`, in its order."""

    OK = 0
    IDENTITY = 1
    VERSION = 2
    TIMEOUT = 3
    QUEUE_FULL = 4
    CODE = 5
    TOKENS = 6
    RANGE = 7
    ALIGNMENT = 8
    MEMORY = 9
    JOB = 10
    OVERRUN = 11


READ = ctypes.CFUNCTYPE(c_uint32, c_void_p, c_uint32)
WRITE = ctypes.CFUNCTYPE(None, c_void_p, c_uint32, c_uint32)


class _Bus(ctypes.Structure):
    _fields_ = (("read32", READ), ("write32", WRITE), ("context", c_void_p))


class Device(ctypes.Structure):
    _fields_ = (
        ("bus", _Bus),
        *((name, c_uint32) for name in ("polls", "head_dim", "query_group", "max_planes")),
        ("max_context", c_uint32),
        ("started", c_uint32),
        ("written", c_uint32 * WORDS),
    )


class Code(ctypes.Structure):
    _fields_ = (
        *((name, c_uint32) for name in ("key_digits", "value_digits", "tier_digits")),
        *((name, c_uint32) for name in ("sinks", "window", "sliding", "anchors")),
        *((name, c_bool) for name in ("residual", "absmean", "feedback")),
    )


class Format(ctypes.Structure):
    _fields_ = tuple((name, c_uint32) for name in ("word_bytes", "digits_per_byte", "scale_bytes"))


class Memory(ctypes.Structure):
    _fields_ = (("next", c_uint64), ("end", c_uint64))


class Region(ctypes.Structure):
    _fields_ = (("base", c_uint64), ("record_bytes", c_uint32))


class Vectors(ctypes.Structure):
    _fields_ = tuple((name, Region) for name in ("sinks", "body", "window"))


class Head(ctypes.Structure):
    _fields_ = (
        ("code", Code),
        ("table", c_uint32),
        ("anchor_threshold", c_uint32),
        ("rotate", c_bool),
        ("centre", c_bool),
        ("key", Vectors),
        ("value", Vectors),
    )


class Step(ctypes.Structure):
    _fields_ = (
        ("tokens", c_uint32),
        *((name, c_bool) for name in ("append", "attend", "first")),
        ("value_exponent", c_uint32),
        ("query_exponent", c_int8 * 8),
        ("sink_maximum", c_int32 * 8),
        ("sink_weight", c_uint32 * 8),
    )


class Job(ctypes.Structure):
    _fields_ = (("words", c_uint32 * WORDS),)


class Failure(ctypes.Structure):
    _fields_ = (("job", c_uint32), ("status", c_uint32))


_DEVICE = POINTER(Device)
#: Result and arguments of each function.
FUNCTIONS = {
    "kvtq_open": (Result, [_DEVICE]),
    "kvtq_forget": (Result, [_DEVICE]),
    "kvtq_place_head": (
        Result,
        [_DEVICE, POINTER(Format), c_uint32, POINTER(Memory), POINTER(Head)],
    ),
    "kvtq_describe": (Result, [_DEVICE, POINTER(Head), POINTER(Step), POINTER(Job)]),
    "kvtq_start": (Result, [_DEVICE, POINTER(Job)]),
    "kvtq_wait": (Result, [_DEVICE]),
    "kvtq_idle": (c_bool, [_DEVICE]),
    "kvtq_status": (Result, [_DEVICE, POINTER(Failure)]),
    "kvtq_interrupt_enable": (None, [_DEVICE, c_uint32]),
    "kvtq_interrupts": (c_uint32, [_DEVICE]),
    "kvtq_interrupt_clear": (None, [_DEVICE, c_uint32]),
    "kvtq_counter": (c_uint32, [_DEVICE, c_uint32]),
}


class Bus(Protocol):
    """Registers that a device's callbacks reach."""

    def read(self, address: int) -> int: ...

    def write(self, address: int, word: int) -> None: ...


def attach(device: Device, bus: Bus) -> Device:
    """Let a device reach its registers by `bus`."""
    device.bus.read32 = READ(lambda _, address: bus.read(address))
    device.bus.write32 = WRITE(lambda _, address, word: bus.write(address, word))
    return device


def compilers() -> list[str]:
    """Names of the C compilers on PATH."""
    found = [name for name in ("gcc", "clang") if shutil.which(name)]
    if not found:
        missing("simulators", "no C compiler on PATH; Debian and Ubuntu: sudo apt install gcc")
    return found


def write_sources(folder: Path) -> None:
    """Write the driver as `kvtq-hw generate` does."""
    for name, text in {"kvtq_registers.h": c_header(), **c_driver()}.items():
        (folder / name).write_text(text, "utf-8")


def load(folder: Path) -> ctypes.CDLL:
    """Compile the driver in `folder` and declare its functions."""
    write_sources(folder)
    command = [
        compilers()[0],
        *FLAGS,
        "-O2",
        "-shared",
        "-fPIC",
        "kvtq_driver.c",
        "-o",
        "driver.so",
    ]
    subprocess.run(command, cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "driver.so"))
    for name, (result, arguments) in FUNCTIONS.items():
        function = library[name]
        setattr(library, name, function)
        function.restype, function.argtypes = result, arguments
    return library


# --- structures of what Python has ----------------------------------------------------------------


def code_of(code: CacheCode) -> Code:
    """A code as a firmware would spell it."""
    tiers = code.tiers
    return Code(
        code.key_digits,
        code.value_digits,
        code.tier,
        tiers.sinks,
        tiers.window,
        tiers.sliding or 0,
        tiers.anchors,
        code.kind == "residual",
        code.scale_choice == "absmean",
        code.feedback,
    )


def format_of(config: EngineConfig) -> Format:
    """The format of a configuration's records."""
    return Format(config.memory_bits // 8, DIGITS_PER_BYTE[config.packing], scale_bytes(config))


def device_of(config: EngineConfig) -> Device:
    """A device as `kvtq_open` leaves it, without a bus."""
    return Device(
        head_dim=config.head_dim,
        query_group=config.query_group,
        max_planes=config.max_planes,
        max_context=config.max_context,
    )


def words_of(job: Job) -> dict[int, int]:
    """Words of a job's descriptor by address; addresses without a register are left out."""
    places = (
        register.address + 4 * index
        for register in register_map().values()
        for index in range(register.count)
    )
    return {at: job.words[(at - FIRST) // 4] for at in places if FIRST <= at <= LAST}
