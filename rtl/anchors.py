"""Anchors: hits of the tokens in each head's window, and which tokens stay in the tier's digits."""

from __future__ import annotations

import math
from typing import NamedTuple

from amaranth.hdl import Array, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from rtl.layouts import ANCHOR_BITS, HIT_BITS, hit_task_layout, load_layout, score_tap_layout

__all__ = ["Anchors", "DecisionPort"]

_SECTION = 5  # of the words that load the state


class DecisionPort(wiring.Signature):
    """Port between the scheduler and the anchors; directions are the scheduler's.

    The scheduler asks from the cycle before it looks at `known` until `taken`. In a cycle with
    `known` the answer is that of the previous cycle's `table` and `slot`.

    Attributes
    ----------
    table : Out, number of the head
    slot : Out, slot of the window that the job's new token takes
    enters : Out, the job appends a token to the window
    leaving : Out, the token that was in the slot leaves the window
    anchors, threshold : Out, the descriptor's `anchors` and `anchor_threshold`
    new : Out, no token has left the window before this job, and so there are no anchors
    known : In, `before` and `promoted` are right, and may be taken
    before : In, number of anchors before the job
    promoted : In, the token that leaves becomes an anchor
    taken : Out, pulse: the decision is carried out; only in a cycle with `known`
    """

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(
            {
                "table": Out(range(config.table_heads)),
                "slot": Out(range(max(config.anchor_slots, 1))),
                "enters": Out(1),
                "leaving": Out(1),
                "anchors": Out(ANCHOR_BITS),
                "threshold": Out(HIT_BITS),
                "new": Out(1),
                "known": In(1),
                "before": In(range(config.max_context + 1)),
                "promoted": In(1),
                "taken": Out(1),
            }
        )


