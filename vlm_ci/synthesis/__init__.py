"""Warm-up synthesis: the smallest plan found for an envelope, proven cold in a fresh process."""
