"""The HTTP side: one ASGI application whose short path is inference.

`/v2/..` is answered here by hand (a router and validation cost more than a small model's forward
pass); everything else by `status_api`, which loads FastAPI after the service is ready. Limits,
counters and timeouts hold for both.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

import orjson

from g2d.core import platforms
from g2d.core.types import Array
from g2d.rotation.control import RotationControl
from g2d.service.access.gate import Access
from g2d.service.access.identity import CALLER, INFER, Caller
from g2d.service.http.batcher import Batcher, BrokenError, BusyError, NotFiniteError
from g2d.service.http.bodies import Bodies, Body, OverBudgetError
from g2d.service.http.event_log import EventLog
from g2d.service.http.events import Broken
from g2d.service.http.headers import Told, single
from g2d.service.http.metrics import Metrics, public
from g2d.service.http.options import Options
from g2d.service.http.origins import Hosts
from g2d.service.http.protocol import (
    HEADER_LENGTH,
    LARGE,
    Model,
    Query,
    RequestError,
    answer,
    parse,
)
from g2d.service.http.reading import check_head, over_budget, read_body
from g2d.service.http.types import Asgi, Headers, Message, Receive, Scope, Send
from g2d.service.http.v2 import EXTENSIONS, Call, call_of, without
from g2d.service.http.versions import Versions
from g2d.service.monitors.observer import ObserverQueue

_HEALTH = tuple(
    f"/v2/health/{what}{end}" for what in ("live", "ready") for end in ("", "/")
)  # whatever Host a probe says
_LABELLED = ("/feedback", "/feedback/")  # bodies as large as those of infer
_FREE = (*_HEALTH, "/metrics")  # no client's rate limits these
_VERSIONED = ("metadata", "stats", "all stats", "index")  # what names the caller's version
_ONLY = (
    "plain inputs are not taken here, only ciphertexts: see `g2d client encrypted`, or GET"
    " /encrypted/plan"
)
_FEW = 16  # inputs whose scores are shaped at once
_SETTLE = 0.25  # seconds between looks for swaps whose latencies are complete
_JSON = (b"content-type", b"application/json")


class Service:
    """The ASGI application, and what its parts share.

    Args:
        pages: builds the application for everything but `/v2`; called once, after the start.
            observers: shown what was answered; None: nobody looks. versions: names generations to
            clients; None: by their numbers. shape: makes what is told of scores; None: all of them.
            encrypted: answers ciphertexts; None: nobody does.
    """

    def __init__(
        self,
        model: Model,
        options: Options,
        rotation: RotationControl,
        batcher: Batcher,
        metrics: Metrics,
        event_log: EventLog,
        access: Access,
        pages: Callable[[Service], Asgi],
        observers: ObserverQueue | None = None,
        versions: Versions | None = None,
        shape: Callable[[Array], Array] | None = None,
        encrypted: Encrypted | None = None,
    ) -> None:
        self.model, self.options, self.rotation = model, options, rotation
        self.metrics, self.event_log, self.access = metrics, event_log, access
        self.max_body = options.max_body or model.largest(options.max_batch)
        self.versions, self._shape = versions or Versions(rotation), shape
        self.draining, self.encrypted = False, encrypted
        self._batcher, self._make_pages, self._observers = batcher, pages, observers
        self._hosts = Hosts(options)
        self._bodies = Bodies(options.max_bodies, self.max_body)
        self._pages: asyncio.Future[Asgi] | None = None

    def status(self) -> dict[str, Any]:
        """Everything that the page shows: what is live, what was, what failed."""
        return {
            "model": self.model.name,
            "ready": not self.unready(),
            "rotation": public(self.rotation.status()),
            **self.event_log.snapshot(),
        }

    def unready(self) -> str:
        """Why no more should be asked of it; "": it is ready. It answers all the same."""
        if self.draining:
            return "it is draining"
        return str(self.rotation.status().get("unready") or "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:  # a websocket: none is offered
            await send({"type": "websocket.close", "code": 1000})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        loop = asyncio.get_running_loop()
        self._batcher.start(loop)
        if self.encrypted is not None:
            self.encrypted.start(loop)
        if self._observers is not None:
            self._observers.start()
        self.rotation.start()
        self.access.start(loop)
        self._pages = asyncio.ensure_future(asyncio.to_thread(self._make_pages, self))
        settling = asyncio.ensure_future(self._settle())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        settling.cancel()
        await asyncio.to_thread(self.access.stop)
        await asyncio.to_thread(self._batcher.stop)
        if self.encrypted is not None:
            await asyncio.to_thread(self.encrypted.stop)
        if self._observers is not None:
            await asyncio.to_thread(self._observers.stop)
        await asyncio.to_thread(self.rotation.stop)
        await send({"type": "lifespan.shutdown.complete"})

    async def _settle(self) -> None:
        while True:
            await asyncio.sleep(_SETTLE)
            self.event_log.settle()
            if self.encrypted is not None:
                self.encrypted.tidy()
            if self._bodies.receded():
                await asyncio.to_thread(platforms.trim_memory)

    # --- one request -----------------------------------------------------------------------------

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.options.root_path:
            scope = without(self.options.root_path, scope)
        path: str = scope["path"]
        if scope["method"] == "HEAD" and path != "/events":  # whose answer never ends
            scope, send = {**scope, "method": "GET"}, _bodiless(send)
        call = _call(path)
        began = time.perf_counter()
        metered = None
        try:
            told = single(scope["headers"])
            if path not in _HEALTH:
                self._hosts.check(told, scope)
            caller = scope[CALLER] = self.access.admit(scope)
            if path not in _FREE:
                self.access.charge(caller, 1.0)
            if path == "/v2" or path.startswith("/v2/"):
                metered = self.access.body(caller)
                receive = metered.over(receive) if metered is not None else receive
                await self._v2(scope, told, receive, send, began)
            elif self.encrypted is not None and call == "encrypted":
                metered = self.access.body(caller)
                receive = metered.over(receive) if metered is not None else receive
                await _respond(send, *await self.encrypted.answer(scope, told, receive))
            elif not path:  # the prefix alone: the page's links are relative to what ends so
                place = [(b"location", f"{self.options.root_path}/".encode())]
                await _respond(send, 308, b"", [*place, (b"content-length", b"0")])
            else:
                assert self._pages is not None
                pages = await asyncio.shield(self._pages)
                most = self.max_body if path in _LABELLED else LARGE
                await pages(scope, _BoundedReceive(receive, self.options.timeout, most), send)
        except RequestError as refusal:
            self.metrics.requests.labels(call, str(refusal.status)).inc()
            await _refuse(send, refusal)
        finally:
            if metered is not None:
                metered.release()

    async def _v2(
        self, scope: Scope, told: Told, receive: Receive, send: Send, began: float
    ) -> None:
        call = call_of(scope["path"], scope["method"], self.model.name)
        if call.what == "infer":
            await self._infer(scope, told, receive, send, call.version, began)
            return
        status, body = self._about(call, scope[CALLER])
        self.metrics.requests.labels("other", str(status)).inc()
        await _respond(send, status, body, [_JSON, (b"content-length", b"%d" % len(body))])

    def _about(self, call: Call, caller: Caller) -> tuple[int, bytes]:
        """Answer what is asked about the server or its model."""
        number: int | str = ""
        if call.version is not None or call.what in _VERSIONED:  # a probe is nobody's, and pins are
            number = self._right_version(call.version, self.versions.current(caller))
        match call.what:
            case "live":
                return 200, b""
            case "ready":
                why = self.unready()
                if why and not self.draining and not self.versions.knows(caller):
                    why = "it is not ready"
                return (
                    (503, orjson.dumps({"error": why}) if call.name else b"") if why else (200, b"")
                )
            case "config":
                told: Any = self.model.config(self.options.max_batch)
            case "stats" | "all stats":
                own = self.metrics.statistics(self.model.name, number, self._batcher.batches)
                told = {"model_stats": [own]}
            case "index":
                state = "UNAVAILABLE" if self.draining else "READY"
                reason = "it is draining" if self.draining else ""
                told = [{"name": self.model.name, "version": str(number), "state": state,
                         "reason": reason}]  # fmt: skip
            case "metadata":
                told = self.model.metadata(number)
            case _:
                from g2d import __version__

                told = {"name": "g2d", "version": __version__, "extensions": EXTENSIONS}
        return 200, orjson.dumps(told)

    async def _infer(
        self, scope: Scope, head: Told, receive: Receive, send: Send, version: str | None,
        began: float,
    ) -> None:  # fmt: skip
        caller: Caller = scope[CALLER]
        if INFER not in caller.roles:  # the gate let him through for another address
            raise RequestError(403, f"{caller.name} has not the role {INFER}")
        if self.encrypted is not None and self.encrypted.only:
            raise RequestError(403, _ONLY)
        self.metrics.in_flight.inc()
        body: Body | None = None
        try:
            async with asyncio.timeout(self.options.timeout) as limit:
                body = self._bodies.open(caller.client, limit)
                query = await self._query(head, receive, body)
                self.access.charge(caller, len(query.x) - 1.0)
                logits, numbers = await self._batcher.submit(query.x, caller.client)
        except TimeoutError:
            if body is not None and body.over:
                raise over_budget(body.over) from None
            allowed = f"within {self.options.timeout:g} s"
            if body is None or not body.whole:
                raise RequestError(408, f"the body did not arrive {allowed}") from None
            raise RequestError(503, f"no answer {allowed}; send fewer inputs, or later") from None
        except OverBudgetError as error:
            raise over_budget(error) from None
        except BusyError:
            raise RequestError(
                503, "too many inputs wait already; send again in a second"
            ) from None
        except NotFiniteError:
            raise RequestError(422, "the model has no finite answer for these inputs") from None
        except BrokenError as error:
            self.event_log.tell(Broken(str(error)))
            raise RequestError(500, "the model failed on these inputs; the log says how") from None
        finally:
            self.metrics.in_flight.dec()
        number = self._right_version(version, self.versions.of(caller, numbers))
        told = await self._shaped(logits)
        about = self.versions.parameters(caller, numbers)
        content, headers = answer(query, self.model, told, number, about)
        await _respond(send, 200, content, headers)
        self.metrics.answered(began, len(query.x))
        if self._observers is not None:
            self._observers.offer(query.x, logits, caller.client)

    async def _query(self, told: Told, receive: Receive, body: Body) -> Query:
        """Read and parse a body of bounded size; most come in one message.

        A large one is counted until it is parsed, which another thread does, so that others are
        answered meanwhile.
        """
        check_head(told, self.max_body)
        more = (told.get(HEADER_LENGTH), self.model, self.options.max_batch)
        with body:
            joined = await read_body(receive, body, self.max_body)
            try:
                if len(joined) <= LARGE:
                    return parse(joined, *more)
                return await asyncio.to_thread(parse, joined, *more)
            except MemoryError:
                raise RequestError(413, "memory does not suffice; send fewer inputs") from None

    async def _shaped(self, logits: Array) -> Array:
        """What is told of scores; beside the loop where that could hold others up."""
        if self._shape is None:
            return logits
        if len(logits) <= _FEW:
            return self._shape(logits)
        return await asyncio.to_thread(self._shape, logits)

    def _right_version(self, version: str | None, number: int | str) -> int | str:
        """A version that is asked for must be the one that answers: no retired one is served."""
        if version is not None and version != str(number):
            raise RequestError(404, f"version {version[:20]!r} is not live; {number} is")
        return number


class Encrypted(Protocol):
    """What answers `/encrypted`; `encrypted.answering.Answering` is one."""

    only: bool
    """Whether plain inputs are refused."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to answer."""
        ...

    def stop(self) -> None:
        """End once everything under way is answered; blocks."""
        ...

    def tidy(self) -> None:
        """Let go what nobody uses; called several times a second."""
        ...

    async def answer(
        self, scope: Scope, told: Told, receive: Receive
    ) -> tuple[int, bytes, Headers]:
        """Answer one request: its status, body and headers; or raise a `RequestError`."""
        ...


