"""Sealing by this machine's TPM, and what is sealed: a key, with a digest of its context."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any

from g2d.errors import SealingError
from g2d.protect.tpm.device import Device
from g2d.protect.tpm.policies import selection
from g2d.protect.tpm.publics import sealed_public
from g2d.protect.tpm.wire import sized
from g2d.vault.sealing.custodian import KEY_SIZE

__all__ = ["load", "pack", "seal", "set_pcr_policy", "unpack", "unseal"]


def pack(key: bytes, context: bytes) -> bytes:
    """What is sealed of a key: itself, and the SHA-256 of its context; 64 bytes."""
    if len(key) != KEY_SIZE:
        raise SealingError(f"a key of {len(key)} bytes was given, expected {KEY_SIZE}")
    return key + hashlib.sha256(context).digest()


def unpack(data: bytes, context: bytes) -> bytes:
    """Return the key that was packed with this context; raises `SealingError` otherwise."""
    key, bound = data[:KEY_SIZE], data[KEY_SIZE:]
    if len(key) != KEY_SIZE or not hmac.compare_digest(bound, hashlib.sha256(context).digest()):
        raise SealingError(
            "the key was sealed for another vault or another purpose: this vault was put together"
            " from others' files"
        )
    return key


def seal(device: Device, storage: Any, policy: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Seal data under a policy digest: public and private area of the sealed object."""
    tss = device.tss
    private, public, *_ = device.esys.create(
        storage,
        tss.TPM2B_SENSITIVE_CREATE(tss.TPMS_SENSITIVE_CREATE(data=data)),
        device.public(sealed_public(policy, b"", travels=False)),
        session1=device.session(storage),
    )
    return public.marshal()[2:], bytes(private)


def load(device: Device, storage: Any, public: bytes, private: bytes) -> Any:
    """Load a sealed object: its handle, flushed with the device. Nothing secret is on the bus."""
    tss = device.tss
    return device.keep(
        device.esys.load(
            storage,
            tss.TPM2B_PRIVATE.unmarshal(sized(private))[0],
            device.public(public),
        )
    )


def unseal(device: Device, storage: Any, loaded: Any, satisfy: Callable[[Any], None]) -> bytes:
    """Unseal what is loaded, in an encrypted session whose policy `satisfy` brings about."""
    session = device.session(storage, policy=True)
    satisfy(session)
    return bytes(device.esys.unseal(loaded, session1=session))


def set_pcr_policy(device: Device, session: Any, pcrs: tuple[int, ...]) -> None:
    """TPM2_PolicyPCR of what the PCRs are at this moment."""
    device.esys.policy_pcr(
        session, None, device.tss.TPML_PCR_SELECTION.unmarshal(selection(pcrs))[0]
    )
