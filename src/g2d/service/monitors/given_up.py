"""What comes from a population that was given up answers nobody, once a newer generation is live.

Where several generations are live, those of a refresh that `g2d rollback` has undone would go on
answering until they retire: a poisoned one, too. Going back itself is in `vault.sources`.
"""

from __future__ import annotations

from collections.abc import Callable

from g2d.core.types import Values
from g2d.rotation.control import RotationControl
from g2d.rotation.snapshot import Live

KIND = "refresh"
"""The kind of its alarms, as of all that is told of refreshes."""


class GivenUp:
    """Has generations of a population that was given up leave, with an alarm, and older ones too.

    Renewals are numbered upwards, and so are generations: an older one of a later renewal than
    the newest one's comes from a population that was left since.

    Args:
        describe: facts of a generation by its number; `renewal`, if it has one, is what it was made
            from, else the first population.
    """

    def __init__(
        self, live: Live, describe: Callable[[int], Values], rotation: RotationControl
    ) -> None:
        self._live, self._describe, self._rotation = live, describe, rotation
        self._looked: tuple[int, ...] = ()

    def watch(self) -> None:
        """Look, if what answers has changed."""
        numbers = tuple(snapshot.number for snapshot in self._live.snapshots)
        if numbers == self._looked:
            return
        self._looked = numbers
        if len(numbers) < 2:
            return
        newest = self._renewal(numbers[-1])
        for number in reversed(numbers[:-1]):
            there = any(snapshot.number == number for snapshot in self._live.snapshots)
            if there and self._renewal(number) > newest and self._live.leave(number):
                self._rotation.alarm(
                    KIND, f"generation {number} comes from a population that was given up: it"
                    " answers no more, nor does what is older", rotate=False,
                )  # fmt: skip

    def _renewal(self, number: int) -> int:
        found = self._describe(number).get("renewal", 0)
        return found if isinstance(found, int) else 0
