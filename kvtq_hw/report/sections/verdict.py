"""Verdict: better, worse or about the same as INT8 and INT4, in speed, area, energy, quality."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from kvtq_hw.report.content import Inputs, Section, Table, Tag
from kvtq_hw.report.sections.formats import RIVALS
from kvtq_hw.report.sections.recorded import Recorded, recorded

__all__ = ["build"]

#: Ratios this near to one are about the same; perplexities are told apart more finely.
_SAME, _SAME_PERPLEXITY = 0.05, 0.005

_PERPLEXITY = "perplexity"


class _Finding(NamedTuple):
    """A number of a ternary engine over that of each rival.

    what, where : quantity, and the condition and context that it holds for
    more_is_better : whether a ratio above one is better
    ratios : by rival; None where the rival was not measured
    against : what speaks against the number
    """

    what: str
    where: str
    more_is_better: bool
    ratios: dict[str, float | None]
    tag: Tag
    against: str

    def word(self, rival: str) -> str:
        """Return the judgement against a rival; empty where it was not measured."""
        ratio = self.ratios[rival]
        if ratio is None:
            return ""
        same = _SAME_PERPLEXITY if self.what == _PERPLEXITY else _SAME
        if abs(ratio - 1) <= same:
            return "about the same"
        return "better" if (ratio > 1) == self.more_is_better else "worse"


def build(inputs: Inputs) -> Section | None:
    """Judge the first ternary code of each recorded comparison, and each recorded attention."""
    compared = recorded(inputs.results, "compare", inputs.config)
    attentions = recorded(inputs.results, "power", inputs.config)
    findings: list[_Finding] = []
    for entry in compared:
        # the perplexity is the same in comparisons at several contexts
        findings += [finding for finding in _of_comparison(entry) if finding not in findings]
    findings += _of_attentions(attentions)
    if not findings:
        return None
    columns = ["what", "where"]
    for rival in RIVALS:
        columns += [f"{rival} = 1", f"than {rival}"]
    rows = []
    for finding in findings:
        row: list[str | float | None] = [finding.what, finding.where]
        for rival, ratio in finding.ratios.items():
            row += [None if ratio is None else round(ratio, 2), finding.word(rival)]
        rows.append((*row, finding.tag, finding.against))
    return Section(
        "Verdict",
        " ".join(_sentence(rival, findings) for rival in RIVALS)
        + " Each line of the table says where that holds, and what speaks against it.",
        (
            Table(
                "The first ternary code against integers of 8 and 4 bits",
                "derived",
                f"kvtq-hw report --preset {inputs.config.name}",
                (*columns, "tag", "what speaks against it"),
                tuple(rows),
                "Better, worse: by more than 5 %, in perplexity 0.5 %. INT4 conditioned has the "
                "rotation, centring, feedback, sinks and window of the ternary codes; in energy it "
                "is plain INT4.",
            ),
        ),
    )


def _of_comparison(entry: Recorded) -> Iterator[_Finding]:
    """Judge the first ternary engine of each way of a comparison."""
    tokens = f"{entry.data['tokens']:,} tokens"
    quality: dict[str, float | None] | None = None
    for way, rows in entry.data["ways"].items():
        by_name = {row["name"]: row for row in rows}
        ours = next((row for row in rows if row["name"].startswith("ternary")), None)
        if ours is None:
            continue
        rivals = {rival: by_name.get(rival) for rival in RIVALS}
        where = f"{ours['name']}, {way.partition(':')[0]}, {tokens}"
        if way.startswith("equal memory"):
            speed = _ratios(rivals, ours, "effective_cycles")
            yield _Finding(
                "tokens per second",
                where,
                True,
                {rival: ratio and 1 / ratio for rival, ratio in speed.items()},
                "derived",
                "from bytes and the cycle model, one clock for all; weights are read as well",
            )
        if way.startswith(("equal memory", "equal speed")):
            yield _Finding(
                "area",
                where,
                False,
                _ratios(rivals, ours, "um2"),
                "measured",
                "; ".join(
                    (
                        "standard cells before place and route, memories aside",
                        *_near_misses(rivals, ours),
                    )
                ),
            )
        if quality is None and ours["quality"]:
            quality = {
                rival: row["quality"]["perplexity_ratio"] / ours["quality"]["perplexity_ratio"]
                if row and row["quality"]
                else None
                for rival, row in rivals.items()
            }
            yield _Finding(
                _PERPLEXITY,
                f"{ours['name']}, 1 / ratio of perplexities",
                True,
                quality,
                "measured",
                "small language models; divergence tells formats apart that perplexity does not",
            )


def _ratios(
    rivals: dict[str, dict[str, Any] | None], ours: dict[str, Any], field: str
) -> dict[str, float | None]:
    return {rival: ours[field] / row[field] if row else None for rival, row in rivals.items()}


def _near_misses(rivals: dict[str, dict[str, Any] | None], ours: dict[str, Any]) -> Iterator[str]:
    """Say on which narrow misses a ratio of areas hangs, and what it would be without each."""
    for rival, row in rivals.items():
        if row and (missed := row["missed"]):
            yield f"{_hangs(rival, missed)} {ours['um2'] / missed['um2']:.2f}"
        if row and (missed := ours["missed"]):
            yield f"{_hangs(ours['name'], missed)} {missed['um2'] / row['um2']:.2f} of {rival}"


def _hangs(name: str, missed: dict[str, Any]) -> str:
    return (
        f"{name} with {missed['lanes']} lanes takes {missed['cycles']:,} cycles and "
        f"{missed['allowed']:,} keep up: with it the ratio would be"
    )


def _of_attentions(entries: list[Recorded]) -> Iterator[_Finding]:
    """Judge the energy of each captured attention against the same one in integers."""

    def place(entry: Recorded) -> tuple[int, ...]:
        return tuple(entry.data[name] for name in ("layer", "head", "step", "tokens"))

    for entry in entries:
        variants = entry.data["variants"]
        if "captured" not in variants:
            continue
        # the integers' energy may be in the file of another engine's capture of the same attention
        same = [other.data["variants"] for other in entries if place(other) == place(entry)]
        ratios: dict[str, float | None] = {}
        for rival, variant in RIVALS.items():
            found = next((other[variant] for other in (variants, *same) if variant in other), None)
            ours = variants["captured"]["total"]["total_pj"]
            ratios[rival] = ours / found["total"]["total_pj"] if found else None
        yield _Finding(
            "energy of an attention",
            f"{entry.config}, {entry.data['tokens']:,} tokens",
            False,
            ratios,
            "projected",
            "no wires, clock tree, glitches and memories; see Energy of a token",
        )


def _sentence(rival: str, findings: list[_Finding]) -> str:
    """Say in which quantities the ternary engine is better than a rival, the same, or worse."""
    words: dict[str, list[str]] = {
        "better": [],
        "about the same": [],
        "worse": [],
        "undecided": [],  # where lines of the table differ
    }
    for what in dict.fromkeys(finding.what for finding in findings):
        found = {finding.word(rival) for finding in findings if finding.what == what} - {""}
        if len(found) == 1:
            words[found.pop()].append(what)
        elif found:
            words["undecided"].append(what)
    parts = [f"{word} in {_listed(names)}" for word, names in words.items() if names]
    if not parts:
        return f"Nothing was measured against {rival}."
    return f"Against {rival} the ternary engine is {', '.join(parts)}."


def _listed(names: list[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
