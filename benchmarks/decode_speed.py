"""Measure tokens per second of whole-model decoding for each attention backend, in one run.

Usage: python benchmarks/decode_speed.py [--new-tokens N] [--json FILE]

The prompt is cut so that the context passes 64 tokens in the middle of the run. The accelerator
runs at the demo's code, the others at three digits of keys and two of values. Outputs are not
compared here; `kvtq-hw decode --check` does that. "accelerator" is what `--no-check` runs, an
accelerator per KV head, and "one alone" runs all KV heads back to back. Cycles per second are those
with a job in flight, and the seconds have the model's own time in them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import torch

from golden.attend.backends import FloatBackend
from golden.llm.decoding import Decoded, decode_unquantized
from golden.llm.models import LanguageModel, load_model
from golden.study.quality import documentation_text
from kvtq_hw.commands.frame.options import json_option, write_json
from kvtq_hw.commands.frame.session import load_session, on_accelerator, on_engine
from kvtq_hw.contract.codes import CacheCode

CONTEXT = 64
CODE = CacheCode("balanced", 3, 2)
#: Code of the accelerator, as in `make demo`.
DEMO_CODE = CacheCode.parse("balanced:3/2,sinks=4,window=32,feedback")


@click.command()
@click.option("--new-tokens", type=click.IntRange(min=2), default=32, show_default=True)
@json_option
def main(new_tokens: int, json_file: Path | None) -> None:
    """Print tokens per second for each backend, and as a ratio to the unquantized model."""
    torch.set_num_threads(1)  # more threads slow small operations and depend on other processes
    model = load_model("smollm2")
    prompt = _prompt(model, CONTEXT - new_tokens // 2)
    loaded = load_session(model, CODE, 2 * CONTEXT)
    demo = load_session(model, DEMO_CODE, 2 * CONTEXT, tables=True)
    runs: dict[str, Decoded] = {"unquantized": decode_unquantized(model, prompt, new_tokens)}
    sessions = {
        "golden": loaded,
        "float": replace(loaded, backend=FloatBackend()),
        "engine": on_engine(loaded),
        "accelerator": on_accelerator(demo),
        "one alone": on_accelerator(demo, accelerators=1),
    }
    cycles: dict[str, int] = {}
    for name, opened in sessions.items():
        with opened as session:
            runs[name] = session.decode(prompt, new_tokens)
            if session.hardware is not None and session.hardware.cycles is not None:
                cycles[name] = session.hardware.cycles
    base = runs["unquantized"].tokens_per_second
    for name, run in runs.items():
        speed = run.tokens_per_second
        click.echo(
            f"{name:12} {speed:7.2f} tokens/s  {speed / base:6.3f} of unquantized  "
            f"({run.steps} decode steps to a context of {run.context})"
        )
    for name, count in cycles.items():
        click.echo(
            f"{name:12} {count / runs[name].steps:,.0f} cycles per token, "
            f"{count / runs[name].seconds / 1e6:.3f} million cycles per second"
        )
    write_json(json_file, {name: run.tokens_per_second for name, run in runs.items()})


def _prompt(model: LanguageModel, tokens: int) -> str:
    """Return the beginning of a text, cut to about `tokens` tokens."""
    ids = model.tokenizer(documentation_text()[:4000]).input_ids[:tokens]
    return model.tokenizer.decode(ids, skip_special_tokens=True)


if __name__ == "__main__":
    main()
