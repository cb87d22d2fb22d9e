"""Digests of source files, for the keys of stored results.

A result depends on the module that computes it and on every module of this distribution that the
module imports, directly or indirectly. `source_digest` follows these imports, so that no list of
files is kept by hand::

    key = {"config": config.digest(), "sources": source_digest("golden.study.quality")}

Comments, docstrings and layout do not count. Imports for type checking alone do not count either,
nor do modules that only carry results of others: reading and writing files, errors.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

__all__ = ["dependencies", "hardware_digest", "source_digest"]

#: Packages of this distribution. Other imported packages count by the versions of tools in a key.
PACKAGES = ("golden", "kvtq_hw", "rtl", "sim")

#: Modules that decide no result: content that they read is itself part of a key, and so is the
#: version, which the distribution's own module has beside the names of the Python API.
_CARRIERS = (
    "kvtq_hw",
    "kvtq_hw.contract.errors",
    "kvtq_hw.contract.files",
    "kvtq_hw.contract.folders",
    "kvtq_hw.contract.model_wheels",
    "kvtq_hw.host.sources",
)

_ROOT = Path(__file__).resolve().parents[2]


@cache
def source_digest(*modules: str) -> str:
    """Return the hexadecimal SHA-256 of the code of modules and of everything that they import.

    Parameters
    ----------
    modules : dotted names, such as ``rtl.engine``

    Raises
    ------
    ValueError
        Without a module, or for a name that is no module of this distribution: under a digest of
        nothing, every stored result would count as current.
    """
    if not modules:
        raise ValueError("source_digest needs at least one module")
    digest = hashlib.sha256()
    for name in sorted(dependencies(*modules)):
        digest.update(f"{name} {_content(_file(name))}\n".encode())
    return digest.hexdigest()


def hardware_digest(block: str | None = None) -> str:
    """Return the digest of the sources of a block's Verilog; of the engine's Verilog for None.

    Parameters
    ----------
    block : a name in `rtl.blocks.BLOCKS`
    """
    return source_digest("rtl.verilog", f"rtl.{block or 'engine'}")


def dependencies(*modules: str) -> set[str]:
    """Return the names of modules and of everything that they import, transitively.

    Raises
    ------
    ValueError
        For a name that is no module of this distribution.
    """
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += (inner for inner in _imported(name) if inner not in _CARRIERS)
    return found


@cache
def _imported(name: str) -> tuple[str, ...]:
    """Return this distribution's modules that a module imports, anywhere in its text."""
    file = _file(name)
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(file.read_bytes())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if node not in for_types:
            names.update(_names(node, package))
    return tuple(sorted(names))


def _names(node: ast.AST, package: str) -> Iterator[str]:
    """Iterate over this distribution's modules that an import or `import_module` may load."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if _is_ours(alias.name):
                yield alias.name
    elif isinstance(node, ast.ImportFrom):
        parts = package.split(".")[: 1 - node.level or None] if node.level else []
        origin = ".".join([*parts, *filter(None, [node.module])])
        if _is_ours(origin):
            yield origin
            # `from golden import engine` also loads golden.engine
            yield from filter(_find, (f"{origin}.{alias.name}" for alias in node.names))
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        yield from _loaded(node)


def _loaded(call: ast.Call) -> Iterator[str]:
    """Iterate over what ``import_module(f"rtl.{name}")`` may load: all modules of the package."""
    for argument in call.args:
        if not isinstance(argument, ast.JoinedStr) or not argument.values:
            continue
        head = argument.values[0]
        package = str(head.value).rstrip(".") if isinstance(head, ast.Constant) else ""
        if _is_ours(package):
            folder = _file(package).parent
            yield from (f"{package}.{file.stem}" for file in folder.glob("[!_]*.py"))


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] in PACKAGES


def _find(name: str) -> Path | None:
    """Find the file of a module of this distribution without an import; None for another name."""
    place = _ROOT.joinpath(*name.split("."))
    files = (place.with_suffix(".py"), place / "__init__.py") if _is_ours(name) else ()
    return next((file for file in files if file.is_file()), None)


def _file(name: str) -> Path:
    file = _find(name)
    if file is None:
        raise ValueError(f"{name!r} is no module of {', '.join(PACKAGES)}")
    return file


@cache
def _content(file: Path) -> str:
    """Return a file's effective content: its syntax tree without docstrings, and named data files.

    A string that names a file in the module's folder stands for that file. An example is the
    register map, which the module beside it reads.
    """
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            del node.body[0]
    digest = hashlib.sha256(ast.dump(tree).encode())
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    for name in sorted(text for text in strings if isinstance(text, str) and "." in text):
        if "/" not in name and "\0" not in name and len(name) < 100:
            data = file.parent / name
            if data.is_file():
                digest.update(f"{name}\n".encode() + data.read_bytes())
    return digest.hexdigest()
