"""Job descriptors of a KV head, which the host writes into the registers in each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from golden.learned_sinks import LearnedSinks
from golden.quantizer import BALANCED_RATIOS, FEEDBACK_RATIOS, RESIDUAL_RATIOS, absmean_constant
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.layout import SIDES, MemoryLayout, Side
from kvtq_hw.contract.registers import register_map

__all__ = ["HeadDescriptors", "check_code"]


_LARGEST_CONSTANT = register_map()["key_constant"].fields[0].mask


def check_code(config: EngineConfig, code: CacheCode) -> None:
    """Raise `UserError` for a code whose scales the hardware does not compute.

    The absmean constant of a fourth residual digit does not fit its register where `head_dim` is a
    little more than a power of two: 68, 132 and 136.
    """
    allowed = ("absmean",) if code.kind == "balanced" else ("absmean", "max")
    if code.scale_choice not in allowed:
        raise UserError(
            f"code: {str(code)!r} has scale {code.scale_choice!r}, which the hardware does not "
            f"compute; allowed for {code.kind} codes is {' or '.join(allowed)}"
        )
    constants = max((body_constants(config, code, side) for side in SIDES), key=max)
    if max(constants) > _LARGEST_CONSTANT:
        raise UserError(
            f"code: {str(code)!r} has an absmean constant of {max(constants)} at head_dim "
            f"{config.head_dim}; the hardware allows up to {_LARGEST_CONSTANT}: take at most "
            f"{constants.index(max(constants))} digits, or scale=max"
        )


class HeadDescriptors:
    """Makes the descriptors of one KV head's jobs.

    Parameters
    ----------
    layout : memory layout, with the regions of the head's vectors
    layer, head : indices of the layer and of the KV head in the layer
    table : index of the head's tables
    rotate, centre : whether the head's vectors are rotated, and its keys centred
    anchor_threshold : hits from which on a token that leaves the window becomes an anchor

    Raises
    ------
    UserError
        For a code that the hardware does not compute, and for anchors behind a window longer than
        the hardware's `anchor_slots`.
    """

    def __init__(
        self,
        layout: MemoryLayout,
        layer: int,
        head: int,
        *,
        table: int,
        rotate: bool,
        centre: bool,
        anchor_threshold: int = 0,
    ) -> None:
        config, code = layout.config, layout.codes[layer]
        check_code(config, code)
        if code.tiers.anchors and code.tiers.window > config.anchor_slots:
            raise UserError(
                f"code: {str(code)!r} has anchors and a window of {code.tiers.window} tokens; "
                f"anchor_slots of configuration {config.name!r} allows up to {config.anchor_slots}"
            )
        self._config = config
        self._code = code
        self._regions = regions = layout.heads[layer][head]
        tier_digits = code.tier_digits(config.max_planes)
        self._static: dict[str, Any] = {
            "rotate": rotate,
            "centre": centre,
            "feedback": code.feedback,
            "residual": code.kind == "residual",
            "absmean": code.scale_choice == "absmean",
            "tier_digits": tier_digits,
            "key_digits": code.key_digits,
            "value_digits": code.value_digits,
            "tier_constant": absmean_constant(config, BALANCED_RATIOS[tier_digits - 1]),
            "key_constants": body_constants(config, code, "key"),
            "value_constants": body_constants(config, code, "value"),
            "table": table,
            "anchors": code.tiers.anchors,
            "anchor_threshold": anchor_threshold,
            **{
                side: {name: region.base for name, region in vectors.regions.items()}
                for side, vectors in (("key", regions.key), ("value", regions.value))
            },
        }

    def job(
        self,
        tokens: int,
        *,
        append: bool = False,
        query_exponent: Sequence[int] | None = None,
        first: bool = False,
        value_exponent: int = 0,
        learned_sinks: LearnedSinks | None = None,
    ) -> dict[str, Any]:
        """Return the descriptor of a job over `tokens` tokens, as `sim.host.driver` takes it.

        Parameters
        ----------
        tokens : tokens of the context, including the token that the job appends and those that have
            left the sliding window
        query_exponent : exponent of each query, for a job that attends
        first : ignore values written before this job in the value exponent
        value_exponent : lower limit of the value exponent
        learned_sinks : [G], for a job that attends, or None
        """
        none = [0] * self._config.query_group
        tiers = self._code.tiers
        spread = tiers.spread(tokens)
        return {
            **self._static,
            **self._visible_sinks(spread.first_sink),
            "append": append,
            "attend": query_exponent is not None,
            "first": first,
            "leaving": append and tiers.leaving(tokens),
            "tokens": spread.tokens,
            "sink_tokens": spread.sinks,
            "body_tokens": spread.body,
            "window_tokens": spread.window,
            "window_start": spread.window_start,
            "window_slot": spread.window_slot,
            "body_slot": spread.body_slot,
            "value_exponent": value_exponent,
            "query_exponent": list(query_exponent or none),
            "sink_maximum": learned_sinks.maximum.tolist() if learned_sinks else none,
            "sink_weight": learned_sinks.weight.tolist() if learned_sinks else none,
        }

    def _visible_sinks(self, first: int) -> dict[str, dict[str, int]]:
        """Return each side's addresses of regions, where sinks begin at slot `first`."""
        sides = {"key": self._regions.key.sinks, "value": self._regions.value.sinks}
        return {
            side: self._static[side] | {"sinks": region.base + first * region.record_bytes}
            for side, region in sides.items()
        }


def body_constants(config: EngineConfig, code: CacheCode, side: Side) -> list[int]:
    """Return the absmean constants of a body vector, one per run; zeros where it has none."""
    digits = code.key_digits if side == "key" else code.value_digits
    if code.scale_choice != "absmean":
        return [0] * digits
    if code.kind == "residual":
        return [absmean_constant(config, ratio) for ratio in RESIDUAL_RATIOS[:digits]]
    ratios = FEEDBACK_RATIOS[side] if code.feedback else BALANCED_RATIOS
    return [absmean_constant(config, ratios[digits - 1])]
