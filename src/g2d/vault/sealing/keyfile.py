"""Private keys in files that a custodian opens: whoever steals the file has no key.

Such a file is sealed as a vault's are, under a key that the custodian wraps. It names that one: it
is its owner's, lies outside of vaults and is closed to others. Knows no torch.
"""

from __future__ import annotations

import base64
import io
import json
from functools import partial
from pathlib import Path

from g2d.errors import DAMAGE, BrokenSealError, KeyFileError
from g2d.vault.sealing.envelope import About, Head, new_key, open_file, seal_file, unwrap_key
from g2d.vault.sealing.remembered import new_custodian

__all__ = ["is_sealed_key", "open_key", "shut_key"]

_CONTEXT = b"g2d private key 1\0"
_ABOUT = About("", "key", 0, "private", "")
_BEGIN, _END = (f"-----{word} G2D SEALED PRIVATE KEY-----" for word in ("BEGIN", "END"))


def is_sealed_key(data: bytes) -> bool:
    """Whether a key file's bytes are those of a sealed one."""
    return data.lstrip().startswith(_BEGIN.encode())


def shut_key(pem: bytes, url: str) -> bytes:
    """The bytes of a file that holds a private key (PEM) which a custodian opens.

    Raises:
        SealingError: the custodian is not there, or refuses.
    """
    key = new_key()
    said = {
        "custodian": url,
        "key": base64.b64encode(new_custodian(url).wrap(key, _CONTEXT)).decode(),
        "sealed": base64.b64encode(seal_file(pem, _ABOUT, key)).decode(),
    }
    text = base64.encodebytes(json.dumps(said).encode()).decode()
    return f"{_BEGIN}\n{text}{_END}\n".encode()


def open_key(path: Path, data: bytes) -> bytes:
    """The private key (PEM) of a sealed key file.

    Raises:
        KeyFileError: the file is damaged. SealingError: its custodian does not open it.
    """
    try:
        text = data.decode("ascii").strip().removeprefix(_BEGIN).removesuffix(_END)
        said = json.loads(base64.b64decode(text))
        url, wrapped = str(said["custodian"]), base64.b64decode(said["key"], validate=True)
        sealed = base64.b64decode(said["sealed"], validate=True)
    except DAMAGE as error:
        raise KeyFileError(
            f"{path} is a sealed private key, and is damaged: restore it from a backup"
        ) from error
    key = new_custodian(url).unwrap(wrapped, _CONTEXT)
    try:
        return open_file(io.BytesIO(sealed).read, partial(_data_key, key), _ABOUT)
    except BrokenSealError as error:
        raise KeyFileError(f"{path} cannot be opened: {error}. Restore it from a backup") from error


def _data_key(key: bytes, head: Head) -> bytes:
    try:
        return unwrap_key(head.wrapped, key, head.about.context)
    except ValueError as error:
        raise BrokenSealError(str(error)) from error
