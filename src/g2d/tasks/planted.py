"""Canaries of a privacy audit: records that take the place of others, each there or not by a coin.

A canary is the input of a record that is taken out of the train split, with another label than its
own, or the mean of two such inputs. It is put back into the split if its coin says so; no trace of
it is anywhere else. Which records and which coins, all of it comes of one secret. How a guess is
judged is in `protect.privacy`, where the secret is kept in `protect.privacy.canary_key`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from g2d.errors import DAMAGE, DataError
from g2d.tasks.keyed import keyed_digests
from g2d.tasks.splits import Split, Splits
from g2d.tasks.task import Task

MISLABELLED, BLENDED = "mislabelled", "blended"
KINDS = (MISLABELLED, BLENDED)

_MOST = 0.5
"""Share of the train split's records without a copy that canaries may take the place of."""


@dataclass(frozen=True, eq=False)
class Planting:
    """All canaries of a secret, planted or not.

    Attributes:
        canaries: x (m, ...) and the labels y (m,) that they are given. coins: (m,) bool, which are
            planted. taken: places in the train split of the records that they replace.
    """

    canaries: Split
    coins: Tensor
    taken: Tensor

    @property
    def inside(self) -> Split:
        """Those that are planted."""
        return self.canaries.take(self.coins.nonzero()[:, 0])

    def pack(self) -> bytes:
        """What a vault keeps: places that are vacated, and planted records; no other canary."""
        inside = self.inside
        return save({"taken": self.taken, "x": inside.x.contiguous(), "y": inside.y.contiguous()})


def draw(task: Task, secret: bytes, count: int, kind: str = MISLABELLED) -> Planting:
    """Draw canaries from a task as it is without any.

    Coins are bits of HMAC-SHA-256 of each canary's number: fair to whoever lacks the secret, and
    independent of the canaries themselves, which come of another use of it. A record that has an
    exact copy is none: the copy would stay where the coin takes the canary away, and what differs
    then is no unit that is there or not, which is all that a guarantee speaks of.

    Raises:
        DataError: `kind` is unknown or does not go with the task's inputs; too many canaries are
            wanted; the task has one class.
    """
    train, each, alone = task.splits.train, 2 if kind == BLENDED else 1, _alone(task.splits)
    _check(task, count, kind, each, len(alone))
    source = torch.Generator().manual_seed(int.from_bytes(_keyed(secret, "canaries")[:7], "big"))
    taken = alone[torch.randperm(len(alone), generator=source)[: count * each]]
    x, own = train.x[taken[:count]], train.y[taken[:count]]
    if kind == BLENDED:
        x = (x + train.x[taken[count:]]) / 2
    y = (own + torch.randint(1, task.classes, (count,), generator=source)) % task.classes
    coins = torch.tensor([_keyed(secret, f"coin {i}")[0] & 1 for i in range(count)]).bool()
    return Planting(Split(x, y, train.names), coins, taken.sort().values)


def plant(task: Task, data: bytes) -> Task:
    """The task with the canaries of `Planting.pack` in its train split, at its end.

    Raises:
        DataError: the bytes are no canaries, or of another task.
    """
    train = task.splits.train
    try:
        found = load(data)
        taken, inside = found["taken"], Split(found["x"], found["y"], train.names)
        keep = torch.ones(len(train), dtype=torch.bool)
        keep[taken] = False
        kept = train.take(keep.nonzero()[:, 0])
        full = Split(torch.cat([kept.x, inside.x]), torch.cat([kept.y, inside.y]), train.names)
        splits = Splits(full, task.splits.guide, task.splits.gate, task.splits.test)
        made = replace(task, splits=splits)
    except (SafetensorError, RuntimeError, *DAMAGE) as error:
        raise DataError(
            f"the planted canaries do not fit task {task.name!r} ({error}): point --data at the"
            " data that they were drawn from, or make the vault anew"
        ) from error
    object.__setattr__(made, "_origin", task.origin)
    return made


def _alone(splits: Splits) -> Tensor:
    """Places in the train split of records whose input nobody else has, (n,)."""
    own, *others = (
        keyed_digests(split.x, b"copies") for split in (splits.train, splits.guide, splits.gate)
    )
    seen = Counter(chain(own, *others))
    return torch.tensor([at for at, one in enumerate(own) if seen[one] == 1], dtype=torch.long)


def _check(task: Task, count: int, kind: str, each: int, alone: int) -> None:
    train = task.splits.train
    if kind not in KINDS:
        raise DataError(f"there are no {kind!r} canaries; expected {' or '.join(KINDS)}")
    if kind == BLENDED and (not train.x.is_floating_point() or task.budget is not None):
        raise DataError(
            f"the inputs of task {task.name!r} cannot be blended, for a mean of two would be none"
            f" of them: plant {MISLABELLED} canaries"
        )
    if task.classes < 2:
        raise DataError("a canary needs another label than its own, and the task has one class")
    most = int(_MOST * alone) // each
    if not 1 <= count <= most:
        copied = f" ({len(train) - alone} more have exact copies)" if alone < len(train) else ""
        raise DataError(
            f"{count} {kind} canaries cannot be planted among {alone} records{copied}, whose"
            f" places they take: expected 1 to {most}"
        )


def _keyed(secret: bytes, purpose: str) -> bytes:
    return hmac.digest(secret, f"g2d audit canaries 1 {purpose}".encode(), hashlib.sha256)
