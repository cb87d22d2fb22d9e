"""Access to this machine: simulators and other tools, digests of sources, the store of results."""
