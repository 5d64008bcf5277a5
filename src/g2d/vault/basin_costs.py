"""What basins that were grown cost, from recorded CPU times, beside a fresh training's.

A rotation into a basin that nobody has seen costs a basin and a generation. Where several rotations
are served from each basin, its cost is shared by them: (new basin) / (rotations for each new basin)
+ (generation). Knows no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from g2d.errors import VaultError
from g2d.vault.basins import AFTER, BASIN, FIT, GROWN, Stock, stock_of
from g2d.vault.reading import VaultReader

__all__ = ["BasinCosts", "basin_costs", "basin_lines"]


@dataclass(frozen=True)
class BasinCosts:
    """CPU seconds, as they were recorded.

    Attributes:
        basin: all that one took which was grown, on average: its trainings, with the attacks that
            they are repelled by, and the fit that it came with. generation: one, rejected
            candidates included, on average of those since; None: there was none yet. retraining:
            the base's own training; None: the base was given. rotations: since the first basin was
            grown. fresh: how many of these began in a grown basin that nobody had seen.
    """

    basin: float
    generation: float | None
    retraining: float | None
    rotations: int
    fresh: int

    @property
    def each_fresh(self) -> float | None:
        """A rotation's, where each begins in a new basin."""
        return None if self.generation is None else self.basin + self.generation

    @property
    def amortised(self) -> float | None:
        """A rotation's, as they were: each grown basin that was used is shared by all of them."""
        if self.generation is None or not self.fresh:
            return None
        return self.basin * self.fresh / self.rotations + self.generation


def basin_costs(
    vault: VaultReader, damaged: Callable[[str], None] | None = None
) -> BasinCosts | None:
    """Add up what was recorded; None: no basin was grown.

    Raises:
        VaultError: the ledger says nonsense of what is needed.
    """
    members = [e for e in vault.entries("member", damaged) if _grown(e.info.get(BASIN))]
    known = {entry.info[BASIN] for entry in members}
    early = [e for e in vault.entries("early", damaged) if e.index in known]
    if not members or not early:
        return None
    spent = [e.info.get("cpu_seconds") for e in (*members, *early)]
    spent += [e.info.get(FIT) for e in early]
    first = min((_whole(e.info.get(AFTER)) for e in early), default=0)
    since = [n for n in vault.exposures() if n > first]
    manifests = [vault.generation(n).manifest for n in since]
    made = [s for m in manifests if (s := _seconds(m.get("cpu_seconds"))) is not None]
    base = vault.entry("base")
    return BasinCosts(
        sum(s for value in spent if (s := _seconds(value)) is not None) / len(known),
        sum(made) / len(made) if made else None,
        _seconds(base.info.get("cpu_seconds")) if base else None,
        len(since),
        len({m[BASIN] for m in manifests if _grown(m.get(BASIN))}),
    )


def basin_lines(vault: VaultReader) -> list[str]:
    """What is told of a vault's basins, in lines; []: none was grown."""
    try:
        costs = basin_costs(vault, lambda _: None)  # who shows a vault tells damage elsewhere
        return [] if costs is None else _lines(vault, costs)
    except VaultError as error:
        return [f"they cannot be counted: {error}"]


def _lines(vault: VaultReader, costs: BasinCosts) -> list[str]:
    lines = [_counted(stock_of(vault))]
    text = f"a basin that was grown took {costs.basin:.1f} CPU s"
    if costs.generation is not None and costs.each_fresh is not None:
        text += (
            f", a generation {costs.generation:.1f}: {costs.each_fresh:.1f} a rotation where each"
            " begins in a basin that nobody has seen"
        )
    lines.append(text)
    if costs.amortised is not None:
        lines.append(
            f"{costs.fresh} of {costs.rotations} rotations since the first was grown did:"
            f" {costs.amortised:.1f} CPU s a rotation"
        )
    if costs.retraining is not None:
        lines.append(f"a fresh training of the base took {costs.retraining:.1f} CPU s")
    return lines


def _counted(stock: Stock) -> str:
    grown = sum(basin >= GROWN for basin in stock.basins)
    text = f"{len(stock.basins)}, {grown} of them grown; nobody has seen {len(stock.unseen)}"
    return text + (f"; {len(stock.retired)} retired" if stock.retired else "")


def _grown(basin: Any) -> bool:
    return type(basin) is int and basin >= GROWN


def _whole(value: Any) -> int:
    return value if type(value) is int else 0


def _seconds(value: Any) -> float | None:
    """CPU seconds, where that is what was recorded."""
    return float(value) if type(value) in (int, float) and value >= 0 else None
