"""Private training: DP-SGD on each record, its attacks with it (Abadi et al. 2016, 1607.00133).

A record's loss is the mean over its clean input and its attacks, all made from this record alone;
its gradient is clipped once. So one record moves the sum by at most `clip`, however many attacks it
learns. What is refused before a training is in `private_check`, what hides records in
`private_entropy`, how gradients of records are found in `private_gradients`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from g2d.attacks import fgsm
from g2d.attacks.crafting import craft
from g2d.errors import SettingsError
from g2d.settings import PrivacySettings
from g2d.tasks.attack import BALL, NONE, OWN
from g2d.training.loop import Batches, NewAndOld
from g2d.training.recipes.private_entropy import PoissonSample, secret_generator
from g2d.training.recipes.private_gradients import (
    RecordGradients,
    pick,
    pieces,
    sound,
    trainable,
)
from g2d.training.recipes.recipe import Recipe, Setup
from g2d.training.recipes.step import Step, frozen

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer


@dataclass(frozen=True)
class PrivatePlan:
    """What one private training is made with.

    Attributes:
        settings: of `[privacy]`. noise: standard deviation in clips: the base's, or a fork's.
        adversarial: whether it learns attacks on itself as `[harden]` says.
        light_eps: budget of a light FGSM on itself; 0: none.
        released: networks that were paid for before, in evaluation mode and frozen.
    """

    settings: PrivacySettings
    noise: float
    adversarial: bool = False
    light_eps: float = 0.0
    released: Sequence[nn.Module] = ()

    @property
    def rate(self) -> float:
        """The chance of each record to be in a step: a public number by a public number."""
        return self.settings.batch / self.settings.records


@dataclass(frozen=True)
class _PrivateStep(Step):
    """A step whose gradients are found record by record, between backward and step."""

    def loss(self) -> Tensor:
        """Zero: the loop's own backward pass finds nothing, and no message tells a raw loss."""
        return torch.zeros((), requires_grad=True)


