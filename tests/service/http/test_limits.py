"""Who may ask, how much and from where; the token; options that are refused."""

from __future__ import annotations

import pytest

from g2d.errors import SettingsError
from g2d.service.http.limits import AdminToken, Buckets
from g2d.service.http.options import Options, read_token, seconds
from stand_ins import INFER, Harness, body, run


def test_limits_of_size_and_rate():
    harness = Harness(Options(max_batch=4, max_body=2048, rate=1.0, burst=10.0))

    async def work(client):
        assert (await client.post(INFER, json=body(5))).status_code == 413
        assert (await client.post(INFER, content=b"x" * 3000)).status_code == 413

        async def parts():
            for _ in range(50):
                yield b"x" * 100

        assert (await client.post(INFER, content=parts())).status_code == 413
        packed = {"content-encoding": "gzip"}
        assert (await client.post(INFER, content=b"x", headers=packed)).status_code == 415
        assert (await client.post(INFER, json=body(4))).status_code == 200
        limited = await client.post(INFER, json=body(4))
        assert limited.status_code == 429
        assert limited.headers["retry-after"]
        assert (await client.get("/v2/health/live")).status_code == 200

    run(harness, work)
    assert b"g2d_rate_limited_total 1.0" in harness.metrics.render()


@pytest.mark.parametrize(
    ("options", "host", "origin", "status"),
    [
        ({}, "localhost", None, 200),
        ({}, "LocalHost:8000", None, 200),
        ({}, "127.0.0.1:1", None, 200),
        ({}, "[::1]:8000", "http://[::1]:8000", 200),
        ({}, "", None, 200),  # no browser sends none
        ({}, "attacker.example:8000", None, 421),
        ({}, "localhost.attacker.example", None, 421),
        ({}, "localhost@x", None, 421),
        ({}, "attacker.example", "http://attacker.example", 421),
        ({}, "localhost:8000", "http://localhost:8000", 200),
        ({}, "localhost:8000", "http://localhost:9000", 403),
        ({}, "localhost:8000", "https://attacker.example", 403),
        ({}, "localhost:8000", "null", 403),
        ({"host": "127.1.2.3"}, "127.1.2.3:8000", None, 200),
        ({"allow_host": ("Models.Example",)}, "models.example", "https://models.example", 200),
        ({"allow_host": ("models.example",)}, "localhost:8000", "https://models.example", 200),
        ({"allow_host": ("models.example",)}, "other.example", None, 421),
        ({"host": "0.0.0.0"}, "any.example", "https://any.example", 200),
        ({"host": "0.0.0.0"}, "any.example", "https://other.example", 403),
        ({"host": "0.0.0.0", "allow_host": ("a.example",)}, "b.example", None, 421),
    ],
)
def test_other_peoples_pages_reach_nothing(options, host, origin, status):
    """DNS rebinding: a page of another name, which resolves here; and blind cross-site queries."""
    harness = Harness(Options(**options), hosts=())
    headers = {"host": host} | ({"origin": origin} if origin else {})

    async def work(client):
        for _ in range(2):
            assert (await client.get("/v2/health/live", headers=headers)).status_code == 200
            for path in ("/v2", "/status", "/metrics"):
                assert (await client.get(path, headers=headers)).status_code == status
            found = await client.post(INFER, json=body(), headers=headers)
            assert found.status_code == status
            assert status == 200 or "--allow-host" in found.json()["error"] or status == 403

    run(harness, work)


@pytest.mark.parametrize("name", ["a b", "https://a", "a:1", "", "*"])
def test_hosts_that_are_allowed_are_names(name):
    with pytest.raises(SettingsError, match="allow_host"):
        Options(allow_host=(name,))


