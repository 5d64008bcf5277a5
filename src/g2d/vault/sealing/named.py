"""Custodians that key files name: which of them is used without a word of this machine's user.

A file's name for what opens it may make a process load a library (PKCS#11's module, a TPM's TCTI),
and a file comes from anywhere: a vault's settings name one, somebody hands over a claim. So such a
name is used only where this user has said it: when the file was made here, or since. Knows no
torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from g2d.core.files import MOST_TEXT, read_plain, replace_file
from g2d.core.platforms import private_state, state_folder
from g2d.errors import DAMAGE, SealingError
from g2d.vault.sealing.remembered import VARIABLE

__all__ = ["check_named", "note_named", "noted"]

_FOLDER = "keys"
_HARMLESS = ("file:",)  # with what follows; others where nothing does
_ALONE = ("paper", "tpm:")


def check_named(path: Path, url: str) -> None:
    """Refuse a custodian that only a key's file names, unless naming it can do no harm.

    Raises:
        SealingError: with what its user has to say first.
    """
    harmless = url.startswith(_HARMLESS) or url.partition("?")[0] in _ALONE
    if harmless or url in (os.environ.get(VARIABLE), noted(path)):
        return
    raise SealingError(
        f"{path} is opened by {url!r}, as it says itself, and what that names may be run: if it is"
        f" yours, run `g2d keys seal {path} --custodian '{url}'`, or set {VARIABLE}"
    )


def note_named(path: Path, url: str) -> None:
    """Note that this user has a key's file, where it lies, opened by a custodian.

    Raises:
        SealingError: it cannot be noted, and needs to be.
    """
    try:
        folder = private_state(_FOLDER)
        text = json.dumps({"path": str(_absolute(path)), "custodian": url}).encode()
        place = folder / _file(path).name
        replace_file(place, text, place.with_suffix(".tmp"))
    except OSError as error:
        raise SealingError(
            f"that {url} opens {path} cannot be noted ({error.strerror}): set G2D_STATE to a folder"
            " of this user"
        ) from error


def noted(path: Path) -> str | None:
    """The custodian that this user has a key's file, where it lies, opened by; None: none."""
    try:
        found = json.loads(read_plain(_file(path), MOST_TEXT))["custodian"]
    except (OSError, *DAMAGE):
        return None
    return found if isinstance(found, str) else None


def _file(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(_absolute(path))).hexdigest()[:32]
    return state_folder() / _FOLDER / f"{name}.json"


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))
