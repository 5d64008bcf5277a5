"""Adversarial training: on one's own attacks (FGSM, PGD, TRADES) and on those of other members."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from g2d.attacks import fgsm
from g2d.attacks.crafting import craft
from g2d.errors import SettingsError
from g2d.settings import HardenSettings
from g2d.tasks.attack import TOKENS
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.recipes.recipe import Recipe
from g2d.training.recipes.step import Part, Step, frozen


class Adversarial(Recipe):
    """Learn from attacks on the model as it is, by the method that the settings name.

    `fgsm`: one step from a random start (Wong et al. 2020, arXiv 2001.03994). `pgd`: Madry et al.
    2018, arXiv 1706.06083, equation 2.1. `trades`: Zhang et al. 2019, arXiv 1901.08573, equation 5,

        criterion(f(x)) + beta * KL(f(x) || f(x')),   x' = argmax KL(f(x) || f(x'))

    With fgsm and pgd the clean inputs keep the weight `clean` of the settings; 0 leaves them out.
    Attacks lead away from the step's targets: after `distil` those are the teacher's soft labels
    (RSLAD, Zi et al. 2021, arXiv 2108.07969).
    """

    adversarial: ClassVar[bool] = True

    def check(self, task: Task, settings: HardenSettings) -> None:
        """Refuse a guard that never looks."""
        if settings.method == "fgsm" and settings.guard != "off" and not settings.checks:
            raise SettingsError(
                "[harden] guard needs looks to find what FGSM hides, and checks = 0 allows none; "
                "set checks above 0, or guard = 'off'"
            )

    def __call__(self, step: Step) -> Step:
        """Return the step with attacks on its inputs to learn from."""
        if step.settings.method == "trades":
            return _trades(step)
        attacks = step.attack()
        return step.replace(clean=step.settings.clean).add(Part(attacks, step.criterion))


adversarial = Adversarial()


def _trades(step: Step) -> Step:
    with torch.no_grad(), frozen(step.model):
        own = step.model(step.x).softmax(1)
    attacks, n = step.attack(own), len(step.x)

    def loss(logits: Tensor) -> Tensor:
        clean, attacked = logits[:n].log_softmax(1), logits[n:].log_softmax(1)
        robust = F.kl_div(attacked, clean, reduction="batchmean", log_target=True)
        return step.criterion(logits[:n]) + step.settings.beta * robust

    return step.replace(clean=0.0).add(Part(torch.cat([step.x, attacks]), loss))


def stale(step: Step) -> Step:
    """Learn from as many attacks on other members as there are clean inputs, evenly from each pool.

    What population recipe `repelled` adds; with `adversarial` it makes members that are robust
    *and* err elsewhere than those before them.
    """
    pools = [pool for pool in step.pools if len(pool)]
    if not pools:
        return step
    share = max(1, len(step.x) // len(pools))
    drawn = [_draw(pool, share, step.generator) for pool in pools]
    x, y = (torch.cat(parts).to(step.x.device) for parts in zip(*drawn, strict=True))
    weight = step.settings.stale
    return step.add(Part(x, lambda logits: weight * step.task.loss_of(logits, y)))


def fgsm_light(eps: float, step: Step) -> Step:
    """One-step adversarial training at a small budget, on half the inputs and at half the weight.

    At half the task's eps it cost no clean accuracy on MNIST and lowered the stale ASR between
    repelled members. Tokens are substituted by first order alone, in all their edits.
    """
    some = slice(0, max(1, len(step.x) // 2))
    x, y = step.x[some], step.y[some]
    if step.task.attack_kind == TOKENS:
        with frozen(step.model):
            attacked = craft(step.task, step.model, x, y, generator=step.generator, how="light")
    else:
        attacked = fgsm(
            step.model, x, y, eps=eps, generator=step.generator, bounds=step.task.reach
        )  # fmt: skip
    return step.add(Part(attacked, lambda logits: 0.5 * step.task.loss_of(logits, y)))


def _draw(pool: Split, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    index = torch.randint(len(pool), (size,), generator=generator)
    return pool.x[index], pool.y[index]
