"""What two services of one vault keep of suspects together, and what a bad disk does to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from g2d.errors import VaultError
from g2d.rotation.triggers import AlarmBudget
from g2d.service import suspects as kept_suspects
from g2d.service.monitors.alarms import AlarmLine
from g2d.service.suspects import Suspects
from kept_windows import Served, Wall, files
from stand_ins import numbered


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    return tmp_path / "vault"


def test_a_standby_that_leaves_at_the_same_rotation_sets_no_suspect_free(place):
    wall = Wall()
    first, standby = Served(place, wall), Served(place, wall)
    met = {number: client for client, number in first.seen().items()}
    first.window.pin(met[3])
    first.suspects.look()
    standby.suspects.look()
    first.window.pin(met[2])
    for served in (first, standby):  # at once: neither has looked since that alarm
        served.window.swap(numbered(4))
    for served in (first, standby, first, standby):
        served.suspects.look()
    assert first.pinned() == [met[3], met[2]]
    assert sorted(standby.pinned()) == sorted(first.pinned())
    assert sorted(Served(place, wall, (2, 3, 4)).pinned()) == sorted(first.pinned())
    assert first.window.left == standby.window.left


def test_a_standby_takes_up_budget_and_cool_downs_and_two_services_come_to_rest(place, monkeypatch):
    monkeypatch.setattr(kept_suspects, "_SELDOM", 0.0)
    wall, told = Wall(), []

    def service():
        served, line, budget = Served(place, wall), AlarmLine(), AlarmBudget(1.0, wall)
        line.connect(lambda *args, **more: told.append(args[0]), 1e5, served.suspects.told)
        served.suspects.watch(budget=budget)
        served.suspects.watch(line=line)
        return served.suspects, line, budget

    first, standby = service(), service()
    assert first[2].take("mallory")
    first[1]("query_attack", "t", client="mallory")
    written = []
    for _ in range(4):
        for each in (first, standby):
            each[0].look()
            written.append(files(place)[0].stat().st_mtime_ns)
    assert len(set(written)) == 1, "the second has nothing that the first has not written"
    standby[1]("query_attack", "t", client="mallory")
    assert told == ["query_attack"]
    assert not standby[2].take("eve")
    assert not service()[2].take("mallory")


def test_whoever_goes_on_is_not_taken_for_quiet_after_a_restart(place, monkeypatch):
    monkeypatch.setattr(kept_suspects, "_SELDOM", -1.0)
    wall, budget = Wall(), AlarmBudget(1.0, wall := Wall())
    first = Suspects(place, wall)
    first.watch(budget=budget)
    assert budget.take("mallory")
    for _ in range(3):
        first.look()
        wall.now += 1800.0
        assert not budget.take("mallory")
    first.look()
    again = AlarmBudget(1.0, wall)
    Suspects(place, wall).watch(budget=again)
    assert not again.take("mallory"), "the attack has lasted all the time"


def test_no_name_is_kept_for_longer_than_its_time(place, monkeypatch):
    monkeypatch.setattr(kept_suspects, "_SELDOM", -1.0)
    served, budget = Served(place, wall := Wall()), AlarmBudget(1.0, wall)
    served.suspects.watch(budget=budget)
    served.window.pin("mallory")
    assert budget.take("mallory")
    served.suspects.look()
    assert b"mallory" in files(place)[0].read_bytes()
    wall.now += 3601.0
    alone = Suspects(place, wall)  # of a service by `global`
    alone.watch(budget=AlarmBudget(1.0, wall))
    alone.look()
    assert b"mallory" not in files(place)[0].read_bytes()
    wall.now -= 3601.0
    served.suspects.look()
    wall.now += 3601.0
    served.suspects.look()
    assert b"mallory" not in files(place)[0].read_bytes()


def test_what_could_not_be_kept_is_kept_once_there_is_room(place, monkeypatch):
    monkeypatch.setattr(kept_suspects, "_SELDOM", -1.0)
    served = Served(place, wall := Wall())
    suspect = next(client for client, number in served.seen().items() if number == 2)
    served.window.pin(suspect)
    (place.parent / "state").write_text("in the way")
    served.window.swap(numbered(4))
    with pytest.raises(VaultError, match="cannot be kept"):
        served.suspects.look()
    served.suspects.look()
    (place.parent / "state").unlink()
    served.suspects.look()
    assert Served(place, wall, (2, 3, 4)).seen() == served.seen()


@pytest.mark.parametrize("text", ["{", None])
def test_a_file_that_goes_or_is_damaged_sets_nobody_free_and_is_written_anew(place, text):
    served = Served(place, wall := Wall())
    served.window.pin("mallory")
    served.suspects.look()
    file = files(place)[0]
    file.unlink() if text is None else file.write_text(text)
    served.suspects.look()
    assert served.pinned() == ["mallory"]
    again = Served(place, wall)
    assert (again.suspects.damage, again.pinned()) == ("", ["mallory"])


def test_a_long_name_is_not_set_free_by_what_another_writes(place):
    wall = Wall()
    first, standby = Served(place, wall), Served(place, wall)
    first.window.pin("x" * 300)
    first.window.pin("mallory")
    first.suspects.look()
    standby.suspects.look()
    standby.window.pin("eve")
    standby.suspects.look()
    first.suspects.look()
    assert sorted(first.pinned()) == ["eve", "mallory", "x" * 300]


def test_two_services_of_which_one_is_behind_write_no_more_than_once(place):
    wall = Wall()
    first, standby = Served(place, wall), Served(place, wall)
    suspect = next(client for client, number in first.seen().items() if number == 2)
    first.window.pin(suspect)
    for number in (4, 5):
        first.window.swap(numbered(number))
    for served in (first, standby):
        served.suspects.look()
    before = files(place)[0].stat().st_mtime_ns
    for _ in range(3):
        for served in (first, standby):
            served.suspects.look()
    assert files(place)[0].stat().st_mtime_ns == before
