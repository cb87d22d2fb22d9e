"""Calibration: the static constants of a model's cache, measured on some text.

Calibration runs a model twice over a text. It first measures the power of the channels of keys and
values, from which equalizers follow (`golden.equalizer`). Of equalized keys and values it then
measures the mean keys, the ranges, and the feedback matrices (`golden.feedback`). Feedback matrices
describe which directions of a key's error change attention outputs, and which directions of a
value's error pass the output projection.

The calibration text is never an evaluation text. Unless a text is given, the model writes the text
itself (`golden.llm.own_text`). The result is kept in a safetensors file. The file's metadata name
the model, the hash of its weights and the tokens; the file is refused for any other model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from golden.anchors import MOST_HITS
from golden.causal import causal_mask
from golden.conditioning import Conditioning, to_integers
from golden.equalizer import Equalizer
from golden.feedback import FACTOR_MAX, MAX_SHIFT, Feedback, feedback_from_hessian
from golden.hadamard import hadamard
from golden.learned_sinks import softmax
from golden.llm.anchor_thresholds import HitCounts
from golden.llm.channel_power import FIRST_TOKENS, ChannelPower
from golden.llm.models import LanguageModel
from golden.llm.own_text import kept_text
from golden.llm.progress import OnProgress, Work, unseen
from golden.llm.rotary_pairs import rotary_partners
from golden.llm.sampling import sample_tokens
from golden.llm.watching import LayerInputs, watched
from golden.tensors import Expected, read_metadata, read_tensors, write_tensors
from kvtq_hw.contract.config import VECTOR_MAX
from kvtq_hw.contract.errors import UserError, warn
from kvtq_hw.contract.files import Schema, validated
from kvtq_hw.contract.folders import cache_folder

__all__ = [
    "DEFAULT_TOKENS",
    "SEGMENT",
    "Calibration",
    "calibrate",
    "is_calibrated",
    "load_calibration",
    "load_or_calibrate",
    "output_projection",
    "save_calibration",
]

#: Tokens of a default calibration.
DEFAULT_TOKENS = 4096
_FORMAT = "kvtq-hw calibration 8"
_WHAT = "calibration file"

_TENSORS = (
    "key_scales",
    "value_bases",
    "key_centres",
    "key_exponents",
    "value_exponents",
    "key_feedback",
    "key_shifts",
    "value_feedback",
    "value_shifts",
    "anchor_thresholds",
    "plain_key_exponents",
    "plain_value_exponents",
)

#: Damping of the feedback matrices, as a share of the mean diagonal (docs/short-code.md).
KEY_DAMPING = 0.03
VALUE_DAMPING = 0.03

#: Tokens per forward pass: the importance of queries takes memory quadratic in this number.
SEGMENT = 1024
# Spare bits between the largest element seen in calibration and the largest 16-bit integer.
_HEAD_ROOM = 1


@dataclass(frozen=True)
class Calibration:
    """Static constants of one model's cache.

    key_scales, value_bases : float64 [layers, kv_heads, D] and [layers, kv_heads, D, D]; see
        `golden.equalizer.Equalizer`
    key_centres : float32 [layers, kv_heads, D], mean equalized post-RoPE key
    key_exponents, value_exponents : int64 [layers]; equalized keys and values become 16-bit
        integers in units of ``2**exponent``, with one spare bit above the largest element seen
    key_feedback, value_feedback : int8 [layers, kv_heads, D, D]; see `golden.feedback.Feedback`
    key_shifts, value_shifts : int64 [layers, kv_heads, D]
    anchor_thresholds : int64 [layers, kv_heads]; see `golden.llm.anchor_thresholds`
    plain_key_exponents, plain_value_exponents : the exponents of keys and values not equalized
    model_name : name under which the model was loaded
    model_fingerprint : SHA-256 of the model's weights
    tokens : number of tokens of the calibration text
    text_digest : SHA-256 of the token ids of the calibration text
    """

    key_scales: Tensor
    value_bases: Tensor
    key_centres: Tensor
    key_exponents: Tensor
    value_exponents: Tensor
    key_feedback: Tensor
    key_shifts: Tensor
    value_feedback: Tensor
    value_shifts: Tensor
    anchor_thresholds: Tensor
    plain_key_exponents: Tensor
    plain_value_exponents: Tensor
    model_name: str
    model_fingerprint: str
    tokens: int
    text_digest: str

    def conditioning(self, *, feedback: bool = True) -> list[Conditioning]:
        """Return the conditioning of each layer: equalizing, centring, rotation and feedback.

        Parameters
        ----------
        feedback : the code rounds with feedback. Without it vectors are not equalized: nothing
            would move the errors of small channels, whose queries are large.
        """
        if not feedback:
            return self._without_feedback()
        exponents = zip(self.key_exponents.tolist(), self.value_exponents.tolist(), strict=True)
        return [
            Conditioning(
                True,
                to_integers(self.key_centres[layer], key_exponent)[0],
                key_exponent,
                value_exponent,
                Feedback(self.key_feedback[layer], self.key_shifts[layer]),
                Feedback(self.value_feedback[layer], self.value_shifts[layer]),
                self.anchor_thresholds[layer],
                Equalizer(self.key_scales[layer], self.value_bases[layer]),
            )
            for layer, (key_exponent, value_exponent) in enumerate(exponents)
        ]

    def _without_feedback(self) -> list[Conditioning]:
        centres = self.key_centres * self.key_scales  # of keys that are not equalized
        ranges = self.plain_key_exponents.tolist(), self.plain_value_exponents.tolist()
        return [
            Conditioning(
                True,
                to_integers(centres[layer], key_exponent)[0],
                key_exponent,
                value_exponent,
                anchor_thresholds=self.anchor_thresholds[layer],
            )
            for layer, (key_exponent, value_exponent) in enumerate(zip(*ranges, strict=True))
        ]


def calibrate(
    language_model: LanguageModel,
    text: str | None = None,
    tokens: int = DEFAULT_TOKENS,
    progress: OnProgress = unseen,
) -> Calibration:
    """Measure keys and values of every layer over `tokens` tokens.

    Parameters
    ----------
    text : text whose first `tokens` tokens are used; the model's own text when None
    progress : takes the number of tokens done and of all; each is read twice, after it is written

    Raises
    ------
    UserError
        When the text has fewer than `tokens` tokens, the model does not run on a ternary cache, or
        the model computes numbers that are not finite.
    """
    language_model.check_supported()
    if text is None:
        pieces = kept_text(language_model, tokens, SEGMENT)
    else:
        pieces = _tokenized(language_model, text, tokens)
    work = Work(progress, (3 if pieces is None else 2) * tokens)
    if pieces is None:
        pieces = sample_tokens(language_model, tokens, SEGMENT, work=work)
    powers = _measured_power(language_model, pieces, work)
    partners = rotary_partners(language_model)
    equalizers = [power.equalizer(of) for power, of in zip(powers, partners, strict=True)]
    pairs = zip(language_model.windows, equalizers, strict=True)
    layers = [_LayerStatistics(*pair) for pair in pairs]
    _watch_all(language_model, pieces, layers, work)
    keys = [feedback_from_hessian(layer.key_hessian, KEY_DAMPING) for layer in layers]
    values = [feedback_from_hessian(layer.value_hessian, VALUE_DAMPING) for layer in layers]
    return Calibration(
        torch.stack([equalizer.key_scales for equalizer in equalizers]),
        torch.stack([equalizer.value_basis for equalizer in equalizers]),
        torch.stack([layer.key_sum / layer.tokens for layer in layers]).float(),
        torch.tensor([_vector_exponent(layer.largest_key) for layer in layers]),
        torch.tensor([_vector_exponent(layer.largest_value) for layer in layers]),
        torch.stack([feedback.factors for feedback in keys]),
        torch.stack([feedback.shift for feedback in keys]),
        torch.stack([feedback.factors for feedback in values]),
        torch.stack([feedback.shift for feedback in values]),
        torch.stack([layer.hits.thresholds() for layer in layers]),
        torch.tensor([_vector_exponent(power.largest_key) for power in powers]),
        torch.tensor([_vector_exponent(power.largest_value) for power in powers]),
        language_model.name,
        language_model.fingerprint,
        sum(map(len, pieces)),
        hashlib.sha256(torch.cat(pieces).numpy().tobytes()).hexdigest(),
    )


class _Accumulator(Protocol):
    def add(self, inputs: LayerInputs) -> None:
        """Add the attention inputs of one piece."""
        ...


def _watch_all(
    language_model: LanguageModel,
    pieces: list[Tensor],
    layers: Sequence[_Accumulator],
    work: Work,
) -> None:
    """Run a model over the pieces of a text; each layer's accumulator gets what it computes."""

    def add(inputs: LayerInputs) -> None:
        layers[inputs.layer].add(inputs)

    with watched(language_model, add), torch.no_grad():
        for piece in pieces:
            language_model.model(language_model.placed(piece)[None], use_cache=False)
            work.advance(len(piece))


