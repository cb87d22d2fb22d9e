"""Proofs of the blocks: each function makes a `sim.proofs.formal.Proof`.

Conditions refer to a block's ports only, so they hold for any implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import Flow, connect

from kvtq_hw.contract.registers import WORD_BYTES, register_map
from sim.proofs.formal import Proof, streams_of

__all__ = [
    "answers_of_the_bus",
    "fork_delivery",
    "join_in_step",
    "packer_inverse",
    "queue_of_jobs",
    "queue_order",
    "room_for_scores",
    "sequencer_progress",
    "skid_order",
    "start_before_weights",
    "start_of_every_job",
    "stream_rules",
]

_WORD = slice((WORD_BYTES - 1).bit_length(), None)  # word bits of an address


def stream_rules(block: wiring.Component) -> Proof:
    """Prove that every output channel holds valid and payload until the transfer."""
    proof = Proof(dut=block)
    proof.free_block(block)
    proof.stream_rules(block)
    return proof


def packer_inverse(packer: wiring.Component, unpacker: wiring.Component) -> Proof:
    """Prove that packer and unpacker return planes unchanged, each once, in order.

    The proof watches one plane; which plane is a free choice of the search.
    """
    proof = Proof(packer=packer, unpacker=unpacker)
    connect(proof.module, packer.o, unpacker.i)
    proof.free(packer.i.valid, packer.i.payload, unpacker.o.ready)
    # one plane in each of the two blocks
    _keeps_order(proof, packer.i, unpacker.o, 2, "plane", _canonical)
    return proof


def queue_order(queue: wiring.Component, depth: int) -> Proof:
    """Prove that `o` returns the payloads of `i`, each once, in order, and that `depth` fit."""
    proof = Proof(dut=queue)
    proof.free_block(queue)
    inside = _keeps_order(proof, queue.i, queue.o, depth, "payload")
    proof.reachable("all places are taken", inside == depth)
    return proof


def fork_delivery(fork: wiring.Component, times: dict[str, int]) -> Proof:
    """Prove that each sink takes a payload of `i` as often as required before `i` transfers.

    `i` transfers in the cycle of the last take if each sink takes a payload once, otherwise in the
    next cycle.

    Parameters
    ----------
    times : takes per payload, by name of the sink's port
    """
    proof = Proof(dut=fork)
    proof.free_block(fork)
    moves, most = fork.i.valid & fork.i.ready, max(times.values())
    sinks = {channel.name: channel for channel in streams_of(fork) if channel.flow is Flow.Out}
    takes = {name: sink.valid & sink.ready for name, sink in sinks.items()}
    done = []
    for name, number in times.items():
        before = Signal(range(most + 2), name=f"{name}_before")
        after = before + takes[name]
        proof.module.d.sync += before.eq(Mux(moves, 0, after))
        proof.never(f"{name} is offered what is not there", sinks[name].valid & ~fork.i.valid)
        proof.never(f"{name} takes too often", after > number)
        proof.never(f"the source does not wait for {name}", moves & (after != number))
        others = Cat(value for other, value in takes.items() if other != name).any()
        proof.reachable(f"{name} takes alone", takes[name] & ~others)
        done.append((after if most == 1 else before) == number)
    proof.never("the source waits for nobody", fork.i.valid & Cat(done).all() & ~moves)
    proof.reachable("all take at once", Cat(takes.values()).all())
    proof.reachable("the source goes on", moves)
    return proof


def join_in_step(joined: wiring.Component) -> Proof:
    """Prove that all streams of a block transfer in the same cycle, as soon as all are willing."""
    proof = Proof(dut=joined)
    proof.free_block(joined)
    moves, willing = [], []
    for channel in streams_of(joined):
        moves.append(channel.valid & channel.ready)
        willing.append(channel.valid if channel.flow is Flow.In else channel.ready)
    every, some = Cat(moves).all(), Cat(moves).any()
    proof.never("some streams move alone", some & ~every)
    proof.never("all are willing, and nothing moves", Cat(willing).all() & ~every)
    proof.reachable("all move", every)
    return proof


def sequencer_progress(sequencer: wiring.Component) -> Proof:
    """Prove that a slice moves in one of any two successive cycles.

    In both cycles all streams are willing and the queries are loaded.
    """
    proof = Proof(dut=sequencer)
    proof.free_block(sequencer)
    inputs = (sequencer.jobs, sequencer.value_exponents, sequencer.keys, sequencer.values)
    outputs = (sequencer.key_slices, sequencer.value_slices)
    willing = sequencer.query_full
    for port in inputs:
        willing = willing & port.valid
    for port in (*outputs, sequencer.starts):
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


def start_of_every_job(sequencer: wiring.Component) -> Proof:
    """Prove that the start of every job comes out unchanged, once, before the next job is taken."""
    proof = Proof(dut=sequencer)
    proof.free_block(sequencer)
    job = sequencer.jobs
    fields = Cat(Value.cast(job.payload.sink_maximum), Value.cast(job.payload.sink_weight))
    source = SimpleNamespace(valid=job.valid, ready=job.ready, payload=fields)
    _keeps_order(proof, source, sequencer.starts, 1, "start")
    return proof


def start_before_weights(online_softmax: wiring.Component) -> Proof:
    """Prove that every job takes one start, before its first weight and not before its turn."""
    proof = Proof(dut=online_softmax)
    proof.free_block(online_softmax)
    starts, weights = online_softmax.starts, online_softmax.o
    begins = starts.valid & starts.ready
    ends = weights.valid & weights.ready & weights.payload.job_end
    jobs = _count(proof.module, begins, ends, 1)
    proof.never("a job starts in another one", jobs > 1)
    proof.never("a weight comes before the start", weights.valid & (jobs == 0))
    proof.reachable("a job starts", begins)
    proof.reachable("a job ends", ends)
    return proof


def room_for_scores(online_softmax: wiring.Component, block: int) -> Proof:
    """Prove that accepted scores fit the two banks, and that only accepted scores leave.

    The proof assumes that a block of scores ends after at most `block` scores.
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
    """Prove that a job is lost only if the queue is full, and that only started jobs come out."""
    proof = Proof(dut=control)
    proof.free_block(control)
    axi, register = control.axi, register_map()["control"].address // WORD_BYTES
    has_room = ~axi.bvalid | axi.bready
    there, done = [], Signal()
    for valid, ready, payload in (
        (axi.awvalid, axi.awready, axi.awaddr),
        (axi.wvalid, axi.wready, Cat(axi.wdata[0], axi.wstrb[0])),
    ):
        full, kept = Signal(), Signal(len(payload))  # a taken part that waits for the other part
        proof.never("a part is taken twice", full & ready)
        there.append((full | valid & ready, Mux(full, kept, payload)))
        proof.module.d.sync += full.eq(there[-1][0] & ~done)
        with proof.module.If(~full):
            proof.module.d.sync += kept.eq(payload)
    (has_address, address), (has_word, starting) = there
    proof.module.d.comb += done.eq(has_address & has_word & has_room)
    waiting = Signal(range(depth + 1))
    starts = done & (address[_WORD] == register) & starting.all() & (waiting != depth)
    leaves = control.jobs.valid & control.jobs.ready
    proof.module.d.sync += waiting.eq(waiting + starts - leaves)
    proof.never("a job from nowhere", control.jobs.valid & (waiting == 0))
    proof.never("a job is lost", ~control.jobs.valid & (waiting != 0))
    proof.reachable("the queue is full", waiting == depth)
    return proof


