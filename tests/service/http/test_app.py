"""The service over stand-ins: the protocol, batches of one generation, bodies of any kind."""

from __future__ import annotations

import asyncio
import json
import random
import time

import numpy as np
import pytest

from g2d.errors import SettingsError
from g2d.rotation.scheduler import Triggers
from g2d.service.http.options import Options
from stand_ins import INFER, MODEL, Harness, body, run


def test_the_protocol_from_end_to_end():
    async def work(client):
        assert (await client.get("/v2/health/live")).status_code == 200
        assert (await client.get("/v2/health/ready")).status_code == 200
        assert "binary_tensor_data" in (await client.get("/v2")).json()["extensions"]
        about = (await client.get("/v2/models/g2d")).json()
        assert about["versions"] == ["1"]
        assert about["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 2, 2]}]
        assert (await client.get("/v2/models/g2d/versions/1")).json() == about
        assert (await client.get("/v2/models/g2d/ready")).status_code == 200
        answer = (await client.post(INFER, json=body(2) | {"id": "a"})).json()
        assert answer["id"] == "a"
        assert answer["parameters"] == {"generation": 1}
        assert answer["outputs"][0]["shape"] == [2, 3]
        versioned = await client.post("/v2/models/g2d/versions/1/infer", json=body())
        assert versioned.json()["model_version"] == "1"

    run(Harness(), work)


def test_no_answer_mixes_generations_and_none_goes_back():
    harness = Harness(triggers=Triggers(every=0.004, jitter=0.5))
    chance = random.Random(0)

    async def client_of(client, place, rows, answers):
        own = (9 * place + 1 + np.arange(rows)) / 64  # nobody else's: exact, and each row's own
        data = np.repeat(own, 4).tolist()
        while harness.live.number < 40:
            response = await client.post(INFER, json=body(rows, data=data))
            assert response.status_code == 200
            told = response.json()
            right = np.repeat(2 * own * told["parameters"]["generation"], 3)
            assert told["outputs"][0]["data"] == right.tolist(), "a mixed or another's answer"
            assert told["model_version"] == str(told["parameters"]["generation"])
            answers.append(told["parameters"]["generation"])

    async def work(client):
        seen = [[] for _ in range(12)]
        clients = [client_of(client, i, chance.randint(1, 9), s) for i, s in enumerate(seen)]
        await asyncio.gather(*clients)
        assert all(s == sorted(s) for s in seen), "a generation went back"
        assert len({n for s in seen for n in s}) > 5

    run(harness, work)


def test_a_batch_is_what_waits_and_only_a_bad_input_fails():
    harness = Harness(Options(max_batch=8))
    sizes = []
    plain = harness.live.snapshot.predict

    def watched(x):
        sizes.append(len(x))
        time.sleep(0.01)  # meanwhile others wait: the next batch is theirs
        return plain(x)

    object.__setattr__(harness.live.snapshot, "predict", watched)

    async def work(client):
        jobs = [client.post(INFER, json=body(n % 3 + 1)) for n in range(30)]
        bad = [client.post(INFER, json=body(data=[v] * 4)) for v in (666, 3e38)]
        found = await asyncio.gather(*jobs, *bad)
        assert {r.status_code for r in found[:-2]} == {200}
        assert [r.status_code for r in found[-2:]] == [500, 422]
        assert "secret" not in found[-2].text

    run(harness, work)
    assert max(sizes) <= 8
    assert any(size > 3 for size in sizes)
    assert "secret input" not in harness.log.getvalue()


def test_what_memory_does_not_suffice_for_is_413(monkeypatch):
    def full(*_):
        raise MemoryError

    async def work(client):
        monkeypatch.setattr("g2d.service.http.app.parse", full)
        assert (await client.post(INFER, json=body())).status_code == 413

    run(Harness(), work)


def test_large_bodies_are_parsed_beside_the_loop(monkeypatch):
    import threading

    from g2d.service.http import app

    names, plain = [], app.parse

    def watched(*arguments):
        names.append(threading.current_thread() is threading.main_thread())
        return plain(*arguments)

    monkeypatch.setattr("g2d.service.http.app.parse", watched)

    async def work(client):
        for space in (0, 70_000):
            content = json.dumps(body()).encode() + b" " * space
            assert (await client.post(INFER, content=content)).status_code == 200

    run(Harness(Options(max_body=100_000)), work)
    assert names == [True, False]


def test_the_largest_body_is_what_the_task_needs_unless_told():
    async def sizes(client):
        largest = MODEL.largest(256)
        for size, status in ((largest, 200), (largest + 1, 413)):
            content = json.dumps(body()).encode().ljust(size)
            assert (await client.post(INFER, content=content)).status_code == status

    run(Harness(), sizes)
    with pytest.raises(SettingsError, match="max_body"):
        Options(max_body=3)


def test_a_body_that_never_comes_and_a_model_that_never_answers_time_out():
    import threading

    harness = Harness(Options(timeout=0.1, max_waiting=2))
    gate = threading.Event()
    object.__setattr__(
        harness.live.snapshot, "predict", lambda x: (gate.wait(60), np.ones((len(x), 3)))[1]
    )

    async def work(client):
        async def never():
            yield b"{"
            await asyncio.sleep(30)

        assert (await client.post(INFER, content=never())).status_code == 408
        slow, busy = await asyncio.gather(
            client.post(INFER, json=body(2)), client.post(INFER, json=body(1))
        )
        assert (slow.status_code, busy.status_code) == (503, 503)
        assert "wait already" in busy.text
        gate.set()
        until = time.monotonic() + 60  # on a busy machine a tenth of a second is soon over
        while (await client.post(INFER, json=body(2))).status_code != 200:
            assert time.monotonic() < until
            await asyncio.sleep(0.05)

    run(harness, work)


def test_the_description_names_every_call():
    async def work(client):
        schema = (await client.get("/openapi.json")).json()
        for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/{name}",
                     "/v2/models/{name}/ready", "/v2/models/{name}/versions/{version}/infer",
                     "/v2/models/{name}/infer", "/status", "/events", "/metrics",
                     "/admin/rotate", "/admin/pause", "/admin/resume", "/admin/alarm"):  # fmt: skip
            assert path in schema["paths"], path
        assert schema["paths"]["/admin/rotate"]["post"]["security"]
        assert (await client.get("/docs")).status_code == 200

    run(Harness(), work)


