"""Cycles: the cycle model against the RTL's own counter, and utilisation over the context."""

from __future__ import annotations

from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.cycle_model import code_bound, code_job_cycles
from kvtq_hw.report.content import Inputs, Plot, Section, Series, Table

__all__ = ["build"]

CONTEXTS = (16, 64, 256, 1024)


def build(inputs: Inputs) -> Section:
    """Run random jobs on the verilated engine and compare their cycles with the model's."""
    from sim.bench.cases import random_case
    from sim.verilated.engine import VerilatedEngine

    config, code = inputs.config, inputs.codes[0]
    contexts = [tokens for tokens in CONTEXTS if tokens <= config.max_context]
    rows = []
    with VerilatedEngine(config) as engine:
        for tokens in contexts:
            keys, values = (
                code.planes(digits, tokens, config.max_planes)
                for digits in (code.key_digits, code.value_digits)
            )
            job = random_case(tokens, config, keys, values, code=code.kind).job
            cycles = engine.run([job]).cycles
            model = code_job_cycles(config, code, tokens)
            bound = code_bound(config, code, tokens)
            share = f"{100 * bound / cycles:.1f} %"
            rows.append((tokens, cycles, model, cycles - model, bound, share))
    command = f"kvtq-hw report --preset {config.name} --code {code}"
    return Section(
        "Cycle model against counters",
        f"Cycles of one KV head with its {config.query_group} query heads, {config.lanes} lanes. "
        "Utilisation is the bound of one plane slice per cycle over the cycles counted.",
        (
            Table(
                f"Code {code} on the verilated engine",
                "measured",
                command,
                ("tokens", "RTL counter", "model", "difference", "bound", "utilisation"),
                tuple(rows),
            ),
        ),
        (
            Plot(
                "Utilisation over the context, by the cycle model",
                "derived",
                command,
                "line",
                "tokens in the cache",
                "utilisation",
                tuple(
                    Series(
                        str(other), tuple(map(float, contexts)), _shares(config, other, contexts)
                    )
                    for other in inputs.codes
                ),
                "The nearer to one, the fewer cycles go to anything but the lanes' work; short "
                "contexts pay for loading queries and sending outputs.",
                log_x=True,
            ),
        ),
    )


def _shares(config: EngineConfig, code: CacheCode, contexts: list[int]) -> tuple[float, ...]:
    """Return the utilisation at each context, by the cycle model."""
    return tuple(code_bound(config, code, n) / code_job_cycles(config, code, n) for n in contexts)
