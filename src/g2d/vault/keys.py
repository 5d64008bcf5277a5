"""Keys on disk: a private `SigningKey`, and the `VerifyKey` that the serving side trusts.

Ed25519; or P-256, of a key that never leaves what holds it (`held`). What is signed with them is
decided in `signing`, how in `algorithms`. `cryptography` is imported when a key is used; no message
and no representation holds key material. Knows no torch.
"""

from __future__ import annotations

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
from g2d.vault import algorithms
from g2d.vault.held import HeldKey, is_held_key
from g2d.vault.ledger import LEDGER

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from g2d.vault.algorithms import PublicKey

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
_NAMED = f"algorithm: {algorithms.P256}"
"""A line that a file with keys of P-256 has to have: those of `g2d keys new --export` have none."""


class SigningKey:
    """A private key of the generating side. No representation of it shows the key."""

    def __init__(self, key: Ed25519PrivateKey | HeldKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> Self:
        """Draw a new key from the system's randomness."""
        return cls(_ed25519().Ed25519PrivateKey.generate())

    @classmethod
    def make_held(cls, url: str) -> Self:
        """Have a new key made in what holds it for good, as `g2d.protect.sealing` names it.

        Raises:
            SealingError: it is not there, or refuses.
        """
        return cls(HeldKey.make(url))

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a private key: PEM, PKCS 8, without a passphrase; or the file of one that is held.

        Raises:
            KeyFileError: it is absent, inside a vault, not such a key, or others may read it.
        """
        ed25519 = _ed25519()
        key = load_private(path)
        if not isinstance(key, ed25519.Ed25519PrivateKey | HeldKey):
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
        _ed25519()
        return VerifyKey((self._key.public_key(),))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the public key."""
        return self.public.fingerprint

    def sign(self, message: bytes, context: bytes = _CONTEXT) -> bytes:
        """Sign the bytes of a manifest, or of what `context` says; 64 bytes.

        Raises:
            SealingError: what holds the key is not there, or refuses.
        """
        return self._key.sign(context + message)

    def __repr__(self) -> str:
        return f"SigningKey({self.fingerprint})"


@dataclass(frozen=True)
class VerifyKey:
    """What the serving side trusts: one or several public keys, and which vaults they sign for.

    While keys are rotated, old and new are trusted together. `vaults` holds identities
    (`Vault.identity`); empty: whatever identity the vault at hand claims.
    """

    keys: tuple[PublicKey, ...]
    vaults: frozenset[str] = frozenset()

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a file of PEM public keys and lines `vault: IDENTITY`; `#` begins a comment.

        One line names the algorithm where it is not Ed25519.

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
        kinds = set(map(algorithms.algorithm_of, keys))
        if (algorithms.P256 in kinds) != (_NAMED in rest):
            raise KeyFileError(
                f"{path} holds a key of another kind: expected Ed25519 public keys in PEM, or those"
                f" of keys in a TPM, with a line {_NAMED!r} as `g2d keys` writes it"
            )
        pins = [_PIN.fullmatch(line) for line in rest if line and line != _NAMED]
        if not keys or not all(pins):
            raise KeyFileError(
                f"{path} is not a file of public keys: expected PEM blocks and, for keys that sign"
                " for certain vaults only, lines 'vault: IDENTITY'. Make one with `g2d keys trust`"
            )
        return cls(keys, frozenset(pin[1] for pin in pins if pin))

    @classmethod
    def of(cls, raw: bytes) -> Self:
        """The key that has these 32 bytes, or of P-256 33.

        Raises:
            ValueError: they are none.
        """
        _ed25519()
        return cls((algorithms.from_raw(raw),))

    @property
    def raw(self) -> tuple[bytes, ...]:
        """The bytes of each key, see `algorithms.raw`."""
        return tuple(map(algorithms.raw, self.keys))

    def write(self, path: Path | str) -> None:
        """Write the keys, each under its fingerprint, and the vaults; mode 644, whole or not.

        Raises:
            G2DError: it lies in a vault, or cannot be written.
        """
        path = outside_vaults(path)
        lines = [f"vault: {identity}\n" for identity in sorted(self.vaults)]
        if algorithms.P256 in map(algorithms.algorithm_of, self.keys):
            lines.insert(0, f"{_NAMED}\n")
        for key in self.keys:
            lines += [f"# {algorithms.fingerprint(key)}\n", _pem(key)]
        make_folder(path.parent)
        write_bytes(path, "".join(lines).encode(), 0o644)  # one that others may write is refused

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Fingerprint of each key, see `algorithms.fingerprint`."""
        return tuple(map(algorithms.fingerprint, self.keys))

    @property
    def fingerprint(self) -> str:
        """All fingerprints in one line."""
        return ", ".join(self.fingerprints)

    def signer(self, message: bytes, signature: bytes, context: bytes = _CONTEXT) -> str | None:
        """Return the fingerprint of the key that signed these bytes, None if none of ours did."""
        for key in self.keys:
            if algorithms.verifies(key, signature, context + message):
                return algorithms.fingerprint(key)
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as the keys' bytes: a replica on another machine is given the trust."""
        return _trust, (self.raw, self.vaults)


def _trust(keys: tuple[bytes, ...], vaults: frozenset[str]) -> VerifyKey:
    return VerifyKey(tuple(map(algorithms.from_raw, keys)), vaults)


def read_public(path: Path | str) -> VerifyKey:
    """Read public keys, or the public half of a private key.

    Raises:
        KeyFileError: as `SigningKey.read` and `VerifyKey.read`.
    """
    with _key_file(outside_vaults(path)) as (data, _):
        private = b"PRIVATE KEY-----" in data
    return SigningKey.read(path).public if private else VerifyKey.read(path)


def load_private(path: Path | str) -> Any:
    """Read a private key of any kind: PEM, without a passphrase, or a `HeldKey`; None: it is none.

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

        from g2d.vault.sealing.keyfile import open_key

        if is_held_key(data):
            return HeldKey.parse(path, data)
        try:
            return load_pem_private_key(open_key(path, data), password=None)
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

    if isinstance(key, HeldKey):
        from g2d.vault.sealing.named import note_named

        note_named(Path(path), key.url)
        write_secret(path, key.encode())
        return
    data = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    write_secret(path, data, custodian)


def write_secret(path: Path | str, data: bytes, custodian: str = "", kind: str = "private") -> None:
    """Write a key of any kind into a new file, mode 600; its folder is made.

    Args:
        custodian: opens the file; "": it is in plaintext. kind: of the secret, as `keyfile` has it.

    Raises:
        KeyFileError: a file is there already, it lies in a vault, or it cannot be written.
        SealingError: the custodian is not there, or refuses.
    """
    path = outside_vaults(path)
    if custodian:
        from g2d.vault.sealing import keyfile, named

        data = keyfile.shut_key(data, custodian, kind)
        named.note_named(path, custodian)
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


def _public_key(path: Path, block: str) -> PublicKey:
    _ed25519()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key: Any = load_pem_public_key(block.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not algorithms.algorithm_of(key):
        raise KeyFileError(
            f"{path} holds a key of another kind: expected Ed25519 public keys in PEM"
        )
    found: PublicKey = key
    return found


def _pem(key: PublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
