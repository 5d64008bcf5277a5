"""Secrets in files that a custodian opens: whoever steals the file has no key.

Such a file is sealed as a vault's are, under a key that the custodian wraps, and says of which kind
the secret is: one that signs, marks, or audits. It names that custodian: it is its owner's, lies
outside of vaults and is closed to others; whether the name is used, `named` decides. Knows no
torch.
"""

from __future__ import annotations

import base64
import io
import json
from functools import partial
from pathlib import Path

from g2d.core.files import MOST_TEXT, read_plain, write_bytes
from g2d.core.platforms import others_may_read
from g2d.errors import DAMAGE, BrokenSealError, KeyFileError, SealingError
from g2d.vault.held import HeldKey, is_held_key
from g2d.vault.keys import outside_vaults
from g2d.vault.sealing.envelope import (
    About,
    Head,
    head_of,
    new_key,
    open_file,
    seal_file,
    unwrap_key,
)
from g2d.vault.sealing.named import check_named, note_named
from g2d.vault.sealing.remembered import new_custodian

__all__ = ["CANARIES", "SIGNING", "WATERMARK", "is_sealed_key", "open_key", "reseal", "shut_key"]

SIGNING, WATERMARK, CANARIES = "private", "watermark", "canaries"
"""Kinds of secrets: a private key in PEM, a watermark's, the secret of an audit's canaries."""

_BEGINNINGS = {b"-----BEGIN ": SIGNING, b"g2d watermark key ": WATERMARK, b"{": CANARIES}
_CONTEXT = b"g2d private key 1\0"
_BEGIN, _END = (f"-----{word} G2D SEALED PRIVATE KEY-----" for word in ("BEGIN", "END"))


def is_sealed_key(data: bytes) -> bool:
    """Whether a key file's bytes are those of a sealed one."""
    return data.lstrip().startswith(_BEGIN.encode())


def shut_key(secret: bytes, url: str, kind: str = SIGNING) -> bytes:
    """The bytes of a file that holds a secret which a custodian opens.

    Args:
        kind: what it is; it opens as nothing else.

    Raises:
        SealingError: the custodian is not there, or refuses.
    """
    key = new_key()
    said = {
        "custodian": url,
        "key": base64.b64encode(new_custodian(url).wrap(key, _CONTEXT)).decode(),
        "sealed": base64.b64encode(seal_file(secret, _about(kind), key)).decode(),
    }
    text = base64.encodebytes(json.dumps(said).encode()).decode()
    return f"{_BEGIN}\n{text}{_END}\n".encode()


def open_key(path: Path, data: bytes, kind: str = SIGNING) -> bytes:
    """The secret of a key file's bytes: opened where they are sealed, else as they are.

    Raises:
        KeyFileError: the file is damaged, or holds a secret of another kind.
        SealingError: its custodian does not open it, or may not be asked.
    """
    if not is_sealed_key(data):
        return data
    url, wrapped, sealed = _parsed(path, data)
    check_named(path, url)
    return _opened(path, url, wrapped, sealed, _about(kind))


def reseal(path: Path, url: str) -> str:
    """Have a key file opened by a custodian from now on; return the former one's name.

    Args:
        url: named by the user. Of a file that it opens already, that is noted and no more.

    Returns:
        "" where the secret was plain.

    Raises:
        KeyFileError: it cannot be read, is open to others, is damaged or no key of ours.
        SealingError: a custodian is not there, or refuses.
    """
    path = outside_vaults(path)
    data = _private(path)
    if is_held_key(data):
        held = HeldKey.parse(path, data).url
        if held != url:
            raise SealingError(f"{path} holds no secret: its key was made in {held!r}, and stays")
        note_named(path, url)
        return held
    former, about = "", None
    if is_sealed_key(data):
        former, wrapped, sealed = _parsed(path, data)
        if former != url:
            check_named(path, former)
        secret = _opened(path, former, wrapped, sealed, None)
        about = head_of(io.BytesIO(sealed).read).about
    else:
        secret = data
        kind = next((kind for first, kind in _BEGINNINGS.items() if data.startswith(first)), "")
        if not kind or (kind == SIGNING and b"PRIVATE KEY-----" not in data):
            raise KeyFileError(f"{path} is no key that G2D reads: nothing was changed")
        about = _about(kind)
    note_named(path, url)
    if former != url:
        shut = shut_key(secret, url, about.name)
        if open_key(path, shut, about.name) != secret:
            raise SealingError(f"{url} does not give back what it was given: nothing was changed")
        write_bytes(path, shut, 0o600)
    return former


def _private(path: Path) -> bytes:
    try:
        data, mode = read_plain(path, MOST_TEXT, follow=True), path.stat().st_mode
    except OSError as error:
        raise KeyFileError(f"cannot read the key {path}: {error.strerror}") from error
    if others_may_read(mode & 0o777):
        raise KeyFileError(
            f"other users have access to {path} and may know the key: run `chmod 600 {path}`, or"
            " make a new key"
        )
    return data


def _about(kind: str) -> About:
    return About("", "key", 0, kind, "")


def _parsed(path: Path, data: bytes) -> tuple[str, bytes, bytes]:
    """The custodian that a sealed key file names, its wrapped key, and what is sealed."""
    try:
        text = data.decode("ascii").strip().removeprefix(_BEGIN).removesuffix(_END)
        said = json.loads(base64.b64decode(text))
        wrapped, sealed = (
            base64.b64decode(said[name], validate=True) for name in ("key", "sealed")
        )
        return str(said["custodian"]), wrapped, sealed
    except DAMAGE as error:
        raise KeyFileError(
            f"{path} is a sealed private key, and is damaged: restore it from a backup"
        ) from error


def _opened(path: Path, url: str, wrapped: bytes, sealed: bytes, about: About | None) -> bytes:
    key = new_custodian(url).unwrap(wrapped, _CONTEXT)
    try:
        return open_file(io.BytesIO(sealed).read, partial(_data_key, key), about)
    except BrokenSealError as error:
        raise KeyFileError(f"{path} cannot be opened: {error}. Restore it from a backup") from error


def _data_key(key: bytes, head: Head) -> bytes:
    try:
        return unwrap_key(head.wrapped, key, head.about.context)
    except ValueError as error:
        raise BrokenSealError(str(error)) from error
