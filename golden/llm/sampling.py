"""Text that a model writes itself: what it is calibrated on unless a text is given.

Sampled at temperature one, a model's own text has the statistics of what it has learned, whatever
that is, and exists for every model. It beats a text of one kind, such as documentation
(docs/short-code.md), and is never the text that anything is evaluated on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from golden.llm.models import LanguageModel
from kvtq_hw.contract.errors import UserError

__all__ = ["sample_tokens"]


def sample_tokens(
    language_model: LanguageModel, tokens: int, length: int, seed: int = 0
) -> list[Tensor]:
    """Sequences of `length` tokens that a model continues from one random token each.

    The first token is drawn from all but the special ones, the others from the model's
    predictions; a special one, such as the end of a text, is continued as any other. The same on
    every run with one build of PyTorch.

    Parameters
    ----------
    tokens : number of all tokens; the last sequence may be shorter
    length : at most the model's positions are used

    Returns
    -------
    int64 [length] each

    Raises
    ------
    UserError
        When the model predicts what is not finite.
    """
    length = min(length, language_model.max_positions, tokens)
    rows = -(-tokens // length)
    generator = torch.Generator().manual_seed(seed)
    special = set(language_model.tokenizer.all_special_ids)
    ordinary = torch.tensor([i for i in range(len(language_model.tokenizer)) if i not in special])
    newest = ordinary[torch.randint(len(ordinary), (rows, 1), generator=generator)]
    columns, cache = [newest], None
    with torch.inference_mode():
        while len(columns) < length:
            found = language_model.model(newest, past_key_values=cache, use_cache=True)
            cache = found.past_key_values
            logits = found.logits[:, -1].float()
            if not logits.isfinite().all():
                raise UserError(
                    f"model {language_model.name!r}: its logits are not finite at token "
                    f"{len(columns)}, though its weights are; it cannot be calibrated"
                )
            probabilities = logits.softmax(-1)
            newest = torch.multinomial(probabilities, 1, generator=generator)
            columns.append(newest)
    sequences = list(torch.cat(columns, 1))
    sequences[-1] = sequences[-1][: tokens - (rows - 1) * length]
    return sequences
