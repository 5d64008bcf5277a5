"""Canaries: inputs whose answers show that single weights were changed, to whoever can only ask.

What is kept with a generation, and how answers are judged, is in `kept`, which knows no torch. How
canaries are made: `inputs` are what they begin as, `boundary` moves them, `choosing` picks those
that together show most, `making` puts that together.
"""
