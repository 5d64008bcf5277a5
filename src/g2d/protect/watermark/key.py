"""The secret of a watermark, and what is derived from it: one key for each set of triggers.

Whoever proves ownership shows the key of one set, and with it all its triggers; the other sets stay
secret. A commitment to every set was published before, so that no set can be chosen afterwards.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from g2d.core.files import MOST_TEXT, read_plain
from g2d.core.platforms import others_may_read
from g2d.errors import KeyFileError
from g2d.vault.keys import write_secret
from g2d.vault.sealing.keyfile import WATERMARK, open_key

SCHEME = "g2d-watermark-1"
_HEAD = "g2d watermark key 1"
KEY_BYTES = 32
"""Of the secret, and of each set's key."""


@dataclass(frozen=True)
class WatermarkKey:
    """32 secret bytes; no representation shows them."""

    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """Draw one from the system's randomness."""
        return cls(secrets.token_bytes(32))

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a key file.

        Raises:
            KeyFileError: it is absent, no such key, or others may read it.
            SealingError: its custodian does not open it.
        """
        path = Path(path).expanduser()
        try:
            data, mode = read_plain(path, MOST_TEXT, follow=True), path.stat().st_mode
        except OSError as error:
            raise KeyFileError(
                f"cannot read the watermark key {path} ({error}): name the file that "
                "`g2d watermark new` wrote, or its backup"
            ) from error
        if others_may_read(mode):
            raise KeyFileError(
                f"others may read the watermark key {path}: whoever has it can claim your weights;"
                f" run `chmod 600 {path}`"
            )
        lines = open_key(path, data, WATERMARK).decode("ascii", "replace").split("\n")
        if lines[0] != _HEAD or len(lines) < 2 or len(lines[1]) != 64:
            raise KeyFileError(f"{path} is no watermark key: `g2d watermark new` makes one")
        try:
            return cls(bytes.fromhex(lines[1]))
        except ValueError:
            raise KeyFileError(
                f"{path} is no watermark key: `g2d watermark new` makes one"
            ) from None

    def write(self, path: Path | str, custodian: str = "") -> None:
        """Write the key into a new file, mode 600; its folder is made.

        Args:
            custodian: opens the file, as `g2d.protect.sealing` names it; "": it is in plaintext.

        Raises:
            KeyFileError: a file is there already, it lies in a vault, or it cannot be written.
            SealingError: the custodian is not there, or refuses.
        """
        write_secret(path, f"{_HEAD}\n{self.secret.hex()}\n".encode(), custodian, WATERMARK)

    def of_set(self, place: int) -> bytes:
        """The 32 bytes that decide on set `place` of triggers; they tell nothing of other sets."""
        text = f"{SCHEME} set {place}".encode()
        return hmac.digest(self.secret, text, hashlib.sha256)
