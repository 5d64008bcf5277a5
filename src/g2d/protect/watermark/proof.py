"""How ownership is proven: by whoever has the key, or anew by whoever was given a claim."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from g2d.core.files import read_plain
from g2d.errors import ClaimError, SettingsError
from g2d.protect.watermark.burnt import Record, Use
from g2d.protect.watermark.claim import Claim
from g2d.protect.watermark.commitment import Commitment, Dated, Published
from g2d.protect.watermark.key import WatermarkKey
from g2d.protect.watermark.publishing import published_beside, published_in
from g2d.protect.watermark.verification import Outcome, Suspect, draw, verify
from g2d.vault.keys import VerifyKey
from g2d.vault.vault import Vault

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_MOST = 1 << 24  # bytes of a key or a claim


@dataclass(frozen=True)
class Proof:
    """A commitment, and what shows its sets: a key, or a claim of one of them.

    Attributes:
        key: draws every set; None: there is a claim alone. record: what the key was used for.
        chosen: the set that was asked for; None: `set_for` decides, once the suspect is known.
        first: when the vault's first generation was made; 0: unknown, or there is none.
    """

    published: Published
    key: WatermarkKey | None = None
    record: Record | None = None
    claim: Claim | None = None
    chosen: int | None = None
    first: float = 0.0

    @classmethod
    def read(cls, path: Path, vault: Path | None = None, place: int | None = None) -> Self:
        """Read a key or a claim, and the commitment that belongs to it.

        Args:
            vault: whose commitment it is; None: that in the claim, or beside the key. place: the
                set; None: the claim's, or whichever a suspect may see.

        Raises:
            ClaimError, KeyFileError: one is absent, damaged, or they do not belong together.
            VaultError: there is no such vault.
        """
        found = cls._of_claim(path, place) if _is_claim(path) else cls._of_key(path, vault, place)
        if vault is None:
            return found
        with Vault.open(vault) as opened:
            if published_in(opened).commitment != found.commitment:
                raise ClaimError(
                    f"{path} is of another commitment than {vault}: the one there is of"
                    f" vault {opened.identity}, this one of {found.commitment.vault}"
                )
            numbers = opened.numbers()
            first = opened.generation(numbers[0]).created if numbers else 0.0
        return replace(found, first=first)

    @classmethod
    def _of_claim(cls, path: Path, place: int | None) -> Self:
        claim = Claim.read(path)
        own = claim.outcome.place
        if place not in (None, own):
            raise SettingsError(f"{path} shows the key of set {own} alone: leave --set out")
        return cls(claim.published, claim=claim, chosen=own)

    @classmethod
    def _of_key(cls, path: Path, vault: Path | None, place: int | None) -> Self:
        path = path.expanduser()
        key, record = WatermarkKey.read(path), Record(path)
        if vault is None:
            published = published_beside(path)
        else:
            with Vault.open(vault) as opened:
                published = published_in(opened)
        found = cls(published, key, record, chosen=place)
        draw(published.commitment, place or 0, found.set_key(place or 0))
        return found

    def set_key(self, place: int) -> bytes:
        """The key of a set; of a claim's own, where there is a claim alone."""
        if self.key is not None:
            return self.key.of_set(place)
        assert self.claim is not None
        return self.claim.set_key

    def set_for(self, suspect: Suspect, fresh: bool = False) -> int:
        """The set that a suspect is asked about; raises what `Record.set_for` does."""
        if self.record is None:
            assert self.chosen is not None
            return self.chosen
        return self.record.set_for(self.commitment, _known(suspect), self.chosen, fresh)

    @property
    def commitment(self) -> Commitment:
        """What was committed to."""
        return self.published.commitment

    def check(
        self, trusted: VerifyKey | None = None, roots: Sequence[Certificate] | None = None
    ) -> Dated:
        """Check signature and dates; raises what `Claim.check` and `Published.verify` do."""
        if self.claim is not None:
            return self.claim.check(trusted, roots)
        return self.published.verify(time.time(), trusted, roots)

    def late(self, dated: Dated) -> str:
        """What had been made before the commitment, in words; "": nothing that is known."""
        if not self.commitment.late and 0 < self.first < dated.time:
            return (
                "dated after the first generation, by the ledger, and what was made before proves"
                " nothing"
            )
        return self.commitment.late

    def ask(
        self, suspect: Suspect, suspects: int | None, shown: bool, fresh: bool = False
    ) -> Outcome:
        """Ask a suspect, and note that beside the key before.

        Args:
            suspects: for Bonferroni; None: as many as the record knows, or the claim says. shown:
                triggers leave this machine, so that the set is burnt. fresh: see `Record.set_for`.

        Raises:
            SettingsError: more were tried than `suspects`; or as `Record.set_for`. Else as
                `verify`.
        """
        known, place = _known(suspect), self.set_for(suspect, fresh)
        least = self.claim.outcome.suspects if self.claim else 1
        if self.record is not None:
            least = self.record.tries(known)
        count = least if suspects is None else suspects
        if count < least:
            raise SettingsError(
                f"--suspects is {count}, and {least} suspects have been tried or are claimed: give"
                f" {least} or more, or leave it out"
            )

        def note() -> None:
            if self.record is not None:
                self.record.add(Use.now(place, known, shown))

        return verify(self.commitment, place, self.set_key(place), suspect, count, note)

    def claimed(self, outcome: Outcome, suspect: Suspect) -> Claim:
        """The claim that an outcome is; to be shown by `show`, which burns its set."""
        key, name, digest = self.set_key(outcome.place), suspect.name, suspect.digest
        return Claim(self.published, key, outcome, name, digest, time.time())

    def show(self, outcome: Outcome, suspect: Suspect, path: Path) -> None:
        """Write the claim that an outcome is, and note before that its set is known from then on.

        Raises:
            ClaimError, G2DError: as `Claim.write` and `Record.add`.
        """
        claim, known = self.claimed(outcome, suspect), _known(suspect)
        if self.record is not None and outcome.place not in self.record.shown(known):
            self.record.add(Use.now(outcome.place, known, burnt=True))
        claim.write(path)


def _known(suspect: Suspect) -> str:
    return suspect.digest or suspect.name


def _is_claim(path: Path) -> bool:
    """Whether a file is JSON, and no key; what it is exactly, its reader says."""
    try:
        return read_plain(path.expanduser(), _MOST, follow=True).lstrip()[:1] == b"{"
    except OSError:
        return False
