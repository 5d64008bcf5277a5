"""Serving policies where it is known who asks: by identity, and numbers for observers alone."""

from __future__ import annotations

import httpx

from authority import bearer
from g2d.settings import ServeSettings
from stand_ins import ADMIN, INFER, Harness, body, run


async def asked(harness: Harness, headers: dict, address: str) -> dict:
    transport = httpx.ASGITransport(harness.service, client=(address, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://g2d") as client:
        return (await client.post(INFER, json=body(), headers=headers)).json()


def test_a_client_is_its_identity_and_observers_are_told_numbers(issuer, by_token):
    harness = Harness(by_token, serving=ServeSettings(policy="sticky", period=0.0))
    ann, bob = (bearer(issuer.token("infer", sub=name)) for name in ("ann", "bob"))
    watcher = bearer(issuer.token("infer", "observe", sub="watcher"))

    async def work(client):
        for _ in range(2):
            assert (await client.post("/admin/rotate", headers=ADMIN)).status_code == 200
        first = await asked(harness, ann, "192.0.2.1")
        tag = first["model_version"]
        assert first["parameters"] == {"generation": tag}
        assert await asked(harness, ann, "192.0.2.7") == first, "whatever the address"
        assert (await asked(harness, bob, "192.0.2.1"))["model_version"] != tag
        told = await asked(harness, watcher, "192.0.2.1")
        assert told["parameters"] == {"generation": int(told["outputs"][0]["data"][0])}
        assert told["model_version"].startswith("t")
        assert (await client.get("/status", headers=ann)).status_code == 403
        known = (await client.get("/status", headers=watcher)).json()
        assert known["rotation"]["generation"] == 3
        harness.rotation.alarm("query_attack", "t", rotate=False, client="jwt:ann")
        for _ in range(4):
            await client.post("/admin/rotate", headers=ADMIN)
        assert await asked(harness, ann, "192.0.2.9") == first, "pinned, whatever the address"

    run(harness, work)


def test_of_a_vote_observers_are_told_the_set(issuer, by_token):
    harness = Harness(by_token, serving=ServeSettings(policy="vote"))
    watcher = bearer(issuer.token("infer", "observe", sub="watcher"))

    async def work(client):
        await client.post("/admin/rotate", headers=ADMIN)
        told = await asked(harness, watcher, "192.0.2.1")
        expected = {"generation": told["model_version"], "generations": "[1,2]"}
        assert told["parameters"] == expected

    run(harness, work)


def test_a_probe_of_health_is_no_client_and_leaves_no_trace(issuer, by_token):
    harness = Harness(by_token, serving=ServeSettings(policy="sticky", period=0.0))
    seen = []
    plain = harness.live.choose
    harness.live.choose = lambda client, *more: seen.append(client) or plain(client, *more)
    ann = bearer(issuer.token("infer", sub="ann"))

    async def work(client):
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert (await client.get(path)).status_code == 200
        for path in ("/v2", "/v2/models/g2d/config", "/v2/models/g2d/ready"):
            assert (await client.get(path, headers=ann)).status_code == 200
        assert seen == []
        about = (await client.get("/v2/models/g2d", headers=ann)).json()
        told = (await client.post(INFER, json=body(), headers=ann)).json()
        assert about["versions"] == [told["model_version"]]
        assert set(seen) == {"jwt:ann"}
        wrong = await client.get("/v2/models/g2d/versions/1/ready", headers=ann)
        assert wrong.status_code == 404

    run(harness, work)
