"""Signing keys in this machine's TPM: made there, never outside it, used while PCRs are as then.

ECDSA on P-256: TPMs rarely do Ed25519. The blob is the key's public area and its private one, which
the TPM has encrypted for itself alone; nothing is kept in the TPM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from g2d.errors import SealingError
from g2d.protect.sealing.tpm import TpmCustodian, check_storage, from_url
from g2d.protect.tpm import documents, sealed
from g2d.protect.tpm.device import Device, open_device
from g2d.protect.tpm.policies import changed, pcr_policy
from g2d.protect.tpm.publics import key_of, manifest_key, name_of, point_of
from g2d.protect.tpm.wire import sha256

__all__ = ["SigningBlob", "TpmHolder", "holder_from_url"]


@dataclass(frozen=True)
class SigningBlob:
    """A signing key of a TPM.

    Attributes:
        storage: name of the storage key. pcrs: values under which it signs. public, private: its
            areas.
    """

    KIND: ClassVar[str] = "tpm-signing"
    storage: bytes
    pcrs: Mapping[int, bytes]
    public: bytes
    private: bytes


class TpmHolder:
    """Makes keys under a policy of PCRs, and signs with them; see `g2d.vault.held.Holder`."""

    def __init__(self, by: TpmCustodian) -> None:
        self._tcti, self._pcrs = by.tcti, by.pcrs

    def make(self) -> tuple[bytes, bytes]:
        """Make a key in the TPM: its blob and its public point, 33 bytes."""
        with open_device(self._tcti) as device:
            values = device.pcrs(self._pcrs)
            storage, area = device.storage()
            kind, tss = manifest_key(pcr_policy(values)), device.tss
            private, made, *_ = device.esys.create(
                storage, tss.TPM2B_SENSITIVE_CREATE(),
                device.public(kind.template + bytes(4)), session1=device.session(storage),
            )  # fmt: skip
            public = made.marshal()[2:]
        blob = documents.encode(SigningBlob(name_of(area), values, public, bytes(private)))
        x, y = point_of(key_of(public, kind))  # type: ignore[arg-type]
        return blob, bytes([2 + y[-1] % 2]) + x

    def sign(self, blob: bytes, message: bytes) -> tuple[int, int]:
        """Have the TPM sign the SHA-256 of a message: r and s."""
        found = documents.decode(SigningBlob, blob, "the signing key")
        key_of(found.public, manifest_key(pcr_policy(found.pcrs)))
        with open_device(self._tcti) as device:
            return _sign(device, found, sha256(message))


def _sign(device: Device, found: SigningBlob, digest: bytes) -> tuple[int, int]:
    tss = device.tss
    storage, area = device.storage()
    check_storage(area, found.storage)
    if told := changed(device.pcrs(found.pcrs), found.pcrs):
        raise SealingError(
            f"this machine booted something else than when its signing key was made: {told}; boot"
            " that, or make a new key (`g2d keys new`) and have it trusted"
        )
    loaded = sealed.load(device, storage, found.public, found.private)
    session: Any = device.session(storage, policy=True)
    sealed.set_pcr_policy(device, session, tuple(sorted(found.pcrs)))
    ticket = tss.TPMT_TK_HASHCHECK(tag=tss.TPM2_ST.HASHCHECK, hierarchy=tss.TPM2_RH.NULL)
    signed = device.esys.sign(  # kept: it owns the memory of what it is made of
        loaded, digest, tss.TPMT_SIG_SCHEME(scheme=tss.TPM2_ALG.NULL), ticket, session1=session
    )
    halves = signed.signature.ecdsa.signatureR, signed.signature.ecdsa.signatureS
    r, s = (int.from_bytes(bytes(half), "big") for half in halves)
    return r, s


def holder_from_url(rest: str) -> TpmHolder:
    """What `tpm:[TCTI][?pcrs=7,14]` names; raises `SealingError` where PCRs prove nothing."""
    return TpmHolder(from_url(rest))
