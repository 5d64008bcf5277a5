"""Which private key signs for a vault: what its settings name, once this user has confirmed it.

A vault comes from anywhere, and must not choose a key on this machine. What was confirmed lies in
the user's state folder, by the vault's identity and its place: an identity is what a ledger says,
and anybody may have written that. Knows no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from g2d.core.files import MOST_TEXT, read_plain, read_text, replace_file
from g2d.core.platforms import private_state, state_folder
from g2d.errors import DAMAGE, KeyFileError

if TYPE_CHECKING:
    from g2d.vault.reading import VaultReader

__all__ = ["confirm_key", "confirmed_key", "key_named", "key_there", "state_file"]

VARIABLE = "G2D_SIGNING_KEY"
"""The variable that names the key in place of what was confirmed, for a container, say."""

_IDENTITY = re.compile(r"[0-9a-f]{32}")


def key_named(settings_toml: str) -> str:
    """The key that settings name; "": none, or the settings cannot be read."""
    try:
        found = tomllib.loads(settings_toml).get("signing", {}).get("key", "")
    except DAMAGE:
        return ""
    return found if isinstance(found, str) else ""


def key_there(path: Path) -> str:
    """The key that a file of settings names, if there is such a file; it may be anybody's."""
    try:
        return key_named(read_text(path))
    except (FileNotFoundError, UnicodeDecodeError):
        return ""


def confirm_key(vault: VaultReader, key: str) -> None:
    """Remember that this user lets a vault, where it lies now, be signed with a key.

    Raises:
        KeyFileError: it cannot be remembered.
    """
    try:
        path = state_file(vault, "keys")
        private_state(path.parent.name)
        replace_file(path, json.dumps({"key": _absolute(key)}).encode(), path.with_suffix(".tmp"))
    except OSError as error:
        raise KeyFileError(
            f"that {key} signs for this vault cannot be remembered ({error.strerror}): set"
            f" G2D_STATE to a folder of this user, or {VARIABLE} to the key"
        ) from error


def confirmed_key(vault: VaultReader, key: str) -> Path:
    """Return the key that signs for a vault whose settings name `key`.

    Raises:
        KeyFileError: nobody here has confirmed it.
    """
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser().absolute()
    try:
        known = json.loads(read_plain(state_file(vault, "keys"), MOST_TEXT))["key"]
    except (OSError, *DAMAGE):
        known = None
    if known != _absolute(key):
        raise KeyFileError(
            f"the settings of {vault.path} name the key {key}, and nobody here has said that it"
            f" signs for this vault: if you mean it, run `g2d keys use {vault.path} --key {key}`"
        )
    return Path(_absolute(key))


def _absolute(key: str) -> str:
    return str(Path(key).expanduser().absolute())


def state_file(vault: VaultReader, folder: str) -> Path:
    """Where, in a folder of the state folder, something is kept about a vault at its place.

    Raises:
        OSError: the vault has no identity, or this user no state folder.
    """
    if not _IDENTITY.fullmatch(vault.identity):
        raise OSError(0, "the vault has no identity")
    place = hashlib.sha256(os.fsencode(os.path.abspath(vault.path))).hexdigest()[:32]
    return state_folder() / folder / f"{vault.identity}-{place}.json"
