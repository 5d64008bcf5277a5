"""A party's door: who is let in is decided by certificates alone. No SPU is needed for it."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from g2d.protect.multiparty import wire
from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.identities import make_identity
from g2d.protect.multiparty.party import server
from g2d.protect.multiparty.party.child import Child
from g2d.protect.multiparty.party.session import Session, session_id
from g2d.protect.multiparty.party.store import Held, Store
from g2d.protect.multiparty.wire import Line
from smpc_door import DENSE, NAME, SHARE, Door, Engine, refused
from smpc_parties import Setup, wait_for


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    async def start() -> Child:
        return Engine()

    monkeypatch.setattr(Child, "start", start)
    made = Door(Setup(tmp_path))
    yield made
    made.close()


def test_a_party_is_welcome_by_its_certificate(door):
    with door.line("party1") as line:
        assert line.ask(door.hello(1))[0]["kind"] == "welcome"


@pytest.mark.parametrize("kind", ["peer", "link"])
@pytest.mark.parametrize(
    ("name", "rank"),
    [("party1", 2), ("party2", 1), ("party1", 0), ("client", 1), ("dealer", 1), ("party0", 0)],
)
def test_a_party_with_anothers_rank_is_refused(door, name, rank, kind):
    refused(door.line(name), door.hello(rank, kind=kind), f"says that it is rank {rank}")
    assert any(line.startswith("refused") for line in door.said)


def test_a_rank_is_taken_once(door):
    with door.line("party1") as line:
        line.ask(door.hello(1))
        refused(door.line("party1"), door.hello(1), "rank 1 is taken")
    wait_for(lambda: not door.party._peers)
    with door.line("party1") as again:
        again.ask(door.hello(1))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"version": 1}, "party 2 speaks version 1 of what parties say, and this side 3"),
        ({"version": None}, "party 2 speaks version None"),
        ({"versions": {"spu": "2"}}, "has {'spu': '1'}, and this one {'spu': '2'}"),
        ({"config": "0" * 64}, "another parties.toml"),
    ],
)
def test_parties_that_are_not_alike_are_refused(door, changes, expected):
    refused(door.line("party2"), door.hello(2, **changes), expected)


@pytest.mark.parametrize("role", ["client", "dealer"])
@pytest.mark.parametrize("version", [{}, {"version": 2}, {"version": "3"}])
def test_whoever_speaks_another_version_is_refused(door, role, version):
    why = f"this {role} speaks version .* of what parties say, and this side {wire.VERSION}"
    refused(door.line(role), {"kind": role, **version}, why)


def test_a_party_of_another_version_is_noticed(door, monkeypatch):
    with door.line("dealer") as line:
        ask = line.ask
        monkeypatch.setattr(wire, "VERSION", 4)
        monkeypatch.setattr(line, "ask", lambda told: ask({**told, "version": 3}))
        with pytest.raises(MultipartyError, match=r"party 0 at .* speaks version"):
            line.greet("dealer")


@pytest.mark.parametrize("session", ["", "0" * 64, None])
def test_a_link_of_no_session_is_refused(door, session):
    refused(door.line("party1"), door.hello(1, kind="link", session=session), "session is another")


def test_a_session_that_was_is_refused_when_it_is_replayed(door):
    async def meet(nonces: list[str]) -> str:
        party = door.party
        party.session = Session(
            session_id(nonces),
            party.config,
            0,
            Engine(),
            party.link_to,
            party.store.sockets(),
            print,
        )
        return party.session.id

    async def over() -> None:
        door.party.over("a party is gone")

    first = door.call(meet(["1", "2", "3"]))
    door.call(over())
    second = door.call(meet(["1", "4", "3"]))
    assert first != second
    refused(door.line("party1"), door.hello(1, kind="link", session=first), "session is another")
    door.call(over())


NO_WORD = r"does not take our certificate|is gone|is none that parties.toml names"


def unknown(door: Door, owned: tuple[Path, Path]) -> None:
    with Line(door.setup.config, 0, owned, 30.0) as line:
        line.ask(door.hello(1))


def test_a_generation_that_comes_is_not_retired_by_a_request_that_ends(door, monkeypatch):
    """A request of the generation before last ended while the next was loaded, and took it away."""
    party, came, go = door.party, asyncio.Event(), asyncio.Event()
    old, live, coming = (Held(number, NAME, DENSE.digest) for number in (1, 2, 3))
    dropped: list[Held] = []

    class Loading(Session):
        async def load(self, store: Store, held: Held) -> None:
            self.loaded[held] = DENSE
            came.set()
            await go.wait()

        async def drop(self, held: Held) -> None:
            dropped.append(held)
            del self.loaded[held]

    async def agreed(*_: Any, **__: Any) -> Any:
        return {}

    async def rotate() -> None:
        sockets = party.store.sockets()
        made = Loading("0", party.config, 0, Engine(), party.link_to, sockets, print)
        made.linked = True
        made.loaded |= {old: DENSE, live: DENSE}
        party.session, party.live = made, live
        party.store.put(3, NAME, DENSE, SHARE)
        using = asyncio.ensure_future(party.activate(coming))
        await came.wait()
        await party._retire(made)
        go.set()
        await using
        party.over("the test is over")

    monkeypatch.setattr(party, "_ask_all", agreed)
    monkeypatch.setattr(party, "_ask", agreed)
    door.call(rotate())
    assert dropped == [old, live]


def own(folder: Path, name: str, **about: Any) -> tuple[Path, Path]:
    make_identity(folder / name, **about)
    return folder / f"{name}.pem", folder / f"{name}.key"


def test_a_foreign_certificate_gets_no_word(door):
    foreign = own(door.setup.folder, "foreign")
    with pytest.raises(MultipartyError, match=NO_WORD):
        unknown(door, foreign)


def test_an_expired_certificate_gets_no_word(tmp_path, monkeypatch):
    async def start() -> Child:
        return Engine()

    monkeypatch.setattr(Child, "start", start)
    setup = Setup(tmp_path)
    for file in setup.own("party1"):
        file.unlink()
    own(tmp_path, "party1", begins=-2, days=-1)
    made = Door(setup)
    with pytest.raises(MultipartyError, match=NO_WORD):
        unknown(made, setup.own("party1"))
    made.close()


def test_one_certificate_has_few_connections(door):
    """Each may send as much as a request is large, and wait."""
    with ExitStack() as stack:
        for _ in range(server.CONNECTIONS):
            stack.enter_context(door.line("dealer")).greet("dealer")
        refused(door.line("dealer"), {"kind": "status"}, "connections of one certificate")
        assert door.setup.status()["rank"] == 0  # another's
    wait_for(lambda: not door.party._connections)


def test_what_a_pinned_key_signs_is_not_pinned(door):
    """The parties' certificates are no authorities: nobody can issue a client."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    folder = door.setup.folder
    signer = x509.load_pem_x509_certificate((folder / "party1.pem").read_bytes())
    signing = serialization.load_pem_private_key((folder / "party1.key").read_bytes(), None)
    child = own(folder, "child")
    key = serialization.load_pem_private_key(child[1].read_bytes(), None)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "client")])
    issued = (
        x509.CertificateBuilder(signer.subject, name, key.public_key(), 7)
        .not_valid_before(signer.not_valid_before_utc)
        .not_valid_after(signer.not_valid_after_utc)
        .sign(signing, hashes.SHA256())
    )
    text = issued.public_bytes(serialization.Encoding.PEM) + (folder / "party1.pem").read_bytes()
    child[0].write_bytes(text)
    with pytest.raises(MultipartyError, match=NO_WORD):
        unknown(door, child)


