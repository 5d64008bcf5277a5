"""`POST /feedback`: labels that come late, from whoever has the role `label` or operates."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.requests import ClientDisconnect

from g2d.core.types import Array
from g2d.errors import G2DError
from g2d.service.access.identity import CALLER, Caller
from g2d.service.http.admin import wrong
from g2d.service.http.protocol import Model, Query, RequestError, parse
from g2d.service.monitors.feedback.judge import FeedbackJudge

if TYPE_CHECKING:
    from g2d.service.http.app import Service

_OFF = "feedback is not taken here: set [monitors] feedback, and serve on one machine"
_WAITING = 4  # requests that may wait for their turn
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["inputs", "labels"],
    "properties": {
        "inputs": {"type": "array", "maxItems": 1, "items": {"type": "object"},
                   "description": "One tensor, as an infer request has it, in JSON."},
        "labels": {"type": "array", "items": {"type": ["integer", "string"]},
                   "description": "The class of each input, by number or name."},
    },
}  # fmt: skip


def add_feedback(app: FastAPI, service: Service, judge: FeedbackJudge | None) -> None:
    """Add the address; the gate asks for the role `label` or `operate`. None: it is off."""
    described = HTTPBearer(auto_error=False, description="The admin token, or a JWT.")
    waiting = asyncio.Semaphore(_WAITING)

    @app.post("/feedback", tags=["status"], dependencies=[Depends(described)],
              openapi_extra={"requestBody": {
                  "required": True, "content": {"application/json": {"schema": _SCHEMA}}}},
              responses=wrong(400, 401, 403, 409, 413, 415, 422, 429, 503))  # fmt: skip
    async def feedback(request: Request) -> JSONResponse:
        """Keep inputs with their labels, and judge by them; says how many were new."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError(415, "the body's content-type must be application/json")
        try:
            body = await request.body()
        except ClientDisconnect:
            raise RequestError(400, "the body is too large, or did not arrive in time") from None
        if judge is None:
            raise RequestError(409, _OFF)
        if waiting.locked():
            raise RequestError(503, "other feedback is being taken; send again in a second")
        async with waiting:
            most = service.options.max_batch
            query, y = await asyncio.to_thread(read, body, judge.model, most)
            caller: Caller = request.scope[CALLER]
            service.access.charge(caller, len(query.x) - 1.0)
            try:
                return JSONResponse(dict(await asyncio.to_thread(judge.take, query.x, y)))
            except G2DError as error:
                raise RequestError(503, service.event_log.plain(str(error))) from None
            except (ValueError, ArithmeticError, RuntimeError) as error:  # the model's own
                text = f"the model failed on these inputs ({type(error).__name__})"
                raise RequestError(422, text) from None


def read(body: bytes, model: Model, most: int) -> tuple[Query, Array]:
    """Read inputs (n, ...) and their classes (n,).

    Raises:
        RequestError: 400, 413 or 422; it says what was expected, and nothing of what was sent.
    """
    query = parse(body, None, model, most)
    labels = orjson.loads(body).get("labels")
    if not isinstance(labels, list) or len(labels) != len(query.x):
        raise RequestError(422, f"labels must be a list of {len(query.x)}, one for each input")
    names = {name: number for number, name in enumerate(model.labels)}
    y = np.empty(len(labels), np.int64)
    for n, label in enumerate(labels):
        number = names.get(label, -1) if isinstance(label, str) else label
        if type(number) is not int or not 0 <= number < model.classes:
            known = f", or {', '.join(model.labels[:8])}" if model.labels else ""
            raise RequestError(
                422,
                f"labels[{n}] is no class of this model; expected 0 to {model.classes - 1}{known}",
            )
        y[n] = number
    return query, y
