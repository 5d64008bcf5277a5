"""L2 regularisation in both its forms, and clamps of every layer's weights."""

from __future__ import annotations

import torch
from torch import nn

from g2d.errors import SettingsError
from g2d.settings import HardenSettings
from g2d.tasks.task import Task
from g2d.training.recipes.recipe import Recipe
from g2d.training.recipes.step import Step


class L2(Recipe):
    """Decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101), and the plain penalty.

    After the step, weights shrink by `rate * decay`; the loss gains `penalty / 2 * sum w^2`. Both
    leave out what has one axis: biases and the scales of norms.
    """

    def check(self, task: Task, settings: HardenSettings) -> None:
        """Refuse neither a decay nor a penalty."""
        if settings.decay == settings.penalty == 0:
            raise SettingsError("[harden] recipe has 'l2', and decay and penalty are both 0")

    def __call__(self, step: Step) -> Step:
        """Return the step with a shrinking of weights after it, and a penalty in its loss."""
        s = step.settings

        def decay(model: nn.Module, rate: float) -> None:
            for weight in _weights(model):
                weight.mul_(1.0 - rate * s.decay)

        if s.decay > 0:
            step = step.replace(after=(*step.after, decay))
        if s.penalty > 0:
            total = torch.stack([w.square().sum() for w in _weights(step.model)]).sum()
            step = step.replace(penalties=(*step.penalties, 0.5 * s.penalty * total))
        return step


l2 = L2()


def clamp(step: Step) -> Step:
    """Keep each weight within `clamp` times the root mean square of its layer's weights.

    A layer without outliers has a small range, and the range is what a flipped bit can use when the
    deployed weights are guarded (`g2d.protect.ranges`). Under two root mean squares repeated cuts
    would shrink a layer step by step, to nothing.
    """
    limit = step.settings.clamp

    def cut(model: nn.Module, _rate: float) -> None:
        for weight in _weights(model):
            most = float(weight.square().mean().sqrt()) * limit
            weight.clamp_(-most, most)

    return step.replace(after=(*step.after, cut))


def _weights(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
