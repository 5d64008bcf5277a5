"""Basins in stock beside a service: counted, grown by another, told to operators alone."""

from __future__ import annotations

import os
import queue
import threading

import pytest

from g2d.errors import SettingsError, VaultError
from g2d.rotation.events import Alarm
from g2d.service import growing as module
from g2d.service.grower import GrowingProcess
from g2d.service.growing import Grower, GrowingRotation, _Pace, growth_of
from g2d.service.http.metrics import CLOSED, public
from g2d.settings import Settings
from g2d.vault.basins import GROWING, GROWN, GROWN_MEMBER
from g2d.vault.vault import Vault
from stand_ins import ADMIN, Harness, run, wait_for

MANIFEST = {"task": "digits", "population": "p", "generator": "g", "gates": [], "exposed": []}


class Child:
    """Grows nothing; says what the test puts in, None: it has ended."""

    def __init__(self) -> None:
        self.says: queue.Queue[dict | None] = queue.Queue()
        self.ended = threading.Event()

    def start(self) -> None:
        pass

    def said(self):
        while (line := self.says.get()) is not None:
            yield line

    def end(self) -> None:
        self.ended.set()
        self.says.put(None)


@pytest.fixture
def vault(tmp_path):
    """Basin 0 was seen, basin 1 was not."""
    with Vault.create(tmp_path / "vault", Settings().to_toml()) as made:
        for index in range(2):
            made.put("member", index, {"weights": bytes([index])}, {"basin": index})
        made.put("generator", 0, {"weights": b"g"}, {})
        expose(made, 0)
        yield made


def expose(vault, basin):
    return vault.accept({"weights": b"w"}, MANIFEST | {"basin": basin}, activate=True).number


def take_up(vault):
    """Have a basin join, as a worker does: a generator that knows it comes with it."""
    member = ("member", GROWN_MEMBER, {"weights": b"m"}, {"basin": GROWN})
    vault.put_all([member, ("generator", 0, {"weights": b"fitted anew"}, {})])


@pytest.fixture
def growing(vault):
    """A grower that wants two in stock, its children, and what it told."""
    children, told = [], []

    def made(arguments):
        assert arguments[0] == str(vault.path)
        children.append(Child())
        return children[-1]

    grower = Grower(vault.path, 2, told.append, made=made)
    yield grower, children, told
    grower.stop()


def test_a_basin_is_grown_while_fewer_are_in_stock_than_wanted(vault, growing):
    grower, children, told = growing
    grower.look()
    (child,) = children
    child.says.put({"done": 1, "total": 3})
    wait_for(lambda: grower.status()["done"] == 1)
    status = grower.status()
    assert (status["unseen"], status["wanted"], status["growing"], status["total"]) == (
        1,
        2,
        True,
        3,
    )
    grower.look()
    assert len(children) == 1  # one at a time
    (vault.path / GROWING).mkdir()
    child.says.put({"grown": GROWN})
    child.says.put(None)
    wait_for(child.ended.is_set)
    wait_for(lambda: not grower.status()["growing"])
    grower.look()
    assert len(children) == 1  # it waits for the worker
    take_up(vault)
    grower.look()
    assert grower.status()["unseen"] == 2
    expose(vault, 1)
    grower.look()
    assert len(children) == 2
    assert told == []


def test_a_basin_that_waits_for_what_is_no_more_does_not_end_growth(vault, growing):
    """A refresh that is taken up first leaves a ready basin that fits nothing any more."""
    grower, children, _ = growing
    grower.look()
    (vault.path / GROWING).mkdir()
    children[0].says.put({"grown": GROWN})
    children[0].says.put(None)
    wait_for(lambda: not grower.status()["growing"])
    expose(vault, 0)
    grower.look()
    assert len(children) == 1  # a rotation is no reason
    vault.put("generator", 0, {"weights": b"of another population"}, {})
    grower.look()
    grower.look()
    assert len(children) == 2  # it fits the basin to what is there, or begins anew


def test_a_failure_is_told_once_and_the_next_try_waits(vault, growing):
    grower, children, told = growing
    for _ in range(2):
        grower._at = 0.0
        grower.look()
        children[-1].says.put({"failed": "it has diverged"})
        children[-1].says.put(None)
        wait_for(lambda: not grower.status()["growing"])
        wait_for(lambda: grower._at > 0.0)
        grower.look()
    assert len(children) == 2
    assert [alarm.text for alarm in told] == ["no basin is grown: it has diverged"]
    assert told[0].closed
    assert grower.status()["failed"] == "it has diverged"


