"""Measure cycles of a job on the verilated engine against the bound, at several contexts.

Usage: python benchmarks/engine_cycles.py [--preset NAME] [--code KIND:K/V]

Cycles are read from the RTL's own counter: of a job alone, and of a job that another follows, whose
first keys hide its outputs. The bound is T (N_k + N_v) ceil(D / lanes) cycles for T
tokens with N_k digits per key and N_v per value.
"""

from __future__ import annotations

import click

from kvtq_hw.commands.frame.options import code_option, preset_option
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.cycle_model import bound_cycles, uniform_job_cycles
from sim.bench.cases import random_case
from sim.verilated.engine import VerilatedEngine

CONTEXTS = (1, 16, 64, 256, 1024, 4096)


@click.command()
@preset_option
@code_option("Digits of keys and values.", CacheCode("balanced", 3, 2), accepts="code")
def main(config: EngineConfig, code: CacheCode) -> None:
    """Print a table: context, cycles measured, cycle model, bound, ratio."""
    click.echo(f"{config.name}, {code}: cycles of one KV head, {config.query_group} query heads")
    click.echo(
        f"{'tokens':>7} {'alone':>8} {'model':>8} {'followed':>8} {'bound':>8} "
        f"{'alone/bound':>12} {'followed/bound':>15}"
    )
    with VerilatedEngine(config) as engine:
        for tokens in CONTEXTS:
            if tokens > config.max_context:
                break
            planes = [code.key_digits] * tokens, [code.value_digits] * tokens
            job = random_case(tokens, config, *planes, code=code.kind).job
            alone = engine.run([job]).cycles
            followed = (engine.run([job] * 3).cycles - alone) // 2
            model = uniform_job_cycles(config, tokens, code.key_digits, code.value_digits)
            bound = bound_cycles(config, tokens, code.key_digits, code.value_digits)
            click.echo(
                f"{tokens:7} {alone:8} {model:8} {followed:8} {bound:8} "
                f"{alone / bound:12.4f} {followed / bound:15.4f}"
            )


if __name__ == "__main__":
    main()
