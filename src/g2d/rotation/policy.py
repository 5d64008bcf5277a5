"""Serving policies: which of the live generations answers whom. Pure: no HTTP, no torch.

`global`: the newest, for all. `sticky`: one of the live ones for each client, by a keyed hash.
`vote`: all live ones together. `random` and `keyed`, the rivals: one for each request, by chance or
by a keyed hash of its inputs. The service holds what is live (`window`), and calls these.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np

from g2d.core.types import Array
from g2d.settings.serve import ServeSettings

_TAG = 8  # bytes of a tag; it begins with a letter, for none must be taken for a number
_SEEN, _PINNED = 100_000, 10_000  # clients remembered: forgetting one moves it once, upwards


class Policy(Protocol):
    """Says which of the live generations answers a request. Safe to call from many threads."""

    reads: bool
    """Whether `choose` looks at the inputs; where it does not, b"" will do."""

    def choose(
        self, client: str, x: bytes, live: Sequence[int], held: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """Return whose answers are combined: one generation's, for all but `vote`.

        Args:
            client: who asks, as observers are told. x: the inputs, as `quantised` writes them.
                live: numbers that may answer, oldest first, at least one. held: those that answer
                who is pinned to them, besides; None: whatever anybody is pinned to.

        Returns:
            Numbers in `live`, oldest first; of a pinned client the one that it is pinned to. Where
            that answers nobody any more, the client is pinned to what answers it now.
        """
        ...

    def pin(self, client: str, why: str = "") -> None:
        """Keep a client under suspicion on what it sees, for a bounded time."""
        ...

    def release(self, client: str) -> bool:
        """Forget a pin; return whether there was one."""
        ...

    def held(self, retired: Sequence[int], most: int) -> tuple[int, ...]:
        """Of retired numbers those that clients are pinned to: the newest, `most` at most."""
        ...

    def tag(self, client: str, numbers: tuple[int, ...]) -> str:
        """Return what a client is told in place of a generation's number."""
        ...

    def pins(self, most: int | None = None) -> list[dict[str, Any]]:
        """Who is pinned, why, to what, and for how many seconds more; for operators alone.

        Args:
            most: of so many the last ones; None: all.
        """
        ...


class _Policy:
    """What most policies have in common: nobody is pinned, and tags tell of no rotation."""

    reads = False

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def pin(self, client: str, why: str = "") -> None:
        """Do nothing: nobody has a generation of his own."""

    def release(self, client: str) -> bool:
        """Return False: nobody is pinned."""
        return False

    def held(self, retired: Sequence[int], most: int) -> tuple[int, ...]:
        """Return (): what is not live answers nobody."""
        return ()

    def pins(self, most: int | None = None) -> list[dict[str, Any]]:
        """Return []: nobody is pinned."""
        return []

    def tag(self, client: str, numbers: tuple[int, ...]) -> str:
        """Return one name for each client, for good: all that are live answer it.

        Those change at each rotation. A name of theirs would publish the clock, and one of what
        has answered would help whoever searches for where the generations differ.
        """
        return self._tag(client)

    def _tag(self, client: str, *numbers: int) -> str:
        name = client.encode("utf-8", "surrogatepass")
        return "t" + self._keyed(b"tag", name, *(b"%d" % k for k in numbers))[:_TAG].hex()

    def _keyed(self, purpose: bytes, *parts: bytes) -> bytes:
        """HMAC-SHA-256 (RFC 2104) of parts, each after its length: no two lists are one text."""
        text = b"".join(b"%d:%b" % (len(part), part) for part in (purpose, *parts))
        return hmac.digest(self._secret, text, "sha256")

    def _highest(self, purpose: bytes, what: bytes, live: Sequence[int]) -> int:
        """Rendezvous hashing: of the live numbers the one whose keyed hash is highest.

        Where the oldest number leaves and a newer one comes, what this returns rises or stays: if
        it was the oldest, all others are newer; else only the newcomer can beat it. So a client's
        numbers never fall, whoever computes them: another replica, or this one after a restart.
        (Thaler and Ravishankar 1998, "Using name-based mappings to increase hit rates".)
        """
        return max(live, key=lambda number: self._keyed(purpose, what, b"%d" % number))


