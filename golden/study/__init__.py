"""Studies of quality: cache formats, perplexity, retrieval, and codes under a budget."""
