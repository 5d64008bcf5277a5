"""Opening a key that was released to this machine: its TPM enforces PCRs and counter."""

from __future__ import annotations

import hmac
from typing import Any

from g2d.errors import SealingError
from g2d.protect.attestation.pinned import check_pinned
from g2d.protect.attestation.release import Released, check_released
from g2d.protect.sealing.tpm import check_storage
from g2d.protect.tpm import counter, documents, sealed
from g2d.protect.tpm.device import Device, open_device
from g2d.protect.tpm.policies import changed
from g2d.protect.tpm.publics import name_of
from g2d.protect.tpm.wire import sha256, sized, u16, u64
from g2d.vault.sealing.released import PURPOSE

__all__ = ["open_release"]

_UNSIGNED_LE, _ECDSA, _SHA256 = 9, 0x18, 0xB


def open_release(tcti: str, blob: bytes, context: bytes) -> bytes:
    """Return the key of a release, and remember in the TPM's counter that it was opened.

    Raises:
        SealingError: it is damaged, another host's, of another vault, approved by another key than
            this host was enrolled with, or older than what it has opened; or the machine is not in
            the state that it was approved for.
    """
    released = documents.decode(Released, blob, "the release")
    check_released(released)
    if not context.startswith(PURPOSE):  # anybody can make a release, of a key of his own
        raise SealingError(
            "this is no key that the TPM sealed: a release opens a generation, and neither a vault"
            " nor a key's file. Somebody put it there: look who, and restore it from a backup"
        )
    if not hmac.compare_digest(released.bound, sha256(context)):
        raise SealingError("the release is of another vault, or of another purpose: refused")
    with open_device(tcti) as device:
        held = counter.find(device, released.counter)
        _check_number(device, held, released)
        data = _unseal(device, held, released)
        key = sealed.unpack(data, context)
        counter.raise_to(device, held, released.count)
    return key


def _check_number(device: Device, held: Any, released: Released) -> None:
    """Say what the TPM would refuse, in plain words."""
    value = counter.value(device, held)
    if value > released.limit:
        raise SealingError(
            f"generation {released.number} is older than what this host has opened (its counter is"
            f" at {value}, expected {released.limit} at most): the vault was wound back"
        )
    if released.count - value > counter.MOST_STEPS:
        raise SealingError(
            f"generation {released.number} is {released.count - value} counts ahead of this host"
            f" ({counter.MOST_STEPS} at most, for each is a write that wears the TPM out): enrol it"
            " anew, with --first"
        )


def _unseal(device: Device, held: Any, released: Released) -> bytes:
    tss, esys = device.tss, device.esys
    storage, area = device.storage()
    check_storage(area, released.storage)
    check_pinned(name_of(area), released.signer)
    if told := changed(device.pcrs(released.pcrs), released.pcrs):
        raise SealingError(
            f"this machine booted something else than generation {released.number} was released"
            f" for: {told}; boot that, or ask the generating side to approve the new state"
        )
    private = esys.import_(
        storage, b"", device.public(released.public),
        tss.TPM2B_PRIVATE.unmarshal(sized(released.duplicate))[0],
        tss.TPM2B_ENCRYPTED_SECRET.unmarshal(sized(released.seed))[0],
        tss.TPMT_SYM_DEF_OBJECT(algorithm=tss.TPM2_ALG.NULL),
    )  # fmt: skip
    loaded = sealed.load(device, storage, released.public, bytes(private))
    return sealed.unseal(
        device, storage, loaded, lambda policy: _satisfy(device, policy, held, released)
    )


def _satisfy(device: Device, policy: Any, held: Any, released: Released) -> None:
    tss, esys = device.tss, device.esys
    sealed.set_pcr_policy(device, policy, tuple(sorted(released.pcrs)))
    limit = tss.TPM2B_OPERAND(buffer=u64(released.limit))
    esys.policy_nv(held, held, policy, limit, _UNSIGNED_LE)
    r, s = released.approval[:32], released.approval[32:]
    signature = tss.TPMT_SIGNATURE.unmarshal(u16(_ECDSA) + u16(_SHA256) + sized(r) + sized(s))[0]
    signer = esys.load_external(device.public(released.signer), hierarchy=tss.ESYS_TR.OWNER)
    try:
        ticket = esys.verify_signature(signer, sha256(released.to_sign), signature)
    finally:
        esys.flush_context(signer)
    esys.policy_authorize(
        policy, released.approved, name_of(released.signer), ticket, released.reference
    )
