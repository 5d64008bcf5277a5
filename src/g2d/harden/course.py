"""A hardened training from first step to last: which recipes, which budget, when it ends.

`Course` is what `g2d.train.train` is given. What a recipe does lives beside; which recipes there
are stands in `RECIPES`, and `find` also takes the user's own as 'module:function'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from g2d.attacks.pgd import check_budget
from g2d.data import Split
from g2d.errors import PopulationError, SettingsError, nearest
from g2d.harden.adversarial import adversarial
from g2d.harden.distil import distil
from g2d.harden.regularise import clamp, l2
from g2d.harden.step import Logits, Step
from g2d.harden.watch import Check, Watch
from g2d.importing import import_attribute
from g2d.settings import HardenSettings
from g2d.tasks import Task
from g2d.train import Batches

Recipe = Callable[[Step], Step]

RECIPES: Mapping[str, Recipe] = {
    "l2": l2,
    "clamp": clamp,
    "distil": distil,
    "adversarial": adversarial,
}


def find(name: str) -> Recipe:
    """Return a recipe by its name, or the user's own from 'module:function'.

    Raises:
        SettingsError: there is no such recipe, or the module cannot be imported.
    """
    if name in RECIPES:
        return RECIPES[name]
    if ":" not in name:
        raise SettingsError(
            f"there is no recipe {name!r}.{nearest(name, RECIPES)} Built in are "
            f"{', '.join(RECIPES)}; your own is named 'module:function'"
        )
    found = import_attribute(name, "recipe", SettingsError)
    if not callable(found):
        raise SettingsError(f"recipe {name!r} is no function of a step")
    return found


def budget(task: Task, settings: HardenSettings) -> float:
    """The full attack budget of a training: the settings', or the task's own.

    Raises:
        SettingsError: it is larger than the data range, or the task's is asked for under the
            2-norm, which it is not measured in.
    """
    if settings.norm == "2" and settings.eps == 0:
        raise SettingsError(
            f"[harden] norm is '2', and the eps of task {task.name!r} ({task.eps:g}) is of the "
            "inf-norm: set [harden] eps, in Euclidean units of the inputs"
        )
    eps = settings.eps or task.eps
    size = task.splits.guide.x[:1].numel()
    try:
        check_budget(eps, settings.steps, task.bounds, settings.norm, size)
    except SettingsError as error:
        raise SettingsError(f"[harden]: {error}") from None
    return eps


def check(task: Task, settings: HardenSettings) -> None:
    """Check what can be known before a training begins; raises what `find` and `budget` do."""
    for name in settings.recipe:
        find(name)
    if settings.recipe:
        budget(task, settings)


class Course:
    """The step function of one training, and what is done after each step.

    Args:
        extra: recipes that the population adds, before those of the settings.
        ramp: whether eps rises from zero, as it should unless the start is robust already.
    """

    def __init__(
        self,
        task: Task,
        settings: HardenSettings,
        batches: Batches,
        steps: int,
        *,
        seed: int,
        ramp: bool = True,
        extra: Sequence[Recipe] = (),
        pools: Sequence[Split] = (),
        teacher: Logits | None = None,
    ) -> None:
        self.task, self.settings, self.batches, self.steps = task, settings, batches, steps
        self.recipes = (*extra, *(find(name) for name in settings.recipe))
        self.pools, self.teacher = pools, teacher
        self.eps = budget(task, settings) if settings.recipe else 0.0
        self.ramp = settings.ramp if ramp else 0.0
        attacked = "adversarial" in settings.recipe and settings.checks > 0
        self.watch = Watch(task, settings, seed) if attacked else None
        self.every = max(1, steps // settings.checks) if attacked else 0
        self.switched: float | None = None
        self._taken = 0
        self._last: Step | None = None

    def eps_at(self, done: float) -> float:
        """The budget when a share `done` of the training is behind: linear, then flat."""
        return self.eps * min(1.0, done / self.ramp) if self.ramp else self.eps

    def __call__(self, model: nn.Module) -> torch.Tensor:
        """The loss of the next step."""
        done = self._taken / self.steps
        x, y = self.batches.draw()
        # A first step at eps = 0 would craft nothing; the ramp's first step counts as done.
        eps = self.eps_at((self._taken + 1) / self.steps)
        step = Step(
            model, self.task, self.settings, eps, done, self.batches.generator, self.pools,
            self.teacher, x, y, y, partial(self._loss, y),
        )  # fmt: skip
        for recipe in self.recipes:
            step = recipe(step)
        self._last = step
        return step.loss()

    def _loss(self, y: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return self.task.loss(logits, y)

    @torch.no_grad()
    def after(self, model: nn.Module, rate: float) -> bool:
        """Do what recipes want done after a step; say whether the training ends here.

        Raises:
            PopulationError: catastrophic overfitting, and the guard is to stop.
        """
        step, self._last = self._last, None
        for hook in step.after if step is not None else ():
            hook(model, rate)
        self._taken += 1
        if self.watch is None or self._taken % self.every:
            return False
        done = self._taken / self.steps
        eps = self.eps_at(done)
        found = self.watch.look(model, done, eps, eps >= self.eps)
        single = self.settings.method == "fgsm" and self.settings.guard != "off"
        if single and found.collapsed(self.task.classes):
            self._guard(model, found)
        return self.watch.tired

    def finish(self, model: nn.Module) -> None:
        """Give the model the most robust weights that were seen at the full budget."""
        if self.watch is not None and self.watch.best:
            model.load_state_dict(self.watch.best)

    def _guard(self, model: nn.Module, found: Check) -> None:
        what = (
            f"catastrophic overfitting at {found.done:.0%} of the training: accuracy on the guide "
            f"split is {found.fgsm:.1%} under FGSM and {found.pgd:.1%} under PGD (eps "
            f"{found.eps:g})"
        )
        if self.settings.guard == "stop":
            raise PopulationError(
                f"{what}. Set [harden] method = 'pgd' (or more steps), or guard = 'switch', which "
                "goes on with PGD where FGSM fails"
            )
        self.settings = replace(self.settings, method="pgd")
        self.switched = found.done
        if self.watch is not None and self.watch.best:
            model.load_state_dict(self.watch.best)
