"""The order of requests and switches: no party computes by what it has left. No SPU is needed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.party import coordinator
from g2d.protect.multiparty.party.coordinator import Coordinator
from g2d.protect.multiparty.party.follower import Follower
from g2d.protect.multiparty.party.requests import Pending
from g2d.protect.multiparty.party.server import Party
from g2d.protect.multiparty.party.store import Agreed, Held, Store
from g2d.protect.multiparty.program import Program
from smpc_parties import Setup

DENSE = Program((2,), 2, ({"kind": "linear", "weight": [2, 2], "bias": False},), (0.0,), (1.0,))
NAME = "0" * 32
OLD, NEW = (Held(number, NAME, DENSE.digest) for number in (4, 5))
SHARE = bytes(16 * DENSE.size)


class Loaded:
    """A session whose engine holds both generations, and computes nothing."""

    linked = True

    def __init__(self) -> None:
        self.loaded = {OLD: DENSE, NEW: DENSE}

    async def load(self, store: Store, held: Held) -> None:
        await asyncio.sleep(0)

    async def prepare(self, pending: Pending, held: Held) -> None:
        await asyncio.sleep(0)

    async def drop(self, held: Held) -> None:
        self.loaded.pop(held, None)

    async def run(self, pending: Pending, held: Held) -> Any:
        return {"number": held.number}, b""

    def end(self) -> None:
        pass


def made(kind: type[Party], rank: int, folder: Path) -> Any:
    setup = Setup(folder)
    store = Store(folder / f"state{rank}")
    party: Any = kind(setup.config, rank, setup.own(f"party{rank}"), store, {}, lambda line: None)
    for held in (OLD, NEW):
        store.put(held.number, held.sharing, DENSE, SHARE)
    first = Agreed(1, *OLD)
    store.prepare(first)
    store.commit(first)
    party.session, party.live, party._serial = Loaded(), OLD, 1
    party._permitted = [NEW]
    return party


async def turned(party: Any) -> None:
    """A follower goes over to the new generation."""
    for kind in ("use", "live"):
        await party._do({"kind": kind, "agreed": [2, *NEW]})


def asked(held: Held) -> dict[str, Any]:
    return {"kind": "ready", "id": NAME, "client": "somebody", "n": 1, "held": list(held)}


async def comes(party: Any) -> None:
    share = {"id": NAME, "n": 1, "digest": DENSE.digest}
    await party.requests.take(share, bytes(2 * 16), DENSE, "somebody")


def test_a_request_for_what_is_no_longer_live_is_refused(tmp_path):
    async def follow() -> None:
        party = made(Follower, 1, tmp_path)
        await comes(party)
        await turned(party)
        with pytest.raises(MultipartyError, match="generation 4 is older than 5, which is live"):
            await party._do(asked(OLD))
        await party._do(asked(NEW))

    asyncio.run(follow())


def test_a_request_that_was_called_for_before_the_switch_is_computed(tmp_path):
    async def follow() -> None:
        party = made(Follower, 1, tmp_path)
        ready = asyncio.create_task(party._do(asked(OLD)))
        await asyncio.sleep(0)
        await turned(party)
        await comes(party)
        assert await ready == {}

    asyncio.run(follow())


class Peer:
    """Another party: says yes to all, and notes what it was asked."""

    def __init__(self, party: Any, rank: int) -> None:
        self.party, self.rank, self.heard = party, rank, list[tuple[str, int]]()
        self.turn = asyncio.Lock()

    async def send(self, header: Any) -> None:
        async with self.turn:
            number = header["agreed"][1] if "agreed" in header else header["held"][0]
            self.heard.append((header["kind"], number))
            await asyncio.sleep(0)
        reply = self.party._replies[self.rank, header["of"]]
        asyncio.get_running_loop().call_later(0.001, reply.set_result, {"kind": "yes"})


@pytest.mark.parametrize("turns", range(12))
def test_party_0_calls_for_no_generation_after_it_has_switched(tmp_path, turns):
    """Whenever a request comes, followers hear of it before the switch, or get the new one."""

    async def switch() -> list[list[tuple[str, int]]]:
        party = made(Coordinator, 0, tmp_path)
        party._peers = {rank: Peer(party, rank) for rank in (1, 2)}
        rotation = asyncio.create_task(party.activate(NEW))
        wanted = []
        for turn in range(40):
            if turn % 12 == turns:
                future = asyncio.get_running_loop().create_future()
                wanted.append(Pending(f"{turn:032x}", "somebody", 1, DENSE.digest, b"", future))
                party.took(wanted[-1])
            await asyncio.sleep(0 if turn < 30 else 0.001)
        await rotation
        await asyncio.gather(*(one.answer for one in wanted))
        return [peer.heard for peer in party._peers.values()]

    for heard in asyncio.run(switch()):
        after = heard[heard.index(("live", 5)) :]
        assert ("ready", 4) not in after


def test_party_0_opens_last_when_a_session_begins(tmp_path):
    """Whoever finds party 0 open finds all so."""

    async def begin() -> None:
        party = made(Coordinator, 0, tmp_path)
        party.live = None
        peers = party._peers = {rank: Peer(party, rank) for rank in (1, 2)}
        rotation = asyncio.create_task(party.activate(NEW))
        while party.live is None:
            await asyncio.sleep(0)
        assert all(("live", 5) in peer.heard for peer in peers.values())
        await rotation

    asyncio.run(begin())


# --- activation: all or none ----------------------------------------------------------------------


def told(
    held: list[Held], live: Agreed | None, prepared: Agreed | None = None
) -> dict[str, list[Any] | None]:
    """What another party says of itself when a session begins, as it comes over the wire."""
    found = {"held": held, "live": live, "prepared": prepared}
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


FIRST, NEXT = Agreed(1, *OLD), Agreed(2, *NEW)


@pytest.mark.parametrize(
    ("others", "expected", "serial"),
    [
        ([told([NEW, OLD], FIRST)] * 2, FIRST, 1),  # all hold the next, and nobody activated it
        ([told([NEW, OLD], FIRST, NEXT)] * 2, FIRST, 2),  # prepared, and not agreed on
        ([told([NEW, OLD], FIRST, NEXT), told([NEW, OLD], NEXT)], NEXT, 2),  # one has switched
        ([told([OLD], FIRST), told([NEW, OLD], NEXT)], None, 2),  # which one cannot follow
        ([told([], None)] * 2, None, 1),
    ],
    ids=range(5),
)
def test_what_is_live_when_a_session_begins(tmp_path, others, expected, serial):
    async def begin() -> None:
        party = made(Coordinator, 0, tmp_path)
        party.live = None
        assert party._agreed(others) == expected
        assert party._serial == serial
        assert expected is not None or "no weights in common" in party.closed

    asyncio.run(begin())


@pytest.mark.parametrize("row", [[], [1], [0, 4, "", ""], [1 << 70, 4, "", ""], [1, 4, 5, ""], 3])
def test_what_no_party_says_is_no_generation(tmp_path, row):
    async def begin() -> None:
        party = made(Coordinator, 0, tmp_path)
        with pytest.raises(MultipartyError, match="is no generation"):
            party._agreed([{"held": [], "live": row or [1], "prepared": None}])

    asyncio.run(begin())


def test_a_party_that_counts_far_ahead_is_refused(tmp_path):
    """It would leave no number for the activations after it, for good."""

    async def begin() -> None:
        party = made(Coordinator, 0, tmp_path)
        far = NEXT._replace(serial=1 << 40)
        for one in (told([OLD], far), told([OLD], FIRST, far)):
            with pytest.raises(MultipartyError, match="party 2 names activation"):
                party._agreed([told([OLD], FIRST), one])
        assert party._serial == 1

    asyncio.run(begin())


def test_a_party_that_never_replies_holds_no_activation_up(tmp_path, monkeypatch):
    class Mute(Peer):
        async def send(self, header: Any) -> None:
            if self.rank == 1 or header["kind"] == "abort":
                await super().send(header)

    async def turn() -> None:
        party = made(Coordinator, 0, tmp_path)
        party._peers = {rank: Mute(party, rank) for rank in (1, 2)}
        with pytest.raises(MultipartyError, match="party 2 has not replied"):
            await party.activate(NEW)
        assert (party.live, party.store.prepared) == (OLD, None)

    monkeypatch.setattr(coordinator, "_PATIENCE", 1.0)
    asyncio.run(turn())


def test_a_party_follows_a_dealers_word_alone_and_in_order(tmp_path):
    async def follow() -> None:
        party = made(Follower, 1, tmp_path)
        party._permitted = []

        async def does(kind: str, agreed: Agreed) -> None:
            await party._do({"kind": kind, "agreed": list(agreed)})

        for kind, agreed, why in [
            ("use", NEXT, "no dealer has told party 1"),
            ("live", NEXT, "was not prepared here"),
            ("use", FIRST._replace(serial=3), "no dealer has told party 1"),
        ]:
            with pytest.raises(MultipartyError, match=why):
                await does(kind, agreed)
        await party.activate(NEW)
        await does("use", NEXT)
        await does("abort", NEXT)
        assert party.store.prepared is None
        party.session.loaded[NEW] = DENSE
        await does("use", NEXT)
        await does("use", NEXT)  # again, in another session
        await does("live", NEXT)
        assert (party.live, party.store.live) == (NEW, NEXT)
        party._permitted = [OLD]
        with pytest.raises(MultipartyError, match="is older than 5, which was live"):
            await does("use", FIRST._replace(serial=3))

    asyncio.run(follow())


class Refuses(Peer):
    """A party that says no to one phase."""

    phase = "use"

    async def send(self, header: Any) -> None:
        self.heard.append((header["kind"], header["agreed"][1]))
        no = header["kind"] == self.phase and self.rank == 2
        told = {"kind": "no", "why": "No space left on device"} if no else {"kind": "yes"}
        reply = self.party._replies[self.rank, header["of"]]
        asyncio.get_running_loop().call_soon(reply.set_result, told)


def test_where_one_party_cannot_prepare_nobody_switches(tmp_path):
    async def turn() -> None:
        party = made(Coordinator, 0, tmp_path)
        peers = party._peers = {rank: Refuses(party, rank) for rank in (1, 2)}
        with pytest.raises(MultipartyError, match="party 2 refuses: No space left"):
            await party.activate(NEW)
        assert (party.live, party.store.live, party.store.prepared) == (OLD, FIRST, None)
        for peer in peers.values():
            assert peer.heard == [("use", 5), ("abort", 5)]
        assert party.session is not None

    asyncio.run(turn())


def test_where_one_party_cannot_switch_the_session_ends_and_the_next_has_it_follow(tmp_path):
    class Late(Refuses):
        phase = "live"

    async def turn() -> None:
        party = made(Coordinator, 0, tmp_path)
        party.spare.begin = lambda: None
        party._peers = {rank: Late(party, rank) for rank in (1, 2)}
        with pytest.raises(MultipartyError, match="party 2 refuses: No space left"):
            await party.activate(NEW)
        assert (party.session, party.live, party.store.live) == (None, None, NEXT)
        late = [told([NEW, OLD], FIRST, NEXT), told([NEW, OLD], NEXT)]
        assert party._agreed(late) == NEXT
        party._peers = {}

    asyncio.run(turn())
