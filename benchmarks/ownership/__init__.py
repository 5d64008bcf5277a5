"""Whose weights these are: the watermark, the trace, the canaries."""
