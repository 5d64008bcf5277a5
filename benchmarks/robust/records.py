"""What robust's JSON of every seed says: rows, accuracies paired by image, their intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.places import RESULTS

Record = dict[str, Any]
Alive = NDArray[np.float64]
Spread = tuple[float, float, float]
FRESH, WIDE = "fresh trainings, other seeds", "PGD, twice the width"
ALONE, TAUGHT = "student, adversarial", "student, RSLAD"
TWICE = ", 2 × the steps"


def records() -> list[Record]:
    """Every seed's results, and what follows from them."""
    found = [json.loads(p.read_text()) for p in sorted(RESULTS.glob("robust-mnist-seed*.json"))]
    for record in found:
        if generated := record["rows"].get("generated"):
            generated["owning"] = _owning(generated)
            # The controls knew the networks of other seeds that there were when the chain was made.
            fresh = generated["controls"].get(FRESH)
            if fresh and (whole := record["rows"].get("fresh, PGD")):
                fresh |= {key: whole[key] for key in ("stale_joint", "itself")}
    return found


def _owning(generated: Record) -> Record:
    """Images that survive the adaptive attacks and each of twenty stored ones; newest targets."""
    stored, adaptive = generated["stale_any"]["survivors"], generated["adaptive"]["survivors"]
    both = [
        "".join(str(int(a == b == "1")) for a, b in zip(*one, strict=True))
        for one in zip(stored, adaptive[-len(stored) :], strict=True)
    ]
    each = [one.count("1") / len(one) for one in both]
    return {"accuracy": sum(each) / len(each), "worst": min(each), "survivors": both}


def get(record: Record, row: str, *path: str) -> Any:
    """One value of a row; None where it was not measured."""
    value: Any = record["rows"].get(row)
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def of(data: Sequence[Record], row: str, *path: str) -> list[float | None]:
    """One number of a row, for every seed."""
    return [get(record, row, *path) for record in data]


def alive(record: Record, row: str, *path: str) -> Alive | None:
    """The share of a row's networks that each of its images survives on, (images,)."""
    found = get(record, row, *path, "survivors")
    return np.array([[c == "1" for c in one] for one in found], float).mean(0) if found else None


Pick = Callable[[Record], Sequence[Alive | None]]


def paired(data: Sequence[Record], pick: Pick, combine: Callable[..., float]) -> Spread | None:
    """A number made of several accuracies on the same images, with its 95 % bootstrap interval.

    Images are drawn anew within each seed, the same for all that is compared; seeds are averaged.
    The interval covers the choice of images, not the luck of training.
    """
    turns = redrawn(data, pick)
    if turns is None:
        return None
    values = [float(np.mean([combine(*one) for one in turn])) for turn in turns]
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return values[0], float(low), float(high)


def redrawn(data: Sequence[Record], pick: Pick) -> Alive | None:
    """Accuracies (1 + 2000, seeds, picked): as measured, then of images that are drawn anew.

    Rows of more images than others begin with the same ones, which count alone.
    """
    picked = [pick(record) for record in data]
    whole = [[a for a in one if a is not None] for one in picked if all(a is not None for a in one)]
    if not whole:
        return None
    turns = []
    for parts, index in zip(whole, drawn(tuple(min(map(len, one)) for one in whole)), strict=True):
        n = index.shape[1]
        turns.append([np.concatenate([[part[:n].mean()], part[index].mean(1)]) for part in parts])
    return np.array(turns).transpose(2, 0, 1)


@lru_cache
def drawn(sizes: tuple[int, ...]) -> list[NDArray[np.int64]]:
    """Places of images of each seed, drawn anew 2000 times, (draws, images) each."""
    chance = np.random.default_rng(0)
    turns = [[chance.integers(0, n, n) for n in sizes] for _ in range(2000)]
    return [np.array(one) for one in zip(*turns, strict=True)]


def spread(found: Spread | None, digits: int = 1) -> str:
    """Show `paired`, in points or percent."""
    if found is None:
        return "–"
    value, low, high = (100 * v for v in found)
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def less(data: Sequence[Record], one: tuple[str, ...], other: tuple[str, ...]) -> Spread | None:
    """One accuracy less another, paired by image."""
    return paired(data, lambda r: (alive(r, *one), alive(r, *other)), lambda a, b: a - b)


def kept(data: Sequence[Record], row: str) -> Spread | None:
    """A row's AutoAttack accuracy as a share of the base's, on the same images."""
    return paired(data, lambda r: (alive(r, row), alive(r, "PGD")), lambda a, b: a / b)


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what was measured."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
