"""The TPM's own encoding (TCG TPM 2.0 Library, Part 2): big-endian integers and sized buffers.

A `Reader` never goes past the end, and never believes a size. What structures mean is elsewhere.
"""

from __future__ import annotations

import hashlib

from g2d.errors import SealingError

__all__ = ["MOST", "Reader", "sha256", "sized", "u8", "u16", "u32", "u64"]

MOST = 4096
"""Bytes of the largest structure that is read: a TPM's own buffers end below that."""


class Reader:
    """Reads one structure from start to end.

    Args:
        what: the structure, for messages, as "the quote".

    Raises:
        SealingError: it is larger than `MOST`.
    """

    def __init__(self, data: bytes, what: str) -> None:
        if len(data) > MOST:
            raise SealingError(f"{what} has {len(data)} bytes, expected {MOST} at most: refused")
        self._data, self._at, self._what = data, 0, what

    def take(self, count: int) -> bytes:
        """The next bytes; raises `SealingError` where there are fewer."""
        end = self._at + count
        if end > len(self._data):
            raise SealingError(
                f"{self._what} ends after {len(self._data)} bytes, in the midst of a field: refused"
            )
        self._at, taken = end, self._data[self._at : end]
        return taken

    def integer(self, size: int) -> int:
        """An unsigned integer of `size` bytes."""
        return int.from_bytes(self.take(size), "big")

    def sized(self, most: int) -> bytes:
        """A buffer that tells its size in two bytes (TPM2B); raises where it is above `most`."""
        size = self.integer(2)
        if size > most:
            raise SealingError(
                f"{self._what} has a field of {size} bytes, expected {most} at most: refused"
            )
        return self.take(size)

    def expect(self, size: int, value: int, field: str) -> None:
        """Read an integer that can have one value alone; raises where it has another."""
        found = self.integer(size)
        if found != value:
            raise SealingError(f"{self._what} has {field} {found:#x}, expected {value:#x}: refused")

    def end(self) -> None:
        """Raise `SealingError` where anything follows."""
        if rest := len(self._data) - self._at:
            raise SealingError(f"{self._what} has {rest} bytes too many: refused")


def u8(value: int) -> bytes:
    """One byte."""
    return value.to_bytes(1, "big")


def u16(value: int) -> bytes:
    """Two bytes."""
    return value.to_bytes(2, "big")


def u32(value: int) -> bytes:
    """Four bytes."""
    return value.to_bytes(4, "big")


def u64(value: int) -> bytes:
    """Eight bytes."""
    return value.to_bytes(8, "big")


def sized(data: bytes) -> bytes:
    """A buffer with its size before it (TPM2B)."""
    return u16(len(data)) + data


def sha256(*parts: bytes) -> bytes:
    """SHA-256 of the parts, one after the other."""
    return hashlib.sha256(b"".join(parts)).digest()
