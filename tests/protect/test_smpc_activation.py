"""Real parties switch all or none: full disks, shares that nobody activated, ends in between."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.wire import Line
from smpc_networks import deal, inputs
from smpc_parties import LONG, Setup, short_folder, wait_for, why_absent

absent = why_absent()
pytestmark = [
    pytest.mark.skipif(bool(absent), reason=absent or "SPU is here"),
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
def parties() -> Iterator[Setup]:
    """Three parties that answer by generation 1; tests raise the number, never lower it."""
    with short_folder() as folder:
        setup = Setup(Path(folder))
        try:
            setup.start_all()
            setup.until_met()
            deal(setup, 1)
            yield setup
        finally:
            setup.stop()


def fill(setup: Setup, rank: int, full: bool) -> None:
    """A disk that is full: no file of the party's takes a byte more."""
    most = 0 if full else resource.RLIM_INFINITY
    resource.prlimit(setup.processes[rank].pid, resource.RLIMIT_FSIZE, (most, -1))


def activate(setup: Setup, shared: Any, ranks: Any = (2, 1, 0)) -> None:
    with ExitStack() as stack:
        for rank in ranks:
            line = stack.enter_context(Line(setup.config, rank, setup.own("dealer"), LONG))
            line.greet("dealer")
            line.ask({"kind": "activate", "number": shared.number, "sharing": shared.sharing})


def numbers(setup: Setup) -> list[int]:
    setup.until_open()
    return [int(setup.status(rank)["number"]) for rank in range(3)]


def answered(setup: Setup) -> int:
    with setup.client() as client:
        return client.infer(inputs(1)).number


def restart(setup: Setup, *ranks: int) -> None:
    for rank in ranks:
        setup.processes[rank].send_signal(signal.SIGKILL)
        setup.processes[rank].wait()
    for rank in ranks:
        setup.start(rank)
    setup.until_open()


def shares(setup: Setup, rank: int) -> int:
    return len([*(setup.folder / f"state{rank}").glob("*.share")])


# --- in order: each leaves parties that answer by one generation ---------------------------------


@pytest.mark.parametrize("rank", range(3))
def test_none_switches_where_one_has_no_room(parties, rank):
    before = numbers(parties)[0]
    shared = deal(parties, before + 1, activate=False)
    fill(parties, rank, full=True)
    try:
        with pytest.raises(MultipartyError, match="cannot write"):
            activate(parties, shared)
        assert numbers(parties) == [before] * 3
        assert answered(parties) == before
    finally:
        fill(parties, rank, full=False)
    restart(parties, rank)
    assert numbers(parties) == [before] * 3
    deal(parties, before + 1)
    assert numbers(parties) == [before + 1] * 3
    assert answered(parties) == before + 1


def test_shares_that_nobody_activated_are_not_live_after_a_restart(parties):
    before = numbers(parties)[0]
    deal(parties, before + 1, activate=False)
    restart(parties, 0, 1, 2)
    assert numbers(parties) == [before] * 3
    assert answered(parties) == before


def test_party_0_alone_activates_nothing(parties):
    """As if it made the dealer's word up: the others have not heard it."""
    before = numbers(parties)[0]
    shared = deal(parties, before + 1, activate=False)
    with pytest.raises(MultipartyError, match=r"no dealer has told party [12] to activate"):
        activate(parties, shared, ranks=(0,))
    assert numbers(parties) == [before] * 3
    assert answered(parties) == before


def test_what_is_shared_in_vain_is_given_up(parties):
    """A dealer that tries again and again fills no disk."""
    before = numbers(parties)[0]
    fill(parties, 2, full=True)
    try:
        for _ in range(4):
            with pytest.raises(MultipartyError, match="cannot write"):
                deal(parties, before + 1)
    finally:
        fill(parties, 2, full=False)
    kept = [shares(parties, rank) for rank in range(3)]
    assert max(kept) <= 4, kept
    for _ in range(4):
        deal(parties, before + 1, activate=False)
    assert [shares(parties, rank) for rank in range(3)] == [3] * 3
    assert numbers(parties) == [before] * 3


def test_a_party_that_prepared_comes_after_when_it_is_back(parties):
    """Party 2 dies when it has written down what is to be live, and has to find out."""
    before = numbers(parties)[0]
    shared = deal(parties, before + 1, activate=False)
    state = parties.folder / "state2"
    with ExitStack() as stack:
        lines = [
            stack.enter_context(Line(parties.config, rank, parties.own("dealer"), LONG))
            for rank in range(3)
        ]
        for line in lines:
            line.greet("dealer")
        asked = {"kind": "activate", "number": shared.number, "sharing": shared.sharing}
        for line in lines[2:0:-1]:
            line.ask(asked)
        lines[0].send(asked)
        wait_for(lambda: (state / "next.json").exists() or _number(state) > before, parties)
        parties.processes[2].send_signal(signal.SIGKILL)
        parties.processes[2].wait()
        with suppress(MultipartyError):  # it may hear of the end before party 2 has switched
            lines[0].receive()
    parties.start(2)
    parties.until_open()
    found = numbers(parties)
    assert len(set(found)) == 1, found
    assert answered(parties) == found[0]
    assert {_number(parties.folder / f"state{rank}") for rank in range(3)} == set(found)


def _number(state: Path) -> int:
    return int(json.loads((state / "reached.json").read_text())["reached"])
