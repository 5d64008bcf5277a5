"""What the vault's privacy ledger promises, beside what membership attacks found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from g2d.protect.privacy.accounting import total
from g2d.protect.privacy.ledger import PrivacyLedger
from g2d.protect.privacy.releases import releases
from g2d.redteam.context import AttackContext
from g2d.redteam.rows import Row, Status
from g2d.redteam.threats.privacy.networks import MEMBERS, RATES, SECOND, metric_of

_COVERED = ("generated", "frozen", "draws")
"""Chains of what the vault releases; the others are controls that its ledger says nothing of."""


@dataclass(frozen=True)
class Promise:
    """epsilon at delta, of all that the vault has released; inf where some of it is not covered."""

    epsilon: float
    delta: float

    def most(self, rate: float) -> float:
        """The largest share of true positives at a rate of false ones (Kairouz et al. 2015)."""
        if not math.isfinite(self.epsilon):
            return 1.0
        grown = math.exp(min(self.epsilon, 700.0)) * rate + self.delta  # beyond, a float ends
        return min(1.0, grown, 1 - math.exp(-self.epsilon) * (1 - self.delta - rate))


def promised(context: AttackContext) -> Promise | None:
    """What the vault's ledger promises; None: it is not private.

    Raises:
        PrivacyError: the ledger is not what was recorded.
    """
    settings = context.spec.settings
    if not settings.privacy.enabled:
        return None
    vault, delta = context.defence.vault, settings.privacy.delta
    if not all(one.covered for one in releases(vault)):
        return Promise(math.inf, delta)
    return Promise(total(PrivacyLedger(vault, settings).spendings(), delta), delta)


def beside(rows: Sequence[Row], promise: Promise | None) -> list[Row]:
    """Rows of membership with the promise in their notes, and in `extra` as numbers."""
    return list(rows) if promise is None else [_beside(row, promise) for row in rows]


def _beside(row: Row, promise: Promise) -> Row:
    rates = {metric_of(rate): rate for rate in RATES}
    if row.kind not in (MEMBERS, SECOND) or row.status != Status.OK or row.metric not in rates:
        return row
    if row.chain not in _COVERED:
        return replace(row, note=_after(row.note, "a control: the ledger promises nothing of it"))
    if not math.isfinite(promise.epsilon):
        told = "the ledger does not cover all that was released: epsilon is infinite"
        return replace(row, note=_after(row.note, told), extra={**row.extra, "epsilon": None})
    most = promise.most(rates[row.metric])
    told = f"epsilon {promise.epsilon:.2f} at delta {promise.delta:g} allows {most:.1%} at most"
    known = {"epsilon": promise.epsilon, "delta": promise.delta, "allowed": most}
    return replace(row, note=_after(row.note, told), extra={**row.extra, **known})


def _after(note: str, told: str) -> str:
    return f"{note}; {told}" if note else told
