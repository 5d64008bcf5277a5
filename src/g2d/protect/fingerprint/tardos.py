"""Tardos codes: codewords of which no coalition can make one that points at nobody of theirs.

Tardos, "Optimal probabilistic fingerprint codes", J. ACM 2008 (STOC 2003); the symmetric score is
Škorić, Katzenbeisser & Celik 2008 (Designs, Codes and Cryptography 46). Lengths are computed from
the exact worst case of the coalition's score and Bernstein's inequality, not from asymptotics.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np

from g2d.core.types import Array

SLOTS = 1 << 12
"""Codewords of one generation; a replica has the one that its name's hash points at."""

ERROR = 1e-6
"""The chance that any innocent slot of all is accused."""

COLLUDERS = 3
"""Copies that may be combined before all of their sources may escape."""

_CHUNK = 1024  # codewords at a time
_SIGMAS = 3.0  # by which the coalition's mean score clears the threshold: it escapes once in 700


@dataclass(frozen=True)
class Code:
    """A code of `length` bits over `SLOTS` codewords, all a function of a secret key.

    Bit j of any codeword is 1 with probability p_j; p_j = sin²(r), r uniform, within
    [cutoff, 1 - cutoff].
    """

    key: bytes = field(repr=False)
    length: int
    cutoff: float

    @cached_property
    def biases(self) -> Array:
        """p (length,) float64."""
        least = math.asin(math.sqrt(self.cutoff))
        data = hashlib.shake_256(b"g2d tardos biases\0" + self.key).digest(4 * self.length)
        unit = (np.frombuffer(data, ">u4").astype(np.float64) + 0.5) / 2.0**32
        return np.sin(least + unit * (math.pi / 2 - 2 * least)) ** 2

    def word(self, slot: int) -> Array:
        """The codeword of a slot, (length,) bool."""
        label = b"g2d tardos word\0" + self.key + slot.to_bytes(8, "big")
        data = hashlib.shake_256(label).digest(4 * self.length)
        unit = (np.frombuffer(data, ">u4").astype(np.float64) + 0.5) / 2.0**32
        return unit < self.biases

    def scores(self, heard: Array, slots: int = SLOTS) -> Array:
        """Symmetric scores (slots,) of all codewords, given what was heard of each bit.

        Args:
            heard: (length,) in [-1, 1]: 1 for a clear 1, -1 for a clear 0, 0 for nothing.
        """
        return np.concatenate(list(self._scores(heard, slots)))

    def _scores(self, heard: Array, slots: int) -> Iterator[Array]:
        p = self.biases
        one, zero = heard * np.sqrt((1 - p) / p), -heard * np.sqrt(p / (1 - p))
        for first in range(0, slots, _CHUNK):
            chunk = range(first, min(first + _CHUNK, slots))
            words = np.stack([self.word(slot) for slot in chunk])
            yield zero.sum() + words.astype(np.float64) @ (one - zero)


@dataclass(frozen=True)
class Accused:
    """A slot whose codeword a suspect holds; `p` is after Bonferroni over all slots."""

    slot: int
    score: float
    p: float


def accuse(code: Code, heard: Array, slots: int = SLOTS, error: float = ERROR) -> list[Accused]:
    """Slots whose p-value is at most `error`, the surest first.

    For an innocent the score is a sum of independent terms of mean 0, variance heard² and bounded
    size, whatever the coalition did (Bernstein): their codeword took no part in it.
    """
    scores = code.scores(heard, slots)
    p = np.minimum(1.0, slots * chance(scores, heard, code.cutoff))
    order = np.argsort(-scores)
    return [Accused(int(i), float(scores[i]), float(p[i])) for i in order if p[i] <= error]


def chance(scores: Array, heard: Array, cutoff: float) -> Array:
    """Bernstein's bound on P(an innocent scores as much), for each of the scores."""
    largest = math.sqrt((1 - cutoff) / cutoff) * float(np.abs(heard).max(initial=0.0))
    variance = float(np.square(heard).sum())
    positive = np.maximum(scores, 0.0)
    spread = np.maximum(variance + largest * positive / 3, 1e-30)
    return np.exp(-np.square(positive) / 2 / spread)


@cache
def design(
    colluders: int = COLLUDERS, error: float = ERROR, slots: int = SLOTS
) -> tuple[int, float]:
    """The least length, and its cutoff, at which a coalition cannot keep all below the threshold.

    Its total score has at least the mean of `worst_case` and a standard deviation of √(c m); the
    likest of them scores no less than the average, which has to clear the threshold by three
    standard deviations.
    """
    log = math.log(slots / error)

    def enough(length: int, cutoff: float) -> bool:
        largest = math.sqrt((1 - cutoff) / cutoff)
        linear = 2 * log * largest / 3
        threshold = (linear + math.sqrt(linear**2 + 8 * log * length)) / 2
        mean = length * worst_case(colluders, cutoff) / colluders
        return mean - _SIGMAS * math.sqrt(length / colluders) >= threshold

    found = []
    for cutoff in (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08):
        if worst_case(colluders, cutoff) <= 0:
            continue
        low, high = 1, 1 << 20
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle, cutoff) else (middle + 1, high)
        found.append((low, cutoff))
    return min(found)


def worst_case(colluders: int, cutoff: float) -> float:
    """The least mean of a coalition's total score in each bit, whatever it does where it chooses.

    Where x of c have a 1 and y is chosen, the mean over p of their total score is
    ±[p^x (1-p)^(c-x)] between the cutoffs, over π - 4 asin √cutoff; where all agree they cannot
    choose (the marking assumption).
    """
    c, d = colluders, cutoff
    chosen = sum(
        math.comb(c, x) * abs((1 - d) ** x * d ** (c - x) - d**x * (1 - d) ** (c - x))
        for x in range(1, c)
    )
    agreed = 2 * ((1 - d) ** c - d**c)
    return (agreed - chosen) / (math.pi - 4 * math.asin(math.sqrt(d)))
