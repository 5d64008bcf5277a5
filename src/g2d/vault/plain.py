"""What lies in a vault's folder before it is touched: folders and files, and never links.

What is read there is read by `core.files.read_plain`. Knows no torch.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from g2d.core.files import MOST_TEXT, read_plain, read_text

__all__ = [
    "MOST_TEXT",
    "check_folders",
    "is_folder",
    "is_open_to_sqlite",
    "read_plain",
    "read_text",
]


def is_folder(path: Path) -> bool:
    """Whether a folder lies there, and not a link to one."""
    return stat.S_ISDIR(_mode(path))


def check_folders(root: Path, path: Path) -> None:
    """Refuse a file in a vault whose folder, up to `root`, lies behind a link.

    Raises:
        OSError: `ELOOP`.
    """
    for folder in path.parents:
        if folder == root:
            return
        if os.path.lexists(folder) and not is_folder(folder):
            raise OSError(errno.ELOOP, "it is a link or a file, expected a folder", str(folder))


def is_open_to_sqlite(path: Path) -> bool:
    """Whether a plain file lies there, or nothing: sqlite follows links and waits for pipes."""
    mode = _mode(path)  # asked once: a writer makes and removes such files at any time
    return not mode or stat.S_ISREG(mode)


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except OSError:
        return 0
