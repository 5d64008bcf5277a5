"""Bit flips in stored weights: the threat, its scoring, and kept networks."""
