"""Simulation: cocotb benches, drivers and scoreboards, and the verilated engine."""
