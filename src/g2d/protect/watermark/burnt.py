"""What a key was used for: a file beside it says who asked whom about which set, and when.

A set is burnt once its triggers, or its key, have left this machine: asked of a service, or shown
in a claim. Whoever saw them may train them away, or deny them. A network that is read from a file
here sees nothing.
"""

from __future__ import annotations

import errno
import getpass
import json
import os
import time
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from g2d.core.files import read_text
from g2d.core.platforms import open_flags
from g2d.errors import DAMAGE, ClaimError, G2DError, SettingsError
from g2d.protect.watermark.claim import utc
from g2d.protect.watermark.commitment import Commitment


@dataclass(frozen=True)
class Use:
    """One verification: of which set, when, by whom, on what; `burnt`: the set is known now."""

    place: int
    date: str
    who: str
    suspect: str
    burnt: bool

    @classmethod
    def now(cls, place: int, suspect: str, burnt: bool) -> Self:
        """One that begins now."""
        return cls(place, utc(time.time()), _user(), suspect, burnt)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "unknown"


class Record:
    """Every use of a key.

    Raises:
        ClaimError: the file cannot be read as one.
    """

    def __init__(self, key: Path) -> None:
        self.path = key.with_name(f"{key.name}.used")
        self.uses: list[Use] = []
        try:
            # What ends without a newline was cut off by a kill: nothing was asked after it.
            *lines, _ = read_text(self.path, follow=True).split("\n")
            self.uses = [_use(line) for line in lines if line]
        except FileNotFoundError:
            return
        except (OSError, *DAMAGE) as error:
            raise ClaimError(
                f"cannot read {self.path}, which says what sets are burnt: put it back from a"
                " backup, or move it away if you know that no set was ever shown"
            ) from error

    def add(self, use: Use) -> None:
        """Note a use, on the medium before anything is asked.

        Raises:
            G2DError: it cannot be written.
        """
        line = json.dumps(asdict(use)).encode() + b"\n"
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | open_flags("O_CLOEXEC")
            handle = os.open(self.path, flags, 0o600)
            with FileIO(handle, "r+") as file:
                there = file.readall()
                end = there.rfind(b"\n") + 1
                if end < len(there):  # half a line, of a run that was killed
                    file.truncate(end)
                if file.write(line) != len(line):
                    file.truncate(end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
        except OSError as error:
            raise G2DError(
                f"cannot write {self.path} ({error.strerror}), which says what sets are burnt:"
                " nothing was asked"
            ) from error
        self.uses.append(use)

    def left(self, commitment: Commitment) -> list[int]:
        """The sets that may be asked about and are not burnt."""
        burnt = {use.place for use in self.uses if use.burnt}
        return [place for place in range(commitment.reserve) if place not in burnt]

    def tries(self, suspect: str) -> int:
        """How many suspects have been tried, this one among them."""
        return len({use.suspect for use in self.uses} | {suspect})

    def shown(self, suspect: str) -> list[int]:
        """The sets that a suspect, or who is behind its address, knows by now, in their order."""
        same = same_as(suspect)
        return sorted({u.place for u in self.uses if u.burnt and same_as(u.suspect) == same})

    def set_for(
        self, commitment: Commitment, suspect: str, place: int | None = None, fresh: bool = False
    ) -> int:
        """The set to ask a suspect about: one that it knows already, or the first not burnt.

        Whoever runs a service could else fail each time, and see one set after the other.

        Args:
            suspect: digest or address. place: the one that was asked for; None: any. fresh: it may
                be one that this suspect does not know, though it knows another.

        Raises:
            SettingsError: all sets are burnt; or the suspect would learn another one.
        """
        known = [one for one in self.shown(suspect) if one < commitment.reserve]
        if place is not None:
            if known and place not in known and not fresh:
                raise SettingsError(
                    f"{suspect} knows set {known[0]} already, and set {place} would be burnt, too:"
                    " leave --set out, or give --fresh-set if you mean it"
                )
            return place
        if known and not fresh:
            return known[0]
        left = self.left(commitment)
        if not left:
            raise SettingsError(
                "every set that may be queried is burnt: whoever was asked may know its triggers."
                " Name one all the same with --set, or mark your networks with a new key"
            )
        return left[0]


def same_as(suspect: str) -> str:
    """What suspects have in common whom one set tells the same: digest, or an address's host."""
    try:
        host = urlsplit(suspect).hostname
    except ValueError:
        return suspect
    return host.rstrip(".") if host else suspect


def _use(line: str) -> Use:
    use = Use(**json.loads(line))
    kinds = (int, str, str, str, bool)
    if tuple(map(type, vars(use).values())) != kinds:
        raise ValueError
    return use
