"""A party's door: who connects is known by the certificate, and gets what that role may have.

What parties of rank 0 and of others do beside it is in `coordinator` and `follower`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from g2d.errors import DAMAGE
from g2d.protect.multiparty.config import CLIENT, DEALER, PARTY, WIDTH, Config
from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.party.requests import Answer, Pending, Requests
from g2d.protect.multiparty.party.session import Session, session_id
from g2d.protect.multiparty.party.spare import Spare
from g2d.protect.multiparty.party.store import Agreed, Held, Store
from g2d.protect.multiparty.program import MOST_VALUES, Program
from g2d.protect.multiparty.wire import (
    VERSION,
    Channel,
    WireError,
    check_version,
    context,
    everyone,
    quiet,
    whose,
)

_HANDSHAKE = 10.0
_BUFFER = 1 << 20
_PERMITTED = 8  # activations that dealers have asked for, and are remembered
CONNECTIONS = 16
"""Of one client's or dealer's certificate at a time: each may send what a request is large."""
GONE = (OSError, EOFError, WireError)
"""How a connection ends."""


class Party:
    """One party's process.

    Args:
        own: files of its certificate and key. versions: of what has to be alike with the others.
        say: told, in a line, what an operator wants to know.
    """

    def __init__(
        self, config: Config, rank: int, own: tuple[Path, Path], store: Store,
        versions: Mapping[str, str], say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.config, self.rank, self.store, self.say = config, rank, store, say
        self.limits, self.versions = config.limits, dict(versions)
        self.requests = Requests(config.protocol, config.limits)
        self.session: Session | None = None
        self.live: Held | None = None
        self.closed = "the parties have not met yet"
        self._serving = context(True, *own, everyone(config))
        self._dialling = [context(False, *own, place.certificates) for place in config.parties]
        self.spare = Spare(say)
        self._permitted: list[Held] = []
        self._connections = Counter[str]()
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- connections ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            OSError: the address is taken.
        """
        host, port = self.config.parties[self.rank].listen
        server = await asyncio.start_server(
            quiet(self._connected), host, port, ssl=self._serving, limit=_BUFFER,
            ssl_handshake_timeout=_HANDSHAKE,
        )  # fmt: skip
        self.say(f"party {self.rank} listens on {host}:{port}")
        try:
            self.spare.begin()
            await self.meet()
        finally:
            server.close()
            self.over("the party was stopped")
            await self.spare.close()

    async def meet(self) -> None:
        """Meet the others, again and again: what differs between ranks."""
        raise NotImplementedError

    async def of_party(self, channel: Channel, rank: int, asked: Mapping[str, Any]) -> None:
        """Speak with another party that has dialled, until it is gone."""
        raise WireError(f"party {self.rank} is dialled by no party")

    async def activate(self, held: Held) -> None:
        """Take note that a dealer wants shares to be live: nobody else's word will do."""
        self._permitted = [*self._permitted[1 - _PERMITTED :], held]

    def check_permitted(self, agreed: Agreed) -> None:
        """Raise `MultipartyError` where no dealer has had these shares activated here."""
        known = agreed in (self.store.live, self.store.prepared)
        if not known and agreed.held not in self._permitted:
            raise MultipartyError(
                f"no dealer has told party {self.rank} to activate generation {agreed.number}"
            )

    @property
    def reason(self) -> str:
        """Why nothing is answered."""
        return self.spare.why or self.closed

    async def dial(self, rank: int, hello: Mapping[str, Any]) -> Channel:
        """Connect to another party and be welcomed.

        Raises:
            OSError, EOFError: it is not there. MultipartyError: it refuses.
        """
        reader, writer = await asyncio.open_connection(
            *self.config.parties[rank].address, ssl=self._dialling[rank], limit=_BUFFER,
            ssl_handshake_timeout=_HANDSHAKE,
        )  # fmt: skip
        channel = Channel(reader, writer)
        try:
            await channel.send(hello)
            async with asyncio.timeout(_HANDSHAKE):
                told, _ = await channel.receive()
            if told["kind"] == "refused":
                raise MultipartyError(f"party {rank} refuses: {told.get('why')}")
        except BaseException:
            writer.close()
            raise
        return channel

    async def link_to(self, rank: int) -> Channel:
        """A connection that carries SPU's link to another party."""
        name = self.session.id if self.session else ""
        return await self.dial(rank, {"kind": "link", "rank": self.rank, "session": name})

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel, mark = Channel(reader, writer), ""
        try:
            who, mark = whose(self.config, writer.get_extra_info("ssl_object"))
            self._connections[mark] += 1
            if who.role != PARTY and self._connections[mark] > CONNECTIONS:
                raise MultipartyError(f"more than {CONNECTIONS} connections of one certificate")
            async with asyncio.timeout(_HANDSHAKE):
                asked, _ = await channel.receive()
            if asked["kind"] in ("peer", "link"):
                self._check_party(who, asked)
                await self._of_party(channel, who.rank, asked)
            elif (asked["kind"], who.role) == (CLIENT, CLIENT):
                check_version(asked, "this client")
                await self._of_client(channel, mark)
            elif (asked["kind"], who.role) == (DEALER, DEALER):
                check_version(asked, "this dealer")
                await self._of_dealer(channel)
            elif asked["kind"] == "status":
                await channel.send(self.status())
            else:
                raise MultipartyError(f"the certificate is of {who}, which may not {asked['kind']}")
        except MultipartyError as error:
            with contextlib.suppress(*GONE, ssl.SSLError):
                await channel.send({"kind": "refused", "why": str(error)})
        except (*GONE, TimeoutError):
            pass
        except DAMAGE as error:  # what somebody has sent
            self.say(f"a message was not understood: {type(error).__name__}: {error}")
        finally:
            self._connections[mark] -= 1
            self._connections += Counter()  # none of those that are gone
            await channel.close()

    def _check_party(self, who: Any, asked: Mapping[str, Any]) -> None:
        if who.role != PARTY or who.rank == self.rank or asked.get("rank") != who.rank:
            text = f"the certificate is of {who}, and says that it is rank {asked.get('rank')}"
            self.say(f"refused: {text}")
            raise MultipartyError(text)

    async def _of_party(self, channel: Channel, rank: int, asked: Mapping[str, Any]) -> None:
        if asked["kind"] == "peer":
            await self.of_party(channel, rank, asked)
            return
        session = self.session
        if session is None or asked.get("session") != session.id:
            raise MultipartyError("the session is another, or over")
        await channel.send({"kind": "welcome"})
        await session.tunnels.into(channel, rank)

    # --- clients and dealers -------------------------------------------------------------------

    def _live(self) -> tuple[Held, Program]:
        """What is live and its program; raises `MultipartyError` where nothing answers."""
        if self.session is None or self.live is None:
            raise MultipartyError(self.reason)
        return self.live, self.session.loaded[self.live]

    async def _of_client(self, channel: Channel, mark: str) -> None:
        held, program = self._live()
        about = {"rank": self.rank, "number": held.number, "digest": held.digest}
        about |= {"protocol": self.config.protocol, "batch": self.limits.batch, "version": VERSION}
        await channel.send({"kind": "welcome", **about, "program": program.to_json()})
        most = self.limits.batch * WIDTH[self.config.protocol] * math.prod(program.shape)
        while True:
            asked, body = await channel.receive(most)
            try:
                if asked["kind"] != "infer":
                    raise MultipartyError(f"a client may not {asked['kind']}")
                told, share = await self._answer(asked, body, mark)
                await channel.send({"kind": "answer", "id": asked["id"], **told}, share)
            except MultipartyError as error:
                await channel.send({"kind": "refused", "id": asked.get("id"), "why": str(error)})

    async def _answer(self, asked: Mapping[str, Any], body: bytes, mark: str) -> Answer:
        _, program = self._live()
        pending = await self.requests.take(asked, body, program, mark)
        try:
            self.took(pending)
            patience = asyncio.get_running_loop().call_later(
                self.limits.arrive + 1, self._unannounced, pending
            )
            try:
                return await pending.answer
            finally:
                patience.cancel()
        finally:
            self.requests.forget(pending)

    def _unannounced(self, pending: Pending) -> None:
        if not pending.announced:
            pending.refuse("the other parties have not got this request")

    def took(self, pending: Pending) -> None:
        """Hear of a request that came here."""

    async def _of_dealer(self, channel: Channel) -> None:
        await channel.send({
            "kind": "welcome", "rank": self.rank, "protocol": self.config.protocol,
            "reached": self.store.reached, "version": VERSION,
        })  # fmt: skip
        while True:
            asked, body = await channel.receive(MOST_VALUES * WIDTH[self.config.protocol])
            try:
                await channel.send(await self._deal(asked, body))
            except MultipartyError as error:
                await channel.send({"kind": "refused", "why": str(error)})

    async def _deal(self, asked: Mapping[str, Any], body: bytes) -> Mapping[str, Any]:
        number, sharing = int(asked["number"]), str(asked["sharing"])
        if asked["kind"] == "weights":
            program = Program.from_json(asked["program"])
            if len(body) != program.size * WIDTH[self.config.protocol]:
                raise MultipartyError(f"{len(body)} bytes are no share of {program.size} weights")
            if self.limits.bounds and not program.least:
                raise MultipartyError(
                    "the task names no range of its inputs, so parties cannot check it: give it"
                    " bounds, or set bounds = false in every parties.toml"
                )
            held = self.store.put(number, sharing, program, body)
            self.say(f"got its share of generation {number}")
            return {"kind": "stored", "digest": held.digest}
        if asked["kind"] == "discard":
            self.store.discard(number, sharing)
            self._permitted = [held for held in self._permitted if held[:2] != (number, sharing)]
            return {"kind": "discarded", "number": number}
        if asked["kind"] != "activate":
            raise MultipartyError(f"a dealer may not {asked['kind']}")
        found = [held for held in self.store.held() if held[:2] == (number, sharing)]
        if not found:
            raise MultipartyError(f"there is no share of generation {number} here")
        await self.activate(found[0])
        return {"kind": "activated", "number": number}

    def status(self) -> dict[str, Any]:
        """What anybody who is known here may know."""
        live = self.live if self.session else None
        return {
            "kind": "status", "rank": self.rank, "open": live is not None,
            "session": self.session.id[:8] if self.session and self.session.linked else "",
            "number": live.number if live else None, "reached": self.store.reached,
            "why": "" if live else self.reason, "protocol": self.config.protocol, **self.versions,
        }  # fmt: skip

    # --- sessions ------------------------------------------------------------------------------

    async def begin(self, nonces: list[str]) -> Session:
        """Begin a session; returns when all engines are linked.

        Raises:
            MultipartyError: they do not find each other, or this party's does not start.
        """
        child, name, sockets = await self.spare.take(), session_id(nonces), self.store.sockets()
        self.session = made = Session(
            name, self.config, self.rank, child, self.link_to, sockets, self._foul
        )
        self.task(self._watch(made))
        self.live, self.closed = None, "the parties are being linked"
        try:
            await made.link()
        except TimeoutError as error:
            raise MultipartyError("the engines did not find each other") from error
        return made

    async def _watch(self, session: Session) -> None:
        await session.ended()
        if self.session is session:
            self.engine_ended(f"the engine of party {self.rank} has ended")

    def _foul(self, why: str) -> None:
        self.say(f"refused: {why}")
        self.engine_ended(why)

    def engine_ended(self, why: str) -> None:
        """Hear that the engine is gone and nobody has ended it: the session is over for all."""
        self.over(why)

    def over(self, why: str) -> None:
        """End the session: whoever waits is refused, and the next engine starts."""
        self.closed = why
        self.requests.refuse_all(why)
        if self.session is not None:
            self.say(f"session over: {why}")
            self.session.end()
            self.session, self.live = None, None
            self.spare.begin()

    def now_live(self, held: Held) -> None:
        """Note what is live."""
        if self.live != held:
            self.say(f"generation {held.number} is live")
        self.live = held

    def task(self, what: Any) -> None:
        """Do something beside; it is kept until it is done."""
        made = asyncio.ensure_future(what)
        self._tasks.add(made)
        made.add_done_callback(self._tasks.discard)

    def hello(self) -> dict[str, Any]:
        """What parties tell each other first."""
        return {
            "kind": "peer", "rank": self.rank, "version": VERSION, "versions": self.versions,
            "config": self.config.digest, "nonce": secrets.token_hex(16),
        }  # fmt: skip

    def check_hello(self, asked: Mapping[str, Any]) -> None:
        """Raise `MultipartyError` unless another party has all that must be alike."""
        check_version(asked, f"party {asked.get('rank')}")
        if asked.get("versions") != self.versions:
            raise MultipartyError(
                f"party {self.rank} has {self.versions}, and this one {asked.get('versions')}"
            )
        if asked.get("config") != self.config.digest:
            raise MultipartyError(
                f"party {self.rank} has another parties.toml: protocol, batch and bounds have to be"
                " the same"
            )
