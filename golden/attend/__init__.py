"""Attention over the quantized cache: transformers' attention function and its backends."""
