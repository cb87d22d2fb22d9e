"""The words of all schemas: a field of one name has one meaning, type and unit in every file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from kvtq_hw.contract.config import EngineConfig

__all__ = [
    "Bits",
    "Block",
    "ClockGate",
    "Code",
    "Command",
    "Config",
    "Generator",
    "Head",
    "Kld",
    "KvHeads",
    "LayerIndex",
    "Layers",
    "Library",
    "Log",
    "Model",
    "ModelFingerprint",
    "Output",
    "PerplexityRatio",
    "Simulator",
    "Sources",
    "Step",
    "Tag",
    "Tags",
    "Tokens",
    "Um2",
    "Waves",
    "Written",
    "about",
]


def about(meaning: str, unit: str = "") -> Any:
    """Describe a field: its meaning, and its unit if it has one."""
    return Field(description=meaning, json_schema_extra={"unit": unit} if unit else None)


class Output(BaseModel):
    """An object in a file of `--json`: these fields and no others."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


Bits = Annotated[float, about("stored bits per cached element, everything included", "bit")]
Block = Annotated[str | None, about("the measured block; null for the whole engine")]
ClockGate = Annotated[str | None, about("cell of the clock gates; null without clock gates")]
Code = Annotated[str, about("the cache format, as `--code` spells it")]
Command = Annotated[str, about("the command line, with what decides the numbers")]
Config = Annotated[EngineConfig, about("the configuration: every field of `EngineConfig`")]
Generator = Annotated[str, about("versions of kvtq-hw, Amaranth and Yosys")]
Head = Annotated[int, about("index of the KV head")]
Kld = Annotated[float, about("Kullback-Leibler divergence from the unquantized model, mean", "nat")]
KvHeads = Annotated[int, about("KV heads per layer")]
LayerIndex = Annotated[int, about("index of the layer")]
Layers = Annotated[int, about("layers of the model")]
Log = Annotated[str, about("file with the simulator's output")]
Model = Annotated[str, about("name of the model")]
ModelFingerprint = Annotated[str, about("SHA-256 of the weights")]
PerplexityRatio = Annotated[float, about("perplexity divided by the unquantized model's")]
Simulator = Annotated[str, about("the simulator")]
Sources = Annotated[str, about("digest of the hardware's sources and of what maps them")]
Step = Annotated[int, about("decode step; 0 is the first after the prompt")]
Tag = Annotated[str, about("measured, derived or projected")]
Tags = Annotated[dict[str, str], about("measured, derived or projected, by field")]
Tokens = Annotated[int, about("tokens in the cache", "token")]
Um2 = Annotated[float, about("area of the cells, memories aside", "um^2")]
Waves = Annotated[str | None, about("file of the waves; null without `--waves`")]
Written = Annotated[str, about("the written file")]


class Library(Output):
    """A library of cells."""

    name: Annotated[str, about("its name in its text")]
    source: Annotated[str, about("its file, or `shipped`")]