class Global(_Policy):
    """The newest generation answers everybody, and its number is told: it publishes the clock."""

    def choose(
        self, client: str, x: bytes, live: Sequence[int], held: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """Return the newest."""
        return (live[-1],)

    def tag(self, client: str, numbers: tuple[int, ...]) -> str:
        """Return the number itself."""
        return str(numbers[-1])


class Vote(_Policy):
    """All live generations answer together: the mean of their scores, or the majority."""

    def choose(
        self, client: str, x: bytes, live: Sequence[int], held: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """Return all that are live."""
        return tuple(live)


class Random(_Policy):
    """One of the live generations for each request, by chance: asking twice tells two of them.

    Args:
        fresh: not the same in another process, so that none repeats another's draws.
    """

    def __init__(self, secret: bytes, fresh: bytes = b"") -> None:
        super().__init__(secret)
        self._fresh, self._count, self._mutex = fresh, 0, threading.Lock()

    def choose(
        self, client: str, x: bytes, live: Sequence[int], held: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """Return one of the live numbers, each as likely (but for 2^-60)."""
        with self._mutex:
            self._count += 1
            drawn = self._keyed(b"random", self._fresh, b"%d" % self._count)
        return (live[int.from_bytes(drawn[:8], "big") % len(live)],)


class Keyed(_Policy):
    """One of the live generations for each request, by a keyed hash of its quantised inputs.

    Asking again, also from another account, tells nothing new. The inputs of a request count
    together, for one generation answers all of it.
    """

    reads = True

    def choose(
        self, client: str, x: bytes, live: Sequence[int], held: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """Return the one that the inputs' hash says."""
        return (self._highest(b"input", x, live),)


@dataclass(frozen=True, slots=True)
class _Seen:
    number: int
    since: float


@dataclass(frozen=True, slots=True)
class _Pin:
    number: int  # 0: what it will see first
    since: float
    why: str


class Sticky(_Policy):
    """One of the live generations for each client, by a keyed hash; a suspect stays where it is.

    A client moves when what it sees is live no more, or to a newer one that its hash prefers; to
    that at most once in `period` seconds. `pin` keeps it where it is for `hold` seconds from then;
    what it does meanwhile prolongs nothing, so that no retired generation is held for longer. Where
    what it is pinned to answers nobody any more, it is kept on what answers it next, until then.
    Its numbers never fall. Nothing here outlives the process but what the hash says: whoever was
    pinned, or had waited for its period, is where its hash says after a restart.

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
        self, client: str, x: bytes, live: Sequence[int], held: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """Return the client's own."""
        name = client.encode("utf-8", "surrogatepass")
        with self._mutex:
            now = self._now()
            self._expire(now)
            pin, seen = self._pinned.get(client), self._seen.get(client)
            kept = pin is not None and pin.number in (*(held or ()), *live)
            if pin is not None and pin.number and (held is None or kept):
                return (pin.number,)
            least = max(pin.number if pin else 0, seen.number if seen else 0)
            newer = [number for number in live if number >= least]
            if not newer:  # a rotation came between two looks at what is live: the next look sees
                return (self._highest(b"client", name, live),)
            rests = seen is not None and newer[0] == seen.number and now - seen.since < self._period
            number = newer[0] if rests else self._highest(b"client", name, newer)
            if pin is not None:
                self._pinned[client] = _Pin(number, pin.since, pin.why)
            moved = seen is None or seen.number != number
            return (self._see(client, number, now if moved or seen is None else seen.since),)

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

    def _see(self, client: str, number: int, since: float) -> int:
        """Note what a client sees, and since when; the caller holds the lock."""
        self._seen[client] = _Seen(number, since)
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


def policy_of(
    settings: ServeSettings,
    secret: bytes,
    now: Callable[[], float] = time.monotonic,
    fresh: bytes = b"",
) -> Policy:
    """Make the policy that `[serve]` asks for.

    Args:
        secret: what keyed hashes and tags are made with; the same one, the same choices. now: see
            `Sticky`. fresh: see `Random`.
    """
    match settings.policy:
        case "sticky":
            return Sticky(secret, settings.period, settings.hold, now)
        case "vote":
            return Vote(secret)
        case "random":
            return Random(secret, fresh)
        case "keyed":
            return Keyed(secret)
    return Global(secret)


def quantised(x: Array, quantum: float) -> bytes:
    """Write inputs so that those which differ by little are mostly alike, as `Policy.choose` takes.

    Args:
        x: (n, ...), finite. quantum: step to which floating point inputs are rounded; whole
            numbers stay as they are.
    """
    if x.dtype.kind == "f":
        steps = np.rint(x.astype(np.float64) / quantum) + 0.0  # -0.0 and 0.0 are one
        return steps.tobytes()
    return x.tobytes()
