"""Payload layouts of the streams between the memory port and the rest."""

from __future__ import annotations

from amaranth.hdl import unsigned
from amaranth.lib import data

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.packing import vector_bytes

__all__ = [
    "APPEND_BITS",
    "fetch_layout",
    "largest_record_bytes",
    "piece_layout",
    "place_layout",
    "read_job_layout",
    "word_layout",
]

#: Width of the append counters: less than ``2**APPEND_BITS / 2`` jobs may be under way.
APPEND_BITS = 4


def largest_record_bytes(config: EngineConfig) -> int:
    """Return the bytes of the longest record: `max_planes` planes, each with its own scale."""
    return vector_bytes(config, config.max_planes, config.max_planes)


def word_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of one word of the memory port."""
    return data.StructLayout({"data": unsigned(config.memory_bits)})


def piece_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of a piece: at most a block of consecutive records of one side.

    offset : byte of the first word at which the first record starts
    last_byte : where the last record ends, counted from the first byte of the first word
    records : number of records, 1 .. block
    planes : planes of each record, 1 .. max_planes
    residual : each plane is a run of its own; otherwise all planes are one
    value : the records are values; otherwise they are keys
    """
    word = config.memory_bits // 8
    return data.StructLayout(
        {
            "offset": range(word),
            "last_byte": range(word + config.block * largest_record_bytes(config)),
            "records": range(config.block + 1),
            "planes": range(config.max_planes + 1),
            "residual": 1,
            "value": 1,
        }
    )


def read_job_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of a job for the reader: which records its attention reads.

    key, value : addresses of the three regions (`kvtq_hw.contract.layout`), in the sinks of
        the first one that is read
    tier_digits : planes of records in sinks and window
    key_digits, value_digits, residual : format of the body
    sink_tokens, body_tokens, window_tokens : tokens of each tier, together at least 1; anchors are
        in the sinks
    window_start : slot of the window that is read first; nonzero only in a full window
    body_slot : slot of the body that the job's append writes, if it writes any
    new_anchor : the job's append writes the last record of the sinks
    appends : the job's newest records are in memory when this many appends are, modulo
        ``2**APPEND_BITS``
    """
    tokens = range(config.max_context + 1)
    digits = range(config.max_planes + 1)
    address = unsigned(config.address_bits)
    bases = data.StructLayout({"sinks": address, "body": address, "window": address})
    return data.StructLayout(
        {
            "key": bases,
            "value": bases,
            "tier_digits": digits,
            "key_digits": digits,
            "value_digits": digits,
            "residual": 1,
            "sink_tokens": tokens,
            "body_tokens": tokens,
            "window_tokens": tokens,
            "window_start": tokens,
            "body_slot": tokens,
            "new_anchor": 1,
            "appends": unsigned(APPEND_BITS),
        }
    )


def fetch_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of a fetch: the key and value records of a token that leaves the window.

    key_window, value_window : addresses of the windows
    slot : the token's slot in both windows
    digits : planes of each record
    appends : the records are in memory when this many appends are, modulo ``2**APPEND_BITS``
    """
    return data.StructLayout(
        {
            "key_window": unsigned(config.address_bits),
            "value_window": unsigned(config.address_bits),
            "slot": range(config.max_context),
            "digits": range(config.max_planes + 1),
            "appends": unsigned(APPEND_BITS),
        }
    )


def place_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of the place where a record is written.

    base : address of the region, word-aligned
    slot : number of the record within the region
    planes, residual : format of the region's records, and of this record
    """
    return data.StructLayout(
        {
            "base": unsigned(config.address_bits),
            "slot": range(config.max_context),
            "planes": range(config.max_planes + 1),
            "residual": 1,
        }
    )
