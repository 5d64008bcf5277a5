"""What dealers may have a party keep, and what it keeps. No SPU is needed for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.party.child import Child
from g2d.protect.multiparty.party.store import Agreed, Held, Store
from g2d.protect.multiparty.program import Program
from smpc_door import DENSE, NAME, SHARE, Door, Engine, refused
from smpc_parties import Setup


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    async def start() -> Child:
        return Engine()

    monkeypatch.setattr(Child, "start", start)
    made = Door(Setup(tmp_path))
    yield made
    made.close()


def weights(**changes: Any) -> dict[str, Any]:
    about = {"kind": "weights", "number": 3, "sharing": NAME, "program": DENSE.to_json()}
    return about | changes


def test_shares_are_kept_for_their_owner_alone(door):
    line = door.line("dealer")
    line.greet("dealer")
    assert line.ask(weights(), SHARE, 0)[0]["digest"] == DENSE.digest
    (file,) = (door.setup.folder / "state0").glob("*.share")
    assert file.stat().st_mode & 0o77 == 0
    refused(line, {**weights(), "kind": "activate"}, "not here|not met yet")
    assert door.party.store.held() == [Held(3, NAME, DENSE.digest)]


@pytest.mark.parametrize(
    ("changes", "body", "expected"),
    [
        ({}, SHARE[1:], "no share of 4 weights"),
        ({"program": DENSE.to_json() + " "}, SHARE, "no program"),
        ({"sharing": "../../x"}, SHARE, "cannot be"),
        ({"number": -1}, SHARE, "older|cannot be"),
        ({"number": 10**13}, SHARE, "cannot be"),
        ({"kind": "infer"}, SHARE, "may not infer"),
    ],
    ids=range(6),
)
def test_what_is_no_share_is_refused(door, changes, body, expected):
    line = door.line("dealer")
    line.greet("dealer")
    refused(line, weights(**changes), expected, body)
    assert not door.party.store.held()


def test_weights_without_a_range_are_refused_where_inputs_are_to_be_held_in_one(door):
    free = Program((2,), 2, DENSE.layers)
    line = door.line("dealer")
    line.greet("dealer")
    why = "names no range of its inputs.*set bounds = false"
    refused(line, weights(program=free.to_json()), why, SHARE)
    assert not door.party.store.held()


def test_weights_without_a_range_are_taken_where_parties_do_not_check(door):
    free = Program((2,), 2, DENSE.layers)
    door.party.limits = dataclasses.replace(door.party.limits, bounds=False)
    with door.line("dealer") as line:
        line.greet("dealer")
        assert line.ask(weights(program=free.to_json()), SHARE, 0)[0]["digest"] == free.digest


def live(store: Store, serial: int, number: int) -> Agreed:
    store.put(number, NAME, DENSE, SHARE)
    agreed = Agreed(serial, number, NAME, DENSE.digest)
    store.prepare(agreed)
    store.commit(agreed)
    return agreed


def test_numbers_only_rise(door):
    live(door.party.store, 1, 4)
    line = door.line("dealer")
    line.greet("dealer")
    refused(line, weights(), "generation 3 is older than 4", SHARE)


def test_one_sharing_is_one_set_of_shares(door):
    line = door.line("dealer")
    line.greet("dealer")
    line.ask(weights(), SHARE)
    line.ask(weights(), SHARE)  # sent twice: the same
    refused(line, weights(), "other shares of this sharing", b"\1" + SHARE[1:])


def test_a_store_is_held_by_one_process_and_outlives_it(tmp_path):
    folder = tmp_path / "shares"
    store = Store(folder)
    with pytest.raises(MultipartyError, match="this rank is taken"):
        Store(folder)
    for serial in range(1, 5):
        agreed = live(store, serial, serial + 2)
    store.close()
    (folder / f".000007-{NAME}.share.0123456789ab").write_bytes(
        b"half"
    )  # of a write that was killed
    again = Store(folder)
    assert (again.reached, again.live, again.prepared) == (6, agreed, None)
    assert [held.number for held in again.held()] == [6, 5, 4]
    assert again.load(again.held()[0]) == (DENSE, SHARE)
    assert not [*folder.glob(".*")]
    next(folder.glob("000006*")).write_bytes(b"{}\n")
    assert [held.number for held in again.held()] == [5, 4]
    again.close()
    (folder / "reached.json").write_text('{"reached": 5}')  # of a release that counted nothing
    old = Store(folder)
    assert (old.reached, old.live) == (5, None)
    old.close()
    (folder / "reached.json").write_text("[]")
    with pytest.raises(MultipartyError, match="is damaged"):
        Store(folder)
