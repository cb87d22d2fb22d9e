"""The quantized KV cache: what it stores, what a pass through it returns, and its memory image."""
