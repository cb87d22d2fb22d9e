"""The elements of a plane slice, trits or integers, and how lanes multiply by them.

`elements_of` chooses between trits and integers by the cache format, for layouts and lanes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from amaranth.hdl import Cat, Const, Module, Mux, ShapeLike, Signal, Value, signed
from amaranth.lib import data

from kvtq_hw.contract.config import EngineConfig
from rtl.fixed_point import select, triple
from rtl.pipeline import Pipeline

__all__ = ["Elements", "Integers", "Term", "Trit", "Trits", "elements_of"]


class Trit(data.Struct):
    """One ternary digit: 0b00 is 0, 0b01 is +1, 0b11 is -1, and 0b10 reads as 0."""

    nonzero: 1
    negative: 1


@dataclass(frozen=True)
class Term:
    """A number that a value lane adds: ``value + ones``.

    ones : bits that are added at the lowest place; each makes an inverted number a negated one
    """

    value: Value = field(default_factory=lambda: Const(0))
    ones: tuple[Value, ...] = ()

    def plus(self, value: Value, one: Value) -> "Term":
        """Return this term plus a value and a bit."""
        return Term(self.value + value if self.ones else value, (*self.ones, one))


class Elements(ABC):
    """One kind of elements: their shape, and the lanes' arithmetic with them.

    The key lanes sum a slice's products with the queries in an adder tree: `products` makes the
    rows of terms that the tree adds, `sums` makes one sum per head from the rows' totals. The value
    lanes add `terms` to their accumulators.

    Attributes
    ----------
    shape : ShapeLike
        Of one element in a slice.
    key_stages : int
        Pipeline stages of the key lanes beside those of the adder tree.
    """

    shape: ShapeLike
    key_stages: int

    @abstractmethod
    def products(self, pipe: Pipeline, slice_: data.View) -> tuple[list[list[Value]], Value]:
        """Make rows of `lanes` terms from a `rtl.layouts.key_lanes_layout`; also return its tag."""

    @abstractmethod
    def sums(self, pipe: Pipeline, totals: list[Value], tag: Value) -> tuple[list[Value], Value]:
        """Make ``sum_d queries[g][d] * elements[d]`` per head g from the rows' totals."""

    @abstractmethod
    def nonzero(self, elements: Sequence[Value]) -> list[Value]:
        """Return per lane whether any of its elements is not zero."""

    @abstractmethod
    def terms(
        self,
        m: Module,
        elements: Sequence[Value],
        weights: Sequence[Value],
        adding: Value,
        takes: Sequence[Value],
    ) -> list[list[Term]]:
        """Make ``weights[g] * elements[lane]`` as [g][lane], a cycle later.

        Factors of the elements change with ``takes[lane]`` alone, and are zero if it comes without
        `adding`; weights change with `adding` alone.
        """


class Trits(Elements):
    """Multiply by trits without multipliers: a lane passes, inverts or blocks the other factor.

    Two's complement negation adds a one per negative trit. The key lanes count these ones once for
    all heads, and add their operands as unsigned numbers, each 2**(query_bits-1) too large: no
    adder then extends a sign. Each plane of a slice has an adder tree of its own; with several
    planes one more stage computes ``sum_c 3**c * sums_c``.

    A value lane takes two planes together: it chooses among one to four times the weight, of which
    three times is computed once for all lanes.
    """

    shape = Trit

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self.key_stages = int(config.key_planes_per_cycle > 1)

    def products(self, pipe: Pipeline, slice_: data.View) -> tuple[list[list[Value]], Value]:
        lanes = self._config.lanes
        starts = range(0, self._config.key_planes_per_cycle * lanes, lanes)
        planes = [[slice_.elements[start + d] for d in range(lanes)] for start in starts]
        operands = [
            [_offset(select(trit, query[d])) for d, trit in enumerate(plane)]
            for query in slice_.queries
            for plane in planes
        ]
        negatives: list[list[Value]] = [[t.nonzero & t.negative for t in plane] for plane in planes]
        return operands + negatives, slice_.tag

    def sums(self, pipe: Pipeline, totals: list[Value], tag: Value) -> tuple[list[Value], Value]:
        config, planes = self._config, self._config.key_planes_per_cycle
        totals = [_weighted(totals[n : n + planes]) for n in range(0, len(totals), planes)]
        if planes > 1:
            stage = pipe.stage(totals=totals, tag=tag)
            totals, tag = stage.totals, stage.tag
        *heads, ones = totals
        offset = config.slice_code_max * config.lanes << (config.query_bits - 1)
        return [total + ones - offset for total in heads], tag

    def nonzero(self, elements: Sequence[Value]) -> list[Value]:
        lanes, trits = self._config.lanes, list(elements)
        return [Cat(trit.nonzero for trit in trits[d::lanes]).any() for d in range(lanes)]

    def terms(
        self,
        m: Module,
        elements: Sequence[Value],
        weights: Sequence[Value],
        adding: Value,
        takes: Sequence[Value],
    ) -> list[list[Term]]:
        lanes, planes = self._config.lanes, self._config.value_planes_per_cycle
        trits = [data.View(Trit, Cat(t.nonzero & adding, t.negative)) for t in elements]
        terms = [[Term()] * lanes for _ in weights]
        for first in range(0, planes - 1, 2):
            pairs = [
                _Pair(m, trits[first * lanes + lane], trits[(first + 1) * lanes + lane], take)
                for lane, take in enumerate(takes)
            ]
            for g, weight in enumerate(weights):
                multiples = _multiples(m, triple(weight, first), adding)
                terms[g] = [
                    term.plus(pair.select(multiples), pair.negative)
                    for term, pair in zip(terms[g], pairs, strict=True)
                ]
        if planes % 2:
            selects = [
                data.View(Trit, _registered(m, trit.as_value(), take))
                for trit, take in zip(trits[-lanes:], takes, strict=True)
            ]
            for g, weight in enumerate(weights):
                top = _registered(m, triple(weight, planes - 1), adding)
                terms[g] = [
                    term.plus(select(trit, top), trit.nonzero & trit.negative)
                    for term, trit in zip(terms[g], selects, strict=True)
                ]
        return terms


