"""Admin calls: rotate, pause, resume, alarms from outside, the end of a pin. All need `operate`.

Only this file and `status_api` know FastAPI.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

from g2d.errors import G2DError
from g2d.rotation.events import Level
from g2d.service.access.identity import CALLER, OPERATE, Caller
from g2d.service.http.events import Admin, AdminUntold, Released
from g2d.service.http.limits import client_of
from g2d.service.http.openapi import ERROR
from g2d.service.http.protocol import RequestError

if TYPE_CHECKING:
    from g2d.service.http.app import Service

_JSON = "application/json"
_NAME = 256  # characters of a client's name
_UNTOLD = ("/admin/alarm", "/admin/release")  # calls that follow upon what is seen of a client


class AlarmRequest(BaseModel):
    """What a monitor has seen. The kinds are few, for each is a label of a metric."""

    model_config = ConfigDict(strict=True, extra="forbid", title="Alarm")
    kind: Literal["drift", "integrity", "query_attack", "other"]
    text: str = Field(max_length=500)
    rotate: bool = True
    level: Level = "warning"
    client: str = Field(
        "",
        max_length=_NAME,
        description="Whose queries it is about, as alarms and the log name clients.",
    )


class ReleaseRequest(BaseModel):
    """Who may move again before the pin ends."""

    model_config = ConfigDict(strict=True, extra="forbid", title="Release")
    client: str = Field(min_length=1, max_length=_NAME, description="As `/alarms` names it.")


Asked = TypeVar("Asked", bound=BaseModel)


def add_admin(app: FastAPI, service: Service) -> None:
    """Add the calls that change what is served; each needs the role `operate`."""
    described = HTTPBearer(
        auto_error=False, description="The admin token, or a JWT with the role operate."
    )

    async def admitted(request: Request) -> None:
        caller: Caller = request.scope[CALLER]
        if OPERATE not in caller.roles:  # the gate let him through for another address
            raise RequestError(403, f"{caller.name} has not the role {OPERATE}")
        path = request.scope["path"]
        told = AdminUntold if path in _UNTOLD else Admin
        service.event_log.tell(told(caller.address, path, **caller.facts()))

    needed = [Depends(described), Depends(admitted)]

    @app.post("/admin/rotate", tags=["admin"], dependencies=needed,
              responses={202: {}, **wrong(401, 403, 409, 429)})  # fmt: skip
    async def rotate() -> JSONResponse:
        """Rotate as soon as a spare is ready. 202: not within the timeout; 409: refused, why."""
        return await _rotated(service.rotation.request(), service)

    @app.post("/admin/pause", tags=["admin"], dependencies=needed,
              responses=wrong(401, 403, 429))  # fmt: skip
    async def pause() -> JSONResponse:
        """Suspend rotation; what falls due meanwhile waits."""
        service.rotation.pause()
        return JSONResponse({"paused": True})

    @app.post("/admin/resume", tags=["admin"], dependencies=needed,
              responses=wrong(401, 403, 429))  # fmt: skip
    async def resume() -> JSONResponse:
        """Go on with rotation."""
        service.rotation.pause(False)
        return JSONResponse({"paused": False})

    _add_suspects(app, service, needed)


def _add_suspects(app: FastAPI, service: Service, needed: list[Any]) -> None:
    """Add the calls that say who is under suspicion, and who is no longer."""

    # Bodies are read here, not by FastAPI: it would read them before the token.
    @app.post("/admin/alarm", tags=["admin"], dependencies=needed,
              openapi_extra=_body(AlarmRequest),
              responses=wrong(400, 401, 403, 415, 422, 429))  # fmt: skip
    async def alarm(request: Request) -> JSONResponse:
        """Take an alarm from a monitor of yours, show it, and rotate away unless told not to.

        With a client it is one of those of queries: no client hears of it. Under the policy
        `sticky` that client is pinned, unless the level is `notice`.
        """
        told = await _read(request, AlarmRequest)
        client = client_of(told.client)
        service.rotation.alarm(told.kind, told.text, told.rotate, level=told.level, client=client)
        return JSONResponse({"live": service.rotation.live})

    @app.post("/admin/release", tags=["admin"], dependencies=needed,
              openapi_extra=_body(ReleaseRequest),
              responses=wrong(400, 401, 403, 409, 415, 422, 429))  # fmt: skip
    async def release(request: Request) -> JSONResponse:
        """Let a client move again that an alarm has pinned. `released`: whether it was pinned."""
        client = client_of((await _read(request, ReleaseRequest)).client)
        caller: Caller = request.scope[CALLER]
        if released := service.versions.release(client):
            service.event_log.tell(Released(client, caller.name or None))
        return JSONResponse({"released": released})


def _body(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    return {"requestBody": {"required": True, "content": {_JSON: {"schema": schema}}}}


async def _read(request: Request, model: type[Asked]) -> Asked:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _JSON:
        raise RequestError(415, f"the body's content-type must be {_JSON}")
    try:
        return model.model_validate_json(await request.body())
    except ClientDisconnect:
        raise RequestError(400, "the body is too large, or did not arrive in time") from None
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise RequestError(422, _what(model, wrong["loc"], wrong["type"], wrong["msg"])) from None


def _what(model: type[BaseModel], place: tuple[int | str, ...], kind: str, text: str) -> str:
    """Say which field is wrong and why; nothing of what was sent, names of its members included."""
    if kind == "json_invalid":
        return "the body is not JSON"
    if not place:
        return "the body must be a JSON object"
    name = str(place[0])
    if name not in model.model_fields:
        return f"a member is unknown; they are {', '.join(model.model_fields)}"
    return f"{name}: {text}"


def wrong(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe refusals for the OpenAPI description, by status."""
    body = {"content": {_JSON: {"schema": ERROR}}}
    return {status: {"description": "Refused", **body} for status in statuses}


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
