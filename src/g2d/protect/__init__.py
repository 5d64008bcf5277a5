"""Protections that weights need: signed generations, and a watch over weights in memory.

Import `g2d.protect.signing` (knows no torch) or `g2d.protect.integrity` (does) by name.
"""
