"""What a restart knows of suspects: who is pinned, what others left, what cools down, who paid."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from g2d.errors import UnavailableError, VaultError
from g2d.rotation.scheduler import Rotation, Triggers
from g2d.rotation.triggers import AlarmBudget
from g2d.service import suspects as kept_suspects
from g2d.service.monitors.alarms import AlarmLine, Cooldown
from g2d.service.opening import missed, open_live
from g2d.service.suspects import MOST, Kept, Pin, Suspects
from kept_windows import CLIENTS, STICKY, Served, Wall, files
from stand_ins import Fake, into, numbered


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    return tmp_path / "vault"


def test_where_nothing_happened_nothing_is_kept(place):
    served = Served(place, Wall())
    served.suspects.look()
    assert not (place.parent / "state").exists()


def test_after_a_restart_a_suspect_is_where_it_was_and_the_others_are_too(place):
    served = Served(place, wall := Wall())
    suspect = next(client for client, number in served.seen().items() if number == 2)
    served.window.pin(suspect, "query_attack")
    served.suspects.look()
    assert stat.S_IMODE(files(place)[0].stat().st_mode) == 0o600
    served.window.swap(numbered(4))  # a kill comes before the next look
    before = served.seen()
    again = Served(place, wall, (2, 3, 4))
    assert again.seen() == before
    assert [n for client, n in before.items() if n == 2] == [2]
    for number in (5, 6, 7):
        again.window.swap(numbered(number))
    again.suspects.look()
    wall.now += 60.0
    late = Served(place, wall, (5, 6, 7))
    assert [each.number for each in late.window.now.held] == [2]
    assert late.seen()[suspect] == 2
    wall.now += 41.0
    assert Served(place, wall, (5, 6, 7)).pinned() == [], "a restart prolongs nothing"
    assert late.seen()[suspect] >= 5


def test_no_clock_prolongs_a_pin(place):
    served = Served(place, wall := Wall())
    served.seen()
    served.window.pin(CLIENTS[0])
    served.suspects.look()
    wall.now -= 1e6
    (pin,) = Served(place, wall).window.pins()
    assert pin["seconds"] == 100.0
    wall.now += 2e6
    assert Served(place, wall).pinned() == []


def test_a_standby_takes_up_pins_releases_and_what_was_left(place):
    wall = Wall()
    first, standby = Served(place, wall), Served(place, wall)
    met = {number: client for client, number in first.seen().items()}
    first.window.pin(met[2])
    first.window.pin(met[3])
    first.suspects.look()
    standby.suspects.look()
    assert standby.pinned() == [met[2], met[3]]
    for served in (first, standby):
        served.window.swap(numbered(4))
        served.suspects.look()
    assert standby.seen() == first.seen()
    first.window.release(met[3])
    first.suspects.look()
    for served in (standby, first, standby):
        served.suspects.look()
    assert (standby.pinned(), first.pinned()) == ([met[2]], [met[2]])
    assert standby.seen() == first.seen()


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"left": 3, "pins": [], "token": 0, "spent": {}, "told": []}',
        '{"left": [], "pins": [["a", -1, "w", 1.0]], "token": 0, "spent": {}, "told": []}',
        '{"left": [], "pins": [["a", 1, "w", NaN]], "token": 0, "spent": {}, "told": []}',
        '{"left": [], "pins": [], "token": 0, "spent": {"a": "b"}, "told": []}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_told_forgotten_and_stops_no_start(place, text):
    served = Served(place, wall := Wall())
    served.window.pin("mallory")
    served.suspects.look()
    files(place)[0].write_text(text)
    served.suspects.look()  # a service that runs goes by what it knows
    assert served.pinned() == ["mallory"]
    files(place)[0].write_text(text)
    found = Suspects(place, wall)
    assert "is not what `g2d serve` wrote" in found.damage
    assert "newest generation alone is live" in found.damage
    assert (found.pins, Suspects(place, wall).damage) == ([], "")


def test_where_what_was_left_is_damaged_the_newest_alone_is_live(place, monkeypatch):
    served = Served(place, Wall())
    served.window.pin("mallory")
    served.suspects.look()
    files(place)[0].write_text("{")
    loader = SimpleNamespace(
        first=lambda: (numbered(3), None), served=lambda _: None, exposures=lambda: [1, 2, 3],
        load=lambda number, after: numbered(number),
    )  # fmt: skip
    monkeypatch.setattr("g2d.service.opening.begin", lambda *_: (bytes(32), [1, 2, 3]))
    for live in ([3], [1, 2, 3]):
        opened = open_live(loader, STICKY, place)
        assert [each.number for each in opened.live.snapshots] == live
        assert ("is not what" in opened.left_out) == (live == [3])


def test_a_suspects_generation_that_is_kept_no_more_is_told(place, monkeypatch):
    served = Served(place, Wall())
    served.seen()
    for client in CLIENTS:
        served.window.pin(client)
    served.suspects.look()

    def load(number, after):
        if number == 1:
            raise VaultError("the vault keeps no weights of it")
        return numbered(number)

    loader = SimpleNamespace(
        first=lambda: (numbered(6), None), served=lambda _: None,
        exposures=lambda: [1, 2, 3, 4, 5, 6], load=load,
    )  # fmt: skip
    monkeypatch.setattr("g2d.service.opening.begin", lambda *_: (bytes(32), [4, 5, 6]))
    monkeypatch.setattr("g2d.service.opening.Suspects", lambda path: Suspects(path, Wall()))
    opened = open_live(loader, STICKY, place)
    assert [each.number for each in opened.live.snapshots] == [2, 3, 4, 5, 6]
    assert opened.left_out == (
        "generation 1, of a suspect, answers no more: the vault keeps no weights of it"
    )


def test_many_suspects_make_no_large_file_and_long_names_none(place):
    served = Served(place, wall := Wall())
    for k in range(MOST + 50):
        served.window.pin(f"m{k}")
    served.window.pin("x" * 300)
    served.suspects.look()
    found = Suspects(place, wall)
    assert found.damage == ""
    assert found.kept.pins[-1].client == f"m{MOST + 49}"
    assert len(found.kept.pins) == MOST - 1
    assert files(place)[0].stat().st_size < 200_000


def test_cool_downs_and_who_had_a_rotation_outlive_a_restart(place, monkeypatch):
    monkeypatch.setattr(kept_suspects, "_SELDOM", 0.0)
    wall, told = Wall(), []
    line, budget = AlarmLine(), AlarmBudget(1.0, wall)
    line.connect(lambda *args, **more: told.append(args[0]), 1e5)
    assert budget.take("mallory")
    line("query_attack", "t", client="mallory")
    line("drift", "t")
    first = Suspects(place, wall)
    first.watch(budget=budget)
    first.watch(line=line)
    first.look()
    again, other = Suspects(place, wall), AlarmBudget(1.0, wall)
    again.watch(budget=other)
    assert not other.take("eve")
    assert not other.take("mallory")
    anew = AlarmLine()
    anew.connect(lambda *args, **more: told.append(args[0]), 1e5, again.told)
    anew("query_attack", "t", client="mallory")
    anew("drift", "t")
    anew("query_attack", "t", client="eve")
    anew("drift", "worse", level="critical")
    assert told == ["query_attack", "drift", "query_attack", "drift"]
    wall.now += 3600.0
    late = AlarmBudget(1.0, wall)
    again.watch(budget=late)
    assert late.take("eve")


def test_nothing_is_held_back_for_longer_than_a_cool_down_or_a_token():
    now = [0.0]
    cooldown, budget = Cooldown(10.0, lambda: now[0]), AlarmBudget(1.0, lambda: now[0])
    cooldown.restore([("drift", "", 1e9, 3), ("late", "", -1.0, 3)])
    budget.restore(1e9, {"mallory": -1e9})
    assert cooldown.take("drift", "") is None
    assert cooldown.take("late", "") == 0
    now[0] = 10.0
    assert cooldown.take("drift", "") == 1
    now[0] = 3600.0
    assert budget.take("mallory")
    never = AlarmBudget(0.0, lambda: now[0])
    never.restore(math.inf, {})
    assert not never.take()


def test_a_file_that_cannot_be_written_is_told_once_and_stops_no_swap(place):
    served = Served(place, Wall())
    served.seen()
    served.window.pin(CLIENTS[0])
    (place.parent / "state").write_text("a file")
    with pytest.raises(VaultError, match=r"who is pinned cannot be kept in .* will not know"):
        served.suspects.look()
    served.suspects.look()
    served.window.swap(numbered(4))
    assert 4 in served.seen().values()


def test_what_is_written_is_read_as_it_was():
    kept = Kept((3, 5), (Pin("jwt:\udc80", 3, "query_attack", 5.5),), 7.0, {"é": 3.0},
                (("drift", "", 9.5, 2),))  # fmt: skip
    assert Kept.of(json.loads(kept.written())) == kept


def test_a_standby_that_looked_late_has_what_it_missed_and_sends_nobody_lower(place):
    wall, told = Wall(), []
    first, standby = Served(place, wall), Served(place, wall)
    fake = Fake(3)
    fake.exposures = lambda: [1, 2, 3, 4, 5, 6]
    broken: list[Exception] = [UnavailableError("no descriptors"), VaultError("damaged")]

    def load(number, after):
        if number == 5 and broken:
            raise broken.pop(0)
        return numbered(number)

    fake.load = load
    rotation = Rotation(
        standby.window, fake, fake, Triggers(), into(told),
        missed=lambda number: missed(fake, standby.window, number),
    )  # fmt: skip
    for number in (4, 5, 6):
        first.window.swap(numbered(number))
    fake.committed = 6
    rotation.watch()
    assert standby.window.now.numbers == (2, 3, 4), "the next look tries again"
    assert rotation.status()["unready"] == "generation 6 is live, and not here yet"
    rotation.watch()
    assert standby.window.now.numbers == (4, 6)
    assert rotation.status()["unready"] is None
    ours, theirs = standby.seen(), first.seen()
    assert {c: n for c, n in ours.items() if theirs[c] != 5} == {
        c: n for c, n in theirs.items() if n != 5
    }
    assert {ours[c] for c, n in theirs.items() if n == 5} == {6}
    assert [facts["generation"] for name, facts in told if name == "committed"] == [4, 6]