def test_a_vault_that_cannot_be_read_for_a_while_delays_no_basin(growing, monkeypatch):
    grower, children, told = growing
    looks, look = [], grower.look

    def looked():
        looks.append(1)
        if len(looks) <= 5:
            raise VaultError("it is locked")
        look()

    monkeypatch.setattr(module, "LOOK", 0.01)
    monkeypatch.setattr(grower, "look", looked)
    grower.start()
    wait_for(lambda: children)  # at once, not after the waits of five failures
    wait_for(lambda: len(looks) > 7)
    assert [alarm.text for alarm in told] == ["the stock of basins is not counted: it is locked"]
    assert grower.status()["failed"] is None


def test_rotations_that_outrun_growth_are_told_in_one_line_once(vault, growing):
    grower, _, told = growing
    grower.look()
    expose(vault, 1)
    grower.look()
    assert told == []  # the last one that was in stock
    number = expose(vault, 0)
    expose(vault, 1)
    grower.look()
    grower.look()
    (alarm,) = told
    assert isinstance(alarm, Alarm)
    assert alarm.closed
    said = f"rotations outrun growth: generation {number} is of basin 0 that was exposed before"
    assert alarm.text.startswith(said)
    assert "\n" not in alarm.text
    take_up(vault)
    expose(vault, GROWN)
    expose(vault, 0)
    grower.look()
    assert len(told) == 2  # it had caught up


def test_what_is_grown_ends_with_the_service(growing):
    grower, children, told = growing
    grower.start()
    wait_for(lambda: children)
    grower.stop()
    assert children[0].ended.is_set()
    assert told == []


def test_the_next_one_is_due_by_the_pace_of_this_run():
    now = [0.0]
    pace = _Pace(lambda: now[0])
    assert (pace.due(), pace.whole()) == (None, None)
    pace.tick(2, 6)  # an earlier run had done two
    assert pace.due() is None
    now[0] = 20.0
    pace.tick(4, 6)
    assert (pace.due(), pace.whole()) == (20.0, 60.0)
    now[0] = 25.0
    assert pace.due() == 15.0


SOUPS = {"growth__unseen": 2, "guidance__resting": True, "generator__space": "soup"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"guidance__resting": False}, "set it to true, and they are used first"),
        ({"generator__space": "diffusion"}, "space = 'soup' can"),
        ({"population__recipe": "seeds"}, "has no basins to add to"),
        ({"growth__members": 1}, "2 or more, or 0"),
    ],
)
def test_a_stock_that_cannot_be_kept_is_refused_at_the_start(changes, why):
    settings = Settings().override(**SOUPS)
    assert growth_of(settings).unseen == 2
    with pytest.raises(
        SettingsError, match=r"\[growth\] unseen = 2 keeps basins in stock"
    ) as error:
        growth_of(settings.override(**changes))
    assert why in str(error.value)
    assert growth_of(Settings().override(**changes | {"growth__unseen": 0})).unseen == 0


def test_the_stock_is_told_to_operators_alone(growing, monkeypatch):
    grower, *_ = growing
    harness = Harness()
    monkeypatch.setattr(grower, "look", lambda: None)
    told = {"growth": grower.status()}
    status = harness.rotation.status
    monkeypatch.setattr(harness.rotation, "status", lambda: status() | told)
    harness.metrics.count_basins(harness.rotation.status)

    async def work(client) -> None:
        answer = await client.get("/alarms", headers=ADMIN)
        assert answer.json()["growth"] == told["growth"]
        for path in ("/status", "/metrics"):
            text = (await client.get(path)).text
            assert "growth" not in text
            assert "unseen" not in text

    run(harness, work)
    assert "g2d_unseen_basins" in CLOSED
    assert b"g2d_unseen_basins 0.0" in harness.metrics.render(exact=True)
    assert "growth" not in public(harness.rotation.status())
    assert issubclass(GrowingRotation, type(harness.rotation))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_process_that_grows_says_why_it_cannot(tiny_vault, monkeypatch):
    """By a diffusion model: whether a basin is grown is tested beside the defence."""
    asked = []  # and not done: beside other tests it would hardly run
    monkeypatch.setattr(os, "setpriority", lambda *told: asked.append(told), raising=False)
    process = GrowingProcess([str(tiny_vault), "", "digits", "{}"])
    process.start()
    try:
        (said,) = process.said()
        assert "cannot be told in which basin" in said["failed"]
        assert [told[1:] for told in asked] in ([(process._process.pid, 19)], [])  # [] on Windows
    finally:
        process.end()
