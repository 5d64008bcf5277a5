"""A client's keys on its disk: the secret ones in a file, and beside it where their others lie.

The file with the secret keys is `protect.homomorphic`'s, of mode 600 and never overwritten. Beside
it lies a note (FILE.json): for which plan they are, and by which id a service knows what was
uploaded for them. The note is no secret, and is written anew at each upload.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from g2d.core.files import read_plain, write_bytes
from g2d.core.platforms import private_state, state_folder
from g2d.errors import DAMAGE, KeyFileError

_MOST = 1 << 16


@dataclass(frozen=True)
class Note:
    """What lies beside secret keys.

    Attributes:
        plan: digest of the plan that they are for. url: the service, as it was uploaded to. keys:
            the id by which it knows them; "": not yet.
    """

    plan: str
    url: str
    keys: str = ""

    @classmethod
    def read(cls, file: Path) -> Note | None:
        """Read what lies beside a file of keys; None: there are no keys.

        Raises:
            KeyFileError: it cannot be read, or is none.
        """
        beside = note_file(file)
        try:
            told = json.loads(read_plain(beside, _MOST))
            note = cls(**told)
            if not all(isinstance(value, str) for value in asdict(note).values()):
                raise TypeError("every value is a text")
        except FileNotFoundError:
            if file.exists():
                raise KeyFileError(
                    f"{file} has no {beside.name} beside it, which says what it is for: name"
                    " another file, or put the note back"
                ) from None
            return None
        except (OSError, *DAMAGE) as error:
            raise KeyFileError(f"{beside} is not what `g2d client` wrote: {error}") from error
        return note

    def write(self, file: Path) -> None:
        """Write it beside a file of keys."""
        write_bytes(note_file(file), json.dumps(asdict(self)).encode(), 0o600)


def note_file(file: Path) -> Path:
    """Where the note of a file of keys lies."""
    return file.with_name(f"{file.name}.json")


def default_file(url: str, model: str, plan: str) -> Path:
    """Where keys for a plan of a service lie if nobody says where: by names that these give."""
    where = hashlib.sha256(f"{url.rstrip('/')}\n{model}".encode()).hexdigest()[:16]
    return state_folder() / "client" / f"{where}-{plan[:12]}.keys"


def make_default_folder() -> None:
    """Make the folder of `default_file`, closed to others.

    Raises:
        KeyFileError: it cannot be made.
    """
    try:
        private_state("client")
    except OSError as error:
        raise KeyFileError(f"cannot make the folder of keys: {error}; name a file") from error
