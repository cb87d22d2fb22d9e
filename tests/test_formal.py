"""Proofs of the blocks, for all inputs; and bugs, put in on purpose, that each of them finds."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from bench_matrix import CONFIGS, PLANES_CONFIGS

from kvtq_hw.contract.config import EngineConfig
from rtl import streams
from rtl.blocks import create_block
from rtl.streams import SkidBuffer
from sim.proofs.formal import Proof, ProofError, Verdict, streams_of
from sim.proofs.proofs import (
    answers_of_the_bus,
    fork_delivery,
    join_in_step,
    packer_inverse,
    queue_of_jobs,
    queue_order,
    room_for_scores,
    sequencer_progress,
    skid_order,
    start_before_weights,
    start_of_every_job,
    stream_rules,
)

ROOT = Path(__file__).resolve().parent.parent
TINY = CONFIGS["tiny"]
ONE_SLICE = CONFIGS["full-width"]

#: Blocks of which the stream rules are proved.
WITH_STREAMS = (
    "key_lanes",
    "plane_scaler",
    "online_softmax",
    "weight_scaler",
    "value_lanes",
    "normalizer",
    "sequencer",
    "hadamard",
    "query_conditioner",
    "output_rotator",
    "packer",
    "unpacker",
    "dequantizer",
    "record_packer",
    "record_unpacker",
    "record_writer",
)


def block(name: str, config: EngineConfig = TINY) -> wiring.Component:
    return create_block(name, config)


@pytest.mark.parametrize("name", WITH_STREAMS)
def test_streams_hold_what_they_offer(name):
    assert stream_rules(block(name)).check().proved


def test_record_unpacker_of_several_planes_holds_what_it_offers():
    config = PLANES_CONFIGS["planes-2-3"]
    assert stream_rules(block("record_unpacker", config)).check().proved


@pytest.mark.parametrize("packing", ["5in8", "2bit"])
def test_unpacker_undoes_packer(packing):
    config = TINY.replace(packing=packing)
    assert packer_inverse(block("packer", config), block("unpacker", config)).check().proved


@pytest.mark.parametrize("config", [TINY, ONE_SLICE], ids=["two slices", "one slice"])
def test_sequencer_never_stands_still(config):
    assert sequencer_progress(block("sequencer", config)).check().proved


def test_sequencer_gives_the_start_of_every_job():
    assert start_of_every_job(block("sequencer")).check().proved


def test_online_softmax_takes_a_start_for_every_job():
    assert start_before_weights(block("online_softmax")).check().proved


def test_online_softmax_never_overflows():
    assert room_for_scores(block("online_softmax"), TINY.block).check().proved


def test_queue_of_jobs_loses_none():
    assert queue_of_jobs(block("control"), 2).check().proved


def test_bus_answers_once():
    assert answers_of_the_bus(block("control")).check().proved


def test_skid_buffer_keeps_order_and_what_it_offers():
    assert skid_order(SkidBuffer(3)).check().proved
    assert stream_rules(SkidBuffer(3)).check().proved


# --- parts of `rtl.streams`, between the ports of a block -----------------------------------------

PAYLOAD = data.StructLayout({"low": 2, "high": 1})
PAIR = stream.Signature(PAYLOAD)
#: Names of the sinks of a fork, and how often each takes a payload.
ONCE, REPEATED = {"a": 1, "b": 1}, {"a": 1, "b": 2}


class Streams(wiring.Component):
    """A block made by a function that connects its ports with parts of a module."""

    def __init__(self, ports: dict[str, Any], build: Any, parts: Any = streams) -> None:
        super().__init__(ports)
        self._build = build
        self._parts = parts

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._build(m, self, self._parts)
        return m


def queued(depth: int, buffered: bool, parts: Any = streams) -> Streams:
    def build(m: Module, block: Any, parts: Any) -> None:
        m.submodules.queue = queue = parts.Queue(PAYLOAD, depth, buffered=buffered)
        m.d.comb += [queue.i.payload.low.eq(block.i.payload.low)]
        m.d.comb += [queue.i.payload.high.eq(block.i.payload.high)]
        m.d.comb += [queue.i.valid.eq(block.i.valid), block.i.ready.eq(queue.i.ready)]
        connect(m, queue.o, flipped(block.o))

    return Streams({"i": In(PAIR), "o": Out(PAIR)}, build, parts)


def forked(times: dict[str, int], parts: Any = streams) -> Streams:
    def build(m: Module, block: Any, parts: Any) -> None:
        fork = parts.Fork(m, block.i.valid, renew=block.i.valid & block.i.ready)
        for name, sink in (("a", block.a), ("b", block.b)):
            fork.to(name, sink, times=times[name])
            m.d.comb += sink.payload.eq(block.i.payload)
        m.d.comb += block.i.ready.eq(fork.ready if times == ONCE else fork.taken)

    return Streams({"i": In(PAIR), "a": Out(PAIR), "b": Out(PAIR)}, build, parts)


def joined(parts: Any = streams) -> Streams:
    def build(m: Module, block: Any, parts: Any) -> None:
        parts.join(m, [block.a, block.b], [block.x, block.y])

    return Streams({"a": In(PAIR), "b": In(PAIR), "x": Out(PAIR), "y": Out(PAIR)}, build, parts)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("buffered", [False, True])
def test_queue_keeps_order_and_what_it_offers(depth, buffered):
    assert queue_order(queued(depth, buffered), depth).check().proved
    assert stream_rules(queued(depth, buffered)).check().proved


@pytest.mark.parametrize("times", [ONCE, REPEATED], ids=["once", "repeated"])
def test_fork_delivers_to_all_and_keeps_what_it_offers(times):
    assert fork_delivery(forked(times), times).check().proved
    assert stream_rules(forked(times)).check().proved


def test_joined_streams_move_in_step():
    assert join_in_step(joined()).check().proved


# --- seeded bugs ----------------------------------------------------------------------------------


def broken(name: str, old: str, new: str) -> Any:
    """The module of rtl/`name`.py with one place changed."""
    source = (ROOT / "rtl" / f"{name}.py").read_text("utf-8")
    assert source.count(old) == 1, f"{old!r} is {source.count(old)} times in rtl/{name}.py"
    module = types.ModuleType(f"broken_{name}")
    exec(compile(source.replace(old, new), module.__name__, "exec"), module.__dict__)
    return module


@pytest.mark.parametrize(
    ("name", "old", "new", "violated"),
    [
        (
            "query_conditioner",
            "with m.If(self.exponents.ready):",
            "with m.If(1):",
            "exponents changes what it offers",
        ),
        (
            "hadamard",
            "room.eq(~self.o.valid | self.o.ready)",
            "room.eq(1)",
            "o changes what it offers",
        ),
    ],
)
def test_stream_rules_find(name, old, new, violated):
    component = getattr(broken(name, old, new), name.title().replace("_", ""))(TINY)
    assert stream_rules(component).check().violated[0] == violated


def test_stream_rules_find_a_pipeline_that_does_not_wait(monkeypatch):
    pipeline = broken("pipeline", "advance.eq(~sink.valid | sink.ready)", "advance.eq(1)")
    monkeypatch.setattr("rtl.packer.Pipeline", pipeline.Pipeline)
    assert stream_rules(block("packer")).check().violated == ("o changes what it offers", 2)


@pytest.mark.parametrize(
    ("name", "old", "new", "violated"),
    [
        ("packer", "C(0b111, 3), c[2:5])", "C(0b111, 3), c[1:4])", "another plane"),
        ("unpacker", "t3_high = both | (~upper & byte[6])", "t3_high = both", "another plane"),
        ("unpacker", "self.i.ready.eq(pipe.advance)", "self.i.ready.eq(1)", "another plane"),
    ],
)
def test_packer_inverse_finds(name, old, new, violated):
    blocks = {"packer": block("packer"), "unpacker": block("unpacker")}
    blocks[name] = getattr(broken(name, old, new), name.title())(TINY)
    assert packer_inverse(**blocks).check().violated[0].startswith(violated)


@pytest.mark.parametrize(
    ("old", "new", "violated"),
    [
        ("with m.If(self.query_full):", "with m.If(~self.query_full):", "nothing moves"),
        (
            "self.values.ready.eq(self.value_slices.ready & exponent_known)",
            "self.values.ready.eq(self.value_slices.ready & exponent_known & ~value_place.job_end)",
            "nothing moves",
        ),
        (
            "self.starved.eq(\n",
            "self.key_slices.valid.eq(self.keys.valid),\n                    self.starved.eq(\n",
            "two slices pass at once",
        ),
    ],
)
def test_sequencer_progress_finds(old, new, violated):
    verdict = sequencer_progress(broken("sequencer", old, new).Sequencer(TINY)).check()
    assert verdict.violated[0] == violated


@pytest.mark.parametrize(
    ("old", "new", "violated"),
    [
        ("self.jobs.ready.eq(~self.starts.valid)", "self.jobs.ready.eq(1)", "another start"),
        ("self.starts.valid.eq(1),", "self.starts.valid.eq(0),", "more starts than there are"),
        ("with m.If(self.starts.ready):", "with m.If(0):", "a start from nowhere"),
    ],
)
def test_start_of_every_job_finds(old, new, violated):
    verdict = start_of_every_job(broken("sequencer", old, new).Sequencer(TINY)).check()
    assert verdict.violated[0].startswith(violated)


@pytest.mark.parametrize(
    ("old", "new", "violated"),
    [
        ("full[drain_bank] & job_opens)", "full[drain_bank])", "a job starts in another one"),
        ("(self.starts.valid | ~job_opens)", "1", "a weight comes before the start"),
        ("job_opens.eq(s4.flags.job_end)", "job_opens.eq(0)", "a weight comes before the start"),
    ],
)
def test_start_before_weights_finds(old, new, violated):
    module = broken("online_softmax", old, new)
    verdict = start_before_weights(module.OnlineSoftmax(TINY)).check()
    assert verdict.violated[0] == violated


def test_room_for_scores_finds():
    module = broken("online_softmax", "self.i.ready.eq(~full[fill_bank])", "self.i.ready.eq(1)")
    verdict = room_for_scores(module.OnlineSoftmax(TINY), TINY.block).check()
    assert verdict.violated[0] == "more scores than there is room for"


JOBS = "connect(m, queue.o, flipped(self.jobs))"


@pytest.mark.parametrize(
    ("old", "new", "violated"),
    [
        (JOBS, f"{JOBS}\n        m.d.comb += queue.o.ready.eq(1)", "a job is lost"),
        ("Queue(layout, _QUEUE,", "Queue(layout, _QUEUE - 1,", "a job is lost"),
        (JOBS, f"{JOBS}\n        m.d.comb += self.jobs.valid.eq(1)", "a job from nowhere"),
    ],
)
def test_queue_of_jobs_finds(old, new, violated):
    verdict = queue_of_jobs(broken("control", old, new).Control(TINY), 2).check()
    assert verdict.violated[0] == violated


@pytest.mark.parametrize(
    ("old", "new", "violated"),
    [
        ("(~axi.bvalid | axi.bready)", "1", "a write waits for its answer"),
        ("ar.o.ready.eq(~axi.rvalid | axi.rready)", "ar.o.ready.eq(1)", "a read waits for its"),
        ("  w.o.ready.eq(writing)", "  w.o.ready.eq(1)", "a write waits for its answer"),
        ("aw.o.valid & w.o.valid &", "aw.o.valid &", "a write is answered that is not complete"),
    ],
)
def test_answers_of_the_bus_find(old, new, violated):
    verdict = answers_of_the_bus(broken("control", old, new).Control(TINY)).check()
    assert verdict.violated[0].startswith(violated)


@pytest.mark.parametrize(
    ("old", "new", "violated"),
    [
        ("Mux(full, kept, self.i.payload)", "self.i.payload", "another transfer comes out"),
        ("with m.If(~full):", "with m.If(1):", "another transfer comes out"),
        ("full.eq(self.o.valid & ~self.o.ready)", "full.eq(0)", "another transfer comes out"),
        ("self.i.ready.eq(~full)", "self.i.ready.eq(1)", "the source waits, or does not, for"),
    ],
)
def test_skid_order_finds(old, new, violated):
    verdict = skid_order(broken("streams", old, new).SkidBuffer(3)).check()
    assert verdict.violated[0].startswith(violated)


def test_queue_order_finds():
    module = broken("streams", "depth=depth)", "depth=depth + 1)")
    verdict = queue_order(queued(3, False, module), 3).check()
    assert verdict.violated[0] == "more payloads than there are places"


@pytest.mark.parametrize(
    ("times", "old", "new", "violated"),
    [
        (ONCE, "& when & (taken != times)", "& when", "a takes too often"),
        (ONCE, "[taken | ready for", "[ready for", "the source waits for nobody"),
        (ONCE, "[taken | ready for", "[taken for", "the source waits for nobody"),
        (REPEATED, "taken.eq(taken + 1)", "taken.eq(times)", "the source does not wait for b"),
        (REPEATED, "with self._m.If(self._renew)", "with self._m.If(0)", "the source does not"),
    ],
)
def test_fork_delivery_finds(times, old, new, violated):
    verdict = fork_delivery(forked(times, broken("streams", old, new)), times).check()
    assert verdict.violated[0].startswith(violated)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[other.valid for other in sources if other is not source]", "[]"),
        ("[other.ready for other in sinks if other is not sink]", "[]"),
    ],
)
def test_join_in_step_finds(old, new):
    verdict = join_in_step(joined(broken("streams", old, new))).check()
    assert verdict.violated[0] == "some streams move alone"


# --- the tool itself ------------------------------------------------------------------------------


class Counter(wiring.Component):
    """Counts to five and stays there."""

    def __init__(self) -> None:
        super().__init__({"go": In(1), "value": Out(3)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        with m.If(self.go & (self.value != 5)):
            m.d.sync += self.value.eq(self.value + 1)
        return m


def test_verdicts_of_a_counter():
    def proof() -> tuple[Proof, Counter]:
        counter = Counter()
        found = Proof(dut=counter)
        found.free(counter.go)
        return found, counter

    claim, counter = proof()
    claim.never("six", counter.value == 6)
    claim.reachable("five", counter.value == 5)
    assert claim.check() == Verdict(None, ())
    claim, counter = proof()
    claim.never("six", counter.value == 6)
    claim.never("five", counter.value == 5)
    claim.reachable("seven", counter.value == 7)
    assert claim.check() == Verdict(("five", 5), ("seven",))


def test_impossible_assumptions_prove_nothing():
    proof = stream_rules(block("packer"))
    proof.assume(0)
    verdict = proof.check()
    assert verdict.violated is None
    assert verdict.unreached == ("o waits",)
    assert not verdict.proved


def test_a_proof_needs_claims_of_both_kinds():
    with pytest.raises(ValueError, match=r"^a proof needs something that must never be, and "):
        stream_rules(block("tables")).check()


def test_no_verdict_is_an_error():
    with pytest.raises(ProofError, match=r"^no verdict on what must never be:"):
        room_for_scores(block("online_softmax"), TINY.block).check(seconds=1)


def test_channels_of_a_block():
    found = {channel.name: channel.flow for channel in streams_of(block("control"))}
    bus = {
        f"axi_{name}": In if name in ("aw", "w", "ar") else Out
        for name in ("aw", "w", "b", "ar", "r")
    }
    assert found == {**bus, "jobs": Out, "done": In}