@pytest.mark.parametrize(
    ("name", "kind"), [("client", "dealer"), ("dealer", "client"), ("party1", "client"),
                   ("party2", "dealer"), ("client", "nothing")]
)  # fmt: skip
def test_a_certificate_is_for_one_role(door, name, kind):
    refused(door.line(name), {"kind": kind}, f"may not {kind}")


def test_another_party_behind_an_address_is_noticed(door):
    lines = door.setup.file.read_text().replace('"party0.pem"', '"x"')
    lines = lines.replace('"party1.pem"', '"party0.pem"').replace('"x"', '"party1.pem"')
    door.setup.file.write_text(lines)
    with pytest.raises(MultipartyError, match="shows another certificate"):
        door.line("client")


def test_a_client_is_told_why_nothing_answers(door):
    why = r"party 1 is not here|not met yet"
    with door.line("client") as line, pytest.raises(MultipartyError, match=why):
        line.greet("client")
    told = door.setup.status()
    assert (told["open"], told["rank"]) == (False, 0)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">IQ", 1 << 31, 0),
        struct.pack(">IQ", 2, 1 << 60) + b"{}",
        struct.pack(">IQ", 4, 0) + b"null",
        struct.pack(">IQ", 9, 0) + b'{"kind":1',
        struct.pack(">IQ", 15, 0) + b'{"kind":"link"}',
    ],
    ids=range(6),
)
def test_what_is_no_message_ends_the_connection_alone(door, sent):
    with door.line("party1") as line:
        line._line.sendall(sent)
        with pytest.raises(MultipartyError):
            line.receive()
    with door.line("party1") as again:
        assert again.ask(door.hello(1))[0]["kind"] == "welcome"


def test_a_header_that_is_no_json_is_none():
    for text in (b"", b"[]", b"\xff", b'{"kind": null}', json.dumps("kind").encode()):
        with pytest.raises(wire.WireError):
            wire.unpack_header(text)