def answers_of_the_bus(control: wiring.Component) -> Proof:
    """Prove that each write and read gets one answer, one cycle after all its parts have come.

    While an answer waits, one more write and one more read may be taken. The parts of a write come
    in any order.
    """
    proof = Proof(dut=control)
    proof.free_block(control)
    axi = control.axi
    for name, parts, valid, ready in (
        ("write", ("aw", "w"), axi.bvalid, axi.bready),
        ("read", ("ar",), axi.rvalid, axi.rready),
    ):
        counts = []
        for part in parts:
            taken = getattr(axi, f"{part}valid") & getattr(axi, f"{part}ready")
            counts.append(_count(proof.module, taken, valid & ready, 2))
        complete = Cat(count != 0 for count in counts).all()
        proof.never(f"a {name} is answered that is not complete", valid & ~complete)
        proof.never(f"a {name} waits for its answer", ~valid & complete)
        for part, count in zip(parts, counts, strict=True):
            proof.never(f"{part} is taken without room", count > 2)
            proof.reachable(f"{part} is kept while an answer waits", count == 2)
        proof.reachable(f"a {name} is answered", valid & ready)
        if len(counts) == 2:
            proof.reachable("an address waits for its word", (counts[0] == 1) & (counts[1] == 0))
            proof.reachable("a word waits for its address", (counts[0] == 0) & (counts[1] == 1))
    return proof