def test_an_ipv6_network_is_one_client():
    buckets = Buckets(rate=1.0, burst=1.0)
    assert buckets.take("2001:db8::1", now=0.0) == 0
    assert buckets.take("2001:db8::ffff:2", now=0.0) > 0
    assert buckets.take("2001:db8:0:1::1", now=0.0) == 0
    assert buckets.take("fe80::1%eth0", now=0.0) == 0
    for v4 in ("192.0.2.1", "192.0.2.2", "::ffff:192.0.2.3", "::ffff:192.0.2.4", ""):
        assert buckets.take(v4, now=0.0) == 0
    assert buckets.take("::ffff:192.0.2.1", now=0.0) > 0


def test_buckets_refill_are_apart_and_bounded():
    buckets = Buckets(rate=2.0, burst=4.0)
    assert [buckets.take("a", 1, now=0.0) for _ in range(4)] == [0.0] * 4
    assert buckets.take("a", 1, now=0.0) == pytest.approx(0.5)
    assert buckets.take("b", 4, now=0.0) == 0.0
    assert buckets.take("a", 1, now=0.6) == 0.0
    assert buckets.take("c", 100, now=0.0) == 0.0  # more than a burst passes once, and owes
    assert buckets.take("c", 1, now=10.0) > 30
    for number in range(20_000):
        buckets.take(str(number), now=20.0)
    assert len(buckets._left) == 10_000
    assert all(Buckets(0.0, 1.0).take("a", 10**9) == 0.0 for _ in range(3))


def test_the_guard_takes_the_token_alone():
    guard = AdminToken(b"0123456789abcdef")
    assert guard.admits(b"Bearer 0123456789abcdef")
    assert guard.admits(b"bearer 0123456789abcdef ")
    for wrong in (b"", b"Bearer", b"Bearer x", b"0123456789abcdef", b"Basic 0123456789abcdef"):
        assert not guard.admits(wrong)
    assert not AdminToken(None).admits(b"Bearer ")
    for token in (
        b"0123456789\nabcdef",
        b"0123456789abcde\0",
        b"",
        "0123456789abcd\u00e9".encode(),
    ):
        with pytest.raises(SettingsError, match="one line"):
            AdminToken(token)


def test_tokens_come_by_file_or_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("G2D_ADMIN_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("G2D_ADMIN_TOKEN", "0123456789abcdef")
    assert read_token(None) == b"0123456789abcdef"
    file = tmp_path / "token"
    file.write_text("fedcba9876543210\n")
    file.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        read_token(file)
    file.chmod(0o600)
    assert read_token(file) == b"fedcba9876543210"
    file.write_text("short")
    with pytest.raises(SettingsError, match="too weak") as error:
        read_token(file)
    assert "short" not in str(error.value).replace(str(file), "")
    for two in ("0123456789abcdef\nfedcba9876543210", "0123456789\tabcdef", "0123456789abcdef\x00"):
        file.write_text(two)
        with pytest.raises(SettingsError, match="one line"):
            read_token(file)
    monkeypatch.setenv("G2D_ADMIN_TOKEN", "0123456789abcdef\udcff")  # a byte that is not UTF-8
    with pytest.raises(SettingsError, match="one line"):
        read_token(None)
    with pytest.raises(SettingsError, match="cannot read"):
        read_token(tmp_path / "absent")


@pytest.mark.parametrize(
    ("text", "value"),
    [("60s", 60), ("500ms", 0.5), ("5m", 300), ("1h", 3600), ("1d", 86400), ("0", 0), ("1.5", 1.5)],
)
def test_time_spans(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 week", "1e3", "nan", "١s"])
def test_what_is_no_time_span(text):
    with pytest.raises(SettingsError, match="not a time span"):
        seconds(text)


def test_options_refuse_and_know_when_they_expose():
    for host in ("127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"):
        assert not Options(host=host).exposed
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        assert Options(host=host).exposed
    with pytest.raises(SettingsError, match="both files"):
        Options(tls_cert="x.pem")
    with pytest.raises(SettingsError, match="name"):
        Options(name="a/b")
    for prefix in ("g2d", "/", "/g2d/", "/a b", "//a", "/a?b"):
        with pytest.raises(SettingsError, match="root_path"):
            Options(root_path=prefix)
