"""Serving policies: which of the live generations answers whom. Pure: no HTTP, no torch.

`global`: the newest, for all. `sticky`: one of the live ones for each client, by a keyed hash.
`vote`: all live ones together. `random` and `keyed`, the rivals: one for each request, by chance or
by a keyed hash of its inputs. The service holds what is live (`window`), and calls these.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from g2d.core.types import Array
from g2d.rotation.keyed import KeyedPolicy
from g2d.rotation.sticky import Sticky
from g2d.settings.serve import ServeSettings

__all__ = ["Global", "Keyed", "Policy", "Random", "Sticky", "Vote", "policy_of", "quantised"]


class Policy(Protocol):
    """Says which of the live generations answers a request. Safe to call from many threads."""

    reads: bool
    """Whether `choose` looks at the inputs; where it does not, b"" will do."""

    def choose(
        self,
        client: str,
        x: bytes,
        live: Sequence[int],
        held: Sequence[int] | None = None,
        left: Sequence[int] = (),
    ) -> tuple[int, ...]:
        """Return whose answers are combined: one generation's, for all but `vote`.

        Args:
            client: who asks, as observers are told. x: the inputs, as `quantised` writes them.
                live: numbers that may answer, oldest first, at least one. held: those that answer
                who is pinned to them, besides; None: whatever anybody is pinned to. left: of what
                is live those that answer nobody else either (`apart`), and numbers between that
                were live elsewhere and are not here; never the newest.

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

    def apart(self, live: Sequence[int], left: Sequence[int]) -> tuple[int, ...]:
        """At a rotation: of live numbers those that everybody leaves who is not pinned to them.

        Args:
            live: oldest first, the newcomer last, which is none of them. left: which were left.

        Returns:
            Numbers besides `left`; with these no more than half of what is live.
        """
        ...

    def restore(self, pins: Iterable[Mapping[str, Any]]) -> None:
        """Pin clients again, as `pins` told it; one that is pinned stays as it is."""
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


class Global(KeyedPolicy):
    """The newest generation answers everybody, and its number is told: it publishes the clock."""

    def choose(
        self,
        client: str,
        x: bytes,
        live: Sequence[int],
        held: Sequence[int] | None = None,
        left: Sequence[int] = (),
    ) -> tuple[int, ...]:
        """Return the newest."""
        return (live[-1],)

    def tag(self, client: str, numbers: tuple[int, ...]) -> str:
        """Return the number itself."""
        return str(numbers[-1])


class Vote(KeyedPolicy):
    """All live generations answer together: the mean of their scores, or the majority."""

    def choose(
        self,
        client: str,
        x: bytes,
        live: Sequence[int],
        held: Sequence[int] | None = None,
        left: Sequence[int] = (),
    ) -> tuple[int, ...]:
        """Return all that are live."""
        return tuple(live)


class Random(KeyedPolicy):
    """One of the live generations for each request, by chance: asking twice tells two of them.

    Args:
        fresh: not the same in another process, so that none repeats another's draws.
    """

    def __init__(self, secret: bytes, fresh: bytes = b"") -> None:
        super().__init__(secret)
        self._fresh, self._count, self._mutex = fresh, 0, threading.Lock()

    def choose(
        self,
        client: str,
        x: bytes,
        live: Sequence[int],
        held: Sequence[int] | None = None,
        left: Sequence[int] = (),
    ) -> tuple[int, ...]:
        """Return one of the live numbers, each as likely (but for 2^-60)."""
        with self._mutex:
            self._count += 1
            drawn = self._keyed(b"random", self._fresh, b"%d" % self._count)
        return (live[int.from_bytes(drawn[:8], "big") % len(live)],)


class Keyed(KeyedPolicy):
    """One of the live generations for each request, by a keyed hash of its quantised inputs.

    Asking again, also from another account, tells nothing new. The inputs of a request count
    together, for one generation answers all of it.
    """

    reads = True

    def choose(
        self,
        client: str,
        x: bytes,
        live: Sequence[int],
        held: Sequence[int] | None = None,
        left: Sequence[int] = (),
    ) -> tuple[int, ...]:
        """Return the one that the inputs' hash says."""
        return (self._highest(b"input", x, live),)


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
