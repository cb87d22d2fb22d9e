"""The system's program: the C of a recorded decode, the compiler, and the memory's first words."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

import numpy as np

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.packing import DIGITS_PER_BYTE, scale_bytes
from kvtq_hw.contract.registers import c_header
from kvtq_hw.host.toolchain import riscv_compiler
from sim.host.c_driver import c_driver
from sim.soc.decode import Decode, Head, Job

__all__ = ["build_program", "decode_source", "memory_words"]

_FLAGS = (
    *(
        "-march=rv32im_zicsr",
        "-mabi=ilp32",
        "-O2",
        "-flto",
        "-std=c11",
        "-ffreestanding",
        "-nostdlib",
    ),
    *("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wsign-conversion", "-Wshadow", "-Werror"),
    # the driver's bus takes addresses as pointers; address 0 is memory here
    *("-fno-delete-null-pointer-checks", "-static", "-Wl,--build-id=none", "-Wl,-T,link.ld"),
)


def build_program(decode: Decode, headers: dict[str, str], folder: Path) -> bytes:
    """Compile the program of a decode in `folder`, and return the memory from address 0 on.

    Parameters
    ----------
    headers : of `sim.soc.system.System`

    Raises
    ------
    UserError
        When there is no compiler, or the program does not fit the memory.
    """
    compiler = riscv_compiler()
    firmware = resources.files("sim.soc") / "firmware"
    names = ("start.S", "memory.S", "main.c", "platform.c", "platform.h", "decode.h", "link.ld")
    texts = {name: (firmware / name).read_text("utf-8") for name in names}
    texts |= c_driver() | headers | {"kvtq_registers.h": c_header()}
    texts["decode.c"] = decode_source(decode)
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    (folder / "memory.bin").write_bytes(decode.memory.tobytes())
    sources = [name for name in texts if name.endswith((".c", ".S"))]
    _run([str(compiler.executable), *_FLAGS, "-o", "program.elf", *sources], folder)
    copy = str(compiler.executable).removesuffix("gcc") + "objcopy"
    _run([copy, "-O", "binary", "program.elf", "program.bin"], folder)
    return (folder / "program.bin").read_bytes()


def memory_words(config: EngineConfig, image: bytes) -> str:
    """Return an image as hexadecimal words of the memory, one per line."""
    size = config.memory_bits // 8
    padded = image + bytes(-len(image) % size)
    words = (padded[at : at + size][::-1].hex() for at in range(0, len(padded), size))
    return "".join(f"{word}\n" for word in words)


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        wrong = re.compile(r"error: (?!ld returned)|undefined reference|will not fit")
        reason = next(filter(wrong.search, lines), lines[-1])
        raise UserError(f"{Path(command[0]).name}: the program does not build: {reason}")


# --- C of a decode --------------------------------------------------------------------------------


def decode_source(decode: Decode) -> str:
    """Return the C of a decode; firmware/decode.h declares it."""
    config = decode.config
    lines = ["/* Made by sim/soc/program.py. */", '#include "decode.h"', ""]
    lines += [
        f"const struct kvtq_format decode_format = {{{config.memory_bits // 8}, "
        f"{DIGITS_PER_BYTE[config.packing]}, {scale_bytes(config)}}};",
        f"const uint32_t decode_tokens = {decode.tokens};",
        f"const uint32_t decode_packet_count = {len(decode.tables)};",
        f"const uint32_t decode_head_count = {len(decode.heads)};",
        f"const uint32_t decode_batch_count = {len(decode.batches)};",
        f"const uint32_t decode_memory_bytes = {len(decode.memory)};",
    ]
    for number, packet in enumerate(decode.tables):
        lines.append(_words(f"table_{number}", packet))
    packets = (f"{{table_{number}, {len(x)}}}" for number, x in enumerate(decode.tables))
    lines.append(_array("const struct decode_packet decode_packets", packets))
    heads = (_head(index, head) for index, head in enumerate(decode.heads))
    lines.append(_array("struct kvtq_head decode_heads", heads))
    batches, received = [], 0
    for number, batch in enumerate(decode.batches):
        lines.append(_array(f"static const struct decode_job jobs_{number}", map(_job, batch)))
        entry, lengths = [f"jobs_{number}", str(len(batch))], []
        for name, words in (("pairs", _pairs), ("queries", _queries), ("outputs", _outputs)):
            found = [word for job in batch for word in words(job)]
            lines.append(_words(f"{name}_{number}", found))
            entry.append(f"{name}_{number}")
            lengths.append(str(len(found)))
        received = max(received, len(found))  # the outputs come last
        batches.append(f"{{{', '.join(entry + lengths)}}}")
    lines.append(_array("const struct decode_batch decode_batches", batches))
    lines.append(f"uint32_t decode_received[{received}];")
    return "\n".join(lines) + "\n"


def _head(index: int, head: Head) -> str:
    code, tiers = head.code, head.code.tiers
    flags = {
        "residual": code.kind == "residual",
        "absmean": code.scale_choice == "absmean",
        "feedback": code.feedback,
    }
    numbers = {
        "key_digits": code.key_digits,
        "value_digits": code.value_digits,
        "tier_digits": code.tier,
        "sinks": tiers.sinks,
        "window": tiers.window,
        "sliding": tiers.sliding or 0,
    }
    spelled = ", ".join(f".{name} = {int(value)}" for name, value in (numbers | flags).items())
    return (
        f"{{.code = {{{spelled}}}, .table = {index}, "
        f".rotate = {int(head.rotate)}, .centre = {int(head.centre)}}}"
    )


def _job(job: Job) -> str:
    lists = {
        "query_exponent": job.query_exponent,
        "sink_maximum": job.sink_maximum,
        "sink_weight": job.sink_weight,
    }
    spelled = "".join(
        f", .{name} = {{{', '.join(map(str, numbers))}}}" for name, numbers in lists.items()
    )
    return (
        f"{{{job.head}, {{.tokens = {job.tokens}, .append = 1, .attend = 1, "
        f".first = {int(job.first)}, .value_exponent = {job.value_exponent}{spelled}}}}}"
    )


def _pairs(job: Job) -> Iterator[int]:
    """Yield the beats of a job's key and value: the key's element in the low half."""
    yield from _packed(job.vectors, 16, 1)


def _queries(job: Job) -> Iterator[int]:
    """Yield the words of a job's queries, whole words per beat."""
    yield from _packed(job.queries, 16, (16 * len(job.queries) + 31) // 32)


def _outputs(job: Job) -> Iterator[int]:
    """Yield the words of a job's outputs: per beat those of the query heads, and the exponent."""
    for beat in job.outputs.T.tolist():
        yield from (number & 0xFFFFFFFF for number in (*beat, job.exponent))


def _packed(vectors: np.ndarray, bits: int, words: int) -> Iterator[int]:
    """Yield beat after beat in `words` words: an element of each vector, the first lowest."""
    for beat in vectors.T.tolist():
        word = sum((number & (1 << bits) - 1) << bits * place for place, number in enumerate(beat))
        yield from (word >> 32 * place & 0xFFFFFFFF for place in range(words))


def _words(name: str, words: Iterable[int]) -> str:
    return _array(f"static const uint32_t {name}", (f"0x{word:x}" for word in words))


def _array(declaration: str, entries: Iterable[str]) -> str:
    return f"{declaration}[] = {{\n    " + ",\n    ".join(entries) + "\n};"
