"""Everything but inference: status, live events, metrics, the pages; `admin` adds its calls.

With `admin`, the only file that knows FastAPI; imported after the service is ready, for FastAPI's
import costs a third of a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from g2d import __version__
from g2d.service.access.identity import CALLER, OPERATE, Caller
from g2d.service.http.admin import add_admin, wrong
from g2d.service.http.alarms_api import add_alarms
from g2d.service.http.feedback_api import add_feedback
from g2d.service.http.log import to_json
from g2d.service.http.metrics import CONTENT_TYPE_LATEST, public
from g2d.service.http.openapi import merge
from g2d.service.http.protocol import RequestError
from g2d.service.http.redteam_summary import Findings
from g2d.service.http.types import Scope
from g2d.service.http.versions import hidden
from g2d.service.http.web_page import add_pages
from g2d.service.monitors.desk import Desk

if TYPE_CHECKING:
    from g2d.service.http.app import Service

_BEAT = 2.0  # seconds between the ticks of a stream of events; they keep it open, too


def build(service: Service, results: Path | None = None, desk: Desk | None = None) -> FastAPI:
    """Build the application for everything but `/v2`.

    Args:
        results: what `g2d attack` wrote or will write, for the page. desk: the monitors.
    """
    app = FastAPI(
        title="G2D",
        version=__version__,
        description="Inference whose parameters rotate: Open Inference Protocol v2.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # to an absolute address, without a proxy's prefix
    )
    add_pages(app)
    _add_reading(app, service, Findings(results))
    add_admin(app, service)
    desk = desk or Desk()
    add_alarms(app, service, desk)
    add_feedback(app, service, desk.feedback)

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        headers = {name.decode(): value.decode() for name, value in error.headers}
        return JSONResponse({"error": error.text}, error.status, headers)

    plain = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = merge(
                plain(), service.model, service.options, service.versions.hidden,
                service.encrypted is not None,
            )  # fmt: skip
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]
    described()  # in this thread, which has time, not in the first request for it
    return app


def _add_reading(app: FastAPI, service: Service, findings: Findings) -> None:
    @app.get("/status", tags=["status"])
    async def status(request: Request) -> Response:
        """What is live, what comes next, and what happened."""
        return _json(_whole(service, findings, request.scope[CALLER]))

    @app.get("/redteam", tags=["status"])
    def redteam(request: Request) -> Response:  # no coroutine: it may read a megabyte
        """What the last `g2d attack` on this vault found; null: nothing yet."""
        found = findings.read()
        if found and "generations" in found and not service.versions.knows(request.scope[CALLER]):
            found = {**found, "generations": [], "hidden": True}
        if found and "error" in found:
            found = {"error": service.event_log.plain(found["error"])}
        return _json(found)

    @app.get("/metrics", tags=["status"], response_class=Response, responses=wrong(401, 429))
    async def metrics(request: Request) -> Response:
        """Counters for Prometheus; those of queries in two digits, exact for who says who asks."""
        exact = bool(request.scope[CALLER].name)
        told = service.metrics.render(exact, not service.versions.knows(request.scope[CALLER]))
        return Response(told, media_type=CONTENT_TYPE_LATEST)

    @app.get("/events", tags=["status"], response_class=StreamingResponse,
             responses=wrong(401, 429, 503))  # fmt: skip
    async def events(request: Request) -> Response:
        """Server-sent events: `status` first, then what happens; a `tick` every 2 seconds.

        Who operates is never refused for too many listeners.
        """
        caller: Caller = request.scope[CALLER]
        quiet = not service.versions.knows(caller)
        listener = service.event_log.listen(caller.client, OPERATE in caller.roles, quiet)
        if listener is None:
            raise RequestError(503, "too many listen already, or the service is ending")
        return StreamingResponse(
            _stream(service, findings, listener, request.scope),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )


def _json(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")


def _whole(service: Service, findings: Findings, caller: Caller) -> dict[str, Any]:
    told = service.status() | _moment(service, findings)
    return told if service.versions.knows(caller) else hidden(told)


def _moment(service: Service, findings: Findings) -> dict[str, Any]:
    """What changes all the time, in few bytes."""
    return {
        "now": time.time(),
        "rotation": public(service.rotation.status()),
        **service.versions.status(),
        "traffic": service.metrics.traffic(),
        "admin": service.access.operable,
        "redteam": findings.version(),
    }


async def _stream(
    service: Service, findings: Findings, listener: asyncio.Queue[bytes | None], scope: Scope
) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    try:
        caller: Caller = scope[CALLER]
        yield b"event: status\ndata: %b\n\n" % to_json(_whole(service, findings, caller))
        beat = loop.time() + _BEAT
        while True:
            try:
                async with asyncio.timeout_at(beat):
                    message = await listener.get()
                if message is None:
                    return
                yield message
            except TimeoutError:
                pass  # nothing happened until the beat, which is told below
            if loop.time() >= beat:  # also where events never cease
                if not service.access.still(scope, caller):
                    return
                tick = _moment(service, findings) | {"latencies": service.event_log.latencies()}
                tick = tick if service.versions.knows(caller) else hidden(tick)
                yield b"event: tick\ndata: %b\n\n" % to_json(tick)
                beat = loop.time() + _BEAT
    finally:
        service.event_log.leave(listener)
