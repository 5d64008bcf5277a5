"""Whose evaluation keys are known: by ids that nobody guesses, few, and for a time. Knows no HTTP.

Keys are files, for a client's are about 100 MB: as uploaded, in a folder of this process alone.
What they are is in `protect.homomorphic`; nothing of them is secret, and they decrypt nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from g2d.service.access.identity import Caller
from g2d.service.encrypted.evaluators import GoneError
from g2d.service.encrypted.uploads import Upload, Uploads
from g2d.service.http.limits import is_loopback

_OWN = 2
"""Keys of one client: those in use, and those that take their place."""
_FAILURES, _WHILE = 3, 3600.0
"""Evaluations under one client's keys that may fail within so many seconds: then it is the keys."""


@dataclass(frozen=True)
class Keys:
    """One client's evaluation keys: their id, file and bytes, whose they are, and when last used.

    Attributes:
        name: of who uploaded them, if he said who he is: they are his alone. client: what counts
            as one client. failed: when evaluations did, of the last hour.
    """

    id: str
    file: Path
    size: int
    name: str
    client: str
    used: float
    failed: tuple[float, ...] = ()


class KeyRing:
    """Evaluation keys by their ids. Belongs to one event loop.

    Args:
        folder: where files lie. most: keys of all clients; those give way that were not used for
            longest, a client's own first where he has two. idle: seconds until unused ones go.
            forget: called with the id of keys that go. patience: seconds that an upload has its
            place, whoever waits for it; see `uploads`.
    """

    def __init__(
        self,
        folder: Path,
        most: int,
        idle: float,
        forget: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        patience: float = 30.0,
    ) -> None:
        self._most, self.idle = most, idle
        self._forget, self._clock = forget, clock
        self._keys: dict[str, Keys] = {}  # least recently used first
        self._uploads = Uploads(folder, patience, clock)

    def __len__(self) -> int:
        return len(self._keys)

    @contextmanager
    def upload(self, caller: Caller) -> Iterator[Upload]:
        """Make room for an upload, whose file is to be filled. What is not kept is deleted.

        Raises:
            BusyError: he is uploading already, or too many are, and none of them gives way.
        """
        made = self._uploads.open(caller.client)
        try:
            yield made
        finally:
            self._uploads.close(made)
            if made.id not in self._keys:
                self._delete(made.id, made.file)

    def keep(self, own: str, file: Path, size: int, caller: Caller) -> Keys:
        """Know keys from now on that were uploaded whole and found right."""
        self.tidy()
        client = caller.client
        kept = [keys for keys in self._keys.values() if keys.client == client]
        if not is_loopback(client) and len(kept) >= _OWN:
            self._go(kept[0])
        while len(self._keys) >= self._most:
            self._go(next(iter(self._keys.values())))
        made = self._keys[own] = Keys(own, file, size, caller.name, client, self._clock())
        return made

    def find(self, own: str, caller: Caller) -> Keys:
        """Return keys to be used now; another identity's are as unknown as none.

        Raises:
            GoneError: they are not known, or not any more.
        """
        self.tidy()
        keys = self._keys.get(own)
        if keys is None or keys.name != caller.name:
            raise GoneError
        self._keys[own] = replace(self._keys.pop(own), used=self._clock())
        return keys

    def drop(self, own: str, caller: Caller) -> None:
        """Forget keys at their client's wish.

        Raises:
            GoneError: as `find`.
        """
        self._go(self.find(own, caller))

    def failed(self, own: str) -> bool:
        """Note that an evaluation failed, or its process died; return whether they are kept.

        What killed it may have been the system, for memory say; the third time it is these keys.
        """
        keys = self._keys.get(own)
        if keys is None:
            return False
        now = self._clock()
        failed = (*(when for when in keys.failed if when > now - _WHILE), now)
        if len(failed) >= _FAILURES:
            self._go(keys)
            return False
        self._keys[own] = replace(keys, failed=failed)
        return True

    def lose(self, own: str) -> None:
        """Forget keys whose file has gone."""
        if own in self._keys:
            self._go(self._keys[own])

    def tidy(self) -> None:
        """Forget what was not used for too long."""
        before = self._clock() - self.idle
        for keys in list(self._keys.values()):
            if keys.used >= before:
                break
            self._go(keys)

    def _go(self, keys: Keys) -> None:
        self._keys.pop(keys.id, None)
        self._delete(keys.id, keys.file)

    def _delete(self, own: str, file: Path) -> None:
        """Delete a file, then have evaluators forget it: one that reads it later finds none."""
        with suppress(OSError):
            file.unlink()
        self._forget(own)
