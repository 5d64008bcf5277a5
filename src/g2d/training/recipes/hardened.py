"""A hardened training from first step to last: which recipes, which budget, when it ends.

`HardenedTraining` is what `training.loop.train` is given. What a recipe does lives beside; which
recipes there are stands in `RECIPES`, and `find` also takes the user's own as 'module:function'.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from g2d.attacks.pgd import check_budget
from g2d.core.imports import import_attribute, words
from g2d.core.types import Logits
from g2d.errors import G2DError, PopulationError, SettingsError, nearest
from g2d.protect.watermark.mark import Mark
from g2d.settings import HardenSettings
from g2d.tasks.placing import on_cpu
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.loop import Batches, NextStep, train
from g2d.training.recipes.adversarial import adversarial
from g2d.training.recipes.distil import Teacher, distil
from g2d.training.recipes.monitor import Check, TrainingMonitor
from g2d.training.recipes.private import Private
from g2d.training.recipes.recipe import ChangeStep, Recipe, Setup, as_recipe
from g2d.training.recipes.regularise import clamp, l2
from g2d.training.recipes.step import Step
from g2d.training.recipes.watermark import NAME as WATERMARK
from g2d.training.recipes.watermark import watermark

RECIPES: Mapping[str, Recipe | ChangeStep] = {
    "l2": l2,
    "clamp": clamp,
    "distil": distil,
    "adversarial": adversarial,
    WATERMARK: watermark,
}


def find(name: str) -> Recipe:
    """Return a recipe by its name, or the user's own: a function of a step, or a `Recipe`.

    Raises:
        SettingsError: there is no such recipe, or the module cannot be imported.
    """
    if name in RECIPES:
        return as_recipe(RECIPES[name])
    if name == "private":
        raise SettingsError(
            "'private' is no recipe of the list: [privacy] enabled = true makes all training so"
        )
    if ":" not in name:
        raise SettingsError(
            f"there is no recipe {name!r}.{nearest(name, RECIPES)} Built in are "
            f"{', '.join(RECIPES)}; your own is named 'module:function'"
        )
    found = import_attribute(name, "recipe", SettingsError)
    if isinstance(found, type) and issubclass(found, Recipe):
        try:
            found = found()
        except Exception as error:
            raise SettingsError(f"recipe {name!r}: calling it raised {words(error)}") from error
    if not callable(found):
        raise SettingsError(
            f"recipe {name!r} is {type(found).__name__}; it has to be a function that is given a "
            "step, or a Recipe"
        )
    return as_recipe(found)


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
        check_budget(eps, settings.steps, task.reach, settings.norm, size)
    except SettingsError as error:
        raise SettingsError(f"[harden] eps, for task {task.name!r}: {error}; lower it") from None
    return eps


def check(task: Task, settings: HardenSettings) -> None:
    """Check what can be known before a training begins; raises what `find` and `budget` do.

    Raises:
        SettingsError: a recipe is named twice, or would have no effect in its place.
    """
    s, names = settings, settings.recipe
    recipes = [find(name) for name in names]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError(f"[harden] recipe names {', '.join(twice)} twice; once is enough")
    if {"adversarial", "distil"} <= set(names):
        first = names.index("adversarial") < names.index("distil")
        if first and (s.method == "trades" or s.clean == 0):
            raise SettingsError(
                "[harden] recipe has 'distil' after 'adversarial', where the teacher would have "
                "no effect: attacks keep their labels, and clean inputs are left out. Put 'distil' "
                "first, or set clean > 0 with method 'pgd' or 'fgsm'"
            )
    if s.patience and not s.checks:
        raise SettingsError(
            "[harden] patience counts looks, and checks = 0 allows none; set checks above 0, or "
            "patience = 0"
        )
    for recipe in recipes:
        recipe.check(task, settings)
    if names:
        budget(task, settings)


class HardenedTraining:
    """One training: its objective, what its steps are taken with, what is done after each.

    `run` is the whole of it; the loop calls the training itself for the loss of a step.

    Args:
        batches: the sampler that recipes may exchange; the examples it draws from stay.
        extra: recipes that the population adds, before those of the settings.
        begun: whether the model has been trained before. Where it resists attacks already, it meets
            the full budget at once; eps rises from zero for all others.
        private: makes it private. Then there is no look at the guide split, an adversarial recipe
            only says which attacks records bring, and what was begun meets the full budget at once.
    """

    def __init__(
        self,
        task: Task,
        settings: HardenSettings,
        batches: Batches,
        steps: int,
        *,
        seed: int,
        begun: bool = False,
        extra: Sequence[Recipe | ChangeStep] = (),
        pools: Sequence[Split] = (),
        teacher: Logits | None = None,
        mark: Mark | None = None,
        private: Private | None = None,
    ) -> None:
        self.task, self.settings, self.steps = task, settings, steps
        self.private = private
        named = [(name, find(name)) for name in settings.recipe]
        if private is not None:
            named = [(name, recipe) for name, recipe in named if not recipe.adversarial]
        self.recipes = [*((str(r), as_recipe(r)) for r in extra), *named]
        self.pools, self.teacher, self.mark = pools, teacher, mark
        self._taken = 0
        self.setup = self._prepared(batches)
        self.eps = budget(task, settings) if settings.recipe else 0.0
        attacked = any(recipe.adversarial for _, recipe in named)
        self.monitor = TrainingMonitor(task, settings, seed) if attacked else None
        count = min(settings.checks, steps)
        self.looks = {round((i + 1) * steps / count) for i in range(count)}
        self._guarded = settings.method == "fgsm" and settings.guard != "off"
        self.switched: float | None = None
        self._ramp = 0.0 if private is not None and begun else settings.ramp
        self._unsure = begun and self.monitor is not None and self._ramp > 0
        self._last: Step | None = None

    def _prepared(self, batches: Batches) -> Setup:
        """What the recipes make of the setup that every training begins with."""
        setup = Setup(
            self.task, self.settings, batches.split, batches.size, self.steps, batches.generator,
            batches,
        )  # fmt: skip
        for name, recipe in self.recipes:
            with self._blamed(f"the preparation of recipe {name!r}"):
                setup = recipe.prepare(setup)
            if not isinstance(setup, Setup):
                raise SettingsError(
                    f"recipe {name!r} prepared {type(setup).__name__}; it has to return the setup "
                    "that it was given, changed by setup.replace"
                )
        return setup if self.private is None else self.private.prepare(setup)

    def run(self, model: nn.Module, rate: float) -> nn.Module:
        """Train the model in place from first step to last, and return it in evaluation mode.

        Raises:
            PopulationError: training diverged, or collapsed and nothing sound was seen.
            SettingsError: a recipe fails.
        """
        train(
            model, self, steps=self.steps, rate=rate, optimizer=self.optimizer,
            between=(self.between,), after=self.after,
        )  # fmt: skip
        self.finish(model)
        return model

    def optimizer(self, model: nn.Module, rate: float) -> Optimizer:
        """Make the optimiser that the recipes chose."""
        with self._blamed(f"the optimiser of recipe {self._names()}"):
            return self.setup.optimizer(model, rate)

    def between(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Do what the recipes want done between backward and step."""
        for hook in self.setup.between:
            with self._blamed(f"a gradient hook of recipe {self._names()}"):
                hook(model, optimizer)

    def eps_at(self, done: float) -> float:
        """The budget when a share `done` of the training is behind: linear, then flat."""
        return self.eps * min(1.0, done / self._ramp) if self._ramp else self.eps

    def __call__(self, model: nn.Module) -> Tensor:
        """The loss of the next step.

        Raises:
            SettingsError: a recipe fails, does not return a step, or its loss is not a scalar.
        """
        self._look_at_the_start(model)
        with self._blamed(f"the sampler of recipe {self._names()}"):
            x, y = self.setup.batches.draw()
        # A first step at eps = 0 would craft nothing; the ramp's first step counts as done.
        eps = self.eps_at((self._taken + 1) / self.steps)
        step = Step(
            model, self.task, self.settings, eps, self._taken / self.steps, self.setup.generator,
            self.pools, self.teacher, x, y, y, partial(self._loss, y),
            mark=self.mark,
        )  # fmt: skip
        given = step
        for name, recipe in self.recipes:
            with self._blamed(f"recipe {name!r}"):
                step = recipe(step)
            if not isinstance(step, Step):
                raise SettingsError(
                    f"recipe {name!r} gave {type(step).__name__}; it has to return the step that "
                    "it was given, changed by step.add or step.replace"
                )
        if self.private is not None:
            with self._blamed("private training"):
                step = self.private.close(given, step)
        self._last = step
        with self._blamed(f"the loss of recipe {self._names()}"):
            return step.loss()

    def _look_at_the_start(self, model: nn.Module) -> None:
        """Before a fork's first step: does its start resist attacks already?"""
        if not self._unsure or self.monitor is None:
            return
        self._unsure = False
        found = self.monitor.look(model, 0.0, self.eps)
        self._ramp = 0.0 if found.pgd >= 0.5 * found.clean else self._ramp
        if not found.collapsed:  # where the guard goes back to, until a look finds better
            self.monitor.keep(model, found, full=False)

    def _names(self) -> list[str]:
        return [name for name, _ in self.recipes]

    @contextmanager
    def _blamed(self, what: str) -> Iterator[None]:
        """Say which recipe failed, where in its file, and at which step of the training."""
        try:
            yield
        except G2DError:
            raise
        except Exception as error:
            if not self.recipes:  # plain training: the model or the task's loss
                raise
            raise SettingsError(
                f"[harden] {what} fails at step {self._taken + 1} of {self.steps}: {words(error)} "
                f"({_place(error)}). What was trained before is kept"
            ) from error

    def _loss(self, y: Tensor, logits: Tensor) -> Tensor:
        return self.task.loss_of(logits, y)

    @torch.no_grad()
    def after(self, model: nn.Module, rate: float) -> NextStep:
        """Do what recipes want done after a step; say how the training goes on.

        Raises:
            PopulationError: catastrophic overfitting, and the guard is to stop.
        """
        step, self._last = self._last, None
        for hook in step.after if step is not None else ():
            hook(model, rate)
        self._taken += 1
        if self.monitor is None or self._taken not in self.looks:
            return NextStep.GO_ON
        done = self._taken / self.steps
        eps = self.eps_at(done)
        found = self.monitor.look(model, done, eps)
        if self._guarded and found.collapsed:
            # Found again after the switch: PGD has not undone it yet; such weights are not kept.
            return self._guard(model, found) if self.switched is None else NextStep.GO_ON
        self.monitor.keep(model, found, eps >= self.eps)
        return NextStep.END if self.monitor.out_of_patience else NextStep.GO_ON

    def finish(self, model: nn.Module) -> None:
        """Give the model the most robust weights that were seen at the full budget.

        Raises:
            PopulationError: FGSM collapsed, and no look before or after it found a sound model.
        """
        if self.monitor is None:
            return
        if self.switched is not None and not self.monitor.sound:
            raise PopulationError(
                f"{_overfitting(self.monitor.checks[-1])}, and no look found a sound model to go "
                "back to. Set [harden] method = 'pgd', or train longer and look more often (checks)"
            )
        kept = self.monitor.best or (self.monitor.sound if self.switched is not None else {})
        if kept:
            model.load_state_dict(kept)

    def _guard(self, model: nn.Module, found: Check) -> NextStep:
        if self.settings.guard == "stop":
            raise PopulationError(
                f"{_overfitting(found)}. Set [harden] method = 'pgd', or guard = 'switch', which "
                "goes on with PGD where FGSM fails"
            )
        assert self.monitor is not None, "only a monitor finds a collapse"
        self.settings = replace(self.settings, method="pgd")
        self.switched = found.done
        self.monitor.reset_patience()
        if self.monitor.sound:
            model.load_state_dict(self.monitor.sound)
        return NextStep.AFRESH


