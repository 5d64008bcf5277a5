"""What an attacker of a table may change: a budget for every feature, and the exact projection.

Attacks reach it through `g2d.attacks.project`; how they search in it does not live here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from g2d.core.types import Bounds
from g2d.errors import DataError, TaskError


@dataclass(frozen=True)
class Budget:
    """How far each feature of x (N, features) may be moved, in the units of x as the task has them.

    Features are named by their column, from 0. A one-hot group is moved by swaps: between those of
    its columns whose `eps` is positive; an example whose category has `eps` 0 keeps it. Every group
    may swap, at once.

    Attributes:
        eps: largest change of each feature (features,); 0: the attacker cannot touch it.
        grow: features that can only become larger. shrink: those that can only become smaller.
        integer: features that hold whole numbers, and still do afterwards.
        one_hot: groups of columns of which exactly one is 1 and the others are 0.
        least, most: range of each feature (features,); empty: none.

    Raises:
        TaskError: a number is negative or none, a column does not exist or is claimed by two
            groups, or nothing could ever move.
    """

    eps: Sequence[float]
    grow: Sequence[int] = ()
    shrink: Sequence[int] = ()
    integer: Sequence[int] = ()
    one_hot: Sequence[Sequence[int]] = ()
    least: Sequence[float] = ()
    most: Sequence[float] = ()

    def __post_init__(self) -> None:
        for name in ("eps", "least", "most"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        for name in ("grow", "shrink", "integer"):
            object.__setattr__(self, name, tuple(map(int, getattr(self, name))))
        object.__setattr__(self, "one_hot", tuple(tuple(map(int, g)) for g in self.one_hot))
        _check_numbers(self)
        _check_columns(self)

    def __len__(self) -> int:
        return len(self.eps)

    @cached_property
    def largest(self) -> float:
        """The largest `eps` of a feature that is no category: the scale of an attack's `eps`."""
        numeric = [e for i, e in enumerate(self.eps) if i not in self._grouped]
        return max(numeric, default=0.0) or max(self.eps)

    def within(self, bounds: tuple[float, float] | None) -> Budget:
        """Return it with a range that all features share, where none of their own is narrower."""
        if bounds is None:
            return self
        low, high = bounds
        least = [max(low, own) for own in self.least or [low] * len(self)]
        most = [min(high, own) for own in self.most or [high] * len(self)]
        return dataclasses.replace(self, least=least, most=most)

    def radius(self, eps: float, like: Tensor) -> Tensor:
        """Largest change of each feature under an attack budget (features,); 1 for a category.

        `eps` scales all features alike: at `largest` each has its own.
        """
        return torch.where(self._category, 1.0, self._eps * (eps / self.largest)).to(like.dtype)

    def project(self, proposed: Tensor, x: Tensor, eps: float) -> Tensor:
        """Return the nearest inputs to `proposed` (n, features) that an attacker of `x` can send.

        Column by column the nearest value of the budget, whole where it must be; group by group the
        nearest category, the present one where two are as near. What is no number stays as in `x`.
        """
        low, high = self._box(x, eps)
        given = torch.where(proposed.isnan(), x, proposed)
        found = torch.minimum(torch.maximum(given, low), high)
        if self.integer:
            whole = torch.minimum(torch.maximum(found.round(), low.ceil()), high.floor())
            fits = self._integer & (low.ceil() <= high.floor())
            found = torch.where(fits, whole, found)
        for group, allowed in self._groups:
            found[:, group] = _swapped(given[:, group], x[:, group], allowed, eps > 0)
        return found

    def clip(self, latent: Tensor, x: Tensor, eps: float) -> Tensor:
        """Clip to the range of each feature alone; categories are left as they are.

        What a search keeps between its steps: rounding there would undo steps below one half.
        """
        low, high = self._box(x, eps)
        boxed = torch.minimum(torch.maximum(latent, low), high)
        return torch.where(self._category, latent, boxed)

    def direction(self, gradient: Tensor) -> Tensor:
        """The steepest move of at most one radius in each feature, (n, features).

        A sign for a number. For a category the gradient itself, centred and divided by its largest
        in the group: to first order it is what a swap gains (HotFlip, Ebrahimi et al. 2018, arXiv
        1712.06751, equation 10).
        """
        move = gradient.sign()
        for group, _ in self._groups:
            part = gradient[:, group]
            part = part - part.mean(1, keepdim=True)
            size = part.abs().amax(1, keepdim=True)
            move[:, group] = part / size.clamp_min(torch.finfo(part.dtype).tiny)
        return move

    def check(self, x: Tensor, what: str) -> None:
        """Check that data are what the budget says of them; `what` names them in messages.

        Raises:
            TaskError: the budget has another number of features than the data.
            DataError: a value is not whole, out of range, or a group is not one-hot.
        """
        if x.dim() != 2 or x.shape[1] != len(self):
            raise TaskError(
                f"{what} has inputs of shape {tuple(x.shape[1:])}, and the budget is for "
                f"{len(self)} features; give one eps for each column of a table (N, features)"
            )
        for column in self.integer:
            if bool((x[:, column] != x[:, column].round()).any()):
                raise DataError(
                    f"{what}: feature {column} is called integer, and holds "
                    f"{_odd(x[:, column], x[:, column] != x[:, column].round())}; take it out of "
                    "the budget's `integer`, or scale inside the model"
                )
        for number, group in enumerate(self.one_hot):
            part = x[:, list(group)]
            wrong = ((part != 0) & (part != 1)).any(1) | (part.sum(1) != 1)
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0, 0])
                raise DataError(
                    f"{what}: one-hot group {number} (columns {group[0]} to {group[-1]}) is not "
                    f"one-hot in row {row}: {part[row].tolist()[:8]}; exactly one column must be 1 "
                    "(a category that training did not know needs a column of its own)"
                )
        for name, side, sign in (("least", self.least, 1), ("most", self.most, -1)):
            if side:
                limit = torch.tensor(side, dtype=x.dtype)
                out = (sign * (x - limit) < -1e-6 * limit.abs().clamp_min(1)).any(0)
                if bool(out.any()):
                    column = int(out.nonzero()[0, 0])
                    raise DataError(
                        f"{what}: feature {column} has values beyond its {name}, {side[column]:g}; "
                        "correct the budget"
                    )

    def wrong(self, x: Tensor) -> Tensor:
        """Which examples (n,) of x (n, features) are what `check` refuses, of this many features.

        One by one, for data that somebody else has written: of these some may be left out.
        """
        found = torch.zeros(len(x), dtype=torch.bool)
        for column in self.integer:
            found |= x[:, column] != x[:, column].round()
        for group in self.one_hot:
            part = x[:, list(group)]
            found |= ((part != 0) & (part != 1)).any(1) | (part.sum(1) != 1)
        for side, sign in ((self.least, 1), (self.most, -1)):
            if side:
                limit = torch.tensor(side, dtype=x.dtype)
                found |= (sign * (x - limit) < -1e-6 * limit.abs().clamp_min(1)).any(1)
        return found

    # --- what the columns are, as tensors ---

    @cached_property
    def _grouped(self) -> frozenset[int]:
        return frozenset(column for group in self.one_hot for column in group)

    @cached_property
    def _eps(self) -> Tensor:
        return torch.tensor(self.eps, dtype=torch.float64)

    @cached_property
    def _category(self) -> Tensor:
        """Columns of groups that may swap (features,) bool."""
        swaps = {i for group in self.one_hot if any(self.eps[i] for i in group) for i in group}
        return self._at(swaps)

    @cached_property
    def _integer(self) -> Tensor:
        return self._at(self.integer)

    @cached_property
    def _groups(self) -> list[tuple[Tensor, Tensor]]:
        """Columns of each group that may swap, and which of them may be entered and left."""
        found = []
        for group in self.one_hot:
            columns = torch.tensor(group)
            allowed = self._eps[columns] > 0
            if bool(allowed.any()):
                found.append((columns, allowed))
        return found

    def _at(self, columns: Sequence[int] | set[int]) -> Tensor:
        mask = torch.zeros(len(self), dtype=torch.bool)
        mask[list(columns)] = True
        return mask

    def _box(self, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Ends of the interval of each feature, both (n, features); `x` lies between them."""
        size = torch.where(self._category, 0.0, self.radius(eps, x))
        low = torch.where(self._at(self.grow), x, x - size)
        high = torch.where(self._at(self.shrink), x, x + size)
        if self.least:
            low = torch.minimum(torch.maximum(low, torch.tensor(self.least, dtype=x.dtype)), x)
        if self.most:
            high = torch.maximum(torch.minimum(high, torch.tensor(self.most, dtype=x.dtype)), x)
        return low, high


def _swapped(proposed: Tensor, x: Tensor, allowed: Tensor, moves: bool) -> Tensor:
    """The nearest category of a group (n, columns); `x` where it may not be left."""
    if not moves:
        return x
    known = proposed.masked_fill(~allowed, -math.inf)
    here = x.argmax(1, keepdim=True)
    best = known.amax(1, keepdim=True)
    stays = (known.gather(1, here) >= best) | ~allowed[here]
    chosen = torch.where(stays, here, known.argmax(1, keepdim=True))
    return torch.zeros_like(x).scatter(1, chosen, 1.0)


def _odd(values: Tensor, wrong: Tensor) -> str:
    return f"{float(values[wrong][0]):g}"


def _check_numbers(budget: Budget) -> None:
    if not budget.eps:
        raise TaskError("the budget has no features; give one eps for each column of x")
    for column, eps in enumerate(budget.eps):
        if not 0 <= eps < math.inf:
            raise TaskError(
                f"the budget's eps of feature {column} is {eps:g}, expected a number of at least 0 "
                "(0: the attacker cannot touch it)"
            )
    if not any(budget.eps):
        raise TaskError(
            "the budget lets an attacker touch no feature (every eps is 0); give those that he "
            "can change an eps above 0"
        )
    for name in ("least", "most"):
        side = getattr(budget, name)
        if side and len(side) != len(budget):
            raise TaskError(
                f"the budget's `{name}` has {len(side)} values, expected {len(budget)}: one for "
                "each feature (inf where there is none)"
            )
    for column in budget.integer:
        if 0 <= column < len(budget) and 0 < budget.eps[column] < 1:
            raise TaskError(
                f"the budget's eps of feature {column} is {budget.eps[column]:g}, and it holds "
                "whole numbers: it could never move; give at least 1, or 0"
            )


def _check_columns(budget: Budget) -> None:
    named = {"grow": budget.grow, "shrink": budget.shrink, "integer": budget.integer}
    named |= {f"one_hot group {i}": group for i, group in enumerate(budget.one_hot)}
    for name, columns in named.items():
        for column in columns:
            if not 0 <= column < len(budget):
                raise TaskError(
                    f"the budget's {name} names feature {column}; there are {len(budget)}, from 0 "
                    f"to {len(budget) - 1}"
                )
    if both := sorted(set(budget.grow) & set(budget.shrink)):
        raise TaskError(
            f"feature {both[0]} of the budget may only grow and only shrink; set its eps to 0"
        )
    taken: dict[int, int] = {}
    for number, group in enumerate(budget.one_hot):
        for column in group:
            if column in taken:
                raise TaskError(
                    f"feature {column} stands in one-hot groups {taken[column]} and {number} of "
                    "the budget; groups must not overlap"
                )
            taken[column] = number
        if (swaps := sum(budget.eps[column] > 0 for column in group)) == 1 or len(group) < 2:
            raise TaskError(
                f"one-hot group {number} of the budget has {len(group)} columns, {swaps} of them "
                "with an eps above 0; a swap needs two categories (0 everywhere: it never swaps)"
            )
    if both := sorted(set(taken) & {*budget.grow, *budget.shrink, *budget.integer}):
        raise TaskError(
            f"feature {both[0]} stands in a one-hot group of the budget and in `grow`, `shrink` or "
            "`integer`; a category is only swapped"
        )


def reach(budget: Budget | None, bounds: tuple[float, float] | None) -> Bounds:
    """What attacks are given as the range of the data: the budget, where a task has one."""
    return bounds if budget is None else budget.within(bounds)
