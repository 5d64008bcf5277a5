"""What a worker does beside a refresh: it takes it up, or goes back, and commits nothing left."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import g2d.defence.growing as growing
import g2d.defence.refresh as refreshing
from g2d.errors import GenerationError, VaultError
from g2d.rotation.events import Alarm
from g2d.service.renewing import Source
from g2d.settings import Settings
from g2d.vault.sources import order_back
from g2d.vault.vault import Vault

MANIFEST = {"task": "digits", "population": "p", "generator": "g", "gates": [], "exposed": []}
MAKE = {"do": "make", "after": 1}


@pytest.fixture
def vault(tmp_path):
    with Vault.create(tmp_path / "vault", Settings().to_toml()) as made:
        made.put("generator", 0, {"weights": b"first"}, {})
        made.accept({"weights": b"one"}, MANIFEST, activate=True)
        entries = [(kind, 1_000_000, {"weights": b"new"}, {}) for kind in ("records", "generator")]
        made.renew(1, {"why": "refresh", "parent": 0}, entries)
        made.accept({"weights": b"two"}, MANIFEST | {"renewal": 1})
        yield made


@pytest.fixture
def source(vault, monkeypatch):
    told = []
    found = Source(SimpleNamespace(vault=vault, told=told), told.append)
    monkeypatch.setattr(refreshing, "follow", lambda d: SimpleNamespace(vault=d.vault, told=d.told))
    return found


def test_nothing_changes_where_nothing_is_asked_for(source):
    before = source.defence
    for order in (MAKE, {"do": "commit", "number": 2}):
        source.look(order)
    assert source.defence is before
    assert before.told == []


def test_a_spare_of_a_population_that_is_left_is_not_committed(source, vault):
    order_back(vault)
    with pytest.raises(GenerationError, match="generation 2 comes from the population that was"):
        source.look({"do": "commit", "number": 2})
    assert vault.source == 0
    (alarm,) = source.defence.told
    assert isinstance(alarm, Alarm)
    assert (alarm.kind, "former population again" in alarm.text) == ("refresh", True)
    source.look({"do": "commit", "number": 1})


def test_what_cannot_be_taken_up_is_told_once_and_the_source_stays(source, vault, monkeypatch):
    def broken(_):
        raise VaultError("what waits is damaged")

    monkeypatch.setattr(refreshing, "take_up", broken)
    for _ in range(3):
        source.look(MAKE)
    assert [alarm.text for alarm in source.defence.told] == [
        "the population stays as it is: what waits is damaged"
    ]
    assert vault.source == 1


def test_a_spare_is_refused_however_long_ago_its_population_was_left(source, vault):
    order_back(vault)
    source.look(MAKE)  # carries it out
    assert vault.source == 0
    with pytest.raises(GenerationError, match="generation 2 comes from the population that was"):
        source.look({"do": "commit", "number": 2})


def test_a_source_that_could_not_be_followed_at_once_is_followed_later(source, vault, monkeypatch):
    """Else generations of the new population would be noted as of the former one."""
    before, follow = source.defence, refreshing.follow

    def broken(_):
        raise VaultError("its records cannot be read now")

    monkeypatch.setattr(refreshing, "follow", broken)
    order_back(vault)
    for _ in range(2):
        with pytest.raises(VaultError, match="cannot be read now"):
            source.look(MAKE)
    monkeypatch.setattr(refreshing, "follow", follow)
    source.look(MAKE)
    assert source.defence is not before


def test_a_basin_that_was_grown_is_taken_up_before_the_next_generation(source, monkeypatch):
    taken = [growing.TakenBasin(1000, 2)]
    monkeypatch.setattr(growing, "take_up_basin", lambda _: taken.pop() if taken else None)
    before = source.defence
    source.look({"do": "commit", "number": 1})
    assert source.defence is before
    source.look(MAKE)
    assert source.defence is not before  # by the generator that knows it
    (alarm,) = before.told
    assert (alarm.kind, alarm.level, alarm.closed) == ("growth", "notice", True)
    assert alarm.text == "basin 1000 was grown; basins that nobody has seen: 2"
    again = source.defence
    source.look(MAKE)
    assert source.defence is again


def test_a_basin_that_cannot_be_taken_up_is_told_once_and_rotation_goes_on(source, monkeypatch):
    def broken(_):
        raise VaultError("what waits is damaged")

    monkeypatch.setattr(growing, "take_up_basin", broken)
    for _ in range(3):
        source.look(MAKE)
    assert [alarm.text for alarm in source.defence.told] == [
        "no basin is taken up: what waits is damaged"
    ]
