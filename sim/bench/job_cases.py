"""Random job descriptors: right ones at every limit, and wrong ones just beyond, by kind.

The fault of each wrong kind and the status of its refusal are written here by hand. Benches compare
the golden scheduler with this table as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.layout import SIDES
from kvtq_hw.contract.registers import JobStatus
from rtl.layouts import ABSMEAN_CONSTANT_BITS

__all__ = ["LIMITS", "WRONG", "Limit", "Wrong", "limits_of", "random_job", "wrong_job"]

Job = dict[str, Any]
_WORD = 1 << 32  # limit of a register: numbers of tokens and slots are below
_TIERS = ("sink_tokens", "body_tokens", "window_tokens")
_FIRST_SLOTS = {"window_start": 0, "window_slot": 0, "body_slot": 0, "anchors": 0}


@dataclass(frozen=True)
class Wrong:
    """A kind of wrong descriptor: the change of a right descriptor, and the job's final status."""

    meaning: str
    status: JobStatus
    spoil: Callable[[EngineConfig, Job], Job]


@dataclass(frozen=True)
class Limit:
    """A largest or smallest allowed size, and the test whether a job has it."""

    meaning: str
    holds: Callable[[EngineConfig, Job], bool]


def _few(job: Job, **tiers: int) -> Job:
    """Return a consistent job with the given tokens per tier, 0 by default."""
    counts = {name: tiers.get(name, 0) for name in _TIERS}
    return job | counts | _FIRST_SLOTS | {"tokens": sum(counts.values()), "leaving": False}


def _wrapping(job: Job, *, extra: int) -> Job:
    """Return a job whose tiers sum to `extra` * 2**32 more than the job's tokens."""
    sums = {
        1: {"sink_tokens": _WORD - 1, "body_tokens": 1, "window_tokens": job["tokens"]},
        2: {
            "sink_tokens": _WORD - 1,
            "body_tokens": _WORD - 1,
            "window_tokens": job["tokens"] + 2,
        },
    }
    return job | sums[extra] | _FIRST_SLOTS | {"leaving": False}


def _digits(name: str, number: Callable[[EngineConfig], int]) -> Callable[[EngineConfig, Job], Job]:
    return lambda config, job: job | {f"{name}_digits": number(config)}


def _balanced(job: Job) -> Job:
    return job | {"residual": False, "absmean": True, "feedback": False}


def _leaving(job: Job, *, append: bool, body: int, window: int) -> Job:
    """Return a job with the flag that a token leaves the window."""
    few = _few(job, sink_tokens=1, body_tokens=body, window_tokens=window)
    return few | {"append": append, "leaving": True}


def _anchored(job: Job, *, sinks: int = 1, body: int, window: int, **changes: int) -> Job:
    """Return a job with anchors, wrong by `changes` alone or by its tokens per tier."""
    few = _few(job, sink_tokens=sinks, body_tokens=body, window_tokens=window)
    return few | {"anchors": 1, "body_slot": max(body - 1, 0)} | changes


_BAD = JobStatus.BAD_CODE
_MANY = JobStatus.TOO_MANY_TOKENS

