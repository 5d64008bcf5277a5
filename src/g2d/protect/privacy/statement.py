"""What a vault guarantees, for each release and in total: what `g2d privacy VAULT` tells.

Knows no torch. What is not covered is part of the statement: a number without it misleads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from g2d.errors import PrivacyError
from g2d.protect.privacy.accounting import (
    BUDGET,
    DELTA,
    UNIT,
    Spending,
    by_block,
    guaranteed,
    naive,
    total,
)
from g2d.protect.privacy.ledger import spendings_of
from g2d.protect.privacy.releases import Release, of_public, releases
from g2d.settings import Settings
from g2d.vault.federated import is_federated
from g2d.vault.keys import VerifyKey
from g2d.vault.reading import VaultReader
from g2d.vault.spendings import read

__all__ = ["NOT_COVERED", "Block", "Guarantee", "Row", "state"]

NOT_COVERED = (
    "the test split, and what `g2d attack`, `report` and `trace` tell the owner of people's"
    " records: these are not released",
    "the folder of the vault, and the machine that trains: whoever reads them has the records",
    "the choice of settings by trying several on the same records, here by hand after a look, or in"
    " other vaults: only runs of this vault are in its ledger, and their noise is taken as planned",
    "inputs that clients send to a service, and feedback that it keeps: they are no training data",
    "that a run was refused or died, how long it took, and other side channels; noise is drawn as"
    " floating-point numbers",
    "code of your own (a task, gates, terms): it is trusted to read `train` in no other way",
)
"""What no epsilon here speaks of, a line each."""


@dataclass(frozen=True)
class Block:
    """Records of one block, and what everything that used them adds up to.

    Attributes:
        epsilon: composed by privacy loss distributions; where records decide how much is spent,
            the budget at which it stops. naive: single epsilons, added up.
    """

    name: str
    spendings: int
    epsilon: float
    naive: float


@dataclass(frozen=True)
class Row:
    """Releases that are told in one line: `epsilon` bounds each of them."""

    name: str
    count: int
    spendings: int
    epsilon: float
    why: str


@dataclass(frozen=True)
class Guarantee:
    """The whole statement.

    Attributes:
        epsilon: of everything released, at `delta`, for one `unit`; infinite where anything is not
            covered. naive: the same by adding single epsilons. enabled: whether private mode is on.
        public_forks: members that learned public data and a release's answers alone. federated:
            whether clients trained it.
        lines, signed, torn: of the ledger. unsigned: lines that no given key has signed.
    """

    vault: str
    enabled: bool
    unit: str
    delta: float
    budget: float
    epsilon: float
    naive: float
    blocks: tuple[Block, ...]
    rows: tuple[Row, ...]
    releases: tuple[tuple[Release, float], ...]
    lines: int
    signed: int
    torn: bool
    unsigned: tuple[int, ...] = ()
    public_forks: int = 0
    federated: bool = False
    not_covered: tuple[str, ...] = NOT_COVERED

    def as_json(self) -> dict[str, Any]:
        """Plain values; an infinite epsilon is null."""
        found = asdict(self) | {"releases": [], "rows": None}
        del found["rows"]
        for key in ("epsilon", "naive"):
            found[key] = _finite(found[key])
        for block in found["blocks"]:
            block |= {"epsilon": _finite(block["epsilon"]), "naive": _finite(block["naive"])}
        found["releases"] = [
            asdict(one) | {"epsilon": _finite(value)} for one, value in self.releases
        ]
        return found

    def plain(self) -> Iterator[tuple[str, str]]:
        """What it means, in words: a name and a line each."""
        unit = "input, with all records of it" if self.unit == "record" else f"value of {self.unit}"
        if not self.lines and self.federated:
            yield (
                "guarantee",
                "none that this vault knows of: clients trained it, and whoever of them trains"
                " privately has a ledger of its own (`g2d privacy KIT/ledger`)",
            )
        elif not self.lines and not self.enabled:
            yield "guarantee", "none: [privacy] is off, people's records were used as they are"
        elif math.isinf(self.epsilon):
            yield (
                "guarantee",
                "none for all together (epsilon is infinite): see the rows that say why",
            )
        elif not self.releases:
            yield "guarantee", "nothing is released yet"
        else:
            yield (
                "guarantee",
                f"epsilon {self.epsilon:.3f} at delta {self.delta:g} for each {unit}, of everything"
                " that was ever released",
            )
            yield (
                "in words",
                "whoever sees all of it, and knows everybody else's records, cannot tell whether"
                f" one was among them: it changes the odds of any guess at most"
                f" {_times(self.epsilon)}, but for a chance of {self.delta:g}",
            )
        if self.lines:
            if math.isfinite(self.naive):
                yield "naive", f"epsilon {self.naive:.3f}, were single ones added up"
            yield (
                "budget",
                f"epsilon {self.budget:g} for each block of records: it holds, too, where releases"
                " decided how many more there were; lower figures are of a plan that was fixed",
            )
            if self.public_forks:
                yield (
                    "forks",
                    f"{self.public_forks} members read public data only, and what the base answers"
                    " there: they cost nothing more (post-processing)",
                )
            yield (
                "answers",
                "a service's answers, and generations drawn from the generator, cost nothing more:"
                " they are made of releases and public data (post-processing)",
            )
        if self.torn:
            yield (
                "ledger",
                "the end of a line that a kill has torn is left out: nothing began for it",
            )
        if self.unsigned:
            yield "ledger", f"{len(self.unsigned)} of {self.lines} lines are not signed by the key"


def state(vault: VaultReader, settings: Settings, key: VerifyKey | None = None) -> Guarantee:
    """State what a vault guarantees.

    Args:
        key: every line of the ledger has to be signed by it; None: signatures are counted alone.

    Raises:
        PrivacyError: the ledger is not what was recorded, or settings say another unit, or a
            smaller delta than a budget was kept at.
        VaultError: the vault cannot be read.
        G2DError: the accountant's package is not installed, and something was spent.
    """
    spent = read(vault)
    spendings, delta = spendings_of(spent), settings.privacy.delta
    _check_unit(spendings, settings.privacy.unit)
    _check_delta(spendings, delta)
    known: dict[int, float] = {}

    def of(release: Release) -> float:
        if not release.covered:
            return math.inf
        if release.spent not in known:
            known[release.spent] = total(release.rests_on(spendings), delta)
        return known[release.spent]

    made = releases(vault)
    rows = tuple(_rows(made, of))
    whole = total(spendings, delta)
    bounded = all(one.covered for one in made)
    blocks = tuple(
        Block(name, len(own), guaranteed(own, delta), naive(own, delta))
        for name, own in by_block(spendings).items()
    )
    return Guarantee(
        str(vault.path), settings.privacy.enabled, settings.privacy.unit, delta,
        settings.privacy.epsilon, whole if bounded else math.inf,
        naive(spendings, delta) if bounded else math.inf, blocks, rows,
        tuple((one, _looked_up(one, known)) for one in made), len(spent.lines),
        sum(bool(line.signature) for line in spent.lines), spent.torn,
        tuple(line.number for line in spent.lines if key and not line.signed_by(key)),
        of_public(vault), is_federated(vault),
    )  # fmt: skip


def _check_unit(spendings: Sequence[Spending], unit: str) -> None:
    """Refuse to speak of another unit than the one whose records were kept apart."""
    known = {str(one.note[UNIT]) for one in spendings if UNIT in one.note}
    if known - {unit}:
        raise PrivacyError(
            f"[privacy] unit is {unit!r}, and what was spent was of {' and '.join(sorted(known))}:"
            " nothing can be claimed of another unit. Set it back in task.toml"
        )


def _check_delta(spendings: Sequence[Spending], delta: float) -> None:
    """Refuse to speak at a smaller delta than that at which looks of gates were stopped."""
    kept = [float(one.note.get(DELTA, 1.0)) for one in spendings if BUDGET in one.note]
    if kept and max(kept) > delta:
        raise PrivacyError(
            f"[privacy] delta is {delta:g}, and gates on people's records were stopped by a budget"
            f" at delta {max(kept):g}: nothing can be claimed of them at a smaller one. Set it back"
            " in task.toml"
        )


def _rows(made: Sequence[Release], of: Callable[[Release], float]) -> Iterator[Row]:
    """One row for each kind, source and reason; of a kind's members the one that rests on most."""
    groups: dict[tuple[str, int, str], list[Release]] = {}
    for one in made:
        groups.setdefault((one.kind, one.source, one.why), []).append(one)
    for (kind, source, why), own in groups.items():
        most = max(own, key=lambda one: one.spent)
        after = f" of renewal {source}" if source else ""
        first, last = own[0].index, own[-1].index
        single = kind in ("base", "generator")
        plural = {
            "answer": "answers", "early": "early checkpoints", "member": "members",
            "generation": "generations",
        }  # fmt: skip
        name = kind if single else f"{plural[kind]} {first} to {last}"
        if len(own) == 1:
            name = own[0].name.removesuffix(after)
        yield Row(name + after, len(own), most.spent, of(most), why)


def _looked_up(one: Release, known: dict[int, float]) -> float:
    """A release's epsilon: of what it rests on, or of the next that is known to bound it."""
    if not one.covered:
        return math.inf
    return known[min(count for count in known if count >= one.spent)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _times(eps: float) -> str:
    return f"{math.exp(eps):.3g}-fold" if eps < 50 else "without a useful bound"
