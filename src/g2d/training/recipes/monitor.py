"""Watching a hardened training on the guide split: its best weights, and when it fools itself.

`TrainingMonitor` measures and remembers; what follows from a look is decided in `hardened`.

Single-step training can collapse: the model becomes robust to FGSM by hiding its gradients, and PGD
brings it to zero (catastrophic overfitting, Wong et al. 2020, section 5.4). Robust overfitting is
slower: the robust accuracy falls while training goes on (Rice et al. 2020, arXiv 2002.11569).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from g2d.attacks import fgsm, pgd
from g2d.attacks.crafting import craft
from g2d.settings import HardenSettings
from g2d.tasks.attack import BALL, TOKENS
from g2d.tasks.inference import predict
from g2d.tasks.task import Task
from g2d.training.recipes.step import frozen

_EXAMPLES = 512  # of the guide split: a standard error of 1.3 points at 90 %
_STEPS = 10


@dataclass(frozen=True)
class Check:
    """What one look found, on the guide split, at the budget `eps` that the training had then."""

    done: float
    eps: float
    clean: float
    fgsm: float
    pgd: float

    @property
    def collapsed(self) -> bool:
        """Whether FGSM seems to be resisted and PGD is not: catastrophic overfitting."""
        return self.fgsm > 0.5 * self.clean and self.pgd < 0.5 * self.fgsm


class TrainingMonitor:
    """Looks now and then, and keeps the weights that were the most robust at the full budget."""

    def __init__(self, task: Task, settings: HardenSettings, seed: int) -> None:
        self.task, self.settings, self.seed = task, settings, seed
        chosen = torch.Generator().manual_seed(seed)
        self.split = task.splits.guide.sample(_EXAMPLES, chosen)
        self.checks: list[Check] = []
        self.best: dict[str, Tensor] = {}
        self.sound: dict[str, Tensor] = {}
        self._highest, self._waited = -1.0, 0

    def look(self, model: nn.Module, done: float, eps: float) -> Check:
        """Measure the model as it is, at the budget that its training has now.

        The same examples and the same random starts each time: looks differ by the model alone.
        """
        x, y = self.split.x, self.split.y
        found = []
        with frozen(model):
            single, many = self._attacks(model, eps)
            for inputs in (x, single, many):
                found.append(float((predict(model, inputs).argmax(1) == y).double().mean()))
        check = Check(done, eps, *found)
        self.checks.append(check)
        return check

    def _attacks(self, model: nn.Module, eps: float) -> tuple[Tensor, Tensor]:
        """What a cheap and a dearer attack make of the examples; an own attack stands for both."""
        x, y, task = self.split.x, self.split.y, self.task
        draws = torch.Generator().manual_seed(self.seed)
        if task.attack_kind != BALL:
            many = craft(task, model, x, y, generator=draws)
            if task.attack_kind != TOKENS:
                return many, many
            return craft(task, model, x, y, generator=draws, how="light"), many
        bounds, norm = task.reach, self.settings.norm
        single = fgsm(model, x, y, eps=eps, generator=draws, bounds=bounds, norm=norm)
        many = pgd(model, x, y, eps=eps, steps=_STEPS, generator=draws, bounds=bounds, norm=norm)
        return single, many

    def keep(self, model: nn.Module, check: Check, full: bool) -> None:
        """Remember the weights that a look found sound; the best ones only at the full budget."""
        self.sound = {name: t.detach().clone() for name, t in model.state_dict().items()}
        if not full:
            return
        self._waited += 1
        if check.pgd >= self._highest:
            self._highest, self._waited = check.pgd, 0
            self.best = self.sound

    def reset_patience(self) -> None:
        """Start counting again: the training goes on by another method."""
        self._waited = 0

    @property
    def out_of_patience(self) -> bool:
        """Whether `patience` looks in a row found nothing better."""
        return 0 < self.settings.patience <= self._waited
