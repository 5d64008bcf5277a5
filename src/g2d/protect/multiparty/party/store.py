"""What one party keeps: its shares of weights, what all parties agreed on, what they are about to.

Activation has two phases. `prepare` writes down, durably, what is to be live; `commit` renames that
file, for which a full disk has room. What one party has committed all have prepared, so whoever
failed in between commits when it is back. Shares alone, which nobody activated, are never live.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from g2d.core.files import make_folder, read_plain, write_bytes
from g2d.core.folders import PRIVATE
from g2d.core.platforms import FileLock, others_may_read, sync_folder, take_place
from g2d.errors import DAMAGE, G2DError
from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.program import Program

KEPT = 2
"""Sets of shares that are kept beside what is live: what is shared, and not activated yet."""
MOST_SERIAL = 1 << 62
_NAME = re.compile(r"(\d{1,12})-([0-9a-f]{32})\.share")
_STAGED = re.compile(r"\..+\.[0-9a-f]{12}")  # what a kill has left of a file that was written
_REACHED, _NEXT = "reached.json", "next.json"
_MOST = 1 << 32
_LONGEST = 90  # bytes of a folder for sockets, whose names have 108 on Linux and 104 on macOS


class Held(NamedTuple):
    """Shares that a party holds: of which generation, made by which sharing, of which program.

    Weights that are shared twice are two sharings, whose shares do not belong together.
    """

    number: int
    sharing: str
    digest: str

    @property
    def slot(self) -> str:
        """Its name in an engine."""
        return f"{self.number}-{self.sharing}"


class Agreed(NamedTuple):
    """Shares that all parties answer by, or are about to; `serial` counts activations."""

    serial: int
    number: int
    sharing: str
    digest: str

    @property
    def held(self) -> Held:
        """Which shares."""
        return Held(*self[1:])

    @classmethod
    def read(cls, row: Sequence[Any]) -> Agreed:
        """What another party names; raises `MultipartyError` where it is none."""
        try:
            made = cls(*row)
        except TypeError as error:
            raise MultipartyError(f"{row!r} is no generation") from error
        numbers = all(type(one) is int and 0 < one < MOST_SERIAL for one in made[:2])
        if not numbers or not all(isinstance(one, str) for one in made[2:]):
            raise MultipartyError(f"{row!r} is no generation")
        return made


class Store:
    """A folder of this party's own, which one process holds at a time.

    Attributes:
        live: what was agreed on last. prepared: what is to be live next, if anything is. reached:
            the largest number that has been live; 0: none.

    Raises:
        MultipartyError: it cannot be used, is open to others, or another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = make_folder(folder, PRIVATE)
        try:
            if others_may_read(folder.stat().st_mode):
                raise MultipartyError(f"{folder} is open to others: run `chmod 700 {folder}` first")
            path = folder / "lock"
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            self._lock = FileLock(self._file, path)
            for path in folder.iterdir():
                if _STAGED.fullmatch(path.name):
                    path.unlink()
            self.reached, self.live = self._read_agreed(_REACHED)
            _, self.prepared = self._read_agreed(_NEXT)
            if self.live and self.prepared and self.prepared.serial <= self.live.serial:
                self.abort(self.prepared)
        except BlockingIOError as error:
            raise MultipartyError(f"another process holds {folder}: this rank is taken") from error
        except OSError as error:
            raise MultipartyError(f"cannot use {folder}: {error}") from error

    def close(self) -> None:
        """Let another process in."""
        self._lock.close()
        os.close(self._file)

    def sockets(self) -> Path:
        """An empty folder for the sockets of a session; what a kill has left goes.

        Unix sockets have short names: where this folder's is long, it is one for temporary files.
        """
        folder = self._folder.absolute() / "sockets"
        if len(os.fsencode(folder)) > _LONGEST:
            return Path(tempfile.mkdtemp(prefix="g2d-smpc-"))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(PRIVATE)
        return folder

    def held(self) -> list[Held]:
        """What is kept, newest first; what cannot be read is left out."""
        found = []
        for path in self._folder.iterdir():
            if match := _NAME.fullmatch(path.name):
                with suppress(MultipartyError):
                    program, _ = self._read(path)
                    row = Held(int(match[1]), match[2], program.digest)
                    found.append((row.number, path.stat().st_mtime_ns, row))
        return [row for *_, row in sorted(found, reverse=True)]

    def put(self, number: int, sharing: str, program: Program, body: bytes) -> Held:
        """Keep shares (durably); of those that nobody activated the oldest give way.

        Raises:
            MultipartyError: the number is below what was live here (a replay), what is there of
                this sharing is other, or there is no room.
        """
        if number < self.reached:
            raise MultipartyError(
                f"generation {number} is older than {self.reached}, which has been live: numbers"
                " only rise"
            )
        path = self._path(number, sharing)
        data = program.to_json().encode() + b"\n" + body
        if path.exists():
            if read_plain(path, _MOST) != data:
                raise MultipartyError(
                    f"other shares of this sharing of generation {number} lie here"
                )
        else:
            self._tidy(KEPT - 1)
            self._write(path, data)
        return Held(number, sharing, program.digest)

    def discard(self, number: int, sharing: str) -> None:
        """Give up shares, unless they are live or about to be."""
        path = self._path(number, sharing)
        if path not in self._needed():
            path.unlink(missing_ok=True)

    def _needed(self) -> set[Path]:
        agreed = [one for one in (self.live, self.prepared) if one is not None]
        return {self._path(one.number, one.sharing) for one in agreed}

    def _tidy(self, room: int) -> None:
        """Leave what is live or prepared, and the newest `room` of what is not."""
        needed = self._needed()
        others = [
            path for path in self._folder.iterdir()
            if _NAME.fullmatch(path.name) and path not in needed
        ]  # fmt: skip
        others.sort(key=lambda path: path.stat().st_mtime_ns)
        for path in others[: max(0, len(others) - room)]:
            path.unlink(missing_ok=True)

    def _write(self, path: Path, data: bytes) -> None:
        try:
            write_bytes(path, data, 0o600)
        except G2DError as error:
            raise MultipartyError(str(error)) from error

    def load(self, held: Held) -> tuple[Program, bytes]:
        """A program and this party's shares of its parameters.

        Raises:
            MultipartyError: they are not there, or damaged.
        """
        program, body = self._read(self._path(held.number, held.sharing))
        if program.digest != held.digest:
            raise MultipartyError(f"the shares of generation {held.number} are of another program")
        return program, body

    def prepare(self, agreed: Agreed) -> None:
        """Write down (durably) what is to be live next; `commit` needs no room for it any more.

        Raises:
            MultipartyError: it is older than what was live, its shares are not here, or there is no
                room.
        """
        if agreed in (self.live, self.prepared):
            return
        if agreed.number < self.reached or (self.live and agreed.serial <= self.live.serial):
            raise MultipartyError(
                f"generation {agreed.number} (activation {agreed.serial}) is older than"
                f" {self.reached}, which was live"
            )
        if not self._path(agreed.number, agreed.sharing).exists():
            raise MultipartyError(f"there is no share of generation {agreed.number} here")
        told = {
            "reached": agreed.number, "serial": agreed.serial, "sharing": agreed.sharing,
            "digest": agreed.digest,
        }  # fmt: skip
        self._write(self._folder / _NEXT, json.dumps(told).encode())
        self.prepared = agreed

    def commit(self, agreed: Agreed) -> None:
        """Note (durably) that what was prepared is live: older ones never are again.

        Raises:
            MultipartyError: it was not prepared here, or the folder cannot be written.
        """
        if agreed == self.live:
            return
        if agreed != self.prepared:
            raise MultipartyError(f"generation {agreed.number} was not prepared here")
        try:
            take_place(self._folder / _NEXT, self._folder / _REACHED)
            self.live, self.prepared, self.reached = agreed, None, agreed.number
            sync_folder(self._folder)
            self._tidy(KEPT)
        except OSError as error:
            raise MultipartyError(
                f"cannot note that generation {agreed.number} is live: {error}"
            ) from error

    def abort(self, agreed: Agreed) -> None:
        """Forget what was prepared, if it is this."""
        if agreed == self.prepared:
            (self._folder / _NEXT).unlink(missing_ok=True)
            self.prepared = None

    def _path(self, number: int, sharing: str) -> Path:
        name = f"{number:06d}-{sharing}.share"
        if _NAME.fullmatch(name) is None:
            raise MultipartyError(f"generation {number} of sharing {sharing!r} cannot be")
        return self._folder / name

    def _read(self, path: Path) -> tuple[Program, bytes]:
        try:
            text, _, body = read_plain(path, _MOST).partition(b"\n")
            return Program.from_json(text.decode()), body
        except (OSError, ValueError) as error:
            raise MultipartyError(f"cannot read {path}: {error}") from error

    def _read_agreed(self, name: str) -> tuple[int, Agreed | None]:
        path = self._folder / name
        if not path.exists():
            return 0, None
        try:
            told = json.loads(read_plain(path, 1 << 12))
            number = int(told["reached"])
            if "serial" not in told:  # before activations were counted
                return number, None
            row = (told["serial"], number, told["sharing"], told["digest"])
            return number, Agreed.read(row)
        except (MultipartyError, *DAMAGE) as error:
            raise MultipartyError(f"{path} is damaged ({error}): look why") from error
