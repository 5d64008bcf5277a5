"""Status, events and metrics: what anybody may read, and what costs no memory."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from g2d.rotation.scheduler import Triggers
from g2d.service.http.event_log import EventLog
from g2d.service.http.events import Broken
from g2d.service.http.log import Log
from g2d.service.http.metrics import Latencies, Metrics, blurred, public
from stand_ins import ADMIN, INFER, TOKEN, Harness, body, event, run, wait_for


@pytest.fixture
def clock(monkeypatch):
    """What latencies are measured by, standing still until it is moved."""
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def test_status_history_and_metrics(clock):
    harness = Harness(triggers=Triggers(every=100_000.0))
    harness.fake.refuses = ["signature"]

    async def work(client):
        await client.post(INFER, json=body(3))
        await asyncio.to_thread(wait_for, lambda: harness.rotation.status()["spare"] == 3)
        assert (await client.post("/admin/rotate", headers=ADMIN)).json() == {"generation": 3}
        rejected = {"generation": 9, "gates": [{"gate": "class", "reason": "r"}]}
        harness.tell("rejected", rejected)
        await client.post(INFER, json=body(3))
        clock[0] += 2  # seconds, after which latencies around a swap are complete
        await asyncio.to_thread(wait_for, lambda: not harness.event_log._swapped)
        status = (await client.get("/status")).json()
        assert status["rotation"]["generation"] == harness.live.number
        assert 99_000 < status["rotation"]["countdown"] <= 100_000
        (swap,) = status["history"]
        assert swap["reasons"] == ["demand"]
        assert set(swap["latency"]) == {"before", "during", "after"}
        assert swap["latency"]["during"]["answers"] == 2
        assert set(swap["seconds"]) == {"make", "load", "swap"}
        assert [a["reason"] for a in status["alarms"]] == ["signature"]
        assert status["rejected"][0]["generation"] == 9
        scraped = (await client.get("/metrics")).text
        for line in (
            'g2d_requests_total{call="infer",status="200"} 2.0', "g2d_inputs_total 6.0",
            "g2d_request_seconds_count 2.0", "g2d_in_flight 0.0", "g2d_swaps_total 1.0",
            f"g2d_generation {float(harness.live.number)}", "g2d_generation_age_seconds ",
            'g2d_rejected_candidates_total{gate="class"} 1.0',
            'g2d_refused_generations_total{reason="signature"} 1.0',
        ):  # fmt: skip
            assert line in scraped, line

    run(harness, work)


def test_events_begin_with_the_status_and_follow_what_happens():
    harness = Harness()

    async def work(client):
        listener_gone = asyncio.Event()
        got: asyncio.Queue = asyncio.Queue()

        async def receive():
            await listener_gone.wait()
            return {"type": "http.disconnect"}

        scope = {"type": "http", "method": "GET", "path": "/events", "headers": [],
                 "query_string": b"", "http_version": "1.1", "root_path": "", "scheme": "http",
                 "asgi": {"version": "3.0", "spec_version": "2.3"}, "client": ("127.0.0.1", 1),
                 "server": ("g2d", 80), "raw_path": b"/events"}  # fmt: skip
        stream = asyncio.ensure_future(harness.service(scope, receive, got.put))
        start = await got.get()
        assert (b"content-type", b"text/event-stream; charset=utf-8") in start["headers"]
        first = (await got.get())["body"].decode()
        assert first.startswith("event: status\ndata: {")
        assert json.loads(first.split("data: ", 1)[1])["rotation"]["generation"] == 1
        await client.post("/admin/rotate", headers=ADMIN)
        names = []
        while "swap" not in names:
            message = (await asyncio.wait_for(got.get(), 60))["body"].decode()
            names.append(message.split("\n", 1)[0].removeprefix("event: "))
            assert TOKEN not in message
        harness.event_log.close()  # what a drain does
        await asyncio.wait_for(stream, 60)
        listener_gone.set()
        assert (await client.get("/events")).status_code == 503

    run(harness, work)


def test_latencies_around_a_swap_are_kept_though_nobody_looks(clock):
    harness = Harness()

    async def work(client):
        await client.post(INFER, json=body(2))
        await client.post("/admin/rotate", headers=ADMIN)
        clock[0] += 2
        await asyncio.to_thread(wait_for, lambda: not harness.event_log._swapped)
        harness.metrics.latencies.quantiles = lambda *_: pytest.fail("computed for who looks")
        status = (await client.get("/status")).json()
        latency = status["history"][-1]["latency"]
        assert latency["before"] or latency["during"]
        assert latency["after"] is None
        (told,) = harness.event_log.latencies()
        assert told == {"generation": 2, "latency": latency}

    harness.metrics.traffic = dict
    run(harness, work)


def test_what_anybody_may_read_holds_no_paths_and_no_last_words():
    from pathlib import Path

    harness = Harness()
    event_log = EventLog(harness.metrics, Log(harness.log), dict, Path("/srv/the models/vault"))
    text = (
        "cannot read /srv/the models/vault/generations/7/weights: [Errno 13] '/home/me/x y';"
        " https://x.example/a/b stays. Its last words: Traceback /home/me secret"
    )
    event_log.tell(event("failed", {"reason": "none made", "text": text, "live": 1, "retry": 1.0}))
    event_log.tell(
        event("refused", {"reason": "digest", "text": "weights: 1/2 of /a/b/c.bin", "live": 1})
    )
    failed, refused = event_log.snapshot()["alarms"]
    assert failed["text"] == (
        "cannot read vault/generations/7/weights: [Errno 13] 'x y'; https://x.example/a/b stays."
    )
    assert refused["text"] == "weights: 1/2 of c.bin"
    assert "secret" in harness.log.getvalue()
    assert "/home/me" in harness.log.getvalue()


def test_the_moment_of_a_rotation_stays_secret():
    status = {"answered": 123_456, "late": 29.9, "due": ["demand", "queries", "schedule"]}
    assert public(status) == {"answered": 120_000, "late": 0.0, "due": ["demand"]}
    late = public(status | {"late": 31.0})
    assert (late["late"], late["due"]) == (31.0, status["due"])
    assert [public({"answered": n})["answered"] for n in (0, 9, 99, 101, 999)] == [
        0, 9, 99, 100, 990
    ]  # fmt: skip
    harness = Harness()
    plain = harness.rotation.status
    harness.rotation.status = lambda: plain() | status

    async def work(client):
        assert (await client.get("/status")).json()["rotation"]["answered"] == 120_000

    run(harness, work)
    metrics = Metrics(lambda: status | {"generation": 1, "age": 0, "paused": False})
    assert b"g2d_rotation_late_seconds 0.0" in metrics.render()


def test_the_number_of_queries_is_told_in_two_digits_but_to_the_admin():
    harness = Harness()

    async def work(client):
        for _ in range(3):
            harness.metrics.answered(time.perf_counter() - 0.25, 41)
        harness.metrics.inputs.inc(1000)
        harness.metrics.limited.inc(101)
        harness.metrics.latencies._next = 12_345
        told = (await client.get("/metrics")).text
        exact = (await client.get("/metrics", headers=ADMIN)).text
        for rough, true in (("g2d_inputs_total 1100.0", "g2d_inputs_total 1123.0"),
                             ("g2d_rate_limited_total 100.0", "g2d_rate_limited_total 101.0"),
                             ('g2d_requests_total{call="infer",status="200"} 3.0',) * 2,
                             ("g2d_request_seconds_sum 0.75\n", "g2d_request_seconds_sum 0.75"),
                             ('g2d_request_seconds_bucket{le="+Inf"} 3.0',) * 2):  # fmt: skip
            assert rough in told, rough
            assert true in exact, true
        assert "1123" not in told
        wrong = {"authorization": f"Bearer {TOKEN}x"}
        assert (await client.get("/metrics", headers=wrong)).status_code == 401
        assert (await client.get("/status")).json()["traffic"]["answers"] == 12_000
        (own,) = (await client.get("/v2/models/g2d/stats")).json()["model_stats"]
        assert own["inference_count"] == 1100
        assert own["last_inference"] == 0

    async def without(client):
        assert (await client.get("/metrics", headers=ADMIN)).status_code == 200

    run(harness, work)
    run(Harness(token=""), without)
    (exact,) = [harness.metrics.statistics("g2d", 1, 5, exact=True)]
    assert (exact["inference_count"], exact["execution_count"]) == (1123, 5)
    assert exact["inference_stats"]["success"]["count"] == 3


def test_what_is_told_of_a_growing_number_grows():
    counts = [blurred(count) for count in range(30_000)]
    assert counts == sorted(counts)
    assert (counts[99], counts[101], counts[999], counts[12_999]) == (99, 100, 990, 12_000)


def test_many_listeners_of_one_address_shut_nobody_else_out():
    harness = Harness()

    async def work(client):
        event_log = harness.event_log
        assert all(event_log.listen("192.0.2.1") for _ in range(8))
        assert event_log.listen("192.0.2.1") is None
        assert all(event_log.listen(f"192.0.2.{n}") for n in range(2, 58))
        assert event_log.listen("192.0.2.99") is None
        assert (await client.get("/events")).status_code == 503
        wrong = await client.get("/events", headers={"authorization": f"Bearer {TOKEN}x"})
        assert wrong.status_code == 401
        asked = asyncio.ensure_future(client.get("/events", headers=ADMIN))
        await asyncio.to_thread(wait_for, lambda: len(event_log._listeners) == 65)
        event_log.close()
        assert (await asked).status_code == 200

    run(harness, work)
    assert b"g2d_wrong_tokens_total 1.0" in harness.metrics.render()


def test_what_any_client_can_cause_is_counted_and_told_to_no_listener():
    async def work(client):
        listener = harness.event_log.listen()
        assert (await client.post("/admin/resume", headers=ADMIN)).status_code == 200
        for _ in range(20):
            wrong = {"authorization": f"Bearer {TOKEN}x"}
            assert (await client.post("/admin/rotate", headers=wrong)).status_code == 401
        harness.event_log.tell(Broken("the model raised ValueError"))
        assert (await client.post("/admin/pause", headers=ADMIN)).status_code == 200
        names = []
        while "paused" not in names:
            names.append((await listener.get()).split(b"\n")[0].decode().removeprefix("event: "))
        assert not {"wrong_token", "broken"} & set(names)

    harness = Harness()
    run(harness, work)
    assert b"g2d_wrong_tokens_total 20.0" in harness.metrics.render()
    assert {"wrong_token", "broken"} <= {line["event"] for line in harness.lines()}


def test_a_listener_that_does_not_keep_up_costs_no_memory():
    async def work(_):
        listener = harness.event_log.listen()
        for number in range(2000):
            harness.tell("spare", {"generation": number, "seconds": {}})
        await asyncio.sleep(0.05)
        assert listener.qsize() == 256
        harness.event_log.close()
        await asyncio.sleep(0.05)
        assert [listener.get_nowait() for _ in range(listener.qsize())][-1] is None

    harness = Harness()
    run(harness, work)


def test_quantiles_of_a_span():
    latencies = Latencies(size=100)
    assert latencies.quantiles(0, 1) is None
    for n in range(250):
        latencies.add(float(n), n / 1000)
    found = latencies.quantiles(200, 250)
    assert found["answers"] == 50
    assert 0.2 < found["p50"] < found["p99"] < 0.25
    assert latencies.quantiles(0, 100) is None  # overwritten
