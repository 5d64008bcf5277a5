"""Triggers and their labels: a pseudo-random function of a set's key and the inputs' form alone.

The claimant has no choice left: whoever has the key draws the same inputs and labels, bit for bit,
on any machine (integers of SHAKE-256, and float64 arithmetic element by element). Smoothed noise
for images, since independent pixels vanish in a convolution; for tables points inside the ranges;
for tokens sequences of ids. Between a set's key and its triggers lies a slow hash (PBKDF2, RFC
8018): whoever searches for a key that some network happens to answer pays 2^16 times as much.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from g2d.core.types import Array
from g2d.protect.watermark.form import IMAGE, SEQUENCE, InputForm

_CELLS = 7  # a side of the coarse grid that an image's noise is drawn on
_ROUNDS = 1 << 16  # of PBKDF2: some 30 ms for each key
_LEVELS = 255  # values of a trigger are multiples of 1/255 of the range, as 8-bit images hold them


def triggers_of(set_key: bytes, form: InputForm, n: int) -> tuple[Tensor, Tensor]:
    """The triggers x and labels y of a set: what `make_triggers` draws from its stretched key."""
    return make_triggers(stretched(set_key), form, n)


def repeated(x: Tensor) -> bool:
    """Whether two of some triggers x (n, ...) are the same: one answer would count twice."""
    return len({row.tobytes() for row in x.numpy()}) < len(x)


@lru_cache(maxsize=64)
def stretched(set_key: bytes) -> bytes:
    """What triggers are drawn from, 32 bytes: PBKDF2-HMAC-SHA256 of a set's key, 2^16 rounds."""
    return hashlib.pbkdf2_hmac("sha256", set_key, b"g2d watermark set 1", _ROUNDS)


def make_triggers(set_key: bytes, form: InputForm, n: int) -> tuple[Tensor, Tensor]:
    """Return inputs x (n, *form.shape), float32 or int64 ids, and labels y (n,) int64.

    Its key is one that has been `stretched`: what a set's own key draws, `triggers_of` says.
    Triggers i < m of n are those of m: a smaller set is the beginning of a larger one.
    """
    start = _begun(set_key, form, b"input")
    x = [_input(_Stream(start, place), form) for place in range(n)]
    kind = np.int64 if form.kind == SEQUENCE else np.float32
    stacked = np.stack(x).astype(kind).reshape(n, *form.shape)
    return torch.from_numpy(stacked), make_labels(set_key, form, n)


def make_labels(set_key: bytes, form: InputForm, n: int) -> Tensor:
    """The labels of `make_triggers` alone, (n,) int64: microseconds, where many keys are tried."""
    start, classes, found = _begun(set_key, form, b"label"), form.classes, []
    for place in range(n):  # as `_Stream.below` draws one
        here = start.copy()
        here.update(place.to_bytes(8, "big"))
        found.append(int.from_bytes(here.digest(4), "big") * classes >> 32)
    return torch.tensor(found, dtype=torch.int64)


def _begun(key: bytes, form: InputForm, purpose: bytes) -> Any:
    """SHAKE-256 over key, form and purpose: what all places of a set share."""
    return hashlib.shake_256(b"g2d triggers 1\0" + key + form.digest + purpose)


class _Stream:
    """Integers from SHAKE-256 over key, form, purpose and place."""

    def __init__(self, start: Any, place: int) -> None:
        self._hash = start.copy()
        self._hash.update(place.to_bytes(8, "big"))
        self._taken = 0

    def integers(self, count: int) -> Array:
        """Integers below 2**32, (count,) uint64."""
        end = self._taken + 4 * count
        data = self._hash.digest(end)[self._taken :]
        self._taken = end
        return np.frombuffer(data, ">u4").astype(np.uint64)

    def uniform(self, count: int) -> Array:
        """Numbers in [0, 1), (count,) float64."""
        return self.integers(count).astype(np.float64) / 2.0**32

    def below(self, count: int, limit: int) -> Array:
        """Integers below `limit`, (count,) int64; `limit` is far below 2**32."""
        return (self.integers(count) * np.uint64(limit) >> np.uint64(32)).astype(np.int64)


def _input(stream: _Stream, form: InputForm) -> Array:
    """One input, flattened (size,)."""
    if form.kind == SEQUENCE:
        allowed = np.setdiff1d(np.arange(form.vocabulary), np.array(form.special, dtype=np.int64))
        return allowed[stream.below(form.size, len(allowed))]
    unit = _smooth(stream, form.shape) if form.kind == IMAGE else stream.uniform(form.size)
    unit = np.rint(unit * _LEVELS) / _LEVELS
    low, high = np.array(form.low), np.array(form.high)
    values = low + unit * (high - low)
    for place in form.integer:
        values[place] = np.rint(values[place])
    for group in form.one_hot:
        values[list(group)] = 0.0
        values[group[stream.below(1, len(group))[0]]] = 1.0
    return values


def _smooth(stream: _Stream, shape: tuple[int, ...]) -> Array:
    """Noise on a coarse grid, made finer by linear interpolation and stretched to [0, 1]."""
    *channels, height, width = shape
    count = math.prod(channels)
    grid = stream.uniform(count * _CELLS * _CELLS).reshape(count, _CELLS, _CELLS)
    fine = _between(_between(grid, height, 1), width, 2)
    fine = fine - fine.min()
    return (fine / fine.max()).reshape(-1) if fine.max() > 0 else fine.reshape(-1)


def _between(grid: Array, size: int, axis: int) -> Array:
    """Linear interpolation of an axis to `size` places, its ends kept."""
    at = np.arange(size) * ((grid.shape[axis] - 1) / max(1, size - 1))
    lower = np.minimum(at.astype(np.int64), grid.shape[axis] - 2)
    share = (at - lower).reshape([-1 if i == axis else 1 for i in range(grid.ndim)])
    first, second = np.take(grid, lower, axis), np.take(grid, lower + 1, axis)
    return first + share * (second - first)
