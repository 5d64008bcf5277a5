"""The host's side of enrolment and quotes: what its TPM is asked. It needs tpm2-pytss.

The key for quotes is a primary key of the endorsement hierarchy: the same each time, kept nowhere.
"""

from __future__ import annotations

from typing import Any

from g2d.errors import SealingError
from g2d.protect.attestation.enrolment import Answer, Ask, Challenge, Request
from g2d.protect.attestation.quotes import Evidence
from g2d.protect.sealing.tpm import pcrs_of
from g2d.protect.tpm import counter
from g2d.protect.tpm.device import Device
from g2d.protect.tpm.publics import ENDORSEMENT_EC, ENDORSEMENT_RSA, SIGNING, Kind
from g2d.protect.tpm.wire import sized

__all__ = ["answer", "evidence", "request"]

_LABEL = b"g2d attest 1"
# TCG EK Credential Profile 2.5, section 2.2.1: where certificates of these keys lie.
_CERTIFICATES = ((ENDORSEMENT_RSA, 0x01C00002), (ENDORSEMENT_EC, 0x01C0000A))
_PERSISTENT = 0x81010001


def request(device: Device, index: int) -> Request:
    """What this machine's TPM is; makes the counter at this index, if it is not there."""
    counter.make(device, index)
    _, signing = device.primary(SIGNING, "ENDORSEMENT", _LABEL)
    _, storage = device.storage()
    device.flush()
    kind, certificate = _certificate(device)
    _, endorsement = _endorsement(device, kind)
    return Request(endorsement, certificate, signing, storage, index)


def answer(device: Device, challenge: Challenge) -> Answer:
    """Answer a challenge: the secret, evidence, and that the storage key lies in this TPM.

    Raises:
        SealingError: the challenge is for another TPM.
    """
    tss, esys = device.tss, device.esys
    kind, _ = _certificate(device)
    endorsement, _ = _endorsement(device, kind)
    signing, _ = device.primary(SIGNING, "ENDORSEMENT", _LABEL)
    policy = device.keep(
        esys.start_auth_session(
            tss.ESYS_TR.NONE, tss.ESYS_TR.NONE, tss.TPM2_SE.POLICY,
            tss.TPMT_SYM_DEF(algorithm=tss.TPM2_ALG.NULL), tss.TPM2_ALG.SHA256,
        )
    )  # fmt: skip
    esys.policy_secret(tss.ESYS_TR.ENDORSEMENT, policy)
    try:
        proof = esys.activate_credential(
            signing, endorsement,
            tss.TPM2B_ID_OBJECT.unmarshal(sized(challenge.credential))[0],
            tss.TPM2B_ENCRYPTED_SECRET.unmarshal(sized(challenge.seed))[0],
            session2=policy,
        )  # fmt: skip
    except tss.TSS2_Exception as error:
        raise SealingError(
            "this TPM cannot answer the challenge: it is damaged, or was made for another host"
        ) from error
    device.flush()
    told = evidence(device, challenge)
    signing, _ = device.primary(SIGNING, "ENDORSEMENT", _LABEL)
    storage, _ = device.storage()
    certified, signature = esys.certify(storage, signing, challenge.nonce, _unset(device))
    return Answer(
        **vars(told), proof=bytes(proof), certified=bytes(certified),
        certified_signature=_plain(signature),
    )  # fmt: skip


def evidence(device: Device, asked: Ask) -> Evidence:
    """Quote the PCRs that are asked for, and certify the counter."""
    pcrs = pcrs_of(asked.selected)
    held = counter.find(device, asked.counter)
    values = device.pcrs(pcrs)
    signing, _ = device.primary(SIGNING, "ENDORSEMENT", _LABEL)
    quoted, signature = device.esys.quote(signing, device.selected(pcrs), asked.nonce)
    counted, second = device.esys.nv_certify(signing, held, asked.nonce, _unset(device), 8)
    return Evidence(
        asked.nonce, values, bytes(quoted), _plain(signature), bytes(counted), _plain(second)
    )  # fmt: skip


def _unset(device: Device) -> Any:
    """The scheme of the key itself."""
    return device.tss.TPMT_SIG_SCHEME(scheme=device.tss.TPM2_ALG.NULL)


def _plain(signature: Any) -> bytes:
    made = signature.signature.ecdsa
    return bytes(made.signatureR).rjust(32, b"\0") + bytes(made.signatureS).rjust(32, b"\0")


def _certificate(device: Device) -> tuple[Kind, bytes]:
    """The certificate that the TPM's maker put there (DER, b"": none), and its key's kind."""
    from tpm2_pytss.utils import NoSuchIndex, NVReadEK

    read = NVReadEK(device.esys)
    for kind, index in _CERTIFICATES:
        try:
            found = read(index)
        except NoSuchIndex:
            continue
        return kind, _der(found)
    return ENDORSEMENT_EC, b""


def _der(found: bytes) -> bytes:
    """A certificate without what its maker filled the memory up with."""
    if found[:2] != b"\x30\x82":
        return found
    return found[: 4 + int.from_bytes(found[2:4], "big")]


def _endorsement(device: Device, kind: Kind) -> tuple[Any, bytes]:
    """The endorsement key: the one that is kept in the TPM, if it is of the kind, else made."""
    if kind.rsa:  # making one takes seconds
        try:
            handle = device.esys.tr_from_tpmpublic(_PERSISTENT)
            public = device.esys.read_public(handle)[0].marshal()[2:]
        except device.tss.TSS2_Exception:
            public = b""
        if public.startswith(kind.template):
            return handle, public
    return device.primary(kind, "ENDORSEMENT")
