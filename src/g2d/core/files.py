"""Writing files whole or not at all: readers see the old one or the new one, never a part.

A file takes another's place in one way: filled under another name, put onto the medium, renamed,
and its folder put onto the medium too. `replace_file` insists on the last step, as a vault must;
`write_bytes`, for files that anyone may keep anywhere, does without it where a folder cannot.
`read_plain` is the one reader of what somebody else may have put there: plain files alone, never
without a bound. Folders that are worked in without following a link are in `folders`.
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from g2d.core.platforms import open_flags, open_plain, sync_folder, take_place
from g2d.errors import G2DError

MOST_TEXT = 1 << 24
"""Bytes of settings, of a manifest or of a signature."""

MOST_WEIGHTS = 1 << 36
"""Bytes of a checkpoint: room is taken for what is there alone."""

_NO_SYNC = frozenset({errno.EACCES, errno.EINVAL, errno.ENOTSUP})
"""A folder that may be written and not read, or of a file system that syncs no folders."""


def read_plain(path: Path, most: int, follow: bool = False) -> bytes:
    """Read a plain file of at most `most` bytes.

    Args:
        follow: a link to one will do: for what the user names, never for what lies in a vault.

    Raises:
        OSError: it cannot be read, is larger, or grows; a link (`ELOOP`), a pipe or a device is.
    """
    handle = open_plain(path, follow)
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(handle)
        if about.st_size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most} bytes", str(path))
        data = file.read(about.st_size + 1)  # room is taken for what is there, not for `most`
    if len(data) > about.st_size:
        raise OSError(errno.EAGAIN, "it grew while it was read", str(path))
    return data


def read_text(path: Path, most: int = MOST_TEXT, follow: bool = False) -> str:
    r"""Read a plain file of UTF-8 text, its lines ended by "\n" as `Path.read_text` gives them.

    Raises:
        OSError: as `read_plain`.
        UnicodeDecodeError: it is something else.
    """
    text = read_plain(path, most, follow).decode("utf-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def write_bytes(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file atomically, and durably as far as its folder allows.

    Args:
        mode: its permissions, less those that the user's umask takes away; 0o600: the owner alone.

    Raises:
        G2DError: the folder cannot be written, or the disk is full, and the old file is left alone;
            or the new file is there and the medium failed to keep it, as the message says.
    """
    path = Path(path)
    staged = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        try:
            fill_file(staged, data, mode)
            take_place(staged, path)
        except BaseException:
            with suppress(FileNotFoundError):
                staged.unlink()
            raise
    except OSError as error:
        raise G2DError(
            f"cannot write {path}: {error}; the old file, if there is one, is unchanged"
        ) from error
    try:
        sync_folder(path.parent)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise G2DError(
                f"{path} is written, but a power cut may lose it: {error}; check the disk"
            ) from error


def replace_file(path: Path, data: bytes, staged: Path) -> None:
    """Write a file for its owner alone, so that it is there whole, and on the medium, or not.

    Args:
        staged: a name in the same folder, which a kill or an error may leave behind.

    Raises:
        OSError: what the system refused; `path` is as it was, or, where only its folder could not
            be put onto the medium, is the new file.
    """
    with suppress(FileNotFoundError):
        staged.unlink()  # what a kill left, or a link that somebody put there
    fill_file(staged, data, 0o600)
    take_place(staged, path)
    sync_folder(path.parent)


def fill_file(path: Path | str, data: bytes, mode: int, folder: int | None = None) -> None:
    """Write a new file onto the medium; a kill can leave half of it. No link is followed.

    Args:
        folder: descriptor of the folder that a bare name is made in.

    Raises:
        OSError: there is something of that name (`EEXIST`), or it cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | open_flags("O_NOFOLLOW", "O_CLOEXEC")
    handle = os.open(path, flags, mode, **({} if folder is None else {"dir_fd": folder}))
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def make_folder(path: Path, mode: int = 0o777) -> Path:
    """Make a folder with its parents and return it; `mode` is the folder's own, if it is new.

    Raises:
        G2DError: it cannot be made.
    """
    try:
        path.mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        raise G2DError(f"cannot make the folder {path}: {error}; name another one") from error
    return path
