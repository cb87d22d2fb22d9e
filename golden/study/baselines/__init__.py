"""Baselines: what else a KV cache is quantized with, written from the papers.

One file a family. Each parses its own spelling, and everything goes through the same measurement
as the ternary codes (`golden.study.quality`), with everything it stores counted.
"""
