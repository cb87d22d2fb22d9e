"""Parts of the cocotb benches: agents, stimuli, checkers, references and the runner."""
