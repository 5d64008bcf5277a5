"""What a TPM attests, read and verified with `cryptography` alone: quotes, counters, keys.

A signature is verified before anything of what it signs is believed; what was signed is read as if
an enemy had written it all the same. Structures: TPM 2.0 Library, Part 2, 10.12 (TPMS_ATTEST).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from g2d.errors import SealingError
from g2d.protect.tpm.policies import counter_name, pcr_digest
from g2d.protect.tpm.publics import SIGNING, key_of
from g2d.protect.tpm.wire import Reader

__all__ = [
    "Clock",
    "Evidence",
    "Proven",
    "check_clock",
    "read_certified",
    "read_counter",
    "read_quote",
    "verify",
    "verify_signature",
]

_MAGIC = 0xFF544347
_QUOTE, _CERTIFY, _COUNTER = 0x8018, 0x8017, 0x8014
_SHA256 = 0xB


@dataclass(frozen=True)
class Evidence:
    """What a host hands over, once asked with a nonce.

    Attributes:
        nonce: 32 bytes that it was asked with. pcrs: values of the PCRs, which `quote` digests.
        quote, counter: TPMS_ATTEST. The signatures: 64 bytes, r and s.
    """

    KIND: ClassVar[str] = "attest-quote"
    nonce: bytes
    pcrs: Mapping[int, bytes]
    quote: bytes
    quote_signature: bytes
    counter: bytes
    counter_signature: bytes


@dataclass(frozen=True)
class Clock:
    """The TPM's clock.

    Attributes:
        time: milliseconds for which it was powered. resets: how often it was started anew; 0 once
            it was cleared. restarts: how often it was resumed since. safe: no earlier answer can
            have told a later `time`.
    """

    time: int
    resets: int
    restarts: int
    safe: bool


@dataclass(frozen=True)
class Proven:
    """What evidence proves.

    Attributes:
        pcrs: values of PCRs. count: the counter's value.
    """

    pcrs: Mapping[int, bytes]
    count: int
    clock: Clock


def verify(
    evidence: Evidence, signing: bytes, nonce: bytes, pcrs: tuple[int, ...], counter: int
) -> Proven:
    """Verify a host's evidence: it was made now, by this key, and tells of these PCRs.

    Whether the values are those that are expected is for the caller to compare.

    Args:
        signing: public area of the key that was enrolled. nonce: the one that this side drew.
        counter: index of the counter.

    Raises:
        SealingError: it proves nothing; in one line.
    """
    if not nonce or evidence.nonce != nonce:
        raise SealingError(
            "the quote answers another nonce than the last one that was asked with: ask again with"
            " `g2d attest ask`"
        )
    verify_signature(signing, evidence.quote, evidence.quote_signature, "the quote")
    verify_signature(signing, evidence.counter, evidence.counter_signature, "the counter")
    clock, selected, digest = read_quote(evidence.quote, nonce)
    if selected != pcrs:
        raise SealingError(
            f"the quote is of PCRs {list(selected)}, expected {list(pcrs)}: refused"
        )  # fmt: skip
    if tuple(sorted(evidence.pcrs)) != pcrs or pcr_digest(evidence.pcrs) != digest:
        raise SealingError("the values of the PCRs are not those that were quoted: refused")
    _, count = read_counter(evidence.counter, nonce, counter)
    return Proven(evidence.pcrs, count, clock)


def verify_signature(signing: bytes, attest: bytes, signature: bytes, what: str) -> None:
    """Verify what the key for quotes signed.

    Raises:
        SealingError: it did not.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    key = key_of(signing, SIGNING)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        if len(signature) != 64:
            raise InvalidSignature
        key.verify(encode_dss_signature(r, s), attest, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise SealingError(
            f"{what} is not signed by the key that was enrolled for this host: it is damaged, or"
            " another TPM's"
        ) from None


def read_quote(attest: bytes, nonce: bytes) -> tuple[Clock, tuple[int, ...], bytes]:
    """Read a quote: clock, selected PCRs of the SHA-256 bank, and the digest of their values."""
    reader, clock = _head(attest, _QUOTE, nonce, "the quote")
    if reader.integer(4) != 1 or reader.integer(2) != _SHA256:
        raise SealingError(
            "the quote is not of PCRs of the SHA-256 bank alone: choose that bank in the firmware's"
            " settings"
        )
    reader.expect(1, 3, "a selection of PCRs of size")
    bits = int.from_bytes(reader.take(3), "little")
    digest = reader.sized(32)
    reader.end()
    if len(digest) != 32:
        raise SealingError("the quote has a digest that is not of SHA-256: refused")
    return clock, tuple(number for number in range(24) if bits >> number & 1), digest


def read_counter(attest: bytes, nonce: bytes, index: int) -> tuple[Clock, int]:
    """Read a certified counter: clock and value."""
    reader, clock = _head(attest, _COUNTER, nonce, "the counter")
    if reader.sized(34) != counter_name(index):
        raise SealingError(f"the counter is not the one at {index:#x} that was enrolled: refused")
    reader.expect(2, 0, "an offset of")
    reader.expect(2, 8, "a size of")
    value = reader.integer(8)
    reader.end()
    return clock, value


def read_certified(attest: bytes, nonce: bytes) -> bytes:
    """Read which key was certified to be in the same TPM: its name, 34 bytes."""
    reader, _ = _head(attest, _CERTIFY, nonce, "the certified key")
    name = reader.sized(34)
    reader.sized(34)  # its qualified name: those of its parents are in it
    reader.end()
    return name


def _head(attest: bytes, kind: int, nonce: bytes, what: str) -> tuple[Reader, Clock]:
    reader = Reader(attest, what)
    reader.expect(4, _MAGIC, "the magic number")
    reader.expect(2, kind, "the type")
    reader.sized(34)  # the qualified name of the signer, whose signature was verified
    if reader.sized(64) != nonce:
        raise SealingError(f"{what} was signed for another nonce: refused")
    clock = Clock(reader.integer(8), reader.integer(4), reader.integer(4), reader.integer(1) == 1)
    reader.take(8)  # the firmware's version
    return reader, clock


def check_clock(now: Clock, before: Clock) -> None:
    """Check that a TPM's clock went on since it was last heard of.

    Raises:
        SealingError: it went back: the TPM was cleared, or its whole state was put back.
    """
    if now.resets < before.resets:
        raise SealingError(
            f"the TPM tells {now.resets} starts, and told {before.resets} before: it was cleared,"
            " or is another: enrol the host anew"
        )
    after_power_cut = now.resets > before.resets and not now.safe  # up to 70 minutes may be lost
    if now.resets == before.resets and now.restarts < before.restarts:
        raise SealingError(
            f"the TPM's clock went back, from {before.restarts} resumptions since its start to"
            f" {now.restarts}: its state was put back: find out who could, and enrol the host anew"
        )
    if now.time < before.time and not after_power_cut:
        raise SealingError(
            f"the TPM's clock went back, from {before.time} to {now.time} ms: its state was put"
            " back, or it was cleared: find out who could, and enrol the host anew"
        )
