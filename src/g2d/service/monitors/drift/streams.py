"""Streams that are watched by ADWIN, guarded against what would blind or fool it.

ADWIN (Bifet and Gavaldà 2007, "Learning from time-changing data with adaptive windowing") cuts its
window where the means of its two halves differ by more than chance; `river` has it.
"""

from __future__ import annotations

import csv
import sys
import types
from collections.abc import Sequence
from typing import Any

import numpy as np

from g2d.core.types import Array
from g2d.errors import SettingsError
from g2d.service.monitors.drift.labels import Shift

_QUANTILES = 63


def load_adwin() -> Any:
    """Import `river.drift.ADWIN`.

    Raises:
        SettingsError: it is not installed, or cannot be imported.
    """
    # river 0.26 writes csv.DictReader[...], which Python 3.11 does not know and 3.12 does.
    lent = sys.version_info < (3, 12) and not hasattr(csv.DictReader, "__class_getitem__")
    if lent:
        csv.DictReader.__class_getitem__ = classmethod(types.GenericAlias)  # type: ignore
    try:
        from river.drift import ADWIN
    except ImportError as error:
        raise SettingsError(
            f"the monitor 'drift' needs river ({error}): pip install 'g2d[monitor]'"
        ) from error
    finally:
        if lent:
            del csv.DictReader.__class_getitem__  # type: ignore
    return ADWIN


class Streams:
    """One ADWIN for each of several values in [0, 1]; what is not finite is left out and counted.

    ADWIN's means are infinite or NaN for good once one value was.

    Args:
        chance: significance of a cut, shared out among the streams.
    """

    def __init__(self, names: Sequence[str], chance: float) -> None:
        self.names, self._adwin = tuple(names), load_adwin()
        self._delta = chance / max(len(names), 1)
        self.not_finite = 0
        self.reset()

    def reset(self) -> None:
        """Forget what was usual."""
        self.requests = 0
        self._sums = np.zeros(len(self.names))
        self._watched = [self._adwin(delta=self._delta) for _ in self.names]

    def add(self, values: Array) -> Shift | None:
        """Take requests' values (r, k); return what has moved first, if anything."""
        finite = np.isfinite(values).all(1)
        self.not_finite += int((~finite).sum())
        for row in np.clip(values[finite], 0.0, 1.0):
            moved = self._update(row.tolist())
            if moved is not None:
                before = float(self._sums[moved]) / max(self.requests, 1)
                cut = self._watched[moved]
                return Shift(self.names[moved], before, float(cut.estimation), int(cut.width))
            self._sums += row
            self.requests += 1
        return None

    def _update(self, row: list[float]) -> int | None:
        """Give each detector its value; return the first that has cut its window."""
        found = None
        for k, (watched, value) in enumerate(zip(self._watched, row, strict=True)):
            watched.update(value)
            if watched.drift_detected and found is None:
                found = k
        return found


class Ranks:
    """Where a value lies among those of the first requests: 0 below all of them, 1 above.

    Ranks lie in [0, 1], as ADWIN's limits ask for, whatever the units and however long the tails;
    a stream that was constant gives 1/2 until it is not.
    """

    def __init__(self, first: Array) -> None:
        self._quantiles = np.quantile(first, (np.arange(_QUANTILES) + 0.5) / _QUANTILES, axis=0)
        self._alike = 1e-6 * np.abs(self._quantiles).max(0) + 1e-12  # rounding of a mean

    def __call__(self, values: Array) -> Array:
        """Return the ranks of values (r, k)."""
        apart = values[:, None, :] - self._quantiles
        above, alike = apart > self._alike, np.abs(apart) <= self._alike
        ranks: Array = above.mean(1) + 0.5 * alike.mean(1)
        ranks[~np.isfinite(values)] = np.nan
        return ranks
