"""What one party keeps of weights: its shares of the newest generations, and what was reached."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from g2d.core.files import make_folder, read_plain, write_bytes
from g2d.core.folders import PRIVATE
from g2d.core.platforms import FileLock, others_may_read
from g2d.errors import DAMAGE
from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.program import Program

KEPT = 3
"""Generations that are kept."""
_NAME = re.compile(r"(\d{1,12})-([0-9a-f]{32})\.share")
_REACHED = "reached.json"
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


class Store:
    """A folder of this party's own, which one process holds at a time.

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
            self.reached = self._read_reached()
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
        """Keep shares (durably) and give up the oldest.

        Raises:
            MultipartyError: the number is below what was live here (a replay), or what is there of
                this sharing is other.
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
            write_bytes(path, data, 0o600)
        held = self.held()
        for old in held[KEPT:]:
            if old.number < self.reached:
                self._path(old.number, old.sharing).unlink(missing_ok=True)
        return Held(number, sharing, program.digest)

    def load(self, held: Held) -> tuple[Program, bytes]:
        """A program and this party's shares of its parameters.

        Raises:
            MultipartyError: they are not there, or damaged.
        """
        program, body = self._read(self._path(held.number, held.sharing))
        if program.digest != held.digest:
            raise MultipartyError(f"the shares of generation {held.number} are of another program")
        return program, body

    def reach(self, number: int) -> None:
        """Note that a generation is live: older ones never are again."""
        if number > self.reached:
            write_bytes(self._folder / _REACHED, json.dumps({"reached": number}).encode(), 0o600)
            self.reached = number

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

    def _read_reached(self) -> int:
        path = self._folder / _REACHED
        if not path.exists():
            return 0
        try:
            return int(json.loads(read_plain(path, 1 << 12))["reached"])
        except DAMAGE as error:
            raise MultipartyError(f"{path} is damaged ({error}): look why") from error
