"""Which mutants there are, and a seeded sample of them."""

from __future__ import annotations

import ast
import difflib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import parso
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

from mutants.operators import operator_names

__all__ = ["CONTRACT", "Mutant", "candidates", "draw", "sources"]

#: Modules of kvtq_hw that say what is computed, stored and addressed.
CONTRACT = (
    *(f"contract/{name}" for name in ("config", "codes", "tiers", "cycle_model", "layout")),
    *(f"contract/{name}" for name in ("packing", "registers")),
    "estimates/traffic",
)

#: Leaves of the tree that no operator mutates, most of it.
_IDLE = {"name", "newline", "string", "endmarker", "indent", "dedent", "error_leaf"}

Place = tuple[int, int]  # line and column, as parso counts them


@dataclass(frozen=True)
class Mutant:
    """One change to one file.

    file : relative to the checkout
    line : where the change is
    where : class and function around it, empty at the top of a module
    operator, occurrence : what Cosmic Ray applies
    before, after : the lines that differ, without indentation
    """

    file: str
    line: int
    where: str
    operator: str
    occurrence: int
    before: str
    after: str

    @property
    def key(self) -> str:
        """Names the mutant as long as its file is the same."""
        return _hash(self.file, self.line, self.operator, self.occurrence, self.after)

    @property
    def area(self) -> str:
        """The part of the project whose tests are measured with it."""
        if self.file in ("rtl/scheduler.py", "rtl/job_parts.py"):
            return "scheduler"
        return {"rtl": "RTL", "golden": "golden"}.get(self.file.partition("/")[0], "contract")

    def apply(self, source: str) -> str:
        """The file's text with the change."""
        mutated = mutate_code(source, get_operator(self.operator)(), self.occurrence)
        assert mutated is not None, "the source is another than the mutant was drawn from"
        return mutated


@dataclass(frozen=True)
class _Candidate:
    """A mutation that is possible; its text is not made yet."""

    operator: str
    occurrence: int
    start: Place
    end: Place


def sources(root: Path, only: Sequence[str] = ()) -> list[str]:
    """Files that are mutated, or those of them that `only` names: files or folders.

    Raises
    ------
    ValueError
        For a name of `only` under which nothing is mutated.
    """
    files = [*root.glob("rtl/*.py"), *root.glob("golden/**/*.py")]
    files += [root / "kvtq_hw" / f"{name}.py" for name in CONTRACT]
    names = sorted(f.relative_to(root).as_posix() for f in files if f.name != "__init__.py")
    chosen: set[str] = set()
    for name in only:
        folder = Path(name).as_posix()
        found = [file for file in names if file == folder or file.startswith(f"{folder}/")]
        if not found:
            raise ValueError(
                f"--only {name}: nothing there is mutated; allowed are rtl, golden, kvtq_hw and "
                "files of theirs"
            )
        chosen.update(found)
    return sorted(chosen) if only else names


def draw(root: Path, files: Sequence[str], seed: int, sample: int) -> list[Mutant]:
    """Draw mutants, each place in the sources as likely as another, in the order of the draw.

    A place keeps its rank when other places change, and a larger sample begins with the smaller.
    """
    ranked = []
    for file in files:
        source = (root / file).read_text("utf-8")
        lines = source.splitlines()
        places: dict[tuple[Place, Place], list[tuple[str, _Candidate]]] = {}
        for found in _possible(source):
            texts = (file, lines[found.start[0] - 1], found.start[1], found.end)
            rank = _hash(seed, *texts[:3], found.end[1], found.operator, found.occurrence)
            places.setdefault((found.start, found.end), []).append((rank, found))
        for (start, end), here in places.items():
            rank = _hash(seed, file, lines[start[0] - 1].strip(), start[1], end[1] - start[1])
            ranked.append((rank, file, sorted(here, key=lambda pair: pair[0])))
    drawn: list[Mutant] = []
    for _, file, here in sorted(ranked, key=lambda entry: entry[:2]):
        if len(drawn) == sample:
            break
        source = (root / file).read_text("utf-8")
        mutants = (_mutant(file, source, found) for _, found in here)
        drawn += [mutant for mutant in mutants if mutant is not None][:1]
    return drawn


