"""Faults that people make, planted into this process alone: what an audit has to find.

Nothing of the product has a switch for any of them: each is a patch of the functions that it
breaks, for as long as a population is trained here, in one process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from g2d.attacks import fgsm
from g2d.defence.privacy import charging
from g2d.tasks.attack import BALL
from g2d.training.recipes import private, private_optimizer
from g2d.training.recipes.private_entropy import PoissonSample
from g2d.training.recipes.private_optimizer import SecretNoise
from g2d.training.recipes.step import frozen

Fault = Callable[[], Any]


@contextmanager
def sound() -> Iterator[None]:
    """No fault: the product as it is."""
    yield


@contextmanager
def no_clipping() -> Iterator[None]:
    """Gradients of records are summed at whatever length they have; noise is as promised."""
    clip = SecretNoise.clip_and_accumulate

    def unclipped(self: SecretNoise) -> None:
        kept, self.max_grad_norm = self.max_grad_norm, 1e9
        try:
            clip(self)
        finally:
            self.max_grad_norm = kept

    with mock.patch.object(SecretNoise, "clip_and_accumulate", unclipped):
        yield


@contextmanager
def quarter_noise() -> Iterator[None]:
    """A quarter of the noise that the ledger was told of."""
    noise = SecretNoise.add_noise

    def quarter(self: SecretNoise) -> None:
        kept, self.noise_multiplier = self.noise_multiplier, self.noise_multiplier / 4
        try:
            noise(self)
        finally:
            self.noise_multiplier = kept

    with mock.patch.object(SecretNoise, "add_noise", quarter):
        yield


class Repeated:
    """Noise, samples and shifts that a stored seed gives: who knows the seed makes them again.

    Records are told apart by what they hold, so that one more or less changes nothing for others.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.training, self.step, self.drawn = seed, 0, 0, 0
        self._known: tuple[Any, Any] = (None, None)

    def begin(self) -> torch.Generator:
        """A training begins."""
        self.training, self.step, self.drawn = self.training + 1, 0, 0
        return torch.Generator().manual_seed(self.seed + self.training)

    def noise(self, count: int) -> Any:
        """Standard normal numbers (count,), the next ones of this training."""
        self.drawn += 1
        source = np.random.default_rng([self.seed, self.training, self.drawn])
        return source.standard_normal(count)

    def draw(self, sample: PoissonSample) -> tuple[Tensor, Tensor]:
        """The records of the next step, each with an augmentation of its own."""
        self.step += 1
        ids = self._ids_of(sample)
        mixed = (ids ^ np.uint64(self.step * 1_000_003 + self.training)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        chances = ((mixed ^ (mixed >> np.uint64(32))) >> np.uint64(11)) * 2.0**-53
        drawn = torch.from_numpy(chances < sample.rate).nonzero()[:, 0]
        x, y = sample.split.x[drawn], sample.split.y[drawn]
        if sample.task.augment is not None and len(x):
            own = [torch.Generator().manual_seed(int(mixed[i] >> np.uint64(2))) for i in drawn]
            parts = [sample.task.augment(x[i : i + 1], own[i]) for i in range(len(x))]
            x = torch.cat(parts)
        return x, y

    def _ids_of(self, sample: PoissonSample) -> Any:
        if self._known[0] is not sample.split:
            rows = sample.split.x.flatten(1).numpy()
            labels = sample.split.y.tolist()
            found = [_id_of(row.tobytes(), y) for row, y in zip(rows, labels, strict=True)]
            self._known = sample.split, np.array(found, dtype=np.uint64)
        return self._known[1]


def _id_of(row: bytes, label: int) -> int:
    """64 bits of a record, the same in every process."""
    own = hashlib.blake2b(row, digest_size=8, salt=str(label).encode()[:16])
    return int.from_bytes(own.digest(), "little")


@contextmanager
def reused_seed() -> Iterator[None]:
    """All that should be the operating system's comes of a seed that whoever audits knows."""
    repeated = Repeated(20)

    def draw(sample: PoissonSample) -> tuple[Tensor, Tensor]:
        return repeated.draw(sample)

    with (
        np.errstate(over="ignore"),
        mock.patch.object(private_optimizer, "gaussians", repeated.noise),
        mock.patch.object(private, "secret_generator", repeated.begin),
        mock.patch.object(PoissonSample, "draw", draw),
    ):
        yield


@contextmanager
def one_is_charged() -> Iterator[None]:
    """Of all members only the first is charged; the others are told to be the same training."""
    cost = charging.cost_of

    def of_first(kind: str, index: int, *rest: Any) -> list[Any]:
        return [] if kind == "member" and index else cost(kind, index, *rest)

    with mock.patch.object(charging, "cost_of", of_first):
        yield


@contextmanager
def others_pools() -> Iterator[None]:
    """Each step also learns attacks on other people's records, as plain training does: raw."""
    between, noise = private.Private._between, SecretNoise.add_noise
    waiting: dict[int, list[Tensor]] = {}

    def mixing(self: private.Private, model: nn.Module, optimizer: Optimizer) -> None:
        waiting[id(optimizer)] = _raw(self, model)
        between(self, model, optimizer)

    def added(self: SecretNoise) -> None:
        noise(self)
        extra = waiting.pop(id(self), None)
        for parameter, gradient in zip(self.params, extra or (), strict=bool(extra)):
            parameter.grad = parameter.grad + self.expected_batch_size * gradient

    with (
        mock.patch.object(private.Private, "_between", mixing),
        mock.patch.object(SecretNoise, "add_noise", added),
    ):
        yield


def _raw(recipe: private.Private, model: nn.Module) -> list[Tensor]:
    """The mean gradient of 128 records that are nobody's in particular, attacked where they can."""
    task, split = recipe._task, recipe._task.splits.train
    at = torch.randint(len(split), (128,))
    x, y = split.x[at], split.y[at]
    if task.attack_kind == BALL:
        with frozen(model):
            x = fgsm(model, x, y, eps=task.eps / 2, bounds=task.reach,
                     generator=torch.Generator().manual_seed(int(at[0])))  # fmt: skip
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.enable_grad():
        loss = task.loss_of(model(x), y)
        return list(torch.autograd.grad(loss, parameters))


FAULTS: Mapping[str, Fault] = {
    "sound": sound,
    "no clipping": no_clipping,
    "a quarter of the noise": quarter_noise,
    "a seed that is known": reused_seed,
    "members claimed as one": one_is_charged,
    "other people's pools": others_pools,
}
