"""Admin calls: only with the token, checked by us, and told when they cannot be done."""

from __future__ import annotations

import asyncio
import json
import threading
import time

from g2d.errors import GenerationError
from g2d.service.http.options import Options
from stand_ins import ADMIN, TOKEN, Harness, run, wait_for


def test_admin_calls_need_the_token():
    harness = Harness()

    async def work(client):
        for wrong in ({}, {"authorization": "Bearer "}, {"authorization": TOKEN},
                      {"authorization": f"Bearer {TOKEN}x"},
                      {"authorization": "Basic x"}):  # fmt: skip
            for call in ("rotate", "pause", "resume"):
                response = await client.post(f"/admin/{call}", headers=wrong)
                assert response.status_code == 401
        assert harness.live.number == 1
        assert (await client.post("/admin/rotate", headers=ADMIN)).json() == {"generation": 2}
        assert (await client.post("/admin/pause", headers=ADMIN)).json() == {"paused": True}
        refused = await client.post("/admin/rotate", headers=ADMIN)
        assert refused.status_code == 409
        assert "paused" in refused.json()["error"]
        assert (await client.post("/admin/resume", headers=ADMIN)).json() == {"paused": False}
        assert (await client.get("/admin/rotate", headers=ADMIN)).status_code == 405
        alarm = {"kind": "drift", "text": "inputs are not what they were"}
        assert (await client.post("/admin/alarm", json=alarm)).status_code == 401
        kind = alarm | {"kind": "of my own"}
        assert (await client.post("/admin/alarm", json=kind, headers=ADMIN)).status_code == 422
        quiet = alarm | {"rotate": False}
        assert (await client.post("/admin/alarm", json=quiet, headers=ADMIN)).json() == {"live": 2}
        assert harness.rotation.live == 2
        assert (await client.post("/admin/alarm", json=alarm, headers=ADMIN)).status_code == 200
        while harness.rotation.live == 2:
            await asyncio.sleep(0.01)

    run(harness, work)
    wrong = [line for line in harness.lines() if line["event"] == "wrong_token"]
    # Five of one second, the rest is counted (test_log says when); calls may fall into any number
    # of seconds, and what was held back in the last one is not told yet.
    told = [line.get("held_back", 0) for line in wrong]
    assert 5 <= len(wrong) <= len(wrong) + sum(told) <= 16
    assert b"g2d_wrong_tokens_total 16.0" in harness.metrics.render()
    assert TOKEN not in harness.log.getvalue()


def test_bodies_for_the_pages_are_bounded_too():
    harness = Harness(Options(timeout=0.2))
    large = b'{"kind": "drift", "text": "' + b"x" * 70_000 + b'"}'

    async def endless():
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    async def work(client):
        kind = {"content-type": "application/json"} | ADMIN
        for content in (large, endless()):
            began = time.monotonic()
            sent = client.post("/admin/alarm", content=content, headers=kind)
            assert (await sent).status_code in (400, 422)
            assert time.monotonic() - began < 60
        assert harness.rotation.live == 1

    run(harness, work)


def test_without_a_token_admin_calls_are_off():
    async def work(client):
        for headers in ({}, ADMIN, {"authorization": "Bearer "}):
            response = await client.post("/admin/rotate", headers=headers)
            assert response.status_code == 403

    run(Harness(token=""), work)


def test_a_rotation_that_cannot_be_says_why():
    harness = Harness(Options(timeout=60.0))
    harness.fake.fails = [GenerationError("class 8 lost 40 %")] * 1000  # whenever it is asked

    async def work(client):
        refused = await client.post("/admin/rotate", headers=ADMIN)
        assert (refused.status_code, refused.json()["error"]) == (409, "class 8 lost 40 %")

    run(harness, work)


def test_a_rotation_whose_spare_is_not_ready_is_pending():
    harness, may = Harness(Options(timeout=0.2)), threading.Event()
    plain = harness.fake.make
    harness.fake.make = lambda after: may.wait(60) and plain(after)

    async def work(client):
        pending = await client.post("/admin/rotate", headers=ADMIN)
        assert pending.status_code == 202
        assert pending.json() == {"pending": True, "live": 1}
        may.set()
        await asyncio.to_thread(wait_for, lambda: harness.live.number == 2)

    run(harness, work)


def test_an_alarm_is_checked_by_us_and_after_the_token():
    harness = Harness()
    kind = {"content-type": "application/json"}
    quiet = {"kind": "drift", "text": "t", "rotate": False}

    async def work(client):
        for bad in (b"", b"{", b'{"kind": NaN}', b"\xff", b"x" * 70_000):
            sent = client.post("/admin/alarm", content=bad, headers=kind)
            assert (await sent).status_code == 401
        secret = "sesame"
        for content, word in (
            (b"", "JSON"), (b"{", "JSON"), (b"\xff", "JSON"), (b"[]", "object"),
            (b'{"kind": NaN, "text": "t"}', "kind"), (b'{"kind": "drift"}', "text"),
            (b'{"kind": "drift", "text": "\\ud800"}', "JSON"),
            (json.dumps(quiet | {"kind": secret}).encode(), "kind"),
            (json.dumps(quiet | {"text": [secret]}).encode(), "text"),
            (json.dumps(quiet | {secret: float("nan")}).encode(), "member"),
            (json.dumps(quiet | {"rotate": "yes"}).encode(), "rotate"),
        ):  # fmt: skip
            answer = await client.post("/admin/alarm", content=content, headers=kind | ADMIN)
            assert answer.status_code == 422, content
            assert set(answer.json()) == {"error"}
            assert word in answer.json()["error"]
            assert secret not in answer.text
        answer = await client.post("/admin/alarm", json=quiet | {"text": "é😀"}, headers=ADMIN)
        assert answer.status_code == 200
        assert (await client.get("/status")).json()["alarms"][-1]["text"] == "é😀"

    run(harness, work)
    assert b"g2d_wrong_tokens_total 5.0" in harness.metrics.render()
