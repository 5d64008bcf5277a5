"""The privacy ledger of a vault: a spending is recorded, or refused, before it is paid out.

What a spending costs is in `accounting`; how lines reach the medium in `vault.spendings`. What is
charged for what is decided in `defence.privacy` and where members are trained.
"""

from __future__ import annotations

from collections.abc import Sequence

from g2d.errors import DAMAGE, PrivacyError
from g2d.protect.privacy.accounting import Spending, epsilon
from g2d.settings import Settings
from g2d.settings.privacy import PrivacySettings
from g2d.vault.confirmed import confirmed_key
from g2d.vault.keys import SigningKey
from g2d.vault.reading import VaultReader
from g2d.vault.spendings import Line, Spent, add, read

__all__ = ["PrivacyLedger"]


class PrivacyLedger:
    """What a vault has spent of people's privacy, and the only way to spend more.

    Blocks of data are disjoint, each with the budget of `[privacy] epsilon` at `delta`.

    Args:
        vault: need not be open for writing. settings: None: the vault's own.
    """

    def __init__(self, vault: VaultReader, settings: Settings | None = None) -> None:
        self._vault = vault
        full = settings or Settings.from_vault(vault.settings_text, "task.toml")
        self._key = full.signing.key
        self.settings: PrivacySettings = full.privacy

    def spend(self, spending: Spending) -> Line:
        """Record a spending that is about to be paid out; the caller may go on when this returns.

        Whatever was recorded counts, be it that a kill came before it was paid out: a training
        that is begun anew draws fresh noise, and is charged anew.

        Raises:
            PrivacyError: the block's budget does not cover it, or the ledger was changed; nothing
                is recorded. VaultError: it cannot be written.
        """

        def allow(spent: Spent) -> None:
            self._refuse([spending], spent)

        key = SigningKey.read(confirmed_key(self._vault, self._key)) if self._key else None
        return add(self._vault, spending.to_json(), key, allow)

    def check(self, planned: Sequence[Spending]) -> None:
        """Refuse what the budget will not cover before the first of it is spent.

        Raises:
            PrivacyError: as `spend` would, sooner or later.
        """
        self._refuse(planned, read(self._vault))

    def spent(self) -> Spent:
        """The ledger's lines, as they are now."""
        return read(self._vault)

    def spendings(self) -> tuple[Spending, ...]:
        """What was spent, oldest first.

        Raises:
            PrivacyError: a line was changed, is missing, or is no spending.
        """
        return spendings_of(read(self._vault))

    def _refuse(self, planned: Sequence[Spending], spent: Spent) -> None:
        known = spendings_of(spent)
        budget, delta = self.settings.epsilon, self.settings.delta
        for block in dict.fromkeys(one.block for one in planned):
            before = [one for one in known if one.block == block]
            wanted = [one for one in planned if one.block == block]
            found = epsilon([*before, *wanted], delta)
            if found <= budget:
                continue
            what = wanted[0].what + (f" and {len(wanted) - 1} more" if wanted[1:] else "")
            used = epsilon(before, delta) if before else 0.0
            raise PrivacyError(
                f"the budget of {block} does not cover {what}: epsilon would be {found:.3g} at"
                f" delta {delta:g}, {used:.3g} is spent, and [privacy] epsilon allows {budget:g}."
                " Nothing was read for it; what is paid for is kept. Plan fewer or noisier steps"
                " in a new vault, or raise [privacy] epsilon, which weakens what was promised"
            )


def spendings_of(spent: Spent) -> tuple[Spending, ...]:
    """The spendings that lines hold.

    Raises:
        PrivacyError: one holds something else: another version of g2d wrote it.
    """
    found = []
    for line in spent.lines:
        try:
            found.append(Spending.from_json(line.spending))
        except DAMAGE as error:
            raise PrivacyError(
                f"line {line.number} of the privacy ledger is no spending that this g2d knows"
                f" ({error}): upgrade g2d, or restore the newest copy of the vault"
            ) from error
    return tuple(found)
