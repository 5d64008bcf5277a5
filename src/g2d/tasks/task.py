"""What is defended: a model factory, its data and its loss, checked when they are brought together.

How data is read lives in `readers`; how a task is trained or attacked does not live here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from g2d.core.imports import words
from g2d.errors import DataError, TaskError
from g2d.settings import Settings, build
from g2d.tasks.attack import Attack, check_attack, check_ids, kind_of, with_vocabulary, words_of
from g2d.tasks.splits import Splits
from g2d.tasks.tokens import TokenBudget

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, eq=False)
class Task:
    """A model factory with its data splits and loss, checked when it is made.

    Attributes:
        factory: builds a fresh, untrained module on the CPU; draws from torch's global generator.
        classes: number of classes; the model maps x (N, ...) to logits (N, classes).
        loss: maps logits (N, classes) and labels (N,) to a scalar.
        bounds: least and largest value that an input may take; None: unbounded (tabular) data.
        eps: attack budget, L-infinity norm, in the units of x.
        augment: maps a batch (N, ...) to one of the same shape, drawing from the given generator.
        settings: per-task defaults for `g2d.settings.Settings` as nested tables; names that
            settings had in earlier releases are understood. The command line
            lays flags and a settings file over them, key by key; `Defence.create` takes them where
            it is given no settings.

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
    eps: float = 8 / 255
    augment: Augment | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    attack: Attack | str | None = None
    tokens: TokenBudget | None = None

    def __post_init__(self) -> None:
        _check_labels(self)
        check_attack(self)
        _check_range(self)
        tables = {
            key: dict(table) if isinstance(table, Mapping) else table
            for key, table in self.settings.items()
        }
        build(Settings, tables, f"settings of task {self.name!r}", stored=True)
        _check_model(self)

    @property
    def attack_kind(self) -> str:
        """How it is attacked: 'ball', 'tokens', 'own' or 'none'."""
        return kind_of(self)

    @property
    def attack_words(self) -> str:
        """How it is attacked, in words; "" where that is the ball of eps."""
        return words_of(self)

    def model(self, seed: int) -> nn.Module:
        """Build a fresh model from `seed`; torch's global generator is left as it was."""
        with _seeded(seed):
            return self.factory()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator for a while; its state is restored afterwards."""
    # Not torch.manual_seed: that reseeds the accelerators too, and nothing would restore them.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _check_labels(task: Task) -> None:
    if isinstance(task.classes, bool) or not isinstance(task.classes, int) or task.classes < 2:
        raise TaskError(
            f"task {task.name!r}: classes is {task.classes!r}, expected an integer of at least 2"
        )
    for item in dataclasses.fields(task.splits):
        low, high = getattr(task.splits, item.name).y.aminmax()
        if low < 0 or high >= task.classes:
            raise DataError(
                f"task {task.name!r}: labels of the {item.name} split lie in [{int(low)}, "
                f"{int(high)}], expected [0, {task.classes - 1}]; number the classes from 0, or "
                "correct `classes`"
            )


def _check_range(task: Task) -> None:
    """Check that bounds hold the data and that eps fits into them; ids have neither."""
    if not task.splits.guide.x.is_floating_point():
        check_ids(task)
        object.__setattr__(task, "bounds", None)
        return
    if not 0 < task.eps < math.inf:
        raise TaskError(f"task {task.name!r}: eps is {task.eps}, expected a positive number")
    if task.bounds is None:
        return
    low, high = task.bounds
    if not -math.inf < low < high < math.inf:
        raise TaskError(
            f"task {task.name!r}: bounds are {task.bounds}, expected (least, largest), or None for "
            "unbounded data"
        )
    if task.eps > high - low:
        raise TaskError(
            f"task {task.name!r}: eps {task.eps:g} is larger than the data's range "
            f"{high - low:g} (bounds {low:g} to {high:g}); choose a smaller eps"
        )
    slack = 1e-6 * (high - low)
    for item in dataclasses.fields(task.splits):
        x = getattr(task.splits, item.name).x
        least, largest = (float(end) for end in x.aminmax())
        if least < low - slack or largest > high + slack:
            raise TaskError(
                f"task {task.name!r}: the {item.name} split has values from {least:g} to "
                f"{largest:g}, outside its bounds {low:g} to {high:g}; pass the bounds that hold, "
                "bounds=None if there are none, or normalise inside the model"
            )


def _check_model(task: Task) -> None:
    """Check factory, a forward pass in eval mode, loss and augmentation on two guide examples."""
    batch = task.splits.guide.take(range(min(2, len(task.splits.guide))))
    model, again = _built(task), _built(task)
    if model is again:
        raise TaskError(
            f"task {task.name!r}: the factory gives the same module each time, expected a fresh "
            "one; build the module inside the factory"
        )
    if not _equal_states(model, again):
        raise TaskError(
            f"task {task.name!r}: the factory gives other parameters for the same seed; draw them "
            "from torch's global generator alone"
        )
    with_vocabulary(task, model)
    _check_loss(task, _logits(task, model, batch.x), batch.y)
    _check_augment(task, batch.x)


def _built(task: Task) -> nn.Module:
    try:
        model = task.model(0)
    except Exception as error:
        raise TaskError(f"task {task.name!r}: the factory raised {words(error)}") from error
    if not isinstance(model, nn.Module):
        raise TaskError(
            f"task {task.name!r}: the factory gives {type(model).__name__}, expected a "
            "torch.nn.Module; pass a function that builds one"
        )
    parameters = list(model.parameters())
    if not parameters or any(is_lazy(parameter) for parameter in parameters):
        raise TaskError(
            f"task {task.name!r}: the model has no parameters, or lazy ones without a shape; "
            "expected parameters that exist once the factory returns"
        )
    return model


def _equal_states(model: nn.Module, other: nn.Module) -> bool:
    first, second = model.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) for key, value in first.items() if torch.is_tensor(value)
    )


def _logits(task: Task, model: nn.Module, x: Tensor) -> Tensor:
    """Return the model's logits (N, classes) on `x` in eval mode, checked."""
    try:
        with _seeded(0), torch.no_grad():
            logits = model.eval()(x)
    except Exception as error:
        raise TaskError(
            f"task {task.name!r}: the model fails on inputs {tuple(x.shape)} {x.dtype}: {error}"
        ) from error
    expected = (len(x), task.classes)
    given = f"{tuple(logits.shape)} {logits.dtype}" if isinstance(logits, Tensor) else type(logits)
    if not isinstance(logits, Tensor) or logits.shape != expected or not logits.is_floating_point():
        raise TaskError(
            f"task {task.name!r}: the model gives {given} for {len(x)} examples, expected "
            f"float logits {expected}; correct the model's last layer or `classes`"
        )
    if not bool(torch.isfinite(logits).all()):
        raise TaskError(f"task {task.name!r}: a fresh model's logits are not finite: {logits}")
    return logits


def _check_loss(task: Task, logits: Tensor, y: Tensor) -> None:
    try:
        with _seeded(0):
            loss = task.loss(logits, y)
    except Exception as error:
        raise TaskError(f"task {task.name!r}: the loss raised {words(error)}") from error
    if not isinstance(loss, Tensor) or loss.dim() != 0 or not bool(torch.isfinite(loss)):
        raise TaskError(f"task {task.name!r}: the loss gives {loss}, expected a finite scalar")


def _check_augment(task: Task, x: Tensor) -> None:
    if task.augment is None:
        return
    try:
        with _seeded(0):
            out = task.augment(x.clone(), torch.Generator().manual_seed(0))
    except Exception as error:
        raise TaskError(f"task {task.name!r}: the augmentation raised {words(error)}") from error
    if not isinstance(out, Tensor) or out.shape != x.shape or out.dtype != x.dtype:
        given = f"{tuple(out.shape)} {out.dtype}" if isinstance(out, Tensor) else type(out)
        raise TaskError(
            f"task {task.name!r}: the augmentation gives {given}, expected {tuple(x.shape)} "
            f"{x.dtype} as it was given"
        )
