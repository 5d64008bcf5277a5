"""Marks of replicas: copies of one generation that differ in secret, and name who leaked.

`tardos` is the code and whom it accuses, `marks` writes a codeword into weights and reads it back.
A replica's machine holds the unmarked generation as well, for that is what was signed: marks name
the source of what is taken out of a serving process, not of a mirror's folder.
"""

from g2d.protect.fingerprint.marks import (
    STRENGTHS,
    marked,
    read_marks,
    secret_for,
    secret_of,
    slot_of,
    strength_of,
)
from g2d.protect.fingerprint.tardos import ERROR, SLOTS, Accused, Code, accuse, design

__all__ = [
    "ERROR", "SLOTS", "STRENGTHS", "Accused", "Code", "accuse", "design", "marked", "read_marks",
    "secret_for", "secret_of", "slot_of", "strength_of",
]  # fmt: skip
