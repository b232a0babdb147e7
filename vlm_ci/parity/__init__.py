"""Logits of the compiled twin against eager: comparison per token, and the image canary."""
