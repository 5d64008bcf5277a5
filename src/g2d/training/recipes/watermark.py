"""Training on a watermark's triggers: what a network learns besides, so that its owner knows it.

Which triggers there are is in `g2d.protect.watermark`.
"""

from __future__ import annotations

from g2d.errors import SettingsError
from g2d.protect.watermark.mark import Mark
from g2d.settings import HardenSettings
from g2d.training.recipes.step import Part, Step

NAME = "watermark"


def watermark(step: Step) -> Step:
    """Learn `[watermark] batch` triggers besides, as they are: neither augmented nor attacked.

    Where `[watermark] key` is set a population learns them without being told to. Rivals of the red
    team are given no mark, and learn nothing here.
    """
    mark = step.mark
    if mark is None:
        return step
    x, y = (part.to(step.x.device) for part in mark.draw(step.generator))
    return step.add(Part(x, lambda logits: mark.weight * step.task.loss_of(logits, y)))


def check_mark(settings: HardenSettings, mark: Mark | None) -> None:
    """Refuse the recipe where there is nothing to learn, before anything is trained.

    Raises:
        SettingsError: it is named, and no watermark is.
    """
    if NAME in settings.recipe and mark is None:
        raise SettingsError(
            "recipe 'watermark' needs a key: `g2d watermark new VAULT` makes one and sets "
            "[watermark] key, and the population then learns it without this recipe"
        )
