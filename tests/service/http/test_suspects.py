"""Who is pinned and who no longer, as operators say it; and what nobody else hears of that."""

from __future__ import annotations

import json

import pytest

from g2d.settings import ServeSettings
from stand_ins import ADMIN, Harness, run

ANN = "192.0.2.1"
ALARM = {"kind": "query_attack", "text": "many alike", "rotate": False, "client": ANN}


def sticky() -> Harness:
    return Harness(serving=ServeSettings(policy="sticky", period=0.0))


async def pinned(client) -> list[str]:
    told = (await client.get("/alarms", headers=ADMIN)).json()["pinned"]
    return [pin["client"] for pin in told]


async def post(client, call: str, told: dict, status: int = 200) -> dict:
    answer = await client.post(f"/admin/{call}", json=told, headers=ADMIN)
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.mark.parametrize(("level", "pins"), [("notice", []), ("warning", [ANN]),
                                             ("critical", [ANN])])  # fmt: skip
def test_a_warning_pins_whoever_raises_it_and_a_notice_pins_nobody(level, pins):
    async def work(client):
        harness.rotation.alarm("query_attack", "t", rotate=False, level=level, client=ANN)
        assert await pinned(client) == pins
        harness.live.release(ANN)
        await post(client, "alarm", ALARM | {"level": level})
        assert await pinned(client) == pins
        alarm = (await client.get("/alarms", headers=ADMIN)).json()["alarms"][-1]
        assert (alarm["client"], alarm.get("level", "warning")) == (ANN, level)

    harness = sticky()
    run(harness, work)


def test_an_operator_releases_a_client_and_the_log_says_who():
    harness = sticky()

    async def work(client):
        await post(client, "alarm", ALARM | {"client": "2001:db8::7"})
        assert await pinned(client) == ["2001:db8::/64"], "as the log names clients"
        assert await post(client, "release", {"client": "2001:db8::9"}) == {"released": True}
        assert await pinned(client) == []
        assert await post(client, "release", {"client": "2001:db8::/64"}) == {"released": False}
        for wrong in ({}, {"client": ""}, {"client": 3}, {"client": ANN, "more": 1}):
            assert set(await post(client, "release", wrong, 422)) == {"error"}
        for wrong in ({"level": "loud"}, {"client": "x" * 257}):
            assert set(await post(client, "alarm", ALARM | wrong, 422)) == {"error"}
        refused = await client.post("/admin/release", json={"client": ANN})
        assert refused.status_code == 401

    run(harness, work)
    (told,) = [line for line in harness.lines() if line["event"] == "released"]
    assert (told["client"], told["who"]) == ("2001:db8::/64", "operator")


@pytest.mark.parametrize("policy", ["global", "vote"])
def test_where_a_policy_pins_nobody_nobody_is_released(policy):
    async def work(client):
        told = await post(client, "release", {"client": ANN}, 409)
        assert told == {"error": f"the serving policy is {policy}, which pins nobody;"
                        " only sticky does"}  # fmt: skip

    run(Harness(serving=ServeSettings(policy=policy)), work)


def test_no_listener_hears_that_an_operator_or_an_outside_monitor_suspects_somebody():
    harness = Harness()  # where everybody may listen

    async def work(client):
        listener = harness.event_log.listen(ANN)
        await post(client, "alarm", ALARM)
        await post(client, "alarm", ALARM | {"kind": "drift"})
        await post(client, "release", {"client": ANN}, 409)
        await post(client, "pause", {})
        heard = b""
        while b"event: paused" not in heard:
            heard += await listener.get()
        assert b"alarm" not in heard
        assert b"release" not in heard
        told = (await client.get("/status")).json()
        assert told["alarms"] == []

    run(harness, work)
    calls = [line["call"] for line in harness.lines() if line["event"] == "admin"]
    assert calls == ["/admin/alarm", "/admin/alarm", "/admin/release", "/admin/pause"]


def test_a_red_team_report_names_no_generation_to_who_may_not_know(tmp_path, monkeypatch):
    found = {"created": "2026-01-01T00:00:00+00:00", "generations": [7, 8], "rows": []}
    monkeypatch.setattr("g2d.service.http.status_api.Findings.read", lambda _: dict(found))

    async def told(client):
        answers.append((await client.get("/redteam")).text)

    answers: list[str] = []
    for policy in ("global", "sticky"):
        run(Harness(serving=ServeSettings(policy=policy)), told)
    assert json.loads(answers[0]) == found
    assert json.loads(answers[1]) == found | {"generations": [], "hidden": True}
