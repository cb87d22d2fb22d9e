"""This machine: simulators and other tools, digests of sources, the store of results."""
