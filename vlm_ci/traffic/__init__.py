"""What requests look like: sizes and a seed, never tensors. Imports no torch."""
