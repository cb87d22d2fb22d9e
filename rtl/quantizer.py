# amaranth: UnusedElaboratable=no
# (parts are also created to read their latencies)
"""Quantizer: turns a vector into ternary digits and scales, by comparing and subtracting."""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, connect, flipped

from kvtq_hw.contract.config import EngineConfig
from rtl.digit_pipeline import DigitPipeline
from rtl.feedback_sums import FeedbackSums
from rtl.fixed_point import saturate
from rtl.layouts import (
    coded_element_layout,
    exponent_layout,
    factors_signature,
    requantized_layout,
    vector_code_layout,
)
from rtl.scale_finder import ScaleFinder

__all__ = ["Quantizer"]


class Quantizer(wiring.Component):
    """Quantize vectors as docs/contract.md ("Quantizer") defines, one element per cycle.

    The D elements of a vector are written to a memory while their magnitudes are summed and
    compared. `ScaleFinder` makes a scale from the sum or from the largest magnitude. The elements
    then go through `DigitPipeline`: one per cycle, or with feedback one after the other, each added
    to its sum from `FeedbackSums`. A balanced code is one run of all planes. A residual code has
    one run per plane: the pipeline's remainders go back to the memory, and are summed and compared
    on their way.

    While a vector's last run goes through the digit pipeline, the next vector comes in, except for
    its last element, which waits until the digits are out.

    Cycles per vector of N planes, without gaps or back-pressure: D to load, at most `scale_latency`
    to the first digits, then one cycle per element, or N + 3 cycles per element with feedback. A
    residual code repeats the last two parts for each plane.

    Attributes
    ----------
    code : In, `vector_code_layout`; sampled when a vector's last element is taken
    i : stream In, `requantized_layout`, D elements per vector
    factors : read port of feedback matrices, `factors_signature`
    o : stream Out, `coded_element_layout`, D transfers per run
    scale : stream Out, `exponent_layout`, one per vector, as soon as its last scale is known
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "code": In(vector_code_layout(config)),
                "i": In(stream.Signature(requantized_layout(config))),
                "factors": Out(factors_signature(config)),
                "o": Out(stream.Signature(coded_element_layout(config))),
                "scale": Out(stream.Signature(exponent_layout(config))),
            }
        )

    def scale_latency(self, planes: int) -> int:
        """Return the most cycles from a vector's last element in to a run's first digits out.

        The cycles of `ScaleFinder`, one per digit, and four more: to start `ScaleFinder`, to see
        its result, to read an element, and to add its feedback sum.
        """
        return ScaleFinder(self._config).latency(planes) + planes + 4

    def elaborate(self, platform: object) -> Module:  # noqa: PLR0915  hardware in one piece
        m = Module()
        config = self._config
        dim, bits = config.head_dim, config.requantized_bits
        last_element = dim - 1
        code = Signal(vector_code_layout(config), reset_less=True)
        run = Signal(range(config.max_planes))
        last_run = ~code.residual | (run == code.planes - 1)

        m.submodules.elements = elements = Memory(shape=signed(bits), depth=dim, init=[])
        write, read = elements.write_port(), elements.read_port()
        m.submodules.scale_finder = finder = ScaleFinder(config)
        m.submodules.digit_pipeline = digits = DigitPipeline(config)
        m.submodules.feedback_sums = sums = FeedbackSums(config)

        # --- into the memory: a vector's elements, or the remainders of their digits -------------
        filled = Signal(range(dim))  # elements of the next vector that are in
        issued = Signal(range(dim + 1))  # elements of this run that have been read
        retired = Signal(range(dim))  # elements of this run whose digits have been taken
        idle, loads, retires, returns = Signal(), Signal(), Signal(), Signal()
        entering = Signal(signed(bits))
        magnitude = Signal(bits - 1)
        total = Signal(finder.total.shape(), reset_less=True)
        largest = Signal.like(magnitude, reset_less=True)
        in_place = last_run & (filled < issued) & (filled != last_element)
        m.d.comb += [
            self.i.ready.eq(idle | in_place),
            loads.eq(self.i.valid & self.i.ready),
            retires.eq(digits.o.valid & digits.o.ready),
            returns.eq(retires & ~last_run),
            write.en.eq(loads | returns),
            write.addr.eq(Mux(returns, retired, filled)),
            entering.eq(Mux(returns, digits.o.payload.rest, self.i.payload.value)),
            write.data.eq(entering),
            magnitude.eq(Mux(entering < 0, -entering, entering)),
        ]
        with m.If(write.en):
            first = write.addr == 0
            m.d.sync += [
                total.eq(Mux(first, 0, total) + magnitude),
                largest.eq(Mux(~first & (largest > magnitude), largest, magnitude)),
            ]
        with m.If(loads):
            m.d.sync += filled.eq(Mux(filled == last_element, 0, filled + 1))
        with m.If(retires):
            m.d.sync += retired.eq(Mux(retired == last_element, 0, retired + 1))

        # --- out of the memory, through the digits -----------------------------------------------
        reading, element_valid, takes = Signal(), Signal(), Signal()
        element = read.data
        added = Signal(signed(bits + 1))
        with_sum = Signal(signed(bits))
        m.d.comb += [
            read.addr.eq(issued),
            read.en.eq(reading & (issued != dim) & (~element_valid | takes)),
            digits.i.valid.eq(element_valid & (~code.feedback | sums.ready)),
            takes.eq(digits.i.valid & digits.i.ready),
            added.eq(element + sums.sum),
            with_sum.eq(saturate(added, bits)[0]),
            digits.i.payload.value.eq(with_sum),
            digits.i.payload.added.eq(with_sum - element),
            digits.top.eq(Mux(code.residual, 0, code.planes - 1)),
            *(digits.weights[c].eq(finder.weights[c]) for c in range(config.max_planes)),
        ]
        with m.If(read.en | takes):
            m.d.sync += element_valid.eq(read.en)
        with m.If(read.en):
            m.d.sync += issued.eq(issued + 1)

        connect(m, sums.factors, flipped(self.factors))
        m.d.comb += [
            sums.table.eq(code.table),
            sums.take.eq(takes),
            sums.row.eq(retired),
            sums.error.eq(digits.o.payload.rest),
            sums.update.eq(retires & code.feedback),
        ]

        m.d.comb += [
            self.o.valid.eq(digits.o.valid),
            digits.o.ready.eq(self.o.ready),
            self.o.payload.trits.eq(digits.o.payload.trits),
            self.o.payload.fraction.eq(finder.fraction),
            self.o.payload.exponent.eq(finder.exponent),
            self.o.payload.planes.eq(code.planes),
            self.o.payload.residual.eq(code.residual),
            self.o.payload.unit_first.eq(code.unit_first),
        ]

        # --- order of events ---------------------------------------------------------------------
        largest_exponent = Signal(config.scale_exponent_bits, reset_less=True)
        larger = finder.exponent > largest_exponent
        exponent = Mux(larger | (run == 0), finder.exponent, largest_exponent)
        m.d.comb += [
            finder.total.eq(total),
            finder.largest.eq(largest),
            finder.absmean.eq(code.absmean),
            finder.constant.eq(Array(code.constants[c] for c in range(config.max_planes))[run]),
            finder.top.eq(digits.top),
        ]
        with m.If(self.scale.valid & self.scale.ready):
            m.d.sync += self.scale.valid.eq(0)
        with m.FSM():
            with m.State("LOAD"):
                m.d.comb += idle.eq(1)
                m.d.sync += run.eq(0)
                with m.If(loads & (filled == last_element)):
                    m.d.sync += code.eq(self.code)
                    m.next = "START"
            with m.State("START"):
                m.d.comb += [finder.start.eq(1), sums.clear.eq(1)]
                m.next = "SCALE"
            with m.State("SCALE"):
                with m.If(finder.done & ~(last_run & self.scale.valid)):
                    m.d.sync += largest_exponent.eq(exponent)
                    with m.If(last_run):
                        m.d.sync += [
                            self.scale.valid.eq(1),
                            self.scale.payload.exponent.eq(exponent),
                        ]
                    m.next = "DIGITS"
            with m.State("DIGITS"):
                m.d.comb += reading.eq(1)
                with m.If(retires & (retired == last_element)):
                    m.d.sync += [run.eq(run + 1), issued.eq(0)]
                    m.next = "START"
                    with m.If(last_run):
                        m.next = "LOAD"
        return m
