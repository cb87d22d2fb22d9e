"""Write a model with a large bias on keys, as Qwen 2 has them, made from a model without.

Usage: python benchmarks/biased_model.py [--model NAME] [--bias B] -o FOLDER

In the first and the last layer the pair of RoPE channels that queries use least (the smallest rows
of their projection) is taken away from the queries of each KV head, and its keys get the bias.
Without a cache the model computes nearly what it did: no query reads the biased channels. What a
cache format loses on it and on the original model says how it bears such keys; docs/quality.md has
the commands and the results.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from torch import nn

from golden.llm.models import LanguageModel, load_model
from kvtq_hw.commands.frame.options import OutputFolder, model_option
from kvtq_hw.contract.errors import UserError


def add_biases(language_model: LanguageModel, bias: float) -> None:
    """Give a Llama's first and last layer keys with a bias; all its projections get bias terms."""
    layers = language_model.model.model.layers
    half = language_model.head_dim // 2
    for number, layer in enumerate(layers):
        attention = layer.self_attn
        key_bias = torch.zeros(language_model.kv_heads, language_model.head_dim)
        if number in (0, len(layers) - 1):
            rows = attention.q_proj.weight.data.view(
                language_model.kv_heads, language_model.query_group, 2, half, -1
            )
            pairs = rows.square().sum((1, 2, 4)).argmin(-1)
            for head, pair in enumerate(pairs.tolist()):
                rows[head, :, :, pair] = 0
                key_bias[head, [pair, pair + half]] = bias
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            projection = getattr(attention, name)
            none = torch.zeros(projection.out_features)
            projection.bias = nn.Parameter(key_bias.flatten() if name == "k_proj" else none)
    language_model.model.config.attention_bias = True


@click.command()
@model_option
@click.option("--bias", type=float, default=300.0, show_default=True, help="Bias of the keys.")
@click.option("-o", "--output", type=OutputFolder(), required=True, help="Folder of the model.")
def main(model_name: str, bias: float, output: Path) -> None:
    """Write the model with biases on keys to a folder."""
    language_model = load_model(model_name)
    if language_model.model.config.model_type != "llama":
        raise UserError(
            f"model {model_name!r}: is no Llama; allowed are models whose configuration has "
            "attention_bias"
        )
    add_biases(language_model, bias)
    language_model.model.save_pretrained(output)
    language_model.tokenizer.save_pretrained(output)
    click.echo(output)


if __name__ == "__main__":
    main()
