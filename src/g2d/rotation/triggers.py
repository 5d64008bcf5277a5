"""What makes a rotation due, how long to wait after a failure, and what alarms may cause."""

from __future__ import annotations

import math
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_SPENT = 1024  # clients that have had a rotation by alarm, and may go on


@dataclass(frozen=True)
class Triggers:
    """What makes a rotation due, besides an operator and an alarm; 0 turns one off.

    Attributes:
        every: mean seconds between rotations. queries: mean number of inputs answered between them.
            jitter: each wait is drawn evenly from `[1 - jitter, 1 + jitter]` times the mean, in
            secret: a client that counts inputs must not know the moment either.
    """

    every: float = 0.0
    jitter: float = 0.1
    queries: int = 0


@dataclass(frozen=True)
class Backoff:
    """How long to wait after the n-th failure in a row: doubling, bounded, a tenth at random."""

    first: float = 1.0
    most: float = 300.0

    def seconds(self, failures: int, chance: random.Random) -> float:
        """Return the seconds to wait after `failures` >= 1 failures in a row."""
        doubled: float = self.first * 2.0 ** min(failures - 1, 60)
        return min(self.most, doubled) * chance.uniform(0.9, 1.1)


class AlarmBudget:
    """A token bucket: rotations that alarms of queries may cause above the schedule.

    An attacker can cause alarms as often as he likes. Without a bound he would buy rotations, each
    a fresh model to try and a candidate's cost. It holds one token at most, so that the first
    alarm rotates at once, and refills by monotonic time: who sets the clock buys nothing. Whoever
    has had a token gets no other until he was quiet for as long as one takes to come: an attack by
    one client is one rotation, however long it lasts; one by many is a token at a time.

    Args:
        an_hour: tokens that come in an hour; 0: such alarms rotate never.
    """

    def __init__(self, an_hour: float = 1.0, now: Callable[[], float] = time.monotonic) -> None:
        self._period, self._now = 3600.0 / an_hour if an_hour else math.inf, now
        self._full_at = -math.inf  # when there is a whole token again
        self._spent: OrderedDict[str, float] = OrderedDict()  # who had one: the last alarm
        self._mutex = threading.Lock()
        self.withheld = 0

    def take(self, client: str = "") -> bool:
        """Take a token; False: there is none for this client, which is counted in `withheld`.

        Args:
            client: whose queries have caused the alarm; "": nobody's.
        """
        with self._mutex:
            now = self._now()
            goes_on = client in self._spent and now < self._spent[client] + self._period
            if client in self._spent:
                self._note(client, now)
            if math.isinf(self._period) or goes_on or now < self._full_at:
                self.withheld += 1
                return False
            self._full_at = now + self._period
            if client:
                self._note(client, now)
            return True

    def kept(self) -> tuple[float, dict[str, float]]:
        """What a restart must know: seconds until a token comes; and since when who had one is
        quiet, in seconds."""
        with self._mutex:
            now = self._now()
            quiet = {client: now - at for client, at in self._spent.items()}
            wait = max(0.0, self._full_at - now)
        return wait, {client: since for client, since in quiet.items() if since < self._period}

    def restore(self, wait: float, quiet: Mapping[str, float]) -> None:
        """Go on where `kept` was told; nobody waits longer than a token takes to come.

        What is known here already stays, where it is the later. Where no token comes ever, nobody
        is remembered.
        """
        if math.isinf(self._period):
            return
        with self._mutex:
            now = self._now()
            self._full_at = max(self._full_at, now + min(self._period, wait))
            for client, seconds in quiet.items():
                at = now - max(0.0, seconds)
                if seconds < self._period and at > self._spent.get(client, -math.inf):
                    self._note(client, at)

    def _note(self, client: str, now: float) -> None:
        self._spent[client] = now
        self._spent.move_to_end(client)
        if len(self._spent) > _SPENT:
            self._spent.popitem(last=False)
