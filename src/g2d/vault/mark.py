"""High-water marks: what a vault has reached, remembered outside of it, so that it cannot go back.

A mark lies in this user's state folder, by the vault's absolute path; beside it, by the vault's
identity, under which paths it is known. What a mark says about a ledger is judged in `rollback`.
Knows no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Protocol

from g2d.core.files import read_plain, replace_file
from g2d.core.folders import PRIVATE
from g2d.core.platforms import held, others_may_read, state_folder
from g2d.errors import VaultError

__all__ = ["FileMark", "HighWaterMark", "Mark", "SteadyClock"]

_MOST = 1 << 16  # bytes of a mark
_PATIENCE = 10.0  # seconds for another process that is writing a mark
_IDENTITY = re.compile(r"[0-9a-f]{32}")
_LOOKED = 1000  # paths of one identity that are compared


@dataclass(frozen=True)
class Mark:
    """What a vault has reached.

    Attributes:
        vault: its identity. live: the highest number that was exposed, and `digest`, the SHA-256 of
            that generation's manifest. last: the highest number in the ledger. issued: the highest
            ever, even of a ledger that was given up; numbers go on above it. time: the newest
            moment seen, in seconds since 1970. accepted: what was accepted deliberately, and has
            not been told yet.
    """

    vault: str
    live: int = 0
    digest: str = ""
    last: int = 0
    issued: int = 0
    time: float = 0.0
    accepted: str = ""


class HighWaterMark(Protocol):
    """A memory outside the vault that only rises; `FileMark` is one, a TPM's counter another."""

    def read(self) -> Mark | None:
        """Return the mark; None: there has been none. A `VaultError`: it is damaged, or gone."""
        ...

    def advance(self, mark: Mark) -> None:
        """Remember what was reached, durably; nothing of it falls. A `VaultError`: it cannot."""
        ...

    def seen(self) -> bool:
        """Whether the same vault is known here under another path: this one is a copy of it."""
        ...