def candidates(root: Path, file: str) -> Iterator[Mutant]:
    """Every mutant of a file."""
    source = (root / file).read_text("utf-8")
    for found in _possible(source):
        mutant = _mutant(file, source, found)
        if mutant is not None:
            yield mutant


def _possible(source: str) -> list[_Candidate]:
    """Every mutation of a source outside what is text, type or declaration."""
    excluded = list(_excluded(ast.parse(source)))
    nodes = [node for node in ast_nodes(parso.parse(source)) if node.type not in _IDLE]
    found = []
    for name in operator_names():
        operator = get_operator(name)()
        occurrence = 0
        for node in nodes:
            for start, end in operator.mutation_positions(node):
                if not any(first <= start and end <= last for first, last in excluded):
                    found.append(_Candidate(name, occurrence, start, end))
                occurrence += 1
    return found


def _mutant(file: str, source: str, found: _Candidate) -> Mutant | None:
    """The mutant of a candidate; None where its text is no Python or says the same."""
    mutated = mutate_code(source, get_operator(found.operator)(), found.occurrence)
    try:
        same = ast.dump(ast.parse(mutated)) == ast.dump(ast.parse(source))
    except SyntaxError:
        return None
    if same:
        return None
    old, new = source.splitlines(), mutated.splitlines()
    before, after = [], []
    for tag, i, j, k, n in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            before += old[i:j]
            after += new[k:n]
    texts = ["\n".join(line.strip() for line in part) for part in (before, after)]
    line = found.start[0]
    return Mutant(
        file, line, _where(source, line), found.operator, found.occurrence, texts[0], texts[1]
    )


def _where(source: str, line: int) -> str:
    """Class and function around a line."""
    names = []
    body: list[ast.stmt] = ast.parse(source).body
    while body:
        around = [s for s in body if s.lineno <= line <= (s.end_lineno or s.lineno)]
        body = []
        for statement in around:
            if isinstance(statement, ast.ClassDef | ast.FunctionDef):
                names.append(statement.name)
                body = statement.body
    return ".".join(names)


def _excluded(tree: ast.AST) -> Iterator[tuple[Place, Place]]:
    """Stretches of a source that are no behaviour: types, decorators, texts, protocols."""
    for node in ast.walk(tree):
        yield from map(_stretch, _without_behaviour(node))


def _without_behaviour(node: ast.AST) -> list[ast.expr | ast.stmt]:
    """Parts of a node, or the node itself, that no test can tell from others."""
    match node:
        case ast.FunctionDef():
            return _of_function(node)
        case ast.ClassDef():
            return _of_class(node)
        case ast.Module():
            return [s.annotation for s in node.body if isinstance(s, ast.AnnAssign)]
        case ast.Assign() if ast.unparse(node.targets[0]) == "__all__":
            return [node]
        case ast.Raise() | ast.JoinedStr():
            return [node]
        case ast.If() if ast.unparse(node.test) == "TYPE_CHECKING":
            return [node]
    return []


def _of_function(node: ast.FunctionDef) -> list[ast.expr | ast.stmt]:
    """Decorators and types of a function; all of it where others take its place."""
    arguments = [x.annotation for x in ast.walk(node.args) if isinstance(x, ast.arg)]
    types = [node.returns, *arguments]
    types += [x.annotation for x in ast.walk(node) if isinstance(x, ast.AnnAssign)]
    replaced = {"abstractmethod", "overload"} & set(map(ast.unparse, node.decorator_list))
    body = node.body if replaced else []
    return [*node.decorator_list, *filter(None, types), *body]


def _of_class(node: ast.ClassDef) -> list[ast.expr | ast.stmt]:
    """Decorators and types of a class; all of a protocol."""
    bases = [ast.unparse(base) for base in node.bases]
    # in Amaranth the annotation of a structure's field is its shape
    typed = [] if "data.Struct" in bases else node.body
    types = [x.annotation for x in typed if isinstance(x, ast.AnnAssign)]
    body = node.body if any(base.startswith("Protocol") for base in bases) else []
    return [*node.decorator_list, *types, *body]


def _stretch(node: Any) -> tuple[Place, Place]:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def _hash(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]
