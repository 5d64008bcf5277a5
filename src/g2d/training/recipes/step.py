"""One optimiser step of a hardened training, before it is taken; what recipes change.

A recipe is given a `Step` and returns it changed (`Step.replace`). How steps follow one another
lives in `hardened`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from g2d.attacks import fgsm, pgd
from g2d.attacks.crafting import craft
from g2d.core.types import Logits
from g2d.errors import SettingsError
from g2d.protect.watermark.mark import Mark
from g2d.settings import HardenSettings
from g2d.tasks.attack import BALL
from g2d.tasks.splits import Split
from g2d.tasks.task import Task

Loss = Callable[[Tensor], Tensor]
"""Logits (n, classes) to a scalar."""
Adjust = Callable[[nn.Module, float], None]
"""Called after a step with the model and the rate: moves weights that the optimiser does not."""


@dataclass(frozen=True)
class Part:
    """Inputs (n, ...) that a step learns from, and the loss of the model's logits (n, classes)."""

    x: Tensor
    loss: Loss


@dataclass(frozen=True)
class Step:
    """What the next optimiser step will learn from.

    Attributes:
        model: what is trained. task: its data range and loss. settings: of `[harden]`.
        eps: this step's attack budget, the schedule applied. done: share of the training, [0, 1).
        generator: the source of every draw.
        pools: attacks crafted on other members; empty where there are none.
        teacher: maps inputs (n, ...) to logits (n, classes); None where there is none.
        x: clean inputs (n, ...). y: their labels (n,).
        targets: what attacks lead away from: labels (n,), or probabilities (n, classes).
        criterion: loss of logits (n, classes) on `x`, or on attacks made from it.
        clean: weight of the criterion on `x` itself; 0 leaves the clean inputs out.
        parts: what else is learned from; one forward pass serves all.
        penalties: scalars that are added to the loss.
        after: called when the step was taken, without gradients: (model, learning rate).
        mark: the watermark's triggers; None where there is none.
    """

    model: nn.Module
    task: Task
    settings: HardenSettings
    eps: float
    done: float
    generator: torch.Generator
    pools: Sequence[Split]
    teacher: Logits | None
    x: Tensor
    y: Tensor
    targets: Tensor
    criterion: Loss
    clean: float = 1.0
    parts: tuple[Part, ...] = ()
    penalties: tuple[Tensor, ...] = ()
    after: tuple[Adjust, ...] = ()
    mark: Mark | None = None

    def replace(self, **changes: Any) -> Step:
        """Return the step with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def add(self, *parts: Part) -> Step:
        """Return the step with more to learn from."""
        return self.replace(parts=(*self.parts, *parts))

    def attack(self, targets: Tensor | None = None) -> Tensor:
        """Craft adversarial inputs (n, ...) from `x` as the settings say, against `targets`.

        The model's parameters are frozen meanwhile, which saves a fifth of the time, and it is in
        evaluation mode, so that batch norm does not learn from the attack's iterates. Tokens are
        substituted by first order alone with method 'fgsm', else greedily; the task's own attack is
        what it is.
        """
        s, away = self.settings, self.targets if targets is None else targets
        with frozen(self.model):
            if self.task.attack_kind != BALL:
                return craft(
                    self.task, self.model, self.x, away, generator=self.generator,
                    how="light" if s.method == "fgsm" else "greedy",
                )  # fmt: skip
            if s.method == "fgsm":
                return fgsm(
                    self.model, self.x, away, eps=self.eps, generator=self.generator,
                    bounds=self.task.reach, norm=s.norm,
                )  # fmt: skip
            size = self.eps * (s.step_size or 2.5 / s.steps)
            return pgd(
                self.model, self.x, away, eps=self.eps, steps=s.steps, generator=self.generator,
                bounds=self.task.reach, step_size=size, batch=len(self.x), norm=s.norm,
            )  # fmt: skip

    def loss(self) -> Tensor:
        """The scalar to descend: every part's loss, from one forward pass, and the penalties.

        Raises:
            SettingsError: there is nothing to learn from, or a loss is not a scalar.
        """
        parts = self.parts
        if self.clean > 0:
            parts = (Part(self.x, lambda z: self.clean * self.criterion(z)), *parts)
        if not parts:
            raise SettingsError(
                "the step has nothing to learn from: its clean weight is 0 and no recipe added a "
                "part (step.add)"
            )
        logits = self.model(torch.cat([part.x for part in parts])).split([len(p.x) for p in parts])
        losses = [part.loss(z) for part, z in zip(parts, logits, strict=True)]
        if shapes := [tuple(one.shape) for one in (*losses, *self.penalties) if one.dim()]:
            raise SettingsError(f"a part's loss or a penalty has shape {shapes[0]}, not a scalar")
        return torch.stack([*losses, *self.penalties]).sum()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no gradients for parameters, for a while."""
    training = model.training
    free = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for parameter in free:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in free:
            parameter.requires_grad_(True)
        model.train(training)


def mix(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mix each input (n, ...) with another of the batch, in a share of its own, uniform in [0, 1].

    Mixup (Zhang et al. 2018, arXiv 1710.09412), of inputs alone: who answers on them gives labels.
    """
    other = torch.randperm(len(x), generator=generator).to(x.device)
    share = torch.rand(len(x), *[1] * (x.dim() - 1), generator=generator).to(x.device, x.dtype)
    return share * x + (1 - share) * x[other]


def divergence(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean KL(targets || softmax(logits / temperature)); targets are probabilities (n, classes)."""
    predicted = (logits / temperature).log_softmax(1)
    return F.kl_div(predicted, targets, reduction="batchmean")
