"""What a cache code does to each layer of a calibrated model, on the first tokens of a text.

The text is Python's documentation. One pass of the model gives the inputs of every layer's
attention; the errors of keys and values in the code's body are computed when they are first read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from golden.causal import causal_mask
from golden.conditioning import Conditioning
from golden.llm.models import LanguageModel
from golden.llm.watching import LayerInputs, watched
from golden.study.coding_error import coding_errors
from golden.study.quality import documentation_text
from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError

__all__ = ["CodedLayer", "coded_layers"]

_TOKENS = 128


@dataclass(frozen=True)
class CodedLayer:
    """The inputs of a layer's attention, and the code in which keys and values are stored."""

    config: EngineConfig
    code: CacheCode
    inputs: LayerInputs
    conditioning: Conditioning

    @cached_property
    def key_errors(self) -> Tensor:
        """Errors of the keys in the body's digits, float64 [kv_heads, T, D]."""
        return coding_errors(self.config, self.code, "key", self.inputs.keys, self.conditioning)

    @cached_property
    def value_errors(self) -> Tensor:
        """Errors of the values in the body's digits, float64 [kv_heads, T, D]."""
        return coding_errors(self.config, self.code, "value", self.inputs.values, self.conditioning)

    @cached_property
    def causal(self) -> Tensor:
        """Whether each query sees each token, bool [T, T]."""
        tokens, device = self.inputs.keys.shape[1], self.inputs.keys.device
        return causal_mask(tokens, tokens, self.code.tiers.sliding, device)


def coded_layers(
    language_model: LanguageModel,
    conditioning: Sequence[Conditioning],
    config: EngineConfig,
    code: CacheCode | CodeTable,
) -> list[CodedLayer]:
    """Return every layer of a model with its inputs and its code.

    Parameters
    ----------
    conditioning : one entry per layer

    Raises
    ------
    UserError
        When the model's tokenizer makes no tokens of an English text.
    """
    ids = language_model.tokenizer(documentation_text()[: 20 * _TOKENS]).input_ids[:_TOKENS]
    if not ids:
        raise UserError(
            f"model {language_model.name!r}: its tokenizer makes no tokens of an English text; "
            "save the model's own tokenizer beside it"
        )
    layers: dict[int, LayerInputs] = {}

    def keep(inputs: LayerInputs) -> None:
        layers[inputs.layer] = inputs

    with watched(language_model, keep), torch.no_grad():
        language_model.model(language_model.placed(torch.tensor(ids))[None], use_cache=False)
    inputs = [layers[layer] for layer in range(language_model.layers)]
    entries = zip(code.for_layers(language_model.windows), inputs, conditioning, strict=True)
    return [CodedLayer(config, *entry) for entry in entries]
