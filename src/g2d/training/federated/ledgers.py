"""What one client has spent of the privacy of its records, and what that guarantees, in words.

Each client keeps count by itself: a line for each round, on the medium before the round is trained.
Its ledger is a vault that holds nothing else, so that `g2d privacy LEDGER` states it release by
release. What a round costs is in `private`. Knows no torch.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from g2d.errors import PrivacyError
from g2d.protect.privacy.accounting import Spending, epsilon
from g2d.protect.privacy.ledger import spendings_of
from g2d.settings import Settings
from g2d.settings.privacy import PrivacySettings
from g2d.vault.ledger import LEDGER
from g2d.vault.spendings import Spent, add, read
from g2d.vault.vault import Vault

__all__ = ["ClientLedger", "ledger_at", "told"]

_FIXED = ("epsilon", "delta", "unit")
"""Of `[privacy]`: what was promised when the ledger was begun."""


class _LedgerVault(Vault):
    """A vault that holds spendings alone: nothing of it is marked outside."""

    remembered = False


class ClientLedger:
    """One client's ledger, with the budget of `[privacy] epsilon` at `delta`.

    Args:
        path: its folder, which is made; None: in memory, for a simulation that keeps nothing.

    Raises:
        PrivacyError: it was begun with another promise, or was changed since.
        VaultError: the folder is something else, or cannot be written.
    """

    def __init__(self, settings: Settings, path: Path | None = None) -> None:
        self.settings: PrivacySettings = settings.privacy
        self.path = path
        self._kept: list[Spending] = []
        self.identity = secrets.token_hex(16) if path is None else self._begin(path, settings)

    def _begin(self, path: Path, settings: Settings) -> str:
        """Make the vault, or hold the one that is there to what it was begun with; its identity."""
        if not (path / LEDGER).exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            own = settings.override(privacy__enabled=True, signing__key="", watermark__key="")
            with _LedgerVault.create(path, own.to_toml()) as made:
                return made.identity
        with _LedgerVault.open(path) as vault:
            file = path / "task.toml"
            known = Settings.from_vault(vault.settings_text, str(file)).privacy
            for name in _FIXED:
                then, now = getattr(known, name), getattr(self.settings, name)
                if then != now:
                    raise PrivacyError(
                        f"{path} was begun with [privacy] {name} = {then!r}, and now it is {now!r}:"
                        f" set it back, or in {file}, too, which changes what was promised"
                    )
            spendings_of(read(vault))
            return vault.identity

    def spend(self, spending: Spending) -> None:
        """Record a spending that is about to be paid out; the caller may go on when this returns.

        Whatever was recorded counts, be it that a kill came before it was paid out.

        Raises:
            PrivacyError: the budget does not cover it, or the ledger was changed; nothing is
                recorded. VaultError: it cannot be written.
        """
        if self.path is None:
            self._refuse(spending, self._kept)
            self._kept.append(spending)
            return

        def allow(spent: Spent) -> None:
            self._refuse(spending, spendings_of(spent))

        with _LedgerVault.open(self.path, write=True) as vault:
            add(vault, spending.to_json(), None, allow)

    def spendings(self) -> tuple[Spending, ...]:
        """What was spent, oldest first.

        Raises:
            PrivacyError: a line was changed, is missing, or is no spending.
        """
        if self.path is None:
            return tuple(self._kept)
        with _LedgerVault.open(self.path) as vault:
            return spendings_of(read(vault))

    def epsilon(self, planned: Sequence[Spending] = ()) -> float:
        """Return the epsilon of what was spent, and of what is planned beside it."""
        return epsilon([*self.spendings(), *planned], self.settings.delta)

    def check_paid(self, what: str) -> None:
        """Refuse to go on from an answer that was made without privacy.

        Raises:
            PrivacyError: no line of the ledger is about it.
        """
        if what not in {one.what for one in self.spendings()}:
            raise PrivacyError(
                f"the last answer, to {what}, was made without privacy, or is in another ledger:"
                " what follows from it has no guarantee. Remove it (KIT/state) for a new run that"
                " was agreed on, or name the --ledger that it is in"
            )

    def covers(self, planned: Sequence[Spending]) -> int:
        """Return how many of the planned spendings, in their order, the budget covers."""
        known = self.spendings()
        low, high = 0, len(planned)
        while low < high:
            some = (low + high + 1) // 2
            found = epsilon([*known, *planned[:some]], self.settings.delta)
            low, high = (some, high) if found <= self.settings.epsilon else (low, some - 1)
        return low

    def _refuse(self, spending: Spending, known: Sequence[Spending]) -> None:
        budget, delta = self.settings.epsilon, self.settings.delta
        found = epsilon([*known, spending], delta)
        if found > budget:
            raise PrivacyError(
                f"the privacy budget of these records is used up: {epsilon(known, delta):.3g} of"
                f" epsilon {budget:g} at delta {delta:g} is spent, and {spending.what} would make"
                f" it {found:.3g}; nothing was read for it, and what was sent before stays covered"
            )


def ledger_at(path: Path, settings: Settings) -> ClientLedger | None:
    """The ledger of a client that trains privately; None: it does not, and never did.

    Raises:
        PrivacyError: it did, or as `ClientLedger`. VaultError: as `ClientLedger`.
    """
    if settings.federated.private:
        return ClientLedger(settings, path)
    if (path / LEDGER).exists():
        raise PrivacyError(
            f"{path} says that these records were trained on privately, and now [federated] private"
            " is false: what was promised would not hold. Set it to true, or name another --ledger"
        )
    return None


def told(ledger: ClientLedger, planned: Sequence[Spending]) -> Iterator[str]:
    """What is guaranteed to whoever's records these are, in plain words, a line each.

    Args:
        planned: the rounds that the run still has, as `private.rounds_left` lists them.
    """
    p = ledger.settings
    unit = "record (one input, and all its copies)"
    if p.unit != "record":
        unit = f"value of {p.unit} (all of its records together)"
    yield (
        f"private: each {unit} is covered by epsilon {p.epsilon:g} at delta {p.delta:g}, in all"
        " answers of this client together and in all that is made of them: whoever sees that, and"
        " knows all other records, changes the odds of any guess about one at most"
        f" {_times(p.epsilon)}, but for a chance of {p.delta:g}"
    )
    spent, whole = ledger.epsilon(), ledger.epsilon(planned)
    line = f"spent so far: epsilon {spent:.3f}; with all {len(planned)} rounds to come {whole:.3f}"
    if whole > p.epsilon:
        first = planned[ledger.covers(planned)].what
        line += f", more than the budget: this client stops before {first}, and others go on"
    yield line
    if whole > p.epsilon and p.noise != p.fork_noise:
        yield (
            "that budget is proved for rounds in their order: a server that leaves some out by what"
            " it has seen chooses between noise and fork_noise (fully adaptive composition). Set"
            " both alike, or plan a run that the budget covers"
        )
    yield (
        "not covered: that this client takes part, and what its records have in common (noise that"
        " hides a whole client drowns what twenty of them learn); a record that other clients hold,"
        " too, adds up over them; and this machine"
    )


def _times(eps: float) -> str:
    return f"{math.exp(eps):.3g}-fold" if eps < 50 else "without a useful bound"
