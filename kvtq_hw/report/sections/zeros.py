"""Zeros: zero digits in a real cache, and the savings if hardware skipped them."""

from __future__ import annotations

from statistics import mean

from kvtq_hw.contract.errors import UserError
from kvtq_hw.report.content import Inputs, Plot, Section, Series, Table

__all__ = ["build"]

TOKENS = 256
LANES = (4, 8, 16, 32, 64)


def build(inputs: Inputs) -> Section:
    """Prefill a text through the cache and count the cache's zero digits."""
    from golden.llm.models import load_model
    from golden.study.zeros import cache_of_text, zero_shares

    language_model = load_model(inputs.model)
    config = inputs.config
    language_model.check_fits(config)
    tokens = min(TOKENS, config.max_context)
    lanes = tuple(n for n in LANES if config.head_dim % n == 0)
    command = f"kvtq-hw report --preset {config.name} --model {inputs.model}"
    rows, series = [], []
    for code in inputs.codes:
        shares = zero_shares(cache_of_text(language_model, config, code, tokens), lanes)
        if not shares:
            raise UserError(
                f"code: {str(code)!r} puts none of {tokens} tokens into the body, where zeros are "
                "counted; allowed are codes with fewer tokens in sinks and window"
            )
        for tensor in ("key", "value"):
            of_tensor = [share for share in shares if share.tensor == tensor]
            planes = sorted({share.plane for share in of_tensor})
            for plane in planes:
                chosen = [share for share in of_tensor if share.plane == plane]
                digits = [share.digits for share in chosen]
                rows.append(
                    (
                        str(code),
                        tensor,
                        plane,
                        _percent(mean(digits)),
                        f"{_percent(min(digits))} to {_percent(max(digits))}",
                        *(_percent(mean(share.slices[n] for share in chosen)) for n in lanes),
                    )
                )
                if code == inputs.codes[0]:
                    series.append(
                        Series(
                            f"{tensor} plane {plane}",
                            tuple(float(share.layer) for share in chosen),
                            tuple(digits),
                        )
                    )
    return Section(
        "What zeros are worth",
        "A zero digit leaves its lane's adder input at zero: its share is the share of select "
        "gates that need not switch. A slice of zeros in all lanes could be skipped, a cycle each: "
        "the more lanes, the rarer.",
        (
            Table(
                f"Zeros in a cache of {tokens} tokens of {inputs.model}, all layers and KV heads",
                "measured",
                command,
                (
                    "code",
                    "tensor",
                    "plane",
                    "zero digits",
                    "by layer",
                    *(f"zero slices, {n} lanes" for n in lanes),
                ),
                tuple(rows),
                "Plane 0 is the least significant. The last columns are the cycles that skipping "
                "whole slices would save in that plane.",
            ),
        ),
        (
            Plot(
                f"Share of zero digits by layer, {inputs.codes[0]}",
                "measured",
                command,
                "line",
                "layer",
                "zero digits",
                tuple(series),
                "The higher a line, the fewer select gates switch in that layer; the highest is "
                f"{max(series, key=lambda one: mean(one.y)).name}.",
            ),
        ),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
