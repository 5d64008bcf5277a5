"""A replica without Ray: it loads ahead, swaps when told, and refuses when it is away."""

from __future__ import annotations

import asyncio
import pickle
import secrets
import shutil
import tempfile
from dataclasses import replace

import httpx
import numpy as np
import torch

import g2d
from cluster_script import BRIEF, TERMS, Script, drive, infer, until, until_status
from g2d.service.cluster.replica import LeasedApp, ReplicaSpec
from g2d.service.http.limits import AdminToken
from g2d.service.http.options import Options


def test_a_replica_loads_ahead_swaps_when_told_and_says_so(signed, x):
    script = Script(signed)

    async def work(client) -> None:
        first = await infer(client, x)
        assert first.headers["g2d-replica"] == "r1"
        assert first.json()["parameters"] == {"generation": 1}
        script.spare = 2
        await until(lambda: script.report.loaded == 2)
        assert (await infer(client, x)).json()["parameters"] == {"generation": 1}
        script.live, script.spare = 2, 0
        await until(lambda: script.report.live == 2)
        second = await infer(client, x)
        assert second.json()["parameters"] == {"generation": 2}
        with g2d.Defence.open(signed, write=False) as defence:
            logits = defence.generation(2).model()(torch.from_numpy(x))
        assert np.allclose(second.json()["outputs"][0]["data"], logits.detach().ravel(), atol=1e-5)
        assert (await client.get("/v2/models/g2d/versions/1")).status_code == 404
        status = (await client.get("/status")).json()["rotation"]
        assert (status["replica"]["answers"], status["layout"]) == (True, "secret")
        assert b"g2d_generation 2.0" in (await client.get("/metrics")).content

    drive(script, work)
    assert ("leave", "r1") in script.sent


def test_a_replica_that_was_away_refuses_what_is_retired_and_comes_back(signed, x):
    script = Script(signed)

    async def work(client) -> None:
        await until_status(client, x, 200)
        script.away = True
        refused = await until_status(client, x, 503)
        assert refused.headers["retry-after"] == "1"
        assert (await client.get("/v2/health/ready")).status_code == 503
        assert (await client.get("/v2/health/live")).status_code == 200
        script.live, script.lost, script.away = 2, True, False  # retired meanwhile; 2 is not here
        await asyncio.sleep(0.3)
        assert (await infer(client, x)).status_code == 503
        script.lost = False
        await until(lambda: script.report.live == 2)
        answer = await until_status(client, x, 200)
        assert answer.json()["parameters"] == {"generation": 2}
        script.live = 1  # a coordinator over a vault that was put back
        await until_status(client, x, 503)
        await asyncio.sleep(0.2)
        assert (await infer(client, x)).status_code == 503

    drive(script, work, terms=BRIEF)


def test_an_old_disk_brings_no_old_generation_back(signed, x, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script, seen = Script(signed), set()

    async def note(client) -> int:
        answer = await infer(client, x)
        if answer.status_code == 200:
            seen.add(answer.json()["parameters"]["generation"])
        return answer.status_code

    async def runs(client) -> None:
        await note(client)
        (mirror,) = tmp_path.glob("g2d-replica-*")
        shutil.copytree(mirror, tmp_path / "saved")
        for script.live in (2, 3):
            await until(lambda: script.report.live == script.live)
        shutil.rmtree(mirror)  # beneath a replica that runs
        shutil.copytree(tmp_path / "saved", mirror)
        seen.clear()
        for _ in range(5):
            assert await note(client) == 200
        shutil.rmtree(mirror)

    async def comes_back(client) -> None:
        assert await note(client) == 200

    drive(script, runs)
    assert seen == {3}
    (tmp_path / "saved").rename(tmp_path / "g2d-replica-old")  # its disk, after a power cut
    drive(script, comes_back)
    assert seen == {3}
    assert not (tmp_path / "g2d-replica-old").exists()


def test_a_replica_reports_all_that_it_has_answered(signed, x):
    script = Script(signed)

    async def work(client) -> None:
        for total in (len(x), 2 * len(x)):
            await infer(client, x)
            await until(lambda: script.report.inputs == total)  # noqa: B023
            script.away = True  # reports that it knows nothing of may have arrived
            await asyncio.sleep(0.05)
            script.away = False
            assert script.report.inputs == total

    drive(script, work)


def test_what_replicas_are_given_holds_no_secret():
    token = secrets.token_hex(16).encode()
    spec = ReplicaSpec(Options(allow_host=("g2d",)), TERMS, AdminToken(token))
    assert token not in pickle.dumps(spec)
    assert spec.admin_token.admits(b"Bearer " + token)


def test_an_answer_that_outlives_the_lease_does_not_leave(signed):
    class Slow:
        async def __call__(self, scope, receive, send) -> None:
            await asyncio.sleep(0.05)
            link.answers = False
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"stale"})

    class GenerationSync:
        answers = True

        def may_answer(self) -> bool:
            return self.answers

    link = GenerationSync()

    async def run() -> None:
        transport = httpx.ASGITransport(LeasedApp(Slow(), link, "r", prefix="/g2d"))
        async with httpx.AsyncClient(transport=transport, base_url="http://g2d") as client:
            for path in ("/v2/models/g2d", "/g2d/v2/models/g2d/stats", "/v2/health/ready/",
                         "/g2d/v2/repository/index"):  # fmt: skip
                link.answers = True
                answer = await client.get(path)
                assert answer.status_code == 503, path
                assert b"stale" not in answer.content

    asyncio.run(run())


def test_a_spare_that_was_changed_on_its_way_is_refused_and_the_live_one_stays(signed, x):
    script = Script(signed)
    sound = script.packed[2]
    script.packed[2] = replace(sound, weights=sound.weights[:-1] + b"\1")

    async def work(client) -> None:
        script.spare = 2
        await until(lambda: 2 in script.report.refused)
        assert (await infer(client, x)).json()["parameters"] == {"generation": 1}
        alarms = (await client.get("/status")).json()["alarms"]
        assert [alarm["kind"] for alarm in alarms] == ["refused"]
        script.packed[2], script.live = sound, 2
        await until(lambda: script.report.live == 2)
        assert not script.report.refused

    drive(script, work)


def test_admin_calls_reach_the_coordinator(signed):
    script = Script(signed)
    token = b"a-token-of-the-tests"

    async def work(client) -> None:
        assert (await client.post("/admin/rotate")).status_code == 401
        headers = {"authorization": f"Bearer {token.decode()}"}
        answer = await client.post("/admin/rotate", headers=headers)
        assert answer.json() == {"generation": 7}
        await client.post("/admin/pause", headers=headers)
        assert ("pause", True) in script.sent

    drive(script, work, token)


def test_what_watches_the_memory_ends_with_the_application():
    ended = []

    async def inner(scope, receive, send):
        assert not ended, "the service ends first"

    app = LeasedApp(inner, None, "r", lambda: ended.append("monitor"))
    asyncio.run(app({"type": "lifespan"}, None, None))
    assert ended == ["monitor"]
