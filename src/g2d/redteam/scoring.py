"""Scoring: proposals are projected back into the ball and judged by a forward pass of our own.

ASR is the share of correctly classified clean inputs that the attack flips. Attacks propose;
nothing here believes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from g2d.attacks import pgd, project
from g2d.attacks.crafting import confine, craft, label_of
from g2d.core.seeds import seed_of
from g2d.core.shares import wilson
from g2d.core.types import Bounds, Logits, Tick
from g2d.errors import DataError
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split
from g2d.tasks.task import Task

Matrix = Mapping[tuple[int, int], "Rate"]


@dataclass(frozen=True)
class Rate:
    """A share of `n` examples with its confidence interval."""

    value: float
    low: float
    high: float
    n: int


def share(successes: float, n: int) -> Rate:
    """Return `successes / n` with its 95 % Wilson interval; of nothing it is 0 in [0, 1]."""
    return Rate(successes / n if n else 0.0, *wilson(successes, n), n)


def pooled(rates: Sequence[Rate]) -> Rate:
    """Mean of rates measured on the same examples.

    The rates share their images, so they are not independent: the interval is that of a single one
    of them, as if averaging had added no information. It covers the choice of test images, not the
    luck of the chain of generations (another seed is another chain).
    """
    if not rates:
        return share(0, 0)
    n = round(sum(rate.n for rate in rates) / len(rates))
    value = sum(rate.value for rate in rates) / len(rates)
    return share(value * n, n)


@dataclass(frozen=True)
class Difference:
    """How much more one target loses than another on the same `n` examples, with its interval."""

    value: float
    low: float
    high: float
    n: int


def difference(ours: Tensor, theirs: Tensor) -> Difference:
    """Mean of `ours - theirs` (n,), what two targets lost of each example, and its 95 % interval.

    Paired, so that an example that falls on both says nothing; two pseudo-examples keep the
    interval honest where nothing differs (Agresti and Min 2005, Statistics in Medicine 24, 729,
    written for shares of an example, too). Of no example it is 0 in [-1, 1].
    """
    d, n = ours.double() - theirs.double(), len(ours)
    if not n:
        return Difference(0.0, -1.0, 1.0, 0)
    total, padded = float(d.sum()), n + 2
    middle = total / padded
    spread = (float(d.square().sum()) + 1 - total * middle) / padded
    half = 1.96 * (spread / padded) ** 0.5
    return Difference(total / n, max(-1.0, middle - half), min(1.0, middle + half), n)


def accuracy_rate(model: Logits, split: Split) -> Rate:
    """Share of a split that a model classifies correctly."""
    return share(int((predict(model, split.x).argmax(1) == split.y).sum()), len(split))


def attack_rate(
    target_model: Logits,
    proposed_x: Tensor,
    split: Split,
    eps: float,
    bounds: Bounds,
    task: Task | None = None,
) -> Rate:
    """Score proposals against a target: project, run the target, count what was flipped.

    Args:
        target_model: maps inputs (n, ...) to logits (n, classes).
        proposed_x: proposals, shape of `split.x`; whatever leaves the ball or the data range is
            clipped, a value that is not a number is replaced by the clean one.
        eps: radius of the L-infinity ball. task: where given, its own limits hold instead (tokens
            within their budget, an attack of the user's own).

    Raises:
        DataError: proposals and examples differ in shape, or proposals for ids are none.
        TaskError: nothing attacks the task.
    """
    if proposed_x.shape != split.x.shape:
        raise DataError(
            f"proposals have shape {tuple(proposed_x.shape)}, expected {tuple(split.x.shape)}: one "
            "for each example, in the same order"
        )
    if task is not None:
        proposed = confine(task, proposed_x, split.x, eps)
    else:
        proposed = proposed_x.detach().to(split.x.dtype)
        proposed = torch.where(proposed.isnan(), split.x, proposed)
        proposed = project(proposed, split.x, eps, bounds)
    correct = predict(target_model, split.x).argmax(1) == split.y
    flipped = predict(target_model, proposed).argmax(1) != split.y
    return share(int((correct & flipped).sum()), int(correct.sum()))


@dataclass(frozen=True)
class Trial:
    """What all rows of one table share: the examples, the ball, the attack and its seed.

    `task`: where given, it is attacked as it says, and judged by its limits.
    """

    split: Split
    eps: float
    bounds: Bounds
    steps: int = 20
    seed: int = 0
    task: Task | None = None

    @classmethod
    def of(
        cls, task: Task, n: int = 1000, steps: int = 20, seed: int = 0, eps: float | None = None
    ) -> Trial:
        """Draw `n` examples of the task's test split (all of them, if there are fewer)."""
        generator = torch.Generator().manual_seed(seed_of(seed, "examples"))
        examples = task.splits.test.sample(n, generator)
        return cls(examples, task.eps if eps is None else eps, task.reach, steps, seed, task)

    @property
    def attack(self) -> str:
        """Name of the attack as tables print it."""
        return f"PGD-{self.steps}" if self.task is None else label_of(self.task, self.steps)

    def craft(self, models: Logits | Sequence[Logits], *name: object) -> Tensor:
        """Propose attacks on one model, or jointly on several; `name` picks the random start."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, *name))
        if self.task is not None:
            return craft(
                self.task, models, self.split.x, self.split.y, eps=self.eps, steps=self.steps,
                generator=generator,
            )  # fmt: skip
        return pgd(
            models, self.split.x, self.split.y, eps=self.eps, steps=self.steps,
            generator=generator, bounds=self.bounds,
        )  # fmt: skip

    def score(self, model: Logits, proposed: Tensor) -> Rate:
        """Judge proposals against a target."""
        return attack_rate(model, proposed, self.split, self.eps, self.bounds, self.task)


def transfer(
    models: Mapping[int, Logits], trial: Trial, tick: Tick = lambda *_: None
) -> dict[tuple[int, int], Rate]:
    """Craft on each generation, score on it (white-box) and on every later one (stale, single).

    Returns:
        ASR by (crafted on, scored on), for crafted <= scored.
    """
    found: dict[tuple[int, int], Rate] = {}
    numbers = sorted(models)
    for done, crafted in enumerate(numbers):
        proposed = trial.craft(models[crafted], "single", crafted)
        for scored in numbers[done:]:
            found[crafted, scored] = trial.score(models[scored], proposed)
        tick(done + 1, len(numbers))
    return found


def by_age(matrix: Matrix) -> dict[int, Rate]:
    """Mean ASR by how many rotations ago the attack was crafted; age 0 is white-box.

    White-box counts every generation but the first (the base, which nothing generated).
    """
    order = {number: place for place, number in enumerate(sorted({c for c, _ in matrix}))}
    ages: dict[int, list[Rate]] = {}
    for (crafted, scored), rate in matrix.items():
        age = order[scored] - order[crafted]
        if age or order[scored] or len(order) == 1:
            ages.setdefault(age, []).append(rate)
    return {age: pooled(ages[age]) for age in sorted(ages)}


def stale_joint(
    models: Mapping[int, Logits], trial: Trial, last: int, tick: Tick = lambda *_: None
) -> dict[int, Rate]:
    """Craft jointly on the last `last` exposed generations, score on the next one.

    Returns:
        ASR by scored generation, for every one with `last` predecessors.
    """
    numbers = sorted(models)
    found: dict[int, Rate] = {}
    for place in range(last, len(numbers)):
        exposed = [models[number] for number in numbers[place - last : place]]
        proposed = trial.craft(exposed, "joint", last, numbers[place])
        found[numbers[place]] = trial.score(models[numbers[place]], proposed)
        tick(place - last + 1, len(numbers) - last)
    return found


def any_of(model: Logits, made: Sequence[Tensor], split: Split) -> Tensor:
    """For every example a proposal that flips it, if there is one (inside the ball, all are)."""
    chosen = made[0].clone()
    for proposed in made[1:]:
        flips = predict(model, proposed).argmax(1) != split.y
        chosen[flips] = proposed[flips]
    return chosen
