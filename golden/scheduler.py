"""Golden scheduler: the commands that each block gets for a job's descriptor.

The commands follow docs/contract.md ("Memory", "Tiers") and docs/registers.md. This model does not
cover timing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from golden.anchors import NO_DECISION, Decision
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.layout import SIDES, Side
from kvtq_hw.contract.registers import JobStatus

__all__ = ["job_parts", "job_problem"]

Job = Mapping[str, Any]


def job_problem(config: EngineConfig, job: Job) -> JobStatus:
    """Return the status with which a descriptor is refused; OK if the descriptor is valid."""
    if job["tokens"] == 0:
        return JobStatus.NO_TOKENS
    if job["tokens"] > config.max_context:
        return JobStatus.TOO_MANY_TOKENS
    digits = (job["tier_digits"], job["key_digits"], job["value_digits"])
    window = job["window_tokens"]
    right = (
        job["sink_tokens"] + job["body_tokens"] + window == job["tokens"]
        and all(1 <= number <= config.max_planes for number in digits)
        and job["table"] < config.table_heads
        # rounding with feedback is for balanced codes, which have an absmean scale
        and not (job["residual"] and job["feedback"])
        and (job["residual"] or job["absmean"])
        and (window == 0 or (job["window_start"] < window and job["window_slot"] < window))
        and (job["body_tokens"] == 0 or job["body_slot"] < job["body_tokens"])
        and (not job["leaving"] or (job["append"] and window > 0 and job["body_tokens"] > 0))
        and (job["anchors"] == 0 or _may_have_anchors(config, job))
    )
    return JobStatus.OK if right else JobStatus.BAD_CODE


def _may_have_anchors(config: EngineConfig, job: Job) -> bool:
    """Return whether a job can have anchors: in a window with slots, and a body that only grows."""
    if not 0 < config.anchor_slots >= job["window_tokens"]:
        return False
    grows = job["window_tokens"] > 0 and job["body_slot"] == job["body_tokens"] - 1
    return grows or job["body_tokens"] == 0


def job_parts(
    job: Job, appends_before: int, decision: Decision | None = NO_DECISION
) -> dict[str, list[dict[str, Any]]]:
    """Return the payloads that each block gets for a job, by stream, in their order.

    Parameters
    ----------
    job : a valid descriptor
    appends_before : number of earlier jobs that append
    decision : what the job found out about anchors; None where the hardware has none
    """
    parts: dict[str, list[dict[str, Any]]] = {}
    anchors = decision or NO_DECISION
    for side in SIDES:
        records = _records(job, anchors)
        parts[f"{side}_tasks"] = [_task(job, side, *record) for record in records]
        parts[f"{side}_places"] = [_place(job, side, *record) for record in records]
    parts["fetches"] = []
    if job["leaving"]:
        fetch = {
            "key_window": job["key"]["window"],
            "value_window": job["value"]["window"],
            "slot": job["window_slot"],
            "digits": job["tier_digits"],
            "appends": appends_before % 16,
        }
        parts["fetches"].append(fetch)
    exponent = {
        "table": job["table"],
        "first": job["first"],
        "floor": job["value_exponent"],
        "records": len(parts["value_places"]),
        "attend": job["attend"],
        "rotate": job["rotate"],
    }
    parts["exponents"] = [exponent] * bool(job["append"] or job["attend"])
    read = {
        name: job[name]
        for name in (
            *("key", "value", "tier_digits", "key_digits", "value_digits", "residual"),
            *("window_tokens", "window_start"),
        )
    }
    read |= {
        "sink_tokens": job["sink_tokens"] + anchors.after,
        "body_tokens": job["body_tokens"] - anchors.after,
        "new_anchor": anchors.promoted,
    }
    if read["body_tokens"]:  # otherwise the slot has no meaning
        read["body_slot"] = job["body_slot"] - anchors.before
    attends = bool(job["attend"])
    parts["reads"] = [read | {"appends": (appends_before + job["append"]) % 16}] * attends
    query = {"rotate": job["rotate"], "query_exponent": job["query_exponent"]}
    parts["queries"] = [query] * attends
    attend = {"last_token": job["tokens"] - 1}
    attend |= {name: job[name] for name in ("sink_maximum", "sink_weight")}
    parts["attends"] = [attend] * attends
    if decision is not None:
        parts["hits"] = [_hits(job)] * attends
    return parts


def _hits(job: Job) -> dict[str, Any]:
    if not job["anchors"]:
        return {"counted": False}
    names = ["table", "sink_tokens", "window_tokens"]
    if job["window_tokens"]:
        names.append("window_start")
    settled = job["sink_tokens"] + job["body_tokens"]
    return {name: job[name] for name in names} | {"counted": True, "settled_tokens": settled}


def _records(job: Job, anchors: Decision) -> list[tuple[str, int, bool]]:
    """Return region, slot and `leaving` of each record that a job writes.

    `leaving` is true for a record of a token that leaves the window, quantized once before.
    """
    if not job["append"]:
        return []
    if job["window_tokens"]:
        newest = ("window", job["window_slot"], False)
    elif job["body_tokens"]:
        newest = ("body", job["body_slot"], False)
    else:
        newest = ("sinks", job["sink_tokens"] - 1, False)
    if not job["leaving"]:
        return [newest]
    if anchors.promoted:
        return [newest, ("sinks", job["sink_tokens"] + anchors.before, True)]
    return [newest, ("body", job["body_slot"] - anchors.before, True)]


def _task(job: Job, side: Side, region: str, slot: int, leaving: bool) -> dict[str, Any]:
    body = region == "body"
    constants = job[f"{side}_constants"]
    code = {
        "planes": job[f"{side}_digits"] if body else job["tier_digits"],
        "residual": body and job["residual"],
        "absmean": not body or job["absmean"],
        "constants": dict(enumerate(constants)) if body else {0: job["tier_constant"]},
        "feedback": body and job["feedback"],
        "table": job["table"],
        "unit_first": side == "value",
    }
    task: dict[str, Any] = {"leaving": leaving, "code": code}
    if not leaving:
        task |= {"rotate": job["rotate"], "centre": side == "key" and job["centre"]}
    return task


def _place(job: Job, side: Side, region: str, slot: int, leaving: bool) -> dict[str, Any]:
    body = region == "body"
    return {
        "base": job[side][region],
        "slot": slot,
        "planes": job[f"{side}_digits"] if body else job["tier_digits"],
        "residual": body and job["residual"],
    }
