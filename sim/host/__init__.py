"""What host software does with the accelerator: job descriptors and register accesses."""
