"""What a serving policy must not forget: its secret, and since which generation several are live.

A file of mode 600 in this user's state folder, by the vault's path, as the vault's mark. Without
the secret a restart would send clients elsewhere, to older generations too; without the number it
would answer from generations that were retired while the newest alone was live. Pins are not kept:
after a restart, a suspect is where its hash says.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from dataclasses import asdict, dataclass
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
        file = state_folder() / "serving" / f"{_name(vault)}.json"
        kept = _read(file)
        if serving.policy == GLOBAL:
            if kept is not None and kept.policy != GLOBAL:
                _write(file, Kept(kept.secret, GLOBAL, 1, 0))
            return b"", exposed[-1:]
        numbers = exposed[-1:]
        if kept is not None and kept.policy != GLOBAL:
            numbers = [n for n in exposed if n >= kept.first] or numbers
            numbers = numbers[-min(kept.live, serving.live) :]
        secret = kept.secret if kept is not None else secrets.token_hex(_BYTES)
        _write(file, Kept(secret, serving.policy, serving.live, numbers[0]))
        return bytes.fromhex(secret), numbers
    except OSError as error:
        raise VaultError(
            f"the policy {serving.policy!r} keeps its secret in the state folder, which fails"
            f" ({error.strerror or error}): set G2D_STATE to a folder of this user that is kept"
        ) from error


def _name(vault: Path) -> str:
    return hashlib.sha256(os.fsencode(os.path.abspath(vault))).hexdigest()[:32]


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
