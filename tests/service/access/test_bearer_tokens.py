"""JWTs: what passes, what does not and why, and keys that change; nothing of a token is logged."""

from __future__ import annotations

import base64
import json
import random
import time
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from authority import AUDIENCE, ISSUER, Issuer, bearer, claims
from g2d.errors import SettingsError
from g2d.service.access.certificates import UnknownError
from g2d.service.access.tokens import LEEWAY, Tokens, read_keys
from g2d.service.http.options import Options
from stand_ins import INFER, Harness, body, run

NOW = int(time.time())


def opened(issuer: Issuer, claim: str = "roles"):
    options = Options(jwks="x", jwt_audience=AUDIENCE, jwt_issuer=ISSUER, jwt_roles_claim=claim)
    keys = read_keys(json.dumps(issuer.jwks).encode(), "--jwks x")
    tokens = Tokens(options)
    return lambda token: tokens.verify(keys, token.encode())


@pytest.mark.parametrize("kind", ["ES256", "EdDSA", "RS256"])
def test_a_token_of_the_issuer_says_who_and_which_roles(kind):
    issuer = Issuer(kind=kind)
    found = opened(issuer)(issuer.token("infer", "other", exp=NOW + 10**6))
    assert found == ("jwt:ann", frozenset({"infer"}), NOW + 10**6 + LEEWAY)


def test_an_rsa_key_may_sign_in_both_ways_unless_it_says_which():
    issuer = Issuer(kind="RS256")
    token = jwt.encode(claims(), issuer.keys["one"], "PS256", headers={"kid": "one"})
    assert opened(issuer)(token).name == "jwt:ann"
    rows = [issuer.public("one") | {"alg": "RS256"}]
    keys = read_keys(json.dumps({"keys": rows}).encode(), "x")
    with pytest.raises(UnknownError, match="algorithm"):
        Tokens(Options()).verify(keys, token.encode())


@pytest.mark.parametrize(
    ("claim", "changes", "roles"),
    [
        ("roles", {"roles": "infer g2d:observe"}, {"infer", "observe"}),
        ("roles", {"roles": None, "scope": "openid g2d:infer operate"}, {"infer"}),
        ("roles", {"roles": None, "scp": ["g2d:operate"]}, {"operate"}),
        ("realm_access.roles", {"realm_access": {"roles": ["observe"]}}, {"observe"}),
        ("https://x.example/roles", {"https://x.example/roles": ["infer"]}, {"infer"}),
        ("roles", {"roles": {"infer": True}}, set()),
        ("roles", {"roles": [["infer"], 1, "OPERATE"]}, set()),
        ("sub.x", {}, set()),
    ],
)
def test_roles_are_read_from_their_claim_and_from_scopes(issuer, claim, changes, roles):
    assert opened(issuer, claim)(issuer.token(**changes)).roles == roles


def _unsigned(header: dict, payload: dict, signature: bytes = b"") -> str:
    parts = [json.dumps(part).encode() for part in (header, payload)]
    return ".".join(
        base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (*parts, signature)
    )


