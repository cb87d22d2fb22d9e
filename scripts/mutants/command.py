"""The command: draw mutants, judge them in parallel, and report the verdicts."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from mutants.drawing import Mutant, draw, sources
from mutants.judge import Judge, Verdict, listed_equivalents, stale_equivalents
from mutants.report import line, markdown, summary
from mutants.suites import Imports
from mutants.workshop import Workshop, fork_server

__all__ = ["main"]

ROOT = Path(__file__).resolve().parent.parent.parent
EQUIVALENT = Path(__file__).parent / "equivalent.toml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status.

    It is 0 whatever survives, 2 after bad input, and 1 where tests fail on the unchanged sources.
    """
    parser = argparse.ArgumentParser(
        prog="mutants", description="Make small mistakes in the sources: does a test notice each?"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the draw (1)")
    parser.add_argument("--sample", type=_count, default=40, metavar="N", help="mutants (40)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATH",
        help="a file or folder that is mutated; more than once, each (everything)",
    )  # fmt: skip
    parser.add_argument("--jobs", type=_count, default=1, metavar="N", help="at a time (1)")
    options = parser.parse_args(arguments)
    try:
        files = sources(ROOT, options.only)
    except ValueError as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2
    if stale := stale_equivalents(ROOT, EQUIVALENT):
        print(f"mutants: {stale[0]}", file=sys.stderr)
        return 2
    folder = ROOT / "build" / "mutants"
    mutants = draw(ROOT, files, options.seed, options.sample)
    try:
        verdicts = _judge_all(mutants, folder, options.jobs)
    except RuntimeError as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mutants: interrupted; the same command goes on from here", file=sys.stderr)
        os._exit(130)  # do not wait for mutants that are being judged
    about = {"seed": options.seed, "sample": options.sample, "only": options.only}
    rows = {"about": about, "areas": summary(verdicts), "mutants": [v.as_json for v in verdicts]}
    (folder / "mutants.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    (folder / "mutants.md").write_text(markdown(about, verdicts), "utf-8")
    print(markdown(about, verdicts).partition("\n## Mutants")[0])
    print(f"All of it: {folder / 'mutants.md'} and mutants.json beside it")
    return 0


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return number


def _judge_all(mutants: Sequence[Mutant], folder: Path, jobs: int) -> list[Verdict]:
    """Return verdicts in the order of the mutants; read the known ones, store each new one."""
    (folder / "unchanged").mkdir(parents=True, exist_ok=True)
    imports = Imports(ROOT)
    equivalents, store = listed_equivalents(EQUIVALENT), folder / "verdicts.jsonl"
    known = _known(store, mutants, imports)
    left = [mutant for mutant in mutants if mutant.key not in known]
    context, judges, lock = fork_server(), SimpleQueue[Judge](), threading.Lock()
    for n in range(min(jobs, len(left))):
        workshop = Workshop(ROOT, folder / f"workshop-{n}", context)
        judges.put(Judge(equivalents, folder / "unchanged", imports, workshop))

    def judge(mutant: Mutant) -> None:
        free = judges.get()
        try:
            verdict = free.judge(mutant)
        finally:
            judges.put(free)
        with lock:
            known[mutant.key] = verdict
            with store.open("a", encoding="utf-8") as file:
                file.write(json.dumps(verdict.as_json) + "\n")
            print(f"{len(known)}/{len(mutants)} {line(verdict)}", flush=True)

    pool = ThreadPoolExecutor(jobs)
    try:
        for future in [pool.submit(judge, mutant) for mutant in left]:
            future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return [known[mutant.key] for mutant in mutants]


def _known(store: Path, mutants: Sequence[Mutant], imports: Imports) -> dict[str, Verdict]:
    """Read verdicts of earlier runs, by key, whose sources are unchanged since."""
    if not store.is_file():
        return {}
    drawn = {mutant.key: mutant for mutant in mutants}
    found = {}
    for text in store.read_text("utf-8").splitlines():
        entry = json.loads(text)
        mutant = drawn.get(entry["key"])
        if mutant is None or not entry["asked"]:  # no tests ran: look it up in the list again
            continue
        asked = tuple(entry["asked"])
        if entry["digest"] == imports.digest(asked):
            found[mutant.key] = Verdict(
                mutant, entry["outcome"], entry["by"], asked, entry["digest"]
            )
    return found