def _overfitting(found: Check) -> str:
    """What a look found, in words."""
    return (
        f"catastrophic overfitting at {found.done:.0%} of the training: accuracy on the guide "
        f"split is {found.fgsm:.1%} under FGSM and {found.pgd:.1%} under PGD (eps {found.eps:g})"
    )


def _place(error: Exception) -> str:
    """The innermost line that is the user's: torch's and ours would not tell them where to look."""
    frames = traceback.extract_tb(error.__traceback__)
    others = (str(Path(__file__).parents[2]), str(Path(torch.__file__).parent))
    own = [frame for frame in frames if not frame.filename.startswith(others)]
    at = (own or frames)[-1]
    return f"{at.filename}, line {at.lineno}"


def try_out(
    task: Task,
    settings: HardenSettings,
    teacher: Teacher | None = None,
    mark: Mark | None = None,
    private: Private | None = None,
) -> None:
    """Take one step on a few examples, so that what cannot work fails before the work.

    Raises:
        SettingsError: a recipe fails. TaskError, CheckpointError: the teacher does not fit.
    """
    if not settings.recipe:
        return
    if private is not None:
        task = on_cpu(task)
    known = teacher.load(task) if teacher is not None else None
    batches = Batches(task, task.splits.train, 4, torch.Generator().manual_seed(0))
    training = HardenedTraining(
        task, settings, batches, 1, seed=0, teacher=known, mark=mark, private=private
    )

    def finite(model: nn.Module) -> Tensor:
        loss = training(model)
        if not bool(torch.isfinite(loss)):
            raise SettingsError(f"[harden] recipe {list(settings.recipe)} gives a loss of {loss}")
        return loss

    with torch.random.fork_rng(devices=[]):
        train(
            task.placed(task.model(0)), finite, steps=1, rate=1e-3, optimizer=training.optimizer,
            between=(training.between,),
        )  # fmt: skip
