"""What an attacker may do to token ids: how many of them are replaced, by which others, and where.

A budget says what is allowed and undoes what is not; attacks that search in it are in
`g2d.attacks.tokens`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from g2d.errors import TaskError

Candidates = Sequence[int] | Mapping[int, Sequence[int]] | Tensor | None


@dataclass(frozen=True, eq=False)
class TokenBudget:
    """At most `edits` tokens of an input are replaced by candidates; nothing else may change.

    Attributes:
        edits: tokens of one input that an attacker may replace.
        candidates: ids that may be put in (a list, for every place), or what may stand for each id
            (a mapping from an id to a list, as of synonyms: an id without an entry stays); None:
            every id of the vocabulary that is not special.
        special: ids that are never replaced nor put in: padding, begin and end marks.
        fixed: places that are never replaced, counted from 0 in the flattened input.
        vocabulary: how many ids there are; 0: as many as the embedding has that reads them.
        beam: partly edited inputs that the strong attack keeps for each example; the greedy one
            keeps one.
        tries: of each edit's best substitutions by gradient, how many are tried out.

    Raises:
        TaskError: a number is out of range, or the candidates leave nothing to replace.
    """

    edits: int = 2
    candidates: Candidates = None
    special: tuple[int, ...] = ()
    fixed: tuple[int, ...] = ()
    vocabulary: int = 0
    beam: int = 4
    tries: int = 8

    def __post_init__(self) -> None:
        for name in ("edits", "beam", "tries"):
            if not _whole(getattr(self, name)) or getattr(self, name) < 1:
                raise TaskError(
                    f"TokenBudget: {name} is {getattr(self, name)!r}, expected a whole number of "
                    "at least 1"
                )
        if not _whole(self.vocabulary) or self.vocabulary < 0:
            raise TaskError(
                f"TokenBudget: vocabulary is {self.vocabulary!r}, expected how many ids there are, "
                "or 0 for as many as the embedding has"
            )
        object.__setattr__(self, "special", _ids(self.special, "special"))
        object.__setattr__(self, "fixed", _ids(self.fixed, "fixed"))
        object.__setattr__(self, "candidates", self._candidates())

    def _candidates(self) -> Candidates:
        """The candidates as plain numbers, checked; special ids are no candidates."""
        given, special = self.candidates, set(self.special)
        if given is None:
            return None
        if isinstance(given, Mapping):
            rows = {
                int(key): tuple(i for i in _ids(row, "candidates") if i not in {*special, int(key)})
                for key, row in given.items()
            }
            kept: Candidates = {key: row for key, row in rows.items() if row}
            every = {*rows, *(i for row in rows.values() for i in row)}
        else:
            kept = tuple(i for i in _ids(given, "candidates") if i not in special)
            every = set(kept)
        if not kept:
            raise TaskError(
                "TokenBudget: the candidates leave nothing to put in: they are empty, or special "
                "ids alone; give ids that an attacker could write"
            )
        if self.vocabulary and max(every) >= self.vocabulary:
            raise TaskError(
                f"TokenBudget: candidate {max(every)} lies outside the vocabulary, whose ids are 0 "
                f"to {self.vocabulary - 1}"
            )
        return kept

    @cached_property
    def table(self) -> Tensor:
        """Ids that may be put in: (1, m) for every id alike, or (V, m) by id, filled up with -1."""
        if isinstance(self.candidates, Mapping):
            size = max(self.vocabulary, 1 + max(self.candidates))
            widest = max(map(len, self.candidates.values()))
            table = torch.full((size, widest), -1)
            for key, row in self.candidates.items():
                table[key, : len(row)] = torch.tensor(row)
            return table
        if self.candidates is None:
            special = set(self.special)
            return torch.tensor([[i for i in range(self.vocabulary) if i not in special]])
        return torch.as_tensor(self.candidates)[None]

    def replaceable(self, x: Tensor) -> Tensor:
        """Which tokens of x (n, ...) may be replaced at all; bool, the shape of `x`."""
        free = torch.ones_like(x, dtype=torch.bool)
        if self.special:
            free &= ~torch.isin(x, torch.tensor(self.special).to(x.device))
        if self.fixed:
            free.view(len(x), -1)[:, list(self.fixed)] = False
        if len(self.table) > 1:
            free &= (x < len(self.table)) & (self._row(x) >= 0).any(-1)
        return free

    def allowed(self, proposed: Tensor, x: Tensor) -> Tensor:
        """Which changes from x (n, ...) to `proposed` are of a token, and to one, that may be."""
        if len(self.table) == 1:
            known = torch.isin(proposed, self.table[0])
        else:
            known = (self._row(x) == proposed[..., None]).any(-1)
        return (proposed != x) & known & self.replaceable(x)

    def confine(self, proposed: Tensor, x: Tensor) -> Tensor:
        """Undo what the budget does not allow; of too many edits the first ones stay."""
        changed = self.allowed(proposed, x)
        count = changed.flatten(1).cumsum(1).view_as(x)
        return torch.where(changed & (count <= self.edits), proposed, x)

    def violation(self, proposed: Tensor, x: Tensor) -> str:
        """What about proposals the budget does not allow, in words; "" where all is well."""
        changed = (proposed != x).flatten(1)
        over = (changed.sum(1) > self.edits).nonzero()[:, 0]
        if len(over):
            place = int(over[0])
            return (
                f"it replaced {int(changed[place].sum())} tokens of example {place}, and the "
                f"budget is {self.edits}"
            )
        wrong = (changed & ~self.allowed(proposed, x).flatten(1)).nonzero()
        if not len(wrong):
            return ""
        row, place = wrong[0].tolist()
        old, new = int(x[row].flatten()[place]), int(proposed[row].flatten()[place])
        return (
            f"it replaced id {old} at place {place} of example {row} by {new}, which the budget's "
            "candidates, special ids or fixed places rule out"
        )

    def _row(self, x: Tensor) -> Tensor:
        """What may stand for each id of x (n, ...): (n, ..., m), -1 where nothing more may."""
        return self.table[x.long().clamp(0, len(self.table) - 1)]

    def words(self) -> str:
        """The budget in words."""
        return f"at most {self.edits} token{'s' * (self.edits > 1)} replaced"


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _ids(given: Iterable[int] | Tensor, what: str) -> tuple[int, ...]:
    values = given.flatten().tolist() if isinstance(given, Tensor) else list(given)
    if not all(float(v) == int(v) and int(v) >= 0 for v in values):
        raise TaskError(f"TokenBudget: {what} has to hold whole numbers from 0 on, not {values!r}")
    return tuple(dict.fromkeys(int(v) for v in values))
