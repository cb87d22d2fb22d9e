"""Records of random vectors: their bytes in memory, and their slices in the engine's streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.record_packer import pack_record
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.layout import Side
from kvtq_hw.contract.packing import vector_bytes
from sim.bench.stimulus import Together, Vectors, plain_trit_payloads, random_vectors

__all__ = ["Records", "random_records"]


@dataclass(frozen=True)
class Records:
    """Vectors stored one after the other in one format.

    planes, residual : planes per vector, and whether each plane is a run of its own
    data : uint8 [records, record bytes]
    """

    side: Side
    vectors: Vectors
    planes: int
    residual: bool
    data: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.data)

    def part(self, start: int, stop: int) -> Records:
        """Return records `start` to `stop` - 1."""
        vectors = Vectors(**{name: x[start:stop] for name, x in vars(self.vectors).items()})
        return Records(self.side, vectors, self.planes, self.residual, self.data[start:stop])

    def slices(self, config: EngineConfig) -> list[dict[str, Any]]:
        """Return the slices of all planes in the order of the engine's streams.

        Only unit planes have scales; the scale fields of other planes have no meaning.
        """
        together = self.vectors.together(self._planes_per_cycle(config))
        return [
            {"elements": elements, **flags}
            for group, flags in self._stream(together, together.elements(config))
            for elements in group
        ]

    def slice_counts(self, config: EngineConfig) -> list[int]:
        """Return the number of slices of each record."""
        counts = self.vectors.together(self._planes_per_cycle(config)).counts
        return (counts * config.slices).tolist()

    def _planes_per_cycle(self, config: EngineConfig) -> int:
        return config.key_planes_per_cycle if self.side == "key" else config.value_planes_per_cycle

    def coded_planes(self) -> list[dict[str, Any]]:
        """Return whole planes, in the order of `slices`."""
        single = self.vectors.together(1)
        return [
            {"trits": trits, **flags}
            for trits, flags in self._stream(single, single.digits[:, :, 0])
        ]

    def _stream(
        self, together: Together, trits: NDArray[np.int8]
    ) -> list[tuple[Any, dict[str, int]]]:
        """Return trits as payloads, and other fields, per group of planes in stream order."""
        digits = plain_trit_payloads(trits) if len(self) else []
        stream: list[tuple[Any, dict[str, int]]] = []
        for record, count in enumerate(together.counts.tolist()):
            order = list(range(count))
            if self.side == "key" and not self.residual:
                order.reverse()
            for number in order:
                unit = self.residual or number == 0
                flags = {"unit": int(unit), "last": int(number == order[-1])}
                if unit:
                    flags["fraction"] = int(together.fraction[record, number])
                    flags["exponent"] = int(together.exponent[record, number])
                stream.append((digits[record][number], flags))
        return stream


def random_records(
    rng: np.random.Generator,
    config: EngineConfig,
    side: Side,
    count: int,
    planes: int,
    residual: bool,
) -> Records:
    """Draw `count` random vectors, possibly 0, and pack them as records."""
    vectors = random_vectors(
        rng, config, [planes] * count, code="residual" if residual else "balanced"
    )
    if count:
        present = vectors.golden().map_tokens(lambda x, axis: x.narrow(axis + 1, 0, planes))
        data = pack_record(config, present, unit_first=side == "value").numpy()
    else:
        data = np.zeros((0, vector_bytes(config, planes, planes if residual else 1)), np.uint8)
    return Records(side, vectors, planes, residual, data)