def _measured_power(
    language_model: LanguageModel, pieces: list[Tensor], work: Work
) -> list[ChannelPower]:
    """Measure each layer's channels; raise `UserError` where this cannot be done."""
    layers = [ChannelPower() for _ in range(language_model.layers)]
    _watch_all(language_model, pieces, layers, work)
    for index, layer in enumerate(layers):
        if layer.tokens == 0:
            raise UserError(
                f"model {language_model.name!r}: layer {index} did not reach transformers' "
                "attention interface; it cannot be calibrated"
            )
        if not layer.finite:
            raise UserError(
                f"model {language_model.name!r}: keys or values of layer {index} are not finite, "
                "though its weights are; it cannot be calibrated"
            )
    return layers


def _tokenized(language_model: LanguageModel, text: str, tokens: int) -> list[Tensor]:
    """Return pieces of `SEGMENT` tokens from the start of a text, `tokens` tokens in all.

    A piece begins with the model's beginning-of-text token if it has one.

    Raises
    ------
    UserError
        When the text has fewer tokens.
    """
    # a tokenizer gives at least one token per ten characters of English: no need to read all
    ids = language_model.tokenizer(text[: 10 * tokens + 1000], add_special_tokens=False).input_ids
    beginning = torch.tensor(language_model.beginning).long()
    needed = tokens - len(beginning) * -(-tokens // SEGMENT)
    if len(ids) < needed:
        raise UserError(
            f"calibration text has {len(ids)} tokens; allowed are texts of at least {needed}"
        )
    pieces = torch.tensor(ids[:needed]).split(SEGMENT - len(beginning))
    return [torch.cat([beginning, piece]) for piece in pieces]


class _LayerStatistics:
    """Accumulates statistics of one layer's equalized vectors over the pieces of the text.

    Parameters
    ----------
    window : sliding window of the layer in tokens; None if there is none
    """

    def __init__(self, window: int | None, equalizer: Equalizer) -> None:
        self._window = window
        self._equalizer = equalizer
        self.hits = HitCounts(equalizer.kv_heads)
        self.tokens = 0
        self.largest_key = self.largest_value = torch.tensor(0.0)
        self.key_sum = self.key_hessian = torch.tensor(0.0, dtype=torch.float64)
        self.value_hessian = torch.tensor(0.0, dtype=torch.float64)

    def add(self, inputs: LayerInputs) -> None:
        """Add the attention inputs of one piece to the statistics."""
        map_, heads = self._equalizer, inputs.queries.shape[0]
        kv_heads, tokens, dim = inputs.keys.shape
        key, value = map_.keys(inputs.keys).float(), map_.values(inputs.values).float()
        grouped = map_.queries(inputs.queries.unflatten(0, (kv_heads, -1))).float()
        projection = output_projection(inputs.module, heads, dim).to(key.device)
        projection = map_.projection(projection.unflatten(0, (kv_heads, -1))).float()
        through = projection.mT @ projection  # [kv_heads, G, D, D]
        sinks = inputs.sink_logits
        of_groups = None if sinks is None else sinks.float().unflatten(0, (kv_heads, -1))
        importance = _importance(grouped, key, value, through, self._window, of_groups)
        self.hits.add(grouped, key, inputs.scaling)
        rotated = hadamard(grouped)
        self.tokens += tokens
        self.key_sum = self.key_sum + key.double().sum(-2).cpu()
        weighted = (importance[..., None] * rotated).flatten(1, 2)
        hessian = (weighted.mT @ rotated.flatten(1, 2)).double()
        self.key_hessian = self.key_hessian + hessian.cpu()
        rotation = hadamard(torch.eye(dim, device=key.device))
        self.value_hessian = (rotation.T @ through.mean(1) @ rotation).double().cpu()
        self.largest_key = torch.maximum(self.largest_key, key.abs().max().cpu())
        self.largest_value = torch.maximum(self.largest_value, value.abs().max().cpu())


def _importance(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    through: Tensor,
    window: int | None,
    sink_logits: Tensor | None,
) -> Tensor:
    """Return how much an error in a query's scores changes the output, float [kv_heads, G, T].

    To first order, an error d in the score of token j moves the attention output o by
    ``p_j (v_j - o) d``. Behind the output projection this change has the squared norm
    ``p_j**2 |v_j - o|**2 d**2``. The result is the sum over all tokens except the first few, which
    the short code never stores.
    """
    tokens, dim = keys.shape[-2:]
    scores = queries @ keys[:, None].mT / math.sqrt(dim)
    causal = causal_mask(tokens, tokens, window, keys.device)
    weights = softmax(scores.masked_fill(~causal, -math.inf), sink_logits)
    outputs = weights @ values[:, None]
    seen_values, seen_outputs = values[:, None] @ through, outputs @ through
    distances = (
        (seen_values * values[:, None]).sum(-1)[:, :, None, :]
        - 2 * seen_outputs @ values[:, None].mT
        + (seen_outputs * outputs).sum(-1)[..., None]
    )
    return (weights.square() * distances.clamp(min=0))[..., FIRST_TOKENS:].sum(-1)


def output_projection(module: nn.Module, heads: int, dim: int) -> Tensor:
    """Return the output projection of an attention module, per head: [heads, out, D].

    The result is the identity where the module has no projection under a known name.
    """
    for name in ("o_proj", "out_proj", "dense", "c_proj"):
        layer = getattr(module, name, None)
        weight = getattr(layer, "weight", None)
        if weight is None:
            continue
        weight = weight.detach().float()
        if isinstance(layer, Conv1D):  # [in, out]
            weight = weight.T
        if weight.shape[1] == heads * dim:
            return weight.unflatten(1, (heads, dim)).transpose(0, 1)
    return torch.eye(dim).expand(heads, dim, dim)


def _vector_exponent(largest: Tensor) -> int:
    """Return the smallest unit exponent whose 16-bit integers hold twice the largest element."""
    return int(torch.frexp(largest.double() / VECTOR_MAX).exponent) + _HEAD_ROOM


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration file, whole or not at all; raise `UserError` on failure."""
    metadata = {
        "format": _FORMAT,
        "model_name": calibration.model_name,
        "model_fingerprint": calibration.model_fingerprint,
        "tokens": str(calibration.tokens),
        "text_digest": calibration.text_digest,
    }
    tensors = {name: getattr(calibration, name) for name in _TENSORS}
    write_tensors(path, _WHAT, tensors, metadata)


def load_calibration(path: Path, language_model: LanguageModel) -> Calibration:
    """Read a calibration file for a model.

    Raises
    ------
    UserError
        When the file does not exist, is no calibration, or belongs to another model.
    """
    place = f"{_WHAT} {str(path)!r}"
    metadata = read_metadata(path, _WHAT)
    if metadata.get("format") != _FORMAT:
        raise UserError(f"{place}: not a {_FORMAT} file")
    about = validated(_Metadata, metadata, place)
    if about.model_fingerprint != language_model.fingerprint:
        raise UserError(
            f"{place}: made for model {about.model_name!r}, weights "
            f"{about.model_fingerprint[:12]}; this is {language_model.name!r}, weights "
            f"{language_model.fingerprint[:12]}"
        )
    tensors = read_tensors(path, _WHAT, _expected(language_model))
    try:
        calibration = Calibration(
            **tensors,
            model_name=about.model_name,
            model_fingerprint=about.model_fingerprint,
            tokens=int(about.tokens),
            text_digest=about.text_digest,
        )
        calibration.conditioning()
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None
    exponents = calibration.key_exponents[:, None, None]
    if torch.ldexp(calibration.key_centres.abs().double(), -exponents).max() > VECTOR_MAX:
        raise UserError(f"{place}: key_centres: do not fit in 16 bits at key_exponents")
    return calibration


class _Metadata(Schema):
    """The metadata strings in a calibration file's header."""

    model_name: str
    model_fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tokens: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]
    text_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _expected(language_model: LanguageModel) -> dict[str, Expected]:
    """Return the tensors that a calibration file of this model must have."""
    layers, dim = language_model.layers, language_model.head_dim
    heads = (layers, language_model.kv_heads, dim)
    # the range of float32 exponents, because the largest element is a float32
    exponents = Expected(torch.int64, (layers,), -170, 120)
    factors = Expected(torch.int8, (*heads, dim), -FACTOR_MAX, FACTOR_MAX)
    shifts = Expected(torch.int64, heads, 0, MAX_SHIFT)
    return {
        "key_scales": Expected(torch.float64, heads),
        "value_bases": Expected(torch.float64, (*heads, dim)),
        "key_centres": Expected(torch.float32, heads),
        "key_exponents": exponents,
        "value_exponents": exponents,
        "key_feedback": factors,
        "key_shifts": shifts,
        "value_feedback": factors,
        "value_shifts": shifts,
        "anchor_thresholds": Expected(torch.int64, (layers, language_model.kv_heads), 1, MOST_HITS),
        "plain_key_exponents": exponents,
        "plain_value_exponents": exponents,
    }


