"""Whether a vault has gone back: its ledger beside the mark that lies outside of it.

Marks are in `mark`. Everything here only reads; a refusal names the command that accepts a vault
deliberately, `g2d accept`. Knows no torch.
"""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING

from g2d.errors import RefusedError, VaultError
from g2d.vault.ledger import give_identity, note_mark
from g2d.vault.mark import FileMark, HighWaterMark, Mark

if TYPE_CHECKING:
    from g2d.vault.vault import Vault

__all__ = ["Watermark", "accept", "judge", "reached", "unmarked"]


def judge(vault: Vault, keeper: HighWaterMark) -> Mark | None:
    """Return the mark of a vault that is not behind it; None: there is none yet.

    Raises:
        RefusedError: the ledger is older than the mark, is another vault's, has another history, or
            says that there was a mark, and there is none. VaultError: the mark is damaged or gone.
    """
    found, live = keeper.read(), vault.live() or 0
    if found is None:
        if vault.marked and not keeper.seen():
            raise unmarked(vault, live)
        return None
    identity, last = vault.identity, vault.last_number()
    if found.vault and identity != found.vault:
        raise _refused(
            vault, "vault", live,
            f"the vault there was {found.vault}, with generation {found.live} live, and now it is"
            f" {identity or 'one without an identity'}",
        )  # fmt: skip
    if live < found.live or last < found.last:
        what = "live" if live < found.live else "kept"
        here, there = (live, found.live) if live < found.live else (last, found.last)
        raise _refused(
            vault, "replay", live,
            f"generation {here or 'none'} is the last that is {what}, and {there} has been before:"
            " the vault was put back",
        )  # fmt: skip
    if found.live and vault.manifest_digest(found.live) != found.digest:
        raise _refused(
            vault, "replay", live,
            f"generation {found.live} is not the one that was live: its history was replaced",
        )  # fmt: skip
    return found


def unmarked(vault: Vault, live: int) -> RefusedError:
    """The refusal of a vault that had a mark, on a machine that has none of it."""
    return _refused(
        vault, "unmarked", live,
        "it says that a mark of what it had reached was kept, and there is none here: it is new to"
        " this machine or this user, or the mark was deleted",
    )  # fmt: skip


class Watermark:
    """What a writer does with the mark of its vault; `issued` is the highest number ever given."""

    def __init__(self) -> None:
        self._marks: FileMark | None = None
        self.issued = self._last = self._live = 0

    def begin(self, vault: Vault, ledger: sqlite3.Connection) -> None:
        """Begin anew: a vault that is made where another lay is meant to be there; that is told."""
        self._marks = FileMark(vault.path, vault.identity)
        try:
            before = self._marks.read()
        except VaultError:
            before = None
        text = ""
        if before is not None and before.live:
            text = f"a new vault was made where {before.vault} was, generation {before.live} live"
        self._marks.reset(reached(vault, text))
        note_mark(ledger, 1, 0)  # only now: a kill before leaves a vault that knows of no mark

    def take_up(self, vault: Vault, ledger: sqlite3.Connection) -> None:
        """Refuse a vault that has gone back; else note in it that there is a mark, kept up."""
        found = judge(vault, FileMark(vault.path, vault.identity))  # before anything is changed
        give_identity(ledger)
        self._marks = FileMark(vault.path, vault.identity)
        self.issued = found.issued if found else 0
        note_from = vault.last_number() + 1
        self._marks.advance(reached(vault))
        note_mark(ledger, note_from, self.issued)
        self._last, self._live = vault.last_number(), vault.live() or 0

    def advance(self, vault: Vault) -> None:
        """Remember what was reached."""
        if self._marks is None:
            return  # a replica's mirror forgets what was
        self.issued = max(self.issued, vault.last_number())
        self._last, self._live = vault.last_number(), vault.live() or 0
        self._marks.advance(reached(vault))

    def check(self, vault: Vault) -> None:
        """Refuse to write on where the ledger went back since this writer last raised the mark."""
        last, live = vault.last_number(), vault.live() or 0
        if last < self._last or live < self._live:
            raise _refused(
                vault, "replay", live,
                f"generation {last} is its last and {live or 'none'} is live, and {self._last} and"
                f" {self._live} have been: it was put back while it was open for writing",
            )  # fmt: skip


def accept(vault: Vault, keeper: FileMark) -> str:
    """Take a vault as it is, whatever the mark says; return what was accepted, which is told, too.

    What it holds is not looked at: that is `verify`'s, and a signature's.
    """
    try:
        before = keeper.read()
        was = f"generation {before.live} of {before.vault}" if before else "no mark"
    except VaultError as error:
        was = f"a mark that cannot be read ({error})"
    now = reached(vault)
    text = f"accepted: generation {now.live} of {now.vault} is live; before there was {was}"
    keeper.reset(reached(vault, text))
    return text


def reached(vault: Vault, accepted: str = "") -> Mark:
    """What a vault has reached by its own ledger, now."""
    live, last = vault.live() or 0, vault.last_number()
    digest = vault.manifest_digest(live) if live else ""
    return Mark(vault.identity, live, digest, last, last, time.time(), accepted)


def _refused(vault: Vault, reason: str, number: int, what: str) -> RefusedError:
    return RefusedError(
        f"{vault.path} is refused ({reason}): {what}. Restore the newest copy; or, if this one is"
        f" meant, run `g2d accept {vault.path}`",
        reason,
        number,
    )
