"""Data splits: labelled examples, named, disjoint and checked. Knows no file and no model."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from g2d.errors import DataError, DataWarning
from g2d.tasks.columns import as_examples, as_labels

TEST_FRACTION = 0.2
FRACTIONS = (0.6, 0.2, 0.2)
ENOUGH = 256  # examples to guide by: two batches; digits has 287


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled examples: `x` (N, ...) finite floats, or int32 or int64 ids; `y` (N,) int64.

    `names` are those of the classes, where labels were no numbers from 0; see `split_dataset`.
    `keys` are columns that no network sees, by name: in each (N,) int64, what is equal belongs to
    one unit of privacy, such as a person (`[privacy] unit`).

    Raises:
        DataError: lengths differ, labels are not integers or `x` is neither finite floats nor ids.
    """

    x: Tensor
    y: Tensor
    names: tuple[str, ...] = ()
    keys: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        x, y = self.x, self.y
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            missing = "labels" if isinstance(x, Tensor) else "examples"
            raise DataError(
                f"the {missing} are missing: got x {type(x).__name__} and y {type(y).__name__}, "
                "expected tensors x (N, ...) and y (N,)"
            )
        if y.dim() == 2 and y.shape[1] > 1 and len(x) == len(y):
            raise DataError(
                f"y has shape {tuple(y.shape)}: several labels for each example (multi-label) or "
                "one-hot ones; success of an attack is one changed class, so expected y (N,), one "
                "integer each (one-hot: y.argmax(1)); defend several labels as one task each"
            )
        if x.dim() < 1 or y.dim() != 1 or len(x) != len(y):
            raise DataError(
                f"got x of shape {tuple(x.shape)} with y of shape {tuple(y.shape)}; "
                "expected x (N, ...) and y (N,): one label for each example"
            )
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise DataError(
                f"labels are {y.dtype}, expected integers 0, 1, ...; once none is missing (NaN), "
                "convert them with y.long(). Numbers that are no classes (regression) are not "
                "defended: success of an attack is a changed class"
            )
        if x.dtype == torch.uint8:
            raise DataError(
                "x is torch.uint8, expected floats like the other splits': divide pixels by 255, "
                "or let split_dataset make every split from uint8"
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
        for name, key in self.keys.items():
            if key.dtype != torch.int64 or key.shape != y.shape:
                raise DataError(
                    f"the key column {name!r} is {key.dtype} of shape {tuple(key.shape)}; expected"
                    f" int64 of shape {tuple(y.shape)}, one for each example"
                )

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Tensor | Sequence[int]) -> Split:
        """Return the examples at `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.long)
        keys = {name: key[index] for name, key in self.keys.items()}
        return Split(self.x[index], self.y[index], self.names, keys)

    def sample(self, n: int, generator: torch.Generator) -> Split:
        """Return `n` random examples without replacement, or all (shuffled) if there are fewer."""
        order = torch.randperm(len(self), generator=generator, device=generator.device)
        return self.take(order[:n].to(self.y.device))


@dataclass(frozen=True)
class Drawn:
    """What a permutation of all records put elsewhere than into train, guide and gate.

    A permutation of n changes with n, and which records it draws with it. Who wants a record to
    change nothing but its own place has to draw anew, record by record (`shielded`).

    Attributes:
        parts: those records: of the test split, and what no split holds. test: the share of all
            that was to be the test split; 0: it was given. kept: of the rest, what splits hold.
    """

    parts: tuple[Split, ...]
    test: float
    kept: float


class _Known:
    """Keeps what `split_dataset` knows out of `vars`, which hold the splits."""

    __slots__ = ("_drawn",)
    _drawn: Drawn | None

    def __setstate__(self, state: Any) -> None:
        """Take over a copy's attributes, which a frozen class lets nobody set."""
        plain, kept = state if isinstance(state, tuple) else (state, {})
        for name, value in {**(plain or {}), **kept}.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, eq=False)
