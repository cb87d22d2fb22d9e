"""What is proved of the blocks: each function makes a `sim.formal.Proof`.

Conditions are about a block's edge: they hold for whatever is inside.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import connect

from kvtq_hw.registers import WORD_BYTES, register_map
from sim.formal import Proof

__all__ = [
    "answers_of_the_bus",
    "packer_inverse",
    "queue_of_jobs",
    "room_for_scores",
    "sequencer_progress",
    "stream_rules",
]

_WORD = slice((WORD_BYTES - 1).bit_length(), None)  # of an address


def stream_rules(block: wiring.Component) -> Proof:
    """Every output channel holds valid and payload until the transfer."""
    proof = Proof(dut=block)
    proof.free_block(block)
    proof.stream_rules(block)
    return proof


def packer_inverse(packer: wiring.Component, unpacker: wiring.Component) -> Proof:
    """Planes come out of packer and unpacker as they went in, each once, in order.

    Any one plane is watched on its way: the proof chooses when it starts.
    """
    proof = Proof(packer=packer, unpacker=unpacker)
    m = proof.module
    connect(m, packer.o, unpacker.i)
    watch = Signal()
    proof.free(packer.i.valid, packer.i.payload, unpacker.o.ready, watch)
    enters, leaves = packer.i.valid & packer.i.ready, unpacker.o.valid & unpacker.o.ready
    inside = _count(m, enters, leaves, 2)  # one plane in each of the two
    plane, found = (Value.cast(s.payload) for s in (packer.i, unpacker.o))
    watched, before = Signal(len(plane)), Signal.like(inside)  # planes that leave first
    watching = Signal()
    starts = watch & enters & ~watching
    with m.If(starts):
        m.d.sync += [watching.eq(1), watched.eq(_canonical(plane)), before.eq(inside - leaves)]
    with m.Elif(leaves):
        m.d.sync += [before.eq(before - 1), watching.eq(watching & (before != 0))]
    arrives = watching & unpacker.o.valid & (before == 0)
    proof.never("another plane comes out", arrives & (found != watched))
    proof.never("a plane from nowhere", unpacker.o.valid & (inside == 0))
    proof.never("more planes than there are places", inside > 2)
    proof.reachable("the watched plane comes out behind another", arrives & (watched != 0))
    return proof


def sequencer_progress(sequencer: wiring.Component) -> Proof:
    """Not two cycles in which all streams are willing, the queries are there, and nothing moves."""
    proof = Proof(dut=sequencer)
    proof.free_block(sequencer)
    inputs = (sequencer.jobs, sequencer.value_exponents, sequencer.keys, sequencer.values)
    outputs = (sequencer.key_slices, sequencer.value_slices)
    willing = sequencer.query_full
    for port in inputs:
        willing = willing & port.valid
    for port in outputs:
        willing = willing & port.ready
    moves = Cat(port.valid & port.ready for port in inputs).any()
    stuck = Signal()
    proof.module.d.sync += stuck.eq(willing & ~moves)
    proof.never("nothing moves", stuck & willing & ~moves)
    passing = [port.valid & port.ready for port in outputs]
    proof.never("two slices pass at once", passing[0] & passing[1])
    proof.reachable("a key slice passes", passing[0])
    proof.reachable("a value slice passes", passing[1])
    return proof


def room_for_scores(online_softmax: wiring.Component, block: int) -> Proof:
    """Scores never come in that the two banks have no room for, and none leaves that did not come.

    Assumes that a block of scores ends after `block` of them, if not before.
    """
    proof = Proof(dut=online_softmax)
    proof.free_block(online_softmax)
    score = online_softmax.i
    enters = score.valid & score.ready
    place = Signal(range(block))
    with proof.module.If(enters):
        proof.module.d.sync += place.eq(Mux(score.payload.block_end, 0, place + 1))
    proof.assume(~score.valid | (place != block - 1) | score.payload.block_end)
    leaves = online_softmax.o.valid & online_softmax.o.ready
    capacity = 2 * block
    inside = _count(proof.module, enters, leaves, capacity)
    proof.never("more scores than there is room for", inside > capacity)
    proof.never("a weight without a score", online_softmax.o.valid & (inside == 0))
    proof.reachable("all places are taken", inside == capacity)
    return proof


def queue_of_jobs(control: wiring.Component, depth: int) -> Proof:
    """A job is lost only where the queue is full, and none comes out that was not started."""
    proof = Proof(dut=control)
    proof.free_block(control)
    axi, address = control.axi, register_map()["control"].address // WORD_BYTES
    writes = axi.awvalid & axi.awready & (axi.awaddr[_WORD] == address)
    waiting = Signal(range(depth + 1))
    starts = writes & axi.wdata[0] & axi.wstrb[0] & (waiting != depth)
    leaves = control.jobs.valid & control.jobs.ready
    proof.module.d.sync += waiting.eq(waiting + starts - leaves)
    proof.never("a job from nowhere", control.jobs.valid & (waiting == 0))
    proof.never("a job is lost", ~control.jobs.valid & (waiting != 0))
    proof.reachable("the queue is full", waiting == depth)
    return proof


def answers_of_the_bus(control: wiring.Component) -> Proof:
    """One answer for each write and each read that is taken, in the cycle after."""
    proof = Proof(dut=control)
    proof.free_block(control)
    axi = control.axi
    for name, taken, valid, ready in (
        ("write", axi.awvalid & axi.awready, axi.bvalid, axi.bready),
        ("read", axi.arvalid & axi.arready, axi.rvalid, axi.rready),
    ):
        asked = _count(proof.module, taken, valid & ready, 1)
        proof.never(f"a {name} is answered twice", valid & (asked == 0))
        proof.never(f"a {name} waits for its answer", ~valid & (asked != 0))
        proof.never(f"a {name} is taken whose answer has no room", asked > 1)
        proof.reachable(f"a {name} is answered", valid & ready)
    both = (axi.awvalid & axi.awready) == (axi.wvalid & axi.wready)
    proof.never("a word is taken without its address", ~both)
    return proof


def _count(m: Module, enters: Value, leaves: Value, most: int) -> Signal:
    """How many came in and have not left; up to one more than `most`, where it stays."""
    inside = Signal(range(most + 2))
    with m.If(inside <= most):
        m.d.sync += inside.eq(inside + enters - leaves)
    return inside


def _canonical(trits: Value) -> Value:
    """Trits of two bits each with 0b10, the other zero, read as 0b00."""
    pairs = [trits[start : start + 2] for start in range(0, len(trits), 2)]
    return Cat(Cat(pair[0], pair.all()) for pair in pairs)
