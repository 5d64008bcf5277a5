"""What a worker does of `g2d refresh`, `rollback` and `grow`: the one writer changes the source.

A challenger, or a basin, that is ready is taken up before the next generation is made. Going back
is quicker: a spare of the population that is to be left is not committed any more, either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from g2d.core.types import Values
from g2d.errors import G2DError, GenerationError
from g2d.rotation.events import Alarm, Tell
from g2d.vault.sources import ordered, source_of

if TYPE_CHECKING:
    from g2d.defence.defence import Defence

KIND = "refresh"
GROWTH = "growth"
"""Kind of alarms about basins; with evidence, so that no client hears of the stock."""


class Source:
    """A worker's defence by the source of its vault as it is now.

    Attributes:
        defence: exchanged where the source changes; the vault stays open.
    """

    def __init__(self, defence: Defence, tell: Tell) -> None:
        self.defence, self._tell = defence, tell
        self._of = defence.vault.source
        self._grown = False  # a basin that was taken up is not in the defence's generator yet
        self._told: set[str] = set()

    def look(self, order: Values) -> None:
        """Change the source where that was asked for, before an order is carried out.

        Raises:
            GenerationError: the order is to commit what comes from a population that was left.
        """
        vault = self.defence.vault
        try:
            if order["do"] != "commit" or ordered(vault):
                self._take_up()
        except G2DError as error:  # what is live, and what it comes from, stays
            self._tell_once(Alarm(KIND, f"the population stays as it is: {error}"))
        if order["do"] != "commit":
            self._take_basin()
        # What was committed counts, whatever came after it.
        if self._of != vault.source or self._grown:
            self._follow()
        if order["do"] != "commit":
            return
        last, number = next(iter(vault.sources(1)), {}), int(order["number"])
        if last.get("why") == "rollback" and last.get("left") == source_of(
            vault.generation(number).manifest
        ):
            raise GenerationError(
                f"generation {number} comes from the population that was given up by `g2d "
                "rollback`; the next one is made from the former population"
            )

    def _take_up(self) -> None:
        from g2d.defence.refresh import take_up

        taken = take_up(self.defence.vault)
        if taken is not None:
            self._tell(Alarm(KIND, taken.text))

    def _follow(self) -> None:
        from g2d.defence.refresh import follow

        self.defence = follow(self.defence)
        self._of, self._grown = self.defence.vault.source, False

    def _take_basin(self) -> None:
        from g2d.defence.growing import take_up_basin

        try:
            taken = take_up_basin(self.defence.vault)
        except G2DError as error:  # rotation goes on in the basins that there are
            self._tell_once(Alarm(GROWTH, f"no basin is taken up: {error}", evidence={}))
            return
        if taken is not None:
            self._grown = True
            self._tell(Alarm(GROWTH, taken.text, "notice", evidence={"unseen": taken.unseen}))

    def _tell_once(self, alarm: Alarm) -> None:
        if alarm.text not in self._told:
            self._told.add(alarm.text)
            self._tell(alarm)
