"""A counter in the TPM's non-volatile memory: it only ever goes up, even if it is made anew.

Each step is a write to flash memory, which makers promise some 100,000 of: count coarsely.
"""

from __future__ import annotations

from typing import Any

from g2d.errors import SealingError
from g2d.protect.tpm.device import Device
from g2d.protect.tpm.policies import check_index, counter_public
from g2d.protect.tpm.wire import sized

__all__ = ["DEFAULT_INDEX", "MOST_STEPS", "find", "make", "raise_to", "value"]

DEFAULT_INDEX = 0x0180_4732
"""In the range that owners use as they like."""

MOST_STEPS = 100
"""Steps that are taken at once."""

_ABSENT = 0x18B


def make(device: Device, index: int) -> None:
    """Make the counter, unless it is there, and take its first step.

    Raises:
        SealingError: something else lies at this index.
    """
    tss, esys = device.tss, device.esys
    if _handle(device, index) is None:
        public = tss.TPM2B_NV_PUBLIC.unmarshal(sized(counter_public(index, written=False)))[0]
        esys.nv_increment(esys.nv_define_space(b"", public))
    found, _ = esys.nv_read_public(find(device, index))
    said = found.marshal()[2:]
    if said == counter_public(index, written=False):
        esys.nv_increment(find(device, index))  # a kill came before its first step
    elif said != counter_public(index):
        raise SealingError(
            f"something else lies in the TPM's memory at {index:#x}: name another index with"
            " --counter"
        )


def find(device: Device, index: int) -> Any:
    """The counter's handle.

    Raises:
        SealingError: there is none.
    """
    handle = _handle(device, index)
    if handle is None:
        raise SealingError(
            f"the TPM has no counter at {index:#x}: this host was never enrolled, or its TPM was"
            " cleared since: enrol it anew"
        )
    return handle


def _handle(device: Device, index: int) -> Any:
    try:
        return device.esys.tr_from_tpmpublic(check_index(index))
    except device.tss.TSS2_Exception as error:
        if error.rc == _ABSENT:
            return None
        raise


def value(device: Device, counter: Any) -> int:
    """What the counter says."""
    return int.from_bytes(bytes(device.esys.nv_read(counter, 8)), "big")


def raise_to(device: Device, counter: Any, goal: int) -> None:
    """Take as many steps as are missing; one that is beyond stays where it is."""
    for _ in range(goal - value(device, counter)):
        device.esys.nv_increment(counter)
