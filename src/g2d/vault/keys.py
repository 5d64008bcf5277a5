"""Ed25519 keys on disk: a private `SigningKey`, and the `VerifyKey` that the serving side trusts.

What is signed with them is decided in `signing`. `cryptography` is imported here alone, and only
when a key is used; no message and no representation holds key material. Knows no torch.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from g2d.core.files import fill_file, make_folder, write_bytes
from g2d.core.platforms import open_plain as plain_handle
from g2d.core.platforms import others_may_read
from g2d.errors import G2DError, KeyFileError
from g2d.vault.ledger import LEDGER

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

__all__ = [
    "SigningKey",
    "VerifyKey",
    "default_key",
    "load_private",
    "open_plain",
    "outside_vaults",
    "read_public",
    "store_private",
    "write_secret",
]

_CONTEXT = b"g2d signed manifest 1\0"  # a signature made for anything else is worth nothing here
_MOST = 1 << 16  # bytes of a key file
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----\n[A-Za-z0-9+/=\n]+-----END \1-----\n?")
_PIN = re.compile(r"vault: ([0-9a-f]{32})")


class SigningKey:
    """A private Ed25519 key of the generating side. No representation of it shows the key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> Self:
        """Draw a new key from the system's randomness."""
        return cls(_ed25519().Ed25519PrivateKey.generate())

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a private key: PEM, PKCS 8, without a passphrase.

        Raises:
            KeyFileError: it is absent, inside a vault, not such a key, or others may read it.
        """
        ed25519 = _ed25519()
        key = load_private(path)
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise KeyFileError(
                f"{path} is not an Ed25519 private key (PEM, PKCS 8, no passphrase): make one"
                " with `g2d keys new`"
            )
        return cls(key)

    def write(self, path: Path | str, custodian: str = "") -> None:
        """Write the key into a new file, mode 600; its folder is made, mode 700.

        Args:
            custodian: opens the file, as `g2d.protect.sealing` names it; "": it is in plaintext.

        Raises:
            KeyFileError: a file is there already, it lies in a vault, or it cannot be written.
            SealingError: the custodian is not there, or refuses.
        """
        store_private(path, self._key, custodian)

    @property
    def public(self) -> VerifyKey:
        """What the serving side needs."""
        return VerifyKey((self._key.public_key(),))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the public key."""
        return self.public.fingerprint

    def sign(self, message: bytes, context: bytes = _CONTEXT) -> bytes:
        """Sign the bytes of a manifest, or of what `context` says; 64 bytes."""
        return self._key.sign(context + message)

    def __repr__(self) -> str:
        return f"SigningKey({self.fingerprint})"


@dataclass(frozen=True)
class VerifyKey:
    """What the serving side trusts: one or several public keys, and which vaults they sign for.

    While keys are rotated, old and new are trusted together. `vaults` holds identities
    (`Vault.identity`); empty: whatever identity the vault at hand claims.
    """

    keys: tuple[Ed25519PublicKey, ...]
    vaults: frozenset[str] = frozenset()

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a file of PEM public keys and lines `vault: IDENTITY`; `#` begins a comment.

        Raises:
            KeyFileError: it is absent, inside a vault, holds anything else, or others may write it.
        """
        path = outside_vaults(path)
        with _key_file(path) as (data, mode):
            if mode & 0o022:
                raise KeyFileError(
                    f"others may write {path} (mode {mode:o}), so it may hold keys that you do not"
                    f" trust: check it with `g2d keys show`, then run `chmod 644 {path}`"
                )
            text = data.decode("ascii", "replace").replace("\r\n", "\n")
        keys = tuple(_public_key(path, found.group()) for found in _PEM.finditer(text))
        rest = [line.partition("#")[0].strip() for line in _PEM.sub("", text).splitlines()]
        pins = [_PIN.fullmatch(line) for line in rest if line]
        if not keys or not all(pins):
            raise KeyFileError(
                f"{path} is not a file of public keys: expected PEM blocks and, for keys that sign"
                " for certain vaults only, lines 'vault: IDENTITY'. Make one with `g2d keys trust`"
            )
        return cls(keys, frozenset(pin[1] for pin in pins if pin))

    @classmethod
    def of(cls, raw: bytes) -> Self:
        """The key that has these 32 bytes.

        Raises:
            ValueError: they are none.
        """
        return cls((_ed25519().Ed25519PublicKey.from_public_bytes(raw),))

    @property
    def raw(self) -> tuple[bytes, ...]:
        """The 32 bytes of each key."""
        return tuple(key.public_bytes_raw() for key in self.keys)

    def write(self, path: Path | str) -> None:
        """Write the keys, each under its fingerprint, and the vaults; mode 644, whole or not.

        Raises:
            G2DError: it lies in a vault, or cannot be written.
        """
        path = outside_vaults(path)
        lines = [f"vault: {identity}\n" for identity in sorted(self.vaults)]
        for key in self.keys:
            lines += [f"# {_fingerprint(key)}\n", _pem(key)]
        make_folder(path.parent)
        write_bytes(path, "".join(lines).encode(), 0o644)  # one that others may write is refused

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Fingerprint of each key: "sha256:" and the digest of its 32 bytes, in hexadecimal."""
        return tuple(map(_fingerprint, self.keys))

    @property
    def fingerprint(self) -> str:
        """All fingerprints in one line."""
        return ", ".join(self.fingerprints)

    def signer(self, message: bytes, signature: bytes, context: bytes = _CONTEXT) -> str | None:
        """Return the fingerprint of the key that signed these bytes, None if none of ours did."""
        from cryptography.exceptions import InvalidSignature

        for key in self.keys:
            try:
                key.verify(signature, context + message)
            except InvalidSignature:
                continue
            return _fingerprint(key)
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as the keys' 32 bytes each: a replica on another machine is given the trust."""
        return _trust, (self.raw, self.vaults)