class _BoundedReceive:
    """What the pages receive: a body that is large or late counts as a client that has gone.

    Their framework would read it to its end, and before it looks at the token.
    """

    def __init__(self, receive: Receive, seconds: float, most: int = LARGE) -> None:
        self._receive, self._left, self._whole = receive, most, False
        self._until = asyncio.get_running_loop().time() + seconds

    async def __call__(self) -> Message:
        if self._whole:  # a stream of events waits here for its client's end
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            return {"type": "http.disconnect"}
        self._left -= len(message.get("body", b""))
        self._whole = not message.get("more_body")
        return message if self._left >= 0 else {"type": "http.disconnect"}


def _bodiless(send: Send) -> Send:
    """Let the head of an answer out alone, as HEAD asks for."""

    async def out(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return out


def _call(path: str) -> str:
    """What metrics call a request."""
    if path.startswith("/encrypted/"):
        return "encrypted"
    return "infer" if path.endswith("/infer") else "other"


async def _respond(send: Send, status: int, body: bytes, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _refuse(send: Send, refusal: RequestError) -> None:
    body = orjson.dumps({"error": refusal.text})
    headers = [_JSON, (b"content-length", b"%d" % len(body)), *refusal.headers]
    if refusal.status in (408, 413, 415):  # the rest of the body may never be read
        headers.append((b"connection", b"close"))
    await _respond(send, refusal.status, body, headers)
