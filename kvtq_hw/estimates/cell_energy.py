"""Energy per toggle of a pin, from a Liberty file's capacitances and internal power tables."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from kvtq_hw.contract.errors import UserError
from kvtq_hw.estimates.liberty import Liberty, pins_of
from kvtq_hw.estimates.liberty_format import Group

__all__ = ["CellEnergy"]

#: Slew at which tables are read, in the library's unit of time (nanoseconds): typical of a gate.
_SLEW = 0.05


@dataclass
class CellEnergy:
    """Energies of a library's cells.

    Raises
    ------
    UserError
        When the library does not give its voltage or its unit of capacitance.
    """

    liberty: Liberty
    _curves: dict[tuple[str, str], list[tuple[list[float], list[float]]]] = field(
        default_factory=dict
    )

    @cached_property
    def voltage(self) -> float:
        """Supply voltage, volts."""
        voltage = float(self.liberty.root.get("nom_voltage") or 0)
        if not voltage:
            raise UserError(f"library {self.liberty.source!r} has no nom_voltage")
        return voltage

    @cached_property
    def _unit(self) -> float:
        """Library's unit of capacitance in pF; times volts squared, its unit of energy in pJ."""
        size, name = self.liberty.root.attributes.get("capacitive_load_unit", ["1", ""])
        if name.lower() not in ("pf", "ff"):
            raise UserError(f"library {self.liberty.source!r} has no capacitive_load_unit")
        return float(size) * (1.0 if name.lower() == "pf" else 1e-3)

    def capacitance(self, cell: str, pin: str) -> float:
        """Return the capacitance of an input pin, picofarads."""
        group = pins_of(self.liberty.cells[cell])[pin]
        return self._unit * float(group.get("capacitance") or 0.0)

    def switching(self, load: float) -> float:
        """Return the energy C V^2 / 2 per toggle of a net, picojoules; `load` is in picofarads."""
        return load * self.voltage**2 / 2

    def internal(self, cell: str, pin: str, load: float = 0.0) -> float:
        """Return the energy inside a cell per toggle of a pin, picojoules.

        The energy is the mean over rise and fall, over the table's conditions, and for an output
        over the inputs that may have caused the toggle, since the cause is unknown here. 0 in a
        library without tables.

        Parameters
        ----------
        load : capacitance that an output drives, picofarads
        """
        if (curves := self._curves.get((cell, pin))) is None:
            powers = list(pins_of(self.liberty.cells[cell])[pin].all("internal_power"))
            # a missing table, for rise or for fall, counts as zero
            self._curves[cell, pin] = curves = [
                self._curve(table, 1 / (2 * len(powers)))
                for power in powers
                for table in (*power.all("rise_power"), *power.all("fall_power"))
            ]
        return self._unit * sum(_between(x, y, load / self._unit) for x, y in curves)

    def _curve(self, table: Group, share: float) -> tuple[list[float], list[float]]:
        """Return loads and energies of a table at `_SLEW`; energies are multiplied by `share`."""
        templates = {
            template.names[0]: template
            for kind in ("lu_table_template", "power_lut_template")
            for template in self.liberty.root.all(kind)
        }
        rows = [_numbers(row) for row in table.attributes["values"]]
        template = templates.get(table.names[0]) if table.names else None
        if template is None:  # a scalar
            return [0.0], [share * rows[0][0]]
        variables = [template.get("variable_1"), template.get("variable_2")]
        axes = [
            _numbers(table.get(name) or template.get(name) or "") for name in ("index_1", "index_2")
        ]
        if variables[1] is None:
            (values,) = rows
            if variables[0] == "total_output_net_capacitance":
                return axes[0], [share * value for value in values]
            return [0.0], [share * _between(axes[0], values, _SLEW)]
        if variables[0] == "total_output_net_capacitance":
            return axes[0], [share * _between(axes[1], row, _SLEW) for row in rows]
        columns = [list(column) for column in zip(*rows, strict=True)]
        return axes[1], [share * _between(axes[0], column, _SLEW) for column in columns]


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.replace(",", " ").split()]


def _between(x: Sequence[float], y: Sequence[float], at: float) -> float:
    """Interpolate linearly; beyond the ends, return the value at the end."""
    if at <= x[0] or len(x) == 1:
        return y[0]
    if at >= x[-1]:
        return y[-1]
    right = bisect_right(x, at)
    share = (at - x[right - 1]) / (x[right] - x[right - 1])
    return y[right - 1] + share * (y[right] - y[right - 1])
