"""A rigid pipeline between two streams: all stages move together, or none does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from amaranth.hdl import Module, Signal, Value, ValueLike

__all__ = ["Pipeline"]


class Pipeline:
    """Registers between a source and a sink stream.

    All stages advance when the sink takes the last stage's transfer, or when the last stage is
    empty: throughput is one transfer per cycle, latency the number of stages. Payload is stable
    while stalled. Only a transfer changes a stage's payload, which afterwards stays what it was:
    whatever reads it must ask for the stage's valid.

    Parameters
    ----------
    m : Module
        Receives the registers.
    valid : ValueLike
        Whether the first stage's inputs hold a transfer, stable as a stream's valid is.
    sink : stream interface, Out
        Driven by `finish`.

    Attributes
    ----------
    advance : Signal
        Stages move at this clock edge: the source's ready.
    valid : Signal
        The current stage holds a transfer.
    moving : Value
        ``valid & advance``: condition for state that a transfer updates at the current stage.
    """

    def __init__(self, m: Module, valid: ValueLike, sink: Any) -> None:
        self._m = m
        self._sink = sink
        self._depth = 0
        self.valid = valid
        self.advance = Signal(name="advance")
        m.d.comb += self.advance.eq(~sink.valid | sink.ready)

    @property
    def moving(self) -> ValueLike:
        return self.valid & self.advance

    def stage(self, *, keep: ValueLike = 1, **values: Any) -> SimpleNamespace:
        """Register `values` and return them, one stage later.

        Each of `values` is a value, a view, a list of these, or the result of an earlier stage.
        A transfer for which `keep` is false ends here.
        """
        self._depth += 1
        kept = Signal(name=f"kept_{self._depth}")
        valid = Signal(name=f"valid_{self._depth}")
        self._m.d.comb += kept.eq(self.valid & keep)
        with self._m.If(self.advance):
            self._m.d.sync += valid.eq(kept)
        self.valid = valid
        return self._register(
            f"stage_{self._depth}", SimpleNamespace(**values), kept & self.advance
        )

    def part(self, when: ValueLike, **values: Any) -> SimpleNamespace:
        """Register values beside the next stage, for transfers with `when` alone.

        They stay what they were with every other transfer. To be called before `stage`.
        """
        name = f"part_{self._depth + 1}"
        return self._register(name, SimpleNamespace(**values), self.moving & when)

    def _register(self, name: str, value: Any, enable: Value) -> Any:
        if isinstance(value, list):
            return [self._register(f"{name}_{i}", item, enable) for i, item in enumerate(value)]
        if isinstance(value, SimpleNamespace):
            fields = vars(value).items()
            return SimpleNamespace(
                **{key: self._register(f"{name}_{key}", item, enable) for key, item in fields}
            )
        register = Signal(value.shape(), name=name, reset_less=True)
        with self._m.If(enable):
            self._m.d.sync += register.eq(value)
        return register

    def finish(self, **fields: Any) -> None:
        """Connect the current stage to the sink: its valid, and each payload field by name."""
        self._m.d.comb += self._sink.valid.eq(self.valid)
        for key, value in fields.items():
            field = self._sink.payload[key]
            if isinstance(value, list):
                self._m.d.comb += [field[i].eq(item) for i, item in enumerate(value)]
            else:
                self._m.d.comb += field.eq(value)
