"""Backends of `golden.attend.attention` that run a model's attention on verilated RTL."""
