"""The code of one vector, for golden model and hardware; random codes and feedback matrices."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from golden.feedback import Feedback
from golden.planes import Planes
from golden.quantizer import BALANCED_RATIOS, RESIDUAL_RATIOS, absmean_constant, quantize
from kvtq_hw.contract.codes import CodeKind, ScaleChoice
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.registers import register_map

__all__ = ["RULES", "Rule", "VectorCode", "random_code", "random_matrices"]

_LARGEST_CONSTANT = register_map()["key_constant"].fields[0].mask

Rule = tuple[CodeKind, ScaleChoice, bool]

#: Rules that the hardware computes: kind of code, choice of the scale, feedback.
RULES: tuple[Rule, ...] = (
    ("balanced", "absmean", False),
    ("balanced", "absmean", True),
    ("residual", "absmean", False),
    ("residual", "max", False),
)


@dataclass(frozen=True)
class VectorCode:
    """The code of one vector, with `digits` planes.

    ratio : ratio of the scale to the mean magnitude (balanced codes)
    table : number of the head whose feedback matrix is used
    unit_first : whether the unit plane of a run comes first in the record
    """

    kind: CodeKind
    scale: ScaleChoice
    feedback: bool
    digits: int
    ratio: float
    table: int = 0
    unit_first: bool = False

    def payload(self, config: EngineConfig) -> dict[str, Any]:
        """Return the code as a payload of `vector_code_layout`."""
        residual = self.kind == "residual"
        ratios = RESIDUAL_RATIOS if residual else [self.ratio] * 5
        return {
            "planes": self.digits,
            "residual": residual,
            "absmean": self.scale == "absmean",
            # one that does not fit its register is not looked at (`random_code`)
            "constants": [
                min(absmean_constant(config, ratio), _LARGEST_CONSTANT)
                for ratio in ratios[: config.max_planes]
            ],
            "feedback": self.feedback,
            "table": self.table,
            "unit_first": self.unit_first,
        }

    def quantize(
        self, config: EngineConfig, vectors: NDArray[np.int64], matrices: Feedback
    ) -> Planes:
        """Quantize vectors [N, D] to planes [N, P, D]."""
        own = slice(self.table, self.table + 1)
        planes = quantize(
            config,
            torch.from_numpy(vectors)[None],
            self.kind,
            self.digits,
            self.scale,
            ratio=self.ratio,
            feedback=Feedback(matrices.factors[own], matrices.shift[own])
            if self.feedback
            else None,
        )
        return Planes(planes.digits[0], planes.unit[0], planes.fraction[0], planes.exponent[0])


def random_code(
    rng: np.random.Generator,
    config: EngineConfig,
    digits: int | None = None,
    rule: Rule | None = None,
) -> VectorCode:
    """Draw a code; given arguments are kept, but for digits that the hardware does not compute."""
    kind, scale, feedback = RULES[rng.integers(len(RULES))] if rule is None else rule
    digits = int(rng.integers(1, config.max_planes + 1)) if digits is None else digits
    if (kind, scale) == ("residual", "absmean"):
        constants = (absmean_constant(config, ratio) for ratio in RESIDUAL_RATIOS[:digits])
        digits = len([*takewhile(lambda constant: constant <= _LARGEST_CONSTANT, constants)])
    # the usual ratio, or any that its constant has bits for
    usual = rng.random() < 0.7
    ratio = BALANCED_RATIOS[digits - 1] if usual else float(rng.uniform(0, 8))
    table = int(rng.integers(config.table_heads))
    return VectorCode(kind, scale, feedback, digits, ratio, table, bool(rng.integers(2)))


def random_matrices(rng: np.random.Generator, config: EngineConfig) -> Feedback:
    """Draw feedback matrices of all heads: sparse or dense, with elements of every magnitude."""
    shape = (config.table_heads, config.head_dim, config.head_dim)
    factors = rng.integers(-4, 5, shape) * (rng.random(shape) < rng.choice([0.1, 0.9]))
    shift = rng.integers(0, 8, shape[:2])
    return Feedback(torch.from_numpy(np.triu(factors, 1)).to(torch.int8), torch.from_numpy(shift))
