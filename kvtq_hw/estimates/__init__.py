"""Estimates of the hardware from its netlist: area, timing, power, comparison, sweep."""
