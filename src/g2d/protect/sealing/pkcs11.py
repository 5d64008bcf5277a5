"""A custodian that is a hardware security module, or a smart card: a key that never leaves it.

Named as RFC 7512 has it: `pkcs11:token=LABEL;object=LABEL?module-path=FILE&pin-source=FILE`. The
key is AES of 256 bits, sensitive and not extractable; it wraps by AES-GCM inside the token, the
context as associated data (PKCS#11 v2.40, CKM_AES_GCM). A PIN is never an argument: it stands in a
file of mode 600 or in $G2D_PKCS11_PIN. The library that `module-path` names is loaded into this
process, so it is never taken from a vault. Knows no torch.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from g2d.core.files import read_text
from g2d.core.platforms import others_may_read
from g2d.errors import SealingError, nearest

__all__ = ["MODULE", "PIN", "Pkcs11Custodian", "Place", "from_url", "make"]

MODULE, PIN = "PKCS11_MODULE_PATH", "G2D_PKCS11_PIN"
"""The variables that name the module, and hold the PIN, where the name of a custodian does not."""

_NONCE, _KEY = 12, 32
_FOREIGN = "it was wrapped by another key, for something else, or changed"
_PATH, _QUERY = ("token", "object"), ("module-path", "pin-source")
_MOST = 1 << 10


@dataclass(frozen=True)
class Place:
    """Where a key is.

    Attributes:
        token, label: labels of the token and of the key in it. module: the library that speaks to
            it. pin: what opens it; "": it takes none.
    """

    token: str
    label: str
    module: str
    pin: str = field(default="", repr=False)

    @classmethod
    def of(cls, rest: str) -> Place:
        """Read what follows `pkcs11:`.

        Raises:
            SealingError: it is no such name, or no module is named, or the PIN cannot be read.
        """
        path, _, query = rest.partition("?")
        named = _attributes(path, ";", _PATH)
        more = _attributes(query, "&", _QUERY)
        if missing := [name for name in _PATH if not named.get(name)]:
            raise SealingError(
                f"'pkcs11:{path}' lacks {' and '.join(missing)}: write"
                " 'pkcs11:token=LABEL;object=LABEL?module-path=FILE&pin-source=FILE'"
            )
        module = more.get("module-path") or os.environ.get(MODULE, "")
        if not module:
            raise SealingError(
                f"'pkcs11:{path}' names no module: add '?module-path=FILE' (the library of the"
                f" token's maker), or set {MODULE}"
            )
        source = more.get("pin-source", "")
        return cls(named["token"], named["object"], module, _pin(source))


class Pkcs11Custodian:
    """A key in a token; it is logged in for each wrapping and unwrapping, and out again."""

    kind = "pkcs11"

    def __init__(self, place: Place) -> None:
        self._place = place

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Wrap a key inside the token.

        Raises:
            SealingError: the token, or the key in it, is not there, or refuses.
        """
        nonce = os.urandom(_NONCE)
        return nonce + self._ask(lambda own, how: own.encrypt(key, **how), nonce, context)

    def unwrap(self, blob: bytes, context: bytes) -> bytes:
        """Return the key that `wrap` was given with the same context.

        Raises:
            SealingError: as `wrap`; or it was another key that wrapped it, or not for this.
        """
        nonce, rest = blob[:_NONCE], blob[_NONCE:]
        found = self._ask(lambda own, how: own.decrypt(rest, **how), nonce, context, _FOREIGN)
        if len(found) != _KEY:
            raise SealingError(f"{self!r} gave {len(found)} bytes, expected a key of {_KEY}")
        return found

    def _ask(
        self,
        what: Callable[[Any, dict[str, Any]], bytes],
        nonce: bytes,
        aad: bytes,
        otherwise: str = "",
    ) -> bytes:
        from pkcs11.mechanisms import GCMParams, Mechanism

        how = {"mechanism": Mechanism.AES_GCM, "mechanism_param": GCMParams(nonce, aad, 128)}
        with _session(self._place, otherwise=otherwise) as session:
            return bytes(what(_key(session, self._place), how))

    def __repr__(self) -> str:
        return f"Pkcs11Custodian(token={self._place.token!r}, object={self._place.label!r})"


def from_url(rest: str) -> Pkcs11Custodian:
    """The custodian of `pkcs11:...`; that the key is there is seen at once.

    Raises:
        SealingError: the token is missing, its PIN is wrong, or it has no such key.
    """
    place = Place.of(rest)
    with _session(place) as session:
        _key(session, place)
    return Pkcs11Custodian(place)


