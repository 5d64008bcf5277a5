"""Admin calls: rotate, pause, resume, and alarms from outside. All need the token.

With `pages` FastAPI's room.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TYPE_CHECKING, Literal

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

from g2d.errors import G2DError
from g2d.service.protocol import RequestError

if TYPE_CHECKING:
    from g2d.service.app import Service


class Alarm(BaseModel):
    """What a monitor has seen. The kinds are few, for each is a label of a metric."""

    model_config = ConfigDict(strict=True, extra="forbid")
    kind: Literal["drift", "integrity", "query_attack", "other"]
    text: str = Field(max_length=500)
    rotate: bool = True


def add_admin(app: FastAPI, service: Service) -> None:
    """Add the calls that change what is served; each needs the admin token."""
    described = HTTPBearer(auto_error=False, description="The admin token.")

    async def admitted(request: Request) -> None:
        client = request.client.host if request.client else ""
        if not service.guard.open:
            raise RequestError(403, "admin calls are off: start the service with an admin token")
        if not service.guard.admits(request.headers.get("authorization", "").encode()):
            facts = {"client": client, "call": request.url.path}
            service.board.tell("wrong_token", facts)
            raise RequestError(401, "the admin token is missing or wrong")
        service.board.tell("admin", {"client": client, "call": request.url.path})

    needed = [Depends(described), Depends(admitted)]

    @app.post("/admin/rotate", tags=["admin"], dependencies=needed,
              responses={202: {}, 401: {}, 403: {}, 409: {}})  # fmt: skip
    async def rotate() -> JSONResponse:
        """Rotate as soon as a spare is ready. 202: not within the timeout; 409: refused, why."""
        return await _rotated(service.rotation.request(), service)

    @app.post("/admin/pause", tags=["admin"], dependencies=needed,
              responses={401: {}, 403: {}})  # fmt: skip
    async def pause() -> JSONResponse:
        """Suspend rotation; what falls due meanwhile waits."""
        service.rotation.pause()
        return JSONResponse({"paused": True})

    @app.post("/admin/resume", tags=["admin"], dependencies=needed,
              responses={401: {}, 403: {}})  # fmt: skip
    async def resume() -> JSONResponse:
        """Go on with rotation."""
        service.rotation.pause(False)
        return JSONResponse({"paused": False})

    @app.post("/admin/alarm", tags=["admin"], dependencies=needed,
              responses={400: {}, 401: {}, 403: {}})  # fmt: skip
    async def alarm(told: Alarm) -> JSONResponse:
        """Take an alarm from a monitor of yours, show it, and rotate away unless told not to."""
        service.rotation.alarm(told.kind, told.text, told.rotate)
        return JSONResponse({"live": service.rotation.live})


async def _rotated(asked: Future[int], service: Service) -> JSONResponse:
    try:
        async with asyncio.timeout(service.options.timeout):
            number = await asyncio.shield(asyncio.wrap_future(asked))
    except TimeoutError:
        facts = {"pending": True, "live": service.rotation.live}
        return JSONResponse(facts, 202)
    except G2DError as error:
        raise RequestError(409, str(error)) from None
    return JSONResponse({"generation": number})
