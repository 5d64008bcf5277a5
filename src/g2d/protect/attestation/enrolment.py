"""Enrolment: what the generating side learns of a host, once, and remembers. It needs no TPM.

Request (host) -> challenge (here) -> answer (host) -> `Host` (here). The challenge is a secret
that one TPM alone decrypts, if it holds both the endorsement key of the certificate and the key
that will sign quotes (make and activate credential), which then certifies the storage key.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ClassVar

from g2d.errors import SealingError
from g2d.protect.attestation.certificates import check_endorsement
from g2d.protect.attestation.quotes import (
    Clock,
    Evidence,
    Proven,
    check_clock,
    read_certified,
    verify,
    verify_signature,
)
from g2d.protect.tpm.policies import check_pcrs
from g2d.protect.tpm.publics import SIGNING, STORAGE, key_of, name_of
from g2d.protect.tpm.wire import sha256
from g2d.protect.tpm.wrapping import make_credential

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

__all__ = [
    "MOST_AGE",
    "Answer",
    "Ask",
    "Challenge",
    "Host",
    "Pending",
    "Request",
    "Terms",
    "ask",
    "begin",
    "finish",
    "hear",
]

MOST_AGE = 300
"""Seconds that a nonce holds."""


@dataclass(frozen=True)
class Request:
    """What a host says of its TPM: public areas of three keys, a certificate, and a counter."""

    KIND: ClassVar[str] = "attest-request"
    endorsement: bytes
    certificate: bytes
    signing: bytes
    storage: bytes
    counter: int


@dataclass(frozen=True)
class Ask:
    """What a host is asked for. `selected`: numbers of PCRs, "7,14"."""

    KIND: ClassVar[str] = "attest-ask"
    nonce: bytes
    selected: str
    counter: int


@dataclass(frozen=True)
class Challenge(Ask):
    """What a host is challenged with.

    Attributes:
        credential, seed: for TPM2_ActivateCredential. approver: public area of the key whose
            releases the host is to take; b"": anybody's.
    """

    KIND: ClassVar[str] = "attest-challenge"
    credential: bytes
    seed: bytes
    approver: bytes


@dataclass(frozen=True)
class Answer(Evidence):
    """What a host answers. `proof`: the secret. `certified`: the storage key is in this TPM."""

    KIND: ClassVar[str] = "attest-answer"
    proof: bytes
    certified: bytes
    certified_signature: bytes


@dataclass(frozen=True)
class Terms:
    """What a host is enrolled for.

    Attributes:
        pcrs: numbers. first: number of the generation that its counter begins with. every:
            generations that it counts as one. keep: counts by which an older one still opens.
    """

    pcrs: tuple[int, ...]
    first: int = 0
    every: int = 60
    keep: int = 1

    def __post_init__(self) -> None:
        check_pcrs(self.pcrs)
        if self.first < 0 or self.every < 1 or self.keep < 0:
            raise SealingError(
                f"terms first={self.first}, every={self.every}, keep={self.keep} make no sense:"
                " expected 0, 1 and 0 at least"
            )


@dataclass(frozen=True)
class Pending(Request):
    """An enrolment that waits for its answer; `proof`: SHA-256 of the secret."""

    KIND: ClassVar[str] = "attest-pending"
    nonce: bytes
    asked: int
    proof: bytes
    selected: str
    first: int
    every: int
    keep: int
    vouched: bool


@dataclass(frozen=True)
class Host:
    """An enrolled host, as the generating side remembers it.

    Attributes:
        signing, storage, endorsement: public areas. pcrs: expected values. counter: its index.
        base: its value at enrolment. nonce: drawn last and not used yet, b"" else; asked: when, in
        seconds. time, resets, restarts, safe: the TPM's clock when last heard of. highest: number
        of the newest generation that was released. vouched: whether a maker's root was verified.
    """

    KIND: ClassVar[str] = "attest-host"
    endorsement: bytes
    signing: bytes
    storage: bytes
    pcrs: Mapping[int, bytes]
    counter: int
    base: int
    first: int
    every: int
    keep: int
    nonce: bytes
    asked: int
    time: int
    resets: int
    restarts: int
    safe: bool
    highest: int
    vouched: bool

    @property
    def clock(self) -> Clock:
        """The TPM's clock when last heard of."""
        return Clock(self.time, self.resets, self.restarts, self.safe)

    def count(self, number: int) -> int:
        """The counter's value once a generation of this number was opened.

        Raises:
            SealingError: the number is below the first that the host was enrolled for.
        """
        if number < self.first:
            raise SealingError(
                f"generation {number} is older than {self.first}, the first that this host was"
                " enrolled for"
            )
        return self.base + (number - self.first) // self.every

    def oldest(self, number: int) -> int:
        """The oldest generation that still opens once one of this number was opened."""
        counts = (number - self.first) // self.every - self.keep
        return self.first + max(0, counts) * self.every


