"""Schemas of the files that commands write with `--json`, for the sections that show the files."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from kvtq_hw.contract.errors import shown
from kvtq_hw.contract.files import Schema

__all__ = ["SCHEMAS", "RecordedFile"]

_Count = Annotated[int, Field(ge=0)]
_Number = Annotated[float, Field(ge=0)]


class _Config(Schema):
    name: str


class RecordedFile(Schema):
    """Base schema: the fields of every recorded file."""

    command: str
    config: _Config


class _Named(Schema):
    name: str


class _Quality(Schema):
    perplexity_ratio: PositiveFloat
    kld: float


class _NearMiss(Schema):
    lanes: PositiveInt
    um2: PositiveFloat
    cycles: PositiveInt
    allowed: PositiveInt


class _Engine(Schema):
    name: str
    code: str
    lanes: PositiveInt
    key_planes: PositiveInt
    value_planes: PositiveInt
    um2: PositiveFloat
    lane_um2: _Number
    blocks: Annotated[dict[str, _Number], Field(min_length=1)]
    cycles: PositiveInt
    effective_cycles: PositiveInt
    bytes: PositiveInt
    missed: _NearMiss | None
    quality: _Quality | None


class _Compare(RecordedFile):
    tokens: PositiveInt
    ways: dict[str, list[_Engine]]

    @model_validator(mode="after")
    def _check_int8(self) -> Self:
        for way, rows in self.ways.items():
            if all(row.name != "INT8" for row in rows):
                raise ValueError(f"ways: {shown(way)} has no row of INT8 to compare with")
        return self


class _Path(Schema):
    delay_ps: _Number
    fmax_mhz: _Number
    tool: str


class _Timing(RecordedFile):
    library: _Named
    paths: dict[str, _Path]


class _Family(Schema):
    family: str
    lut: _Count
    carry: _Count
    ff: _Count
    lutram: _Count
    bram: _Count
    dsp: _Count


class _Place(Schema):
    device: str
    logic_cells: _Count
    ff: _Count
    bram: _Count
    dsp: _Count
    fmax_mhz: _Number


class _Fpga(RecordedFile):
    block: str
    families: dict[str, _Family]
    place_and_route: dict[str, _Place]


class _SweepRow(Schema):
    """Schema of the columns that every row has; all other columns are swept fields."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, int | float | str | None]

    code: str
    um2: _Number
    cycles: PositiveInt
    bytes: PositiveInt
    bits_per_element: PositiveFloat
    perplexity_ratio: PositiveFloat | None


class _Sweep(RecordedFile):
    tokens: PositiveInt
    rows: Annotated[list[_SweepRow], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        swept = [(row.__pydantic_extra__ or {}).keys() for row in self.rows]
        for number, fields in enumerate(swept):
            if fields != swept[0]:
                raise ValueError(f"rows.{number}: has other columns than the first row")
        return self


class _Energy(Schema):
    toggles: _Count
    switching_pj: _Number
    clock_pj: _Number
    internal_pj: _Number
    total_pj: _Number


class _Slices(Schema):
    key: PositiveInt
    value: PositiveInt


class _Variant(Schema):
    config: _Config
    library: _Named
    cycles: PositiveInt
    slices: _Slices
    blocks: Annotated[dict[str, _Energy], Field(min_length=1)]
    total: _Energy


class _Power(RecordedFile):
    layer: _Count
    head: _Count
    step: _Count
    tokens: PositiveInt
    attentions_per_token: PositiveInt | None
    variants: dict[str, _Variant]


#: The schema of each command's file.
SCHEMAS: dict[str, type[RecordedFile]] = {
    "compare": _Compare,
    "fpga": _Fpga,
    "power": _Power,
    "sweep": _Sweep,
    "timing": _Timing,
}