class Private(Recipe):
    """Makes a training private. It goes last: nothing may be added to what it has closed."""

    def __init__(self, plan: PrivatePlan) -> None:
        self.plan = plan
        self._secret = secret_generator()
        self._gradients: RecordGradients | None = None
        self._waiting: tuple[Tensor, Tensor] | None = None

    def prepare(self, setup: Setup) -> Setup:
        """Exchange the sampler and wrap the optimiser.

        Raises:
            SettingsError: opacus is not installed, or another recipe brings a sampler or a hook of
                its own.
        """
        if type(setup.batches) not in (Batches, NewAndOld) or setup.between:
            raise SettingsError(
                "private training draws its batches and finds its gradients by itself: take the "
                "recipe that brings a sampler or a gradient hook out of [harden] recipe"
            )
        require_opacus()
        self._task, self._public, inner = setup.task, setup.generator, setup.optimizer

        def optimizer(model: nn.Module, rate: float) -> DPOptimizer:
            from g2d.training.recipes.private_optimizer import SecretNoise

            return SecretNoise(
                inner(model, rate),
                noise_multiplier=self.plan.noise,
                max_grad_norm=self.plan.settings.clip,
                expected_batch_size=self.plan.settings.batch,
            )

        sample = PoissonSample(setup.task, setup.split, self.plan.rate, self._secret)
        # Recipes draw as many numbers as there are records: from the public generator the next
        # choice of an attacked network would tell how many these were.
        return setup.replace(
            batches=sample, optimizer=optimizer, between=(self._between,), generator=self._secret
        )

    def close(self, given: Step, step: Step) -> Step:
        """Take over a step: what recipes made of `given` may differ in its inputs alone.

        Raises:
            SettingsError: a recipe added what is not of each record by itself.
        """
        free = {"x", "after"}
        changed = [
            item.name
            for item in fields(Step)
            if item.name not in free and getattr(step, item.name) is not getattr(given, item.name)
        ]
        if changed or step.x.shape != given.x.shape:
            raise SettingsError(
                f"a recipe changed {', '.join(changed) or 'the shape of x'} of a private step; it "
                "may change x, record by record, and what is done after the step, for anything "
                "else could mix records"
            )
        self._waiting = self._views(step), step.y
        return _PrivateStep(**{item.name: getattr(step, item.name) for item in fields(Step)})

    def _views(self, step: Step) -> Tensor:
        """What each record is learned from, (n, k, ...): itself, then its attacks.

        Ours craft each row by itself; one of the user's own is given records one at a time.
        """
        # Drawn for an empty batch, too: else later choices would tell that one was empty.
        targets = self._targets() if step.task.attack_kind != NONE else []
        if not len(step.x):
            return step.x[:, None]
        alone = step.task.attack_kind == OWN
        each = zip(step.x.split(1), step.y.split(1), strict=True)
        steps = [step.replace(x=x, y=y, targets=y) for x, y in each] if alone else [step]
        return torch.cat([torch.stack(self._learned(own, targets), 1) for own in steps])

    def _learned(self, step: Step, targets: Sequence[nn.Module]) -> list[Tensor]:
        attacked = [self._attack(model, step) for model in targets]
        return [step.x, *self._attacks_on_itself(step), *attacked]

    def _attacks_on_itself(self, step: Step) -> list[Tensor]:
        """Its attacks on the network as it is."""
        if step.task.attack_kind == NONE:
            return []
        if self.plan.adversarial:
            return [step.replace(generator=self._secret).attack()]
        if self.plan.light_eps == 0 or step.task.attack_kind == OWN:
            return []
        with frozen(step.model):
            if step.task.attack_kind == BALL:
                eps, bounds = self.plan.light_eps, step.task.reach
                return [
                    fgsm(
                        step.model, step.x, step.y, eps=eps, generator=self._secret, bounds=bounds
                    )
                ]  # fmt: skip
            return [
                craft(step.task, step.model, step.x, step.y, generator=self._secret, how="light")
            ]

    def _targets(self) -> list[nn.Module]:
        """Released networks to be attacked in this step; the same seed gives the same ones."""
        known = self.plan.released
        order = torch.randperm(len(known), generator=self._public)
        return [known[int(i)] for i in order[: self.plan.settings.against]]

    def _attack(self, model: nn.Module, step: Step) -> Tensor:
        ball: dict[str, Any] = {}
        if step.task.attack_kind == BALL:
            ball = {"steps": self.plan.settings.against_steps}
        return craft(step.task, model, step.x, step.y, generator=self._secret, **ball)

    def _between(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Put the gradients of records where Opacus' optimiser looks, a piece at a time.

        All but the last piece are clipped and summed here; the loop's own step takes the last one,
        and the noise. An empty batch is a step too: of noise alone.
        """
        assert self._waiting is not None, "a step was closed before"
        (views, y), self._waiting = self._waiting, None
        if self._gradients is None:
            self._gradients = pick(model, self._task)
        parameters = list(trainable(model).values())
        parts = list(pieces(model, views, y))
        for place, (own, labels) in enumerate(parts):
            found = sound(self._gradients(model, own, labels)) if len(labels) else []
            for i, parameter in enumerate(parameters):
                empty = torch.zeros(0, *parameter.shape)
                parameter.grad_sample = found[i] if found else empty  # type: ignore[attr-defined]
            if place < len(parts) - 1:
                optimizer.signal_skip_step()  # type: ignore[attr-defined]
                optimizer.step()
                for parameter in parameters:
                    parameter.grad_sample = None  # type: ignore[attr-defined]


def require_opacus() -> None:
    """Import Opacus.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        importlib.import_module("opacus.optimizers")
    except ImportError as error:
        raise SettingsError(
            f"[privacy] enabled needs opacus 1.6 ({error}): pip install 'g2d[privacy]'"
        ) from error
