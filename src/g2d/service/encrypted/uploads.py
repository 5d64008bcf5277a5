"""The places of uploads: few at once, and who gives his up to another. Knows no HTTP.

Keys are large, so that few come at a time. Who holds a place slowly, or with many addresses, must
not keep the others out: where all are taken, one that is under way gives way to a newcomer.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from g2d.service.encrypted.evaluators import BusyError
from g2d.service.http.limits import is_loopback

PLACES = 4
"""Uploads under way at once, one of each client: each holds a file of its largest size at most."""
AGAIN = 5.0  # seconds until an upload may be tried again
_LOCAL = PLACES - 1
"""Of these from loopback, where one client may stand for many: not all of them."""
_NEAR = {4: 24, 6: 48}
"""Bits of networks whose addresses may be one person's, by the version of IP."""


@dataclass(eq=False)
class Upload:
    """One upload under way.

    Attributes:
        id: of its keys. file: to fill. client: who sends, as `Caller.client`. since: when it began.
        size: bytes that have come. whole: they are all there, and it does not give way any more.
        over: it gave way. limit: of who waits for its bytes, while he does.
    """

    id: str
    file: Path
    client: str
    since: float
    size: int = 0
    whole: bool = False
    over: bool = False
    limit: asyncio.Timeout | None = None

    def give_way(self) -> None:
        """End it: nobody waits for its bytes any more."""
        self.over = True
        if self.limit is not None and not self.limit.expired():  # else its end is here already
            self.limit.reschedule(asyncio.get_running_loop().time())


class Uploads:
    """All uploads under way. Belongs to one event loop.

    Args:
        folder: where files lie. patience: seconds that each has, whoever waits.
    """

    def __init__(self, folder: Path, patience: float, clock: Callable[[], float]) -> None:
        self._folder, self._patience, self._clock = folder, patience, clock
        self._under_way: list[Upload] = []

    def open(self, client: str) -> Upload:
        """Take a place, if need be another's.

        Raises:
            BusyError: he is uploading already, or all places are taken and nobody gives way.
        """
        own, local = secrets.token_hex(16), is_loopback(client)
        made = Upload(own, self._folder / own, client, self._clock())
        same = [
            one for one in self._under_way
            if (is_loopback(one.client) if local else one.client == client)
        ]  # fmt: skip
        if same and not local:
            raise BusyError(True, AGAIN)
        if len(same) >= _LOCAL:
            self._take(self._late(same, made.since), True)
        elif len(self._under_way) >= PLACES:
            crowd = self._crowd(network_of(client))
            self._take(crowd or self._late(self._under_way, made.since), False)
        self._under_way.append(made)
        return made

    def close(self, upload: Upload) -> None:
        """Its place is free."""
        if upload in self._under_way:
            self._under_way.remove(upload)

    def _take(self, found: list[Upload], own: bool) -> None:
        """Have the slowest of some give way; raises `BusyError` where there are none."""
        if not found:
            raise BusyError(own, AGAIN)
        now = self._clock()
        other = min(found, key=lambda one: one.size / max(now - one.since, 1e-3))
        self.close(other)
        other.give_way()

    def _crowd(self, network: str) -> list[Upload]:
        """Those of a network that has two places more than this one; of loopback nobody is."""
        apart = [one for one in self._under_way if not is_loopback(one.client)]
        held = Counter(network_of(one.client) for one in apart)
        most = max(held.values(), default=0)
        if most <= held[network] + 1:
            return []
        return [one for one in apart if held[network_of(one.client)] == most and not one.whole]

    def _late(self, found: list[Upload], now: float) -> list[Upload]:
        """Those of some who have had their time."""
        return [one for one in found if not one.whole and now - one.since >= self._patience]


def network_of(client: str) -> str:
    """What may be one person's: a name is, and so is a network (/24, or /48) of addresses."""
    address, _, _ = client.partition("/")
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return client
    bits = _NEAR[found.version]
    return str(ipaddress.ip_network((found, bits), strict=False))
