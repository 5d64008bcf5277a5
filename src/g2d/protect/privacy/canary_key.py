"""The secret of an audit's canaries: which they are, which are planted, and how they are guessed.

It lies outside the vault: whoever trains, fits or serves must not know which coins fell how, and
whoever audits must have settled how to guess before anything was trained.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from g2d.core.files import read_plain
from g2d.core.platforms import others_may_read
from g2d.errors import DAMAGE, KeyFileError
from g2d.tasks.planted import KINDS, MISLABELLED
from g2d.vault.keys import outside_vaults, write_secret
from g2d.vault.sealing.keyfile import CANARIES, open_key

_HEAD = "g2d canary key 1"
_MOST = 1 << 16  # bytes of a key file
_SECRET = 32


@dataclass(frozen=True)
class CanaryKey:
    """What was settled when canaries were planted; no representation shows the secret.

    Attributes:
        vault: identity of the vault. canaries: how many there are. guesses: how many coins are
            guessed. kind: see `tasks.planted`.
    """

    secret: bytes = field(repr=False)
    vault: str
    canaries: int
    guesses: int
    kind: str = MISLABELLED

    @classmethod
    def generate(cls, vault: str, canaries: int, guesses: int, kind: str) -> Self:
        """Draw a secret from the system's randomness."""
        return cls(secrets.token_bytes(_SECRET), vault, canaries, guesses, kind)

    @property
    def commitment(self) -> str:
        """SHA-256 of the file: what the vault keeps, so that no other key is shown later."""
        return hashlib.sha256(self._text()).hexdigest()

    def _text(self) -> bytes:
        table = {"g2d": _HEAD, **asdict(self), "secret": self.secret.hex()}
        return (json.dumps(table, indent=1) + "\n").encode()

    def write(self, path: Path | str, custodian: str = "") -> None:
        """Write the key into a new file, mode 600.

        Args:
            custodian: opens the file, as `g2d.protect.sealing` names it; "": it is in plaintext.

        Raises:
            KeyFileError: a file is there already, it lies in a vault, or it cannot be written.
            SealingError: the custodian is not there, or refuses.
        """
        write_secret(path, self._text(), custodian, CANARIES)

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a key file.

        Raises:
            KeyFileError: it is absent, in a vault, no such key, or others may read it.
            SealingError: its custodian does not open it.
        """
        path = outside_vaults(path)
        try:
            data, mode = read_plain(path, _MOST, follow=True), path.stat().st_mode
        except OSError as error:
            raise KeyFileError(
                f"cannot read the canary key {path} ({error.strerror}): name the file that `g2d"
                " privacy plant` wrote"
            ) from error
        if others_may_read(mode):
            raise KeyFileError(
                f"others may read the canary key {path}: whoever has it can fool the audit; run"
                f" `chmod 600 {path}`"
            )
        plain = open_key(path, data, CANARIES)
        try:
            found = json.loads(plain)
            head, secret = found.pop("g2d"), bytes.fromhex(found.pop("secret"))
            made = cls(secret, **found)
            numbers = (made.canaries, made.guesses)
            right = head == _HEAD and len(secret) == _SECRET and made.kind in KINDS
            right &= all(type(n) is int for n in numbers) and 0 < made.guesses <= made.canaries
            right &= isinstance(made.vault, str)
        except DAMAGE:
            right = False
        if not right:
            raise KeyFileError(f"{path} is no canary key: `g2d privacy plant` makes one")
        return made
