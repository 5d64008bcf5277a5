"""Who has left, or was silent for too long, and so is not waited for; known after a kill, too.

Without it each start of the server waits once more, for all of `patience`, for whoever went before.
Knows neither torch nor NVFlare.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from g2d.core.files import read_text
from g2d.core.platforms import take_place
from g2d.core.types import Say

AWAY = "away.json"
"""The file beside the server's stages."""

_MOST = 1 << 24


class AwayFile:
    """A list of names on disk, or of none where there is no path.

    Args:
        say: hears, once, that it cannot be read or written: everybody is waited for then.
    """

    def __init__(self, path: Path | None, say: Say) -> None:
        self.path, self.say = path, say
        self._known: list[str] = []
        self._told = False

    def read(self) -> frozenset[str]:
        """The names; none where there is no such file, or it is damaged."""
        if self.path is None or not self.path.exists():
            return frozenset()
        try:
            found = json.loads(read_text(self.path, _MOST))
            if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
                raise ValueError("no list of names")
        except (OSError, RecursionError, ValueError) as error:
            self._tell(error)
            return frozenset()
        self._known = sorted(found)
        return frozenset(found)

    def write(self, names: Collection[str]) -> None:
        """Keep names where they are others than before, whole or not at all.

        Nothing is flushed: what a power cut loses costs one more wait. A folder that is not there
        is not made: of a population that is complete it was put away.
        """
        wanted = sorted(names)
        if self.path is None or wanted == self._known or not self.path.parent.is_dir():
            return
        staged = self.path.with_name(f".{self.path.name}.part")
        try:
            staged.write_text(json.dumps(wanted))
            take_place(staged, self.path)
        except OSError as error:
            self._tell(error)
            return
        self._known = wanted

    def _tell(self, error: Exception) -> None:
        if not self._told:
            self.say(
                f"{self.path}, which says who has left, cannot be used ({error}): after a restart"
                " everybody is waited for"
            )
        self._told = True