#: Wrong descriptors by kind. Each differs from a right descriptor in one property.
WRONG: dict[str, Wrong] = {
    "no_tokens": Wrong("No token, in no tier.", JobStatus.NO_TOKENS, lambda config, job: _few(job)),
    "max_context+1": Wrong(
        "One token more than the accelerator takes, all in the body.",
        _MANY,
        lambda config, job: _few(job, body_tokens=config.max_context + 1),
    ),
    "tokens_32_bits": Wrong(
        "As many tokens as the register holds.",
        _MANY,
        lambda config, job: _few(job, sink_tokens=_WORD - 1),
    ),
    "tiers_too_few": Wrong(
        "The tiers hold a token less than the job.",
        _BAD,
        lambda config, job: _few(job, sink_tokens=1, body_tokens=1) | {"tokens": 3},
    ),
    "tiers_too_many": Wrong(
        "The tiers hold a token more than the job.",
        _BAD,
        lambda config, job: _few(job, sink_tokens=1, body_tokens=1) | {"tokens": 1},
    ),
    "tiers_wrap_once": Wrong(
        "The tiers' sum is the job's tokens modulo 2**32.",
        _BAD,
        lambda config, job: _wrapping(job, extra=1),
    ),
    "tiers_wrap_twice": Wrong(
        "The tiers' sum is the job's tokens modulo 2**33.",
        _BAD,
        lambda config, job: _wrapping(job, extra=2),
    ),
    **{
        f"{name}_digits_0": Wrong("Records without a digit.", _BAD, _digits(name, lambda config: 0))
        for name in ("tier", "key", "value")
    },
    **{
        f"{name}_digits+1": Wrong(
            "One digit more than the accelerator takes.",
            _BAD,
            _digits(name, lambda config: config.max_planes + 1),
        )
        for name in ("tier", "key", "value")
    },
    "table_heads": Wrong(
        "The table after the last one.",
        _BAD,
        lambda config, job: job | {"table": config.table_heads},
    ),
    "table_16_bits": Wrong(
        "The last table that the register holds.", _BAD, lambda config, job: job | {"table": 0xFFFF}
    ),
    "residual_feedback": Wrong(
        "Rounding with feedback of a residual code.",
        _BAD,
        lambda config, job: job | {"residual": True, "feedback": True},
    ),
    "balanced_max": Wrong(
        "A balanced code scaled by its maximum.",
        _BAD,
        lambda config, job: _balanced(job) | {"absmean": False},
    ),
    "window_start": Wrong(
        "A window that starts one slot behind its last one.",
        _BAD,
        lambda config, job: _few(job, window_tokens=2, body_tokens=1) | {"window_start": 2},
    ),
    "window_slot": Wrong(
        "A new token one slot behind the window's last.",
        _BAD,
        lambda config, job: _few(job, window_tokens=2, body_tokens=1) | {"window_slot": 2},
    ),
    "body_slot": Wrong(
        "A leaving token one slot behind the body's last.",
        _BAD,
        lambda config, job: _few(job, window_tokens=1, body_tokens=2) | {"body_slot": 2},
    ),
    "leaving_no_append": Wrong(
        "A token leaves the window though none comes.",
        _BAD,
        lambda config, job: _leaving(job, append=False, body=1, window=1),
    ),
    "leaving_no_window": Wrong(
        "A token leaves a window that has none.",
        _BAD,
        lambda config, job: _leaving(job, append=True, body=1, window=0),
    ),
    "leaving_no_body": Wrong(
        "A token leaves the window and is not in the body.",
        _BAD,
        lambda config, job: _leaving(job, append=True, body=0, window=1),
    ),
    "anchors_long_window": Wrong(
        "Anchors, and a window longer than the hits that are kept.",
        _BAD,
        lambda config, job: _anchored(job, body=1, window=config.anchor_slots + 1),
    ),
    "anchors_no_window": Wrong(
        "Anchors, and a body without a window behind it.",
        _BAD,
        lambda config, job: _anchored(job, body=1, window=0),
    ),
    "anchors_ring": Wrong(
        "Anchors, and a body that is a ring.",
        _BAD,
        lambda config, job: _anchored(job, body=2, window=1, body_slot=0),
    ),
}


def _is(field: str, number: Callable[[EngineConfig], int]) -> Callable[[EngineConfig, Job], bool]:
    return lambda config, job: bool(job[field] == number(config))


def _empty(tier: str) -> Callable[[EngineConfig, Job], bool]:
    return lambda config, job: job["tokens"] > 1 and job[f"{tier}_tokens"] == 0


def _most(config: EngineConfig) -> int:
    return config.max_context


#: Limits of a right descriptor.
LIMITS: dict[str, Limit] = {
    "tokens_1": Limit("One token.", _is("tokens", lambda config: 1)),
    "max_context": Limit("As many tokens as the accelerator takes.", _is("tokens", _most)),
    **{
        f"max_context_in_{tier}": Limit("All of them in one tier.", _is(f"{tier}_tokens", _most))
        for tier in ("sink", "body", "window")
    },
    **{
        f"no_{tier}": Limit("A tier is empty, and others are not.", _empty(tier))
        for tier in ("sink", "body", "window")
    },
    **{
        f"{name}_digits_1": Limit("Records of one digit.", _is(f"{name}_digits", lambda config: 1))
        for name in ("tier", "key", "value")
    },
    **{
        f"{name}_digits_most": Limit(
            "Records of as many digits as the accelerator takes.",
            _is(f"{name}_digits", lambda config: config.max_planes),
        )
        for name in ("tier", "key", "value")
    },
    "first_table": Limit("The first table.", _is("table", lambda config: 0)),
    "last_table": Limit("The last table.", _is("table", lambda config: config.table_heads - 1)),
    "window_starts_at_0": Limit(
        "The window is read from its first slot on.",
        lambda config, job: job["window_tokens"] > 1 and job["window_start"] == 0,
    ),
    "window_starts_at_last": Limit(
        "The window is read from its last slot on.",
        lambda config, job: (
            job["window_tokens"] > 1 and job["window_start"] == job["window_tokens"] - 1
        ),
    ),
    "last_window_slot": Limit(
        "The new token takes the window's last slot.",
        lambda config, job: (
            job["window_tokens"] > 1 and job["window_slot"] == job["window_tokens"] - 1
        ),
    ),
    "last_body_slot": Limit(
        "The body grows at its end.",
        lambda config, job: job["body_tokens"] > 1 and job["body_slot"] == job["body_tokens"] - 1,
    ),
    "first_body_slot": Limit(
        "The body's ring wraps.",
        lambda config, job: job["body_tokens"] > 1 and job["body_slot"] == 0,
    ),
    "first_to_leave": Limit(
        "The first token of the body leaves a window of one.",
        lambda config, job: job["leaving"] and job["body_tokens"] == job["window_tokens"] == 1,
    ),
    "residual_max": Limit(
        "A residual code scaled by its maximum.",
        lambda config, job: job["residual"] and not job["absmean"],
    ),
    "residual_absmean": Limit(
        "A residual code scaled by absmean.",
        lambda config, job: job["residual"] and job["absmean"],
    ),
    "anchors_full_window": Limit(
        "Anchors, and as many tokens in the window as hits are kept.",
        lambda config, job: job["anchors"] > 0 and job["window_tokens"] == config.anchor_slots,
    ),
    "anchors_most": Limit(
        "As many anchors as the register holds.", _is("anchors", lambda config: 0xFFFF)
    ),
    "anchors_first_to_leave": Limit(
        "The first token of the body may become an anchor.",
        lambda config, job: job["anchors"] > 0 and job["leaving"] and job["body_tokens"] == 1,
    ),
    "anchors_in_sinks": Limit(
        "Anchors in a context that has only sinks.",
        lambda config, job: job["anchors"] > 0 and job["sink_tokens"] == job["tokens"],
    ),
    "feedback": Limit("Rounding with feedback.", lambda config, job: bool(job["feedback"])),
    "nothing": Limit(
        "Neither an append nor an attention.",
        lambda config, job: not job["append"] and not job["attend"],
    ),
}


