"""A custodian on paper: a key that is printed once and typed in again, for the day of recovery.

256 random bits and 24 of their SHA-256, in base32, are 56 characters: 14 groups of four. Letters
and the digits 2 to 7 alone are used; 0, 1 and 8 are read as the letters that they look like. Knows
no torch.
"""

from __future__ import annotations

import base64
import binascii
import functools
import getpass
import hashlib
import os

from g2d.errors import SealingError
from g2d.vault.sealing.envelope import new_key, unwrap_key, wrap_key

__all__ = ["VARIABLE", "PaperCustodian", "from_url"]

VARIABLE = "G2D_PAPER_KEY"
"""The variable that may hold the key where nobody can type it."""

_CHECK = 3  # bytes
_LIKE = str.maketrans("018", "OIB")
_TEXT = 56  # characters


class PaperCustodian:
    """A key that somebody has on paper."""

    kind = "paper"

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def make(cls) -> PaperCustodian:
        """Draw a new key; show its `text` once."""
        return cls(new_key())

    @classmethod
    def typed(cls, text: str) -> PaperCustodian:
        """The custodian of a key as somebody typed it: in any case, with or without spaces.

        Raises:
            SealingError: it is too short or too long, or a character is wrong. It is not repeated.
        """
        plain = "".join(c for c in text if c.isalnum()).upper().translate(_LIKE)
        if len(plain) != _TEXT:
            raise SealingError(
                f"a paper key has {_TEXT} letters and digits, and {len(plain)} were typed"
            )
        try:
            found = base64.b32decode(plain)
        except binascii.Error:
            found = b""
        key, check = found[:-_CHECK], found[-_CHECK:]
        if not found or hashlib.sha256(key).digest()[:_CHECK] != check:
            raise SealingError("this is no paper key: at least one character is wrong")
        return cls(key)

    @property
    def text(self) -> str:
        """The key to be written down: 14 groups of four characters."""
        whole = self._key + hashlib.sha256(self._key).digest()[:_CHECK]
        text = base64.b32encode(whole).decode()
        return " ".join(text[i : i + 4] for i in range(0, len(text), 4))

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Wrap a key: AES-256-GCM, see `envelope.wrap_key`."""
        return wrap_key(key, self._key, context)

    def unwrap(self, blob: bytes, context: bytes) -> bytes:
        """Return the key that `wrap` was given with the same context.

        Raises:
            SealingError: this is another paper key.
        """
        try:
            return unwrap_key(blob, self._key, context)
        except ValueError as error:
            raise SealingError(f"this paper key does not open it: {error}") from error

    def __repr__(self) -> str:
        return "PaperCustodian()"


def from_url(rest: str) -> PaperCustodian:
    """The custodian of `paper`: it is typed in, once a process, or stands in $G2D_PAPER_KEY.

    Raises:
        SealingError: something follows the word, or what is typed is no paper key.
    """
    if rest:
        raise SealingError(
            f"a paper key is never an argument, which others see (`ps`): write `paper`, and type it"
            f" when you are asked, or set {VARIABLE}"
        )
    return _asked()


@functools.lru_cache(maxsize=1)
def _asked() -> PaperCustodian:
    text = os.environ.get(VARIABLE, "")
    if not text:
        try:
            text = getpass.getpass("Paper key: ")
        except (EOFError, OSError) as error:
            raise SealingError(
                f"nobody can be asked for the paper key here: set {VARIABLE}"
            ) from error
    return PaperCustodian.typed(text)
