"""Normalization layers on NumPy arrays at the memory limit of the CPU."""
