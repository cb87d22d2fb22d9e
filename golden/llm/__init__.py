"""Language models on the quantized cache: load, sample, calibrate, decode and capture."""
