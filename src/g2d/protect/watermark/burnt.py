"""What a key was used for: a file beside it says who asked whom about which set, and when.

A set is burnt once its triggers, or its key, have left this machine: asked of a service, or shown
in a claim. Whoever saw them may train them away, or deny them. A network that is read from a file
here sees nothing.
"""

from __future__ import annotations

import getpass
import json
import os
import time
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Self

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
            lines = read_text(self.path, follow=True).splitlines()
            self.uses = [_use(line) for line in lines]
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
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | open_flags("O_CLOEXEC")
            handle = os.open(self.path, flags, 0o600)
            with FileIO(handle, "a") as file:
                file.write(line)
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

    def tries(self, place: int, suspect: str) -> int:
        """How many pairs of set and suspect have been tried, this one among them."""
        return len({(use.place, use.suspect) for use in self.uses} | {(place, suspect)})

    def next_set(self, commitment: Commitment) -> int:
        """The first set that is not burnt.

        Raises:
            SettingsError: all are.
        """
        left = self.left(commitment)
        if not left:
            raise SettingsError(
                "every set that may be queried is burnt: whoever was asked may know its triggers."
                " Name one all the same with --set, or mark your networks with a new key"
            )
        return left[0]


def _use(line: str) -> Use:
    use = Use(**json.loads(line))
    kinds = (int, str, str, str, bool)
    if tuple(map(type, vars(use).values())) != kinds:
        raise ValueError
    return use
