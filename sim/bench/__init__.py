"""What cocotb benches are made of: agents, stimuli, checkers, references and their runner."""
