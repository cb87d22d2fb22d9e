"""The rules of AXI buses: right sequences pass, and a seeded violation of each rule is found."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from bench_matrix import TINY

from rtl.axi import Axi4, Axi4Lite, Axi4Read, Axi4Write, AxiStream, BusSignature
from rtl.blocks import create_block
from sim.bench.axi_checker import bus_ports, rules_of, unwatched
from sim.bench.axi_rules import AxiError, AxiRules, BusRules, Rule, StreamRules

Row = Mapping[str, Any]

WORD = 8
FULL = {"size": 3, "burst": 1}


def play(rules: BusRules, rows: Iterable[Row]) -> BusRules:
    """Give samples to rules, one per clock edge; a signal that a row does not name is 0."""
    for row in rows:
        rules.step(lambda name, row=row: row.get(name, 0), bool(row.get("reset", 0)))
    return rules


def memory(**options: Any) -> AxiRules:
    return AxiRules("rw", WORD, **{"reads": 2, "writes": 2, **options})


def lite() -> AxiRules:
    return AxiRules("rw", 4, lite=True, reads=2, writes=2)


def broken(rules: BusRules, rows: Sequence[Row]) -> tuple[Rule, str]:
    """The rule that is broken at the last of the rows, and at none before it; and where."""
    play(rules, rows[:-1])
    with pytest.raises(AxiError) as caught:
        play(rules, rows[-1:])
    violation = caught.value.violation
    assert str(caught.value).startswith(f"{violation.channel}: {violation.seen}; rule: ")
    return violation.rule, violation.channel


def offer(channel: str, ready: int = 1, **payload: Any) -> dict[str, Any]:
    """The samples of one channel that offers something."""
    named = {f"{channel}{name}": value for name, value in payload.items()}
    return {f"{channel}valid": 1, f"{channel}ready": ready, **named}


def address(channel: str, addr: int = 0, beats: int = 1, ready: int = 1, **more: int) -> Row:
    return offer(channel, ready, **{"addr": addr, "len": beats - 1, **FULL, **more})


def words(strobes: Sequence[int], last: int = 1) -> list[Row]:
    """Words of a burst, WLAST on the last one."""
    end = len(strobes) - 1
    return [offer("w", strb=s, last=last * (place == end)) for place, s in enumerate(strobes)]


def answers(beats: int) -> list[Row]:
    return [offer("r", last=int(place == beats - 1)) for place in range(beats)]


# --- what is right --------------------------------------------------------------------------------


def test_bursts_of_both_kinds() -> None:
    """Words before, with and after their address; two transactions of each kind under way."""
    rules = play(
        memory(),
        [
            {"reset": 1},
            {"reset": 1},
            {},
            address("ar", 4096 - 2 * WORD, 2),
            address("ar", 8192, 3, ready=0),
            {**address("ar", 8192, 3), **offer("r", last=0, data=7)},
            offer("r", 0, last=1, data=9),
            *answers(1)[:0],
            offer("r", 1, last=1, data=9),
            *answers(3),
            offer("w", strb=0xF0),
            {**address("aw", 4, 2), **offer("w", strb=0xFF, last=1)},
            {**offer("b", 0), **address("aw", 16, 1)},
            {**offer("b"), **offer("w", strb=1, last=1)},
            offer("b"),
        ],
    )
    assert rules.found == []
    assert rules.events == {
        "ar ends a page": 1,
        "ar stalls": 1,
        "ar full": 1,
        "r stalls": 1,
        "b stalls": 1,
        "aw full": 1,
    }


@pytest.mark.parametrize(
    ("burst", "strobes"),
    [
        ({"addr": 5, "len": 1}, [0xE0, 0xFF]),  # the first beat begins in its word
        ({"addr": 6, "len": 2, "size": 1}, [0xC0, 0x03, 0x0C]),  # narrow
        ({"addr": 2, "len": 2, "size": 1, "burst": 0}, [0x0C, 0x0C, 0x0C]),  # FIXED
        ({"addr": 0x14, "len": 3, "size": 2, "burst": 2}, [0xF0, 0x0F, 0xF0, 0x0F]),  # WRAP
    ],
)
def test_byte_lanes(burst: dict[str, int], strobes: list[int]) -> None:
    """The lanes of every beat may all be strobed, and no other lane."""
    aw = offer("aw", **{**FULL, **burst})
    assert play(memory(), [aw, *words(strobes), offer("b")]).found == []
    for place, strobe in enumerate(strobes):
        for lane in range(WORD):
            if not strobe >> lane & 1:
                wrong = [*strobes[:place], strobe | 1 << lane]
                rows = [aw, *words(wrong, last=int(len(wrong) == len(strobes)))]
                assert broken(memory(), rows) == (Rule.STROBES, "w")


def test_identifiers_are_answered_in_any_order() -> None:
    rules = memory()
    play(rules, [address("ar", id=1), address("ar", id=2)])
    play(rules, [offer("r", id=2, last=1), offer("r", id=1, last=1)])
    assert broken(rules, [offer("r", id=1, last=1)]) == (Rule.READ_UNASKED, "r")


def test_exclusive_accesses_are_answered_exokay() -> None:
    rows = [address("ar", lock=1), offer("r", resp=1, last=1)]
    assert play(memory(), rows).events == {"r error": 1}


def test_an_idle_channel_may_be_unknown_but_for_valid() -> None:
    unknown = {"araddr": "XX", "arready": "X", "rdata": "XX"}
    rows = [unknown, {**address("ar"), "rdata": "XX"}, {**offer("r", last=1), "rdata": "X1"}]
    assert play(memory(), rows).found == []


def test_registers() -> None:
    rows = [
        offer("aw", addr=6),
        {**offer("aw", addr=1), **offer("w", strb=15)},
        {**offer("b"), **offer("w", strb=0), **offer("ar")},
        {**offer("b"), **offer("ar"), **offer("r", resp=2)},
        offer("r"),
    ]
    assert play(lite(), rows).found == []


def test_packets() -> None:
    rules = StreamRules(user=True, beats=2)
    rows = [offer("t", last=0), {}, offer("t", 0, last=1, user=3), offer("t", last=1, user=3)]
    assert play(rules, [*rows, *rows]).events == {"t stalls": 2}


# --- a violation of every rule --------------------------------------------------------------------

AR, AW = address("ar"), address("aw")
VIOLATIONS: dict[str, tuple[BusRules, Rule, str, list[Row]]] = {
    "valid unknown": (memory(), Rule.KNOWN, "b", [{"bvalid": "X"}]),
    "ready unknown": (memory(), Rule.KNOWN, "ar", [{**AR, "arready": "Z"}]),
    "payload unknown": (memory(), Rule.KNOWN, "aw", [{**AW, "awaddr": "00X"}]),
    "strobe unknown": (memory(), Rule.KNOWN, "w", [offer("w", strb="X1", last=1)]),
    "high in reset": (memory(), Rule.RESET, "ar", [{"reset": 1}, {"reset": 1, **AR}]),
    "unknown in reset": (memory(), Rule.RESET, "r", [{"reset": 1}, {"reset": 1, "rvalid": "X"}]),
    "high right after reset": (memory(), Rule.RESET, "w", [{"reset": 1}, *words([255])]),
    "address withdrawn": (memory(), Rule.VALID_STAYS, "ar", [address("ar", ready=0), {}]),
    "word withdrawn": (memory(), Rule.VALID_STAYS, "w", [offer("w", 0, strb=1), {}]),
    "answer withdrawn": (memory(), Rule.VALID_STAYS, "r", [AR, offer("r", 0, last=1), {}]),
    "address changes": (
        memory(),
        Rule.PAYLOAD_STAYS,
        "aw",
        [address("aw", 8, ready=0), address("aw", 16)],
    ),
    "data change": (
        memory(),
        Rule.PAYLOAD_STAYS,
        "r",
        [AR, offer("r", 0, data=1, last=1), offer("r", data=2, last=1)],
    ),
    "response changes": (
        memory(),
        Rule.PAYLOAD_STAYS,
        "b",
        [{**AW, **words([1])[0]}, offer("b", 0), offer("b", resp=2)],
    ),
    "reserved burst": (memory(), Rule.BURST, "ar", [address("ar", burst=3)]),
    "long fixed burst": (memory(), Rule.LENGTH, "ar", [address("ar", 0, 17, burst=0)]),
    "wrap of three": (memory(), Rule.LENGTH, "aw", [address("aw", 0, 3, burst=2)]),
    "wide beats": (memory(), Rule.SIZE, "ar", [address("ar", size=4)]),
    "wrap from anywhere": (memory(), Rule.ALIGNED, "ar", [address("ar", 4, 2, burst=2)]),
    "over a page": (memory(), Rule.PAGE, "ar", [address("ar", 4096 - WORD, 2)]),
    "unaligned over a page": (memory(), Rule.PAGE, "aw", [address("aw", 4096 - WORD + 1, 2)]),
    "reserved cache": (memory(), Rule.CACHE, "aw", [address("aw", cache=5)]),
    "early WLAST": (memory(), Rule.WLAST, "w", [address("aw", 0, 2), *words([255])]),
    "no WLAST": (memory(), Rule.WLAST, "w", [AW, *words([255], last=0)]),
    "early WLAST before its address": (
        memory(),
        Rule.WLAST,
        "w",
        [*words([255]), address("aw", 0, 2)],
    ),
    "no WLAST before its address": (memory(), Rule.WLAST, "w", [*words([255], last=0), AW]),
    "strobes of another beat": (
        memory(),
        Rule.STROBES,
        "w",
        [address("aw", 4), *words([255])],
    ),
    "early RLAST": (memory(), Rule.RLAST, "r", [address("ar", 0, 2), *answers(1)]),
    "no RLAST": (memory(), Rule.RLAST, "r", [AR, offer("r")]),
    "exokay": (memory(), Rule.EXOKAY, "r", [AR, offer("r", resp=1, last=1)]),
    "exokay on registers": (lite(), Rule.EXOKAY, "r", [offer("ar"), offer("r", resp=1)]),
    "word from nowhere": (memory(), Rule.READ_UNASKED, "r", answers(1)),
    "word with its address": (memory(), Rule.READ_UNASKED, "r", [{**AR, **answers(1)[0]}]),
    "word too many": (memory(), Rule.READ_UNASKED, "r", [AR, *answers(1), *answers(1)]),
    "word of another identifier": (
        memory(),
        Rule.READ_UNASKED,
        "r",
        [AR, offer("r", id=1, last=1)],
    ),
    "answer from nowhere": (memory(), Rule.WRITE_UNASKED, "b", [offer("b")]),
    "answer before the word": (memory(), Rule.WRITE_UNASKED, "b", [AW, offer("b")]),
    "answer with the last word": (
        memory(),
        Rule.WRITE_UNASKED,
        "b",
        [AW, {**words([255])[0], **offer("b")}],
    ),
    "answer before the address": (
        memory(),
        Rule.WRITE_UNASKED,
        "b",
        [*words([255]), offer("b")],
    ),
    "two answers": (
        memory(),
        Rule.WRITE_UNASKED,
        "b",
        [{**AW, **words([255])[0]}, offer("b"), offer("b")],
    ),
    "answer of another identifier": (
        memory(),
        Rule.WRITE_UNASKED,
        "b",
        [{**AW, **words([255])[0]}, offer("b", id=1)],
    ),
    "too many reads": (memory(), Rule.OUTSTANDING, "ar", [AR, AR, AR]),
    "too many writes": (memory(), Rule.OUTSTANDING, "aw", [AW, AW, AW]),
    "words wait for the address": (
        memory(patience=3),
        Rule.WAITING,
        "aw",
        [address("aw", ready=0)] * 4,
    ),
    "address waits for the words": (
        memory(patience=3),
        Rule.WAITING,
        "w",
        [offer("w", 0, strb=1, last=1)] * 4,
    ),
    "answer waits for its taker": (
        memory(patience=3),
        Rule.WAITING,
        "b",
        [{**AW, **words([255])[0]}, {}, {}, {}],
    ),
    "word waits for its taker": (memory(patience=3), Rule.WAITING, "r", [AR, {}, {}, {}]),
    "stream: unknown": (StreamRules(), Rule.KNOWN, "t", [offer("t", last="X")]),
    "stream: in reset": (StreamRules(), Rule.RESET, "t", [{"reset": 1}, offer("t")]),
    "stream: withdrawn": (StreamRules(), Rule.VALID_STAYS, "t", [offer("t", 0), {}]),
    "stream: changes": (
        StreamRules(user=True),
        Rule.PAYLOAD_STAYS,
        "t",
        [offer("t", 0, user=1), offer("t", user=2)],
    ),
    "stream: early TLAST": (StreamRules(beats=2), Rule.TLAST, "t", [offer("t", last=1)]),
    "stream: late TLAST": (StreamRules(beats=2), Rule.TLAST, "t", [offer("t"), offer("t")]),
}


@pytest.mark.parametrize("case", VIOLATIONS)
def test_violation(case: str) -> None:
    rules, rule, channel, rows = VIOLATIONS[case]
    assert broken(copy.deepcopy(rules), rows) == (rule, channel)


def test_every_rule_has_a_violation() -> None:
    assert {rule for _, rule, _, _ in VIOLATIONS.values()} == set(Rule)


def test_tolerated_violations_are_kept() -> None:
    rules = memory()
    rules.tolerated = {Rule.RLAST}
    play(rules, [address("ar", 0, 2), *answers(1)])
    assert [(v.rule, v.channel) for v in rules.found] == [(Rule.RLAST, "r")]
    assert broken(rules, answers(1)) == (Rule.READ_UNASKED, "r")


def test_what_was_given_up_is_forgotten() -> None:
    """By a test that says so, and by reset."""
    for rows in ([], [{"reset": 1}, {}]):
        longer = address("aw", 0, 2)
        rules = play(memory(), [AR, AR, longer, longer, *words([255], last=0)])
        if not rows:
            rules.forget()
        play(rules, [*rows, AR, AR, *answers(1), *answers(1), AW, AW, *words([255])])
        assert broken(rules, answers(1)) == (Rule.READ_UNASKED, "r")


def test_waiting_ends_when_the_partner_is_ready() -> None:
    rules = memory(patience=3)
    slow = [{}, {}, {"rready": 1}]
    play(rules, [AR, *slow * 4, *answers(1)])


# --- which rules a port has -----------------------------------------------------------------------


class Ports(wiring.Component):
    """One port of each protocol."""

    def __init__(self) -> None:
        super().__init__(
            {
                "memory": Out(Axi4(32, 64)),
                "reading": Out(Axi4Read(32, 64)),
                "writing": Out(Axi4Write(32, 64)),
                "registers": In(Axi4Lite(8)),
                "packets": In(AxiStream(16)),
                "valid": In(1),
            }
        )


def test_rules_of_every_protocol() -> None:
    ports = bus_ports(Ports())
    assert list(ports) == ["memory", "reading", "writing", "registers", "packets"]
    found = {port: rules_of(signature) for port, signature in ports.items()}
    over = address("ar", 4096 - WORD, 2)
    for port in ("memory", "reading"):
        assert broken(found[port], [over]) == (Rule.PAGE, "ar")
    play(found["writing"], [over])  # no such channel
    assert broken(found["writing"], [address("aw", size=4)]) == (Rule.SIZE, "aw")
    assert broken(found["registers"], [offer("ar"), offer("r", resp=1)]) == (Rule.EXOKAY, "r")
    assert broken(found["packets"], [offer("t", 0), {}]) == (Rule.VALID_STAYS, "t")
    with pytest.raises(TypeError, match=r"^no rules for BusSignature$"):
        rules_of(BusSignature({"valid": Out(1)}))


def test_a_port_that_nobody_watches_is_missed(tmp_path) -> None:
    control, file = create_block("control", TINY), tmp_path / "watched.txt"
    assert unwatched(file, control, 1) == ["axi"]
    file.write_text("axi\naxi\n")
    assert unwatched(file, control, 2) == []
    assert unwatched(file, control, 3) == ["axi"]
    assert unwatched(file, create_block("packer", TINY), 3) == []
