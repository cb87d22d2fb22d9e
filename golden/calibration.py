"""Calibration: static key centres and number ranges of a model, measured on a short text.

The text is not the one that anything is evaluated on: English documentation that comes with every
Python (`pydoc_data.topics`). What was measured is kept in a safetensors file whose metadata name
the model, the hash of its weights and the text, and it is refused for any other model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from platformdirs import user_cache_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import DynamicCache

from golden.conditioning import Conditioning, to_integers
from golden.models import LanguageModel
from kvtq_hw.config import VECTOR_MAX
from kvtq_hw.errors import UserError

__all__ = [
    "Calibration",
    "calibrate",
    "calibration_text",
    "load_calibration",
    "load_or_calibrate",
    "save_calibration",
]

DEFAULT_TOKENS = 1024
_FORMAT = "kvtq-hw calibration 2"

_TENSORS = ("key_centres", "key_exponents", "value_exponents")

# Bits between the largest element that calibration has seen and the largest that 16 bits hold.
_HEAD_ROOM = 1


@dataclass(frozen=True)
class Calibration:
    """Statistics of one model.

    key_centres : float32 [layers, kv_heads, D], mean post-RoPE key
    key_exponents, value_exponents : int64 [layers]; keys and values become 16-bit integers in units
        of ``2**exponent``, with a bit of room above the largest element that was seen
    model_name : what the model was loaded as
    model_fingerprint : SHA-256 of its weights
    tokens : length of the text that was measured
    text_digest : SHA-256 of that text
    """

    key_centres: Tensor
    key_exponents: Tensor
    value_exponents: Tensor
    model_name: str
    model_fingerprint: str
    tokens: int
    text_digest: str

    def conditioning(self) -> list[Conditioning]:
        """Rotation and centring of every layer."""
        layers = zip(
            self.key_centres,
            self.key_exponents.tolist(),
            self.value_exponents.tolist(),
            strict=True,
        )
        return [
            Conditioning(True, to_integers(centre, key_exponent)[0], key_exponent, value_exponent)
            for centre, key_exponent, value_exponent in layers
        ]


def calibration_text() -> str:
    """The default text: the topics of Python's own documentation, in alphabetical order."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def calibrate(
    language_model: LanguageModel, text: str | None = None, tokens: int = DEFAULT_TOKENS
) -> Calibration:
    """Measure keys and values of every layer over the first `tokens` tokens of a text.

    Raises
    ------
    UserError
        When the text has fewer tokens than asked for.
    """
    text = calibration_text() if text is None else text
    # a tokenizer gives at least one token for ten characters of English: no need to read it all
    ids = language_model.tokenizer(text[: 10 * tokens + 1000], return_tensors="pt").input_ids
    if ids.shape[1] < tokens:
        raise UserError(
            f"calibration text has {ids.shape[1]} tokens; allowed are texts of at least {tokens}"
        )
    cache = DynamicCache()
    with torch.inference_mode():
        language_model.model(ids[:, :tokens], past_key_values=cache, use_cache=True)
    centres, key_exponents, value_exponents = [], [], []
    for layer in cache.layers:
        if layer.keys is None or layer.values is None:
            raise UserError(f"model {language_model.name!r} keeps no keys in its cache")
        centres.append(layer.keys[0].double().mean(-2).float())
        key_exponents.append(_vector_exponent(layer.keys))
        value_exponents.append(_vector_exponent(layer.values))
    return Calibration(
        torch.stack(centres),
        torch.tensor(key_exponents),
        torch.tensor(value_exponents),
        language_model.name,
        language_model.fingerprint,
        tokens,
        hashlib.sha256(text.encode()).hexdigest(),
    )


def _vector_exponent(vectors: Tensor) -> int:
    """Smallest exponent whose 16-bit integers hold twice the largest element."""
    largest = vectors.abs().max().double() / VECTOR_MAX
    return int(torch.frexp(largest).exponent) + _HEAD_ROOM


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration file; an existing one is replaced at once or not at all."""
    metadata = {
        "format": _FORMAT,
        "model_name": calibration.model_name,
        "model_fingerprint": calibration.model_fingerprint,
        "tokens": json.dumps(calibration.tokens),
        "text_digest": calibration.text_digest,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    tensors = {name: getattr(calibration, name).contiguous() for name in _TENSORS}
    save_file(tensors, scratch, metadata)
    scratch.replace(path)


def load_calibration(path: Path, language_model: LanguageModel) -> Calibration:
    """Read a calibration file for a model.

    Raises
    ------
    UserError
        When there is no such file, it is not a calibration, or it belongs to another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise UserError(f"calibration file {str(path)!r}: not a {_FORMAT} file")
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"calibration file {str(path)!r}: {reason}") from None
    if metadata["model_fingerprint"] != language_model.fingerprint:
        raise UserError(
            f"calibration file {str(path)!r}: made for model {metadata['model_name']!r}, weights "
            f"{metadata['model_fingerprint'][:12]}; this is {language_model.name!r}, weights "
            f"{language_model.fingerprint[:12]}"
        )
    return Calibration(
        **tensors,
        model_name=metadata["model_name"],
        model_fingerprint=metadata["model_fingerprint"],
        tokens=json.loads(metadata["tokens"]),
        text_digest=metadata["text_digest"],
    )


def load_or_calibrate(language_model: LanguageModel) -> Calibration:
    """The default calibration of a model, measured once and kept in the user's cache folder."""
    folder = user_cache_path("kvtq-hw") / "calibration"
    text = calibration_text()
    key = hashlib.sha256(f"{_FORMAT} {DEFAULT_TOKENS} {text}".encode()).hexdigest()[:16]
    path = folder / f"{language_model.fingerprint[:16]}-{key}.safetensors"
    if path.is_file():
        return load_calibration(path, language_model)
    calibration = calibrate(language_model, text, DEFAULT_TOKENS)
    with contextlib.suppress(OSError):  # a folder that cannot be written costs time, nothing else
        save_calibration(calibration, path)
    return calibration
