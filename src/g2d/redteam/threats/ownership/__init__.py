"""Removing the watermark: what is left of the owner's proof, and what the thief pays for it."""
