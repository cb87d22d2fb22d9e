"""The contract between golden model, hardware and estimates, in code; see docs/contract.md.

Holds configurations and codes, the packing of digits, the memory layout, registers, the cycle
model, the table of models in wheels, and helpers that check input and write files. Modules here
import nothing else of this distribution. `golden` and `rtl` may import no other part of `kvtq_hw`.
"""