def limits_of(config: EngineConfig, job: Job) -> list[str]:
    """Return the names of the `LIMITS` that a right job reaches."""
    return [name for name, limit in LIMITS.items() if limit.holds(config, job)]


def wrong_job(config: EngineConfig, job: Job, kind: str) -> Job:
    """Make a right job wrong by a kind of `WRONG`."""
    return WRONG[kind].spoil(config, job)


def random_job(rng: np.random.Generator, config: EngineConfig) -> Job:
    """Draw a right descriptor with any values; limits are more frequent than other values."""

    def number(low: int, high: int) -> int:
        """Draw from low .. high, each end as often as all values between."""
        kind = rng.integers(3)
        return (low, high, int(rng.integers(low, high + 1)))[kind]

    def flag() -> bool:
        return bool(rng.integers(2))

    tokens = number(1, config.max_context)
    first, second = number(0, tokens), number(0, tokens)
    order = rng.permutation(3)
    sizes = (min(first, second), abs(first - second), tokens - max(first, second))
    tiers = {name: sizes[place] for name, place in zip(_TIERS, order, strict=True)}
    anchors = number(1, 0xFFFF) if rng.random() < 0.4 else 0
    if anchors:
        tokens, tiers = _anchored_tiers(rng, config, number)
    window, body = tiers["window_tokens"], tiers["body_tokens"]
    append, attend = ((True, True), (True, False), (False, True), (False, False))[
        rng.choice(4, p=(0.45, 0.25, 0.25, 0.05))
    ]
    residual = flag()
    address, constant = 1 << config.address_bits, 1 << ABSMEAN_CONSTANT_BITS
    exponent, maximum = 1 << (config.query_exponent_bits - 1), 1 << (config.maximum_bits - 1)
    return {
        **{name: flag() for name in ("rotate", "centre", "first")},
        "append": append,
        "attend": attend,
        "residual": residual,
        "absmean": not residual or flag(),
        "feedback": not residual and flag(),
        "leaving": append and window > 0 and tiers["body_tokens"] > 0 and flag(),
        "tokens": tokens,
        **tiers,
        "window_start": number(0, window - 1 if window else config.max_context),
        "window_slot": number(0, window - 1 if window else config.max_context),
        "body_slot": (
            body - 1 if anchors and body else number(0, body - 1 if body else config.max_context)
        ),
        **{f"{name}_digits": number(1, config.max_planes) for name in ("tier", "key", "value")},
        "tier_constant": int(rng.integers(constant)),
        **{
            f"{side}_constants": rng.integers(constant, size=config.max_planes).tolist()
            for side in SIDES
        },
        "table": number(0, config.table_heads - 1),
        "anchors": anchors,
        "anchor_threshold": int(rng.integers(4096)),
        **{
            side: {name: int(rng.integers(address)) for name in ("sinks", "body", "window")}
            for side in SIDES
        },
        "value_exponent": int(rng.integers(1 << config.scale_exponent_bits)),
        "query_exponent": rng.integers(-exponent, exponent, config.query_group).tolist(),
        "sink_maximum": rng.integers(-maximum, maximum, config.query_group).tolist(),
        "sink_weight": rng.integers(1 << config.weight_width, size=config.query_group).tolist(),
    }


def _anchored_tiers(
    rng: np.random.Generator, config: EngineConfig, number: Callable[[int, int], int]
) -> tuple[int, Job]:
    """Draw the tokens of a job with anchors, in all and by tier."""
    window = number(0, min(config.anchor_slots, config.max_context))
    left = config.max_context - window
    body = number(0, left) if window else 0
    sinks = number(0 if window else 1, left - body) if left > body else 0
    return sinks + body + window, {
        "sink_tokens": sinks,
        "body_tokens": body,
        "window_tokens": window,
    }
