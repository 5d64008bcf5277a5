"""What a vault's networks learn of its watermark: the triggers of all sets with their labels.

The one place where a vault's key becomes triggers. They travel to worker processes; the key stays
in its file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
    """The triggers x (n, ...) and labels y (n,) of all sets in order.

    Attributes:
        sizes: triggers of each set; the last one is the reserve, which has fewer: nobody is ever
            asked for it, and a proof has the better odds the more of all triggers are asked for.
        weight: of the loss on triggers. batch: triggers a step. least: share of every set that a
            generation has to hit.
    """

    x: Tensor
    y: Tensor
    sizes: tuple[int, ...]
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
        sizes = sizes_of(settings)
        x, y = _drawn(key, form, settings.triggers, sizes)
        like = task.splits.train
        return cls(
            x.to(like.x.dtype),
            y.to(like.y.dtype),
            sizes,
            settings.weight,
            settings.batch,
            _least(settings, form.classes),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as plain arrays: torch would share its memory with the process it goes to."""
        rest = self.sizes, self.weight, self.batch, self.least
        return _restored, (self.x.numpy(), self.y.numpy(), *rest)

    @property
    def sets(self) -> int:
        """How many there are."""
        return len(self.sizes)

    @property
    def each(self) -> int:
        """Triggers of a set that a verification asks."""
        return self.sizes[0]

    @property
    def digest(self) -> str:
        """SHA-256 of all that networks learn of it; it tells nothing of the key."""
        sha = hashlib.sha256(f"{self.sizes} {self.weight} {self.batch}".encode())
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
        return [int(part.sum()) for part in right.split(self.sizes)]

    def shares(self, hits: Sequence[int]) -> list[float]:
        """Hits of each set, as shares of its triggers."""
        return [count / size for count, size in zip(hits, self.sizes, strict=True)]

    def share(self, model: Logits) -> float:
        """The least share of a set's triggers that a model hits: what the gate looks at."""
        return min(self.shares(self.hits(model)))


def sizes_of(settings: WatermarkSettings) -> tuple[int, ...]:
    """Triggers of each set that networks learn."""
    shown = (settings.triggers,) * (settings.sets - 1)
    return (*shown, min(settings.reserve, settings.triggers))


def _least(settings: WatermarkSettings, classes: int) -> float:
    """The share that the settings ask for, and never less than a claim needs.

    With two classes a claim needs more than nine of ten. A hundred suspects are allowed for, where
    so many triggers can prove anything against as many.
    """
    n, sets = settings.triggers, max(1, settings.sets - 1)
    found = (needed_hits(n, classes, suspects=sets * many) for many in (_SUSPECTS, 1))
    needed = next((hits for hits in found if hits is not None), 0)
    return max(settings.hits, needed / n)


def _drawn(
    key: WatermarkKey, form: InputForm, n: int, sizes: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The first triggers and labels of all sets, one after the other; the last drawn are kept."""
    asked = (key.secret, form.digest, n, sizes)
    found = _KEPT.get(asked)  # a service asks at every rotation
    if found is None:
        sets = [triggers_of(key.of_set(place), form, n) for place in range(len(sizes))]
        drawn = [(x[:size], y[:size]) for (x, y), size in zip(sets, sizes, strict=True)]
        found = torch.cat([x for x, _ in drawn]), torch.cat([y for _, y in drawn])
        _KEPT.clear()
        _KEPT[asked] = found
    return found


_KEPT: dict[tuple[bytes, bytes, int, tuple[int, ...]], tuple[Tensor, Tensor]] = {}


def _restored(x: Array, y: Array, *rest: Any) -> Mark:
    return Mark(torch.from_numpy(x), torch.from_numpy(y), *rest)
