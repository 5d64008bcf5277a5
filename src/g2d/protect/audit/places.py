"""Where audit logs, their key and their anchors lie: in the state folder, unless a path is given.

An anchor remembers, outside the log, the last checkpoint that was written: without one, nobody can
tell that a log was cut short at an earlier checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path

from g2d.core.files import MOST_TEXT, read_plain
from g2d.core.platforms import (
    open_flags,
    open_plain,
    others_may_read,
    private_state,
    state_folder,
    sync_folder,
    take_place,
)
from g2d.errors import G2DError, KeyFileError
from g2d.protect.audit.records import Head
from g2d.vault.keys import SigningKey, VerifyKey

_MOST = 4096


@dataclass(frozen=True)
class Anchor:
    """The last checkpoint of a log; `closed`: the service ended in order, and wrote no more."""

    log: str
    sequence: int
    head: str
    closed: bool

    @property
    def at(self) -> Head:
        """The head that it remembers."""
        return Head(self.sequence, self.head)


def audit_folder() -> Path:
    """The folder of audit logs, their key and their anchors; it may not be there yet.

    Raises:
        G2DError: this user has no folder for state.
    """
    try:
        return state_folder() / "audit"
    except OSError as error:
        raise G2DError(f"{error.strerror}: set G2D_STATE to a folder that is kept") from error


def _made() -> Path:
    """The same, made."""
    folder = audit_folder()
    try:
        return private_state(folder.name)
    except OSError as error:
        raise KeyFileError(
            f"{folder} cannot be made ({error.strerror}): set G2D_STATE to a folder of this user"
        ) from error


def default_log(vault: Path) -> Path:
    """The log of whoever serves a vault, by the vault's place."""
    place = vault.absolute().resolve()
    name = re.sub(r"[^A-Za-z0-9._-]", "_", place.name)[:60]
    return audit_folder() / f"{name}-{_short(place)}.jsonl"


def default_public() -> Path:
    """The public half of this machine's audit key."""
    return audit_folder() / "audit.pub"


def private_file() -> Path:
    """Where this machine's audit key lies, or is to lie."""
    return audit_folder() / "audit.key"


def make_audit_key(custodian: str = "") -> SigningKey:
    """Make this machine's audit key, mode 600, and its public half beside it.

    Args:
        custodian: opens the private file, as `g2d.protect.sealing` names it; "": it is in
            plaintext.

    Raises:
        KeyFileError: there is one, or it cannot be made.
        SealingError: the custodian is not there, or refuses.
    """
    _made()
    if default_public().exists() and not private_file().exists():
        raise KeyFileError(
            f"{default_public()} is there without its private half, and verifies older logs: move"
            " it away, and keep it; then make a new key"
        )
    made = SigningKey.generate()
    made.write(private_file(), custodian)
    made.public.write(default_public())
    return made


def audit_key() -> SigningKey:
    """This machine's audit key: made at the first use, mode 600, its public half beside it.

    Raises:
        KeyFileError: it cannot be made or read, others may read it, or it is plain where this user
            had it sealed. SealingError: its custodian does not open it.
    """
    _made()
    private = private_file()
    _check_sealed(private)
    if not private.exists():
        made = SigningKey.generate()
        try:
            made.write(private)
        except KeyFileError:
            if not private.exists():  # else another service was quicker
                raise
    key = SigningKey.read(private)
    if not default_public().exists():
        key.public.write(default_public())
    return key


def _check_sealed(private: Path) -> None:
    """Refuse a plain key, or none, where a custodian opens the key: somebody replaced it."""
    from g2d.vault.held import is_held_key
    from g2d.vault.sealing.keyfile import is_sealed_key
    from g2d.vault.sealing.named import noted

    if (custodian := noted(private)) is None:
        return
    try:
        data = read_plain(private, MOST_TEXT)
    except OSError:
        data = b""
    if not (is_sealed_key(data) or is_held_key(data)):
        raise KeyFileError(
            f"{private} is opened by {custodian}, and what lies there now is no such file: restore"
            f" it from a backup, or run `g2d keys seal {private} --custodian {custodian}` if you"
            " put a plain key there"
        )


def public_key(file: Path | None) -> VerifyKey:
    """What checkpoints are verified with: a file, or this machine's own audit key.

    Raises:
        KeyFileError: there is none, or it is no file of public keys.
    """
    if file is None and not default_public().exists():
        raise KeyFileError(
            f"there is no audit key in {audit_folder()}: give --key, the public key file"
            " (audit.pub) of the machine that wrote the log"
        )
    return VerifyKey.read(file or default_public())


# --- anchors -------------------------------------------------------------------------------------


def anchor_file(log: Path) -> Path:
    """Where the anchor of a log lies, by the log's place."""
    return audit_folder() / "anchors" / f"{_short(log.absolute().resolve())}.json"


def read_anchor(file: Path) -> Anchor | None:
    """Read an anchor; None: there is none.

    Raises:
        G2DError: it cannot be read, or is not one.
    """
    try:
        with FileIO(open_plain(file)) as opened:
            said = json.loads(opened.read(_MOST) or b"")
        found = Anchor(**said)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise G2DError(
            f"cannot read the anchor {file} ({error}): compare the log with a head that you noted"
            " elsewhere (`g2d audit verify --expect`), and move the anchor away"
        ) from error
    kinds = (str, int, str, bool)
    if any(type(v) is not k for v, k in zip(vars(found).values(), kinds, strict=True)):
        raise G2DError(f"{file} is not the anchor of an audit log: move it away, and look why")
    return found


def write_anchor(file: Path, anchor: Anchor) -> None:
    """Write an anchor whole or not at all, mode 600.

    Raises:
        OSError: it cannot be written; the old one is as it was.
    """
    if file.parent.parent == audit_folder():
        private_state("audit", file.parent.name)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    staged = file.with_name(f".{file.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | open_flags("O_NOFOLLOW", "O_CLOEXEC")
    with FileIO(os.open(staged, flags, 0o600), "w") as opened:
        opened.write(json.dumps(asdict(anchor)).encode())
        os.fsync(opened.fileno())
    take_place(staged, file)
    sync_folder(file.parent)


# --- files of a log ------------------------------------------------------------------------------


def segments(log: Path) -> list[Path]:
    """The files of a log, oldest first: those that are full, by number, and the one in use."""
    name = re.compile(re.escape(log.stem) + r"\.(\d{6,})" + re.escape(log.suffix))
    full = [(int(found[1]), path) for path in _beside(log) if (found := name.fullmatch(path.name))]
    return [path for _, path in sorted(full)] + ([log] if os.path.lexists(log) else [])


def next_segment(log: Path) -> Path:
    """The name that the file in use takes when it is full."""
    full = [path for path in segments(log) if path != log]
    last = int(full[-1].name[len(log.stem) + 1 : -len(log.suffix) or None]) if full else 0
    return log.with_name(f"{log.stem}.{last + 1:06d}{log.suffix}")


def check_private(handle: int, path: Path) -> None:
    """Raise a `G2DError` if others may read or write an open file."""
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    if others_may_read(mode):
        raise G2DError(
            f"others have access to the audit log {path} (mode {mode:o}): run `chmod 600 {path}`"
        )


def _beside(log: Path) -> list[Path]:
    try:
        return list(log.parent.iterdir())
    except FileNotFoundError:
        return []


def _short(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
