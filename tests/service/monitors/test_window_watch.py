"""The watches over several live generations: each is checked, healed, or leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from g2d.errors import VaultError
from g2d.rotation.policy import policy_of
from g2d.rotation.scheduler import Rotation, Triggers
from g2d.rotation.snapshot import Snapshot
from g2d.rotation.window import Window
from g2d.service.http.metrics import Metrics
from g2d.service.monitors.canaries import CanaryWatch
from g2d.service.monitors.given_up import GivenUp
from g2d.service.monitors.memory import Monitor
from g2d.settings import ServeSettings
from stand_ins import Fake, into, numbered, wait_for


class Copies(Fake):
    """Sound copies, but of those that the vault has no more."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: set[int] = set()
        self.healed: list[int] = []

    def again(self, number: int) -> Snapshot:
        if number in self.gone:
            raise VaultError("the vault keeps no weights of it")
        self.healed.append(number)
        return numbered(number)


class Watched:
    """Three live generations under both watches, and what is told."""

    def __init__(self) -> None:
        policy = policy_of(ServeSettings(policy="sticky"), bytes(32), lambda: 0.0)
        self.live, self.copies = Window([numbered(n) for n in (1, 2, 3)], policy, 3), Copies()
        self.told: list[tuple[str, dict]] = []
        rotation = Rotation(self.live, Fake(), Fake(), Triggers(), into(self.told))
        self.rotation = rotation
        metrics = Metrics(rotation.status)
        self.memory = Monitor(self.live, self.copies, rotation, metrics, every=0.05)
        self.canaries = CanaryWatch(self.live, self.copies, rotation, metrics)

    def damage(self, number: int) -> None:
        (sound,) = [each for each in self.live.snapshots if each.number == number]
        assert self.live.heal(replace(sound, check=lambda: ["weight"], layout="damaged"))

    @property
    def numbers(self) -> list[int]:
        return [each.number for each in self.live.snapshots]


def test_what_changed_in_memory_is_healed_whichever_it_is():
    watched = Watched()
    assert watched.memory.check()
    for number in (1, 3):
        watched.damage(number)
    assert not watched.memory.check()
    assert watched.copies.healed == [1, 3]
    assert watched.memory.check()
    assert watched.numbers == [1, 2, 3]


def test_an_older_one_that_nothing_heals_leaves_and_the_newest_stays():
    watched = Watched()
    watched.copies.gone = {2, 3}
    for number in (2, 3):
        watched.damage(number)
    assert not watched.memory.check()
    assert watched.numbers == [3]
    texts = [facts["text"] for _, facts in watched.told]
    assert texts[0].endswith("keeps no weights of it; newer ones answer in its place")
    assert texts[1].endswith("NOT healed: the vault keeps no weights of it")


def test_an_older_one_whose_time_has_ended_leaves_with_an_alarm_and_that_is_noted():
    watched, noted = Watched(), []
    old = [replace(numbered(n), expires=5.0 if n == 2 else 1e12) for n in (1, 2, 3)]
    policy = policy_of(ServeSettings(policy="sticky"), bytes(32), lambda: 0.0)
    live = Window(old, policy, 3, noted.append)
    fake, now = Fake(3), [4.0]
    rotation = Rotation(live, fake, fake, Triggers(), into(watched.told))
    monitor = Monitor(live, watched.copies, rotation, Metrics(rotation.status), 0.0, lambda: now[0])
    monitor.start()
    try:
        now[0] = 6.0
        wait_for(lambda: noted)
    finally:
        monitor.stop()
    assert noted == [3]
    text = "generation 2 has expired: it answers no more, nor does what is older"
    assert [facts for _, facts in watched.told] == [{"kind": "expired", "text": text}]
    assert [each.number for each in live.snapshots] == [3]


def test_what_a_rollback_has_left_answers_nobody_once_a_newer_one_is_live():
    watched, facts = Watched(), {2: {"renewal": 1}, 3: {"renewal": 1}}
    watch = GivenUp(watched.live, lambda number: facts.get(number, {}), watched.rotation).watch
    watch()
    assert watched.numbers == [1, 2, 3]  # refreshed: older ones stay until they retire
    watched.live.swap(numbered(4))  # of the first population again
    watch()
    assert watched.numbers == [4]
    texts = [facts["text"] for _, facts in watched.told]
    assert texts == [
        "generation 3 comes from a population that was given up: it answers no more, nor does"
        " what is older"
    ]
    watch()
    assert len(watched.told) == 1


def test_canaries_ask_all_that_answer(monkeypatch: pytest.MonkeyPatch):
    watched = Watched()
    monkeypatch.setattr(watched.copies, "canaries", lambda number: object())
    monkeypatch.setattr(
        "g2d.service.monitors.canaries._changed",
        lambda kept, snapshot: "2 of 16 canaries" if snapshot.layout == "damaged" else "",
    )
    assert watched.canaries.check()
    watched.damage(1)
    assert not watched.canaries.check()
    assert watched.copies.healed == [1]
    (told,) = [facts["text"] for _, facts in watched.told]
    assert told == "generation 1 answers 2 of 16 canaries otherwise; healed from the vault"
    assert watched.canaries.check()