class Integers(Elements):
    """Multiply by integers, as the comparison engines do: with a multiplier per lane and head."""

    key_stages = 1

    def __init__(self, config: EngineConfig) -> None:
        self.shape = signed(config.integer_bits)

    def products(self, pipe: Pipeline, slice_: data.View) -> tuple[list[list[Value]], Value]:
        products = [
            [query[d] * integer for d, integer in enumerate(slice_.elements)]
            for query in slice_.queries
        ]
        stage = pipe.stage(products=products, tag=slice_.tag)
        return stage.products, stage.tag

    def sums(self, pipe: Pipeline, totals: list[Value], tag: Value) -> tuple[list[Value], Value]:
        return totals, tag

    def nonzero(self, elements: Sequence[Value]) -> list[Value]:
        return [integer.any() for integer in elements]

    def terms(
        self,
        m: Module,
        elements: Sequence[Value],
        weights: Sequence[Value],
        adding: Value,
        takes: Sequence[Value],
    ) -> list[list[Term]]:
        integers = [
            (integer.as_unsigned() & adding.replicate(len(integer))).as_signed()
            for integer in elements
        ]
        products: list[list[Term]] = []
        for g, weight in enumerate(weights):
            row: list[Term] = []
            for lane, integer in enumerate(integers):
                exact = Cat(weight, 0).as_signed() * integer
                product = Signal.like(exact, name=f"product_{g}_{lane}")
                with m.If(takes[lane]):
                    m.d.sync += product.eq(exact)
                row.append(Term(product))
            products.append(row)
        return products


def elements_of(config: EngineConfig) -> Elements:
    """Return the elements that the cache format of a configuration has."""
    return Trits(config) if config.is_ternary else Integers(config)


class _Pair:
    """Two trits as a number u = low + 3 * high: the sign of u, and which of 1, 2, 3, 4 is abs(u).

    Sign (`negative`) and choice are held in registers, which change with `take` and control what
    the lane adds.
    """

    def __init__(self, m: Module, low: data.View, high: data.View, take: Value) -> None:
        differ = low.negative ^ high.negative
        self.negative = _registered(
            m, Mux(high.nonzero, high.negative, low.nonzero & low.negative), take
        )
        self._is = [
            _registered(m, is_it, take)
            for is_it in (
                low.nonzero & ~high.nonzero,
                low.nonzero & high.nonzero & differ,
                ~low.nonzero & high.nonzero,
                low.nonzero & high.nonzero & ~differ,
            )
        ]

    def select(self, multiples: list[Value]) -> Value:
        """Return u * weight from the weight times 1, 2, 3 and 4, inverted if u is negative."""
        bits = len(multiples[-1]) + 1
        chosen: Value = Const(0, bits)
        for multiple, is_it in zip(multiples, self._is, strict=True):
            extended = Cat(multiple, Const(0, bits - len(multiple)))
            chosen = chosen | (extended & is_it.replicate(bits))
        return (chosen ^ self.negative.replicate(bits)).as_signed()


def _multiples(m: Module, weight: Value, enable: Value) -> list[Value]:
    """Return the weight times 1, 2, 3 and 4 from registers, by one adder."""
    once, thrice = _registered(m, weight, enable), _registered(m, triple(weight), enable)
    return [once, Cat(0, once), thrice, Cat(0, 0, once)]


def _registered(m: Module, value: Value, enable: Value) -> Signal:
    register = Signal(value.shape(), reset_less=True)
    with m.If(enable):
        m.d.sync += register.eq(value)
    return register


def _weighted(planes: list[Value]) -> Value:
    """Return sum_c 3**c * planes[c], by Horner's rule."""
    total = planes[-1]
    for plane in reversed(planes[:-1]):
        total = triple(total) + plane
    return total


def _offset(value: Value) -> Value:
    """Return a signed value plus 2**(width - 1), unsigned, by inverting its sign bit."""
    return Cat(value[:-1], ~value[-1])
