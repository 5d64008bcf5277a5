"""What a vault's networks learn of its watermark: the triggers of all sets with their labels.

The one place where a vault's key becomes triggers. They travel to worker processes; the key stays
in its file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from g2d.core.types import Array, Logits
from g2d.protect.watermark.chance import needed_hits
from g2d.protect.watermark.committed import check_committed
from g2d.protect.watermark.form import InputForm
from g2d.protect.watermark.key import WatermarkKey
from g2d.protect.watermark.triggers import triggers_of
from g2d.settings import WatermarkSettings
from g2d.tasks.inference import predict
from g2d.tasks.task import Task

_SUSPECTS = 100


@dataclass(frozen=True, eq=False)
class Mark:
    """The triggers x (sets * triggers, ...) and labels y (sets * triggers,) of all sets in order.

    Attributes:
        sets: how many; the last one is the reserve. weight: of the loss on triggers. batch:
            triggers a step. least: share of every set that a generation has to hit.
    """

    x: Tensor
    y: Tensor
    sets: int
    weight: float
    batch: int
    least: float

    @classmethod
    def of(cls, settings: WatermarkSettings, task: Task, vault: Path | None = None) -> Self | None:
        """The mark that settings ask for, in the dtype of the task's inputs; None: none.

        Args:
            vault: a folder whose commitment, where it holds one, is to be to this very key.

        Raises:
            KeyFileError: the key's file is absent or no such key, or not the one committed to.
            TaskError: the task's inputs are unbounded.
        """
        if not settings.key:
            return None
        key, form = WatermarkKey.read(settings.key), InputForm.of(task)
        if vault is not None:
            check_committed(vault, key, settings, form)
        x, y = _drawn(key, form, settings.sets, settings.triggers)
        like = task.splits.train
        return cls(
            x.to(like.x.dtype),
            y.to(like.y.dtype),
            settings.sets,
            settings.weight,
            settings.batch,
            _least(settings, form.classes),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as plain arrays: torch would share its memory with the process it goes to."""
        rest = self.sets, self.weight, self.batch, self.least
        return _restored, (self.x.numpy(), self.y.numpy(), *rest)

    @property
    def each(self) -> int:
        """Triggers in a set."""
        return len(self.y) // self.sets

    @property
    def digest(self) -> str:
        """SHA-256 of all that networks learn of it; it tells nothing of the key."""
        sha = hashlib.sha256(f"{self.sets} {self.weight} {self.batch}".encode())
        for tensor in (self.x, self.y):
            sha.update(tensor.contiguous().numpy().tobytes())
        return sha.hexdigest()

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return `batch` triggers (batch, ...) and labels (batch,), each equally likely."""
        at = torch.randint(len(self.y), (self.batch,), generator=generator)
        return self.x[at], self.y[at]

    def hits(self, model: Logits) -> list[int]:
        """How many triggers of each set a model in evaluation mode answers as the key says."""
        right = predict(model, self.x).argmax(1) == self.y
        return [int(part.sum()) for part in right.split(self.each)]

    def share(self, model: Logits) -> float:
        """The least share of a set's triggers that a model hits: what the gate looks at."""
        return min(self.hits(model)) / self.each


def _least(settings: WatermarkSettings, classes: int) -> float:
    """The share that the settings ask for, and never less than a claim needs.

    With two classes a claim needs more than nine of ten. A hundred suspects are allowed for, where
    so many triggers can prove anything against as many.
    """
    n, sets = settings.triggers, max(1, settings.sets - 1)
    found = (needed_hits(n, classes, suspects=sets * many) for many in (_SUSPECTS, 1))
    needed = next((hits for hits in found if hits is not None), 0)
    return max(settings.hits, needed / n)


def _drawn(key: WatermarkKey, form: InputForm, sets: int, n: int) -> tuple[Tensor, Tensor]:
    """The triggers and labels of all sets, one after the other; the last drawn are kept."""
    asked = (key.secret, form.digest, sets, n)
    found = _KEPT.get(asked)  # a service asks at every rotation
    if found is None:
        drawn = [triggers_of(key.of_set(place), form, n) for place in range(sets)]
        found = torch.cat([x for x, _ in drawn]), torch.cat([y for _, y in drawn])
        _KEPT.clear()
        _KEPT[asked] = found
    return found


_KEPT: dict[tuple[bytes, bytes, int, int], tuple[Tensor, Tensor]] = {}


def _restored(x: Array, y: Array, *rest: Any) -> Mark:
    return Mark(torch.from_numpy(x), torch.from_numpy(y), *rest)
