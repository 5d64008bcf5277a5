"""Whose keys are known: for a time, few of one client, and none of another identity."""

from __future__ import annotations

import pytest

from g2d.service.access.identity import Caller
from g2d.service.encrypted.evaluators import BusyError, GoneError
from g2d.service.encrypted.keyring import KeyRing

A = Caller("", frozenset(), "", "10.0.0.1")
B = Caller("", frozenset(), "", "10.0.1.2")
NAMED = Caller("jwt:a", frozenset(), "jwt", "10.0.0.1")
OTHER = Caller("jwt:b", frozenset(), "jwt", "10.0.0.1")
LOCAL = Caller("", frozenset(), "", "127.0.0.1")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ring(tmp_path):
    clock, gone = Clock(), []
    made = KeyRing(tmp_path, 3, 100.0, gone.append, clock)
    made.clock, made.gone = clock, gone
    return made


def keep(ring, caller):
    with ring.upload(caller) as upload:
        upload.file.write_bytes(b"keys")
        return ring.keep(upload.id, upload.file, 4, caller)


def test_what_is_not_kept_is_deleted_and_what_is_stays(ring, tmp_path):
    with ring.upload(A) as upload:
        upload.file.write_bytes(b"half")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileExistsError), ring.upload(A) as upload:
        upload.file.mkdir(upload.file.write_bytes(b"half"))
    assert list(tmp_path.iterdir()) == []
    kept = keep(ring, A)
    assert list(tmp_path.iterdir()) == [kept.file]
    assert ring.find(kept.id, A).file == kept.file


def test_keys_of_who_said_who_he_is_are_his_alone(ring):
    kept = keep(ring, NAMED)
    assert ring.find(kept.id, NAMED)
    for caller in (OTHER, A):
        with pytest.raises(GoneError):
            ring.find(kept.id, caller)
        with pytest.raises(GoneError):
            ring.drop(kept.id, caller)
    anonymous = keep(ring, A)
    assert ring.find(anonymous.id, B)  # an address may change, and nobody guesses an id
    with pytest.raises(GoneError):
        ring.find(anonymous.id, NAMED)


def test_a_third_pair_of_a_client_takes_the_place_of_his_oldest(ring):
    first, second = keep(ring, A), keep(ring, A)
    ring.find(first.id, A)  # used last
    third = keep(ring, A)
    assert ring.gone == [second.id]
    assert not second.file.exists()
    assert {first.id, third.id} == {ring.find(keys.id, A).id for keys in (first, third)}


def test_of_all_clients_those_give_way_who_did_not_ask_for_longest(ring):
    kept = [keep(ring, LOCAL) for _ in range(3)]  # a proxy may stand for everybody
    ring.find(kept[0].id, LOCAL)
    keep(ring, B)
    assert ring.gone == [kept[1].id]
    assert len(ring) == 3


def test_keys_that_nobody_uses_expire_and_those_in_use_do_not(ring):
    used, idle = keep(ring, A), keep(ring, B)
    ring.clock.now = 60.0
    ring.find(used.id, A)
    ring.clock.now = 120.0
    ring.tidy()
    assert ring.gone == [idle.id]
    with pytest.raises(GoneError):
        ring.find(idle.id, B)
    assert ring.find(used.id, A)
    ring.drop(used.id, A)
    with pytest.raises(GoneError):
        ring.find(used.id, A)


def test_a_client_uploads_one_at_a_time_and_few_do_together(ring):
    with ring.upload(A):
        with pytest.raises(BusyError) as refused, ring.upload(A):
            pass
        assert refused.value.own
        with ring.upload(B), ring.upload(LOCAL), ring.upload(LOCAL):
            with pytest.raises(BusyError) as refused, ring.upload(NAMED):
                pass
            assert not refused.value.own
        with ring.upload(NAMED):
            pass
