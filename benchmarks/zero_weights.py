"""Measure how many values have a weight of zero for all query heads, in a model's decode steps.

Usage: python benchmarks/zero_weights.py [--code CODE] [--context TOKENS]... [--texts N]

Each text of Python's documentation is prefilled up to the context's last token. The last token is a
decode step, in which all layers and KV heads count. Printed are the mean over these of

- softmax: the share of values whose softmax weight is zero. Hardware could leave these unread.
- scaled: the share of values whose weight is zero once it is multiplied by the value's scale.
- slices: the share of value slices of these, in which the value lanes rest. One plane per cycle.
- cycles: the share of the job's slices, keys included, that would be saved by leaving them out.
- bytes: the share of the job's stored bytes that are values whose softmax weight is zero.
"""

from __future__ import annotations

import click
import torch

from golden.attend.attention import ATTENTION
from golden.attend.single_precision import SinglePrecisionBackend
from golden.llm.calibration import load_or_calibrate
from golden.llm.decoding import make_cache
from golden.llm.models import load_model
from golden.study.quality import cut_segments, documentation_text
from golden.study.zero_weights import CountingBackend
from kvtq_hw.commands.frame.options import code_option
from kvtq_hw.contract.codes import DEFAULT_CODE, CacheCode
from kvtq_hw.contract.config import EngineConfig, load_config
from kvtq_hw.contract.packing import cache_bytes, vector_bytes


@click.command()
@code_option("Code of the cache.", DEFAULT_CODE, accepts="code")
@click.option("--context", "contexts", type=int, multiple=True, default=(256, 1024))
@click.option("--texts", type=click.IntRange(min=1), default=4, show_default=True)
def main(code: CacheCode, contexts: tuple[int, ...], texts: int) -> None:
    """Print a table: context, and the shares."""
    torch.set_num_threads(1)
    model, config = load_model("smollm2"), load_config("smollm2")
    calibration = load_or_calibrate(model)
    click.echo(f"SmolLM2-135M, {code}: values without weight, all layers and KV heads")
    click.echo(
        f"{'context':>7} {'softmax':>8} {'scaled':>8} {'slices':>8} {'cycles':>8} {'bytes':>8}"
    )
    for context in contexts:
        counting = CountingBackend(SinglePrecisionBackend())
        for text in cut_segments(model, documentation_text(), context, texts):
            cache = make_cache(config, code, calibration, counting, model.windows)
            with model.attending_with(ATTENTION), torch.inference_mode():
                for part in (text[:-1], text[-1:]):
                    model.model(part[None], past_key_values=cache, logits_to_keep=1)
        found = counting.found
        key_slices = sum(code.planes(code.key_digits, context, config.max_planes))
        shares = torch.tensor(
            [
                [
                    head.before.double().mean(),
                    head.after.double().mean(),
                    head.depths[head.after].sum() / head.depths.sum(),
                    head.depths[head.after].sum() / (head.depths.sum() + key_slices),
                    _bytes(config, code, head.depths[head.before].tolist())
                    / cache_bytes(config, code, context),
                ]
                for head in found
            ]
        ).mean(0)
        click.echo(f"{context:7} " + " ".join(f"{100 * share:6.1f} %" for share in shares))


def _bytes(config: EngineConfig, code: CacheCode, depths: list[int]) -> int:
    """Return the bytes of values with these numbers of planes."""
    return sum(vector_bytes(config, depth, code.scales(depth)) for depth in depths)


if __name__ == "__main__":
    main()