def hostile(issuer: Issuer) -> dict[str, str]:
    """Tokens that must not pass, by what must be said of them."""
    one = issuer.keys["one"]
    public = one.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    head = {"typ": "JWT", "kid": "one"}
    # PyJWT refuses to make such a one: what an attacker would send is made by hand.
    import hashlib
    import hmac

    plain = _unsigned(head | {"alg": "HS256"}, claims("operate")).rstrip(".")
    mac = hmac.new(public, plain.encode(), hashlib.sha256).digest()
    confused = plain + "." + base64.urlsafe_b64encode(mac).rstrip(b"=").decode()
    good = issuer.token("infer")
    return {
        "algorithm (none)": _unsigned(head | {"alg": "none"}, claims("operate")),
        "algorithm (None)": _unsigned(head | {"alg": "None"}, claims("operate")),
        "algorithm (absent)": _unsigned(head, claims("operate")),
        "algorithm (hmac)": confused,
        "algorithm (list)": _unsigned(head | {"alg": ["ES256"]}, claims("operate")),
        "another audience": issuer.token(aud="other"),
        "no aud": issuer.token(aud=None),
        "another issuer": issuer.token(iss=ISSUER + "x"),
        "another issuer (part)": issuer.token(iss=ISSUER[:-1]),
        "no iss": issuer.token(iss=None),
        "expired": issuer.token(exp=NOW - 60),
        "no exp": issuer.token(exp=None),
        "malformed (exp)": issuer.token(exp=float("inf")),
        "malformed (exp, text)": issuer.token(exp="soon"),
        "not valid yet (nbf)": issuer.token(nbf=NOW + 10**6),
        "not valid yet (iat)": issuer.token(iat=NOW + 10**6),
        "no sub": issuer.token(sub=None),
        "subject is empty": issuer.token(sub=""),
        "subject (control)": issuer.token(sub="ann\nbob"),
        "subject (star)": issuer.token(sub="*"),
        "subject (long)": issuer.token(sub="a" * 600),
        "not known (kid)": jwt.encode(claims(), one, "ES256", headers={"kid": "three"}),
        "not known (no kid)": jwt.encode(claims(), one, "ES256"),
        "signature is wrong": jwt.encode(
            claims("operate"), Issuer().keys["one"], "ES256", headers={"kid": "one"}
        ),
        "signature is wrong (of two)": jwt.encode(
            claims("operate"), issuer.keys["two"], "ES256", headers={"kid": "one"}
        ),
        "malformed (crit)": jwt.encode(
            claims(), one, "ES256", headers={"kid": "one", "crit": ["x"], "x": 1}
        ),
        "malformed (cut)": good.rpartition(".")[0],
        "malformed (text)": "\xff.\xff.\xff",
        "malformed (deep)": ".".join(
            [base64.urlsafe_b64encode(b"[" * 5000).rstrip(b"=").decode(), "e30", "e30"]
        ),
        "longer than": good + "A" * 20_000,
    }


def test_a_token_that_is_not_right_is_refused_with_its_reason(issuer):
    verify = opened(issuer)
    for what, token in hostile(issuer).items():
        with pytest.raises(UnknownError) as refused:
            verify(token)
        assert what.partition(" (")[0] in str(refused.value), what


def test_any_change_of_a_token_is_refused(issuer):
    verify, token = opened(issuer), issuer.token("infer")
    alphabet = "abcXYZ019-_.="
    chance = random.Random(0)
    for _ in range(200):
        place = chance.randrange(len(token))
        changed = token[:place] + chance.choice(alphabet) + token[place + 1 :]
        if changed == token:
            continue
        with pytest.raises(UnknownError):
            verify(changed)


# --- the file of keys ----------------------------------------------------------------------------


def test_keys_that_cannot_be_used_are_said_in_one_line(issuer):
    good = issuer.public("one")
    private = json.loads(jwt.get_algorithm_by_name("ES256").to_jwk(issuer.keys["one"]))
    short = json.loads(
        jwt.get_algorithm_by_name("RS256").to_jwk(
            rsa.generate_private_key(65_537, 1024).public_key()
        )
    )
    for rows, said in (
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"{}", "no JWKS"),
        (b'{"keys": [1]}', "no JWKS"),
        (b'{"keys": []}', "no key to verify with (ES256, EdDSA, PS256, RS256)"),
        ([{"kty": "oct", "k": "c2VjcmV0", "kid": "x"}], "symmetric"),
        ([private], "private"),
        ([good, good], "kid of a key above"),
        ([good | {"x": "AAAA"}], "key 1 is damaged"),
        ([short], "1024 bits"),
        ([good | {"use": "enc"}], "no key to verify with"),
        ([good | {"alg": "ES512"}], "no key to verify with"),
        ([good | {"crv": "P-521"}], "no key to verify with"),
        ([{"kty": ["RSA"]}], "no key to verify with"),
    ):
        data = rows if isinstance(rows, bytes) else json.dumps({"keys": rows}).encode()
        with pytest.raises(SettingsError) as refused:
            read_keys(data, "--jwks f")
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)
    assert read_keys(json.dumps({"keys": [good, {"kty": "EC", "crv": "x"}]}).encode(), "f").only


