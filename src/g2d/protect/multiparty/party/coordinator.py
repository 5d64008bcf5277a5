"""Party 0: calls sessions, orders requests, and switches generations when all parties have them.

It decides when, never what: every party checks generation, program, request and order for itself,
and the engines compare them once more before they compute. It learns no more than the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Mapping
from typing import Any

from g2d.errors import DAMAGE
from g2d.protect.multiparty.errors import InconsistentError, MultipartyError
from g2d.protect.multiparty.party.requests import Answer, Pending
from g2d.protect.multiparty.party.server import GONE, Party
from g2d.protect.multiparty.party.session import Session
from g2d.protect.multiparty.party.store import Agreed, Held
from g2d.protect.multiparty.wire import Channel

_AGAIN = 0.5  # seconds until a session that failed is tried again
_PATIENCE = 180.0  # seconds for a reply of a party that lives: linking may take two minutes
_AHEAD = 1 << 20  # activations that a party without its state can have missed


class Coordinator(Party):
    """The party of rank 0."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._peers: dict[int, Channel] = {}
        self._replies: dict[tuple[int, int], asyncio.Future[Mapping[str, Any]]] = {}
        self._asked = 0
        self._changed, self._turn = asyncio.Event(), asyncio.Lock()
        self._rotating, self._pins = asyncio.Lock(), Counter[Held]()
        self._serial = 0

    async def meet(self) -> None:
        """Call a session whenever all are here and there is none."""
        self.task(self._beat())
        while True:
            await self._changed.wait()
            self._changed.clear()
            missing = [r for r in self.config.ranks if r and r not in self._peers]
            if missing:
                self.closed = f"party {missing[0]} is not here"
            elif self.session is None:
                try:
                    await self._call()
                except (MultipartyError, OSError, *DAMAGE) as error:
                    self._end(str(error))
                    self.closed = str(error)
                    await self._tell({"kind": "idle", "why": self.closed})
                    await asyncio.sleep(_AGAIN)
                    self._changed.set()

    async def of_party(self, channel: Channel, rank: int, asked: Mapping[str, Any]) -> None:
        """Let a party in, and hear its replies until it is gone."""
        self.check_hello(asked)
        if rank in self._peers:
            self.say(f"refused: somebody came as party {rank}, which is here already")
            raise MultipartyError(f"rank {rank} is taken: that party is here already")
        self._peers[rank] = channel
        self.say(f"party {rank} is here")
        why = "is gone"
        try:
            await channel.send({"kind": "welcome"})
            self._changed.set()
            while True:
                async with asyncio.timeout(self.limits.silence):
                    told, _ = await channel.receive()
                reply = self._replies.pop((rank, told.get("of", 0)), None)
                if reply is not None and not reply.done():
                    reply.set_result(told)
        except TimeoutError:
            why = f"has said nothing for {self.limits.silence:g} seconds"
        except GONE:
            pass
        finally:
            del self._peers[rank]
            self._lost(rank, f"party {rank} {why}")

    def _lost(self, rank: int, why: str) -> None:
        for key in [key for key in self._replies if key[0] == rank]:
            reply = self._replies.pop(key)
            if not reply.done():
                reply.set_exception(MultipartyError(why))
        self.closed = why
        self._end(why)

    def _end(self, why: str) -> None:
        """End the session here and everywhere."""
        if self.session is not None:
            self.over(why)
            self.task(self._tell({"kind": "over", "why": why}))
        self._changed.set()

    def engine_ended(self, why: str) -> None:
        """See `Party`."""
        self._end(why)

    # --- words with the others -----------------------------------------------------------------

    async def _ask(self, rank: int, **asked: Any) -> Mapping[str, Any]:
        """What a party replies; raises `MultipartyError` where it refuses, or is gone."""
        channel = self._peers.get(rank)
        if channel is None:
            raise MultipartyError(f"party {rank} is gone")
        self._asked += 1
        key = (rank, self._asked)
        self._replies[key] = reply = asyncio.get_running_loop().create_future()
        try:
            # How long a request may run is its caller's to say.
            async with asyncio.timeout(None if asked.get("kind") == "run" else _PATIENCE):
                await channel.send({**asked, "of": key[1]})
                told = await reply
        except TimeoutError as error:
            raise MultipartyError(
                f"party {rank} has not replied for {_PATIENCE:g} seconds, and lives"
            ) from error
        except OSError as error:
            raise MultipartyError(f"party {rank} is gone") from error
        finally:
            self._replies.pop(key, None)
        if told.get("kind") != "yes":
            raise MultipartyError(f"party {rank} refuses: {told.get('why')}")
        return told

    def _ask_all(self, **asked: Any) -> asyncio.Future[list[Mapping[str, Any]]]:
        """Replies of all others; each party hears what is asked in the order of these calls."""
        return asyncio.gather(*(self._ask(rank, **asked) for rank in self._others()))

    async def _tell(self, header: Mapping[str, Any]) -> None:
        for channel in list(self._peers.values()):
            with contextlib.suppress(OSError):
                await channel.send(header)

    async def _beat(self) -> None:
        while True:
            await self._tell({"kind": "alive"})
            await asyncio.sleep(self.limits.silence / 4)

    def _others(self) -> list[int]:
        return [rank for rank in self.config.ranks if rank]

    # --- sessions and generations --------------------------------------------------------------

    async def _call(self) -> None:
        """Have all engines linked, and make live again what the parties have agreed on."""
        await self.spare.there()
        fresh = await self._ask_all(kind="meet")
        nonces = [secrets.token_hex(16), *(str(told["nonce"]) for told in fresh)]
        began, *told = await asyncio.gather(
            self.begin(nonces), self._ask_all(kind="session", nonces=nonces)
        )
        self.say(f"session {began.id[:8]} is open")
        agreed = self._agreed(told[0])
        async with self._rotating:
            if agreed is None and self.live is None:
                await self._tell({"kind": "idle", "why": self.closed})
            elif agreed is not None and self.live is None:  # else a dealer came first
                await self._use(began, agreed)

    def _agreed(self, told: list[Mapping[str, Any]]) -> Agreed | None:
        """What the parties have agreed on last, if all of them hold its shares.

        That is what any of them has committed: all have prepared it before, and whoever failed in
        between commits now. What was prepared and committed by none has not been agreed on.
        """
        own, prepared = self.store.live, self.store.prepared
        lives = [own, *(Agreed.read(one["live"]) if one["live"] else None for one in told)]
        others = [{Held(*row) for row in one["held"]} for one in told]
        nexts = [Agreed.read(one["prepared"]) if one["prepared"] else None for one in told]
        known = max(0 if one is None else one.serial for one in (own, prepared))
        for rank, pair in enumerate(zip(lives[1:], nexts, strict=True), 1):
            for one in pair:
                if one is not None and one.serial > known + _AHEAD:
                    raise MultipartyError(
                        f"party {rank} names activation {one.serial}, and this is {known}"
                    )
        seen = [one.serial for one in (*lives, prepared, *nexts) if one is not None]
        self._serial = max(seen, default=0)
        newest = max((one for one in lives if one is not None), default=None)
        if newest is None:
            self.closed = "the parties hold no weights yet: share them with `g2d smpc share`"
            return None
        if all(newest.held in held for held in (set(self.store.held()), *others)):
            return newest
        numbers = [0 if one is None else one.number for one in lives]
        self.closed = (
            f"the parties hold no weights in common (live by rank: {numbers}): share them anew with"
            " `g2d smpc share`"
        )
        return None

    async def activate(self, held: Held) -> None:
        """Have all parties answer by shares, or none of them."""
        await super().activate(held)
        async with self._rotating:
            session = self.session
            if session is None or not session.linked:
                raise MultipartyError(self.reason)
            if held.number < self.store.reached:
                raise MultipartyError(f"generation {held.number} is older than what is live")
            if held != self.live:
                self._serial += 1
                await self._use(session, Agreed(self._serial, *held))

    async def _use(self, session: Session, agreed: Agreed) -> None:
        held = agreed.held
        self._pins[held] += 1  # a request that ends meanwhile takes away what nobody needs
        try:
            await self._prepare(session, agreed)
            try:
                await self._commit(session, agreed)
            except MultipartyError as error:
                self._end(str(error))  # in the next session whoever is behind comes after
                raise
        finally:
            self._pins[held] -= 1
        await self._retire(session)

    async def _prepare(self, session: Session, agreed: Agreed) -> None:
        """Have all parties load shares and write down what is to be live; else nobody switches."""
        told = await asyncio.gather(
            self._own(session, agreed),
            *(self._ask(rank, kind="use", agreed=list(agreed)) for rank in self._others()),
            return_exceptions=True,
        )
        failed = [one for one in told if isinstance(one, BaseException)]
        if not failed and self.session is session:
            return
        if self.session is session:
            self.store.abort(agreed)
            with contextlib.suppress(MultipartyError):
                await self._ask_all(kind="abort", agreed=list(agreed))
                if agreed.held != self.live:
                    await session.drop(agreed.held)
        raise failed[0] if failed else MultipartyError(self.closed)

    async def _own(self, session: Session, agreed: Agreed) -> None:
        self.check_permitted(agreed)
        await session.load(self.store, agreed.held)
        self.store.prepare(agreed)

    async def _commit(self, session: Session, agreed: Agreed) -> None:
        """All have prepared: from the first line on it is decided, whatever fails."""
        self.store.commit(agreed)
        if self.live is None:  # a session begins: who finds this party open finds all so
            await self._ask_all(kind="live", agreed=list(agreed))
        if self.session is not session:
            raise MultipartyError(self.closed)
        # From here on requests go by it, and the others hear of the switch before them; they
        # have heard before of those that go by the former, which they refuse from then on.
        self.now_live(agreed.held)
        await self._ask_all(kind="live", agreed=list(agreed))
        if self.session is not session:
            raise MultipartyError(self.closed)

    async def _retire(self, session: Session) -> None:
        """Have engines forget generations that no request needs."""
        for held in [h for h in session.loaded if h != self.live and not self._pins[h]]:
            await session.drop(held)
            await self._ask_all(kind="drop", held=list(held))

    # --- requests ------------------------------------------------------------------------------

    def took(self, pending: Pending) -> None:
        """Conduct a request: all parties compute it by the generation that is live now."""
        self.task(self._conduct(pending))

    async def _conduct(self, pending: Pending) -> None:
        session, held = self.session, self.live
        if session is None or held is None:
            pending.refuse(self.closed)
            return
        pending.announced = True
        self._pins[held] += 1
        whose = {"id": pending.id, "client": pending.client}
        about = {**whose, "n": pending.n, "held": list(held)}
        try:
            await asyncio.gather(
                session.prepare(pending, held), self._ask_all(kind="ready", **about)
            )
            async with self._turn:
                await self._run(session, pending, held, about)
        except MultipartyError as error:
            pending.refuse(str(error))
            await self._tell({"kind": "forget", **whose, "why": str(error)})
        finally:
            self._pins[held] -= 1
            if self.session is session and held != self.live:
                with contextlib.suppress(MultipartyError):
                    await self._retire(session)

    async def _run(
        self, session: Session, pending: Pending, held: Held, about: Mapping[str, Any]
    ) -> None:
        if self.session is not session:
            raise MultipartyError(self.closed)
        try:
            async with asyncio.timeout(self.limits.run):
                answer, _ = await asyncio.gather(
                    _computed(session, pending, held), self._ask_all(kind="run", **about)
                )
        except TimeoutError as error:
            why = f"a request took longer than {self.limits.run:g} seconds"
            self._end(why)
            raise MultipartyError(why) from error
        except MultipartyError as error:
            # Parties that compute wait for the one that failed: only a new session is sound.
            why = str(error) if self.session is session else self.closed
            self._end(why)
            raise MultipartyError(why) from error
        if isinstance(answer, InconsistentError):
            raise answer
        if not pending.answer.done():
            pending.answer.set_result(answer)


async def _computed(session: Session, pending: Pending, held: Held) -> Answer | InconsistentError:
    try:
        return await session.run(pending, held)
    except InconsistentError as error:
        return error  # once the others have found it, too
