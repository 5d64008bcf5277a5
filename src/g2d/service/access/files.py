"""Files of the operator's that are read again when they change, while what was read still holds."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from g2d.core.platforms import open_plain
from g2d.errors import SettingsError

T = TypeVar("T")
_MOST = 4 << 20  # bytes of one file: a thousand CA certificates are 1.5 MB
_RACY = 2.0  # seconds in which a file may change again without another time of change
Contents = Mapping[str, bytes]
"""What was read, by the flag that names the file."""


def read(flag: str, file: str) -> bytes:
    """Read a plain file of bounded size; a link to one will do, as Kubernetes mounts them.

    Raises:
        SettingsError: it cannot be read, or is too large.
    """
    try:
        with os.fdopen(open_plain(Path(file), follow=True), "rb") as opened:
            data = opened.read(_MOST + 1)
    except OSError as error:
        raise SettingsError(f"cannot read {flag} {file}: {error.strerror or error}") from error
    if len(data) > _MOST:
        raise SettingsError(f"{flag} {file} is larger than {_MOST >> 20} MiB")
    return data


class Watched(Generic[T]):
    """Files, and what `make` makes of them; `look` reads them again if they changed.

    Args:
        files: by their flags; those named "" are left out. make: raises a `SettingsError` for what
            is wrong with them, which the first time is this constructor's, too.

    Attributes:
        value: what was made of the last files that were right; replaced as a whole.
    """

    def __init__(self, files: Mapping[str, str], make: Callable[[Contents], T]) -> None:
        self._files, self._make = {flag: file for flag, file in files.items() if file}, make
        self._stamps: object = self._stamp()
        contents = self._read()
        self._loaded, self._bad = _digest(contents), ""
        self.value = make(contents)

    def look(self) -> tuple[str, ...]:
        """Read files that changed; return their flags if another value was made of them.

        Files that are wrong are told at the second look: whoever replaces certificate and key does
        so one after the other.

        Raises:
            SettingsError: once for each way to be wrong; the old value stays.
        """
        stamps = self._stamp()
        if stamps == self._stamps and not self._bad:
            return ()
        try:
            contents = self._read()
            digests = _digest(contents)
            changed = tuple(flag for flag in self._files if digests[flag] != self._loaded[flag])
            value = self._make(contents) if changed else self.value
        except SettingsError as error:
            self._fail(error)
            return ()
        self._stamps, self._loaded, self._bad, self.value = stamps, digests, "", value
        return changed

    def _fail(self, error: SettingsError) -> None:
        """Note what is wrong; raise it when it is seen for the second time, and then no more."""
        seen, self._bad = self._bad, str(error)
        if seen == str(error):
            self._bad += _TOLD
            raise error
        if seen == str(error) + _TOLD:
            self._bad = seen

    def _read(self) -> Contents:
        return {flag: read(flag, file) for flag, file in self._files.items()}

    def _stamp(self) -> object:
        """Say when the files changed last; never the same twice while that is only a moment ago."""
        found: list[object] = []
        for file in self._files.values():
            try:
                about = os.stat(file)
            except OSError:
                found.append(object())
                continue
            recent = abs(time.time() - about.st_mtime) < _RACY
            same = (about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
            found.append(object() if recent else same)
        return found


_TOLD = "\0"


def _digest(contents: Contents) -> dict[str, bytes]:
    return {flag: hashlib.sha256(data).digest() for flag, data in contents.items()}