def test_thousands_of_malformed_bodies_no_5xx():
    """Mutations of a good body, JSON and binary: never a 5xx, never a hang.

    Many more, over sockets: python -m benchmarks.hostile.fuzz.
    """
    good = [json.dumps(body(2)).encode()]
    tensor = {"name": "input", "shape": [2, 1, 2, 2], "datatype": "FP32",
              "parameters": {"binary_data_size": 32}}  # fmt: skip
    head = json.dumps({"inputs": [tensor]}).encode()
    good.append(head + bytes(32))
    chance = random.Random(3)

    def mutate(data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(changed) + 1)
            kind = chance.randrange(3)
            if kind == 0 and at < len(changed):
                changed[at] = chance.randrange(256)
            elif kind == 1:
                changed[at:at] = bytes(chance.choices(range(256), k=chance.randint(1, 9)))
            else:
                del changed[at : at + chance.randint(1, 30)]
        return bytes(changed)

    async def work(client):
        for _ in range(2000):
            binary = chance.random() < 0.5
            data = mutate(good[binary])
            headers = {}
            if binary:
                length = len(head) + chance.choice((0, 0, 0, -1, 1, 40))
                headers["inference-header-content-length"] = str(length)
            response = await client.post(INFER, content=data, headers=headers)
            assert response.status_code < 500, data

    run(Harness(), work)