def load_or_calibrate(
    language_model: LanguageModel, file: Path | None = None, progress: OnProgress = unseen
) -> Calibration:
    """Return a model's calibration: the default one, or that of a file.

    The default one is measured once and kept in the user's cache folder.

    Parameters
    ----------
    file : file of `kvtq-hw calibrate`; None for the default calibration
    progress : as `calibrate` takes it

    Raises
    ------
    UserError
        When the file is no calibration of this model, or `calibrate` fails.
    """
    if file is not None:
        return load_calibration(file, language_model)
    path = _kept_file(language_model)
    if path.is_file():
        try:
            return load_calibration(path, language_model)
        except UserError as error:
            warn(f"{error}; the model is calibrated again")
    calibration = calibrate(language_model, None, DEFAULT_TOKENS, progress)
    try:
        save_calibration(calibration, path)
    except UserError as error:
        warn(f"{error}; the next command calibrates again")
    return calibration


def is_calibrated(language_model: LanguageModel) -> bool:
    """Return whether the user's cache folder has the default calibration of a model."""
    return _kept_file(language_model).is_file()


def _kept_file(language_model: LanguageModel) -> Path:
    """Return where the default calibration of a model is kept."""
    name = language_model.file_name(_FORMAT.split()[-1], DEFAULT_TOKENS)
    return cache_folder() / "calibration" / name
