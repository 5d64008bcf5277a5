"""Policy digests, computed here as a TPM computes them (TPM 2.0 Library, Part 3, section 23).

A sealed object carries one; a session has to reach the same digest before it is unsealed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from g2d.errors import SealingError
from g2d.protect.tpm.wire import sha256, sized, u16, u32, u64

__all__ = [
    "DEFAULT_PCRS",
    "authorized",
    "changed",
    "check_index",
    "check_pcrs",
    "counter_name",
    "counter_public",
    "not_above",
    "pcr_digest",
    "pcr_policy",
    "selection",
]

DEFAULT_PCRS = (14,)
"""PCR 14 is the operating system's to use: extended once, at boot, it says what booted."""

RESETTABLE = (16, 23)
FIRST_INDEX, LAST_INDEX = 0x0180_0000, 0x01BF_FFFF
START = bytes(32)
_PCR, _NV, _AUTHORIZE, _UNSIGNED_LE = 0x17F, 0x149, 0x16A, 9
_SHA256 = 0xB
# TPMA_NV: a counter (10) that is written (20000000) and read (40000) with its own, empty,
# authorisation (4), which is no matter of the dictionary-attack lockout (2000000).
_COUNTER_NEW = 0x02040014
COUNTER_WRITTEN = _COUNTER_NEW | 0x20000000


def check_pcrs(pcrs: Iterable[int]) -> tuple[int, ...]:
    """Return PCR numbers in order, or refuse those that prove nothing.

    Raises:
        SealingError: there is none, one is no PCR, or user space can reset it.
    """
    found = tuple(sorted(set(pcrs)))
    if not found or not all(0 <= number <= 23 for number in found):
        raise SealingError(f"PCRs {list(found)} were given, expected one or more from 0 to 23")
    for number in RESETTABLE:
        if number in found:
            raise SealingError(
                f"PCR {number} can be reset from user space and proves nothing: take PCR 14,"
                " extended once at boot"
            )
    return found


def selection(pcrs: Iterable[int]) -> bytes:
    """A selection of PCRs of the SHA-256 bank (TPML_PCR_SELECTION)."""
    bits = bytearray(3)
    for number in pcrs:
        bits[number // 8] |= 1 << number % 8
    return u32(1) + u16(_SHA256) + b"\x03" + bytes(bits)


def pcr_digest(values: Mapping[int, bytes]) -> bytes:
    """SHA-256 of the values of PCRs, lowest number first: what a quote signs."""
    return sha256(*(values[number] for number in sorted(values)))


def changed(values: Mapping[int, bytes], expected: Mapping[int, bytes]) -> str:
    """Say which PCRs are not as expected; "" where all are."""
    told = [
        f"PCR {number} is {values[number].hex()[:16]}..., expected {expected[number].hex()[:16]}..."
        for number in sorted(expected)
        if values[number] != expected[number]
    ]
    return "; ".join(told)


def pcr_policy(values: Mapping[int, bytes], before: bytes = START) -> bytes:
    """TPM2_PolicyPCR: these PCRs have these values."""
    return sha256(before, u32(_PCR), selection(values), pcr_digest(values))


def not_above(counter: int, limit: int, before: bytes) -> bytes:
    """TPM2_PolicyNV: the counter at this index is not above `limit`."""
    arguments = sha256(u64(limit), u16(0), u16(_UNSIGNED_LE))
    return sha256(before, u32(_NV), arguments, counter_name(counter))


def authorized(key_name: bytes, reference: bytes) -> bytes:
    """TPM2_PolicyAuthorize: whatever policy this key signs together with this reference."""
    return sha256(sha256(START, u32(_AUTHORIZE), key_name), reference)


def check_index(index: int) -> int:
    """Return the index of a counter; raises `SealingError` where owners may have none there."""
    if not FIRST_INDEX <= index <= LAST_INDEX:
        raise SealingError(
            f"{index:#x} is no index of a counter, expected one from {FIRST_INDEX:#x} to"
            f" {LAST_INDEX:#x}"
        )
    return index


def counter_public(index: int, written: bool = True) -> bytes:
    """The public area of a counter in non-volatile memory (TPMS_NV_PUBLIC)."""
    attributes = COUNTER_WRITTEN if written else _COUNTER_NEW
    return u32(check_index(index)) + u16(_SHA256) + u32(attributes) + sized(b"") + u16(8)


def counter_name(index: int) -> bytes:
    """The name of a counter that was incremented once."""
    return u16(_SHA256) + sha256(counter_public(index))
