"""Trainings are charged to a vault's ledger in the process that hands them out, before it does.

A worker that is given a job has been paid for; one that dies with it is paid for all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from g2d.protect.privacy.accounting import Spending, by_block
from g2d.protect.privacy.ledger import PrivacyLedger, spendings_of
from g2d.protect.privacy.releases import STAMP
from g2d.settings import Settings
from g2d.training.charging import RECORDS, cost_of
from g2d.training.jobs import TrainingJob
from g2d.vault.reading import VaultReader
from g2d.vault.spendings import read
from g2d.vault.vault import Entry, Vault

HELD = "held"
"""The block of people's records that gates count on, and nothing is trained on."""


def blocks_due(vault: VaultReader, records: Entry) -> tuple[str, ...]:
    """The blocks that a refresh on new records is charged to: every one that ever was, and its own.

    Those that were put back, and those of refreshes that were dropped before they were taken up,
    too. Their records are not known to the vault's source, so that a record of one of them may be
    given again: it is in two blocks then, and as all that the second costs is charged to the first,
    the first one's epsilon bounds what is told of it. Whoever trains anew until a trial passes has
    chosen among all of these trainings.
    """
    own = f"refresh {str(records.info['id'])[:8]}"
    ever = dict.fromkeys([RECORDS, *by_block(spendings_of(read(vault)))])
    return (*(block for block in ever if block not in (HELD, own)), own)


@dataclass(frozen=True)
class Charger:
    """Charges jobs of a vault's population, or of a refresh.

    Attributes:
        blocks: of the task whose records are sampled.
    """

    vault: Vault
    settings: Settings
    ledger: PrivacyLedger
    blocks: Sequence[str] = (RECORDS,)

    @classmethod
    def of(
        cls, vault: Vault, settings: Settings, blocks: Sequence[str] = (RECORDS,)
    ) -> Charger | None:
        """The charger of a vault; None: it is not private, and nothing is charged."""
        if not settings.privacy.enabled:
            return None
        return cls(vault, settings, PrivacyLedger(vault, settings), blocks)

    def __call__(self, job: TrainingJob) -> Mapping[str, Any]:
        """Charge a job; return the mark that is kept with its checkpoint.

        Raises:
            PrivacyError: the budget does not cover it; nothing is charged.
        """
        owed = self._cost(job.kind, job.index)
        if len(owed) > 1:
            self.ledger.check(owed)  # of several blocks all, or none
        lines = [self.ledger.spend(one) for one in owed]
        return {STAMP: self.ledger.spent().stamp(lines[-1].number if lines else None)}

    def check_all_due(self) -> None:
        """Refuse a population that the budget does not cover before any of it is trained.

        Raises:
            PrivacyError: it would be used up on the way.
        """
        s = self.settings.population
        wanted = {"base": 1, "early": s.basins if s.recipe != "seeds" else 0, "member": s.members}
        due: list[Spending] = []
        for kind, count in wanted.items():
            have = {entry.index for entry in self.vault.entries(kind)}
            for index in sorted(set(range(count)) - have):
                due += self._cost(kind, index)
        self.ledger.check(due)

    def check_due(self, kind: str, indices: Sequence[int]) -> None:
        """Refuse trainings of a kind that the budget does not cover before the first of them.

        Raises:
            PrivacyError: it would be used up on the way.
        """
        self.ledger.check([one for index in indices for one in self._cost(kind, index)])

    def _cost(self, kind: str, index: int) -> list[Spending]:
        s = self.settings
        return cost_of(kind, index, s.privacy, s.population, self.blocks)
