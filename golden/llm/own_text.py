"""The text of a default calibration: a model's own, which the package keeps of some models.

A model takes longer to write its 4,096 tokens one by one than to be measured on them. So the
package has the text of each model of `kvtq-hw models`, by the hash of the weights. Such a text is
also the same on every machine. `scripts/write_own_texts.py` writes the files.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from golden.llm.models import LanguageModel
from golden.llm.sampling import sample_tokens
from golden.tensors import Expected, read_tensors, write_tensors

__all__ = ["kept_text", "own_text", "save_own_text"]

_FOLDER = "own_texts"
_WHAT = "text of a model"
_LARGEST_TOKEN = 2**31 - 1


def own_text(language_model: LanguageModel, tokens: int, length: int) -> list[Tensor]:
    """Return sequences that a model wrote: kept ones, or sampled now if there are none.

    Parameters, result and errors are those of `golden.llm.sampling.sample_tokens`.
    """
    kept = kept_text(language_model, tokens, length)
    return sample_tokens(language_model, tokens, length) if kept is None else kept


def kept_text(language_model: LanguageModel, tokens: int, length: int) -> list[Tensor] | None:
    """Return the sequences that the package keeps of a model; None if it keeps none of this size.

    Parameters and result are those of `golden.llm.sampling.sample_tokens`.
    """
    kept = resources.files("golden.llm") / _FOLDER / language_model.file_name(tokens, length)
    with resources.as_file(kept) as file:
        if not file.is_file():
            return None
        expected = Expected(torch.int32, ("sequences", length), 0, _LARGEST_TOKEN)
        return list(read_tensors(file, _WHAT, {"tokens": expected})["tokens"].long())


def save_own_text(language_model: LanguageModel, tokens: int, length: int, folder: Path) -> Path:
    """Sample whole sequences of a model, write them into a folder, and return the file.

    Raises
    ------
    UserError
        When a prediction of the model is not finite, or the file cannot be written.
    """
    sequences = torch.stack(sample_tokens(language_model, tokens, length)).int()
    about = {
        "model_name": language_model.name,
        "model_fingerprint": language_model.fingerprint,
        "torch": torch.__version__,
    }
    path = folder / language_model.file_name(tokens, length)
    write_tensors(path, _WHAT, {"tokens": sequences}, about)
    return path
