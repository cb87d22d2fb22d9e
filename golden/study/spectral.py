"""Spectral rotations of OSCAR: orthogonal matrices from what attention does with keys and values.

Per layer and KV head, with Q the post-RoPE queries of all query heads that read the KV head, and
S their softmax weights of the values V, the second moments are

- ``Q' Q`` for keys: an error E of the keys changes scores by ``Q E'``, of squared size
  ``tr(E Q' Q E')``;
- ``(S V)' (S V)`` for values, as in the paper. The authors' later program has ``V' diag(w) V``
  with ``w_t = k_t Q' Q k_t'`` instead.

The rotation is ``R = U H P``. U has the eigenvectors of the second moments as columns, the largest
eigenvalue first. H is a normalized Walsh-Hadamard matrix: after it, every channel has an equal
share of every direction, so no channel is more important than the others. The permutation P puts
channels in the order of their reversed bits; it matters only where a head vector has several groups
with a scale of their own.

H is `golden.hadamard`'s: block-diagonal for a head dimension that is no power of two, where every
block has some consecutive eigenvectors. Its signs only choose eigenvectors' signs, which are
arbitrary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from golden.causal import causal_mask
from golden.hadamard import hadamard
from golden.learned_sinks import softmax
from golden.llm import calibration
from golden.llm.models import LanguageModel
from golden.llm.own_text import own_text
from golden.llm.watching import LayerInputs, watched
from golden.tensors import Expected, read_metadata, read_tensors, write_tensors
from kvtq_hw.contract.errors import UserError, warn
from kvtq_hw.contract.folders import cache_folder

__all__ = [
    "SpectralRotations",
    "fit",
    "load_or_fit",
    "load_rotations",
    "save_rotations",
    "spectral_rotation",
]

_FORMAT = "kvtq-hw spectral rotations 1"
_WHAT = "rotation file"


@dataclass(frozen=True)
class SpectralRotations:
    """The rotations of all layers of a model.

    key_rotations, value_rotations : orthogonal, float32 [layers, kv_heads, D, D]
    """

    key_rotations: Tensor
    value_rotations: Tensor


def spectral_rotation(moments: Tensor) -> Tensor:
    """Return the rotation R of second moments [..., D, D], float64 [..., D, D]."""
    dim = moments.shape[-1]
    directions = torch.linalg.eigh(moments.double()).eigenvectors.flip(-1)
    mixed = hadamard(directions) / math.sqrt(dim & -dim)
    bits = (dim - 1).bit_length()
    order = sorted(range(dim), key=lambda channel: f"{channel:0{bits}b}"[::-1])
    return mixed[..., order]


def fit(language_model: LanguageModel, tokens: int | None = None) -> SpectralRotations:
    """Fit rotations to text that the model writes itself, the text of the default calibration.

    Parameters
    ----------
    tokens : number of tokens; as many as the default calibration has when None

    Raises
    ------
    UserError
        When the model has layers that no cache of this program supports, or a prediction of the
        model is not finite.
    """
    language_model.check_supported()
    pieces = own_text(language_model, tokens or calibration.DEFAULT_TOKENS, calibration.SEGMENT)
    windows = language_model.windows
    dim = language_model.head_dim
    moments = torch.zeros((2, len(windows), language_model.kv_heads, dim, dim), dtype=torch.float64)

    def add(inputs: LayerInputs) -> None:
        moments[:, inputs.layer] += _second_moments(inputs, windows[inputs.layer]).cpu()

    with watched(language_model, add), torch.no_grad():
        for piece in pieces:
            language_model.model(language_model.placed(piece)[None], use_cache=False)
    return SpectralRotations(*spectral_rotation(moments).float())


def _second_moments(inputs: LayerInputs, window: int | None) -> Tensor:
    """Return Q'Q and (SV)'(SV) of each KV head, float64 [2, kv_heads, D, D]."""
    queries, keys, values = (x.float() for x in (inputs.queries, inputs.keys, inputs.values))
    kv_heads, tokens, _ = keys.shape
    queries = queries.unflatten(0, (kv_heads, -1))
    sinks = inputs.sink_logits
    of_groups = None if sinks is None else sinks.float().unflatten(0, (kv_heads, -1))
    scores = queries @ keys[:, None].mT * inputs.scaling
    causal = causal_mask(tokens, tokens, window, keys.device)
    weights = softmax(scores.masked_fill(~causal, -math.inf), of_groups)
    both = torch.stack([queries, weights @ values[:, None]]).double().flatten(2, 3)
    return both.mT @ both


def load_or_fit(language_model: LanguageModel) -> SpectralRotations:
    """Return a model's rotations, fitted once and kept in the user's cache folder."""
    name = language_model.file_name(_FORMAT.split()[-1], calibration.DEFAULT_TOKENS)
    path = cache_folder() / "rotations" / name
    if path.is_file():
        try:
            return load_rotations(path, language_model)
        except UserError as error:
            warn(f"{error}; the rotations are fitted again")
    rotations = fit(language_model)
    try:
        save_rotations(rotations, path, language_model)
    except UserError as error:
        warn(f"{error}; the next command fits the rotations again")
    return rotations


def save_rotations(rotations: SpectralRotations, path: Path, language_model: LanguageModel) -> None:
    """Write a rotation file, whole or not at all; raise `UserError` on failure."""
    metadata = {"format": _FORMAT, "model_fingerprint": language_model.fingerprint}
    write_tensors(path, _WHAT, vars(rotations), metadata)


def load_rotations(path: Path, language_model: LanguageModel) -> SpectralRotations:
    """Read a model's rotation file.

    Raises
    ------
    UserError
        When the file is no rotation file, belongs to another model, or holds other matrices.
    """
    metadata = read_metadata(path, _WHAT)
    if metadata.get("format") != _FORMAT:
        raise UserError(f"{_WHAT} {str(path)!r}: not a {_FORMAT} file")
    if metadata.get("model_fingerprint") != language_model.fingerprint:
        raise UserError(f"{_WHAT} {str(path)!r}: made for another model")
    dim = language_model.head_dim
    expected = Expected(torch.float32, (language_model.layers, language_model.kv_heads, dim, dim))
    names = ("key_rotations", "value_rotations")
    tensors = read_tensors(path, _WHAT, dict.fromkeys(names, expected))
    for name, tensor in tensors.items():
        rotation = tensor.double()  # in which no square is infinite
        if (rotation.mT @ rotation - torch.eye(dim)).abs().max() > 1e-4:
            raise UserError(f"{_WHAT} {str(path)!r}: {name}: not orthogonal")
    return SpectralRotations(**tensors)
