"""Warnings of what a cache code does to a calibrated model, measured on 128 tokens."""

from __future__ import annotations

from collections.abc import Sequence

from golden.conditioning import Conditioning
from golden.llm.models import LanguageModel
from golden.study.coded_layers import coded_layers
from golden.study.key_error import key_warning
from golden.study.layer_loss import loss_warning
from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import warn

__all__ = ["warn_of_losses"]


def warn_of_losses(
    language_model: LanguageModel,
    conditioning: Sequence[Conditioning],
    config: EngineConfig,
    code: CacheCode | CodeTable,
) -> None:
    """Warn of keys that the code rounds badly, and of layers that lose far more than others.

    Parameters
    ----------
    conditioning : one entry per layer

    Raises
    ------
    UserError
        When the model's tokenizer makes no tokens of an English text.
    """
    layers = coded_layers(language_model, conditioning, config, code)
    for warning in (key_warning, loss_warning):
        line = warning(code, layers)
        if line is not None:
            warn(f"model {language_model.name!r}, {line}")
