"""Which basins a vault has, and which of them nobody has seen: by its members and its manifests.

A basin counts as seen once a generation that began in it was live. Basins that are grown later are
numbered from `GROWN` on, their members from `GROWN_MEMBER` on, apart from all that a population may
ever have, so that a population which goes on is the one that it would have been. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from g2d.vault.reading import VaultReader

__all__ = [
    "BASIN",
    "GROWING",
    "GROWN",
    "GROWN_MEMBER",
    "RETIRED",
    "Stock",
    "retired_of",
    "stock_of",
]

BASIN = "basin"
"""What a manifest says of the basin that its generation is of."""

GROWN = 1000
"""Basins from this one on were grown: a population has at most so many."""

GROWN_MEMBER = 100_000
"""Members from this one on are of basins that were grown, likewise."""

GROWING = "growing"
"""The folder in a vault where a basin is grown; it is moved in by one commit."""

AFTER = "after"
"""What an early checkpoint that was grown says of the last generation that was there before it."""

FIT = "fit_cpu_seconds"
"""What it says of the fit of the generator that came with it; that one's own note is replaced."""

RETIRED = "retired"
"""What the notes of a generator say of the basins that none of its candidates begins in."""


@dataclass(frozen=True)
class Stock:
    """The basins of a vault.

    Attributes:
        basins: those that its members are of, oldest first. retired: of these, those that no
            candidate begins in any more. exposed: the newest exposed generation of each basin that
            was seen and is not retired.
    """

    basins: tuple[int, ...]
    retired: frozenset[int]
    exposed: Mapping[int, int]

    @property
    def unseen(self) -> tuple[int, ...]:
        """The basins that nobody has seen, oldest first."""
        return tuple(b for b in self.basins if b not in self.exposed and b not in self.retired)

    @property
    def rested(self) -> tuple[int, ...]:
        """Those that nobody has seen; if there are none, the one seen longest ago; (): any."""
        if self.unseen or not self.exposed:
            return self.unseen
        return (min(self.exposed, key=lambda basin: (self.exposed[basin], basin)),)

    def outlived(self, keep: int) -> frozenset[int]:
        """What is retired, and all but the newest `keep` basins that were seen; 0: no more."""
        seen = [b for b in self.basins if b in self.exposed and b not in self.retired]
        return self.retired | frozenset(seen[: max(0, len(seen) - keep)] if keep else ())


def stock_of(vault: VaultReader) -> Stock:
    """Count the basins of a vault's present source.

    Generations that do not say their basin, as an older G2D made them, may be of any that the
    population had at first: all of these count as seen then. The base is of none.

    Raises:
        VaultError: the ledger says nonsense.
    """
    found = {b for e in vault.entries("member") if (b := _basin(e.info)) is not None}
    basins, retired = tuple(sorted(found)), retired_of(vault)
    # Nothing that was issued before a basin was taken up is of it: of a long life little is read.
    after = dict.fromkeys(basins, 0) | {e.index: _after(e.info) for e in vault.entries("early")}
    exposed: dict[int, int] = {}
    for number in reversed(vault.exposures()):
        wanted = [b for b in basins if b not in exposed and b not in retired]
        if all(after[basin] >= number for basin in wanted):
            break
        manifest = vault.generation(number).manifest
        if manifest.get("origin") == "base":
            continue
        own = _basin(manifest)
        for basin in (b for b in basins if b < GROWN) if own is None else (own,):
            exposed.setdefault(basin, number)
    return Stock(basins, retired, exposed)


def retired_of(vault: VaultReader) -> frozenset[int]:
    """The basins that no candidate of the vault's present generator begins in."""
    generator = vault.entry("generator")
    found = generator.info.get(RETIRED, ()) if generator else ()
    return frozenset(b for b in found if type(b) is int) if isinstance(found, list) else frozenset()


def _basin(about: Mapping[str, object]) -> int | None:
    found = about.get(BASIN)
    return found if type(found) is int else None


def _after(about: Mapping[str, object]) -> int:
    found = about.get(AFTER, 0)
    return found if type(found) is int else 0
