"""Verilated designs as Python objects: bit-true RTL at the speed of a compiled loop."""
