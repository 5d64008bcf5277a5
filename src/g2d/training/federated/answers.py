"""The answers of an open round on disk: one file, a frame for each in the order of their coming.

A file and a rename for each answer took as much of a round's time as all checks of it. A frame is
the round's number, the sender's name, the answer, and their SHA-256: of what a kill or a power cut
has left, the frames of the round that is asked count, up to the first one that is not whole; who
sent the others is asked again. Nothing stays behind the last frame: what a client left there could
look like another's answer. Knows no torch.
"""

from __future__ import annotations

import hashlib
import os
import struct
import weakref
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

from g2d.core.platforms import open_flags, open_plain
from g2d.errors import G2DError
from g2d.training.federated.messages import is_identity

ANSWERS = "answers"
"""The file in a stage's folder that holds them."""

_HEAD = struct.Struct("<QBQ")  # the round, bytes of the name, and of the answer
_DIGEST = hashlib.sha256().digest_size


class AnswerFile:
    """The answers to the round that is asked.

    Nothing is flushed, which took four fifths of a round's time: after a power cut a client whose
    answer is not there whole is asked again, and sends the same bytes.

    Args:
        longest: bytes of an answer, at most.
    """

    def __init__(self, path: Path, longest: int) -> None:
        self.path, self.longest = path, longest
        self._number = self._end = 0
        self._file: FileIO | None = None

    def read(self, number: int) -> Iterator[tuple[str, bytes]]:
        """Begin, or go on with, a round: sender and answer of each whole frame of it.

        What was kept of other rounds is of no use any more, and `add` cuts it off.

        Raises:
            G2DError: the file cannot be read.
        """
        self._number, self._end = number, 0
        if not os.path.lexists(self.path):
            return
        try:
            with os.fdopen(open_plain(self.path), "rb") as file:
                while (found := self._frame(file.read)) is not None:
                    self._end = file.tell()
                    yield found
        except OSError as error:
            raise G2DError(
                f"{self.path} cannot be read ({error}): remove it, and whose answers it holds are"
                " asked again"
            ) from error

    def _frame(self, read: Callable[[int], bytes]) -> tuple[str, bytes] | None:
        """The next frame; None: there is none of this round, or it is not whole."""
        head = read(_HEAD.size)
        if len(head) < _HEAD.size:
            return None
        number, name_size, size = _HEAD.unpack(head)
        if number != self._number or size > self.longest:
            return None
        name, data, digest = read(name_size), read(size), read(_DIGEST)
        sender = name.decode("ascii", errors="replace")
        if not is_identity(sender) or _digest(head + name, data) != digest:
            return None
        return sender, data

    def add(self, sender: str, data: bytes) -> None:
        """Keep an answer; a kill leaves all of it, or nothing that counts.

        Raises:
            G2DError: it cannot be written; what was kept before is there.
        """
        name = sender.encode()
        head = _HEAD.pack(self._number, len(name), len(data)) + name
        try:
            if self._file is None:
                self._file = self._opened()
            if os.fstat(self._file.fileno()).st_size > self._end:
                self._file.truncate(self._end)
            self._file.seek(self._end)
            for part in (head, data, _digest(head, data)):
                left = memoryview(part)
                while left:
                    left = left[self._file.write(left) :]
        except OSError as error:
            raise G2DError(f"{self.path} cannot be written: {error}") from error
        self._end += len(head) + len(data) + _DIGEST

    def remove(self) -> None:
        """Remove the file: what its answers made is kept."""
        if self._file is not None:
            self._file.close()  # Windows removes no open file
            self._file = None
        self.path.unlink(missing_ok=True)

    def _opened(self) -> FileIO:
        flags = os.O_RDWR | os.O_CREAT | open_flags("O_NOFOLLOW", "O_CLOEXEC")
        file = FileIO(os.open(self.path, flags, 0o600), "r+b")
        weakref.finalize(self, file.close)
        return file


def _digest(head: bytes, data: bytes) -> bytes:
    found = hashlib.sha256(head)
    found.update(data)
    return found.digest()