def test_new_keys_count_at_once_and_old_tokens_no_more(issuer, jwks, by_token):
    harness, new = Harness(by_token, token=""), Issuer("three")
    old, fresh = bearer(issuer.token("infer")), bearer(new.token("infer", name="three"))

    async def ask(client, *headers) -> list[int]:
        answers = [await client.post(INFER, json=body(), headers=each) for each in headers]
        return [answer.status_code for answer in answers]

    async def work(client):
        access = harness.service.access
        assert await ask(client, old, old, fresh) == [200, 200, 401]
        Path(jwks).write_text("no JSON")
        access.look()
        assert await ask(client, old) == [200]
        assert not harness.event_log.snapshot()["alarms"]  # it may be half written
        for _ in range(3):
            access.look()
        (alarm,) = harness.event_log.snapshot()["alarms"]
        assert alarm["kind"] == "access"
        assert "is not JSON" in alarm["text"]
        assert await ask(client, old) == [200]
        new.write(Path(jwks))
        access.look()
        assert await ask(client, old, fresh) == [401, 200]

    run(harness, work)
    assert [line["flags"] for line in harness.lines() if line["event"] == "access_changed"] == [
        ["--jwks"]
    ]


def test_a_token_that_was_verified_holds_until_it_expires_and_not_longer(
    issuer, by_token, monkeypatch
):
    harness, verified = Harness(by_token, token=""), []
    plain = jwt.decode
    monkeypatch.setattr("jwt.decode", lambda *a, **k: verified.append(1) or plain(*a, **k))
    headers = bearer(issuer.token("infer"))

    async def work(client):
        for _ in range(3):
            assert (await client.post(INFER, json=body(), headers=headers)).status_code == 200
        assert len(verified) == 1
        later = time.time() + 700
        monkeypatch.setattr("g2d.service.access.tokens.time.time", lambda: later)
        monkeypatch.setattr("jwt.decode", _expired)
        refused = await client.post(INFER, json=body(), headers=headers)
        assert refused.status_code == 401
        assert 'error="invalid_token"' in refused.headers["www-authenticate"]

    run(harness, work)


def _expired(*_: object, **__: object) -> None:
    raise jwt.ExpiredSignatureError


def test_wrong_tokens_are_throttled_by_address_and_never_told(issuer, by_token):
    harness = Harness(by_token)
    harness.service.access._wrong.clock = lambda: 0.0
    good, wrong = bearer(issuer.token("infer")), issuer.token("infer", aud="other")

    async def work(client):
        def ask(address, headers):
            client._transport.client = (address, 1)
            return client.post(INFER, json=body(), headers=headers)

        assert (await ask("192.0.2.1", good)).status_code == 200
        for _ in range(400):  # no work on keys: the key is not known
            await ask("192.0.2.1", {"authorization": "Bearer eyJhbGciOiJFUzI1NiJ9.x.y"})
        found = [(await ask("192.0.2.1", bearer(wrong))).status_code for _ in range(310)]
        assert found == [401] * 300 + [429] * 10
        # Who is known already is not shut out by others behind the same address.
        assert (await ask("192.0.2.1", good)).status_code == 200
        unseen = bearer(issuer.token("infer", sub="bob"))
        refused = await ask("192.0.2.1", unseen)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        # A proxy on this machine stands for everybody.
        found = [(await ask("127.0.0.1", bearer(wrong))).status_code for _ in range(310)]
        assert found == [401] * 310
        assert (await ask("127.0.0.1", unseen)).status_code == 200

    run(harness, work)
    denied = [line for line in harness.lines() if line["event"] == "denied"]
    assert denied[0]["reason"] == "token"
    assert wrong not in harness.log.getvalue()
    assert wrong.split(".")[1] not in harness.log.getvalue()
    assert b'g2d_denied_total{reason="token"} 1010.0' in harness.metrics.render(exact=True)
