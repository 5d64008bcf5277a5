"""A coordinator writes what happens to its own log, too: its operator may not be listening."""

from __future__ import annotations

import asyncio
import io
import json
import shutil

from g2d.service.cluster.coordinator import Coordinator, Plan
from g2d.service.cluster.lease import ReplicaReport, Terms
from g2d.service.http.log import Log
from g2d.service.http.options import Options
from stand_ins import Fake


def test_what_happens_is_written_to_the_coordinators_log(tiny_vault, tmp_path, monkeypatch):
    vault, lines = tmp_path / "vault", io.StringIO()
    shutil.copytree(tiny_vault, vault)
    monkeypatch.setattr("g2d.service.assembly.Worker", lambda *_: Fake(live=1))
    monkeypatch.setattr("g2d.service.cluster.coordinator.Log", lambda: Log(lines))
    coordinator = Coordinator(Plan(vault, Options(), Terms(beat=0.05)), id)

    async def life() -> None:
        await coordinator.watch(ReplicaReport("a replica", live=1))
        await coordinator.alarm("drift", "seen by a replica", False)
        await coordinator.stop()

    asyncio.run(life())
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    expected = {"replica", "alarm", "stopping"}
    assert expected <= {line["event"] for line in told}
    (alarm,) = [line for line in told if line["event"] == "alarm"]
    assert (alarm["kind"], alarm["text"], alarm["level"]) == (
        "drift", "seen by a replica", "warning"
    )  # fmt: skip
