"""`/alarms`: what monitors of queries have seen, for operators and observers who say who they are.

Alarms are an oracle: a client that hears of them learns which queries are noticed. So no other
address tells of them, `/status`, `/events` and the open part of `/metrics` included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI, Response
from fastapi.security import HTTPBearer

from g2d.service.http.admin import wrong
from g2d.service.http.log import to_json
from g2d.service.monitors.desk import Desk

if TYPE_CHECKING:
    from g2d.service.http.app import Service


def add_alarms(app: FastAPI, service: Service, desk: Desk) -> None:
    """Add the address; the gate asks for the admin token, or the role `observe` or `operate`."""
    described = HTTPBearer(auto_error=False, description="The admin token, or a JWT.")

    @app.get("/alarms", tags=["status"], dependencies=[Depends(described)],
             responses=wrong(401, 403, 429))  # fmt: skip
    async def alarms() -> Response:
        """Every alarm with its level and evidence, rotations, numbers, who is pinned, what answers
        under a policy, and the basins that nobody has seen."""
        status = service.rotation.status()
        told = {
            "alarms": service.event_log.alarms(),
            "rotations": service.event_log.rotations(),
            "withheld": status.get("withheld", 0),
            **desk.status(),
            **service.versions.status(),
        }
        if "growth" in status:
            told["growth"] = status["growth"]
        headers = {"cache-control": "no-store"}
        return Response(to_json(told), media_type="application/json", headers=headers)
