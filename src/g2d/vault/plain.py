"""Reading what somebody else may have put there: plain files alone, no link, never without a bound.

Knows no torch.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from g2d.core.platforms import open_plain

__all__ = ["MOST_TEXT", "is_folder", "is_open_to_sqlite", "read_plain", "read_text"]

MOST_TEXT = 1 << 24
"""Bytes of settings, of a manifest or of a signature."""


def read_plain(path: Path, most: int) -> bytes:
    """Read a plain file of at most `most` bytes.

    Raises:
        OSError: it cannot be read, is larger, or grows; a link (`ELOOP`), a pipe or a device is.
    """
    handle = open_plain(path)
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(handle)
        if about.st_size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most} bytes", str(path))
        data = file.read(about.st_size + 1)  # room is taken for what is there, not for `most`
    if len(data) > about.st_size:
        raise OSError(errno.EAGAIN, "it grew while it was read", str(path))
    return data


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    r"""Read a plain file of UTF-8 text, its lines ended by "\n" as `Path.read_text` gives them.

    Raises:
        OSError: as `read_plain`.
        UnicodeDecodeError: it is something else.
    """
    return read_plain(path, most).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def is_folder(path: Path) -> bool:
    """Whether a folder lies there, and not a link to one."""
    return stat.S_ISDIR(_mode(path))


def is_open_to_sqlite(path: Path) -> bool:
    """Whether a plain file lies there, or nothing: sqlite follows links and waits for pipes."""
    mode = _mode(path)  # asked once: a writer makes and removes such files at any time
    return not mode or stat.S_ISREG(mode)


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except OSError:
        return 0
