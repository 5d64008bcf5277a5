"""What lies in a vault's folder before it is touched: folders and files, and never links.

What is read there is read by `core.files.read_plain`. Knows no torch.
"""

from __future__ import annotations

import stat
from pathlib import Path

from g2d.core.files import MOST_TEXT, read_plain, read_text

__all__ = ["MOST_TEXT", "is_folder", "is_open_to_sqlite", "read_plain", "read_text"]


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
