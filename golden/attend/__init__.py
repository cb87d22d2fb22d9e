"""Attention over the quantized cache: an attention function for transformers and its backends."""
