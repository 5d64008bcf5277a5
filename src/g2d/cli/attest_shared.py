"""What the commands of `g2d attest` share: what releases are listed as, and what is shown.

As lazy as the commands themselves.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from g2d.cli.console import print_line
from g2d.errors import SealingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from g2d.protect.attestation.enrolment import Host
    from g2d.vault.sealing.record import Held
    from g2d.vault.vault import Vault

__all__ = [
    "label_of",
    "mark_first",
    "newest_here",
    "open_to_release",
    "show_approver",
    "show_endorsement",
    "show_pcrs",
    "values_of",
]


def newest_here(found: Mapping[int, list[Held]], tpm: str) -> int:
    """Number of the newest generation that was released to this machine's TPM.

    Raises:
        SealingError: none was, or there is no TPM.
    """
    from g2d.protect.attestation.release import Released
    from g2d.protect.tpm import documents
    from g2d.protect.tpm.device import open_device
    from g2d.protect.tpm.publics import name_of
    from g2d.vault.sealing.released import Bundle

    with open_device(tpm) as device:
        own = name_of(device.storage()[1])
    for number in sorted(found, reverse=True):
        for one in found[number]:
            with contextlib.suppress(SealingError):  # a damaged one is nobody's
                made = documents.decode(Released, Bundle.decode(one.blob).key, "a release")
                if made.storage == own:
                    return number
    raise SealingError(
        "nothing was released to this host's TPM: have it prove its state (`g2d attest ask` and"
        " `release`, where generations are made); or it was cleared since, then enrol it anew"
    )


def open_to_release(path: Path) -> Vault:
    """Open a vault of which something is to be released, beside whoever writes it.

    Raises:
        VaultError: it is open to others, or has gone back; or as `Vault.open`.
    """
    from g2d.vault.mark import FileMark
    from g2d.vault.placing import check_private
    from g2d.vault.rollback import judge
    from g2d.vault.vault import Vault

    vault = Vault.open(path)
    try:
        check_private(vault.path)
        judge(vault, FileMark(vault.path, vault.identity))
    except BaseException:
        vault.close()
        raise
    return vault


def mark_first(vault: Vault) -> None:
    """Mark what a vault has reached that this machine has never seen: its TPM has just opened it.

    Raises:
        VaultError: a mark of it was here, and was deleted or damaged.
    """
    from g2d.vault.mark import FileMark
    from g2d.vault.rollback import accept

    marks = FileMark(vault.path, vault.identity)
    if marks.read() is None and not marks.seen():
        print_line(accept(vault, marks))


def label_of(path: Path, host: Host) -> str:
    """What releases to a host are listed as: two files of one name are two hosts."""
    from g2d.protect.tpm.publics import name_of

    stem = re.sub(r"[^\w.-]", "_", path.stem)
    return f"{stem} ({name_of(host.storage)[2:6].hex()})"


def values_of(given: list[str]) -> Mapping[int, bytes]:
    """Values of PCRs as users write them, NUMBER=HEX; raises `SealingError` where one is none."""
    from g2d.protect.sealing.tpm import pcrs_of

    found = {}
    for text in given:
        number, _, value = text.partition("=")
        try:
            data = bytes.fromhex(value)
        except ValueError:
            data = b""
        if len(data) != 32 or "," in number:
            raise SealingError(
                f"{text!r} is no value of a PCR, expected NUMBER=HEX with 64 digits, of SHA-256"
            )
        found[pcrs_of(number)[0]] = data
    return found


def show_endorsement(area: bytes) -> None:
    """Show by what people tell TPMs apart: SHA-256 of the endorsement key's public area."""
    from g2d.protect.tpm.wire import sha256

    print_line(f"endorsement  sha256:{sha256(area).hex()}")


def show_approver(area: bytes) -> None:
    """Show by what people tell keys for approvals apart: SHA-256 of the public area."""
    from g2d.protect.tpm.wire import sha256

    print_line(f"approvals    sha256:{sha256(area).hex()}")


def show_pcrs(pcrs: Mapping[int, bytes]) -> None:
    """Show the values of PCRs, a line each."""
    for number in sorted(pcrs):
        print_line(f"PCR {number:<8} {pcrs[number].hex()}")
