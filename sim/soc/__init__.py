"""A system on a chip around the accelerator: RISC-V processor, main memory, and a program."""
