"""The gate: which role each address needs, quotas by identity, and what is told of refusals."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from pathlib import Path

import pytest

from authority import bearer
from g2d.errors import SettingsError
from g2d.service.access.identity import INFER as ROLE_INFER
from g2d.service.access.identity import LABEL, OBSERVE, OPERATE, ROLES, needed
from g2d.service.http.options import Options
from stand_ins import ADMIN, INFER, MODEL, TOKEN, Harness, body, run

ROLE_OF = {
    "/v2/health/live": set(), "/v2/health/ready": set(), "/v2/health/ready/": set(),
    "/v2": {ROLE_INFER, OBSERVE}, "/v2/": {ROLE_INFER, OBSERVE},
    "/v2/models/g2d": {ROLE_INFER, OBSERVE}, "/v2/models/g2d/ready": {ROLE_INFER, OBSERVE},
    "/v2/models/infer": {ROLE_INFER, OBSERVE}, "/v2/models/g2d/stats": {ROLE_INFER, OBSERVE},
    "/v2/repository/index": {ROLE_INFER, OBSERVE}, "/v2/health": {ROLE_INFER, OBSERVE},
    "/v2/models/g2d/infer": {ROLE_INFER}, "/v2/models/g2d/infer/": {ROLE_INFER},
    "/v2/models/g2d/versions/1/infer": {ROLE_INFER}, "/v2/models/a\nb/infer": {ROLE_INFER},
    "/alarms": {OBSERVE, OPERATE}, "/alarms/": {OBSERVE, OPERATE}, "/feedback": {LABEL, OPERATE},
    "/status": {OBSERVE}, "/events": {OBSERVE}, "/metrics": {OBSERVE}, "/redteam": {OBSERVE},
    "/": {OBSERVE}, "": {OBSERVE}, "/docs": {OBSERVE}, "/openapi.json": {OBSERVE},
    "/versions": {OBSERVE}, "/none": {OBSERVE}, "/v22": {OBSERVE}, "//v2/health/live": {OBSERVE},
    "/v2/health/live\n": {ROLE_INFER, OBSERVE}, "/x" * 300: {OBSERVE},
    "/admin": {OPERATE}, "/admin/rotate": {OPERATE}, "/admin/none": {OPERATE}, "/admin/": {OPERATE},
}  # fmt: skip


def test_the_table_of_addresses():
    assert {path: set(needed(path)) for path in ROLE_OF} == ROLE_OF


async def every_address(harness: Harness) -> list[tuple[str, str]]:
    """Method and address of everything that the application answers, and of what it does not."""
    pages = await asyncio.shield(harness.service._pages)
    found = {("GET", path) for path in ROLE_OF if "\n" not in path and path.startswith("/")}
    found |= {("POST", path) for _, path in found}
    for route in pages.routes:
        assert route.path, route  # a mount would hold routes of its own
        found |= {(method, route.path) for method in route.methods}
    described = pages.openapi()["paths"]
    for path, calls in described.items():
        plain = path.replace("{name}", MODEL.name).replace("{version}", "1")
        found |= {(method.upper(), plain) for method in calls}
    assert len(found) > 30
    return sorted(found)


def test_no_address_is_open_but_what_the_table_calls_free(issuer, by_token):
    harness = Harness(by_token)
    who = {"": {}, "operator": ADMIN, "none": bearer(issuer.token("none"))}
    who |= {role: bearer(issuer.token(role)) for role in ROLES}

    async def work(client):
        harness.event_log.close()  # a stream that was admitted ends at once, with 503
        harness.fake.close()
        for (method, path), (name, headers) in itertools.product(
            await every_address(harness), who.items()
        ):
            answer = await client.request(method, path, headers=headers)
            wanted = needed(path)
            may = not wanted or name == "operator" or bool(wanted & set(name.split()))
            expected = 0 if may else 403 if name else 401
            refused = answer.status_code if answer.status_code in (401, 403) else 0
            assert refused == expected, (method, path, name, answer.text)
            if refused:
                told = answer.headers["www-authenticate"]
                assert told.startswith('Bearer realm="g2d"')
                assert ("insufficient_scope" in told) == (refused == 403)
                assert method == "HEAD" or set(answer.json()) == {"error"}
        health = await client.get("/v2/health/live", headers=bearer("nonsense"))
        assert health.status_code == 200

    run(harness, work)


def test_without_authentication_loopback_is_as_open_as_before():
    async def work(client):
        harness.event_log.close()
        for method, path in await every_address(harness):
            answer = await client.request(method, path)
            expected = 0 if OPERATE not in needed(path) else 401 if token else 403
            refused = answer.status_code if answer.status_code in (401, 403) else 0
            assert refused == expected, (method, path)
        proxied = await client.post(INFER, json=body(), headers=bearer("of a proxy's own"))
        assert proxied.status_code == 200
        own = {path: await client.get(path, headers=bearer("own")) for path in ("/metrics", "/")}
        # What the admin token shows more of is not shown to a wrong one; without one, to nobody.
        assert [each.status_code for each in own.values()] == [401 if token else 200, 200]

    for token in (TOKEN, ""):
        harness = Harness(token=token)
        run(harness, work)


def test_the_description_says_which_calls_ask_who_it_is(by_token):
    async def work(client):
        schema = (await client.get("/openapi.json", headers=ADMIN)).json()
        for path, calls in schema["paths"].items():
            for call in calls.values():
                asks = bool(needed(path))
                assert ("security" in call) == asks, path
                assert not asks or {"401", "403"} <= call["responses"].keys(), path
        assert schema["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"

    run(Harness(by_token), work)


def test_two_authorizations_are_one_too_many(issuer, by_token):
    async def work(client):
        headers = [("authorization", f"Bearer {issuer.token('infer')}")] * 2
        assert (await client.post(INFER, json=body(), headers=headers)).status_code == 400
        basic = {"authorization": "Basic YTpi"}
        assert (await client.post(INFER, json=body(), headers=basic)).status_code == 401

    run(Harness(by_token), work)


def test_an_operator_is_named_in_what_he_did_and_to_the_log_alone(issuer, by_token):
    harness = Harness(by_token)

    async def work(client):
        listener = harness.event_log.listen()
        for headers in (bearer(issuer.token("operate", sub="ann")), ADMIN):
            assert (await client.post("/admin/pause", headers=headers)).status_code == 200
        refused = await client.post("/admin/pause", headers=bearer(issuer.token("observe")))
        assert refused.status_code == 403
        assert 'scope="g2d:operate"' in refused.headers["www-authenticate"]
        told = b""
        while told.count(b"event: admin") < 2:
            told += await listener.get()
        assert b"ann" not in told
        assert b"denied" not in told

    run(harness, work)
    admin = [line for line in harness.lines() if line["event"] == "admin"]
    assert [(line["who"], line["how"], line["client"]) for line in admin] == [
        ("jwt:ann", "jwt", "127.0.0.1"), ("operator", "token", "127.0.0.1"),
    ]  # fmt: skip
    (denied,) = [line for line in harness.lines() if line["event"] == "denied"]
    assert (denied["reason"], denied["who"], denied["call"]) == ("role", "jwt:ann", "/admin/pause")


def test_observers_are_told_who_asked(issuer, by_token):
    seen = []

    async def work(client):
        harness.service._observers = type("Seen", (), {
            "offer": staticmethod(lambda x, y, client: seen.append(client)),
            "start": lambda _: None, "stop": lambda _: None,
        })()  # fmt: skip
        headers = bearer(issuer.token("infer"))
        assert (await client.post(INFER, json=body(), headers=headers)).status_code == 200

    for options, who in ((by_token, "jwt:ann"), (Options(), "127.0.0.1")):
        harness = Harness(options)
        run(harness, work)
        assert seen.pop() == who


def test_a_stream_of_events_ends_with_the_token_that_opened_it(issuer, jwks, by_token, monkeypatch):
    monkeypatch.setattr("g2d.service.http.status_api._BEAT", 0.05)
    harness = Harness(by_token)

    async def work(client):
        headers = bearer(issuer.token("observe", sub="eve"))
        stream = asyncio.ensure_future(client.get("/events", headers=headers))
        while not harness.event_log._listeners:
            await asyncio.sleep(0.01)
        Path(jwks).write_text(json.dumps({"keys": [issuer.public("two")]}))
        harness.service.access.look()
        assert (await asyncio.wait_for(stream, 60)).text.startswith("event: status")

    run(harness, work)
    assert not [line for line in harness.lines() if line["event"] == "denied"]


def test_whatever_comes_as_authorization_is_refused_in_order(issuer, by_token):
    import base64
    import random

    from g2d.service.access.quotas import Rates
    from g2d.service.http.protocol import RequestError

    chance, good = random.Random(0), issuer.token("infer").encode()
    head, payload, signature = good.split(b".")

    def packed(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    def anything() -> bytes:
        size = chance.choice((0, 1, 20, 400, 9000))
        return bytes(chance.choices(range(256), k=size))

    def changed() -> bytes:
        found = bytearray(good)
        while found == good:
            found[chance.randrange(len(found))] = chance.choice(b"aZ09-_.=\xff")
        return bytes(found)

    kinds = (
        anything,
        changed,
        lambda: b".".join(packed(anything()) for _ in range(3)),
        lambda: b".".join((packed(chance.choice((b"{}", b"[]", b"1", b"[" * 9999))), b"", b"")),
        lambda: head + b"." + packed(b'{"exp": 1e999}') + b"." + signature,
        lambda: head + b"." + payload + b"." + packed(anything()),
        lambda: b"." * chance.randint(0, 5),
    )
    harness = Harness(by_token)
    access = harness.service.access
    access._wrong = Rates(clock=iter(range(0, 10**9, 1000)).__next__)
    for place in range(350):
        word = chance.choice((b"Bearer ", b"bearer  ", b"Bearer\t", b"Basic ", b""))
        value = word + kinds[place % len(kinds)]()
        path = chance.choice((INFER, "/status", "/admin/pause", "/metrics"))
        scope = {"path": path, "headers": [(b"authorization", value)],
                 "client": (f"192.0.{place % 250}.1", 1)}  # fmt: skip
        with pytest.raises(RequestError) as refused:
            access.admit(scope)
        assert refused.value.status in (401, 429), value
        assert all(re.fullmatch(rb"[ -~]*", each) for _, each in refused.value.headers)
    assert not access._sources.keys.value.verified


def test_many_refusals_are_told_seldom_and_counted(monkeypatch):
    from g2d.service.access.gate import _Seldom
    from g2d.service.http.events import Denied

    told, now = [], [10.0]
    monkeypatch.setattr(
        "g2d.service.access.gate.time", type("T", (), {"monotonic": lambda: now[0]})
    )
    seldom = _Seldom(told.append)
    for _ in range(25):
        seldom(Denied("192.0.2.1", "/x", "nobody", "why"))
    now[0] = 11.0
    seldom(Denied("192.0.2.1", "/x", "nobody", "why"))
    assert [event.unsaid for event in told] == [None] * 10 + [15]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"client_ca": "x"}, "--client-ca needs TLS"),
        ({"client_crl": "x"}, "--client-crl revokes"),
        ({"jwks": "x"}, "--jwks needs --jwt-audience and --jwt-issuer"),
        ({"jwks": "x", "jwt_audience": "a"}, "--jwks needs --jwt-audience and --jwt-issuer"),
        ({"jwt_audience": "a"}, "give --jwks"),
        ({"access": "x"}, "give --client-ca or --jwks"),
        ({"jwks": "x", "jwt_audience": "a", "jwt_issuer": "b", "jwt_roles_claim": ""}, "claim"),
    ],
)
def test_options_that_need_others_say_so(options, said):
    with pytest.raises(SettingsError, match=re.escape(said)):
        Options(**options)


def test_what_is_wrong_is_said_before_anything_is_loaded(by_token, monkeypatch):
    from dataclasses import replace

    from g2d.errors import G2DError
    from g2d.service.http.startup import check_access

    check_access(by_token, b"0123456789abcdef")
    with pytest.raises(SettingsError, match="looks like a JWT"):
        check_access(by_token, b"0123.4567.89abcdef")
    with pytest.raises(SettingsError, match=r"cannot read --jwks none\.json: No such file"):
        check_access(replace(by_token, jwks="none.json"), None)
    with pytest.raises(SettingsError, match="cannot read --access none"):
        check_access(replace(by_token, access="none"), None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "jwt" else 1)
    with pytest.raises(G2DError, match=r"--jwks needs PyJWT: pip install 'g2d\[auth\]'"):
        check_access(by_token, None)


def test_a_cluster_refuses_what_its_proxies_would_not_ask(by_token):
    from g2d.service.http.startup import refuse_on_ray

    refuse_on_ray(Options())
    with pytest.raises(SettingsError, match="--jwks: with --engine ray nobody would be asked"):
        refuse_on_ray(by_token)


def test_who_is_exposed_without_authentication_is_warned(by_token):
    from dataclasses import replace

    from g2d.service.http.server import warn

    def said(options: Options) -> str:
        lines: list[str] = []
        warn(options, b"x", None, lambda *_, **__: None, lines.append)
        return "\n".join(lines)

    assert "EXPOSED WITHOUT AUTHENTICATION: 0.0.0.0 is open" in said(Options(host="0.0.0.0"))
    assert "AUTHENTICATION" not in said(replace(by_token, host="0.0.0.0"))
    assert "EXPOSED" not in said(Options())


def test_noise_of_strangers_hides_no_refusal_of_somebody_known(issuer, by_token):
    harness, told = Harness(by_token), []
    harness.service.access._refusals._tell = told.append
    mallory = bearer(issuer.token("infer", sub="mallory"))

    async def work(client):
        for _ in range(40):
            await client.get("/status")
        for _ in range(5):
            assert (await client.post("/admin/rotate", headers=mallory)).status_code == 403

    run(harness, work)
    assert [event.who for event in told].count("jwt:mallory") == 5
    assert len(told) < 40
