"""Clients that are to miss a round miss it: they are gone before it is asked, and back after it."""

from __future__ import annotations

from types import SimpleNamespace

from benchmarks.federated import processes


class Played:
    """Clients answer as long as a round is open; it closes one look after our own answer."""

    def __init__(self, given):
        self.given, self.seed, self.running = given, 0, {"server": SimpleNamespace(poll=lambda: 0)}
        self.names = [f"client-{k:02d}" for k in range(given.clients)]
        self.turn, self.closed, self.there = SimpleNamespace(release=self.release), 0, set()
        self.due, self.missed, self.gone, self.heard = 0, [], set(), set()

    def release(self, count=1):
        self.due += 1

    def look(self):
        self.heard |= self.there
        if self.due > self.closed < self.given.rounds:
            self.missed.append(set(self.names[:-1]) - self.heard)
            self.closed, self.heard = self.closed + 1, set()

    def start(self, name):
        if name != "server":
            self.there.add(name)
            self.gone.discard(name)

    def end(self, name, number):
        self.there.discard(name)

    def leave(self, name):
        self.end(name, 15)
        self.gone.add(name)

    def round(self):
        return self.closed

    def answered(self, number, names):
        self.heard |= self.there
        return len(self.heard & set(names))

    def away(self):
        return self.gone

    def until(self, condition):
        for _ in range(20):
            if condition():
                return
            self.look()
        raise AssertionError("it would wait for ever")


def test_who_is_to_miss_the_last_round_is_back_only_after_it(monkeypatch):
    given = processes.flags().parse_args(["--clients", "7", "--rounds", "4"])
    group = Played(given)
    cell = SimpleNamespace(start=lambda: None, stop=lambda: None)
    worker = SimpleNamespace(run=lambda: None, turn=group.turn)
    monkeypatch.setattr(processes, "paced", lambda *_: (worker, cell))
    processes.driven(group)
    count = round(given.dropout * given.clients)
    assert [len(missed) for missed in group.missed] == [0, 0, count, count]
    assert group.there == set(group.names[:-1])
