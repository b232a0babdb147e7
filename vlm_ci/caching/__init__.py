"""The compile cache between CI runs: what Inductor and Triton wrote, kept as one file."""