def _trust(keys: tuple[bytes, ...], vaults: frozenset[str]) -> VerifyKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return VerifyKey(tuple(map(Ed25519PublicKey.from_public_bytes, keys)), vaults)


def read_public(path: Path | str) -> VerifyKey:
    """Read public keys, or the public half of a private key.

    Raises:
        KeyFileError: as `SigningKey.read` and `VerifyKey.read`.
    """
    with _key_file(outside_vaults(path)) as (data, _):
        private = b"PRIVATE KEY-----" in data
    return SigningKey.read(path).public if private else VerifyKey.read(path)


def load_private(path: Path | str) -> Any:
    """Read a private key of any kind: PEM, without a passphrase; None if it is none.

    Raises:
        KeyFileError: it is absent, inside a vault, or others may read it.
    """
    path = outside_vaults(path)
    with _key_file(path) as (data, mode):
        if others_may_read(mode):
            raise KeyFileError(
                f"other users have access to {path} (mode {mode:o}) and may know the key: run"
                f" `chmod 600 {path}`, or make a new key with `g2d keys new`"
            )
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        from g2d.vault.sealing.keyfile import is_sealed_key, open_key

        plain = open_key(path, data) if is_sealed_key(data) else data
        try:
            return load_pem_private_key(plain, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            return None  # the library's own words may quote the file


def store_private(path: Path | str, key: Any, custodian: str = "") -> None:
    """Write a private key into a new file (PEM, PKCS 8), mode 600; its folder is made, mode 700.

    Args:
        custodian: opens the file; "": it is in plaintext.

    Raises:
        KeyFileError: a file is there already, it lies in a vault, or it cannot be written.
        SealingError: the custodian is not there, or refuses.
    """
    from cryptography.hazmat.primitives import serialization as s

    data = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    if custodian:
        from g2d.vault.sealing.keyfile import shut_key

        data = shut_key(data, custodian)
    write_secret(path, data)


def write_secret(path: Path | str, data: bytes) -> None:
    """Write a key of any kind into a new file, mode 600; its folder is made.

    Raises:
        KeyFileError: a file is there already, it lies in a vault, or it cannot be written.
    """
    path = outside_vaults(path)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fill_file(path, data, 0o600)
    except FileExistsError:
        raise KeyFileError(
            f"{path} exists already, and a key is never overwritten: name another file"
        ) from None
    except OSError as error:
        with suppress(OSError):
            path.unlink(missing_ok=True)  # half of a key would stand in the way of the next try
        raise KeyFileError(f"cannot write the key {path}: {error.strerror}") from error


def default_key() -> Path:
    """Where the private key lies unless a path is given: ~/.config/g2d/signing.key."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "g2d" / "signing.key"


@contextmanager
def open_plain(path: Path, follow: bool = True) -> Iterator[FileIO]:
    """Open a plain file to read; a pipe or a device that somebody put there must not block us."""
    with FileIO(plain_handle(path, follow)) as file:
        yield file


@contextmanager
def _key_file(path: Path) -> Iterator[tuple[bytes, int]]:
    """Give a key file's bytes and permissions, both of the same open file."""
    try:
        with open_plain(path) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            yield file.read(_MOST) or b"", mode
    except OSError as error:
        advice = "check the path, or make a key with `g2d keys new`"
        raise KeyFileError(f"cannot read the key {path}: {error.strerror}; {advice}") from error


def outside_vaults(path: Path | str) -> Path:
    """Return the absolute path; a key in a vault would travel, or be swapped, with the vault.

    Raises:
        KeyFileError: it lies in one.
    """
    path = Path(path).expanduser().absolute()
    for folder in path.resolve().parents:
        if (folder / LEDGER).exists():
            raise KeyFileError(f"{path} lies in the vault {folder}: keep keys outside of vaults")
    return path


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise G2DError(
            "signing needs the package cryptography: pip install 'g2d[signing]'"
        ) from error
    return ed25519


def _public_key(path: Path, block: str) -> Ed25519PublicKey:
    ed25519 = _ed25519()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(block.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise KeyFileError(
            f"{path} holds a key of another kind: expected Ed25519 public keys in PEM"
        )
    return key


def _fingerprint(key: Ed25519PublicKey) -> str:
    return f"sha256:{hashlib.sha256(key.public_bytes_raw()).hexdigest()}"


def _pem(key: Ed25519PublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
