"""A session of one captured attention: its planes in memory, its queries, its outputs."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch

from golden.cache.memory_image import MemoryImage
from golden.engine import attend
from golden.llm.capture import Captured, load_captured
from golden.planes import Planes
from kvtq_hw.contract.codes import CacheCode, CodeKind
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.layout import MemoryLayout, Side
from kvtq_hw.contract.tiers import Tiers
from sim.host.descriptors import HeadDescriptors
from sim.plain.session import Session

__all__ = ["captured_session"]

_BASE = 0x4000


def captured_session(config: EngineConfig, path: Path) -> Session:
    """Return a session in which an accelerator computes what a captured file holds.

    Queries, keys and values are already rotated, so the job rotates nothing and its outputs are
    those of the engine. The job appends nothing; a refused one follows it.

    Raises
    ------
    UserError
        When the file is no captured attention, or of another configuration; when today's golden
        model computes other outputs; when its tokens are not in the order sinks, body and window.
    """
    captured = load_captured(path)
    place = f"captured attention {str(path)!r}"
    for field, value in captured.config.model_dump(exclude={"name"}).items():
        if value != getattr(config, field):
            raise UserError(
                f"{place}: {field} is {value}, of configuration {config.name!r} "
                f"{getattr(config, field)}; must be the same"
            )
    expected = attend(
        config,
        captured.queries,
        captured.keys,
        captured.values,
        exponent=torch.tensor([captured.value_exponent]),
        learned_sinks=captured.learned_sinks,
    )
    if not torch.equal(expected.values[:, 0], captured.expected):
        raise UserError(f"{place}: the golden model of today gives other outputs")
    tokens = len(captured.key_depths)
    try:
        code = _code(captured)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None
    layout = MemoryLayout(config, [code], 1, tokens, _BASE)
    image = MemoryImage(layout)
    _write(image, captured)
    origin = f"layer {captured.layer}, KV head {captured.head}, step {captured.step}"
    session = Session(config, _BASE, f"the captured attention of {origin}, code {code}")
    session.before = session.after = image.data.numpy()
    descriptors = HeadDescriptors(layout, 0, 0, table=0, rotate=False, centre=False)
    job = descriptors.job(
        tokens,
        query_exponent=captured.queries.exponent[:, 0].tolist(),
        first=True,
        value_exponent=captured.value_exponent,
        learned_sinks=captured.learned_sinks,
    )
    session.start(job, queries=captured.queries.values[:, 0].numpy(), expected=expected)
    session.settle()
    session.refuse()
    return session


class _Kind(NamedTuple):
    """What the vectors of a token are: planes and runs of its key and of its value."""

    key_planes: int
    value_planes: int
    key_runs: int
    value_runs: int

    @property
    def in_tier(self) -> bool:
        """Whether sinks and window may have such vectors."""
        return self.key_planes == self.value_planes and self.key_runs == self.value_runs == 1

    @property
    def code(self) -> CodeKind | None:
        """The kind of code that the body has with such vectors."""
        if self.key_runs == self.value_runs == 1:
            return "balanced"
        if (self.key_runs, self.value_runs) == (self.key_planes, self.value_planes):
            return "residual"
        return None


def _code(captured: Captured) -> CacheCode:
    """Return a code that stores the captured tokens, anchors as sinks.

    Raises
    ------
    ValueError
        When there is none.
    """
    columns = (
        captured.key_depths,
        captured.value_depths,
        captured.keys.unit.sum(-1),
        captured.values.unit.sum(-1),
    )
    kinds = [_Kind(*row) for row in torch.stack(columns, -1).tolist()]
    groups = [(kind, len(list(same))) for kind, same in groupby(kinds)]
    sinks = groups.pop(0) if len(groups) > 1 and groups[0][0].in_tier else None
    window = groups.pop() if len(groups) > 1 and groups[-1][0].in_tier else None
    (body, _), *others = groups
    tiers = {kind for kind, _ in filter(None, (sinks, window))}
    if others or len(tiers) > 1 or body.code is None:
        raise ValueError("its tokens are in no code; must be sinks, body and window of one code")
    return CacheCode(
        body.code,
        body.key_planes,
        body.value_planes,
        Tiers(sinks[1] if sinks else 0, window[1] if window else 0),
        tiers.pop().key_planes if tiers else captured.config.max_planes,
    )


def _write(image: MemoryImage, captured: Captured) -> None:
    """Write the captured planes to their places in a memory of one KV head."""
    tokens = len(captured.key_depths)
    vectors: dict[Side, Planes] = {"key": captured.keys, "value": captured.values}
    for side, planes in vectors.items():
        spread, start = image.layout.codes[0].tiers.spread(tokens), 0
        for tier, region in image.layout.heads[0][0].of(side).regions.items():
            stop = start + getattr(spread, tier)
            part = (slice(start, stop), slice(region.digits))
            fields = (planes.digits, planes.unit, planes.fraction, planes.exponent)
            image.write(0, 0, side, tier, Planes(*(field[part] for field in fields)), tokens)
            start = stop
