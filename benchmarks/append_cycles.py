"""Measure cycles of a decode step's append on the verilated append path, against the attention.

Usage: python benchmarks/append_cycles.py [--preset NAME] [--code CODE]

A step appends one token to one KV head: it quantizes the new vector to the tier's digits, and
requantizes the vector that leaves the window to the body's digits. Keys and values have one path
each, in parallel. Cycles are counted from the first element of the new vector to the last scale of
the step, and to the last byte of its records. The leaving vector's planes are available in time,
and the memory takes a byte per cycle. The attention of the same step takes
T (N_k + N_v) ceil(D / lanes) cycles for T tokens with N_k digits per key and N_v per value.
"""

from __future__ import annotations

import click
import numpy as np

from golden.quantizer import BALANCED_RATIOS, FEEDBACK_RATIOS
from kvtq_hw.commands.frame.options import code_option, preset_option
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.cycle_model import bound_cycles
from rtl.blocks import create_block
from sim.bench.append_cases import leaving_tasks, new_tasks, run_tasks
from sim.bench.vector_code import VectorCode, random_matrices
from sim.verilated.append_path import AppendRun, VerilatedAppendPath

CONTEXTS = (64, 256, 1024, 4096)
STEPS = 200


def steps(
    path: VerilatedAppendPath, code: CacheCode, which: str, count: int, together: bool
) -> list[AppendRun]:
    """Run steps with Gaussian vectors: each in a run from reset, or, if `together`, all in one."""
    config, rng = path.config, np.random.default_rng(1)
    digits = code.key_digits if which == "key" else code.value_digits
    ratios = FEEDBACK_RATIOS[which] if code.feedback else BALANCED_RATIOS
    is_value = which == "value"
    order = {"unit_first": is_value}
    tier = VectorCode(
        "balanced", "absmean", False, code.tier, BALANCED_RATIOS[code.tier - 1], **order
    )
    body = VectorCode("balanced", "absmean", code.feedback, digits, ratios[digits - 1], **order)
    matrices = random_matrices(rng, config)
    centre = rng.integers(-1000, 1000, config.head_dim)
    vectors = np.round(rng.normal(0, 3000, (2, count, config.head_dim))).astype(np.int64)
    new = new_tasks(config, tier, vectors[0], matrices, None if is_value else centre, True)
    leaving = leaving_tasks(config, body, vectors[1], code.tier, matrices)
    pairs = list(zip(new, leaving, strict=True))
    if together:
        return [run_tasks(path, [task for pair in pairs for task in pair], matrices, centre)]
    return [run_tasks(path, pair, matrices, centre) for pair in pairs]


def cycles_to(run: AppendRun, stream: str) -> int:
    """Return cycles from the first element of the new vector to the last transfer of a stream."""
    return int(run.cycles[stream][-1] - run.cycles["vectors"][0]) + 1


@click.command()
@preset_option
@code_option("Digits of keys and values, and the tier.", accepts="code")
def main(config: EngineConfig, code: CacheCode) -> None:
    """Print a row per tensor, and the append's cycles relative to the attention's, by context."""
    config = config.replace(table_heads=1)
    path = VerilatedAppendPath(config)
    click.echo(f"{config.name}, {code}: {STEPS} steps of one KV head")
    click.echo(f"{'':8} {'to scales':>16} {'to bytes':>16} {'documented':>12} {'back to back':>14}")
    click.echo(
        f"{'':8} {'mean':>8} {'most':>7} {'mean':>8} {'most':>7} {'at most':>12} {'a step':>14}"
    )
    slowest, scales = 0, 0
    for which in ("key", "value"):
        runs = steps(path, code, which, STEPS, together=False)
        to_scales = [cycles_to(run, "written") for run in runs]
        to_bytes = [cycles_to(run, "records") for run in runs]
        [many] = steps(path, code, which, STEPS, together=True)
        digits = code.key_digits if which == "key" else code.value_digits
        limit = create_block("append_path", config).step_cycles(code.tier, digits, code.feedback)
        click.echo(
            f"{which:8} {np.mean(to_scales):8.1f} {max(to_scales):7} {np.mean(to_bytes):8.1f} "
            f"{max(to_bytes):7} {limit:12} {cycles_to(many, 'records') / STEPS:14.1f}"
        )
        slowest, scales = max(slowest, max(to_bytes)), max(scales, max(to_scales))
    click.echo(
        f"\n{'tokens':>7} {'attention':>10} {'scales':>8} {'bytes':>8}  of the attention's cycles"
    )
    for tokens in CONTEXTS:
        if tokens > config.max_context:
            break
        attention = bound_cycles(config, tokens, code.key_digits, code.value_digits)
        click.echo(
            f"{tokens:7} {attention:10} {scales / attention:8.3f} {slowest / attention:8.3f}"
        )


if __name__ == "__main__":
    main()
