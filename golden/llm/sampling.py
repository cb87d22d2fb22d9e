"""Text that a model writes itself, for calibration when no text is given.

Text sampled at temperature one has the statistics that the model has learned, and exists for every
model. It is a better calibration text than text of one kind, such as documentation
(docs/short-code.md), and it is never an evaluation text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from golden.llm.models import LanguageModel
from golden.llm.progress import Work
from kvtq_hw.contract.errors import UserError

__all__ = ["sample_tokens"]


def sample_tokens(
    language_model: LanguageModel,
    tokens: int,
    length: int,
    seed: int = 0,
    work: Work | None = None,
) -> list[Tensor]:
    """Sample sequences of `length` tokens from a model, each from its first token.

    The first token is the beginning-of-text token where the model has one; else it is drawn from
    all tokens but the special ones. The other tokens are drawn from the model's predictions. A
    special token, such as the end of a text, is continued like any other token. The result is the
    same on every run with one build of PyTorch.

    Parameters
    ----------
    tokens : total number of tokens; the last sequence may be shorter
    length : tokens per sequence, limited to the model's positions
    work : advances by `tokens` in all

    Returns
    -------
    Sequences int64 [length]

    Raises
    ------
    UserError
        When a prediction of the model is not finite.
    """
    length = min(length, language_model.max_positions, tokens)
    rows = -(-tokens // length)
    generator = torch.Generator().manual_seed(seed)
    special = set(language_model.tokenizer.all_special_ids)
    ordinary = [i for i in range(len(language_model.tokenizer)) if i not in special]
    firsts = torch.tensor(language_model.beginning or ordinary)
    newest = firsts[torch.randint(len(firsts), (rows, 1), generator=generator)]
    columns, cache = [newest], None
    with torch.inference_mode():
        while len(columns) < length:
            placed = language_model.placed(newest)
            found = language_model.model(placed, past_key_values=cache, use_cache=True)
            cache = found.past_key_values
            logits = found.logits[:, -1].float().cpu()  # as the generator of random numbers is
            if not logits.isfinite().all():
                raise UserError(
                    f"model {language_model.name!r}: its logits are not finite at token "
                    f"{len(columns)}, though its weights are; it cannot be calibrated"
                )
            probabilities = logits.softmax(-1)
            newest = torch.multinomial(probabilities, 1, generator=generator)
            columns.append(newest)
            if work is not None:
                sampled = tokens * len(columns) // length
                work.advance(sampled - tokens * (len(columns) - 1) // length)
    sequences = list(torch.cat(columns, 1))
    sequences[-1] = sequences[-1][: tokens - (rows - 1) * length]
    return sequences
