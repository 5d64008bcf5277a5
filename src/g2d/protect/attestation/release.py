"""Releasing a key to an enrolled host that has just proved its state. It needs no TPM.

The key is wrapped as an object that the host's TPM alone can import. Its policy is whatever a key
of the generating side approves for that number (PolicyAuthorize): PCRs, and a limit of the
counter. So a host that is about to be updated needs one more signature, no new enrolment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from g2d.errors import KeyFileError, SealingError
from g2d.protect.attestation.enrolment import Host
from g2d.protect.attestation.quotes import Proven
from g2d.protect.tpm import sealed
from g2d.protect.tpm.policies import authorized, changed, not_above, pcr_policy
from g2d.protect.tpm.publics import POLICY, is_sealed, key_of, name_of, public_of
from g2d.protect.tpm.wire import sha256, u64
from g2d.protect.tpm.wrapping import wrap_sealed

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

__all__ = [
    "PolicyKey",
    "Released",
    "approve_again",
    "check_released",
    "default_policy_key",
    "release",
]

_PURPOSE = b"g2d release 1\0"


@dataclass(frozen=True)
class Released:
    """A key that was released to one host.

    Attributes:
        storage: name of the host's storage key. public, duplicate, seed: the object to import.
        signer: public area of the key that approves policies. bound: SHA-256 of its context.
        number: of the generation. count: what the counter is raised to once it was opened. pcrs,
        counter, limit: the approved policy. approval: 64 bytes, r and s.
    """

    KIND: ClassVar[str] = "tpm-released"
    storage: bytes
    public: bytes
    duplicate: bytes
    seed: bytes
    signer: bytes
    bound: bytes
    number: int
    count: int
    pcrs: Mapping[int, bytes]
    counter: int
    limit: int
    approval: bytes

    @property
    def approved(self) -> bytes:
        """Digest of the policy that is approved: these PCRs, and a counter not above the limit."""
        return not_above(self.counter, self.limit, pcr_policy(self.pcrs))

    @property
    def reference(self) -> bytes:
        """What an approval is for: this number of this vault, and nothing else."""
        return sha256(_PURPOSE, u64(self.number), u64(self.count), self.bound)

    @property
    def to_sign(self) -> bytes:
        """The message of an approval; a TPM signs and verifies its SHA-256."""
        return self.approved + self.reference


class PolicyKey:
    """The generating side's key for approvals: ECDSA P-256, which every TPM verifies."""

    def __init__(self, key: EllipticCurvePrivateKey) -> None:
        self._key = key

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the key, or make it where there is none: mode 600.

        Raises:
            KeyFileError: it is another kind of key, inside a vault, or others may read it.
        """
        from cryptography.hazmat.primitives.asymmetric import ec

        from g2d.vault.keys import load_private, store_private

        if not path.exists():
            store_private(path, ec.generate_private_key(ec.SECP256R1()))
        key = load_private(path)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise KeyFileError(
                f"{path} is no key for approvals (ECDSA P-256): name another file, and it is made"
            )
        return cls(key)

    @property
    def area(self) -> bytes:
        """Its public area, as a TPM loads it."""
        return public_of(POLICY, self._key.public_key())

    def approve(self, message: bytes) -> bytes:
        """Sign an approval: 64 bytes, r and s."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        r, s = decode_dss_signature(self._key.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def __repr__(self) -> str:
        return f"PolicyKey({name_of(self.area).hex()})"


def default_policy_key() -> Path:
    """Where the key for approvals lies unless a path is given: ~/.config/g2d/approvals.key."""
    from g2d.vault.keys import default_key

    return default_key().with_name("approvals.key")


def release(
    host: Host, proven: Proven, key: bytes, context: bytes, number: int, approver: PolicyKey
) -> tuple[Released, Host]:
    """Wrap the key of a generation for a host, in the state that it has just proved.

    Args:
        proven: of `enrolment.hear`, moments ago. key: 32 bytes. context: what the key is bound to.

    Raises:
        SealingError: its PCRs are not those expected, or the number was wound back.
    """
    if told := changed(proven.pcrs, host.pcrs):
        raise SealingError(
            f"the host is not in the state that is expected: {told}; if you know of its update,"
            " accept the new state with `g2d attest verify --accept-state`"
        )
    count = host.count(number)
    if number < host.highest or proven.count > count + host.keep:
        raise SealingError(
            f"generation {number} is not released: this host was given {host.highest}, and its"
            f" counter is at {proven.count} of {count + host.keep}: the vault was wound back, or"
            " the number is wrong"
        )
    policy = authorized(
        name_of(approver.area),
        sha256(_PURPOSE, u64(number), u64(count), sha256(context)),
    )
    wrapped = wrap_sealed(host.storage, policy, sealed.pack(key, context))
    made = Released(
        name_of(host.storage), wrapped.public, wrapped.duplicate, wrapped.seed, approver.area,
        sha256(context), number, count, host.pcrs, host.counter, count + host.keep, b"",
    )  # fmt: skip
    return replace(made, approval=approver.approve(made.to_sign)), replace(host, highest=number)


def approve_again(
    released: Released, pcrs: Mapping[int, bytes], approver: PolicyKey
) -> Released:  # fmt: skip
    """Approve a release for other values of its PCRs, as they will be after an update.

    Raises:
        SealingError: the release is damaged, another key approved it, or it is of other PCRs.
    """
    check_released(released)
    if released.signer != approver.area:
        raise SealingError("the release was approved by another key: name that one with --key")
    if pcrs.keys() != released.pcrs.keys():
        raise SealingError(
            f"values of PCRs {sorted(pcrs)} were given, expected {sorted(released.pcrs)}"
        )
    made = replace(released, pcrs=dict(pcrs))
    return replace(made, approval=approver.approve(made.to_sign))


def check_released(released: Released) -> None:
    """Check that a release is whole: object, number and approval belong together.

    Raises:
        SealingError: they do not.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    key = key_of(released.signer, POLICY)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    policy = authorized(name_of(released.signer), released.reference)
    r, s = (
        int.from_bytes(half, "big") for half in (released.approval[:32], released.approval[32:])
    )
    try:
        if not is_sealed(released.public, policy, travels=True) or len(released.approval) != 64:
            raise InvalidSignature
        key.verify(encode_dss_signature(r, s), released.to_sign, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise SealingError(
            "the release is damaged, or its approval is of another number: take it once more from"
            " the side that released it"
        ) from None
