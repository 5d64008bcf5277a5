"""Sealed files: AES-256-GCM under a fresh key for each, which is wrapped by the vault's own key.

A file is `MAGIC`, the length of its head (4 bytes), the head, the parts, and SHA-256 of all that.
The head is JSON: what the file is (`About`), its size, and its data key, wrapped. A part is at most
`PART` bytes of the content with 16 bytes of tag; part i is encrypted under the nonce "i, whether it
is the last" (STREAM: Hoang, Reyhanitabar, Rogaway, Vizár, CRYPTO 2015, eprint 2015/189), and every
part has the whole head as associated data. A data key encrypts one file, once: so no nonce is ever
used twice. Parts, and not one call, because a file may have 4 GiB and OpenSSL takes 2 GiB in one.

The SHA-256 at the end is no protection: it lets whoever has no key tell a broken disk. Knows no
torch; what a vault seals is decided in `sealer`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from g2d.errors import DAMAGE, BrokenSealError, SealingError
from g2d.vault.sealing.custodian import KEY_SIZE

__all__ = [
    "MAGIC",
    "About",
    "Head",
    "check_whole",
    "head_of",
    "is_sealed",
    "key_name",
    "new_key",
    "open_file",
    "seal_file",
    "unwrap_key",
    "wrap_key",
]

MAGIC = b"G2DSEAL1"
"""Read as the length of a safetensors header it is larger than any file: no file is both."""

PART = 1 << 20
"""Bytes of the content that are encrypted at once."""

_TAG, _NONCE, _SUM = 16, 12, 32
_MOST_HEAD = 1 << 12
_LENGTH = struct.Struct("<I")
_DATA_KEY = b"g2d data key 1\0"
_WRAPPED = b"\1"  # the way in which `wrap_key` wraps


@dataclass(frozen=True)
class About:
    """What a sealed file is: the associated data that tie it to its place.

    Attributes:
        vault: the vault's identity. kind: of the entry ("member"), "generation", or another word.
        number: the entry's index, the generation's number. name: of the file ("weights").
        digest: SHA-256 of the content, in hexadecimal: what ledger, manifest and signature name.
    """

    vault: str
    kind: str
    number: int
    name: str
    digest: str

    @property
    def context(self) -> bytes:
        """The bytes that the data key is bound to."""
        return _DATA_KEY + json.dumps(asdict(self), sort_keys=True).encode()

    def __str__(self) -> str:
        return f"{self.kind} {self.number}, {self.name}"


@dataclass(frozen=True)
class Head:
    """What a sealed file says of itself, without any key; nothing of it is proved.

    Attributes:
        size: bytes of the content. key: name of the vault's key (`key_name`). wrapped: the data
            key. raw: all bytes before the parts.
    """

    about: About
    size: int
    key: str
    wrapped: bytes
    raw: bytes

    @property
    def whole(self) -> int:
        """Bytes of the whole file."""
        return len(self.raw) + self.size + _TAG * _parts(self.size) + _SUM


def new_key() -> bytes:
    """Draw a key from the system's randomness; 32 bytes."""
    return os.urandom(KEY_SIZE)


def key_name(key: bytes) -> str:
    """A name by which keys are told apart, of which no key can be found; 16 digits."""
    return hashlib.sha256(b"g2d key name 1\0" + key).hexdigest()[:16]


def wrap_key(key: bytes, by: bytes, context: bytes) -> bytes:
    """Wrap a 32-byte key by another: AES-256-GCM, a nonce of 96 random bits, `context` beside.

    Random nonces collide with a chance below 2**-32 as long as one key wraps fewer than 2**32
    (NIST SP 800-38D, section 8.3).
    """
    nonce = os.urandom(_NONCE)
    return _WRAPPED + nonce + _gcm(by).encrypt(nonce, key, context)


def unwrap_key(blob: bytes, by: bytes, context: bytes) -> bytes:
    """Return the key that was wrapped by `by` with the same context.

    Raises:
        ValueError: it was not.
    """
    if len(blob) != 1 + _NONCE + KEY_SIZE + _TAG or blob[:1] != _WRAPPED:
        raise ValueError("it is no wrapped key")
    from cryptography.exceptions import InvalidTag

    try:
        found: bytes = _gcm(by).decrypt(blob[1 : 1 + _NONCE], blob[1 + _NONCE :], context)
    except InvalidTag:
        raise ValueError("it was wrapped by another key, for something else, or changed") from None
    return found


def is_sealed(data: bytes) -> bool:
    """Whether bytes begin as a sealed file does."""
    return data[: len(MAGIC)] == MAGIC


