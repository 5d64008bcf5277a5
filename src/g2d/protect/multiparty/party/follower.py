"""Parties of rank 1 and above: do what party 0 calls for, if it fits what they hold themselves."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Mapping
from typing import Any

from g2d.errors import DAMAGE
from g2d.protect.multiparty.errors import InconsistentError, MultipartyError
from g2d.protect.multiparty.party.server import GONE, Party
from g2d.protect.multiparty.party.session import Session
from g2d.protect.multiparty.party.store import Agreed, Held
from g2d.protect.multiparty.wire import Channel

_AGAIN = 0.5  # seconds between looks for party 0


class Follower(Party):
    """A party of another rank than 0."""

    _nonce = ""
    _channel: Channel | None = None

    async def meet(self) -> None:
        """Find party 0 and follow it, again and again."""
        said = ""
        while True:
            try:
                channel = await self.dial(0, self.hello())
            except (*GONE, TimeoutError, MultipartyError) as error:
                why = str(error) if isinstance(error, MultipartyError) else "party 0 is not there"
                self.closed = why
                if why != said:
                    self.say(f"{why} ({error}); trying again" if why != str(error) else why)
                said = why
                await asyncio.sleep(_AGAIN)
                continue
            said = ""
            self.closed = "the parties have not met yet"
            self.say("party 0 is here")
            self._channel = channel
            beat = asyncio.create_task(self._beat(channel))
            try:
                self.over(await self._follow(channel))
            finally:
                beat.cancel()
                await channel.close()

    def engine_ended(self, why: str) -> None:
        """See `Party`; party 0 learns it as it learns of any party that is gone."""
        self.over(why)
        if self._channel is not None:
            self._channel.writer.close()

    async def _beat(self, channel: Channel) -> None:
        with contextlib.suppress(OSError):
            while True:
                await channel.send({"kind": "alive"})
                await asyncio.sleep(self.limits.silence / 4)

    async def _follow(self, channel: Channel) -> str:
        """Do what is called for until party 0 is gone; why it is."""
        try:
            while True:
                async with asyncio.timeout(self.limits.silence):
                    asked, _ = await channel.receive()
                if asked["kind"] == "over":
                    self.over(str(asked.get("why")))
                elif asked["kind"] == "idle":
                    self.closed = str(asked.get("why"))
                elif asked["kind"] == "forget":
                    whose = str(asked.get("client")), str(asked.get("id"))
                    if (pending := self.requests.waiting(*whose)) is not None:
                        pending.refuse(str(asked.get("why")))
                elif asked["kind"] != "alive":
                    self.task(self._reply(channel, asked))
        except TimeoutError:
            return f"party 0 has said nothing for {self.limits.silence:g} seconds"
        except GONE:
            return "party 0 is gone"

    async def _reply(self, channel: Channel, asked: Mapping[str, Any]) -> None:
        """Do one thing and say so; each begins in the order in which it was called for."""
        told: Mapping[str, Any]
        try:
            told = {"kind": "yes", **await self._do(asked)}
        except (MultipartyError, OSError) as error:
            told = {"kind": "no", "why": str(error)}
        except DAMAGE as error:
            told = {"kind": "no", "why": f"not understood: {type(error).__name__}: {error}"}
        with contextlib.suppress(OSError):
            await channel.send({**told, "of": asked.get("of", 0)})

    async def _do(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        kind = asked["kind"]
        if kind == "meet":
            await self.spare.there()
            self._nonce = secrets.token_hex(16)
            return {"nonce": self._nonce}
        if kind == "session":
            return await self._begin([str(nonce) for nonce in asked["nonces"]])
        session = self.session
        if session is None:
            raise MultipartyError(self.reason)
        if "agreed" in asked:
            await self._turn(session, kind, Agreed.read(asked["agreed"]))
            return {}
        held = Held(*asked["held"])
        if kind == "drop" and held != self.live:
            await session.drop(held)
        elif kind == "ready":
            await self._ready(session, asked, held)
        elif kind == "run":
            await self._run(session, asked, held)
        else:
            raise MultipartyError(f"it was called for {kind!r} at the wrong time")
        return {}

    async def _turn(self, session: Session, kind: str, agreed: Agreed) -> None:
        """A phase of an activation."""
        held = agreed.held
        if kind == "use":
            self.check_permitted(agreed)
            await session.load(self.store, held)
            self.store.prepare(agreed)
        elif kind == "live" and held in session.loaded:
            self.store.commit(agreed)
            self.now_live(held)
        elif kind == "abort":
            self.store.abort(agreed)
            if held != self.live:
                await session.drop(held)
        else:
            raise MultipartyError(f"it was called for {kind!r} at the wrong time")

    async def _begin(self, nonces: list[str]) -> Mapping[str, Any]:
        nonce, self._nonce = self._nonce, ""
        if not nonce or len(nonces) != len(self.config.ranks) or nonces[self.rank] != nonce:
            raise MultipartyError("a session that this party was not asked to: a replay")
        self.over("a new session begins")
        await self.begin(nonces)
        store = self.store
        return {"held": store.held(), "live": store.live, "prepared": store.prepared}

    async def _ready(self, session: Session, asked: Mapping[str, Any], held: Held) -> None:
        # What party 0 called for before it switched has begun here before this party switched.
        if self.live is not None and held.number < self.live.number:
            raise MultipartyError(
                f"generation {held.number} is older than {self.live.number}, which is live"
            )
        whose = str(asked["client"]), str(asked["id"])
        pending = await self.requests.find(*whose, self.limits.arrive)
        if pending is None:
            raise MultipartyError(
                f"party {self.rank} has not got its share of the request from this client"
            )
        pending.announced = True
        if pending.n != asked["n"]:
            raise MultipartyError(f"party {self.rank} has {pending.n} inputs, not {asked['n']}")
        await session.prepare(pending, held)

    async def _run(self, session: Session, asked: Mapping[str, Any], held: Held) -> None:
        pending = self.requests.waiting(str(asked["client"]), str(asked["id"]))
        if pending is None or not pending.announced:
            raise MultipartyError("it was called to compute what it has not agreed to")
        try:
            answer = await session.run(pending, held)
        except InconsistentError as error:  # party 0 finds the same, and the session goes on
            pending.refuse(str(error))
            return
        if not pending.answer.done():
            pending.answer.set_result(answer)
