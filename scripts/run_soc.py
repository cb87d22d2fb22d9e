"""Decode with a language model, and let the processor of a system on a chip do the same.

Usage: python scripts/run_soc.py [--model NAME] [--preset NAME] [--code CODE] [--prompt TEXT]
    [--tokens N] [--layer L ...]

The golden model decodes. A program on the system's RISC-V processor then sends the vectors of the
chosen layers to the accelerator, and compares its outputs with golden's. The exit status is not 0
if anything differs.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from golden.llm.decoding import needed_context
from golden.llm.models import load_model
from kvtq_hw.commands.frame.session import load_session
from kvtq_hw.contract.codes import DEFAULT_CODE, CacheCode
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.errors import UserError
from sim.soc.decode import Decode, DecodeRecorder
from sim.soc.simulation import SocSimulation


def main(arguments: list[str]) -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(description="Run a decode on a system on a chip.")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--preset", default="smollm2")
    parser.add_argument("--code", default=str(DEFAULT_CODE))
    parser.add_argument("--prompt", default="Green plants use the energy of sunlight to")
    parser.add_argument("--tokens", type=int, default=8, help="decode steps")
    parser.add_argument("--layer", dest="layers", type=int, nargs="+", default=[0, 15])
    try:
        return run(parser.parse_args(arguments))
    except UserError as error:
        print(f"soc: error: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    """Record a decode, run it on the system, and print what the program prints."""
    decode = record(options)
    print(
        f"decode: {options.model}, {options.tokens} tokens behind {options.prompt!r}, "
        f"layers {', '.join(map(str, options.layers))}"
    )
    print(f"system: VexRiscv and the accelerator of {decode.config.name}", flush=True)
    done = SocSimulation(decode.config).run(decode)
    print(done.text, end="")
    return done.status


def record(options: argparse.Namespace) -> Decode:
    """Decode with the golden model and return what the chosen layers get and give."""
    model = load_model(options.model)
    layers = sorted(set(options.layers))
    if not 0 <= layers[0] <= layers[-1] < model.layers:
        raise UserError(f"--layer: {options.layers} is not allowed; must be 0..{model.layers - 1}")
    if options.tokens < 1:
        raise UserError(f"--tokens: {options.tokens} is not allowed; must be at least 1")
    new_tokens = options.tokens + 1  # the last one is never read
    context = needed_context(model, options.prompt, new_tokens)
    code, preset = CacheCode.parse(options.code), load_config(options.preset)
    recorder = DecodeRecorder(layers)
    session = replace(load_session(model, code, context, preset=preset), backend=recorder)
    session.decode(options.prompt, new_tokens, session.new_cache())
    return recorder.decode()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
