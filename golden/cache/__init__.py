"""The quantized KV cache: its stores, the value its update returns, and its memory image."""
