"""A cache of emitted Verilog, by block, configuration and version of the sources."""

from __future__ import annotations

import hashlib
from pathlib import Path

from filelock import FileLock

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.files import disk_errors, write_text
from kvtq_hw.host.sources import hardware_digest
from rtl.blocks import emit_block, module_name
from rtl.verilog import generator_version

__all__ = ["cached_verilog"]


@disk_errors("cache of Verilog")
def cached_verilog(
    block: str, config: EngineConfig, folder: Path, *, all_names: bool = False
) -> str:
    """Return a block's Verilog text, as `rtl.blocks.emit_block` writes it, cached in `folder`.

    Emitting the engine takes many seconds. The cached text is used as long as the configuration,
    the sources of the `rtl` package and of the configuration, and the tools are the same.
    """
    parts = (block, config.digest(), generator_version(), hardware_digest(block), str(all_names))
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = folder / f"{module_name(block)}-{key}.v"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if (text := _whole(path)) is None:
            text = emit_block(block, config, all_names=all_names)
            write_text(path, text, "Verilog")
        return text


def _whole(path: Path) -> str | None:
    """Return the text of a Verilog file; None if the file is missing or damaged."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return text if text.endswith("endmodule\n") else None
