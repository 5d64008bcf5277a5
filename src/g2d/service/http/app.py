"""The HTTP side: one ASGI application whose short path is inference.

`/v2/..` is answered here by hand (a router and validation cost more than a small model's forward
pass); everything else by `status_api`, which loads FastAPI after the service is ready. Limits,
counters and timeouts hold for both.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

import orjson

from g2d.rotation.control import RotationControl
from g2d.service.access.gate import Access
from g2d.service.access.identity import CALLER, INFER, Caller
from g2d.service.http.batcher import Batcher, BrokenError, BusyError, NotFiniteError
from g2d.service.http.event_log import EventLog
from g2d.service.http.events import Broken
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
from g2d.service.http.types import Asgi, Headers, Message, Receive, Scope, Send
from g2d.service.monitors.observer import ObserverQueue

_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/(infer|ready))?/?")
_FREE = ("/v2/health/live", "/v2/health/ready", "/metrics")  # no client's rate limits these
_SETTLE = 0.25  # seconds between looks for swaps whose latencies are complete
_JSON = (b"content-type", b"application/json")


class Service:
    """The ASGI application, and what its parts share.

    Args:
        pages: builds the application for everything but `/v2`; called once, after the start.
            observers: shown what was answered; None: nobody looks.
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
    ) -> None:
        self.model, self.options, self.rotation = model, options, rotation
        self.metrics, self.event_log, self.access = metrics, event_log, access
        self.max_body = options.max_body or model.largest(options.max_batch)
        self.draining = False
        self._batcher, self._make_pages, self._observers = batcher, pages, observers
        self._hosts = Hosts(options)
        self._pages: asyncio.Future[Asgi] | None = None

    def status(self) -> dict[str, Any]:
        """Everything that the page shows: what is live, what was, what failed."""
        return {
            "model": self.model.name,
            "ready": not self.draining,
            "rotation": public(self.rotation.status()),
            **self.event_log.snapshot(),
        }

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
        if self._observers is not None:
            await asyncio.to_thread(self._observers.stop)
        await asyncio.to_thread(self.rotation.stop)
        await send({"type": "lifespan.shutdown.complete"})

    async def _settle(self) -> None:
        while True:
            await asyncio.sleep(_SETTLE)
            self.event_log.settle()

    # --- one request -----------------------------------------------------------------------------

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        call = "infer" if path.endswith("/infer") else "other"
        began = time.perf_counter()
        body = None
        try:
            self._hosts.check(scope["headers"])
            caller = scope[CALLER] = self.access.admit(scope)
            if path not in _FREE:
                self.access.charge(caller, 1.0)
            body = self.access.body(caller)
            receive = body.over(receive) if body is not None else receive
            if path == "/v2" or path.startswith("/v2/"):
                await self._v2(scope, receive, send, began)
            else:
                assert self._pages is not None
                pages = await asyncio.shield(self._pages)
                await pages(scope, _BoundedReceive(receive, self.options.timeout), send)
        except RequestError as refusal:
            self.metrics.requests.labels(call, str(refusal.status)).inc()
            await _refuse(send, refusal)
        finally:
            if body is not None:
                body.release()

    async def _v2(self, scope: Scope, receive: Receive, send: Send, began: float) -> None:
        path: str = scope["path"]
        found = _MODEL.fullmatch(path)
        if found is None:
            _allow(scope, "GET")
            status, body = self._server(path.rstrip("/"))
        else:
            name, version, action = found.groups()
            if name != self.model.name:
                raise RequestError(
                    404, f"there is no model {name[:64]!r}, only {self.model.name!r}"
                )
            if action == "infer":
                _allow(scope, "POST")
                await self._infer(scope, receive, send, version, began)
                return
            _allow(scope, "GET")
            number = self._right_version(version, self.rotation.live)
            ready = b"" if not self.draining else orjson.dumps({"error": "it is draining"})
            status = 503 if self.draining and action else 200
            body = ready if action else orjson.dumps(self.model.metadata(number))
        self.metrics.requests.labels("other", str(status)).inc()
        await _respond(send, status, body, [_JSON, (b"content-length", b"%d" % len(body))])

    def _server(self, path: str) -> tuple[int, bytes]:
        """Answer what is asked about the server itself."""
        if path == "/v2/health/live":
            return 200, b""
        if path == "/v2/health/ready":
            return (503, b"") if self.draining else (200, b"")
        if path == "/v2":
            from g2d import __version__

            extensions = ["binary_tensor_data"]
            server = {"name": "g2d", "version": __version__, "extensions": extensions}
            return 200, orjson.dumps(server)
        raise RequestError(404, "there is no such address; see /docs")

    async def _infer(
        self, scope: Scope, receive: Receive, send: Send, version: str | None, began: float
    ) -> None:
        caller: Caller = scope[CALLER]
        if INFER not in caller.roles:  # the gate let him through for another address
            raise RequestError(403, f"{caller.name} has not the role {INFER}")
        self.metrics.in_flight.inc()
        body = None
        try:
            async with asyncio.timeout(self.options.timeout):
                length = _header(scope, HEADER_LENGTH)
                body = await self._body(scope, receive)
                query = await self._parse(body, length)
                self.access.charge(caller, len(query.x) - 1.0)
                logits, number = await self._batcher.submit(query.x)
        except TimeoutError:
            allowed = f"within {self.options.timeout:g} s"
            if body is None:
                raise RequestError(408, f"the body did not arrive {allowed}") from None
            raise RequestError(503, f"no answer {allowed}; send fewer inputs, or later") from None
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
        self._right_version(version, number)
        content, headers = answer(query, self.model, logits, number)
        await _respond(send, 200, content, headers)
        self.metrics.answered(began, len(query.x))
        if self._observers is not None:
            self._observers.offer(query.x, logits, caller.client)

    async def _parse(self, body: bytes, length: bytes | None) -> Query:
        """Read a body; a large one on another thread, so that others are answered meanwhile."""
        try:
            if len(body) <= LARGE:
                return parse(body, length, self.model, self.options.max_batch)
            return await asyncio.to_thread(parse, body, length, self.model, self.options.max_batch)
        except MemoryError:
            raise RequestError(413, "memory does not suffice; send fewer inputs") from None

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Read a body of bounded size; most come in one message."""
        most = self.max_body
        too_large = RequestError(413, f"the body is larger than {most} bytes; send fewer inputs")
        if _header(scope, b"content-encoding") not in (None, b"identity"):
            raise RequestError(415, "compressed bodies are not taken; send them as they are")
        length = _header(scope, b"content-length")
        if length is not None and length.isdigit() and int(length[:16]) > most:
            raise too_large
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError(400, "the client has gone")
            part: bytes = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > most:
                raise too_large
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    def _right_version(self, version: str | None, number: int) -> int:
        """A version that is asked for must be the one that answers: no retired one is served."""
        if version is not None and version != str(number):
            raise RequestError(404, f"version {version[:20]!r} is not live; {number} is")
        return number


class _BoundedReceive:
    """What the pages receive: a body that is large or late counts as a client that has gone.

    Their framework would read it to its end, and before it looks at the token.
    """

    def __init__(self, receive: Receive, seconds: float, most: int = 65_536) -> None:
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


def _header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def _allow(scope: Scope, method: str) -> None:
    if scope["method"] != method:
        text = f"this address takes {method}"
        raise RequestError(405, text, (b"allow", method.encode()))


async def _respond(send: Send, status: int, body: bytes, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _refuse(send: Send, refusal: RequestError) -> None:
    body = orjson.dumps({"error": refusal.text})
    headers = [_JSON, (b"content-length", b"%d" % len(body)), *refusal.headers]
    if refusal.status in (429, 503) and not any(key == b"retry-after" for key, _ in headers):
        headers.append((b"retry-after", b"1"))
    if refusal.status in (408, 413, 415):  # the rest of the body may never be read
        headers.append((b"connection", b"close"))
    await _respond(send, refusal.status, body, headers)
