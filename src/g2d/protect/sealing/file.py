"""A custodian that is a file: for development, and where the disk that holds it is another one.

Whoever reads the file opens the vault. It is one line, `g2d custodian 1 KEY CHECK`: 32 random bytes
and the first 4 of their SHA-256, both in base64. Knows no torch.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import stat
from pathlib import Path

from g2d.core.files import read_plain
from g2d.core.platforms import others_may_read
from g2d.errors import KeyFileError, SealingError
from g2d.vault.keys import outside_vaults, write_secret
from g2d.vault.sealing.envelope import new_key, unwrap_key, wrap_key

__all__ = ["FileCustodian", "from_url", "make"]

_FIRST = "g2d custodian 1"
_MOST = 1 << 10


class FileCustodian:
    """A key in a file of mode 600, outside of vaults."""

    kind = "file"

    def __init__(self, path: Path, key: bytes) -> None:
        self._path, self._key = path, key

    @classmethod
    def read(cls, path: Path | str) -> FileCustodian:
        """Read the file.

        Raises:
            SealingError: it is absent, lies in a vault, is none, or others may read it.
        """
        path = _outside(path)
        try:
            data = read_plain(path, _MOST, follow=True)
            mode = stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError as error:
            raise SealingError(
                f"there is no custodian {path}: put the file back, or open the vault by another"
                " custodian, such as its paper key (G2D_CUSTODIAN=paper)"
            ) from error
        except OSError as error:
            raise SealingError(f"cannot read the custodian {path}: {error.strerror}") from error
        if others_may_read(mode):
            raise SealingError(
                f"other users may read the custodian {path} (mode {mode:o}) and may know its key:"
                f" run `chmod 600 {path}`; if somebody may have read it, seal the vault anew"
            )
        return cls(path, _parsed(path, data))

    @classmethod
    def make(cls, path: Path | str) -> FileCustodian:
        """Write a new key into a file that is not there, mode 600.

        Raises:
            SealingError: there is one, it would lie in a vault, or it cannot be written.
        """
        path, key = _outside(path), new_key()
        check = hashlib.sha256(key).digest()[:4]
        words = (base64.b64encode(part).decode() for part in (key, check))
        try:
            write_secret(path, f"{_FIRST} {' '.join(words)}\n".encode())
        except KeyFileError as error:
            raise SealingError(str(error)) from error
        return cls(path, key)

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Wrap a key: AES-256-GCM, see `envelope.wrap_key`."""
        return wrap_key(key, self._key, context)

    def unwrap(self, blob: bytes, context: bytes) -> bytes:
        """Return the key that `wrap` was given with the same context.

        Raises:
            SealingError: it was not this file's key that wrapped it, or not for this.
        """
        try:
            return unwrap_key(blob, self._key, context)
        except ValueError as error:
            raise SealingError(
                f"{self._path} does not open it: {error}. Name the custodian that it was sealed by"
            ) from error

    def __repr__(self) -> str:
        return f"FileCustodian({self._path})"


def from_url(rest: str) -> FileCustodian:
    """The custodian of `file:PATH`."""
    return FileCustodian.read(_named(rest))


def make(rest: str) -> FileCustodian | None:
    """Make the file of `file:PATH`; None: it is there."""
    path = Path(_named(rest)).expanduser()
    return None if path.exists() else FileCustodian.make(path)


def _named(rest: str) -> str:
    if not rest:
        raise SealingError("`file:` lacks the path of the custodian's file: write file:PATH")
    return rest


def _outside(path: Path | str) -> Path:
    try:
        return outside_vaults(path)
    except KeyFileError as error:
        raise SealingError(f"{error}: a custodian in it would be stolen with it") from error


def _parsed(path: Path, data: bytes) -> bytes:
    words = data.decode("ascii", "replace").removeprefix(_FIRST).split()
    try:
        key, check = (base64.b64decode(word, validate=True) for word in words)
        right = data.startswith(_FIRST.encode()) and len(key) == 32
        if right and hashlib.sha256(key).digest()[:4] == check:
            return key
    except (ValueError, binascii.Error):
        pass
    raise SealingError(f"{path} is not the file of a custodian, or is damaged: expected one that"
                       " `g2d vault seal` made")  # fmt: skip
