"""The custodian `tpm`: keys that this machine's TPM alone unseals, while its PCRs are as they were.

Where a blob was released to this machine by the side that generates (`attestation.release`), it is
opened here, too. Nothing is kept in the TPM, and nothing beside the blob.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from g2d.errors import SealingError, nearest
from g2d.protect.tpm import documents, sealed
from g2d.protect.tpm.device import Device, open_device
from g2d.protect.tpm.policies import DEFAULT_PCRS, changed, check_pcrs, pcr_policy
from g2d.protect.tpm.publics import is_sealed, name_of

__all__ = ["Sealed", "TpmCustodian", "check_storage", "from_url", "pcrs_of"]


@dataclass(frozen=True)
class Sealed:
    """A key that was sealed here.

    Attributes:
        storage: name of the storage key. pcrs: values under which it opens. public, private: the
            sealed object's areas.
    """

    KIND: ClassVar[str] = "tpm-sealed"
    storage: bytes
    pcrs: Mapping[int, bytes]
    public: bytes
    private: bytes


class TpmCustodian:
    """Seals keys under a policy of PCRs of the SHA-256 bank.

    Args:
        tcti: where the TPM is, as `open_device` takes it. pcrs: numbers.
    """

    kind = "tpm"

    def __init__(self, tcti: str = "", pcrs: tuple[int, ...] = DEFAULT_PCRS) -> None:
        self.tcti, self.pcrs = tcti, check_pcrs(pcrs)

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Seal a key of 32 bytes under the PCRs as they are now; see `Custodian`."""
        data = sealed.pack(key, context)
        with open_device(self.tcti) as device:
            values = device.pcrs(self.pcrs)
            storage, area = device.storage()
            public, private = sealed.seal(device, storage, pcr_policy(values), data)
        return documents.encode(Sealed(name_of(area), values, public, private))

    def unwrap(self, blob: bytes, context: bytes) -> bytes:
        """Unseal a key that was sealed here, or released to this machine; see `Custodian`."""
        if documents.kind_of(blob) != Sealed.KIND:
            from g2d.protect.attestation.opening import open_release

            return open_release(self.tcti, blob, context)
        found = documents.decode(Sealed, blob, "the sealed key")
        if not is_sealed(found.public, pcr_policy(found.pcrs), travels=False):
            raise SealingError("the sealed key is damaged: its policy is not that of its PCRs")
        with open_device(self.tcti) as device:
            return sealed.unpack(_unseal(device, found), context)


def _unseal(device: Device, found: Sealed) -> bytes:
    storage, area = device.storage()
    check_storage(area, found.storage)
    if told := changed(device.pcrs(found.pcrs), found.pcrs):
        raise SealingError(
            f"this machine booted something else than when the key was sealed: {told}; boot what it"
            " was sealed under, or open the vault with its second custodian and seal it anew"
        )
    loaded = sealed.load(device, storage, found.public, found.private)
    pcrs = tuple(sorted(found.pcrs))

    def satisfy(policy: Any) -> None:
        sealed.set_pcr_policy(device, policy, pcrs)

    return sealed.unseal(device, storage, loaded, satisfy)


def check_storage(area: bytes, expected: bytes) -> None:
    """Check that a key was sealed for this TPM's storage key; raises `SealingError` otherwise."""
    if name_of(area) != expected:
        raise SealingError(
            "the key was sealed for another TPM, or this one was cleared since: open the vault"
            " where it was sealed, or with its second custodian"
        )


def from_url(rest: str) -> TpmCustodian:
    """Make the custodian that `tpm:[TCTI][?pcrs=7,14]` names.

    Raises:
        SealingError: an option is unknown, or PCRs prove nothing.
    """
    tcti, _, options = rest.partition("?")
    pcrs: tuple[int, ...] = DEFAULT_PCRS
    for option in filter(None, options.split("&")):
        name, _, value = option.partition("=")
        if name != "pcrs":
            raise SealingError(
                f"'tpm:' takes no option {name!r}, expected pcrs=14 or pcrs=7,14."
                f"{nearest(name, ['pcrs'])}"
            )
        pcrs = pcrs_of(value)
    return TpmCustodian(tcti, pcrs)


def pcrs_of(text: str) -> tuple[int, ...]:
    """PCR numbers as users write them, "7,14"; raises `SealingError` where they prove nothing."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() and len(part) <= 2 for part in parts):
        raise SealingError(f"{text!r} are no PCRs, expected numbers as in 14 or 7,14")
    return check_pcrs(map(int, parts))
