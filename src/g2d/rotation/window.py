"""Several generations live at once: the newest few, and for a while what suspects are pinned to.

Which of them answers whom, a `policy` says. No HTTP, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from g2d.rotation.policy import Policy
from g2d.rotation.snapshot import Live, Snapshot


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
        snapshots: oldest first, at least one.
    """

    def __init__(self, snapshots: Sequence[Snapshot], policy: Policy, most: int) -> None:
        super().__init__(snapshots[-1])
        self._policy, self._most = policy, most
        self._answering = Answering(tuple(snapshots[-most:]))

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
        found = now.of(self._policy.choose(client, x, now.numbers))
        if not found:  # what it was pinned to has been let go: it goes on with what is live
            self._policy.release(client)
            found = now.of(self._policy.choose(client, x, now.numbers))
        assert found, "a policy chooses among what is live"
        return found

    def pin(self, client: str) -> None:
        """Keep a client under suspicion where it is: see `Policy.pin`."""
        self._policy.pin(client)

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

    def tend(self, now: float) -> None:
        """Let go what no pin holds any longer, and older ones whose time has ended."""
        with self._writing:
            live, held = self._answering.live, self._answering.held
            ended = [i for i, old in enumerate(live[:-1]) if now >= old.expires]
            live = live[ended[-1] + 1 :] if ended else live
            self._hold(live, tuple(old for old in held if now < old.expires))

    def status(self) -> dict[str, Any]:
        """Say what answers, and who is pinned to what; for operators alone."""
        now = self._answering
        held = [snapshot.number for snapshot in now.held]
        return {"live": list(now.numbers), "held": held, "pinned": self._policy.pins()}

    def _hold(self, live: tuple[Snapshot, ...], retired: tuple[Snapshot, ...]) -> None:
        """Answer from these, and of what is retired from what is pinned; holds the lock."""
        kept = self._policy.held([snapshot.number for snapshot in live], self._most)
        self._answering = Answering(live, tuple(old for old in retired if old.number in kept))
