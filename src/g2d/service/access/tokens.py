"""Bearer tokens: JWTs (RFC 7519) that an issuer signed with a key of the JWKS file (RFC 7517).

PyJWT verifies them. Only asymmetric signatures count: an algorithm is the key's, never the token's
own word for it, so that neither `none` nor an HMAC with the public key passes (RFC 8725, 3.1).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from g2d.errors import SettingsError
from g2d.service.access.certificates import UnknownError, plain
from g2d.service.access.identity import ROLES
from g2d.service.http.options import Options

LEEWAY = 10.0
"""Seconds that clocks may differ."""

_MOST = 8192  # bytes of a token; PyJWT looks at each of them several times
_KEPT = 4096  # verified tokens that are remembered
_LEAST_RSA = 2048  # bits (RFC 7518, 3.3)
_ALGORITHMS = {("RSA", None): ("RS256", "PS256"), ("EC", "P-256"): ("ES256",),
               ("OKP", "Ed25519"): ("EdDSA",)}  # fmt: skip
_SCOPE = "g2d:"  # before a role in a scope, which other services' words share


@dataclass(frozen=True)
class Key:
    """A public key, and the algorithms that it may have signed with."""

    key: Any
    algorithms: tuple[str, ...]


class Verified(NamedTuple):
    """What a token that was verified says: who, which roles, and until when (seconds of 1970)."""

    name: str
    roles: frozenset[str]
    until: float


@dataclass(eq=False)
class Keys:
    """The keys of one JWKS file, and the tokens that were verified with them, by SHA-256."""

    by_id: dict[str, Key]
    only: Key | None
    verified: OrderedDict[bytes, Verified] = field(default_factory=OrderedDict)


def looks_like_jwt(token: bytes) -> bool:
    """Whether a token has the three parts of a JWT (RFC 7515, 3.1)."""
    return token.count(b".") == 2


class Tokens:
    """Verifies tokens by the options' audience, issuer and claim of roles."""

    def __init__(self, options: Options) -> None:
        self._audience, self._issuer = options.jwt_audience, options.jwt_issuer
        self._claim = options.jwt_roles_claim

    def known(self, keys: Keys, token: bytes) -> Verified | None:
        """Return what a token says that was verified before and still holds: a digest's work."""
        found = keys.verified.get(hashlib.sha256(token).digest())
        return found if found is not None and time.time() < found.until else None

    def verify(self, keys: Keys, token: bytes) -> Verified:
        """Verify a token.

        Raises:
            UnknownError: it is not one of the issuer's for this service and this moment; why.
        """
        import jwt

        if len(token) > _MOST:
            raise UnknownError(f"the token is longer than {_MOST} bytes")
        key = None
        try:
            key = _key(keys, jwt.get_unverified_header(token))
            claims = jwt.decode(
                token, key.key, algorithms=list(key.algorithms), audience=self._audience,
                issuer=self._issuer, leeway=LEEWAY,
                options={"require": ["exp", "aud", "iss", "sub"], "verify_iat": True,
                         "verify_nbf": True},
            )  # fmt: skip
            until = float(claims["exp"]) + LEEWAY
        except jwt.PyJWTError as error:
            raise UnknownError(_why(error), dear=key is not None) from None
        except (ValueError, TypeError, OverflowError, RecursionError, KeyError):
            raise UnknownError("the token is malformed", dear=key is not None) from None
        if not claims["sub"]:
            raise UnknownError("the token's subject is empty")
        name = "jwt:" + plain(claims["sub"], "the token's subject")
        found = Verified(name, _roles(claims, self._claim), until)
        keys.verified[hashlib.sha256(token).digest()] = found
        if len(keys.verified) > _KEPT:
            keys.verified.popitem(last=False)
        return found


def _key(keys: Keys, header: dict[str, Any]) -> Key:
    name = header.get("kid")
    key = keys.only if name is None else keys.by_id.get(name)
    if key is None:
        raise UnknownError("the token's key (kid) is not known here")
    if header.get("alg") not in key.algorithms:
        raise UnknownError("the token's algorithm is not one that its key may use")
    return key


def _why(error: Exception) -> str:
    """Say in one line what is wrong with a token; nothing of what it holds."""
    import jwt

    for kind, text in (
        (jwt.ExpiredSignatureError, "the token has expired"),
        (jwt.ImmatureSignatureError, "the token is not valid yet"),
        (jwt.InvalidAudienceError, "the token is for another audience"),
        (jwt.InvalidIssuerError, "the token is of another issuer"),
        (jwt.InvalidSignatureError, "the token's signature is wrong"),
    ):
        if isinstance(error, kind):
            return text
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"the token has no {error.claim}"
    return "the token is malformed"


def _roles(claims: dict[str, Any], claim: str) -> frozenset[str]:
    """Read roles from the claim, by its name or its dotted path, and from `scope`."""
    given = claims.get(claim)
    if given is None:
        given = claims
        for part in claim.split("."):
            given = given.get(part) if isinstance(given, dict) else None
    words = _words(given)
    found = {word.removeprefix(_SCOPE) for word in words}
    scopes = _words(claims.get("scope")) + _words(claims.get("scp"))
    found |= {word.removeprefix(_SCOPE) for word in scopes if word.startswith(_SCOPE)}
    return frozenset(found & set(ROLES))


def _words(given: Any) -> list[str]:
    if isinstance(given, str):
        return given.split()
    return [word for word in given if isinstance(word, str)] if isinstance(given, list) else []


# --- the file ------------------------------------------------------------------------------------


def read_keys(data: bytes, where: str) -> Keys:
    """Read a JWKS file.

    Raises:
        SettingsError: it is none, holds a secret, or no key that can be used.
    """
    try:
        table = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{where} is not JSON: {error}") from None
    rows = table.get("keys") if isinstance(table, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SettingsError(f'{where} is no JWKS, expected {{"keys": [..]}}')
    by_id: dict[str, Key] = {}
    found = []
    for place, row in enumerate(rows, 1):
        key = _read_key(row, f"{where}: key {place}")
        if key is None:
            continue
        found.append(key)
        name = row.get("kid")
        if isinstance(name, str):
            if name in by_id:
                raise SettingsError(f"{where}: key {place} has the kid of a key above")
            by_id[name] = key
    if not found:
        usable = ", ".join(sorted({name for names in _ALGORITHMS.values() for name in names}))
        raise SettingsError(f"{where} holds no key to verify with ({usable})")
    return Keys(by_id, found[0] if len(found) == 1 else None)


def _read_key(row: dict[str, Any], where: str) -> Key | None:
    """Read one key; None: it is for something else."""
    import jwt

    if row.get("kty") == "oct":
        raise SettingsError(f"{where} is symmetric (oct): whoever verifies with it could sign, too")
    if "d" in row:
        raise SettingsError(f"{where} is private: give the public keys alone")
    if row.get("use", "sig") != "sig":
        return None
    curve = None if row.get("kty") == "RSA" else row.get("crv")
    known = isinstance(row.get("kty"), str) and (curve is None or isinstance(curve, str))
    algorithms = _ALGORITHMS.get((row["kty"], curve), ()) if known else ()
    if "alg" in row:
        algorithms = tuple(name for name in algorithms if name == row["alg"])
    if not algorithms:
        return None
    try:
        key = jwt.PyJWK(row, algorithms[0]).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        raise SettingsError(f"{where} is damaged") from None
    if row["kty"] == "RSA" and key.key_size < _LEAST_RSA:
        raise SettingsError(f"{where} has {key.key_size} bits, expected {_LEAST_RSA} or more")
    return Key(key, algorithms)
