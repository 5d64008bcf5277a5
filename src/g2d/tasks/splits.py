"""Data splits: labelled examples, named, disjoint and checked. Knows no file and no model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from g2d.errors import DataError

TEST_FRACTION = 0.2
FRACTIONS = (0.6, 0.2, 0.2)


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled examples: `x` (N, ...) finite floats, or int32 or int64 ids; `y` (N,) int64.

    Raises:
        DataError: lengths differ, labels are not integers or `x` is neither finite floats nor ids.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        x, y = self.x, self.y
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            missing = "labels" if isinstance(x, Tensor) else "examples"
            raise DataError(
                f"the {missing} are missing: got x {type(x).__name__} and y {type(y).__name__}, "
                "expected tensors x (N, ...) and y (N,)"
            )
        if x.dim() < 1 or y.dim() != 1 or len(x) != len(y):
            raise DataError(
                f"got x of shape {tuple(x.shape)} with y of shape {tuple(y.shape)}; "
                "expected x (N, ...) and y (N,): one label for each example"
            )
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise DataError(
                f"labels are {y.dtype}, expected integers 0, 1, ...; once none is missing (NaN), "
                "convert them with y.long()"
            )
        if not x.is_floating_point() and x.dtype not in (torch.int32, torch.int64):
            raise DataError(
                f"x is {x.dtype}, expected floats, or token ids of int32 or int64; convert it with "
                "x.float() or x.long()"
            )
        # aminmax carries NaN through and, unlike isfinite, allocates no second tensor.
        if x.numel() and not all(bool(torch.isfinite(end)) for end in x.aminmax()):
            raise DataError("x holds NaN or infinite values; clean the data first")
        object.__setattr__(self, "y", y.long())

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Tensor | Sequence[int]) -> Split:
        """Return the examples at `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.long)
        return Split(self.x[index], self.y[index])

    def sample(self, n: int, generator: torch.Generator) -> Split:
        """Return `n` random examples without replacement, or all (shuffled) if there are fewer."""
        order = torch.randperm(len(self), generator=generator, device=generator.device)
        return self.take(order[:n].to(self.y.device))


@dataclass(frozen=True, eq=False)
class Splits:
    """The four disjoint splits; the test split is touched by reports alone.

    Raises:
        DataError: a split is empty, or their examples differ in shape or type.
    """

    train: Split
    guide: Split
    gate: Split
    test: Split

    def __post_init__(self) -> None:
        first = self.train.x
        for item in fields(self):
            x = getattr(self, item.name).x
            if not len(x):
                raise DataError(f"the {item.name} split is empty; every split needs examples")
            if x.shape[1:] != first.shape[1:] or x.dtype != first.dtype:
                raise DataError(
                    f"examples of the {item.name} split are {tuple(x.shape[1:])} {x.dtype}, those "
                    f"of the train split {tuple(first.shape[1:])} {first.dtype}; make them alike"
                )


def split_dataset(
    x: Tensor | NDArray[Any],
    y: Tensor | NDArray[Any],
    test: Split | None = None,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
) -> Splits:
    """Shuffle by `seed` and divide into train, guide and gate, and test where none is given.

    A fifth of the data is the test split unless `test` is given; `fractions` are the shares of
    train, guide and gate in the rest (what they leave over is not used).

    Args:
        x: (N, ...) floats, or uint8 pixels, which become float32 in [0, 1], or token ids of int32
            or int64. NumPy's float64 becomes torch's default type.
        y: (N,) integer labels.

    Raises:
        DataError: the fractions are not positive or exceed 1, the data is malformed, labels are
            missing, or a split would have fewer than 2 examples.
    """
    doubles = isinstance(x, np.ndarray) and x.dtype == np.float64
    x, y = _tensor(x, "examples x"), _tensor(y, "labels y")
    if doubles:
        x = x.to(torch.get_default_dtype())
    if x.dim() < 1 or y.dim() != 1 or len(x) != len(y):
        Split(x, y)  # raises, and says how they differ
    cuts = _cuts(len(y), None if test is None else len(test), fractions)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    parts = [order[start:end] for start, end in itertools.pairwise(cuts)]
    train, guide, gate = (Split(unit_scaled(x[part]), y[part]) for part in parts)
    if test is None:
        held_out = order[: cuts[0]]
        test = Split(unit_scaled(x[held_out]), y[held_out])
    return Splits(train, guide, gate, test)


def _tensor(given: Any, what: str) -> Tensor:
    if given is None:
        raise DataError(f"the {what} are missing (None); expected a tensor or a NumPy array")
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the {what} are not all numbers ({error}); expected a tensor or a NumPy array: "
            "floats for x, integers 0, 1, ... for y, none missing"
        ) from error


def _cuts(n: int, given: int | None, fractions: tuple[float, float, float]) -> list[int]:
    """Return where train, guide and gate begin and end among `n`; what comes before is test.

    `given` is the size of a test split that exists already; None: one is to be cut off.
    """
    if len(fractions) != 3 or not all(part > 0 for part in fractions) or sum(fractions) > 1 + 1e-9:
        raise DataError(
            f"fractions are {fractions}; expected three positive shares (train, guide, gate) "
            "with a sum of at most 1"
        )
    held_out = round(TEST_FRACTION * n) if given is None else 0
    shares = itertools.accumulate(fractions, initial=0.0)
    cuts = [held_out + round(share * (n - held_out)) for share in shares]
    names = ("train", "guide", "gate")
    sizes = {name: b - a for name, (a, b) in zip(names, itertools.pairwise(cuts), strict=True)}
    sizes["test"] = held_out if given is None else given
    if min(sizes.values()) < 2:
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise DataError(
            f"{n} examples are too few: the splits would be {shown}, and each needs at least 2"
        )
    return cuts


def unit_scaled(x: Tensor) -> Tensor:
    """Turn uint8 pixels into float32 in [0, 1]; leave anything else alone."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x
