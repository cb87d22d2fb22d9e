"""Simulation, where golden model and RTL meet; each room imports what stands below it.

benches : cocotb benches, one per block
bench, backends, proofs : what benches are made of; a model's attention on verilated RTL; proofs
verilated : designs compiled by Verilator, as Python objects
host : job descriptors and register accesses, as host software writes them
"""