def skid_order(buffer: wiring.Component) -> Proof:
    """Prove that transfers come out unchanged, each once, in order, and that at most one is kept.

    The proof watches one transfer; which transfer is a free choice of the search.
    """
    proof = Proof(dut=buffer)
    proof.free_block(buffer)
    m, watch = proof.module, Signal()
    proof.free(watch)
    enters, leaves = buffer.i.valid & buffer.i.ready, buffer.o.valid & buffer.o.ready
    inside = _count(m, enters, leaves, 1)
    kept = Signal.like(buffer.i.payload)
    watching = Signal()
    with m.If(watch & enters & ~leaves & ~watching):
        m.d.sync += [watching.eq(1), kept.eq(buffer.i.payload)]
    with m.Elif(leaves):
        m.d.sync += watching.eq(0)
    straight = buffer.o.valid & (inside == 0)
    proof.never("another transfer comes out", watching & (buffer.o.payload != kept))
    proof.never("another one passes", straight & (buffer.o.payload != buffer.i.payload))
    proof.never("a transfer from nowhere", straight & ~enters)
    proof.never("a transfer is lost", ~buffer.o.valid & ((inside != 0) | buffer.i.valid))
    proof.never("the source waits, or does not, for another reason", buffer.i.ready == inside)
    proof.reachable("the watched one comes out", watching & leaves & (kept != 0))
    proof.reachable("one passes at once", straight & leaves)
    return proof


def _keeps_order(
    proof: Proof,
    source: Any,
    sink: Any,
    most: int,
    what: str,
    canonical: Callable[[Value], Value] = lambda payload: payload,
) -> Signal:
    """Claim that payloads come out unchanged, each once, in order; return the number inside.

    The claim watches one payload; which payload is a free choice of the search.
    """
    m, watch, watching = proof.module, Signal(), Signal()
    proof.free(watch)
    enters, leaves = source.valid & source.ready, sink.valid & sink.ready
    inside = _count(m, enters, leaves, most)
    payload, found = (Value.cast(port.payload) for port in (source, sink))
    watched, before = Signal(len(payload)), Signal.like(inside)  # payloads that leave first
    with m.If(watch & enters & ~watching):
        m.d.sync += [watching.eq(1), watched.eq(canonical(payload)), before.eq(inside - leaves)]
    with m.Elif(leaves):
        m.d.sync += [before.eq(before - 1), watching.eq(watching & (before != 0))]
    arrives = watching & sink.valid & (before == 0)
    proof.never(f"another {what} comes out", arrives & (found != watched))
    proof.never(f"a {what} from nowhere", sink.valid & (inside == 0))
    proof.never(f"more {what}s than there are places", inside > most)
    proof.reachable(f"the watched {what} comes out behind another", arrives & (watched != 0))
    return inside


def _count(m: Module, enters: Value, leaves: Value, most: int) -> Signal:
    """Count payloads inside a block; the count saturates at `most` + 1."""
    inside = Signal(range(most + 2))
    with m.If(inside <= most):
        m.d.sync += inside.eq(inside + enters - leaves)
    return inside


def _canonical(trits: Value) -> Value:
    """Return two-bit trits with 0b10, the second encoding of zero, replaced by 0b00."""
    pairs = [trits[start : start + 2] for start in range(0, len(trits), 2)]
    return Cat(Cat(pair[0], pair.all()) for pair in pairs)
