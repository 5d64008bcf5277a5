"""What an input is known by: salted hashes of its windows, a few of its values, one exact digest.

Hashes are those of Blacklight (Li et al. 2022, arXiv 2006.14042): values are quantised, every
window of them is hashed with a secret salt, and the largest distinct hashes are kept. They find
inputs that differ in a part, by any amount. The values, at secret places, find inputs that differ
everywhere by a little: all of those in a ball of eps around one input are within 2 eps of each
other, which no search inside the ball can help.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from g2d.core.types import Array
from g2d.service.http.protocol import Model

KEPT = 50
"""Hashes of an input (the paper's number)."""

_FEWEST = 8  # distinct windows: of fewer, as of a blank image, hashes say nothing
_LEVELS = 5  # quantisation steps of an input's range: 50 of 255, the paper's
_WINDOW, _TOKENS = 20, 4  # values of a window, the paper's for small images; tokens of one
_STARTS = 2048  # windows of an input at most: of larger ones they are sampled, at secret places
_PERMUTED = 200  # windows of a table's row, over secret orders of its columns
_VALUES = 128  # values of a sketch, at secret places
_EXACT = 256  # values that are kept as they are, likewise
_GLANCE = 24  # of them are looked at first
_HUGE = 1e6  # shares of the range that values are cut to: any float may come
_FAR = 0.02  # share of them that may be far apart in inputs that are near each other
_TYPICAL = 0.05  # pairs of the first inputs that may be near each other
_AT_ONCE = 1 << 18  # values that are hashed at once: each takes 8 bytes, several times
_LEAST = 0.05  # to which the tolerance shrinks where more are


@dataclass(frozen=True, eq=False)
class Prints:
    """The fingerprints of n inputs.

    Attributes:
        hashes: (n, 50) uint64, 0 where there are fewer. kept: (n,) how many there are. values:
            (n, v) uint8. digests: (n,) uint64, of all bytes. exact: (n, e) float32, values
            as shares of the range, at other places; e is 0 where it is no image.
    """

    hashes: Array
    kept: Array
    values: Array
    digests: Array
    exact: Array


class Fingerprints:
    """Takes fingerprints of one model's inputs: images, rows of a table, sequences of tokens.

    Images (shapes of two or more sides) share one scale; a table's columns (one side, floats) each
    have their own; integers are tokens, which are compared by their hashes alone, for padding makes
    all short texts alike. Scales are learned from the first inputs and stay.

    Args:
        first: inputs (n, *shape) that scales are learned from. near: largest difference of a value,
            as a share of its range, between inputs that count as near each other; it shrinks where
            more than 5 % of the first inputs would be. salt: secret, 32 bytes.

    Attributes:
        near: that difference, after it has shrunk. sampled: share of an input's windows hashed.
    """

    def __init__(self, model: Model, first: Array, near: float, salt: bytes) -> None:
        self._key = salt
        draws = np.random.default_rng(np.frombuffer(hashlib.sha256(salt).digest(), np.uint32))
        size = math.prod(model.shape)
        self._tokens = np.dtype(model.dtype).kind in "iu"
        self._table = not self._tokens and len(model.shape) == 1
        self._window = min(_TOKENS if self._tokens else _WINDOW, size)
        self._low, self._range = self._scale(first.reshape(len(first), -1).astype(np.float64))
        self._order = self._columns(size, draws)
        length = size if self._order is None else len(self._order)
        starts = length - self._window + 1
        self._starts = (
            np.sort(draws.choice(starts, _STARTS, replace=False)) if starts > _STARTS
            else np.arange(starts)
        )  # fmt: skip
        self.sampled = len(self._starts) / starts
        # A column's values are told from another's; a pixel's are not, so that shifts are seen.
        self._salt = draws.integers(2**64, size=size if self._table else 1, dtype=np.uint64)
        base = int(draws.integers(2**63)) * 2 + 1  # odd, so that it has an inverse modulo 2^64
        self._down = _powers(pow(base, -1, 2**64), length)
        self._up = _powers(base, length)
        self._places = draws.choice(size, min(_VALUES, size), replace=False)
        exact = 0 if self._tokens or self._table else min(_EXACT, size)
        self._exact_places = draws.choice(size, exact, replace=False)
        self.near = 0.0 if self._tokens else self._settle(first, near)

    def __call__(self, x: Array) -> Prints:
        """Take the fingerprints of inputs (n, *shape)."""
        flat = x.reshape(len(x), -1)
        step = max(1, _AT_ONCE // flat.shape[1])
        each = [self._hashes(flat[n : n + step]) for n in range(0, len(flat), step)]
        hashes, kept = (np.concatenate(part) for part in zip(*each, strict=True))
        digests = [
            hashlib.blake2b(row.tobytes(), key=self._key, digest_size=8).digest() for row in flat
        ]
        exact = (flat[:, self._exact_places] - self._low[0]) / self._range[0]
        exact = np.clip(exact, -_HUGE, _HUGE)  # what is compared is doubled, in half the bits
        return Prints(
            hashes, kept, self._values(flat), np.frombuffer(b"".join(digests), np.uint64),
            exact.astype(np.float32),
        )  # fmt: skip

    def close(self, value: Array, values: Array) -> Array:
        """Which of the sketches `values` (m, v) are near one (v,): their places (k,)."""
        if self._tokens:
            return np.zeros(0, np.intp)
        most, limit = int(_FAR * values.shape[1]), np.uint8(round(255 * self.near))
        # A few values rule nearly all out.
        few = apart_from(value[:_GLANCE], values[:, :_GLANCE]) > limit
        places = np.flatnonzero(few.sum(1, dtype=np.uint8) <= most)
        far = apart_from(value, values[places]) > limit
        return places[far.sum(1, dtype=np.uint8) <= most]

    def _scale(self, flat: Array) -> tuple[Array, Array]:
        """Least value and range of every place: robust, for strangers' inputs come first, too."""
        if self._tokens:
            return np.zeros(1), np.ones(1)
        axis = 0 if self._table else None
        low, high = np.quantile(flat, (0.01, 0.99), axis=axis)
        least, most = flat.min(axis), flat.max(axis)
        narrow = high <= low
        low, high = np.where(narrow, least, low), np.where(narrow, most, high)
        low, span = np.atleast_1d(low), np.atleast_1d(high - low)
        return low, np.where(span > 0, span, 1.0)

    def _columns(self, size: int, draws: np.random.Generator) -> Array | None:
        """Secret orders of a table's columns, for neighbours mean nothing there; None: no table."""
        if not self._table:
            return None
        self._window = max(1, min(_WINDOW, size // 4))
        orders = max(1, -(-_PERMUTED // size))
        return np.concatenate([draws.permutation(size) for _ in range(orders)])

    def _hashes(self, flat: Array) -> tuple[Array, Array]:
        symbols = _mixed(self._codes(flat).view(np.uint64) + self._salt)
        if self._order is not None:
            symbols = symbols[:, self._order]
        # base^i times the sum over j in [i, i + w) of s[j] base^-j, modulo 2^64, by prefix sums.
        sums = np.zeros((len(flat), symbols.shape[1] + 1), np.uint64)
        np.cumsum(symbols * self._down, axis=1, out=sums[:, 1:])
        starts = self._starts
        windows = (sums[:, starts + self._window] - sums[:, starts]) * self._up[starts]
        ordered = np.sort(_mixed(windows) | np.uint64(1), axis=1)
        ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = 0
        kept = np.count_nonzero(ordered, axis=1)
        if ordered.shape[1] > KEPT:
            ordered = np.partition(ordered, ordered.shape[1] - KEPT, axis=1)[:, -KEPT:]
        else:
            ordered = np.pad(ordered, ((0, 0), (KEPT - ordered.shape[1], 0)))
        ordered[kept < _FEWEST] = 0
        return ordered, np.where(kept < _FEWEST, 0, np.minimum(kept, KEPT))

    def _codes(self, flat: Array) -> Array:
        if self._tokens:
            return flat.astype(np.int64)
        steps = (flat - self._low) * (_LEVELS / self._range)
        return np.rint(np.clip(steps, -_HUGE, _HUGE)).astype(np.int64)

    def _values(self, flat: Array) -> Array:
        if self._tokens:
            return np.zeros((len(flat), 0), np.uint8)
        places = self._places
        low, span = (part[places] if self._table else part for part in (self._low, self._range))
        shares = (flat[:, places] - low) / span
        return np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8)

    def _settle(self, first: Array, near: float) -> float:
        """Shrink the tolerance until few of the first inputs are near each other."""
        distinct = np.unique(self._values(first.reshape(len(first), -1)), axis=0)
        pairs = len(distinct) * (len(distinct) - 1)
        self.near = near
        while pairs and self.near > _LEAST:
            close = sum(len(self.close(row, distinct)) - 1 for row in distinct)
            if close <= _TYPICAL * pairs:
                break
            self.near = max(_LEAST, 0.7 * self.near)
        return self.near


def apart_from(value: Array, values: Array) -> Array:
    """How far unsigned values (v,) are from others (m, v)."""
    return np.maximum(values, value) - np.minimum(values, value)


def _powers(base: int, count: int) -> Array:
    """The powers base^0 to base^(count - 1) modulo 2^64 (count,) uint64."""
    found = np.full(count, base % 2**64, np.uint64)
    found[0] = 1
    return np.cumprod(found, dtype=np.uint64)


def _mixed(x: Array) -> Array:
    """SplitMix64's finaliser (Steele et al. 2014): any bit of 64 moves half of the others."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
