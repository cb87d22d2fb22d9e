"""Formal proofs over all inputs and all lengths of time."""
