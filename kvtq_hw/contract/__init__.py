"""What golden model, hardware and estimates agree on: the code side of docs/contract.md.

Configurations and codes, how digits are packed and where they lie in memory, registers, cycles, and
how input is checked and files are written. Modules here import nothing else of this distribution.
They are all of `kvtq_hw` that `golden` and `rtl` may import.
"""
