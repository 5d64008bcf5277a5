"""Protections that weights need: a watch over them in memory, and ranges that they are held in."""
