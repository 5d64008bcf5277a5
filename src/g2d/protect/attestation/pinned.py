"""Whose approvals a host believes: the key that it was enrolled with, remembered in its state.

Public keys of a host are public, so that anybody could make it a release of his own; what its TPM
checks is that the release is whole, and not whose it is.
"""

from __future__ import annotations

import base64
import json

from g2d.core.files import MOST_TEXT, read_plain, replace_file
from g2d.core.platforms import private_state, state_folder
from g2d.errors import DAMAGE, SealingError
from g2d.protect.tpm.publics import POLICY, key_of
from g2d.protect.tpm.wire import sha256

__all__ = ["check_pinned", "pin"]

_FOLDER = "approvers"


def pin(storage: bytes, approver: bytes) -> None:
    """Believe this key's approvals alone, from now on.

    Args:
        storage: name of the TPM's storage key. approver: public area of the key for approvals.

    Raises:
        SealingError: it is no such key, or cannot be remembered.
    """
    key_of(approver, POLICY)
    try:
        place = private_state(_FOLDER) / _name(storage)
        text = json.dumps({"approver": base64.b64encode(approver).decode()})
        replace_file(place, text.encode(), place.with_suffix(".tmp"))
    except OSError as error:
        raise SealingError(
            f"whose releases this host takes cannot be remembered ({error.strerror}): set G2D_STATE"
            " to a folder of this user that lasts"
        ) from error


def check_pinned(storage: bytes, approver: bytes) -> None:
    """Refuse a release that another key approved than the one that was pinned, if one was.

    Raises:
        SealingError: it is, or what was remembered is damaged.
    """
    try:
        data = read_plain(state_folder() / _FOLDER / _name(storage), MOST_TEXT)
        known = base64.b64decode(json.loads(data)["approver"], validate=True)
    except FileNotFoundError:
        return  # enrolled before hosts remembered it, or its state folder does not last
    except (OSError, *DAMAGE) as error:
        raise SealingError(
            f"whose releases this host takes cannot be read ({type(error).__name__}): look why, and"
            " enrol it anew"
        ) from error
    if known != approver:
        raise SealingError(
            "the release was approved by another key than this host was enrolled with: somebody"
            " made it himself. Look who; or if the key for approvals is new, enrol the host anew"
        )


def _name(storage: bytes) -> str:
    return f"{sha256(storage).hex()[:32]}.json"
