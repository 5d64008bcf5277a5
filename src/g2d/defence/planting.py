"""A vault whose population is trained with an audit's canaries: planted before anything is made.

What canaries are is in `tasks.planted`; what they prove is in `redteam.privacy_audit`.
"""

from __future__ import annotations

from pathlib import Path

from g2d.defence.defence import Defence
from g2d.errors import PrivacyError
from g2d.protect.privacy.canary_key import CanaryKey
from g2d.tasks.planted import draw
from g2d.tasks.source import data_digest, find
from g2d.tasks.task import Task
from g2d.vault.records import PLANTED


def plant_canaries(
    defence: Defence, file: Path, count: int, guesses: int, kind: str, task: Task | None = None,
    custodian: str = "",
) -> CanaryKey:  # fmt: skip
    """Draw canaries, keep their secret in `file`, and plant those whose coin says so.

    The defence itself knows nothing of them: open the vault anew.

    Args:
        guesses: how many coins the audit will guess: to be settled now. task: as it is before a
            vault keeps people's records apart; needed only where it has no name. custodian: opens
            the secret's file; "": it is in plaintext.

    Raises:
        PrivacyError: the vault has begun, has canaries, or its unit of privacy is no record.
        DataError: so many cannot be planted. KeyFileError: the file cannot be written.
    """
    vault, unit = defence.vault, defence.settings.privacy.unit
    if vault.entry(PLANTED) is not None:
        raise PrivacyError(
            f"{vault.path} has canaries already, and their coins fell once: audit it with its key,"
            " or plant others in a new vault"
        )
    if vault.begun():
        raise PrivacyError(
            f"{vault.path} holds networks that were trained without canaries: plant them in a new"
            " vault of the same settings, before `g2d population`"
        )
    if unit != "record":
        raise PrivacyError(
            f"[privacy] unit is the key column {unit!r}, and a canary is one record: set it to"
            " 'record' in the vault that is audited"
        )
    if not 0 < guesses <= count:
        raise PrivacyError(f"{guesses} guesses about {count} canaries; expected 1 to {count}")
    key = CanaryKey.generate(vault.identity, count, guesses, kind)
    raw = task or find(defence.settings.task)
    planting = draw(raw, key.secret, count, kind)
    key.write(file, custodian)  # first: what is planted without a key proves nothing
    about = {"canaries": count, "kind": kind, "key": key.commitment, "data": data_digest(raw)}
    try:
        vault.put(PLANTED, 0, {"weights": planting.pack()}, about)
    except BaseException:
        file.unlink(missing_ok=True)  # a key of nothing would only be in the way
        raise
    return key
