"""A rollout in simulated time: g2d's own follower, terms and roster; drawn network and absences."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.common.measure import interval
from g2d.service.cluster.lease import Follower, ReplicaReport, Terms
from g2d.service.cluster.rollout import Roster


@dataclass(frozen=True)
class Case:
    """What is simulated. Times are seconds.

    Attributes:
        ahead: the next generation is announced before it is committed (two steps), or not (pull).
        lease: 0: as g2d chooses it for the period; inf: none, a replica answers from what it has.
        away: share of replicas that cannot reach the coordinator, clients still reaching them.
        load: median of fetching, verifying and loading. rate: requests of a replica in a second.
    """

    name: str
    ahead: bool = True
    lease: float = 0.0
    away: float = 0.01
    load: float = 0.02
    replicas: int = 1000
    every: float = 60.0
    rotations: int = 3
    rate: float = 10.0
    absence: float = 60.0  # mean of one; lengths are exponential
    latency: float = 0.001  # median of one way, log-normal
    latency_p99: float = 0.020
    poll_cost: float = 0.0005  # of the coordinator, for each message, one after the other
    make: float = 5.0


class World:
    """A clock and a queue of what happens when."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.now = case, 0.0
        self.chance = random.Random(seed)
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._sigma = math.log(case.latency_p99 / case.latency) / 2.326

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + seconds, next(self._order), what))

    def travel(self, what: Callable[[], None]) -> None:
        self.after(self.chance.lognormvariate(math.log(self.case.latency), self._sigma), what)

    def run(self, until: float) -> None:
        while self._queue and self._queue[0][0] < until:
            self.now, _, what = heapq.heappop(self._queue)
            what()
        self.now = until


class Centre:
    """The coordinator: answers polls one after the other, and rotates when it is due."""

    def __init__(self, world: World, terms: Terms) -> None:
        self.world, self.terms = world, terms
        self.live, self.spare, self.sequence, self._busy = 1, 0, 0, 0.0
        self.roster = Roster(terms, lambda *_: None, lambda: world.now)
        self._parked: dict[int, Callable[[], None]] = {}
        self._polls = itertools.count()
        self._due = math.inf
        self.committing: Callable[[], None] = lambda: None
        world.after(world.case.make, self._announce)
        world.after(world.case.every, self._fall_due)

    def hear(self, report: ReplicaReport, reply: Callable[[], None] | None) -> None:
        self._serve(lambda: self._take(report, reply))

    def _serve(self, what: Callable[[], None]) -> None:
        self._busy = max(self._busy, self.world.now) + self.world.case.poll_cost
        self.world.after(self._busy - self.world.now, what)

    def _take(self, report: ReplicaReport, reply: Callable[[], None] | None) -> None:
        self.roster.greet(report)
        self._try_commit()
        if reply is None:
            return
        if report.sequence < self.sequence:
            reply()
            return
        poll = next(self._polls)
        self._parked[poll] = reply

        def beat() -> None:
            if found := self._parked.pop(poll, None):
                self._serve(found)

        self.world.after(self.terms.beat, beat)

    def _tell(self) -> None:
        self.sequence += 1
        parked, self._parked = self._parked, {}
        for reply in parked.values():
            self._serve(reply)

    def _announce(self) -> None:
        if self.world.case.ahead:
            self.spare = self.live + 1
            self._tell()

    def _fall_due(self) -> None:
        self._due = self.world.now
        self.world.after(self.terms.prepare, self._try_commit)
        self._try_commit()

    def _try_commit(self) -> None:
        waited = self.world.now - self._due
        number = self.live + 1
        late = waited >= self.terms.prepare - 1e-9
        if waited < 0 or not (late or not self.world.case.ahead or not self.roster.pending(number)):
            return
        self._due = math.inf
        self.committing()
        self.live, self.spare = number, 0
        self._tell()
        self.world.after(self.world.case.make, self._announce)
        self.world.after(self.world.case.every, self._fall_due)


class Careless(Follower):
    """A replica without a lease: it answers from what it has until it has something newer."""

    def may_answer(self, now: float) -> bool:
        return True


