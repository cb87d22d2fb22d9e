"""The manifest that goes with generated Verilog: ports, payload fields, widths and latencies."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Shape, ShapeLike
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import Flow

from kvtq_hw.contract.config import EngineConfig
from rtl.axi import BusSignature
from rtl.blocks import create_block
from rtl.reset import Reset
from rtl.verilog import generator_version, port_members

__all__ = ["manifest"]


def manifest(
    component: wiring.Component,
    name: str,
    config: EngineConfig,
    files: list[str],
    reset: Reset = Reset.SYNC_HIGH,
) -> dict[str, Any]:
    """Describe a generated engine, as plain values for JSON.

    Keys: ``generator``, ``license`` (of the Verilog, in SPDX's spelling), ``top``,
    ``configuration`` (every field), ``digest``, ``derived`` (every width that follows from the
    configuration), ``clock``, ``reset``, ``ports`` (in the order of the Verilog), ``streams``,
    ``buses`` (AXI ports, by the prefix of their ports' names; a manager or the source of a stream
    is "out"), ``signals`` (all other ports), ``latencies`` in cycles, ``files``. Fields of a
    payload have ``offset`` and ``width`` in bits, counted from the least significant bit.
    """
    ports = [
        {"name": "clk", "direction": "in", "width": 1},
        {"name": reset.port, "direction": "in", "width": 1},
    ]
    for port, member in port_members(component).items():
        width = Shape.cast(member.shape).width
        if width:
            ports.append({"name": port, "direction": _direction(member.flow), "width": width})
    streams, signals, buses = [], [], []
    for port, member in component.signature.members.items():
        entry: dict[str, Any] = {"name": port, "direction": _direction(member.flow)}
        if member.is_port:
            if Shape.cast(member.shape).width:
                signals.append(entry | _describe(member.shape))
        elif isinstance(member.signature, stream.Signature):
            payload = member.signature.members["payload"].shape
            handshake = {part: f"{port}__{part}" for part in ("valid", "ready", "payload")}
            streams.append(entry | handshake | _describe(payload))
        elif isinstance(member.signature, BusSignature):
            protocol = type(
                member.signature.flip() if entry["direction"] == "in" else member.signature
            )
            buses.append(entry | {"protocol": protocol.__name__})
    return {
        "generator": generator_version(),
        "license": "Apache-2.0",
        "top": name,
        "configuration": config.model_dump(),
        "digest": config.digest(),
        "derived": _derived(config),
        "clock": {"port": "clk", "edge": "rising"},
        "reset": {"port": reset.port, "active": reset.active, "synchronous": reset.synchronous},
        "ports": ports,
        "streams": streams,
        "buses": buses,
        "signals": signals,
        "latencies": _latencies(config),
        "files": files,
    }


def _derived(config: EngineConfig) -> dict[str, int]:
    """Return every number that the configuration derives."""
    names = [name for name, item in vars(EngineConfig).items() if isinstance(item, property)]
    return {name: getattr(config, name) for name in names if not name.startswith("_")}


def _latencies(config: EngineConfig) -> dict[str, int]:
    """Return the cycles through each block, as the block's own documentation defines them."""
    normalizer = create_block("normalizer", config)
    return {
        "key_lanes": create_block("key_lanes", config).latency,
        "plane_scaler": create_block("plane_scaler", config).LATENCY,
        "online_softmax": create_block("online_softmax", config).LATENCY,
        "weight_scaler": create_block("weight_scaler", config).LATENCY,
        "value_lanes_add": 1,
        "value_lanes_rescale": 1 + config.slices * config.rescale_steps,
        "normalizer_reciprocal": normalizer.reciprocal_latency,
        "normalizer": normalizer.LATENCY,
    }


def _direction(flow: Flow) -> str:
    return "in" if flow is Flow.In else "out"


def _describe(shape: ShapeLike) -> dict[str, Any]:
    """Return the width of a shape, and its fields, or its elements' shape and number."""
    plain = Shape.cast(shape)
    try:
        layout = data.Layout.cast(shape)
    except TypeError:
        return {"width": plain.width, "signed": plain.signed}
    if isinstance(layout, data.ArrayLayout):
        return {
            "width": plain.width,
            "count": layout.length,
            "element": _describe(layout.elem_shape),
        }
    fields = [
        {"name": key, "offset": field.offset} | _describe(field.shape) for key, field in layout
    ]
    return {"width": plain.width, "fields": [field for field in fields if field["width"]]}
