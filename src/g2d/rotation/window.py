"""Several generations live at once: the newest few, and for a while what suspects are pinned to.

Which of them answers whom, a `policy` says. No HTTP, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from g2d.rotation.policy import Policy
from g2d.rotation.snapshot import Live, Snapshot

TOLD = 200
"""Pins that a status shows: the last ones."""


@dataclass(frozen=True)
class Answering:
    """What answers at one moment, oldest first: what is live, and what is held for suspects."""

    live: tuple[Snapshot, ...]
    held: tuple[Snapshot, ...] = ()

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of what is live."""
        return tuple(snapshot.number for snapshot in self.live)

    def of(self, numbers: Sequence[int]) -> tuple[Snapshot, ...]:
        """The snapshots of some numbers; (): not all of them are here."""
        known = {snapshot.number: snapshot for snapshot in (*self.held, *self.live)}
        found = tuple(known[number] for number in numbers if number in known)
        return found if len(found) == len(numbers) else ()


class Window(Live):
    """The last `most` generations that were live answer; a swap retires the oldest of them.

    What is retired answers only clients that the policy has pinned to it, at most `most` such
    generations and as long as their pins last. What leaves early (its time has ended, say) takes
    along what is older: so numbers never fall for anybody.

    Args:
        snapshots: oldest first, at least one. note: is told the number of the oldest that is live
            when that changes, so that a restart brings back none that is older.
    """

    def __init__(
        self,
        snapshots: Sequence[Snapshot],
        policy: Policy,
        most: int,
        note: Callable[[int], None] = lambda _: None,
    ) -> None:
        super().__init__(snapshots[-1])
        self._policy, self._most, self._note = policy, most, note
        self._answering = Answering(tuple(snapshots[-most:]))
        self._first = self._answering.live[0].number

    @property
    def now(self) -> Answering:
        """What answers now: hold it to answer several requests from the same generations."""
        return self._answering

    @property
    def reads(self) -> bool:
        """Whether the choice depends on the inputs: see `Policy`."""
        return self._policy.reads

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """All that answer somebody."""
        now = self._answering
        return (*now.held, *now.live)

    def choose(self, client: str, x: bytes, now: Answering | None = None) -> tuple[Snapshot, ...]:
        """Return whose answers are combined for a client, oldest first: see `Policy.choose`."""
        now = now or self._answering
        held = tuple(snapshot.number for snapshot in now.held)
        found = now.of(self._policy.choose(client, x, now.numbers, held))
        assert found, "a policy chooses among what answers"
        return found

    def pin(self, client: str, why: str = "") -> None:
        """Keep a client under suspicion where it is: see `Policy.pin`."""
        self._policy.pin(client, why)

    def release(self, client: str) -> bool:
        """Let a client move again; return whether it was pinned."""
        return self._policy.release(client)

    def pins(self) -> list[dict[str, Any]]:
        """Who was pinned last: see `Policy.pins`; for operators alone."""
        return self._policy.pins(TOLD)

    def tag(self, client: str, numbers: tuple[int, ...]) -> str:
        """What a client is told in place of numbers."""
        return self._policy.tag(client, numbers)

    def swap(self, fresh: Snapshot) -> int:
        """Make a newer generation live, and retire the oldest if there are too many."""
        with self._writing:
            if fresh.number <= self._snapshot.number:
                raise AssertionError("generation numbers only rise")
            now = self._answering
            live = (*now.live, fresh)
            self._hold(live[-self._most :], (*now.held, *live[: -self._most]))
            self._snapshot = fresh
            return fresh.number

    def heal(self, fresh: Snapshot) -> bool:
        """Replace what answers by a sound copy of the same generation, if it still answers."""
        with self._writing:
            now = self._answering
            if fresh.number not in {snapshot.number for snapshot in (*now.held, *now.live)}:
                return False
            live, held = (
                tuple(fresh if old.number == fresh.number else old for old in part)
                for part in (now.live, now.held)
            )
            self._answering, self._snapshot = Answering(live, held), live[-1]
            return True

    def leave(self, number: int) -> bool:
        """Answer no more from a generation, nor from older live ones, but for the newest."""
        with self._writing:
            now = self._answering
            if number == self._snapshot.number:
                return False
            older = number in now.numbers
            live = tuple(old for old in now.live if old.number > number) if older else now.live
            held = tuple(old for old in now.held if old.number != number)
            self._hold(live, held)
            return True

    def tend(self, now: float) -> tuple[int, ...]:
        """Let go what no pin holds any longer, and older ones whose time has ended."""
        with self._writing:
            live, held = self._answering.live, self._answering.held
            ended = [old for old in (*held, *live[:-1]) if now >= old.expires]
            last = max((old.number for old in ended if old in live), default=0)
            self._hold(
                tuple(old for old in live if old.number > last),
                tuple(old for old in held if now < old.expires),
            )
            return tuple(old.number for old in ended)

    def remember(self) -> None:
        """Note outside what is the oldest that is live, once that has changed."""
        first = self._answering.live[0].number
        if first != self._first:
            self._first = first  # one that cannot be noted is told once
            self._note(first)

    def status(self) -> dict[str, Any]:
        """Say what answers, and who is pinned to what; for operators alone."""
        now = self._answering
        held = [snapshot.number for snapshot in now.held]
        return {"live": list(now.numbers), "held": held, "pinned": self.pins()}

    def _hold(self, live: tuple[Snapshot, ...], retired: tuple[Snapshot, ...]) -> None:
        """Answer from these, and of what is retired from what is pinned; holds the lock."""
        kept = self._policy.held([snapshot.number for snapshot in retired], self._most)
        self._answering = Answering(live, tuple(old for old in retired if old.number in kept))
