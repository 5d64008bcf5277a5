"""Writing files whole or not at all: readers see the old one or the new one, never a part."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from g2d.errors import G2DError


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically and durably.

    Raises:
        G2DError: the folder cannot be written, or the disk is full; the old file is left alone.
    """
    path, staged = Path(path), ""
    try:
        handle, staged = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(staged, 0o644)
        os.replace(staged, path)
    except OSError as error:
        if staged:
            Path(staged).unlink(missing_ok=True)
        raise G2DError(
            f"cannot write {path}: {error}; the old file, if there is one, is unchanged"
        ) from error


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
