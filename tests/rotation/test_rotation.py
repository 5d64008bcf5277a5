"""Rotation over stand-ins: triggers, one rotation for many reasons, failure, refusal, ends."""

from __future__ import annotations

import gc
import itertools
import random
import threading
import time
import weakref

import pytest

from g2d.errors import GenerationError, UnavailableError, VaultError
from g2d.rotation.events import Committed, Event, Failed
from g2d.rotation.scheduler import Backoff, Rotation, Triggers
from g2d.rotation.snapshot import Live, Snapshot
from stand_ins import FAST, Fake, into, numbered, running, wait_for


def rotation(fake: Fake, triggers: Triggers | None = None, tell=None) -> tuple[Live, Rotation]:
    live = Live(numbered(fake.committed))
    told = tell if tell is not None else []
    return live, Rotation(live, fake, fake, triggers or Triggers(), into(told), backoff=FAST)


def events(told: list, name: str) -> list[dict]:
    return [facts for event, facts in told if event == name]


def test_numbers_only_rise():
    live = Live(numbered(5))
    for number in (4, 5):
        with pytest.raises(AssertionError):
            live.swap(numbered(number))
    assert live.swap(numbered(6)) == 6
    assert not live.heal(numbered(5))
    sound = numbered(6)
    assert live.heal(sound)
    assert live.snapshot is sound


def test_the_old_snapshot_drains_and_is_freed():
    class Model:
        def __call__(self, x):
            return x

    model = Model()
    alive = weakref.ref(model)
    live = Live(Snapshot(1, model))
    held = live.snapshot
    del model
    live.swap(numbered(2))
    assert held.predict("x") == "x"
    del held
    gc.collect()
    assert alive() is None


def test_the_spare_is_warm_before_it_is_due_and_a_request_takes_it():
    fake, told = Fake(), []
    live, r = rotation(fake, tell=told)
    with running(r):
        wait_for(lambda: r.status()["spare"] == 2)
        assert live.number == fake.committed == 1
        fake.seconds = 600  # the one after it takes for ever: nobody waits for that
        assert r.request().result(60) == 2
    assert live.number == fake.committed == 2
    (swap,) = events(told, "swap")
    assert (swap["generation"], swap["before"], swap["reasons"]) == (2, 1, ["demand"])
    assert swap["seconds"] < 30


def test_a_schedule_with_jitter_rotates_at_waits_that_differ():
    fake = Fake()
    live, r = rotation(fake, Triggers(every=0.1, jitter=0.9))
    at = []
    with running(r):
        while live.number < 12:
            seen = live.number
            wait_for(lambda seen=seen: live.number > seen)
            at.append(time.monotonic())
    waits = [b - a for a, b in itertools.pairwise(at)]
    assert max(waits) > 1.5 * min(waits)


def test_jitter_is_bounded_even_and_secret():
    fake = Fake()
    live = Live(numbered(1))
    r = Rotation(live, fake, fake, Triggers(every=10.0, jitter=0.2), chance=random.Random(1))
    drawn = [r._draw(0.0, 10.0) for _ in range(2000)]
    assert 8.0 <= min(drawn) < 8.1
    assert 11.9 < max(drawn) <= 12.0
    assert abs(sum(drawn) / len(drawn) - 10.0) < 0.1
    r._at = 0.0  # the countdown is of the mean: what was drawn is not told
    assert 9.0 < r.status()["countdown"] <= 10.0
    assert isinstance(Rotation(live, fake, fake, Triggers())._chance, random.SystemRandom)


def test_a_client_that_counts_inputs_does_not_know_when():
    live, fake = Live(numbered(1)), Fake()
    drawn = set()
    for seed in range(20):
        r = Rotation(live, fake, fake, Triggers(queries=1000), chance=random.Random(seed))
        due = next(n for n in range(1, 2000) if r.count(1) or r.status()["due"])
        assert 900 <= due <= 1101
        drawn.add(due)
    assert len(drawn) > 15


def test_every_so_many_queries_rotate_once():
    fake = Fake()
    live, r = rotation(fake, Triggers(queries=100, jitter=0.0))
    with running(r):
        for _ in range(9):
            r.count(11)
        time.sleep(0.05)
        assert live.number == 1
        r.count(1)
        wait_for(lambda: live.number == 2)
        time.sleep(0.05)
        assert live.number == 2
        assert r.status()["answered"] == 0


def test_many_reasons_at_once_cause_one_rotation():
    fake, told = Fake(), []
    fake.seconds = 0.1
    live, r = rotation(fake, tell=told)
    with running(r):
        asked = [r.request() for _ in range(5)]
        r.alarm("drift", "the inputs have moved")
        r.alarm("query attack", "many near inputs", rotate=False)
        assert {future.result(60) for future in asked} == {2}
        time.sleep(0.3)
        assert live.number == 2
    assert events(told, "swap")[0]["reasons"] == ["alarm: drift", "demand"]
    assert len(events(told, "alarm")) == 2


def test_pausing_holds_everything_back_and_resuming_lets_it_go():
    fake = Fake()
    live, r = rotation(fake, Triggers(every=0.05))
    r.pause()
    with running(r):
        with pytest.raises(GenerationError, match="paused"):
            r.request().result(60)
        r.alarm("drift", "moved")
        wait_for(lambda: r.status()["spare"] == 2)
        time.sleep(0.2)
        assert live.number == 1
        r.pause(False)
        wait_for(lambda: live.number >= 3)


