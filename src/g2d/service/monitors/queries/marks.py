"""Marks that a search leaves in how an input differs from those before it, and what they weigh.

Random search sets a part of its best input to the clean values plus or minus eps (Square:
Andriushchenko et al. 2020, arXiv 1912.00049): the rest stays bit by bit, and no place ever takes a
third value. A search for the boundary halves the way between two inputs that were answered
differently (HopSkipJump: Chen et al. 2020, arXiv 1904.02144). The second or third query shows it,
when answers have no trend yet (`trails`).

A mark is no proof: what it weighs is how rare it is among near-duplicates of other clients, and
among variants that are made here of the first inputs. Noise on every query takes both marks away.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

import numpy as np

from g2d.core.types import Array

MARKS = ("patch", "halving")

NO, UNSURE, YES = range(3)
"""Whether an input carries a mark."""

Found = tuple[int, ...]
"""For each of `MARKS`: `NO`, `UNSURE` or `YES`."""

_RECENT = 32  # inputs of a client that the next is compared with
_SAME = 1e-6  # values that are the same but for rounding; all are shares of the data's range
_ALIKE = 5e-3  # values that are the same but for rounding to 8 bits
_LEAST, _MOST = 0.015, 0.45  # eps of a patch: more than coding changes, less than black to white
_FEWEST, _STAY = 6, 0.2  # places that change, at least; share of all places that stay
_PATCHED, _EXACT = 0.9, 0.4  # shares of those that change: as `_cut` says, and to the point
_THIRD = 0.1  # of those that change may take a third value
_ONE = 0.97  # where so many have one colour before or after, something was covered ...
_EVEN = 0.3  # ... unless that colour and the other fill the image about alike, as stripes do
_GRID, _ON = 2e-3, 0.98  # where so many lie on a grid, the image has few levels ...
_LEVEL = 0.012  # ... of at least so much
_APART, _WIDE = 0.03, 0.25  # halving: its ends are so far apart at so many places
_NEAR, _FAR = 0.5, 0.02  # variants differ by more than that at few places: so many
_GLANCE, _SOME = 8, 24  # places that are looked at first

_SEARCH = (0.3, 0.3, 0.4)  # shares of a search's queries: `NO`, `UNSURE`, `YES`
_QUIET = 8  # variants after which one counts as usual
EACH = 64
"""Variants of one client that count as usual, at most."""
_MADE = 4  # variants that each way makes of each of the first inputs


class Recent:
    """The last inputs of one client.

    Args:
        low, high: of all data, as its values are given here.
    """

    def __init__(self, low: float, high: float) -> None:
        self._bounds = low, high
        self._values: Array = np.zeros((0, 0), np.float32)
        self._labels = np.zeros(_RECENT, np.int64)
        self._seen = 0

    def add(self, value: Array, label: int) -> None:
        """Remember an input by its values (v,) and what it was answered."""
        if not self._seen:
            self._values = np.zeros((_RECENT, len(value)), np.float32)
        place = self._seen % _RECENT
        self._values[place], self._labels[place] = value, label
        self._seen += 1

    def marks(self, value: Array) -> Found:
        """Return whether an input, by its values (v,), carries each of `MARKS`."""
        if not self._seen:
            return (NO,) * len(MARKS)
        kept = min(self._seen, _RECENT)
        known, last = self._values[:kept], (self._seen - 1) % _RECENT
        half = halved(value, known, self._labels[:kept], last)
        return patched(value, known, self._bounds), YES if half else NO

    def near(self, value: Array) -> bool:
        """Whether an input, by its values (v,), may be a variant of one of them."""
        if not self._seen:
            return False
        known = self._values[: self._seen]
        glance = (np.abs(known[:, :_SOME] - value[:_SOME]) > _NEAR).sum(1) <= 2
        apart = np.abs(known[glance] - value) > _NEAR
        return bool((apart.mean(1) <= _FAR).any())


def patched(value: Array, known: Array, bounds: tuple[float, float]) -> int:
    """Whether values (v,) are some of `known` (k, v) but for a part, changed as a search does."""
    apart = np.abs(known - value)
    same = apart <= _SAME
    stay = same.sum(1)
    nearest = int(stay.argmax())
    size = len(value)
    if stay[nearest] < _STAY * size:
        return NO
    if size - stay[nearest] < _FEWEST:
        return UNSURE
    changed = ~same[nearest]
    old, new = known[nearest, changed], value[changed]
    eps = _cut(old, new, bounds)
    # Levels need not begin at the least value: what has changed to lies on one.
    if eps is None or any(_few_levels(value - level, eps) for level in (bounds[0], new[0])):
        return NO
    if _covered(old, new, value) or _shifted(old, new, value[~changed], bounds):
        return UNSURE
    # Those of the same image: what else its client has asked about says nothing of it.
    wide = min(2 * _MOST, 4 * eps + _ALIKE)
    related = known[(apart > wide).mean(1) <= _THIRD][:, changed]
    two = np.ptp(related, axis=0) > _SAME
    third = two & ~(np.abs(related - new) <= _SAME).any(0)
    return YES if third.mean() <= _THIRD else NO


def _cut(old: Array, new: Array, bounds: tuple[float, float]) -> float | None:
    """The eps, if there is one, for which values (m,) went from one end of balls of that radius to
    the other: by 2 eps, or by eps and more where bounds cut the ball."""
    amounts = np.abs(old - new)
    low, high = bounds[0] + _ALIKE, bounds[1] - _ALIKE
    cut = (np.minimum(old, new) <= low) | (np.maximum(old, new) >= high)
    least, middle, most = float(amounts.min()), float(np.median(amounts)), float(amounts.max())
    for eps in (least, middle, middle / 2, most / 2):
        if not _LEAST <= eps <= _MOST:
            continue
        whole = np.abs(amounts - 2 * eps) <= _ALIKE
        exact = whole | (cut & (np.abs(amounts - eps) <= _ALIKE))
        between = cut & (amounts >= eps - _ALIKE) & (amounts <= 2 * eps + _ALIKE)
        if exact.mean() >= _EXACT and (whole | between).mean() >= _PATCHED:
            return eps
    return None


def _covered(old: Array, new: Array, value: Array) -> bool:
    """Whether something of one colour came, went or moved, as in an occlusion map."""
    for one, other in ((old[0], new[0]), (new[0], old[0])):
        was, comes = np.abs(old - one) <= _SAME, np.abs(new - one) <= _SAME
        if (was | comes).mean() >= _ONE:
            two = (was | (np.abs(old - other) <= _SAME)) & (comes | (np.abs(new - other) <= _SAME))
            fill = [float((np.abs(value - each) <= _SAME).mean()) for each in (one, other)]
            return bool(two.mean() < _ONE) or min(fill) < _EVEN * sum(fill)
    return False


def _shifted(old: Array, new: Array, stay: Array, bounds: tuple[float, float]) -> bool:
    """Whether all may have become darker, or lighter, but for what the bounds hold back: as by a
    slider of brightness, or of a window of levels."""
    held = (stay <= bounds[0] + _ALIKE) | (stay >= bounds[1] - _ALIKE)
    rises = float((new > old).mean())
    return bool(held.mean() >= _ON) and max(rises, 1 - rises) >= _ON


def _few_levels(value: Array, eps: float) -> bool:
    """Whether nearly all values are multiples of eps, or of its half: then noise of a level or
    two looks like a search."""
    for step in eps / np.arange(1, 3):
        if step >= _LEVEL and (np.abs(value - step * np.rint(value / step)) <= _GRID).mean() >= _ON:
            return True
    return False


def halved(value: Array, known: Array, labels: Array, last: int) -> bool:
    """Whether values (v,) lie halfway between the last of `known` (k, v) and an earlier one that
    was answered differently."""
    end = 2 * value - known[last]
    others = np.flatnonzero(labels != labels[last])
    near = np.abs(known[others, :_GLANCE] - end[:_GLANCE]) <= 2 * _ALIKE
    others = others[near.all(1)]
    if not len(others):
        return False
    fits = (np.abs(known[others] - end) <= 2 * _ALIKE).all(1)
    wide = (np.abs(known[others] - known[last]) > _APART).mean(1) >= _WIDE
    return bool((fits & wide).any())


class Usual:
    """How usual each mark is among variants that nobody was blamed for.

    If those of benign clients come in no particular order (exchangeably), and f of n were of a
    kind, then `(n + 1) / (f + 1)` if the next is of that kind, 0 if not, is at most 1 in the mean:
    of n + 1 variants, f + 1 of that kind, each is as likely to be the last. Shares of such values,
    one share for each kind, are so together.

    Attributes:
        seen: variants. of: for each mark, how many of them were `NO`, `UNSURE` and `YES`.
    """

    def __init__(self) -> None:
        self.seen, self.of = 0, [[0, 0, 0] for _ in MARKS]

    @property
    def marked(self) -> int:
        """Marks that they carried."""
        return sum(kinds[YES] for kinds in self.of)

    def add(self, found: Found) -> None:
        """Take in a variant."""
        self.seen += 1
        for kinds, kind in zip(self.of, found, strict=True):
            kinds[kind] += 1

    def factors(self, found: Found) -> tuple[float, ...]:
        """By what each mark of a variant, or its absence, changes the evidence for a search."""
        return tuple(
            share if kind == YES else min(1.0, share)  # only a mark speaks for one
            for kind, share in (
                (kind, _SEARCH[kind] * (self.seen + 1) / (kinds[kind] + 1))
                for kinds, kind in zip(self.of, found, strict=True)
            )
        )


class Marked(NamedTuple):
    """A variant's marks, by what each changes the evidence against its client, and those of an
    earlier one of the same client, which nobody was blamed for since: it may count as usual."""

    found: Found
    factors: tuple[float, ...]
    oldest: Found | None

    @property
    def strongest(self) -> int:
        """Which of `MARKS` speaks loudest for a search."""
        return int(np.argmax(self.factors))


class _Client:
    def __init__(self, low: float, high: float) -> None:
        self.recent = Recent(low, high)
        self.waiting = deque[Found]()  # variants that may become usual


class Marks:
    """The marks of all clients' inputs.

    Args:
        most: clients whose last inputs are kept; the one that was silent for longest gives way.
        first: values (n, v) of the first inputs, from which it is learned what variants are like.
    """

    def __init__(self, most: int, first: Array, draws: np.random.Generator) -> None:
        self._most, self._kept = most, OrderedDict[str, _Client]()
        # Robust: one stranger's odd values would else say for ever where values are cut.
        low, high = np.quantile(first.min(1), 0.05), np.quantile(first.max(1), 0.95)
        self._bounds = float(low), float(high)
        self.usual = Usual()
        for way in (_noisy, _levels, _brighter, _coded):
            for value in first:
                recent = Recent(*self._bounds)
                recent.add(value, 0)
                for place, one in enumerate(way(value.astype(np.float64), draws)):
                    made = np.clip(one, *self._bounds).astype(np.float32)
                    self.usual.add(recent.marks(made))
                    recent.add(made, place % 2)  # as if half of the answers were others

    def add(self, client: str, value: Array, label: int, near: bool) -> Marked | None:
        """Take in an input, by its values (v,); None: it is no variant, and is not judged.

        Args:
            near: it is one for other reasons.
        """
        one = self._kept.get(client)
        if one is None:
            if len(self._kept) >= self._most:
                self._kept.popitem(last=False)
            one = self._kept[client] = _Client(*self._bounds)
        self._kept.move_to_end(client)
        marked = self._judge(one, value) if near or one.recent.near(value) else None
        one.recent.add(value, label)
        return marked

    def _judge(self, one: _Client, value: Array) -> Marked:
        found = one.recent.marks(value)
        one.waiting.append(found)
        # Later: what an attacker sends must not be usual before he is blamed for it.
        oldest = one.waiting.popleft() if len(one.waiting) > _QUIET else None
        return Marked(found, self.usual.factors(found), oldest)

    def blame(self, client: str) -> None:
        """There was an alarm about a client: its last variants are nothing usual."""
        if client in self._kept:
            self._kept[client].waiting.clear()


def _noisy(value: Array, draws: np.random.Generator) -> Array:
    """Noise of a sensor."""
    by = draws.choice([0.002, 0.01, 0.05])
    noise: Array = by * draws.normal(size=(_MADE, len(value)))
    return value + noise


def _levels(value: Array, draws: np.random.Generator) -> Array:
    """A corruption of evenly spaced strengths, in any order."""
    noise: Array = 0.03 * draws.permutation(_MADE)[:, None] * draws.normal(size=len(value))
    return value + noise


def _brighter(value: Array, draws: np.random.Generator) -> Array:
    """Evenly spaced exposures, in any order."""
    return value * (1 - 0.05 * draws.permutation(_MADE)[:, None])


def _coded(value: Array, draws: np.random.Generator) -> Array:
    """Encoded anew, in few levels or many."""
    levels = int(draws.choice([15, 63, 255]))
    noise = draws.choice([0.5, 1.5, 4.0]) / 255 * draws.normal(size=(_MADE, len(value)))
    return np.rint(levels * (value + noise)) / levels
