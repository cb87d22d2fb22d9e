"""kvtq-hw: ternary KV-cache attention in hardware: generate, simulate, compare, measure."""

__version__ = "0.1.0"