class Replica:
    """Polls, loads, swaps; its absences are drawn."""

    def __init__(self, world: World, centre: Centre, name: str) -> None:
        self.world, self.centre, self.name = world, centre, name
        kind = Careless if world.case.lease == math.inf else Follower
        self.follower = kind(centre.terms, 1)
        self.follower.loaded = 1
        self.follower.hear(1, 0, 0.0)
        self.sequence, self._asked, self._loading = -1, 0, 0
        self.away, self.since, self.stale, self.refused = False, 0.0, 0.0, 0.0
        self.last_stale = 0.0
        share, mean = world.case.away, world.case.absence
        self._present = mean * (1 - share) / share if share else math.inf
        if share:
            world.after(world.chance.expovariate(1 / self._present), self._leave)
        world.after(world.chance.uniform(0, centre.terms.beat), self.poll)

    def account(self) -> None:
        """Book the time since the last change: refused, stale or good."""
        now, follower = self.world.now, self.follower
        end = now
        if not follower.may_answer(now):
            sound = follower.live == follower.known
            end = min(now, max(self.since, now if not sound else follower._until))
            end = self.since if not sound else end
        self.refused += now - end
        if follower.live < self.centre.live and end > self.since:
            self.stale += end - self.since
            self.last_stale = end
        self.since = now

    def poll(self) -> None:
        self._asked += 1
        poll, asked = self._asked, self.world.now

        def lost() -> None:
            if poll == self._asked:
                self.poll()

        self.world.after(self.centre.terms.patience + self.centre.terms.retry, lost)
        if not self.away:
            report = self._report()
            self.world.travel(lambda: self.centre.hear(report, lambda: self._answer(poll, asked)))

    def _answer(self, poll: int, asked: float) -> None:
        live, spare, sequence = self.centre.live, self.centre.spare, self.centre.sequence

        def arrive() -> None:
            if poll == self._asked and not self.away:
                self._hear(live, spare, sequence, asked)
                self.poll()

        self.world.travel(arrive)

    def _hear(self, live: int, spare: int, sequence: int, asked: float) -> None:
        self.account()
        self.sequence = sequence
        before = self.follower.live
        wanted = self.follower.hear(live, spare, asked)
        self._swapped(before)
        if wanted and not self._loading:
            self._loading = wanted
            spread = self.world.chance.lognormvariate(0.0, 0.25)
            self.world.after(self.world.case.load * spread, self._loaded)

    def _loaded(self) -> None:
        if self.away:  # it goes on once the coordinator can be reached
            self.world.after(1.0, self._loaded)
            return
        self.account()
        number, self._loading, before = self._loading, 0, self.follower.live
        self.follower.load(number)
        self._swapped(before)
        self._note()

    def _swapped(self, before: int) -> None:
        if self.follower.live != before:
            self.on_swap()
            self._note()

    def _note(self) -> None:
        if not self.away:
            report = self._report()
            self.world.travel(lambda: self.centre.hear(report, None))

    def _report(self) -> ReplicaReport:
        follower = self.follower
        return ReplicaReport(self.name, "t", self.sequence, follower.live, follower.loaded)

    def _leave(self) -> None:
        self.away = True
        self.on_swap()
        self.world.after(self.world.chance.expovariate(1 / self.world.case.absence), self._back)

    def _back(self) -> None:
        self.away = False
        self.world.after(self.world.chance.expovariate(1 / self._present), self._leave)

    def on_swap(self) -> None:
        """Called when it has swapped or left; the ledger of the run replaces it."""


class Run:
    """One simulated service; a row for each rotation."""

    def __init__(self, case: Case, seed: int) -> None:
        self.world = World(case, seed)
        lease = 0.0 if case.lease == math.inf else case.lease
        self.centre = Centre(self.world, Terms.of(case.every, lease))
        self.centre.committing = self._commit
        self.replicas = [Replica(self.world, self.centre, f"r{i}") for i in range(case.replicas)]
        for one in self.replicas:
            one.on_swap = self._look
        self.rows: list[dict[str, float]] = []
        self._at, self._all = 0.0, -1.0

    def rows_of(self) -> list[dict[str, float]]:
        case = self.world.case
        while len(self.rows) < case.rotations + 1:
            self.world.run(self.world.now + case.every / 4)
        return self.rows[1:]  # the first ends at the first commit: nothing had to follow

    def _look(self) -> None:
        number = self.centre.live
        if self._all < 0 and all(r.away or r.follower.live >= number for r in self.replicas):
            self._all = self.world.now - self._at

    def _commit(self) -> None:
        for one in self.replicas:
            one.account()
        rate = self.world.case.rate
        last = max(one.last_stale for one in self.replicas)
        self.rows.append({
            "followed_seconds": self._all,
            "stale_until_seconds": max(0.0, last - self._at),
            "stale_answers": rate * sum(one.stale for one in self.replicas),
            "refused": rate * sum(one.refused for one in self.replicas),
        })  # fmt: skip
        for one in self.replicas:
            one.stale = one.refused = one.last_stale = 0.0
        self._at, self._all = self.world.now, -1.0


def simulate(case: Case, seeds: int) -> dict[str, Any]:
    """Run a case; mean and 95 % interval over seeds of each row's mean over rotations."""
    each: dict[str, list[float]] = {}
    for seed in range(seeds):
        rows = Run(case, seed).rows_of()
        for key in rows[0]:
            pick = max if key.endswith("seconds") else statistics.fmean
            each.setdefault(key, []).append(pick(row[key] for row in rows))
    answers = case.replicas * case.rate * case.every
    found = {key: interval(values) for key, values in each.items()}
    return asdict(case) | {"seeds": seeds, "answers_per_period": answers, "found": found}
