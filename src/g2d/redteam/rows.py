"""Rows: what one attack on one target found, with its identifiers; plain values, documented schema.

The schema of `results.json` is written down in docs/results.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from g2d.redteam.scoring import Rate

VERSIONS = {
    "MITRE ATLAS": "2026.10",
    "NIST AI 100-2": "E2025 (March 2025)",
    "OWASP ML Top 10": "2023 (v0.3)",
}


class Status(StrEnum):
    """How a row ended."""

    OK = "ok"
    DIED = "died"  # the target stopped answering
    FAILED = "failed"  # our code or a library raised
    NOT_MEASURED = "not measured"  # too little data, or the threat does not apply


@dataclass(frozen=True)
class Identifiers:
    """What a threat is called elsewhere; a name that begins with "nearest: " does not quite fit."""

    atlas: str
    nist: str
    owasp: str


@dataclass(frozen=True)
class Row:
    """One line of the threat matrix.

    Attributes:
        family: threat family ("stale"). kind: what the row measures, a key that never changes its
            meaning ("stale-joint"): readers select by it, never by words. threat: what this row's
            attacker does, in words.
        target: what is attacked, in words. chain: the same as a key: which chain of networks
            ("generated", "frozen", ...), or what else it is ("service"). How often it rotates is
            `extra["every"]`, in queries; None where it could and does not.
        attack: algorithm and budget.
        metric: what `value` is a share of: "ASR" unless said otherwise.
        value: the mean over the scored networks; None where nothing was measured.
        worst: the attacker's best single network, where there are several.
        clean_accuracy: accuracy of the scored networks on the same inputs, unattacked.
        harm: `value` on a common scale from 0 (nothing won) to 1 (all won) for the heat map; None
            where that makes no sense.
        scored: how many networks (or draws) the examples were scored on.
        queries, gradient_steps: what the attacker spent on one example (or for one fit).
        seconds: CPU seconds. note: what a reader must know to compare rows.
        extra: curves and other plain values that belong to the row; among them what tells rows of
            one kind and target apart (`exposed`, `algorithm`, `loss`, `percent`, `read`).
    """

    family: str
    kind: str
    threat: str
    target: str
    attack: str
    value: Rate | None
    eps: float | None = None
    metric: str = "ASR"
    worst: Rate | None = None
    clean_accuracy: Rate | None = None
    harm: float | None = None
    chain: str = ""
    scored: int = 1
    queries: int | None = None
    gradient_steps: int | None = None
    seed: int = 0
    seconds: float = 0.0
    note: str = ""
    status: Status = Status.OK
    extra: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self, identifiers: Identifiers) -> dict[str, Any]:
        """Return the row as plain values, its family's identifiers included."""
        row = asdict(self)
        row["status"] = str(self.status)
        row["identifiers"] = asdict(identifiers)
        if self.harm is None and self.metric == "ASR" and self.value is not None:
            row["harm"] = self.value.value
        return row


def not_measured(
    family: str, kind: str, threat: str, target: str, attack: str, why: str, **more: Any
) -> Row:
    """Return a row that says plainly why there is no number; its chain is `target`, or given."""
    known: dict[str, Any] = {"note": why, "status": Status.NOT_MEASURED, "chain": target}
    return Row(family, kind, threat, target, attack, None, **(known | more))
