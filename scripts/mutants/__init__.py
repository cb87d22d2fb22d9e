"""Mutation testing: small changes to the contract's code, and whether a test notices each."""
