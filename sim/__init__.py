"""Simulation, where golden model and RTL meet; each room imports the rooms listed below it.

benches : cocotb benches, one per block
bench, backends, proofs : parts of benches; a model's attention on verilated RTL; proofs
verilated : designs compiled by Verilator, as Python objects
host : job descriptors and register accesses, as host software writes them
"""
