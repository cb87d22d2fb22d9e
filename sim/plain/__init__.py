"""A testbench of the accelerator in plain Verilog: its vectors, from the golden model, and text."""
