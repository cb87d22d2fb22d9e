"""Proofs of the blocks, for all inputs; and bugs, put in on purpose, that each of them finds."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from bench_matrix import CONFIGS, PLANES_CONFIGS

from kvtq_hw.contract.config import EngineConfig
from rtl.blocks import create_block
from rtl.skid_buffer import SkidBuffer
from sim.proofs.formal import Proof, ProofError, Verdict, streams_of
from sim.proofs.proofs import (
    answers_of_the_bus,
    packer_inverse,
    queue_of_jobs,
    room_for_scores,
    sequencer_progress,
    skid_order,
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


def test_online_softmax_never_overflows():
    assert room_for_scores(block("online_softmax"), TINY.block).check().proved


def test_queue_of_jobs_loses_none():
    assert queue_of_jobs(block("control"), 2).check().proved


def test_bus_answers_once():
    assert answers_of_the_bus(block("control")).check().proved


def test_skid_buffer_keeps_order_and_what_it_offers():
    assert skid_order(SkidBuffer(3)).check().proved
    assert stream_rules(SkidBuffer(3)).check().proved


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
    verdict = skid_order(broken("skid_buffer", old, new).SkidBuffer(3)).check()
    assert verdict.violated[0].startswith(violated)


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
