"""Pictures that took seconds to decode are kept, decoded, in the user's own cache folder.

A cache and no more: whatever is wrong with it, the source is decoded again. Plain tensors in
safetensors files, named by the SHA-256 of their source; nothing is unpickled. Small sources are
not kept. $G2D_CACHE names another folder; empty, it switches the cache off.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from g2d.core.files import write_bytes
from g2d.core.platforms import open_plain, others_may_read, user
from g2d.errors import G2DError

_LEAST = 4 << 20  # bytes of a source that is worth it: 5,000 small JPEGs, decoded in a second
_MOST = 2 << 30  # bytes of all that is kept; the longest unused go first
_ENDING = ".safetensors"


def remembered(
    source: Path, about: str, make: Callable[[], Mapping[str, Tensor]]
) -> Mapping[str, Tensor]:
    """Return what `make` makes of a file, from the cache where it was made before.

    Args:
        about: what else decides the result: the reader's version, and the decoder's.
    """
    folder = _folder()
    if folder is None or source.stat().st_size < _LEAST:
        return make()
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    kept = folder / (hashlib.sha256(f"{about} {digest}".encode()).hexdigest() + _ENDING)
    try:
        with os.fdopen(open_plain(kept), "rb") as opened:
            found: Mapping[str, Tensor] = load(opened.read(_MOST))
        os.utime(kept)
    except (OSError, SafetensorError, ValueError):
        made = make()
        _keep(folder, kept, made)
        return made
    return found


def _folder() -> Path | None:
    """The cache's folder, of mode 700 and this user's; None where there is none to be trusted."""
    named = os.environ.get("G2D_CACHE")
    if named is None:
        try:
            home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
        except RuntimeError:  # a user without a home, as containers have
            return None
        named = str(Path(home) / "g2d")
    if not named:
        return None
    folder = Path(named) / "decoded"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.lstat()
    except OSError:
        return None
    ours = user() in (None, about.st_uid) and not others_may_read(about.st_mode)
    return folder if ours and stat.S_ISDIR(about.st_mode) else None


def _keep(folder: Path, kept: Path, made: Mapping[str, Tensor]) -> None:
    """Write it, if there is room; then forget what was used longest ago."""
    data = save({name: tensor.contiguous() for name, tensor in made.items()})
    if len(data) > _MOST:
        return
    try:
        write_bytes(kept, data)
        # All of them: a killed process may have left half of one under another name.
        files = sorted(folder.iterdir(), key=lambda path: -path.lstat().st_mtime_ns)
        room = _MOST
        for path in files:
            room -= path.lstat().st_size
            if room < 0:
                path.unlink(missing_ok=True)
    except (OSError, G2DError):  # no room, or no folder to write: decoded again next time
        return
