"""Find all mutants of the sources, and draw a seeded sample."""

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

#: Modules of kvtq_hw that are mutated: those that define computation, storage and addresses.
CONTRACT = (
    *(f"contract/{name}" for name in ("config", "codes", "tiers", "cycle_model", "layout")),
    *(f"contract/{name}" for name in ("packing", "registers")),
    "estimates/traffic",
)

#: Types of leaves in parso's tree that no operator mutates: most of the tree.
_IDLE = {"name", "newline", "string", "endmarker", "indent", "dedent", "error_leaf"}

Place = tuple[int, int]  # line and column, as parso counts them


@dataclass(frozen=True)
class Mutant:
    """One change to one file.

    file : relative to the checkout
    line : where the change is
    where : class and function around the change, empty at the top of a module
    operator, occurrence : name of the operator, and the number of its place in the file
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
        """A hash that identifies the mutant while its file is unchanged."""
        return _hash(self.file, self.line, self.operator, self.occurrence, self.after)

    @property
    def area(self) -> str:
        """The part of the project in whose score the mutant counts."""
        if self.file in ("rtl/scheduler.py", "rtl/job_parts.py"):
            return "scheduler"
        return {"rtl": "RTL", "golden": "golden"}.get(self.file.partition("/")[0], "contract")

    def apply(self, source: str) -> str:
        """Return the text of the file with the change."""
        mutated = mutate_code(source, get_operator(self.operator)(), self.occurrence)
        assert mutated is not None, "the source is another than the mutant was drawn from"
        return mutated


@dataclass(frozen=True)
class _Candidate:
    """A possible mutation, whose text is not yet generated."""

    operator: str
    occurrence: int
    start: Place
    end: Place


def sources(root: Path, only: Sequence[str] = ()) -> list[str]:
    """Return the files that are mutated, restricted to the files or folders in `only`, if any.

    Raises
    ------
    ValueError
        If a name in `only` contains no file that is mutated.
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
    """Draw mutants, with the same probability for each place in the sources.

    The mutants are returned in the order of the draw. A place keeps its rank when other places
    change, and a larger sample begins with the smaller one.
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
    """Yield every mutant of a file."""
    source = (root / file).read_text("utf-8")
    for found in _possible(source):
        mutant = _mutant(file, source, found)
        if mutant is not None:
            yield mutant


def _possible(source: str) -> list[_Candidate]:
    """Return every mutation of a source, except in texts, types and declarations."""
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
    """Return the mutant of a candidate; None if its text is not valid Python or means the same."""
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
    """Return the names of class and function around a line, joined by dots."""
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
    """Yield the ranges of a source without behaviour: types, decorators, texts, protocols."""
    for node in ast.walk(tree):
        yield from map(_stretch, _without_behaviour(node))


def _without_behaviour(node: ast.AST) -> list[ast.expr | ast.stmt]:
    """Return the parts of a node, or the node itself, that no test can tell from a mutant."""
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
    """Return decorators and types of a function; also its body if it is abstract or an overload."""
    arguments = [x.annotation for x in ast.walk(node.args) if isinstance(x, ast.arg)]
    types = [node.returns, *arguments]
    types += [x.annotation for x in ast.walk(node) if isinstance(x, ast.AnnAssign)]
    replaced = {"abstractmethod", "overload"} & set(map(ast.unparse, node.decorator_list))
    body = node.body if replaced else []
    return [*node.decorator_list, *filter(None, types), *body]


def _of_class(node: ast.ClassDef) -> list[ast.expr | ast.stmt]:
    """Return decorators and types of a class; also the body if the class is a protocol."""
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
