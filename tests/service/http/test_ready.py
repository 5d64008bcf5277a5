"""Ready means that what is live should be: else 503 for who asks, and answers all the same."""

from __future__ import annotations

from stand_ins import INFER, Harness, body, run


def test_what_should_not_be_live_is_served_and_not_called_ready():
    harness = Harness()
    why = ["generation 1 has expired"]
    harness.rotation._ledger._unready = lambda: why[0]

    async def work(client) -> None:
        for path in ("/v2/health/ready", "/v2/models/g2d/ready", "/v2/models/g2d/versions/1/ready"):
            assert (await client.get(path)).status_code == 503
        assert (await client.get("/v2/models/g2d/ready")).json() == {"error": why[0]}
        told = (await client.get("/status")).json()
        assert (told["ready"], told["rotation"]["unready"]) == (False, why[0])
        for path in ("/v2/health/live", "/v2/models/g2d", "/metrics"):
            assert (await client.get(path)).status_code == 200
        assert (await client.post(INFER, json=body())).status_code == 200
        why[0] = ""
        assert (await client.get("/v2/health/ready")).status_code == 200
        assert (await client.get("/status")).json()["ready"] is True

    run(harness, work)
