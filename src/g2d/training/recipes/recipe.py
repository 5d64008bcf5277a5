"""What a recipe is: a change to each step of a training, to what steps are taken with, or to both.

Which recipes there are stands in `hardened.RECIPES`; what a step holds in `step`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from g2d.settings import HardenSettings
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.loop import BatchSource, Between, MakeOptimizer, adam
from g2d.training.recipes.step import Step

ChangeStep = Callable[[Step], Step]
"""The smallest recipe: a function that is given the next step and returns it changed."""


@dataclass(frozen=True)
class Setup:
    """What the steps of one training are taken with.

    Attributes:
        task: its model, loss and augmentation. settings: of `[harden]`.
        split: the examples to learn from. batch: examples a step. steps: at most so many.
        generator: the source of every draw.
        batches: draws the clean examples of each step.
        optimizer: makes the optimiser of the model at its peak rate.
        between: called in order between backward and step.
    """

    task: Task
    settings: HardenSettings
    split: Split
    batch: int
    steps: int
    generator: torch.Generator
    batches: BatchSource
    optimizer: MakeOptimizer = adam
    between: tuple[Between, ...] = ()

    def replace(self, **changes: Any) -> Setup:
        """Return the setup with some attributes changed."""
        return dataclasses.replace(self, **changes)


class Recipe:
    """A recipe overrides what it changes; each method leaves a training as it is.

    Attributes:
        adversarial: whether it trains on attacks on the model as it is. Such a training is looked
            at now and then, and keeps the most robust weights that were seen.
        per_record: whether what it makes of one record's input depends on no other record, and all
            else that it does on none at all: what private training (`[privacy]`) may go on with.
    """

    adversarial: ClassVar[bool] = False
    per_record: ClassVar[bool] = False

    def check(self, task: Task, settings: HardenSettings) -> None:
        """Refuse settings under which this recipe would do nothing, before anything is trained.

        Raises:
            SettingsError: they do not fit.
        """

    def prepare(self, setup: Setup) -> Setup:
        """Return what steps are taken with: another optimiser or sampler, one more hook."""
        return setup

    def __call__(self, step: Step) -> Step:
        """Return the next step, changed by `step.add` or `step.replace`."""
        return step


@dataclass(frozen=True)
class _OfFunction(Recipe):
    """A recipe that changes steps alone."""

    change: ChangeStep

    def __call__(self, step: Step) -> Step:
        return self.change(step)


def as_recipe(found: Recipe | ChangeStep) -> Recipe:
    """Return the recipe itself, or the one of a function from step to step."""
    return found if isinstance(found, Recipe) else _OfFunction(found)
