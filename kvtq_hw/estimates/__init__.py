"""Numbers about hardware from its netlist: area, timing, power, comparison, sweep."""
