"""Amaranth description of the ternary attention engine."""
