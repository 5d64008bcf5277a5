"""Writing files whole or not at all: readers see the old one or the new one, never a part.

A file takes another's place in one way: filled under another name, put onto the medium, renamed,
and its folder put onto the medium too. `replace_file` insists on the last step, as a vault must;
`write_bytes`, for files that anyone may keep anywhere, does without it where a folder cannot.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from g2d.core.platforms import set_mode, sync_folder, take_place
from g2d.errors import G2DError

_NO_SYNC = frozenset({errno.EACCES, errno.EINVAL, errno.ENOTSUP})
"""A folder that may be written and not read, or of a file system that syncs no folders."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically, mode 644, and durably as far as its folder allows.

    Raises:
        G2DError: the folder cannot be written, or the disk is full, and the old file is left alone;
            or the new file is there and the medium failed to keep it, as the message says.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            set_mode(handle, 0o644)
            os.close(handle)
            fill_file(Path(name), data)
            take_place(Path(name), path)
        finally:
            Path(name).unlink(missing_ok=True)  # it is there only if something went wrong
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
    """Write a file so that it is there whole, and on the medium, or not at all.

    Args:
        staged: a name in the same folder, which a kill or an error may leave behind.

    Raises:
        OSError: what the system refused; `path` is as it was, or, where only its folder could not
            be put onto the medium, is the new file.
    """
    fill_file(staged, data)
    take_place(staged, path)
    sync_folder(path.parent)


def fill_file(path: Path, data: bytes) -> None:
    """Write a file in place and onto the medium; a kill can leave half of it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def make_folder(path: Path) -> Path:
    """Make a folder with its parents and return it.

    Raises:
        G2DError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise G2DError(f"cannot make the folder {path}: {error}; name another one") from error
    return path
