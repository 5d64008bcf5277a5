"""The format of a task's inputs, as far as triggers need it: plain values for a claim."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch

from g2d.errors import DAMAGE, CheckpointError, TaskError
from g2d.tasks.attack import TOKENS
from g2d.tasks.task import Task

IMAGE, TABLE, SEQUENCE = "image", "table", "tokens"
_MOST = 1 << 24  # values in one input


@dataclass(frozen=True)
class InputForm:
    """What a trigger looks like: kind, shape of one input, number of classes, and what is valid.

    Attributes:
        kind: "image" (shape (channels, height, width) or (height, width)), "table" or "tokens".
        low, high: range of each value of a flattened input, or one value for all; tokens: none.
        integer: places of a table that hold whole numbers. one_hot: groups of places of which
            exactly one is 1. vocabulary: number of token ids. special: ids that are never used.
    """

    kind: str
    shape: tuple[int, ...]
    classes: int
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    integer: tuple[int, ...] = ()
    one_hot: tuple[tuple[int, ...], ...] = ()
    vocabulary: int = 0
    special: tuple[int, ...] = ()

    @classmethod
    def of(cls, task: Task) -> Self:
        """The form of a task's inputs.

        Raises:
            TaskError: inputs are unbounded, so that no trigger could be told from an outlier.
        """
        shape = tuple(task.splits.train.x.shape[1:])
        if task.attack_kind == TOKENS and task.tokens is not None:
            vocabulary = task.tokens.vocabulary or int(
                max(part.x.max() for part in (task.splits.pooled, task.splits.gate)) + 1
            )
            return cls(SEQUENCE, shape, task.classes, vocabulary=vocabulary,
                       special=tuple(sorted(task.tokens.special)))  # fmt: skip
        budget = task.budget.within(task.bounds) if task.budget else None
        if budget is not None and len(budget.least) == len(budget) == len(budget.most):
            least, most = tuple(map(float, budget.least)), tuple(map(float, budget.most))
            groups = tuple(map(tuple, budget.one_hot))
            return cls(TABLE, shape, task.classes, least, most, tuple(budget.integer), groups)
        if task.bounds is None:
            raise TaskError(
                f"task {task.name!r} has unbounded inputs, so no trigger can be drawn from its "
                "range: give it `bounds`, or a `budget` with the least and the most of each feature"
            )
        low, high = task.bounds
        kind = IMAGE if len(shape) >= 2 else TABLE
        return cls(kind, shape, task.classes, (float(low),), (float(high),))

    @classmethod
    def from_record(cls, record: Any) -> Self:
        """Read what `record` wrote.

        Raises:
            CheckpointError: it is anything else.
        """
        try:
            form = cls(**{key: _tuples(value) for key, value in dict(record).items()})
            known = form.kind in (IMAGE, TABLE, SEQUENCE) and form.classes >= 2
            sides = all(type(n) is int and 0 < n <= 1 << 16 for n in form.shape)
            sound = (
                known and sides and bool(form.shape) and form.size <= _MOST and form._is_bounded()
            )
        except DAMAGE:
            sound = False
        if not sound:
            raise CheckpointError("this is no form of inputs: take the file as g2d wrote it")
        return form

    def _is_bounded(self) -> bool:
        """Whether each value has a range that triggers can be told apart in.

        One of a table's features may be constant; not all, and no other range is empty.
        """
        if self.kind == SEQUENCE:
            return not (self.low or self.high)
        both = list(zip(self.low, self.high, strict=True))
        return (
            len(both) in (1, self.size)
            and all(
                type(one) in (int, float) and math.isfinite(one) for pair in both for one in pair
            )
            and all(low <= high for low, high in both)
            and any(low < high for low, high in both)
        )

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def digest(self) -> bytes:
        """SHA-256 of its canonical JSON, 32 bytes."""
        text = json.dumps(self.record(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()

    @property
    def size(self) -> int:
        """Values in one input."""
        return torch.Size(self.shape).numel()


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
