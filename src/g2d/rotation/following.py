"""What the ledger says beside what is served: somebody else may commit, or put the vault back.

Looked at twice a second from the thread that watches. No HTTP, no torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from g2d.errors import G2DError, UnavailableError
from g2d.rotation.events import Alarm, Tell
from g2d.rotation.snapshot import Live


class Ledger(Protocol):
    """Says what was committed last."""

    def live(self) -> int:
        """Return the number that was committed last; raise a `G2DError` if that cannot be read."""
        ...


class Following:
    """Holds what is live here against the ledger; says what to follow, and why it is not ready.

    Attributes:
        newest: what somebody else committed last; 0: it was us.

    Args:
        unready: what else speaks against being ready, such as expiry; "": nothing does. tell: hears
            once of each time that it is not, unless it is only to follow.
    """

    def __init__(self, live: Live, ledger: Ledger, unready: Callable[[], str], tell: Tell) -> None:
        self._live, self._ledger, self._unready, self._tell = live, ledger, unready, tell
        self._mutex = threading.Lock()
        self._own = self._skipped = self.newest = 0
        self._fault = self._last = ""

    @property
    def ahead(self) -> int:
        """The number to follow: newer than what is live, and not skipped; 0: there is none."""
        return self.newest if self.newest > max(self._live.number, self._skipped) else 0

    def skip(self, number: int) -> None:
        """Follow this one no more: it is not what it should be."""
        self._skipped = max(self._skipped, number)

    def look(self) -> int:
        """Ask the ledger; tell what makes this service not ready.

        Returns:
            The number to follow; 0: there is none.
        """
        before, fault, detail, number = self._live.number, "", "", 0
        try:
            number = self._ledger.live()
        except UnavailableError:
            return 0
        except G2DError as error:
            fault, detail = "what is live cannot be read", f": {error}"  # it names files
        with self._mutex:
            if number and number < before:  # what is served was committed before it was served
                fault = f"the ledger says that {number} is live, after {before}: it was put back"
            self.newest = number if number != self._own else 0
            self._fault = fault
        why = self.unready()
        if why != self._last and not self.ahead:  # a standby has to follow all the time
            self._last = why
            if why:
                self._tell(Alarm("unready", why + detail))
        return self.ahead

    @contextmanager
    def committing(self, number: int) -> Iterator[None]:
        """Take a number in the ledger for our own until it is live here."""
        with self._mutex:
            self._own = number
        try:
            yield
        finally:
            with self._mutex:
                self._own = 0

    def unready(self) -> str:
        """Why this service should not be asked: another generation is live, or something else."""
        with self._mutex:
            number, fault = self.newest, self._fault
        if fault:
            return fault
        if number > self._live.number:
            return f"generation {number} is live, and not here yet"
        return self._unready()
