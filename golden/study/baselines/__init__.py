"""Baselines: other quantized formats of a KV cache, written from the papers.

Each family has one file, which parses the family's spelling. Baselines go through the same
measurement as the ternary codes (`golden.study.quality`), with all stored bytes counted.
"""
