"""Host software of the accelerator: job descriptors and register accesses."""
