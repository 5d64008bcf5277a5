"""`sticky`: a generation of its own for each client, and suspects stay where they are.

What may be chosen from, and the other policies, are in `policy`.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from g2d.rotation.keyed import KeyedPolicy

_SEEN, _PINNED = 100_000, 10_000  # clients remembered: forgetting one moves it once, upwards


@dataclass(frozen=True, slots=True)
class _Seen:
    number: int
    since: float


@dataclass(frozen=True, slots=True)
class _Pin:
    number: int  # 0: what it will see first
    since: float
    why: str


class Sticky(KeyedPolicy):
    """One of the live generations for each client, by a keyed hash; a suspect stays where it is.

    A client moves when what it sees is live no more, or to a newer one that its hash prefers; to
    that at most once in `period` seconds. `pin` keeps it where it is for `hold` seconds from then;
    what it does meanwhile prolongs nothing, so that no retired generation is held for longer. Where
    what it is pinned to answers nobody any more, it is kept on what answers it next, until then.
    At the next rotation all others leave what it is pinned to (`apart`). Its numbers never fall.
    Of this what the hash says outlives the process; pins and what was left do where they are kept
    outside (`restore`). Whoever had waited for its period is where its hash says after a restart.

    Args:
        secret: replicas with the same secret and the same live generations agree. now: seconds of
            a clock that is never set.
    """

    def __init__(
        self,
        secret: bytes,
        period: float,
        hold: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(secret)
        self._period, self._hold, self._now = period, hold, now
        self._mutex = threading.Lock()
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._pinned: OrderedDict[str, _Pin] = OrderedDict()  # the first to end comes first

    def choose(
        self,
        client: str,
        x: bytes,
        live: Sequence[int],
        held: Sequence[int] | None = None,
        left: Sequence[int] = (),
    ) -> tuple[int, ...]:
        """Return the client's own."""
        name = client.encode("utf-8", "surrogatepass")
        with self._mutex:
            now = self._now()
            self._expire(now)
            pin, seen = self._pinned.get(client), self._seen.get(client)
            kept = pin is not None and pin.number in (*(held or ()), *live)
            if pin is not None and pin.number and (held is None or kept):
                return (self._see(client, pin.number, seen, now),)
            least = max(pin.number if pin else 0, seen.number if seen else 0)
            if live[-1] < least:  # a rotation came between two looks at what is live: the next sees
                return (self._first(name, live, left),)
            stays = least in live and least not in left
            own = seen is not None and seen.number == least and now - seen.since < self._period
            rests = stays and own
            number = least if rests else self._first(name, live, left, least)
            if pin is not None:
                self._pinned[client] = _Pin(number, pin.since, pin.why)
            return (self._see(client, number, seen, now),)

    def pin(self, client: str, why: str = "") -> None:
        """Keep a client on what it sees, or will see first; one that is pinned stays as it is."""
        with self._mutex:
            now = self._now()
            self._expire(now)
            if client not in self._pinned and self._hold:
                seen = self._seen.get(client)
                self._pinned[client] = _Pin(seen.number if seen else 0, now, why)
                if len(self._pinned) > _PINNED:
                    self._pinned.popitem(last=False)

    def release(self, client: str) -> bool:
        """Forget a pin; return whether there was one."""
        with self._mutex:
            self._expire(self._now())
            return self._pinned.pop(client, None) is not None

    def held(self, retired: Sequence[int], most: int) -> tuple[int, ...]:
        """Of retired numbers those that clients are pinned to; of many the newest."""
        with self._mutex:
            self._expire(self._now())
            pinned = {pin.number for pin in self._pinned.values()}
        return tuple(sorted(pinned.intersection(retired))[-most:]) if most else ()

    def apart(self, live: Sequence[int], left: Sequence[int]) -> tuple[int, ...]:
        """Of live numbers what suspects are pinned to, the first that was pinned first.

        Only at a rotation, so that nobody learns the moment of an alarm; and half of what is live
        stays open, so that many accounts do not send everybody to one generation.
        """
        room = len(live) // 2 - len(set(live).intersection(left))
        with self._mutex:
            self._expire(self._now())
            pinned = dict.fromkeys(pin.number for pin in self._pinned.values())
        return tuple(n for n in pinned if n in live[:-1] and n not in left)[: max(0, room)]

    def restore(self, pins: Iterable[Mapping[str, Any]]) -> None:
        """Pin clients again for what is left of their time, which is never more than `hold`.

        One that has seen a newer generation here is kept on that.
        """
        with self._mutex:
            now = self._now()
            for pin in pins:
                since = now - self._hold + min(self._hold, float(pin["seconds"]))
                number, client = int(pin["generation"] or 0), str(pin["client"])
                if client in self._seen:
                    number = max(number, self._seen[client].number)
                self._pinned.setdefault(client, _Pin(number, since, str(pin["why"])))
            ordered = sorted(self._pinned.items(), key=lambda one: one[1].since)
            self._pinned = OrderedDict(ordered[-_PINNED:])
            self._expire(now)

    def pins(self, most: int | None = None) -> list[dict[str, Any]]:
        """Who is pinned, why, to what, and for how many seconds more."""
        with self._mutex:
            now = self._now()
            self._expire(now)
            last = list(islice(reversed(self._pinned.items()), most))
        return [
            {"client": client, "why": pin.why, "generation": pin.number or None,
             "seconds": round(pin.since + self._hold - now, 1)}
            for client, pin in reversed(last)
        ]  # fmt: skip

    def tag(self, client: str, numbers: tuple[int, ...]) -> str:
        """Return a name for the client and what it sees; to nobody else it means anything.

        It changes when the client moves, and only then: of rotations it tells no more than asking
        the same inputs again does.
        """
        return self._tag(client, *numbers)

    def _first(self, name: bytes, live: Sequence[int], left: Sequence[int], least: int = 0) -> int:
        """The number that answers whom nobody suspects, `least` or above, if any is.

        The hash counts all that are live or were left, and where it says one that was left, again
        those above it. So this rises or stays also when one is left, and when that has retired: a
        ring without its lowest, and one that begins above it, are the same.
        """
        ring = sorted(number for number in {*live, *left} if least <= number <= live[-1])
        while (number := self._highest(b"client", name, ring)) in left and number != live[-1]:
            ring = [other for other in ring if other > number]
        return number

    def _see(self, client: str, number: int, seen: _Seen | None, now: float) -> int:
        """Note what a client sees, and since when; the caller holds the lock."""
        if seen is None or seen.number != number:
            self._seen[client] = _Seen(number, now)
        self._seen.move_to_end(client)
        if len(self._seen) > _SEEN:
            self._seen.popitem(last=False)
        return number

    def _expire(self, now: float) -> None:
        """End pins whose time is over; the caller holds the lock."""
        while self._pinned:
            client, pin = next(iter(self._pinned.items()))
            if now - pin.since < self._hold:
                return
            del self._pinned[client]
