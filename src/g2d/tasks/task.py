"""What is defended: a model factory, its data and its loss, checked when they are brought together.

How data is read lives in `readers`, what is checked in `probe`; how a task is trained or attacked
does not live here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g2d.core.devices import CPU, place
from g2d.core.types import Bounds
from g2d.settings import Settings, build
from g2d.tasks.attack import Attack, kind_of, words_of
from g2d.tasks.budget import Budget, reach
from g2d.tasks.building import build_model, seeded
from g2d.tasks.origin import Origin, caller
from g2d.tasks.probe import check_task
from g2d.tasks.splits import Splits
from g2d.tasks.tokens import TokenBudget

Augment = Callable[[Tensor, torch.Generator], Tensor]
Metric = Callable[[Tensor, Tensor], float]
EPS = 8 / 255


@dataclass(frozen=True, eq=False)
class Task:
    """A model factory with its data splits and loss, checked when it is made.

    Attributes:
        factory: builds a fresh, untrained module on the CPU; draws from torch's global generator.
        classes: number of classes; the model maps x (N, ...) to logits (N, classes).
        loss: maps logits (N, classes) and labels (N,) to a scalar.
        bounds: least and largest value that an input may take; None: unbounded (tabular) data.
        eps: attack budget, L-infinity norm, in the units of x. With a `budget` its largest, unless
            given; another scales the whole of it.
        budget: of a table, x (N, features): how far each feature may be moved, and what is valid.
        metrics: what else is told of a model beside accuracy: functions by name, of logits
            (N, classes) and labels (N,).
        augment: maps a batch (N, ...) to one of the same shape, drawing from the given generator.
        settings: per-task defaults for `g2d.settings.Settings` as nested tables; names that
            settings had in earlier releases are understood. The command line
            lays flags and a settings file over them, key by key; `Defence.create` takes them where
            it is given no settings.
        labels: names of the classes, in the order of the logits; (): those that the splits brought.
        device: where its networks are trained and run, as torch calls it. Vaults set it from
            `[task] device` (`g2d.tasks.placing`); data, and what `factory` builds, are on the CPU.

    Raises:
        TaskError: factory, model, loss, bounds, eps or augmentation does not fit the data.
        DataError: a label lies outside [0, classes).
        SettingsError: `settings` has an unknown key or a value out of range.
    """

    name: str
    factory: Callable[[], nn.Module]
    splits: Splits
    classes: int
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    bounds: tuple[float, float] | None = (0.0, 1.0)
    eps: float = EPS
    augment: Augment | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    labels: Sequence[str] = ()
    budget: Budget | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    attack: Attack | str | None = None
    tokens: TokenBudget | None = None
    device: str = CPU

    def __post_init__(self) -> None:
        object.__setattr__(self, "_origin", caller()[1])
        object.__setattr__(self, "labels", tuple(self.labels) or self.splits.labels)
        if isinstance(self.budget, Budget) and self.eps == EPS:
            object.__setattr__(self, "eps", self.budget.largest)
        tables = {
            key: dict(table) if isinstance(table, Mapping) else table
            for key, table in self.settings.items()
        }
        settings = build(Settings, tables, f"settings of task {self.name!r}", stored=True)
        check_task(self, settings.population.batch)

    @property
    def origin(self) -> Origin:
        """Which function made it, where that is known."""
        return vars(self).get("_origin", Origin())

    @cached_property
    def reach(self) -> Bounds:
        """What attacks are given as `bounds`: the budget inside the data's range, or the range."""
        return reach(self.budget, self.bounds)

    @property
    def attack_kind(self) -> str:
        """How it is attacked: 'ball', 'tokens', 'own' or 'none'."""
        return kind_of(self)

    @property
    def attack_words(self) -> str:
        """How it is attacked, in words; "" where that is the ball of eps."""
        return words_of(self)

    def model(self, seed: int) -> nn.Module:
        """Build a fresh model from `seed`; torch's global generator is left as it was.

        It is given copies of inputs, so that it may change them in place.
        """
        with seeded(seed):
            return build_model(self.factory)

    def placed(self, model: nn.Module) -> nn.Module:
        """Move one of its models to its device; it answers where it is asked (`core.devices`).

        Raises:
            DeviceError: the device's memory is too small.
        """
        return place(model, self.device)

    def loss_of(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss, a scalar, of copies: one that changes its arguments changes none of ours."""
        return self.loss(logits.clone(), y.clone())