class Splits(_Known):
    """The four disjoint splits; the test split is touched by reports alone.

    Raises:
        DataError: a split is empty, or their examples differ in shape or type.
    """

    train: Split
    guide: Split
    gate: Split
    test: Split

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes' names; () where labels are numbers alone."""
        return self.train.names

    def added(self, name: str) -> int:
        """How many examples at the end of a split, or of `guiding`, came later; 0: none did."""
        if name == "guiding":
            few = len(self.guide) < ENOUGH
            return self.added("guide") + few * self.added("train")
        return int(vars(self).get("_added", {}).get(name, 0))

    @property
    def former(self) -> Splits:
        """The splits without what came later."""
        if not vars(self).get("_added"):
            return self
        return Splits(**{item.name: self._cut(item.name)[0] for item in fields(self)})

    def _cut(self, name: str) -> tuple[Split, Split]:
        """What a split began with, and what came later."""
        split = getattr(self, name)
        end = len(split) - self.added(name)
        old = Split(split.x[:end], split.y[:end], split.names)
        return old, Split(split.x[end:], split.y[end:], split.names)

    def with_more(self, more: Mapping[str, Split]) -> Splits:
        """Put examples at the ends of splits by name: what points into them by index still does.

        The test split takes none: reports compare what came before with what comes after.
        """
        assert "test" not in more, "the test split is the task's own"
        parts = {item.name: getattr(self, item.name) for item in fields(self)}
        for name, split in more.items():
            if len(split):
                own = parts[name]
                x, y = torch.cat([own.x, split.x.to(own.x.dtype)]), torch.cat([own.y, split.y])
                parts[name] = Split(x, y, own.names)
        grown = Splits(**parts)
        counts = {name: self.added(name) + len(split) for name, split in more.items()}
        object.__setattr__(grown, "_added", vars(self).get("_added", {}) | counts)
        return grown

    @property
    def drawn(self) -> Drawn | None:
        """What a permutation put elsewhere; None: nothing, or whoever made the splits knows."""
        return getattr(self, "_drawn", None)

    @property
    def pooled(self) -> Split:
        """What the attacks that are kept with members are crafted on."""
        return self.train

    @cached_property
    def guiding(self) -> Split:
        """What guidance and its attacks use: the guide split, and training data where it is small.

        Guidance on 29 examples fits these and no others. The guide split comes first, so that an
        index into it holds; a guide split of 256 or more is all there is.
        """
        if len(self.guide) >= ENOUGH:
            return self.guide
        if vars(self).get("_added"):
            (guide, new_guide), (train, new_train) = self._cut("guide"), self._cut("train")
            both = [guide, train, new_guide, new_train]  # what came later stays at the end
        else:
            both = [self.guide, self.train]
        return Split(torch.cat([part.x for part in both]), torch.cat([part.y for part in both]))

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
    x: Any,
    y: Any,
    test: Split | None = None,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
    keys: Mapping[str, Sequence[Any]] | None = None,
) -> Splits:
    """Shuffle by `seed` and divide into train, guide and gate, and test where none is given.

    A fifth of the data is the test split unless `test` is given; `fractions` are the shares of
    train, guide and gate in the rest (what they leave over is not used).

    Args:
        x: (N, ...) floats, or uint8 pixels, which become float32 in [0, 1], or token ids of int32
            or int64: a tensor, an array or a frame (pandas, polars). NumPy's float64 becomes
            torch's default type.
        y: (N,) labels. Integers from 0 stay; others, texts, booleans and categories are numbered
            in sorted order, and `Splits.labels` keeps their names.
        test: of the same shape and type as `x`; labels numbered alike. uint8 pixels beside floats
            are refused.
        keys: columns of N values of any type beside `x`, by name, which no network sees: what is
            equal there belongs to one person, say, and `[privacy] unit` may name one of them.

    Raises:
        DataError: the fractions are not positive or exceed 1, the data is malformed, labels are
            missing, or a split would have fewer than 2 examples.
    """
    x, (y, names) = as_examples(x), as_labels(y)
    columns = {name: hashed(column) for name, column in (keys or {}).items()}
    if x.dim() < 1 or y.dim() != 1 or len(x) != len(y):
        Split(x, y)  # raises, and says how they differ
    cuts = _cuts(len(y), None if test is None else len(test), fractions)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    parts = [order[start:end] for start, end in itertools.pairwise(cuts)]
    whole = Split(unit_scaled(x), y, names, columns) if columns else None

    def at(part: Tensor) -> Split:
        return whole.take(part) if whole else Split(unit_scaled(x[part]), y[part], names)

    train, guide, gate = map(at, parts)
    elsewhere = [order[cuts[-1] :]] if cuts[-1] < len(order) else []
    drawn, share = tuple(map(at, elsewhere)), 0.0
    if test is None:
        test, share = at(order[: cuts[0]]), TEST_FRACTION
        drawn = (test, *drawn)
    splits = Splits(train, guide, gate, test)
    if drawn:
        object.__setattr__(splits, "_drawn", Drawn(drawn, share, min(1.0, sum(fractions))))
    warn_of_duplicates(splits)
    return splits


def hashed(column: Sequence[Any]) -> Tensor:
    """Numbers (N,) int64 for values of any type, equal where these are: 64 bits of SHA-256.

    A number depends on its own value alone, not on what other values there are.

    Raises:
        DataError: a value is missing: all of these would be one person.
    """
    missing = sum(str(value) in ("None", "nan", "NaT", "<NA>") for value in column)
    if missing:
        raise DataError(
            f"{missing} values of a key column are missing (None, nan, NaT or <NA>), so that nobody"
            " knows whose these records are: leave them out, or give each a value of its own"
        )
    found = [hashlib.sha256(str(value).encode()).digest()[:8] for value in column]
    return torch.tensor([int.from_bytes(one, "big", signed=True) for one in found])


def warn_of_duplicates(splits: Splits) -> None:
    """Say once, as a `DataWarning`, how many examples of a split are in an earlier one, too.

    Not in worker processes, which load the same data.
    """
    if multiprocessing.parent_process() is not None:
        return
    seen: set[int] = set()
    found = {}
    for name in ("train", "guide", "gate", "test"):
        rows = getattr(splits, name).x.detach().cpu().contiguous().flatten(1).numpy()
        hashes = [hash(row.tobytes()) for row in rows]
        found[name] = sum(one in seen for one in hashes)
        seen.update(hashes)
    if any(found.values()):
        shown = ", ".join(f"{count} of {name}" for name, count in found.items() if count)
        warnings.warn(
            f"examples are in more than one split: {shown} stand in an earlier split, too; what is "
            "measured there looks better than it is. Drop duplicates before splitting",
            DataWarning,
            stacklevel=3,
        )


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
