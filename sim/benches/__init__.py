"""cocotb benches, one a datapath block."""
