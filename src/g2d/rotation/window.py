"""Several generations live at once: the newest few, and for a while what suspects are pinned to.

Which of them answers whom, a `policy` says. No HTTP, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from g2d.rotation.policy import Policy
from g2d.rotation.snapshot import Live, Snapshot

TOLD = 200
"""Pins that a status shows: the last ones."""


@dataclass(frozen=True)
class Answering:
    """What answers at one moment, oldest first: what is live, and what is held for suspects.

    Attributes:
        left: see `Policy.choose`; those above the oldest and below the newest that is live.
    """

    live: tuple[Snapshot, ...]
    held: tuple[Snapshot, ...] = ()
    left: tuple[int, ...] = ()

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of what is live."""
        return tuple(snapshot.number for snapshot in self.live)

    def of(self, numbers: Sequence[int]) -> tuple[Snapshot, ...]:
        """The snapshots of some numbers; (): not all of them are here."""
        known = {snapshot.number: snapshot for snapshot in (*self.held, *self.live)}
        found = tuple(known[number] for number in numbers if number in known)
        return found if len(found) == len(numbers) else ()


class Keeper:
    """Keeps outside what a restart must know of suspects; this one keeps nothing."""

    def leaving(self, left: Sequence[int]) -> None:
        """Keep which numbers others leave now; called before they do, and never raises."""


def left_at(policy: Policy, live: Sequence[int], left: Sequence[int]) -> tuple[int, ...]:
    """What nobody but suspects sees after a rotation to `live`, where `left` was before it."""
    left = (*left, *policy.apart(live, left))
    return tuple(sorted({number for number in left if number >= live[0]}))


class Window(Live):
    """The last `most` generations that were live answer; a swap retires the oldest of them.

    What is retired answers only clients that the policy has pinned to it, at most `most` such
    generations and as long as their pins last. What leaves early (its time has ended, say) takes
    along what is older: so numbers never fall for anybody. What suspects are pinned to is left by
    all others at the next swap (`Policy.apart`), stays in its place, and is left for good.

    Args:
        snapshots: oldest first, at least one. note: is told the number of the oldest that is live
            when that changes, so that a restart brings back none that is older. held: retired ones
            that clients are pinned to. left: what was left. keeper: keeps that.
    """

    def __init__(
        self,
        snapshots: Sequence[Snapshot],
        policy: Policy,
        most: int,
        note: Callable[[int], None] = lambda _: None,
        *,
        held: Sequence[Snapshot] = (),
        left: Sequence[int] = (),
        keeper: Keeper | None = None,
    ) -> None:
        super().__init__(snapshots[-1])
        self._policy, self._most, self._note = policy, most, note
        self._keeper = keeper or Keeper()
        self._left, self._answering = frozenset(left), Answering(tuple(snapshots[-most:]))
        self._hold(self._answering.live, tuple(held))
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
        found = now.of(self._policy.choose(client, x, now.numbers, held, now.left))
        assert found, "a policy chooses among what answers"
        return found

    def pin(self, client: str, why: str = "") -> None:
        """Keep a client under suspicion where it is: see `Policy.pin`."""
        self._policy.pin(client, why)

    def release(self, client: str) -> bool:
        """Let a client move again; return whether it was pinned."""
        return self._policy.release(client)

    def pins(self, most: int = TOLD) -> list[dict[str, Any]]:
        """Who was pinned last: see `Policy.pins`; for operators alone."""
        return self._policy.pins(most)

    def restore(self, pins: Iterable[Mapping[str, Any]]) -> None:
        """Pin clients again, as `pins` told it: see `Policy.restore`."""
        self._policy.restore(pins)

    def tag(self, client: str, numbers: tuple[int, ...]) -> str:
        """What a client is told in place of numbers."""
        return self._policy.tag(client, numbers)

    def swap(self, fresh: Snapshot) -> int:
        """Make a newer generation live, and retire the oldest if there are too many."""
        with self._writing:
            if fresh.number <= self._snapshot.number:
                raise AssertionError("generation numbers only rise")
            now = self._answering
            live: tuple[Snapshot, ...] = (*now.live, fresh)
            # What was missed here has its place, too: elsewhere it has retired another.
            known = {*self._left, *(each.number for each in live)}
            oldest = sorted(n for n in known if n <= fresh.number)[-self._most :][0]
            retired = (*now.held, *(each for each in live if each.number < oldest))
            live = tuple(each for each in live if each.number >= oldest)
            left = left_at(self._policy, [each.number for each in live], tuple(self._left))
            if not self._left.issuperset(left):
                self._keeper.leaving(left)
            self._left = frozenset(left)
            self._hold(live, retired)
            self._snapshot = fresh
            return fresh.number

    def miss(self, number: int) -> None:
        """Say of a generation that it is live elsewhere and never here: nobody goes below it."""
        self.learn((number,))

    def learn(self, left: Iterable[int]) -> None:
        """Leave, but for suspects, what another service of the same clients has left."""
        with self._writing:
            self._left |= frozenset(left)
            self._hold(self._answering.live, self._answering.held)

    @property
    def left(self) -> tuple[int, ...]:
        """What nobody but suspects sees, of numbers from the oldest that is live."""
        return tuple(sorted(self._left))

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
            self._answering, self._snapshot = Answering(live, held, now.left), live[-1]
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
        apart = [number for number in now.left if number in now.numbers]
        return {"live": list(now.numbers), "held": held, "apart": apart, "pinned": self.pins()}

    def _hold(self, live: tuple[Snapshot, ...], retired: tuple[Snapshot, ...]) -> None:
        """Answer from these, and of what is retired from what is pinned; holds the lock."""
        kept = self._policy.held([snapshot.number for snapshot in retired], self._most)
        held = tuple(old for old in retired if old.number in kept)
        self._left = frozenset(n for n in self._left if n >= live[0].number)
        left = tuple(sorted(n for n in self._left if n < live[-1].number))  # a newer one: see later
        self._answering = Answering(live, held, left)
