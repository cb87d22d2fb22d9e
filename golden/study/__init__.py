"""Quality studies: cache formats, perplexity, retrieval, and choosing codes under a budget."""
