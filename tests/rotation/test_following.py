"""Beside the ledger: what others commit is followed, and what goes back is told."""

from __future__ import annotations

from test_rotation import events, rotation

from g2d.errors import UnavailableError, VaultError
from stand_ins import Fake, running, wait_for


def test_what_another_service_commits_is_followed_and_until_then_it_is_not_ready():
    """It must neither serve on what is retired, nor take its own commit for another's."""
    fake, told = Fake(), []
    live, rotating = rotation(fake, tell=told)
    with running(rotating):
        wait_for(lambda: events(told, "spare"))
        rotating.watch()
        assert rotating.request().result(60) == 2
        rotating.watch()
        assert rotating.status()["unready"] is None
        assert [facts["reasons"] for facts in events(told, "swap")] == [["demand"]]
        rotating.pause()
        fake.committed = fake.last = 7  # not by us
        rotating._ledger.look()
        assert rotating.status()["unready"] == "generation 7 is live, and not here yet"
        rotating.watch()
        assert live.number == 7
        assert events(told, "swap")[1]["reasons"] == ["ledger"]
        assert [facts["generation"] for facts in events(told, "committed")] == [2, 7]
        assert rotating.status()["unready"] is None
        wait_for(lambda: rotating.status()["spare"] == 8)  # judged anew, after what it missed
    assert not events(told, "alarm")  # a standby follows all the time


def test_one_that_is_refused_is_told_and_does_not_end_rotation():
    fake, told = Fake(), []
    live, rotating = rotation(fake, tell=told)
    with running(rotating):
        wait_for(lambda: events(told, "spare"))
        fake.refuses = ["signature"]
        fake.committed = fake.last = 5
        for _ in range(3):
            rotating.watch()
        assert [facts["generation"] for facts in events(told, "refused")] == [5]
        assert rotating.status()["unready"] == "generation 5 is live, and not here yet"
        assert [facts["kind"] for facts in events(told, "alarm")] == ["unready"]
        assert rotating.request().result(60) == 6
        assert (live.number, rotating.status()["unready"]) == (6, None)


def test_a_ledger_that_goes_back_while_it_is_served_is_told_once_and_not_ready():
    fake, told = Fake(live=4), []
    _, rotating = rotation(fake, tell=told)
    fake.committed = 2
    for _ in range(3):
        rotating.watch()
    assert "it was put back" in rotating.status()["unready"]
    assert [facts["kind"] for facts in events(told, "alarm")] == ["unready"]
    fake.committed = 4
    rotating.watch()
    assert rotating.status()["unready"] is None


def test_a_ledger_that_cannot_be_read_is_told_and_its_path_is_for_the_log_alone():
    fake, told = Fake(), []
    _, rotating = rotation(fake, tell=told)

    def unreadable() -> int:
        raise VaultError("/secret/ledger.sqlite was replaced")

    fake.live = unreadable
    for _ in range(2):
        rotating.watch()
    assert rotating.status()["unready"] == "what is live cannot be read"
    (alarm,) = events(told, "alarm")
    assert alarm["text"] == "what is live cannot be read: /secret/ledger.sqlite was replaced"

    def busy() -> int:
        raise UnavailableError("no descriptors")

    fake.live = busy  # says nothing of the ledger: what was known goes on
    rotating.watch()
    assert rotating.status()["unready"] == "what is live cannot be read"


def test_it_follows_while_its_own_worker_makes_it_wait():
    fake, told = Fake(), []
    fake.seconds = 3600.0
    live, rotating = rotation(fake, tell=told)
    with running(rotating):
        fake.committed = 3
        rotating.watch()
        assert (live.number, rotating.status()["unready"]) == (3, None)
