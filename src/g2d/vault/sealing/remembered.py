"""Which custodian opens a sealed vault on this machine, and that it is sealed at all.

A vault comes from anywhere: the names of custodians in it must load nothing here (a PKCS#11 module
is a library that is run), and its ledger must not be able to say that it is plain all of a sudden.
So both are remembered outside of it, as confirmed keys are (`g2d.vault.confirmed`). Knows no torch.
"""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from g2d.core.files import MOST_TEXT, read_plain, replace_file
from g2d.core.platforms import private_state
from g2d.errors import DAMAGE, SealingError
from g2d.vault.confirmed import state_file

if TYPE_CHECKING:
    from g2d.vault.reading import VaultReader
    from g2d.vault.sealing.custodian import Custodian
    from g2d.vault.sealing.record import Record

__all__ = [
    "VARIABLE",
    "Remembered",
    "forget",
    "leave",
    "named_here",
    "new_custodian",
    "note_opened",
    "remember",
    "remembered",
    "settle",
]

VARIABLE = "G2D_CUSTODIAN"
"""The variable that names the custodian, before what is remembered."""

_FOLDER = "custodians"


@dataclass(frozen=True)
class Remembered:
    """What is known of a vault on this machine.

    Attributes:
        custodian: what opens it; "": nothing is known of that. sealed: it was sealed for good;
            False: that is being begun, or undone, or was never done. key: name of its key. former:
            name of the key before that, while the vault is rekeyed; "": it is not. whole: none of
            its files was plain when it was read here; plaintext that comes later is not read.
    """

    custodian: str = ""
    sealed: bool = False
    key: str = ""
    former: str = ""
    whole: bool = False


def remember(
    vault: VaultReader,
    url: str,
    key: str,
    sealed: bool = True,
    former: str = "",
    whole: bool | None = None,
) -> None:
    """Remember that this user opens a vault, where it lies now, by a custodian.

    Args:
        key, sealed, former: as `Remembered` has them. whole: likewise; None: as it was.

    Raises:
        SealingError: it cannot be remembered.
    """
    if whole is None:
        whole = sealed and remembered(vault).whole
    said = Remembered(url, sealed, key, former, whole)
    try:
        path = state_file(vault, _FOLDER)
        private_state(_FOLDER)
        replace_file(path, json.dumps(asdict(said)).encode(), path.with_suffix(".tmp"))
    except OSError as error:
        raise SealingError(
            f"that {url} opens {vault.path} cannot be remembered ({error.strerror}): set G2D_STATE"
            f" to a folder of this user, or {VARIABLE} to the custodian"
        ) from error


def remembered(vault: VaultReader) -> Remembered:
    """What was remembered of a vault; what is there and cannot be read counts as sealed."""
    try:
        found = json.loads(read_plain(state_file(vault, _FOLDER), MOST_TEXT))
        custodian, sealed = str(found["custodian"]), bool(found["sealed"])
        former, whole = str(found.get("former", "")), bool(found.get("whole", sealed))  # older
        return Remembered(custodian, sealed, str(found["key"]), former, sealed and whole)
    except FileNotFoundError:
        return Remembered()
    except OSError as error:
        return Remembered(sealed=error.errno != 0)  # 0: it has no identity
    except DAMAGE:
        return Remembered(sealed=True, whole=True)


def note_opened(vault: VaultReader, record: Record) -> None:
    """Remember that a vault is sealed, all of it: a file of it was opened, and it says so.

    A vault that is being sealed or unsealed by this user's own command is left as it is.

    Raises:
        SealingError: the state folder cannot be written.
    """
    known = remembered(vault)
    begun = not known.sealed and known != Remembered()
    if record.all_sealed and not known.whole and not begun:
        key = known.key or record.key
        remember(vault, known.custodian, key, former=known.former, whole=True)


def settle(vault: VaultReader, record: Record | None) -> None:
    """Close to its former key a vault whose ledger says that it was rekeyed to the end.

    A kill between the ledger's last word and this memory's leaves that key open here.

    Raises:
        SealingError: the state folder cannot be written.
    """
    known = remembered(vault)
    if not (known.sealed and known.former) or record is None:
        return
    if record.state == "sealed" and record.key == known.key:
        remember(vault, known.custodian, record.key)


def leave(vault: VaultReader, record: Record) -> None:
    """Note that a vault is about to be unsealed because its user said so.

    Raises:
        SealingError: the state folder cannot be written.
    """
    if (known := remembered(vault)).sealed:
        remember(vault, known.custodian, record.key, sealed=False)


def forget(vault: VaultReader) -> None:
    """Forget a vault that is sealed no more.

    Raises:
        SealingError: the state folder cannot be written.
    """
    try:
        state_file(vault, _FOLDER).unlink(missing_ok=True)
    except OSError as error:
        raise SealingError(
            f"what was remembered of {vault.path} cannot be removed: {error.strerror}"
        ) from error


def named_here(vault: VaultReader) -> str:
    """The custodian that opens a vault on this machine.

    Raises:
        SealingError: nobody has named one.
    """
    named = os.environ.get(VARIABLE) or remembered(vault).custodian
    if not named:
        raise SealingError(
            f"{vault.path} is sealed, and nobody here has said which custodian opens it: run"
            f" `g2d vault custodians {vault.path} --use CUSTODIAN`, or set {VARIABLE}; on a host"
            f" that it was released to, `g2d attest open {vault.path}`"
        )
    return named


def new_custodian(url: str) -> Custodian:
    """The custodian that a user named.

    Custodians live in a layer above this one, and are found by name, as a user's own code is.

    Raises:
        SealingError: there is none of that name, or it cannot be used.
    """
    made: Custodian = importlib.import_module("g2d.protect.sealing").custodian(url)
    return made