def make(rest: str) -> Pkcs11Custodian | None:
    """Make the key in the token; None: there is one of that label.

    Raises:
        SealingError: as `from_url`; or the token makes no such key.
    """
    place = Place.of(rest)
    with _session(place, rw=True) as session:
        from pkcs11.constants import Attribute
        from pkcs11.exceptions import NoSuchKey
        from pkcs11.mechanisms import KeyType

        try:
            _find(session, place)
        except NoSuchKey:
            template = {Attribute.EXTRACTABLE: False, Attribute.SENSITIVE: True}
            session.generate_key(
                KeyType.AES, 8 * _KEY, label=place.label, store=True, template=template
            )
            return Pkcs11Custodian(place)
    return None


# --- the token -----------------------------------------------------------------------------------


@contextmanager
def _session(place: Place, rw: bool = False, otherwise: str = "") -> Iterator[Any]:
    """Log in to a token, and out again; `otherwise`: why it refuses, if it does not say."""
    library = _library()
    with _explained(place, otherwise):
        token = library.lib(place.module).get_token(token_label=place.token)
        with token.open(rw=rw, user_pin=place.pin or None) as session:
            yield session


def _find(session: Any, place: Place) -> Any:
    from pkcs11.constants import ObjectClass

    return session.get_key(label=place.label, object_class=ObjectClass.SECRET_KEY)


def _key(session: Any, place: Place) -> Any:
    """The key, unless it could leave the token."""
    from pkcs11.constants import Attribute

    found = _find(session, place)
    if found[Attribute.EXTRACTABLE]:
        raise SealingError(
            f"the key {place.label!r} of token {place.token!r} may be taken out of it: name a label"
            " that is not taken, and a key that may not is made"
        )
    return found


@contextmanager
def _explained(place: Place, otherwise: str) -> Iterator[None]:
    """Turn what a token refuses into one line."""
    from pkcs11 import exceptions as refused

    where = f"token {place.token!r}"
    try:
        yield
    except refused.NoSuchToken as error:
        raise SealingError(f"there is no {where} at {place.module}: plug it in") from error
    except (refused.MultipleTokensReturned, refused.MultipleObjectsReturned) as error:
        raise SealingError(f"{where}: several have this label; give each its own") from error
    except (refused.PinIncorrect, refused.PinInvalid, refused.PinLenRange) as error:
        raise SealingError(
            f"the PIN of {where} is wrong: correct it before the token locks itself"
        ) from error
    except refused.PinLocked as error:
        raise SealingError(
            f"{where} is locked: too many PINs were wrong; its officer resets it"
        ) from error
    except refused.NoSuchKey as error:
        raise SealingError(
            f"{where} has no AES key {place.label!r}: log in with a PIN if it is hidden, or let"
            " `g2d vault seal` make it"
        ) from error
    except (refused.UserNotLoggedIn, refused.UserPinNotInitialized) as error:
        raise SealingError(f"{where} wants a PIN: add '&pin-source=FILE', or set {PIN}") from error
    except refused.PKCS11Error as error:
        said = str(error) or type(error).__name__
        raise SealingError(f"{where}: {otherwise or 'it refused'} ({said})") from error


def _library() -> Any:
    try:
        import pkcs11
    except ImportError as error:
        raise SealingError(
            "a PKCS#11 token needs the package python-pkcs11: pip install 'g2d[pkcs11]'"
        ) from error
    return pkcs11


# --- its name ------------------------------------------------------------------------------------


def _attributes(text: str, between: str, known: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, text.split(between)):
        name, equals, value = part.partition("=")
        if name == "pin-value":
            raise SealingError(
                f"a PIN is never an argument, which others see (`ps`): write it into a file of mode"
                f" 600 and name that as pin-source, or set {PIN}"
            )
        if name not in known or not equals or name in found:
            raise SealingError(
                f"{name!r} cannot stand in the name of a PKCS#11 key: expected"
                f" {', '.join(known)}, once each.{nearest(name, known)}"
            )
        found[name] = unquote(value)
    return found


def _pin(source: str) -> str:
    if not source:
        return os.environ.get(PIN, "")
    path = Path(source.removeprefix("file:")).expanduser()
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = read_text(path, _MOST, follow=True)
    except (OSError, UnicodeDecodeError) as error:
        raise SealingError(f"cannot read the PIN in {path}: {error}") from error
    if others_may_read(mode):
        raise SealingError(f"other users may read the PIN in {path}: run `chmod 600 {path}`")
    return text.strip()
