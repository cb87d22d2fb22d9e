"""PyTorch golden model of the integer contract, and the quantized KV cache built on it."""