def seal_file(data: bytes, about: About, key: bytes) -> bytes:
    """Seal the content of a file under a fresh data key.

    Args:
        key: the vault's, 32 bytes.
    """
    data_key = new_key()
    said = {
        "about": asdict(about),
        "size": len(data),
        "key": key_name(key),
        "wrapped": base64.b64encode(wrap_key(data_key, key, about.context)).decode(),
    }
    text = json.dumps(said, sort_keys=True).encode()
    head = MAGIC + _LENGTH.pack(len(text)) + text
    cipher, parts = _gcm(data_key), [head]
    for index, (start, last) in enumerate(_cut(len(data))):
        parts.append(cipher.encrypt(_nonce(index, last), data[start : start + PART], head))
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return b"".join([*parts, total.digest()])


def head_of(read: Callable[[int], bytes]) -> Head:
    """Read the head of a sealed file, and no more of it.

    Args:
        read: gives the next bytes of the file, as many as it is asked for or all there are.

    Raises:
        BrokenSealError: it is damaged.
    """
    try:
        first = read(len(MAGIC) + _LENGTH.size)
        (length,) = _LENGTH.unpack(first[len(MAGIC) :])
        if not is_sealed(first) or length > _MOST_HEAD:
            raise ValueError("no head")
        text = read(length)
        said = json.loads(text)
        about = About(**said["about"])
        wrapped = base64.b64decode(said["wrapped"], validate=True)
        head = Head(about, said["size"], said["key"], wrapped, first + text)
        kinds = {"vault": str, "kind": str, "number": int, "name": str, "digest": str}
        right = all(type(getattr(about, name)) is kind for name, kind in kinds.items())
        if not right or type(head.size) is not int or head.size < 0 or type(head.key) is not str:
            raise ValueError("other types")
    except (struct.error, *DAMAGE) as error:
        raise BrokenSealError("its head is damaged") from error
    return head


def check_whole(data: bytes, about: About) -> Head:
    """Check what can be checked of a sealed file without a key: its place, its size, its sum.

    Raises:
        BrokenSealError: it is cut off, damaged, or another file's; in one line, without its path.
    """
    head = head_of(io.BytesIO(data).read)
    _check_about(head, about)
    if len(data) != head.whole:
        raise BrokenSealError(f"it has {len(data)} bytes, and was sealed with {head.whole}")
    if hashlib.sha256(memoryview(data)[:-_SUM]).digest() != data[-_SUM:]:
        raise BrokenSealError("its bytes are not those that were written")
    return head


def open_file(
    read: Callable[[int], bytes], unwrap: Callable[[Head], bytes], about: About | None = None
) -> bytes:
    """Return the content of a sealed file; room is taken for what has been proved alone.

    Args:
        read: as `head_of`. unwrap: gives the data key of a head. about: what the file has to be;
            None: what it says, which its key proves.

    Raises:
        BrokenSealError: it is cut off, changed, another file's, or sealed under another key; in one
            line, without its path.
    """
    head = head_of(read)
    if about is not None:
        _check_about(head, about)
    cipher, total = _gcm(unwrap(head)), hashlib.sha256(head.raw)
    found: list[bytes] = []
    from cryptography.exceptions import InvalidTag

    for index, (start, last) in enumerate(_cut(head.size)):
        size = min(PART, head.size - start) + _TAG
        part = read(size)
        if len(part) != size:
            raise BrokenSealError("it is cut off")
        total.update(part)
        try:
            found.append(cipher.decrypt(_nonce(index, last), part, head.raw))
        except InvalidTag:
            raise BrokenSealError("it was changed since it was sealed") from None
    if read(_SUM + 1) != total.digest():
        raise BrokenSealError("its end is not what was written")
    return b"".join(found)


def _check_about(head: Head, about: About) -> None:
    if head.about != about:
        raise BrokenSealError(
            f"it was sealed as {_told(head.about, about)}, and is expected to be {about}: it was"
            " swapped, or is a former one"
        )


def _told(found: About, wanted: About) -> str:
    """What a file says it is, as far as that tells it from what is expected."""
    if (found.kind, found.number, found.name) != (wanted.kind, wanted.number, wanted.name):
        return f"{found.kind[:20]} {found.number}, {found.name[:20]}"
    return "another vault's" if found.vault != wanted.vault else "other content"


def _cut(size: int) -> Iterator[tuple[int, bool]]:
    """Where each part of the content begins, and whether it is the last; no content is one part."""
    for index in range(count := _parts(size)):
        yield index * PART, index == count - 1


def _parts(size: int) -> int:
    return max(1, -(-size // PART))


def _nonce(index: int, last: bool) -> bytes:
    return index.to_bytes(_NONCE - 1, "big") + bytes([last])


def _gcm(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise SealingError(
            "a sealed vault needs the package cryptography: pip install 'g2d[sealing]'"
        ) from error
    return AESGCM(key)