def begin(
    request: Request,
    terms: Terms,
    roots: Sequence[Certificate],
    insecure: bool,
    now: float,
    approver: bytes = b"",
) -> tuple[Challenge, Pending]:
    """Check what a host says of its TPM, and challenge it to prove that.

    Args:
        roots, insecure: as `check_endorsement` takes them. now: seconds since 1970. approver: as
            `Challenge` has it.

    Raises:
        SealingError: its keys are not of the kinds that are expected, or nobody vouches for it.
    """
    key_of(request.signing, SIGNING)
    key_of(request.storage, STORAGE)
    when = datetime.fromtimestamp(now, UTC)
    vouched = check_endorsement(request.certificate, request.endorsement, roots, when, insecure)
    secret, nonce = secrets.token_bytes(32), secrets.token_bytes(32)
    credential, seed = make_credential(request.endorsement, name_of(request.signing), secret)
    selected = ",".join(map(str, sorted(terms.pcrs)))
    challenge = Challenge(nonce, selected, request.counter, credential, seed, approver)
    pending = Pending(
        **vars(request), nonce=nonce, asked=int(now), proof=sha256(secret), selected=selected,
        first=terms.first, every=terms.every, keep=terms.keep, vouched=vouched,
    )  # fmt: skip
    return challenge, pending


def finish(pending: Pending, answer: Answer, now: float, most: int = MOST_AGE) -> Host:
    """Verify a host's answer: from now on it is enrolled, in the state that it quoted.

    Raises:
        SealingError: it does not prove that one TPM holds the three keys.
    """
    _check_age(pending.asked, now, most)
    if not hmac.compare_digest(sha256(answer.proof), pending.proof):
        raise SealingError(
            "the answer does not prove that the key for quotes lies in the TPM whose certificate"
            " was shown: refused"
        )
    pcrs = tuple(map(int, pending.selected.split(",")))
    proven = verify(answer, pending.signing, pending.nonce, pcrs, pending.counter)
    verify_signature(
        pending.signing, answer.certified, answer.certified_signature, "the storage key"
    )
    if read_certified(answer.certified, pending.nonce) != name_of(pending.storage):
        raise SealingError("the storage key is not the one that the TPM certified: refused")
    clock = proven.clock
    return Host(
        pending.endorsement, pending.signing, pending.storage, proven.pcrs, pending.counter,
        proven.count, pending.first, pending.every, pending.keep, b"", 0,
        clock.time, clock.resets, clock.restarts, clock.safe, 0, pending.vouched,
    )  # fmt: skip


def ask(host: Host, now: float) -> tuple[Host, Ask]:
    """Draw a nonce; an earlier one holds no more."""
    nonce = secrets.token_bytes(32)
    selected = ",".join(map(str, sorted(host.pcrs)))
    return replace(host, nonce=nonce, asked=int(now)), Ask(nonce, selected, host.counter)


def hear(host: Host, evidence: Evidence, now: float, most: int = MOST_AGE) -> tuple[Host, Proven]:
    """Verify a host's evidence; what is returned remembers its clock, and has used up the nonce.

    Raises:
        SealingError: it proves nothing, is too old, or the TPM's clock went back.
    """
    if host.nonce:
        _check_age(host.asked, now, most)
    proven = verify(evidence, host.signing, host.nonce, tuple(sorted(host.pcrs)), host.counter)
    check_clock(proven.clock, host.clock)
    return replace(host, nonce=b"", asked=0, **vars(proven.clock)), proven


def _check_age(asked: int, now: float, most: int) -> None:
    if now < asked:
        raise SealingError(
            f"this machine's clock was wound back by {asked - int(now)} s since the nonce was"
            " drawn: set it right, and ask again"
        )
    if now - asked > most:
        raise SealingError(
            f"the nonce was drawn {int(now) - asked} s ago, expected {most} s at most: ask again"
        )
