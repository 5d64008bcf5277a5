"""Everything that a vault has released, and what of its privacy ledger each release rests on.

A release rests on all that was spent before it, and on nothing else of anybody's records: what is
made of releases and public data costs nothing more (post-processing). Knows no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from g2d.protect.privacy.accounting import Spending
from g2d.protect.privacy.ledger import spendings_of
from g2d.settings.privacy import PUBLIC
from g2d.vault.federated import is_federated
from g2d.vault.reading import VaultReader
from g2d.vault.records import RENEWAL
from g2d.vault.spendings import Spent, read

__all__ = ["ANSWER", "LEARNED", "STAMP", "Release", "of_public", "releases"]

STAMP = "privacy"
"""The key of a manifest, or of an entry's notes, that says how much had been spent."""

LEARNED = "learned"
"""The key of a checkpoint's notes that says "public" where no record of anybody's was learned."""

ANSWER = "answer"
"""The key of a spending's note where what it paid for left at once: a federated client's answer."""

_PLAIN = "it was made from people's records as they are: private mode was off"


@dataclass(frozen=True)
class Release:
    """One thing that left, or may leave, the vault.

    Attributes:
        name: "base", "member 3", "generator", "generation 12". kind: "base", "early", "member",
            "generator" or "generation" (weights, manifest, attacks, canaries and answers); or an
            "answer" of a federated client, whose ledger is a vault without any of these.
        index: its index or number. source: the renewal that it is of.
        spent: how many spendings, from the ledger's first one on, it may rest on.
        covered: whether they bound what it tells of a unit. why: why not, in words; "".
    """

    name: str
    kind: str
    index: int
    spent: int
    covered: bool
    why: str = ""
    source: int = 0

    def rests_on(self, spendings: tuple[Spending, ...]) -> tuple[Spending, ...]:
        """What of the ledger it rests on."""
        return spendings[: self.spent]


def releases(vault: VaultReader) -> list[Release]:
    """List everything that a vault has released, in the order base, members, generator,
    generations; each renewal's own, too.

    Raises:
        PrivacyError: the ledger is not what was recorded. VaultError: the vault cannot be read.
    """
    spent = read(vault)
    spendings = spendings_of(spent)
    by_clients = is_federated(vault)
    unbounded = _first_unbounded(spendings)
    found = [
        Release(one.what, "answer", number - 1, number, True)
        for number, one in enumerate(spendings, 1)
        if one.note.get(ANSWER)
    ]
    for name, kind, index, source, notes in _all(vault):
        why, count = _judged(notes, spent)
        if why == _PLAIN and by_clients and not source:
            why = "clients trained it, and what of their records it tells is in their own ledgers"
        if not why and unbounded is not None and count > unbounded:
            why = "people's records were used as they are before it was made"
        found.append(Release(name, kind, index, count, not why, why, source))
    return found


def of_public(vault: VaultReader) -> int:
    """How many members learned public data and a release's answers alone, of which none is charged.

    Raises:
        VaultError: the vault cannot be read.
    """
    return sum(entry.info.get(LEARNED) == PUBLIC for entry in vault.entries("member"))


def _all(vault: VaultReader) -> Iterator[tuple[str, str, int, int, Mapping[str, Any]]]:
    """Name, kind, index, source and notes of everything that the vault holds."""
    sources = sorted({0, *(int(row["source"]) for row in vault.sources())})
    for source in sources:
        after = f" of renewal {source}" if source else ""
        for kind in ("base", "early", "member", "generator"):
            if kind == "early" and source:
                continue
            for entry in vault.entries(kind, source=source):
                own = entry.index % RENEWAL
                name = kind if kind in ("base", "generator") else f"{kind} {own}"
                yield f"{name}{after}", kind, own, source, entry.info
    for made in vault.generations():
        yield f"generation {made.number}", "generation", made.number, 0, made.manifest


def _judged(notes: Mapping[str, Any], spent: Spent) -> tuple[str, int]:
    """Why a release has no guarantee ("": it has one), and how many spendings it rests on."""
    mark = notes.get(STAMP)
    if str(notes.get("recipe", "")).startswith("adopted"):
        return "it was adopted: how it was trained is in no ledger", 0
    if not isinstance(mark, Mapping):
        return _PLAIN, 0
    count, head = mark.get("spent"), mark.get("head")
    if type(count) is not int or count < 1:
        return "nothing was charged for it", 0
    if count > len(spent.lines) or spent.stamp(count)["head"] != head:
        return "it was charged in lines that the ledger does not have", 0
    return "", count


def _first_unbounded(spendings: tuple[Spending, ...]) -> int | None:
    places = (i for i, one in enumerate(spendings) if one.mechanism == "unbounded" or not one.noise)
    return next(places, None)
