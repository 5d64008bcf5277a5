"""`/encrypted` over stand-ins: who is answered, by which generation, and what is refused how."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace

import pytest

from echoing import GOOD, OFFER, OPTIONS, EchoingProcess, answered, echoing, posted
from g2d.rotation.policy import policy_of
from g2d.rotation.scheduler import Triggers
from g2d.rotation.window import Window
from g2d.service.access.identity import INFER as INFERS
from g2d.service.access.identity import OBSERVE, needed
from g2d.service.encrypted.evaluators import BusyError
from g2d.service.http.options import Options
from g2d.settings import ServeSettings
from stand_ins import ADMIN, INFER, body, run, wait_for

KEYS, ASK, PLAN = "/encrypted/keys", "/encrypted/infer", "/encrypted/plan"


@pytest.fixture
def service(monkeypatch):
    return echoing(monkeypatch)


async def uploaded(client, blob: bytes = GOOD) -> str:
    told = await client.post(KEYS, content=blob)
    assert told.status_code == 201, told.text
    assert told.json()["bytes"] == len(blob)
    return told.json()["keys"]


async def until(what) -> None:
    await asyncio.to_thread(wait_for, what)


def test_the_plan_keys_and_an_answer(service):
    harness, evaluators = service

    async def work(client):
        plan = await client.get(PLAN)
        assert plan.text == OFFER.text
        keys = await uploaded(client)
        assert [file.name for file in evaluators.spool.iterdir()] == [keys]
        for path in (ASK, ASK + "/"):
            head, cipher = answered(await client.post(path, **posted(keys, b"secret", own="7")))
            assert cipher == b"1:secret"
            assert head["parameters"] == {"generation": 1}
            assert (head["id"], head["model_version"]) == ("7", "1")
        told = (await client.get("/metrics", headers=ADMIN)).text
        assert 'g2d_requests_total{call="encrypted",status="200"} 2.0' in told
        assert "g2d_encrypted_seconds_count 2.0" in told
        assert "g2d_encrypted_keys 1.0" in told
        assert "g2d_request_seconds_count 0.0" in told  # plain ones are measured apart
        assert (await client.delete(f"{KEYS}/{keys}")).status_code == 204
        assert list(evaluators.spool.iterdir()) == []
        assert (await client.post(ASK, **posted(keys))).status_code == 404
        assert (await client.post(INFER, json=body())).status_code == 200
        (line,) = [line for line in harness.lines() if line["event"] == "keys taken"]
        assert line["bytes"] == len(GOOD)
        assert keys not in harness.log.getvalue()  # whoever reads logs may not ask with them

    run(harness, work)
    assert not evaluators.spool.exists()


def test_plain_inputs_are_refused_where_only_ciphertexts_are_taken(monkeypatch):
    harness, _ = echoing(monkeypatch, offer=replace(OFFER, only=True))

    async def work(client):
        told = await client.post(INFER, json=body())
        assert told.status_code == 403
        assert "g2d client encrypted" in told.json()["error"]
        keys = await uploaded(client)
        assert (await client.post(ASK, **posted(keys))).status_code == 200
        assert (await client.get("/v2/models/g2d")).status_code == 200

    run(harness, work)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", PLAN, 405), ("GET", KEYS, 405), ("GET", ASK, 405), ("GET", "/encrypted/x", 404),
        ("GET", f"{KEYS}/{'0' * 32}", 405), ("DELETE", f"{KEYS}/{'0' * 32}", 404),
        ("DELETE", f"{KEYS}/..%2f..%2fetc", 404), ("HEAD", PLAN, 200),
    ],
)  # fmt: skip
def test_addresses_and_methods(service, method, path, status):
    async def work(client):
        assert (await client.request(method, path)).status_code == status

    run(service[0], work)


def test_there_is_no_such_address_where_ciphertexts_are_not_served():
    from stand_ins import Harness

    async def work(client):
        for path in (PLAN, KEYS, ASK):
            assert (await client.get(path)).status_code == 404

    run(Harness(), work)


def test_wrong_keys_and_ciphertexts_are_refused_and_leave_nothing(service):
    harness, evaluators = service

    async def work(client):
        for blob, status in ((b"", 400), (b"nonsense", 400), (bytes(OFFER.upload_bytes + 1), 413)):
            assert (await client.post(KEYS, content=blob)).status_code == status
            assert list(evaluators.spool.iterdir()) == []

        async def parts():
            for _ in range(20):  # no Content-Length says how many bytes come
                yield bytes(OFFER.upload_bytes // 10)

        assert (await client.post(KEYS, content=parts())).status_code == 413
        assert list(evaluators.spool.iterdir()) == []
        squeezed = {"content-encoding": "gzip"}
        assert (await client.post(KEYS, content=b"", headers=squeezed)).status_code == 415
        keys = await uploaded(client)
        refused = await client.post(ASK, **posted(keys, b"refuse this"))
        assert refused.status_code == 400
        assert refused.json()["error"] == "this ciphertext is of other parameters"
        unknown = await client.post(ASK, **posted("f" * 32))
        assert unknown.status_code == 404
        assert "upload them again" in unknown.json()["error"]
        foreign = await client.post(ASK, **posted(keys, plan="e" * 64))
        assert foreign.status_code == 409
        assert "another plan" in foreign.json()["error"]
        large = await client.post(ASK, **posted(keys, bytes(OFFER.query_bytes + (1 << 17))))
        assert large.status_code == 413
        assert (await client.post(ASK, **posted(keys))).status_code == 200

    run(harness, work)


def test_a_full_disk_is_said_and_a_failing_thread_goes_on(service, monkeypatch):
    harness, evaluators = service

    async def work(client):
        keys = await uploaded(client)
        with monkeypatch.context() as patched:
            patched.setattr(evaluators, "spool", evaluators.spool / "gone")
            places = harness.service.encrypted._keyring._uploads
            patched.setattr(places, "_folder", evaluators.spool / "no")
            refused = await client.post(KEYS, content=GOOD)
        assert refused.status_code == 503
        assert "cannot be kept" in refused.json()["error"]
        with monkeypatch.context() as patched:
            patched.setattr(EchoingProcess, "ask", lambda *_: 1 / 0)
            assert (await client.post(ASK, **posted(keys))).status_code == 503
        assert (await client.post(ASK, **posted(keys))).status_code == 200

    run(harness, work)


def test_what_waits_is_bounded_and_told_when_to_come_again(service):
    harness, evaluators = service

    async def work(client):
        keys = await uploaded(client)
        EchoingProcess.gate.clear()
        asked = [asyncio.ensure_future(client.post(ASK, **posted(keys, b"%d" % i)))
                 for i in range(4)]  # fmt: skip
        await until(lambda: evaluators.waiting == 4)
        told = await client.post(ASK, **posted(keys))
        assert told.status_code == 503
        assert told.headers["retry-after"] == "4"  # four of a second
        assert (await client.post(INFER, json=body())).status_code == 200  # nobody else waits
        EchoingProcess.gate.set()
        answers = [answered(response)[1] for response in await asyncio.gather(*asked)]
        assert answers == [b"1:%d" % i for i in range(4)]
        assert evaluators.waiting == 0
        assert (await client.post(ASK, **posted(keys))).status_code == 200

    run(harness, work)


def test_half_of_what_waits_may_be_one_clients(service):
    _, evaluators = service

    async def work():
        evaluators.start(asyncio.get_running_loop(), service[0].live)
        EchoingProcess.gate.clear()
        file = evaluators.spool / "a"
        file.write_bytes(GOOD)
        asked = [evaluators.submit("a", file, b"x", "10.0.0.1") for _ in range(2)]
        with pytest.raises(BusyError) as refused:
            evaluators.submit("a", file, b"x", "10.0.0.1")
        assert refused.value.own
        asked.append(evaluators.submit("a", file, b"x", "10.0.0.2"))
        EchoingProcess.gate.set()
        assert [answer for answer, _ in await asyncio.gather(*asked)] == [b"1:x"] * 3
        await asyncio.to_thread(evaluators.stop)

    asyncio.run(work())


def test_a_request_is_answered_by_one_generation_and_an_old_one_is_freed_after_its_last(service):
    harness, evaluators = service
    (process,) = evaluators._processes

    async def work(client):
        keys = await uploaded(client)
        EchoingProcess.gate.clear()
        first = asyncio.ensure_future(client.post(ASK, **posted(keys)))
        await until(lambda: evaluators._jobs.empty() and evaluators.waiting == 1)
        second = asyncio.ensure_future(client.post(ASK, **posted(keys)))
        await until(lambda: evaluators.waiting == 2)
        harness.live.swap(harness.encoded(2))
        gc.collect()
        assert sorted(process.encoded.values()) == [b"1", b"2"]  # the first is being answered by 1
        EchoingProcess.gate.set()
        heads = [answered(response) for response in await asyncio.gather(first, second)]
        assert [cipher for _, cipher in heads] == [b"1:c", b"2:c"]
        assert [head["parameters"]["generation"] for head, _ in heads] == [1, 2]
        await until(lambda: list(process.encoded.values()) == [b"2"])

    run(harness, work)


def test_under_a_policy_each_client_has_its_generation_and_sees_a_tag(monkeypatch):
    serving = ServeSettings(policy="sticky", live=2)
    harness, evaluators = echoing(monkeypatch, serving=serving)
    policy = policy_of(serving, bytes(32), lambda: 0.0)
    window = Window([harness.encoded(1), harness.encoded(2)], policy, 2)

    async def work():
        evaluators.start(asyncio.get_running_loop(), window)
        file = evaluators.spool / "a"
        file.write_bytes(GOOD)
        for client in (f"10.0.0.{i}" for i in range(8)):
            (chosen,) = window.choose(client, b"")
            told = await evaluators.submit("a", file, b"x", client)
            assert told == (b"%d:x" % chosen.number, (chosen.number,))
        await asyncio.to_thread(evaluators.stop)

    asyncio.run(work())

    async def asked(client):
        keys = await uploaded(client)
        head, _ = answered(await client.post(ASK, **posted(keys)))
        assert head["model_version"].startswith("t")
        about = {"generation": head["model_version"]}
        assert head["parameters"] == about | ({} if serving.policy == "sticky" else {"drawn": True})

    run(echoing(monkeypatch, serving=serving)[0], asked)
    serving = ServeSettings(policy="random", live=2)
    run(echoing(monkeypatch, serving=serving)[0], asked)


def test_answers_under_way_are_waited_for_when_the_service_ends(service):
    harness, evaluators = service
    answers = []

    async def work(client):
        keys = await uploaded(client)
        EchoingProcess.gate.clear()
        asked = [asyncio.ensure_future(client.post(ASK, **posted(keys))) for _ in range(3)]
        await until(lambda: evaluators.waiting == 3)
        answers.extend(asked)
        asyncio.get_running_loop().call_later(0.2, EchoingProcess.gate.set)

    async def whole():
        async with harness.client() as client:
            await work(client)
        return [answered(response)[1] for response in await asyncio.gather(*answers)]

    assert asyncio.run(whole()) == [b"1:c"] * 3


def test_an_evaluation_that_nobody_waits_for_holds_no_end_up(service, monkeypatch):
    harness, evaluators = service
    ended = []
    monkeypatch.setattr(
        EchoingProcess, "end", lambda _: ended.append(1) or EchoingProcess.gate.set()
    )

    async def work(client):
        keys = await uploaded(client)
        EchoingProcess.gate.clear()
        asked = asyncio.ensure_future(client.post(ASK, **posted(keys)))
        await until(lambda: evaluators._busy)
        asked.cancel()  # as uvicorn does once its time to drain is over

    run(harness, work)
    assert ended


def test_late_bodies_and_late_answers_end(monkeypatch):
    harness, evaluators = echoing(monkeypatch, replace(OPTIONS, encrypted_timeout=1.0))

    async def work(client):
        keys = await uploaded(client)

        async def never():
            yield GOOD
            await asyncio.sleep(30)

        late = await client.post(KEYS, content=never())
        assert late.status_code == 408
        assert [file.name for file in evaluators.spool.iterdir()] == [keys]
        EchoingProcess.gate.clear()
        late = await client.post(ASK, **posted(keys))
        assert late.status_code == 503
        EchoingProcess.gate.set()
        await until(lambda: evaluators.waiting == 0)
        assert (await client.post(ASK, **posted(keys))).status_code == 200

    run(harness, work)


def test_encrypted_inputs_count_for_the_rate_and_for_the_next_rotation(monkeypatch):
    options = replace(OPTIONS, rate=0.001, burst=4.0)
    harness, _ = echoing(monkeypatch, options, triggers=Triggers(queries=10**6))

    async def work(client):
        keys = await uploaded(client)
        assert (await client.post(ASK, **posted(keys))).status_code == 200
        assert (await client.post(ASK, **posted(keys))).status_code == 200
        assert harness.rotation.status()["answered"] == 2
        assert (await client.get(PLAN)).status_code == 200
        assert (await client.post(ASK, **posted(keys))).status_code == 429
        assert (await client.post(KEYS, content=GOOD)).status_code == 429

    run(harness, work)


def test_flags_say_more_than_a_vaults_settings():

    no, also, only = (ServeSettings(encrypted=word) for word in ("no", "also", "only"))
    assert Options().serving(only) == only
    assert Options(encrypted=True).serving(no) == also
    assert Options(encrypted_only=True).serving(also) == only


@pytest.mark.parametrize(
    ("changes", "ray", "says"),
    [
        ({"policy": "keyed"}, False, "policy is 'keyed'"),
        ({"policy": "vote"}, False, "policy is 'vote'"),
        ({"answers": "label"}, False, "answers is 'label'"),
        ({}, True, "--engine local"),
    ],
)
def test_what_cannot_be_served_encrypted_is_refused_in_one_line(changes, ray, says):
    from g2d.errors import SettingsError
    from g2d.service.http.startup import check_encrypted

    check_encrypted(ServeSettings(**changes), ray)  # nothing is asked for
    with pytest.raises(SettingsError, match=says) as refused:
        check_encrypted(ServeSettings(encrypted="also", **changes), ray)
    assert "\n" not in str(refused.value)


def test_keys_and_answers_need_the_role_of_plain_answers():
    for path in (KEYS, ASK, f"{KEYS}/{'0' * 32}", ASK + "/"):
        assert needed(path) == {INFERS}
    assert needed(PLAN) == {INFERS, OBSERVE}


def test_the_description_has_what_is_answered(service):
    async def work(client):
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert {path for path in paths if path.startswith("/encrypted")} == {
            PLAN, KEYS, ASK, KEYS + "/{keys}",
        }  # fmt: skip
        assert "413" in paths[KEYS]["post"]["responses"]

    run(service[0], work)
