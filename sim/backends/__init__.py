"""Backends of `golden.attention` that run a model's attention on verilated RTL."""