class FileMark:
    """A mark in a file of the state folder, mode 600; replaced whole, one writer at a time.

    Args:
        path: the vault's folder. identity: `Vault.identity`. state: the state folder.
    """

    def __init__(self, path: Path, identity: str, state: Path | None = None) -> None:
        self.vault, self.identity = Path(os.path.abspath(path)), identity
        with _explained("the state folder"):
            self.state = state or state_folder()
        if self.state.resolve().is_relative_to(self.vault.resolve()):
            raise VaultError(
                f"the state folder {self.state} lies in the vault, and would go back with it: set"
                " G2D_STATE to a folder outside"
            )
        name = hashlib.sha256(os.fsencode(self.vault)).hexdigest()[:32]
        self.file = self.state / "marks" / f"{name}.json"
        named = _IDENTITY.fullmatch(identity)  # a ledger says it, which anybody may have written
        self._known = self.state / "vaults" / identity / name if named else None

    def read(self) -> Mark | None:
        """Return the mark; None: no vault has been at this path.

        Raises:
            VaultError: it is damaged, others may write it, or it was deleted.
        """
        try:
            self._check_private()
            data = read_plain(self.file, _MOST)
        except FileNotFoundError:
            if self._known is not None and self._known.exists():
                raise VaultError(
                    f"the mark of {self.vault}, {self.file}, was deleted: what this vault had"
                    f" reached is not known any more. Look why; `g2d accept {self.vault}` takes"
                    " the vault as it is now"
                ) from None
            return None
        except OSError as error:
            raise _unkept(str(self.file), error) from error
        try:
            return _parsed(data)
        except ValueError as error:
            raise VaultError(
                f"{self.file} is not the mark that g2d wrote ({error}): look why;"
                f" `g2d accept {self.vault}` takes the vault as it is now"
            ) from error

    def advance(self, mark: Mark) -> None:
        """Remember what was reached; what is there already and higher stays."""
        with self._writing():
            there = self.read()
            if there is not None:
                rises = mark.live > there.live
                mark = Mark(
                    mark.vault,
                    max(mark.live, there.live),
                    mark.digest if rises else there.digest or mark.digest,
                    max(mark.last, there.last),
                    max(mark.issued, there.issued, mark.last),
                    max(mark.time, there.time),
                    there.accepted or mark.accepted,
                )
            self._write(mark)

    def reset(self, mark: Mark) -> None:
        """Take another mark deliberately, whatever there is; numbers still go on above the last."""
        with self._writing():
            try:
                there = self.read()
            except VaultError:
                there = None
            same = there is not None and there.vault == mark.vault
            issued = max(mark.issued, mark.last, there.issued if same and there else 0)
            self._write(replace(mark, issued=issued))

    def told(self) -> None:
        """Note that what was accepted has been told."""
        with self._writing():
            if (there := self.read()) and there.accepted:
                self._write(replace(there, accepted=""))

    def seen(self) -> bool:
        """Whether the same vault is known here under another path, with a mark of it."""
        return any(True for _ in self._others())

    def elsewhere(self) -> int:
        """The highest number that was live in a copy of the same vault at another path; 0: none."""
        return max((mark.live for mark in self._others()), default=0)

    def _others(self) -> Iterator[Mark]:
        """Marks of the same vault at other paths."""
        if self._known is None or not self._known.parent.is_dir():
            return
        for name in os.listdir(self._known.parent)[:_LOOKED]:
            if name == self._known.name:
                continue
            with suppress(OSError, ValueError):
                mark = _parsed(read_plain(self.file.with_name(f"{name}.json"), _MOST))
                if mark.vault == self.identity:
                    yield mark

    def _write(self, mark: Mark) -> None:
        text = json.dumps({"format": 1, "path": str(self.vault), **asdict(mark)})
        replace_file(self.file, text.encode(), self.file.with_suffix(".tmp"))
        if self._known is not None and not self._known.exists():
            self._known.parent.mkdir(PRIVATE, parents=True, exist_ok=True)
            replace_file(self._known, b"", self._known.with_suffix(".tmp"))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with _explained(str(self.state)):
            self.state.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.state, self.file.parent, self.state / "vaults"):
                folder.mkdir(PRIVATE, exist_ok=True)
            self._check_private()
            with held(self.file.with_suffix(".lock"), _PATIENCE):
                yield

    def _check_private(self) -> None:
        """Refuse marks that somebody else could write."""
        for path in (self.state, self.file.parent, self.file):
            with suppress(FileNotFoundError):
                if others_may_read(path.stat().st_mode & 0o022):
                    raise VaultError(
                        f"others may write {path}, so it proves nothing: run"
                        f" `chmod -R go-rwx {self.state}`"
                    )


class SteadyClock:
    """Seconds since 1970 that never go back: not behind the newest moment seen, nor while we run.

    Args:
        seen: the newest moment that is known from before; 0: none is.
    """

    def __init__(self, seen: float = 0.0) -> None:
        self._base, self._at = max(seen, time.time()), time.monotonic()

    def now(self) -> float:
        """The time, whatever the system's clock was set to."""
        return max(time.time(), self._base + time.monotonic() - self._at)

    def behind(self) -> float:
        """Seconds that the system's clock is behind."""
        return max(0.0, self.now() - time.time())


def _parsed(data: bytes) -> Mark:
    """Read a mark; ValueError: it is none."""
    try:
        found = json.loads(data)
        mark = Mark(**{item.name: found[item.name] for item in fields(Mark)})
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    numbers = (mark.live, mark.last, mark.issued)
    whole = all(type(n) is int and 0 <= n < 1 << 53 for n in numbers)
    texts = all(isinstance(text, str) for text in (mark.vault, mark.digest, mark.accepted))
    if not whole or not texts or type(mark.time) is not float or not math.isfinite(mark.time):
        raise ValueError("its values are not a mark's")
    return mark


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Say in one line why a mark cannot be kept, and where else it can be."""
    try:
        yield
    except BlockingIOError as error:
        raise VaultError(
            f"another process keeps its hold on what is in {where}: wait for it, or end it"
        ) from error
    except OSError as error:
        raise _unkept(where, error) from error


def _unkept(where: str, error: OSError) -> VaultError:
    return VaultError(
        f"{where} cannot keep how far this vault has come ({error.strerror}): set G2D_STATE to a"
        " folder of this user that outlives the process, such as a volume of a container"
    )
