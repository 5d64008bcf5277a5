"""What travels: a header of fixed size, then residues and seeds in an order that the plan tells.

    magic, 8 bytes | kind, 1 | the plan's digest, 32 | sha256 of the rest, 32 | residues and seeds

Nothing in it says how large anything is, of which level or scale: a reader knows that from its own
plan, refuses what is not of that size to the byte, and puts SEAL's own headers around it itself.
The checksum finds damage; it is no signature.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence

from g2d.protect.homomorphic.errors import HomomorphicError

__all__ = ["HEADER", "KINDS", "SEED", "ciphertext_file", "keys_file", "pack", "plaintext_file",
           "unpack"]  # fmt: skip

MAGIC = b"G2D-HE\x00\x01"
HEADER = len(MAGIC) + 1 + 32 + 32

KINDS = {"query": b"Q", "answer": b"A", "keys": b"K", "secret": b"S"}

SEED = 64
"""Bytes of a seed: the half of a fresh ciphertext that is random is its expansion."""

_SEAL, _SEAL_HEADER = 0xA15E, 16
_VERSION = (4, 3)
_BLAKE2XB = 1

ParmsId = Sequence[int]


def pack(kind: str, digest: str, parts: Sequence[bytes]) -> bytes:
    """One blob of all parts."""
    payload = b"".join(parts)
    check = hashlib.sha256(payload).digest()
    return MAGIC + KINDS[kind] + bytes.fromhex(digest) + check + payload


def unpack(kind: str, digest: str, blob: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """The parts of a blob, which are of exactly these sizes.

    Raises:
        HomomorphicError: it is of another kind or plan, cut off, too long or damaged.
    """
    whole = HEADER + sum(sizes)
    if len(blob) != whole:
        raise HomomorphicError(
            f"the {kind} has {len(blob)} bytes, and this plan's has {whole}: it is cut off, of"
            " another plan or of another level"
        )
    if blob[: len(MAGIC)] != MAGIC:
        raise HomomorphicError(f"this is no {kind} of g2d's homomorphic inference")
    if blob[len(MAGIC) : len(MAGIC) + 1] != KINDS[kind]:
        raise HomomorphicError(f"this is something else than a {kind}")
    if blob[len(MAGIC) + 1 : len(MAGIC) + 33] != bytes.fromhex(digest):
        raise HomomorphicError(f"the {kind} is of another plan: fetch the plan that is served now")
    view = memoryview(blob)
    if hashlib.sha256(view[HEADER:]).digest() != blob[HEADER - 32 : HEADER]:
        raise HomomorphicError(f"the {kind} is damaged: its checksum is another")
    return _cut(view[HEADER:], sizes)


def _cut(view: memoryview, sizes: Sequence[int]) -> Iterator[bytes]:
    start = 0
    for size in sizes:
        yield bytes(view[start : start + size])
        start += size


def _framed(*parts: bytes) -> bytes:
    """SEAL's header, without compression, and what follows."""
    size = _SEAL_HEADER + sum(map(len, parts))
    header = struct.pack("<HBBBBHQ", _SEAL, _SEAL_HEADER, *_VERSION, 0, 0, size)
    return b"".join((header, *parts))


def _array(words: bytes) -> bytes:
    """DynArray."""
    return _framed(struct.pack("<Q", len(words) // 8), words)


def plaintext_file(parms: ParmsId, words: bytes) -> bytes:
    """A file that SEAL loads as SecretKey or Plaintext."""
    head = struct.pack("<4QQd", *parms, len(words) // 8, 1.0)
    return _framed(head, _array(words))


def ciphertext_file(
    parms: ParmsId, degree: int, primes: int, scale: float, words: bytes, seed: bytes = b""
) -> bytes:
    """A file that SEAL loads as Ciphertext or PublicKey: two polynomials in NTT form.

    Args:
        words: residues of both, or of the first, and the second is the expansion of `seed`.
    """
    head = struct.pack("<4QBQQQdQ", *parms, 1, 2, degree, primes, scale, 1)
    seeded = _framed(struct.pack("<B", _BLAKE2XB), seed) if seed else b""
    return _framed(head, _array(words), seeded)


def keys_file(parms: ParmsId, keys: Mapping[int, Sequence[bytes]], slots: int) -> bytes:
    """A file that SEAL loads as RelinKeys or GaloisKeys.

    Args:
        keys: for each index, the files of its key's parts. slots: of the table of keys.
    """
    parts = [struct.pack("<4QQ", *parms, slots)]
    for index in range(slots):
        key = keys.get(index, ())
        parts += [struct.pack("<Q", len(key)), *key]
    return _framed(*parts)
