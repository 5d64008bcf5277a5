"""The row of a check: what was found, by what rule, and whether it passed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from g2d.redteam.context import AttackContext, Case
from g2d.redteam.rows import Row
from g2d.redteam.scoring import Rate


def live_model(case: Case, context: AttackContext) -> nn.Module:
    """The newest network of a case's chain."""
    return context.model(context.chain(case.chain).networks[-1])


def check_row(
    case: Case,
    context: AttackContext,
    kind: str,
    threat: str,
    attack: str,
    value: Rate,
    passed: bool,
    rule: str,
    words: str,
    found: Mapping[str, Any],
    **more: object,
) -> Row:
    """The row of a check; `kind` names the check."""
    verdict = "passed" if passed else "FAILED"
    return context.row(
        case, f"check-{kind}", f"check: {threat}", attack, value, metric="check",
        note=f"{verdict}: {words}",
        extra={"passed": passed, "rule": rule, "found": dict(found), **more},
    )  # fmt: skip


def percent(rate: Rate) -> str:
    """A rate in words."""
    return f"{100 * rate.value:.1f} %"