def test_a_generator_that_cannot_deliver_leaves_the_live_one_and_backs_off():
    fake, told = Fake(), []
    fake.fails = [GenerationError("nothing passes")] * 4
    live, r = rotation(fake, Triggers(every=0.01), told)
    with running(r):
        wait_for(lambda: live.number > 1)
    retries = [facts["retry"] for facts in events(told, "failed")][:4]
    assert all(b > 1.3 * a for a, b in itertools.pairwise(retries[:3]))
    assert all(facts["live"] == 1 for facts in events(told, "failed")[:4])
    assert max(retries) <= FAST.most * 1.1


def test_backoff_doubles_to_its_bound():
    backoff, chance = Backoff(1.0, 300.0), random.Random(0)
    waits = [backoff.seconds(n, chance) for n in (1, 2, 3, 9, 10, 2000)]
    assert all(0.9 <= w / e <= 1.1 for w, e in zip(waits, (1, 2, 4, 256, 300, 300), strict=True))


def test_who_asks_is_told_why_there_is_no_rotation():
    fake = Fake()
    fake.fails, fake.seconds = [GenerationError("class 8 lost 40 %")], 0.1
    _live, r = rotation(fake)
    with running(r):
        with pytest.raises(GenerationError, match="class 8"):
            r.request().result(60)
        assert r.request().result(60) == 2  # cuts the wait after a failure short


def test_a_refused_generation_is_never_offered_again():
    fake, told = Fake(), []
    fake.refuses = ["digest"]
    live, r = rotation(fake, Triggers(every=0.01), told)
    with running(r):
        wait_for(lambda: live.number > 1)
    (refused,) = events(told, "refused")
    assert refused["reason"] == "digest"
    assert live.number >= 3
    assert fake.afters[:2] == [1, 2]


def test_what_only_cannot_be_read_now_is_tried_again():
    """No free descriptor says nothing about the generation: it is not given up."""
    fake, told = Fake(), []
    load, missed = fake.load, [UnavailableError("too many open files")]

    def busy(number: int, after: int) -> Snapshot:
        if missed:
            raise missed.pop()
        return load(number, after)

    fake.load = busy
    live, r = rotation(fake, Triggers(every=0.01), told)
    with running(r):
        wait_for(lambda: live.number > 1)
    assert fake.afters[:2] == [1, 1]
    assert not events(told, "refused")
    assert events(told, "failed")[0]["text"] == "too many open files"


def test_a_number_is_told_as_committed_before_it_answers():
    fake, live_then = Fake(), []
    live = Live(numbered(1))

    def tell(event: Event) -> None:
        if isinstance(event, Committed):
            live_then.append((event.generation, live.number))

    r = Rotation(live, fake, fake, Triggers(), tell, backoff=FAST)
    with running(r):
        assert r.request().result(60) == 2
    assert live_then == [(2, 1)]


def test_telling_that_fails_does_not_end_rotation():
    fake = Fake()
    fake.fails = [GenerationError("none")]
    live, raised = Live(numbered(1)), []

    def tell(event: Event) -> None:
        if isinstance(event, Failed):
            raised.append(event)
            raise TypeError("cannot be told")

    r = Rotation(live, fake, fake, Triggers(every=0.01), tell, backoff=FAST)
    with running(r):
        wait_for(lambda: live.number > 1)
    assert raised


def test_a_spare_that_changed_in_memory_is_not_swapped_in():
    fake, told = Fake(), []
    changed = [["fc.weight"]]
    fake.load = lambda number, after: Snapshot(  # type: ignore[method-assign]
        number, lambda x: x, lambda: changed.pop() if changed else []
    )
    _live, r = rotation(fake, tell=told)
    with running(r):
        with pytest.raises(VaultError, match="changed in memory"):
            r.request().result(60)
        assert r.request().result(60) == 3
    assert fake.committed == 3


@pytest.mark.parametrize("happened", [True, False])
def test_a_worker_that_dies_over_a_commit(happened):
    fake = Fake()
    fake.commit_fails = [(happened, GenerationError("the worker died"))]
    live, r = rotation(fake)
    with running(r):
        if happened:
            assert r.request().result(60) == 2
        else:
            with pytest.raises(GenerationError, match="died"):
                r.request().result(60)
            assert live.number == 1
            assert r.request().result(60) == 3
    assert live.number == fake.committed


def test_whatever_is_raised_the_thread_lives_on():
    fake, told = Fake(), []
    fake.fails = [RuntimeError("a bug")]
    _live, r = rotation(fake, tell=told)
    with running(r):
        wait_for(lambda: events(told, "failed"))
        assert r.request().result(60) == 2
    assert events(told, "failed")[0]["text"] == "RuntimeError: a bug"


def test_a_rotation_that_is_overdue_is_one_alarm(monkeypatch):
    monkeypatch.setattr("g2d.rotation.scheduler.GRACE", 0.05)
    fake, told = Fake(), []
    fake.seconds = 60
    _, r = rotation(fake, Triggers(every=0.05), told)
    with running(r):
        r.watch()
        assert not told
        wait_for(lambda: r.status()["late"] > 0.1)
        r.watch()
        r.watch()
    ((event, alarm),) = told
    assert (event, alarm["kind"]) == ("alarm", "late")


def test_stopping_ends_a_slow_workshop_and_answers_who_asked():
    fake = Fake()
    fake.seconds = 60
    _, r = rotation(fake)
    r.start()
    asked = r.request()
    threading.Timer(0.05, r.stop).start()
    with pytest.raises(GenerationError):
        asked.result(60)
    with pytest.raises(GenerationError, match="ending"):
        r.request().result(60)


def test_readers_see_numbers_rise_whatever_rotates():
    fake = Fake()
    live, r = rotation(fake, Triggers(every=0.001, jitter=0.5))
    seen: list[int] = []
    with running(r):
        while live.number < 50:
            seen.append(live.snapshot.number)
    assert seen == sorted(seen)
