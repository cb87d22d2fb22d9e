"""Random tasks for the verilated append path, with the golden model's results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from golden.append_path import condition, records
from golden.dequantizer import dequantize
from golden.feedback import Feedback
from golden.planes import Planes
from golden.quantizer import BALANCED_RATIOS, quantize
from kvtq_hw.contract.config import VECTOR_MAX, EngineConfig
from sim.bench.vector_code import VectorCode
from sim.verilated.append_path import AppendRun, VerilatedAppendPath

__all__ = ["AppendTask", "leaving_tasks", "new_tasks", "random_vectors", "run_tasks"]


@dataclass(frozen=True)
class AppendTask:
    """One task with its expected results.

    vector : int64 [D], a new vector of 16-bit elements; None for a leaving vector
    planes : fields of `coded_plane_layout`, arrays [planes, ...], of a leaving vector
    """

    code: VectorCode
    centre: bool
    rotate: bool
    vector: NDArray[np.int64] | None
    planes: dict[str, Any] | None
    record: NDArray[np.uint8]
    exponent: int


def random_vectors(rng: np.random.Generator, config: EngineConfig, count: int) -> NDArray[np.int64]:
    """Draw 16-bit vectors [N, D] of any magnitude: Gaussian, sparse, one-hot or constant."""
    dim = config.head_dim
    sizes = 2.0 ** rng.uniform(0, 16, (count, 1))
    shapes = np.stack(
        [
            rng.normal(0, 0.5, (count, dim)),
            rng.integers(-3, 4, (count, dim)) / 3,
            np.eye(dim)[rng.integers(dim, size=count)],
            np.repeat(rng.choice([-1.0, 1.0], (count, 1)), dim, axis=1),
        ]
    )
    kind = rng.choice(4, size=count, p=[0.6, 0.3, 0.05, 0.05])
    chosen = shapes[kind, np.arange(count)]
    return np.clip(np.round(sizes * chosen), -(1 << 15), VECTOR_MAX).astype(np.int64)


def new_tasks(
    config: EngineConfig,
    code: VectorCode,
    vectors: NDArray[np.int64],
    matrices: Feedback,
    centre: NDArray[np.int64] | None,
    rotate: bool,
) -> list[AppendTask]:
    """Return tasks for new vectors [N, D]."""
    subtracted = None if centre is None else torch.from_numpy(centre)
    conditioned = condition(torch.from_numpy(vectors), subtracted, rotate)
    data, exponents = _expected(config, code, conditioned, matrices)
    return [
        AppendTask(code, centre is not None, rotate, vector, None, record, int(exponent))
        for vector, record, exponent in zip(vectors, data, exponents, strict=True)
    ]


def leaving_tasks(
    config: EngineConfig,
    code: VectorCode,
    vectors: NDArray[np.int64],
    digits: int,
    matrices: Feedback,
) -> list[AppendTask]:
    """Return tasks for leaving vectors [N, D], already rotated and quantized to `digits` digits."""
    conditioned = condition(torch.from_numpy(vectors), None, True)
    ratio = BALANCED_RATIOS[digits - 1]
    planes = quantize(config, conditioned, "balanced", digits, "absmean", ratio=ratio)
    data, exponents = _expected(config, code, dequantize(config, planes), matrices)
    return [
        AppendTask(code, False, False, None, _fields(planes, n, code.unit_first), record, int(e))
        for n, (record, e) in enumerate(zip(data, exponents, strict=True))
    ]


def run_tasks(
    path: VerilatedAppendPath,
    tasks: Sequence[AppendTask],
    matrices: Feedback,
    centre: NDArray[np.int64],
    stalls: Sequence[float] = (0, 0, 0, 0, 0),
    seed: int = 0,
) -> AppendRun:
    """Run tasks in order."""
    codes = [task.code.payload(path.config) for task in tasks]
    fields = {
        "leaving": np.array([task.vector is None for task in tasks]),
        "centre": np.array([task.centre for task in tasks]),
        "rotate": np.array([task.rotate for task in tasks]),
        "code": {name: np.array([code[name] for code in codes]) for name in codes[0]},
    }
    new = [task.vector for task in tasks if task.vector is not None]
    leaving = [task.planes for task in tasks if task.planes is not None]
    return path.run(
        fields,
        np.concatenate([np.zeros(0, np.int64), *new]),
        _joined(path.config, leaving),
        sum(len(task.record) for task in tasks),
        feedback=matrices,
        centre=centre,
        stalls=stalls,
        seed=seed,
    )


def _expected(
    config: EngineConfig, code: VectorCode, conditioned: torch.Tensor, matrices: Feedback
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    planes = code.quantize(config, conditioned.numpy(), matrices)
    data, exponents = records(config, planes, code.unit_first)
    return data.numpy(), exponents.numpy()


def _fields(planes: Planes, vector: int, unit_first: bool) -> dict[str, Any]:
    """Return the planes of a balanced vector in the order of its record."""
    step = 1 if unit_first else -1
    trits = planes.digits[vector].numpy()[::step]
    unit = planes.unit[vector].numpy()[::step]
    last = np.zeros(len(unit), bool)
    last[-1] = True
    return {
        "trits": {"nonzero": trits != 0, "negative": trits < 0},
        "fraction": planes.fraction[vector].numpy()[::step] * unit,
        "exponent": planes.exponent[vector].numpy()[::step] * unit,
        "unit": unit,
        "last": last,
    }


def _joined(config: EngineConfig, vectors: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Concatenate the planes of several vectors."""
    none = np.zeros((0, config.head_dim), bool)
    trits = {
        bit: np.concatenate([none, *(vector["trits"][bit] for vector in vectors)])
        for bit in ("nonzero", "negative")
    }
    names = ("fraction", "exponent", "unit", "last")
    empty = np.zeros(0, np.int64)
    return {"trits": trits} | {
        name: np.concatenate([empty, *(vector[name] for vector in vectors)]) for name in names
    }
