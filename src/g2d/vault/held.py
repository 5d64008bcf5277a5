"""Signing keys that never leave what holds them: the file beside them opens nothing elsewhere.

Such a file names the custodian and what that made, opaque here; it is its owner's, lies outside of
vaults and is closed to others, as any private key's. Which custodians can hold one is in
`g2d.protect.sealing`. Knows no torch.
"""

from __future__ import annotations

import base64
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from g2d.errors import DAMAGE, KeyFileError, SealingError
from g2d.vault.algorithms import from_raw, joined, verifies

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

__all__ = ["HeldKey", "Holder", "is_held_key"]

_BEGIN, _END = (f"-----{word} G2D HELD PRIVATE KEY-----" for word in ("BEGIN", "END"))


class Holder(Protocol):
    """Makes keys (ECDSA on P-256, SHA-256) and signs with them; they never leave it."""

    def make(self) -> tuple[bytes, bytes]:
        """Make a key: opaque bytes by which it is found again, and its public point (33 bytes).

        Raises:
            SealingError: the holder is not there, or refuses; in one line.
        """
        ...

    def sign(self, blob: bytes, message: bytes) -> tuple[int, int]:
        """Sign a message with the key of these bytes: r and s.

        Raises:
            SealingError: the holder is not there or refuses, or the bytes are damaged or another
                holder's; in one line.
        """
        ...


class HeldKey:
    """A signing key of a holder. It knows the public half; no representation shows more."""

    def __init__(self, url: str, blob: bytes, point: bytes, path: Path | None = None) -> None:
        self.url, self._blob, self._point, self._path = url, blob, point, path

    @classmethod
    def make(cls, url: str) -> Self:
        """Have a key made.

        Raises:
            SealingError: no such holder is there, or it refuses.
        """
        blob, point = _holder(url).make()
        return cls(url, blob, point)

    @classmethod
    def parse(cls, path: Path, data: bytes) -> Self:
        """Read the bytes of a key's file; raises `KeyFileError` where they are damaged."""
        try:
            text = data.decode("ascii").strip().removeprefix(_BEGIN).removesuffix(_END)
            said = json.loads(base64.b64decode(text))
            blob, point = (
                base64.b64decode(said[name], validate=True) for name in ("key", "public")
            )
            if len(point) != 33:
                raise ValueError("no point")
            from_raw(point)
            return cls(str(said["custodian"]), blob, point, path)
        except DAMAGE as error:
            raise KeyFileError(
                f"{path} names a key that is held elsewhere, and is damaged: restore it from a"
                " backup"
            ) from error

    def encode(self) -> bytes:
        """The bytes of the key's file."""
        said = {
            "custodian": self.url,
            "key": base64.b64encode(self._blob).decode(),
            "public": base64.b64encode(self._point).decode(),
        }
        text = base64.encodebytes(json.dumps(said).encode()).decode()
        return f"{_BEGIN}\n{text}{_END}\n".encode()

    def public_key(self) -> EllipticCurvePublicKey:
        """The public half, as the file has it; what signs is checked against it."""
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

        key = from_raw(self._point)
        assert isinstance(key, EllipticCurvePublicKey)
        return key

    def sign(self, message: bytes) -> bytes:
        """Have a message signed: 64 bytes, verified before they are given away.

        Raises:
            SealingError: the holder refuses or may not be asked (`sealing.named`), or signed with
                another key than the file's.
        """
        from g2d.vault.sealing.named import check_named

        if self._path is not None:
            check_named(self._path, self.url)
        signature = joined(*_holder(self.url).sign(self._blob, message))
        if not verifies(self.public_key(), signature, message):
            raise SealingError(
                f"what {self.url} signed is not of the key whose public half the file holds:"
                " restore the file from a backup"
            )
        return signature

    def __repr__(self) -> str:
        return f"HeldKey({self.url})"


def is_held_key(data: bytes) -> bool:
    """Whether a key file's bytes name a key that is held elsewhere."""
    return data.lstrip().startswith(_BEGIN.encode())


def _holder(url: str) -> Holder:
    """What holds keys by that name; found by name, as custodians are, in a layer above."""
    made: Holder = importlib.import_module("g2d.protect.sealing").holder(url)
    return made
