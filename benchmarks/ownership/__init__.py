"""Whose weights are these: what the watermark proves, and what removes it."""