class Anchors(wiring.Component):
    """Count hits from the scores of jobs, and decide which tokens become anchors.

    The block keeps a number of anchors per head, and hits per head and slot of the head's window:
    two memories, of `table_heads` and of ``table_heads * anchor_slots`` words.

    **Hits.** A score of each query head comes with each token of a job. The reference of a head is
    the log2 of the sum of the weights of sinks and window so far, by docs/contract.md: the larger
    of reference and score, and a step for their distance. A token of the window gets hits from each
    head for the distance of its score below the reference; the job's last token gets none. Steps
    and hits come from tables of half octaves. Throughput is one token per cycle; its hits are in
    memory two cycles later.

    **Decision.** The answer to a question comes in the next cycle, unless a token of a window gets
    its hits in the question's cycle, or the job appends to the window while an earlier job of the
    same head has scores to come. Carrying out a decision clears the hits of the slot, and counts a
    new anchor.

    **Loading.** Words of section 5 (`rtl.tables`) are taken, one per cycle in which nothing else is
    written: per head the number of anchors, then the hits of each of `anchor_slots` slots. A head
    must not be loaded while jobs of it are under way.

    Attributes
    ----------
    tasks : stream In, `hit_task_layout`, one per job with scores, before the job's first score; two
        are held
    scores : In, `score_tap_layout`
    decision : `DecisionPort`
    load : stream In, `load_layout`
    restart : In, forget all tasks; the memories stay
    """

    def __init__(self, config: EngineConfig) -> None:
        if not config.anchor_slots:
            raise ValueError("anchor_slots: 0 is not allowed; must be at least 1 for this block")
        self._config = config
        self._slots = config.anchor_slots
        super().__init__(
            {
                "tasks": In(stream.Signature(hit_task_layout(config))),
                "scores": In(score_tap_layout(config)),
                "decision": In(DecisionPort(config)),
                "load": In(stream.Signature(load_layout())),
                "restart": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        task, pending = self._hold_tasks(m)

        # --- hits of a score, added to those in memory in the next cycle --------------------------
        counting, slot, gain = self._watch(m, task)
        writing, written_gain = Signal(), Signal.like(gain)
        m.d.sync += [writing.eq(counting), written_gain.eq(gain)]

        # --- decisions ----------------------------------------------------------------------------
        asked = self.decision
        looked_up = Signal()
        m.d.sync += looked_up.eq(~counting & ~(asked.enters & pending))
        m.submodules.numbers = numbers = Memory(
            shape=range(self._config.max_context + 1), depth=self._config.table_heads, init=[]
        )
        number, new_number = numbers.read_port(), numbers.write_port()
        m.submodules.hits = hits = Memory(
            shape=HIT_BITS, depth=self._config.table_heads * self._slots, init=[]
        )
        read, write = hits.read_port(), hits.write_port()
        m.d.comb += [
            number.en.eq(1),
            number.addr.eq(asked.table),
            asked.known.eq(looked_up),
            asked.before.eq(Mux(asked.new, 0, number.data)),
            asked.promoted.eq(
                asked.leaving & (read.data >= asked.threshold) & (asked.before < asked.anchors)
            ),
        ]

        # --- the memories: hits are read in a score's cycle, and written in the next --------------
        load = self._load(m, busy=writing | asked.taken)
        word = self.load.payload.data
        written_address = Signal.like(write.addr)
        sum_of_hits = read.data + written_gain
        m.d.comb += [
            read.en.eq(1),
            read.addr.eq(
                Mux(
                    counting,
                    self._address(task.table, slot),
                    self._address(asked.table, asked.slot),
                )
            ),
            new_number.en.eq((asked.taken & asked.leaving) | load.number),
            new_number.addr.eq(load.table),
            new_number.data.eq(word),
            write.en.eq(writing | (asked.taken & asked.enters) | load.hits),
            write.addr.eq(self._address(load.table, load.slot)),
            write.data.eq(word),
        ]
        m.d.sync += written_address.eq(read.addr)
        with m.If(asked.taken):
            m.d.comb += [
                new_number.addr.eq(asked.table),
                new_number.data.eq(asked.before + asked.promoted),
                write.addr.eq(self._address(asked.table, asked.slot)),
                write.data.eq(0),
            ]
        with m.If(writing):
            m.d.comb += [
                write.addr.eq(written_address),
                write.data.eq(Mux(sum_of_hits[HIT_BITS:].any(), -1, sum_of_hits)),
            ]
        with m.If(self.restart):
            m.d.sync += [writing.eq(0), looked_up.eq(0)]
        return m

    def _address(self, table: Value, slot: Value) -> Value:
        """Return the address of a slot's hits."""
        return table * self._slots + slot

    def _hold_tasks(self, m: Module) -> tuple[data.View, Value]:
        """Hold the task of the job whose scores come, and of the job behind it.

        Return the first of them, and whether one of them gives hits to the head in question.
        """
        layout = hit_task_layout(self._config)
        task, next_task = Signal(layout), Signal(layout)
        level = Signal(range(3))
        push, pop = Signal(), Signal()
        m.d.comb += [
            self.tasks.ready.eq(level != 2),
            push.eq(self.tasks.valid & self.tasks.ready),
            pop.eq(self.scores.valid & self.scores.job_end),
        ]
        m.d.sync += level.eq(level + push - pop)
        with m.If(pop):
            m.d.sync += task.eq(next_task)
        with m.If(push):
            m.d.sync += next_task.eq(self.tasks.payload)
            with m.If(level == pop):
                m.d.sync += task.eq(self.tasks.payload)
        with m.If(self.restart):
            m.d.sync += level.eq(0)
        pending = [
            held & entry.counted & (entry.table == self.decision.table)
            for held, entry in ((level != 0, task), (level == 2, next_task))
        ]
        return task, pending[0] | pending[1]

    def _watch(self, m: Module, task: data.View) -> tuple[Signal, Signal, Value]:
        """Add each score to its head's reference.

        Return whether the token of the score may get hits, its slot, and its number of hits.
        """
        config, score = self._config, self.scores
        heads = range(config.query_group)
        position = Signal(range(config.max_context))
        past_sinks, in_window = Signal(), Signal()
        past_sinks_before, in_window_before = Signal(), Signal()
        opened = Signal()  # the references have a score
        slot, next_slot = Signal(range(self._slots)), Signal(range(self._slots))
        counting = Signal()
        references = [
            Signal(signed(config.score_bits + 1), name=f"reference_{g}", reset_less=True)
            for g in heads
        ]
        m.d.comb += [
            past_sinks.eq(past_sinks_before | (position == task.sink_tokens)),
            in_window.eq(in_window_before | (position == task.settled_tokens)),
            slot.eq(Mux(in_window_before, next_slot, task.window_start)),
            counting.eq(score.valid & task.counted & in_window & ~score.job_end),
        ]
        hits = []
        half_octave = config.score_fraction_bits - 1
        for g, reference in enumerate(references):
            of_head = score.scores[g]
            above = of_head > reference
            apart = Mux(above, of_head - reference, reference - of_head)
            step = _half_octaves(_sum_steps(config), apart >> half_octave)
            larger = Mux(above, of_head, reference)
            # the sum of weights is so near the largest that the reference has one bit more
            total = Mux(opened, larger + step, of_head)[: len(reference)].as_signed()
            below = Signal(range(2 << config.score_bits), name=f"below_{g}")
            m.d.comb += below.eq(total - of_head)
            hits.append(_half_octaves(_HITS, below >> half_octave))
            with m.If(score.valid & (~past_sinks | in_window)):
                m.d.sync += reference.eq(total)
        with m.If(score.valid):
            m.d.sync += [
                position.eq(position + 1),
                past_sinks_before.eq(past_sinks),
                in_window_before.eq(in_window),
                opened.eq(opened | ~past_sinks | in_window),
                next_slot.eq(Mux(slot + 1 == task.window_tokens, 0, slot + 1)),
            ]
        with m.If((score.valid & score.job_end) | self.restart):
            m.d.sync += [
                signal.eq(0) for signal in (position, past_sinks_before, in_window_before, opened)
            ]
        return counting, slot, sum(hits[1:], hits[0])

    def _load(self, m: Module, busy: Value) -> _Load:
        """Take the words that load the state, except in busy cycles; tell where a word goes."""
        word, first = self.load.payload.data, self.load.payload.first
        # the head after the last one: words are ignored
        table = Signal(range(self._config.table_heads + 1), init=self._config.table_heads)
        slot = Signal(range(self._slots))
        in_hits = Signal()  # otherwise the next word is a number of anchors
        taken = Signal()
        m.d.comb += [self.load.ready.eq(~busy), taken.eq(self.load.valid & ~busy & ~first)]
        known = table != self._config.table_heads
        with m.If(self.load.valid & ~busy & first):
            ours = (word[:3] == _SECTION) & (word[3:] < self._config.table_heads)
            m.d.sync += [
                table.eq(Mux(ours, word[3:], self._config.table_heads)),
                slot.eq(0),
                in_hits.eq(0),
            ]
        with m.Elif(taken & known):
            m.d.sync += in_hits.eq(1)
            with m.If(in_hits):
                m.d.sync += slot.eq(slot + 1)
                with m.If(slot == self._slots - 1):
                    m.d.sync += [table.eq(table + 1), slot.eq(0), in_hits.eq(0)]
        return _Load(taken & known & ~in_hits, taken & known & in_hits, table, slot)


#: Hits for a score n half octaves below the reference.
_HITS = [int(16 * 2 ** (-(n + 0.5) / 2) + 0.5) for n in range(10)]


def _sum_steps(config: EngineConfig) -> list[int]:
    """Return what a score adds to the reference if the two are n half octaves apart."""
    octave = 1 << config.score_fraction_bits
    return [int(octave * math.log2(1 + 2 ** (-(n + 0.5) / 2)) + 0.5) for n in range(16)]


def _half_octaves(entries: list[int], n: Value) -> Value:
    """Return entry n of a table; 0 behind its end."""
    index = Mux(n >= len(entries), len(entries), n)[: len(entries).bit_length()]
    return Array(Const(entry, max(entries).bit_length()) for entry in (*entries, 0))[index]


class _Load(NamedTuple):
    """Where a word of the load stream goes."""

    number: Value
    hits: Value
    table: Value
    slot: Value
