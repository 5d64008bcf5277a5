"""Extraction: how far a client's inputs lie from those that it sent before (PRADA).

PRADA (Juuti et al. 2019, arXiv 1805.02628): the distances of inputs to the nearest earlier one of
the same predicted class are about normal in benign use, and are not where inputs are made from each
other. On many data benign distances are not normal either. So here a failed test proves nothing by
itself: a client's tests must fail more often than other clients' do.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import numpy as np

from g2d.core.types import Array

TESTED = 100
"""Distances of one test (the paper's least number)."""

NORMAL = 0.95
"""Shapiro and Wilk's W below which distances are not normal (the paper's for most data)."""

_SUSPECTED = 0.9  # rate at which a copier's tests fail
_USELESS = 0.4  # where other clients' tests fail as often, the test says nothing
_OWN = 10  # tests of one other client, from which on its own rate counts, if that is higher
_BASELINE = 30  # tests of others before which nothing is known
_SURE = 0.01  # chance that their rate is under-estimated
_CLASS, _CLIENTS = 64, 256  # inputs that are kept of a class, 512 of a client; clients
_MOST = 512


class Copying:
    """The test of one client.

    Attributes:
        asked: inputs that counted. met: how many of them were answered with each class. tests,
            failed: how many tests were done, and failed.
    """

    def __init__(self) -> None:
        self.asked = self.tests = self.failed = 0
        self.met: dict[int, int] = {}
        self._growing: dict[int, Array] = {}  # (k, v) inputs of a class
        self._floor: dict[int, float] = {}  # distance from which on an input joins its class
        self._far: dict[int, list[float]] = {}  # distances of those that joined
        self._distances: list[float] = []
        self._held = 0

    def add(self, values: Array, label: int) -> bool | None:
        """Take in an input's values (v,); return whether a test failed, None: none was due."""
        self.asked += 1
        self.met[label] = self.met.get(label, 0) + 1
        value = values.astype(np.float32)
        growing = self._growing.get(label)
        if growing is None:
            self._join(label, value)
            return None
        distance = float(np.sqrt(np.square(growing - value).sum(1).min()))
        self._distances.append(distance)
        # Only of those that join, which are few: a list of all would grow with every query.
        if distance > self._floor.get(label, 0.0) and self._join(label, value):
            far = self._far.setdefault(label, [])
            far.append(distance)
            # T_c = max(T_c, mean - std) of the distances in the growing set (the paper, 4.2).
            raised = float(np.mean(far) - np.std(far))
            self._floor[label] = max(self._floor.get(label, 0.0), raised)
        if len(self._distances) < TESTED:
            return None
        failed = abnormal(np.array(self._distances))
        self._distances.clear()
        if failed is not None:
            self.tests += 1
            self.failed += failed
        return failed

    def _join(self, label: int, value: Array) -> bool:
        """Take a value into its class, if there is room."""
        growing = self._growing.get(label, np.zeros((0, len(value)), np.float32))
        if len(growing) >= _CLASS or self._held >= _MOST:
            return False
        self._growing[label] = np.concatenate([growing, value[None]])
        self._held += 1
        return True


def abnormal(distances: Array) -> bool | None:
    """Whether distances (n,) are not normal, outliers beyond three deviations left out.

    None: they are all the same, and there is nothing to test.
    """
    from scipy.stats import shapiro  # takes a second to import

    if _alike(distances):
        return None
    kept = distances[np.abs(distances - distances.mean()) <= 3 * distances.std()]
    return None if _alike(kept) else bool(shapiro(kept).statistic < NORMAL)


def _alike(distances: Array) -> bool:
    return not distances.std() > 1e-9 * max(1.0, float(distances.mean()))


class Copiers:
    """The tests of all clients, each against the others'.

    256 clients are watched, the one that was silent for longest gives way.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Copying] = OrderedDict()
        self.tests = self.failed = 0

    def add(self, client: str, values: Array, label: int) -> tuple[Copying, float] | None:
        """Take in an input; if a test was done just now, return the client's tests, and the factor
        by which that one changes the evidence against it (1: it says nothing)."""
        one = self._kept.get(client)
        if one is None:
            if len(self._kept) >= _CLIENTS:
                self._kept.popitem(last=False)
            one = self._kept[client] = Copying()
        self._kept.move_to_end(client)
        before = (one.tests, one.failed)
        failed = one.add(values, label)
        if failed is None:
            return None
        usual = usual_rate(self.tests - before[0], self.failed - before[1])
        # Clients are not alike: of viewers whose brightness was moved some failed half of them.
        others = (each for each in self._kept.values() if each is not one and each.tests >= _OWN)
        usual = max([usual, *(each.failed / each.tests for each in others)])
        self.tests += 1
        self.failed += failed
        if usual >= _USELESS:
            return one, 1.0
        return one, _SUSPECTED / usual if failed else (1 - _SUSPECTED) / (1 - usual)


def usual_rate(tests: int, failed: int) -> float:
    """The rate, at most, at which tests fail of which so many failed (Hoeffding); 1: not known."""
    if tests < _BASELINE:
        return 1.0
    return min(1.0, failed / tests + math.sqrt(math.log(1 / _SURE) / (2 * tests)))
