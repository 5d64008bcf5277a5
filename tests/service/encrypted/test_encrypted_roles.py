"""What the gate grants by one spelling of an address is no more by another."""

from __future__ import annotations

import asyncio

import pytest

from echoing import echoing
from g2d.service.access.identity import CALLER, OBSERVE, Caller
from g2d.service.http.protocol import RequestError

KEYS, ASK, PLAN = "/encrypted/keys", "/encrypted/infer", "/encrypted/plan"


@pytest.mark.parametrize("address", ["10.0.0.1", "127.0.0.1"])  # no role comes of loopback
@pytest.mark.parametrize("path", [KEYS, ASK, f"{KEYS}/{'0' * 32}"])
@pytest.mark.parametrize("behind", ["/", "//", "///"])
def test_slashes_behind_an_address_give_no_observer_what_needs_a_role(
    monkeypatch, path, behind, address
):
    harness, _ = echoing(monkeypatch)
    observer = Caller("cn:o", frozenset({OBSERVE}), "certificate", address)

    async def receive():
        raise AssertionError("nothing of a body is read")

    async def asked():
        calls = harness.service.encrypted
        method = "DELETE" if path.endswith("0") else "POST"
        scope = {"type": "http", "path": path + behind, "method": method, CALLER: observer}
        with pytest.raises(RequestError) as refused:
            await calls.answer(scope, {}, receive)
        assert refused.value.status == 403
        told = await calls.answer(scope | {"path": PLAN + behind, "method": "GET"}, {}, receive)
        assert told.status == 200

    asyncio.run(asked())
