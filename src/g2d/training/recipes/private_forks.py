"""Forks of a private base that read nobody: they learn public records and what the base answers.

What is made of a release and of public data costs no epsilon more (post-processing: Dwork & Roth
2014, proposition 2.1), so that such forks may be many and long. A few thousand public records alone
teach less than the people did; what these know beyond them is in the base, which is asked.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from g2d.errors import SettingsError
from g2d.settings import PopulationSettings, PrivacySettings
from g2d.settings.privacy import PUBLIC
from g2d.tasks.attack import BALL
from g2d.tasks.shielded import ShieldedSplits
from g2d.tasks.task import Task
from g2d.training.recipes.recipe import Recipe
from g2d.training.recipes.step import Part, Step, divergence, mix


class KeepBase(Recipe):
    """Distillation from the private base, on public inputs and on mixtures of two of them.

        soft * KL(base(x) || f(x)) + (1 - soft) * loss(f(x), y) + soft * KL(base(m) || f(m)),

    m = l x + (1 - l) x', l uniform in [0, 1] for each (mixup, Zhang et al. 2018, arXiv 1710.09412):
    on such inputs a teacher tells more than on a few that the student knows by heart (Beyer et al.
    2022, arXiv 2106.05237). Inputs that an attack moves within a ball can be mixed; tokens cannot.

    Args:
        base: maps inputs (n, ...) to logits (n, classes), frozen, in evaluation mode.
        soft: in [0, 1]; 0: labels alone.
    """

    def __init__(self, base: nn.Module, soft: float) -> None:
        self.base, self.soft = base, soft

    def __call__(self, step: Step) -> Step:
        """Return the step with the base's answers to learn."""
        soft, y, task = self.soft, step.y, step.task
        if soft == 0:
            return step
        known = self._answers(step.x)

        def criterion(logits: Tensor) -> Tensor:
            loss = soft * divergence(logits, known)
            return loss + (1 - soft) * task.loss_of(logits, y) if soft < 1 else loss

        step = step.replace(criterion=criterion)
        if task.attack_kind != BALL:
            return step
        mixed = mix(step.x, step.generator)
        answers = self._answers(mixed)
        return step.add(Part(mixed, lambda logits: soft * divergence(logits, answers)))

    @torch.no_grad()
    def _answers(self, x: Tensor) -> Tensor:
        return self.base(x).softmax(1)


def check_public_forks(
    task: Task, privacy: PrivacySettings, population: PopulationSettings
) -> None:
    """Refuse forks on public data where there are no public data, or no forks.

    Raises:
        SettingsError: there are none.
    """
    if privacy.forks != PUBLIC:
        return
    if population.recipe == "seeds":
        raise SettingsError(
            "[privacy] forks = 'public', and [population] recipe = 'seeds' makes no forks: every"
            " member is trained on people's records from its first step; set recipe to 'repelled'"
        )
    without_people(task)


def without_people(task: Task) -> Task:
    """The task as a training knows it that may read nobody: all its splits are public.

    Raises:
        SettingsError: none of its records are public.
    """
    if not isinstance(task.splits, ShieldedSplits):
        raise SettingsError(
            "[privacy] forks = 'public' trains forks on a vault's public data, and none are kept"
            f" apart in task {task.name!r}: name a folder in [privacy] public, or set forks ="
            " 'private'"
        )
    return replace(task, splits=task.splits.of_public)
