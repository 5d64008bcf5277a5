"""What a serving policy must not forget: its secret, and since which generation several are live.

A file of mode 600 in this user's state folder, by the vault's path, as the vault's mark. Without
the secret a restart would send clients elsewhere, to older generations too; without the number it
would answer from generations that were retired while the newest alone was live. Who is pinned lies
beside it (`suspects`).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from g2d.core.files import read_plain, replace_file
from g2d.core.platforms import private_state, state_folder
from g2d.errors import DAMAGE, VaultError
from g2d.settings import ServeSettings

GLOBAL = "global"
_MOST, _BYTES = 4096, 32


@dataclass(frozen=True)
class Kept:
    """The secret in hex; under which policy it was served last, how many were live, and the oldest.

    Under `global`, `first` means nothing.
    """

    secret: str
    policy: str
    live: int
    first: int


def begin(vault: Path, serving: ServeSettings, exposed: list[int]) -> tuple[bytes, list[int]]:
    """Note under which policy a vault is served from now on.

    Args:
        exposed: the last numbers that have been live, oldest first, at least one.

    Returns:
        The secret, and the numbers that may be live, oldest first: no more than were before this
        start, for what was retired stays so. Under `global` b"" and the newest.

    Raises:
        VaultError: the file is not what was written, or the state folder cannot be written.
    """
    try:
        if serving.policy == GLOBAL:
            _retire_older(vault)
            return b"", exposed[-1:]
        file = state_file(vault)
        kept = _read(file)
        numbers = exposed[-1:]
        if kept is not None and kept.policy != GLOBAL:
            numbers = [n for n in exposed if n >= kept.first] or numbers
            numbers = numbers[-min(kept.live, serving.live) :]
        secret = kept.secret if kept is not None else secrets.token_hex(_BYTES)
        _write(file, Kept(secret, serving.policy, serving.live, numbers[0]))
        return bytes.fromhex(secret), numbers
    except OSError as error:
        raise _unkept(error) from error


def retire(vault: Path, first: int) -> None:
    """Note that what is older than `first` is live no more, so that no restart brings it back.

    Raises:
        VaultError: the file is not what was written, or the state folder cannot be written.
    """
    try:
        kept = _read(file := state_file(vault))
        if kept is not None and kept.policy != GLOBAL and kept.first < first:
            _write(file, replace(kept, first=first))
    except OSError as error:
        raise _unkept(error) from error


def _unkept(error: OSError) -> VaultError:
    return VaultError(
        f"what serving policies keep in the state folder cannot be read or written"
        f" ({error.strerror or error}): set G2D_STATE to a folder of this user that is kept"
    )


def _retire_older(vault: Path) -> None:
    """Note that the newest alone is live, where several were; nothing is kept where none were.

    What cannot be read is no use to any policy, and none of the concern of this one.
    """
    kept = None
    with suppress(OSError, VaultError):
        kept = _read(file := state_file(vault))
    if kept is not None and kept.policy != GLOBAL:
        _write(file, Kept(kept.secret, GLOBAL, 1, 0))


def state_file(vault: Path) -> Path:
    """Where what policies keep of a vault lies: a name that its path says."""
    name = hashlib.sha256(os.fsencode(os.path.abspath(vault))).hexdigest()[:32]
    return state_folder() / "serving" / f"{name}.json"


def _read(file: Path) -> Kept | None:
    try:
        kept = Kept(**json.loads(read_plain(file, _MOST)))
        numbers = type(kept.live) is int and kept.live > 0 and type(kept.first) is int
        if not numbers or len(bytes.fromhex(kept.secret)) != _BYTES:
            raise ValueError("a value is not what it should be")
    except FileNotFoundError:
        return None
    except DAMAGE as error:
        raise VaultError(
            f"{file} is not what `g2d serve` wrote ({error}): look why. Without it every client is"
            " assigned anew; delete it if you mean that"
        ) from error
    return kept


def _write(file: Path, kept: Kept) -> None:
    private_state(file.parent.name)
    replace_file(file, json.dumps(asdict(kept)).encode(), file.with_suffix(".tmp"))
