"""Quotas: queries, bytes and connections of an identity, over all its addresses."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from authority import bearer
from g2d.service.http.options import Options
from stand_ins import ADMIN, INFER, Harness, body, run


def with_access(options: Options, folder: Path, text: str) -> Harness:
    (folder / "access.toml").write_text(text)
    harness = Harness(replace(options, access=str(folder / "access.toml")))
    for rates in (harness.service.access._quotas._queries, harness.service.access._quotas._bytes):
        rates.clock = lambda: 0.0
    return harness


async def statuses(harness: Harness, headers: dict, bodies: list[dict], address: str) -> list[int]:
    transport = httpx.ASGITransport(harness.service, client=(address, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://g2d") as client:
        return [
            (await client.post(INFER, json=each, headers=headers)).status_code for each in bodies
        ]


def test_queries_are_counted_by_identity_whatever_the_address(issuer, by_token, tmp_path):
    text = (
        "[default]\nqueries = 1\nburst = 10\n[[allow]]\nidentity = 'jwt:bob'\nroles = ['infer']\n"
        "queries = 5\nburst = 20\n"
    )
    harness = with_access(by_token, tmp_path, text)
    ann, bob = bearer(issuer.token("infer")), bearer(issuer.token(sub="bob"))

    async def work(client):
        assert await statuses(harness, ann, [body(4), body(4)], "192.0.2.1") == [200, 200]
        assert await statuses(harness, ann, [body(4), body(2), body(1)], "192.0.2.2") == [
            429, 429, 429
        ]  # fmt: skip
        assert await statuses(harness, bob, [body(10), body(10), body(1)], "192.0.2.1") == [
            200, 200, 429
        ]  # fmt: skip
        limited = await client.post(INFER, json=body(4), headers=ann)
        assert int(limited.headers["retry-after"]) == 1
        assert "quota of queries" in limited.text
        assert (await client.get("/v2/health/ready")).status_code == 200
        operator = await client.post("/admin/pause", headers=ADMIN)
        assert operator.status_code == 200

    run(harness, work)
    assert b"g2d_rate_limited_total 5.0" in harness.metrics.render()


def test_bytes_are_counted_as_they_come_and_given_back(issuer, by_token, tmp_path):
    size = len(json.dumps(body()).encode())
    text = f"[default]\nbytes = {3 * size}\nunder_way = {2 * size}\n"
    harness, ann = with_access(by_token, tmp_path, text), bearer(issuer.token("infer"))
    quotas = harness.service.access._quotas

    async def work(client):
        gate = asyncio.Event()

        async def slow():
            yield json.dumps(body()).encode()
            await gate.wait()

        one = asyncio.ensure_future(client.post(INFER, content=slow(), headers=ann))
        while quotas._under_way.get("jwt:ann") != size:
            await asyncio.sleep(0.01)
        large = b" " * size + json.dumps(body()).encode()
        over = await client.post(INFER, content=large, headers=ann)
        assert over.status_code == 429
        assert "bytes under way" in over.text
        gate.set()
        assert (await one).status_code == 200
        assert quotas._under_way == {}
        again = [await client.post(INFER, content=json.dumps(body()), headers=ann) for _ in "123"]
        assert [answer.status_code for answer in again] == [200, 200, 429]
        alarm = await client.post("/admin/alarm", content=b"x", headers=ADMIN)
        assert alarm.status_code == 415
        assert quotas._under_way == {}

    run(harness, work)


def test_a_connection_counts_once_and_not_after_its_end():
    from g2d.service.access.links import Link
    from g2d.service.access.policy import Quota
    from g2d.service.access.quotas import Quotas
    from g2d.service.http.protocol import RequestError

    quotas, quota = Quotas(), Quota(connections=2)
    one, two, three = (Link(None, lambda: None) for _ in range(3))
    for link in (one, one, two):
        quotas.enter("jwt:ann", quota, link)
    with pytest.raises(RequestError, match="quota of connections") as refused:
        quotas.enter("jwt:ann", quota, three)
    assert (b"connection", b"close") in refused.value.headers
    quotas.enter("jwt:bob", quota, three)  # a proxy's connection counts for who asks on it now
    with pytest.raises(RequestError) as refused:
        quotas.enter("jwt:ann", quota, three)
    assert (b"connection", b"close") not in refused.value.headers  # bob asks on it, too
    quotas.enter("jwt:bob", quota, two)
    quotas.enter("jwt:ann", quota, three)
    assert {name: len(links) for name, links in quotas._links.items()} == {
        "jwt:ann": 2, "jwt:bob": 1,
    }  # fmt: skip
    for link in (one, two, three):
        quotas.leave(link)
    quotas.enter("jwt:ann", quota, one)  # a request that was about to be answered as it ended
    assert quotas._links == {}


def test_a_changed_access_file_counts_at_once(issuer, by_token, tmp_path):
    harness = with_access(by_token, tmp_path, "[[allow]]\nidentity = 'jwt:*'\nroles = ['infer']")
    ann = bearer(issuer.token("observe"))

    async def work(client):
        assert (await client.post(INFER, json=body(), headers=ann)).status_code == 200
        assert (await client.get("/status", headers=ann)).status_code == 200
        (tmp_path / "access.toml").write_text("[[allow]]\nidentity = 'jwt:bob'\nroles = ['infer']")
        harness.service.access.look()
        assert (await client.post(INFER, json=body(), headers=ann)).status_code == 403

    run(harness, work)
