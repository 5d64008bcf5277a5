"""The judge: threat x target x seed -> rows with confidence intervals, on the test split alone.

Attacks propose; nothing here believes them. Every proposal is projected back into the ball and
scored by a forward pass of the judge's own. ASR is the share of correctly classified clean inputs
that the attack flips. How rows are told and drawn does not live here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import torch
from torch import Tensor

from g2d.attacks import pgd, project
from g2d.data import Split
from g2d.defence import Defence
from g2d.errors import DataError, SettingsError
from g2d.generator import hidden_units
from g2d.harden import Teacher
from g2d.population import Job, TaskSource, run_job, seed_of
from g2d.settings import HardenSettings, Settings
from g2d.symmetry import permute
from g2d.tasks import Task
from g2d.train import Logits, load_model, predict
from g2d.weights import State, unpack

Bounds = tuple[float, float] | None
Matrix = Mapping[tuple[int, int], "Rate"]
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Rate:
    """A share of `n` examples with its confidence interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Row:
    """One line of a table of defence: who attacks what, and how often it works."""

    threat: str
    target: str
    clean_accuracy: Rate
    asr: Rate
    eps: float
    attack: str
    seed: int
    seconds: float
    note: str = ""


def wilson(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927): honest at 0 % and 100 % and for small n.

    Raises:
        SettingsError: successes lie outside [0, n], or confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise SettingsError(f"confidence must lie between 0 and 1, not {confidence}")
    if n == 0:
        return 0.0, 1.0
    if not 0 <= successes <= n:
        raise SettingsError(f"{successes} successes of {n} is no share; give 0 <= successes <= n")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = p + z * z / (2 * n)
    width = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else max(0.0, (centre - width) / scale)
    high = 1.0 if successes == n else min(1.0, (centre + width) / scale)
    return low, high


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


def accuracy_rate(model: Logits, split: Split) -> Rate:
    """Share of a split that a model classifies correctly."""
    return share(int((predict(model, split.x).argmax(1) == split.y).sum()), len(split))


def attack_rate(
    target_model: Logits, proposed_x: Tensor, split: Split, eps: float, bounds: Bounds
) -> Rate:
    """Score proposals against a target: project, run the target, count what was flipped.

    Args:
        target_model: maps inputs (n, ...) to logits (n, classes).
        proposed_x: proposals, shape of `split.x`; whatever leaves the ball or the data range is
            clipped, a value that is not a number is replaced by the clean one.
        eps: radius of the L-infinity ball.

    Raises:
        DataError: proposals and examples differ in shape.
    """
    if proposed_x.shape != split.x.shape:
        raise DataError(
            f"proposals have shape {tuple(proposed_x.shape)}, expected {tuple(split.x.shape)}: one "
            "for each example, in the same order"
        )
    proposed = proposed_x.detach().to(split.x.dtype)
    proposed = torch.where(proposed.isnan(), split.x, proposed)
    proposed = project(proposed, split.x, eps, bounds)
    correct = predict(target_model, split.x).argmax(1) == split.y
    flipped = predict(target_model, proposed).argmax(1) != split.y
    return share(int((correct & flipped).sum()), int(correct.sum()))


@dataclass(frozen=True)
class Trial:
    """What all rows of one table share: the examples, the ball, the attack and its seed."""

    split: Split
    eps: float
    bounds: Bounds
    steps: int = 20
    seed: int = 0

    @classmethod
    def of(
        cls, task: Task, n: int = 1000, steps: int = 20, seed: int = 0, eps: float | None = None
    ) -> Trial:
        """Draw `n` examples of the task's test split (all of them, if there are fewer)."""
        generator = torch.Generator().manual_seed(seed_of(seed, "examples"))
        examples = task.splits.test.sample(n, generator)
        return cls(examples, task.eps if eps is None else eps, task.bounds, steps, seed)

    @property
    def attack(self) -> str:
        """Name of the attack as tables print it."""
        return f"PGD-{self.steps}"

    def craft(self, models: Logits | Sequence[Logits], *name: object) -> Tensor:
        """Propose attacks on one model, or jointly on several; `name` picks the random start."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, *name))
        return pgd(
            models, self.split.x, self.split.y, eps=self.eps, steps=self.steps,
            generator=generator, bounds=self.bounds,
        )  # fmt: skip

    def score(self, model: Logits, proposed: Tensor) -> Rate:
        """Judge proposals against a target."""
        return attack_rate(model, proposed, self.split, self.eps, self.bounds)


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


def permuted(task: Task, state: State, seed: int) -> Logits | None:
    """Return the same function with its hidden units in random order: the negative control.

    None where the architecture has no chain of hidden units that could be permuted.
    """
    chain = hidden_units(task)
    if not chain:
        return None
    generator = torch.Generator().manual_seed(seed_of(seed, "permutation"))
    orders = [torch.randperm(layer.units, generator=generator) for layer in chain]
    return load_model(task, permute(state, chain, orders))


def retraining(
    source: TaskSource, settings: Settings, index: int, teacher: Teacher | None = None
) -> Job:
    """The training of a network from a fresh seed, hardened as the base."""
    # Far from the population's own indices, so that its seed is nobody else's.
    return Job(
        source, "member", 10**6 + index, 0, "seeds", settings.population, None, (), (),
        settings.harden, teacher,
    )  # fmt: skip


def retrained(task: Task, settings: Settings, index: int) -> tuple[Logits, float]:
    """Train a network from a fresh seed, hardened as the base: the ordinary rival of a rotation.

    Returns:
        the model, and its CPU seconds (its own attacks included, as a generation's are).
    """
    began = time.process_time()
    weights = run_job(retraining(task, settings, index)).weights
    return load_model(task, unpack(weights)), time.process_time() - began


@dataclass(frozen=True)
class Evaluation:
    """Everything that one run of the judge found."""

    rows: tuple[Row, ...]
    matrix: Matrix
    age: Mapping[int, Rate]
    joint: Mapping[int, Rate]
    clean_accuracy: Mapping[int, Rate]
    trial: Trial
    retrain_seconds: float


def evaluate(
    defence: Defence,
    *,
    n: int = 1000,
    seed: int = 0,
    last: int = 8,
    fresh: Sequence[tuple[Logits, float]] = (),
    draws: int = 16,
    eps: float | None = None,
    latest: int | None = None,
    tick: Tick = lambda *_: None,
) -> Evaluation:
    """Judge the exposed generations of a defence: frozen, stale, adaptive, white-box; by PGD.

    Args:
        n: test examples. last: exposed generations that the joint attack knows.
        eps: attack budget; the task's own by default. latest: judge the first generation and only
            so many of the last ones (all, if None).
        fresh: networks from fresh seeds with the CPU seconds of each, as `retrained` makes them
            (none: leave out that row, and that of a hardened defence's plainly trained control).
        draws: samples that the attacker who owns the generator averages over.

    Raises:
        SettingsError: fewer than two generations have been live: there is nothing stale yet.
    """
    trial = Trial.of(defence.task, n, seed=seed, eps=eps)
    numbers = defence.vault.exposures()
    if latest is not None and len(numbers) > latest + 1:
        numbers = [numbers[0], *numbers[-latest:]]
    if len(numbers) < 2:
        raise SettingsError(
            f"{len(numbers)} generation(s) have been live; a stale attack needs two. Run "
            "`g2d generate` first"
        )
    models: dict[int, Logits] = {k: defence.generation(k).model() for k in numbers}
    clean = {k: accuracy_rate(model, trial.split) for k, model in models.items()}
    last = min(last, len(models) - 1)
    total = len(models) + (len(models) - last) + 2
    table = _Table(defence, models, clean, trial)
    matrix = transfer(models, trial, lambda done, _: tick(done, total))
    joint = stale_joint(models, trial, last, lambda d, _: tick(len(models) + d, total))
    retrainings, retrain_seconds = table.fresh(fresh)
    plain = table.undefended() if fresh else []
    rows = [*plain, *table.controls(matrix), *retrainings, table.unguided()]
    tick(total - 1, total)
    rows += [*table.stale(matrix, joint, last), table.adaptive(draws), table.white_box(matrix)]
    tick(total, total)
    return Evaluation(tuple(rows), matrix, by_age(matrix), joint, clean, trial, retrain_seconds)


class _Table:
    """Turns measurements into rows."""

    def __init__(
        self,
        defence: Defence,
        models: Mapping[int, Logits],
        clean: Mapping[int, Rate],
        trial: Trial,
    ) -> None:
        self.defence, self.models, self.clean, self.trial = defence, models, clean, trial
        self.numbers = sorted(models)
        self.began = time.perf_counter()

    def row(self, threat: str, target: str, clean: Rate, asr: Rate, note: str = "") -> Row:
        now = time.perf_counter()
        seconds, self.began = now - self.began, now
        t = self.trial
        return Row(threat, target, clean, asr, t.eps, t.attack, t.seed, round(seconds, 3), note)

    def controls(self, matrix: Matrix) -> list[Row]:
        """Frozen, and the pure permutation, which must score the same."""
        first = self.numbers[0]
        clean = self.clean[first]
        rows = [self.row("frozen", f"generation {first}", clean, matrix[first, first])]
        state = self.defence.generation(first).state
        model = permuted(self.defence.task, state, self.trial.seed)
        if model is not None:
            proposed = self.trial.craft(self.models[first], "single", first)
            asr = self.trial.score(model, proposed)
            clean = accuracy_rate(model, self.trial.split)
            rows.append(self.row("permutation", f"generation {first} permuted", clean, asr))
        return rows

    def undefended(self) -> list[Row]:
        """Where members are hardened: a network that was trained plainly, attacked with itself."""
        task, settings = self.defence.task, self.defence.settings
        if not settings.harden.recipe:
            return []
        model, seconds = retrained(task, replace(settings, harden=HardenSettings()), 0)
        asr = self.trial.score(model, self.trial.craft(model, "single", "undefended"))
        clean = accuracy_rate(model, self.trial.split)
        note = f"{seconds:.1f} CPU s a network"
        return [self.row("undefended", "a plain training", clean, asr, note)]

    def fresh(self, made: Sequence[tuple[Logits, float]]) -> tuple[list[Row], float]:
        """A chain of independent retrainings: crafted on one, scored on the next."""
        if not made:
            return [], 0.0
        seconds = sum(cpu for _, cpu in made) / len(made)
        chain = {0: self.models[self.numbers[0]]} | {i + 1: m for i, (m, _) in enumerate(made)}
        asr = by_age(transfer(chain, self.trial))[1]
        clean = pooled([accuracy_rate(model, self.trial.split) for model, _ in made])
        note = f"{seconds:.1f} CPU s a network"
        return [self.row("fresh seed", f"{len(made)} retrainings", clean, asr, note)], seconds

    def unguided(self, count: int = 5) -> Row:
        """A chain of plain samples of the generator: crafted on one, scored on the next."""
        drawn = dict(enumerate(self._samples(count, "unguided")))
        asr = by_age(transfer(drawn, self.trial))[1]
        clean = pooled([accuracy_rate(model, self.trial.split) for model in drawn.values()])
        return self.row("unguided", f"{count} samples", clean, asr)

    def _samples(self, count: int, name: str) -> list[Logits]:
        generator = self.defence.generator
        source = torch.Generator().manual_seed(seed_of(self.trial.seed, name))
        vectors = generator.sample(count, source)
        return [load_model(self.defence.task, generator.codec.decode(v)) for v in vectors]

    def stale(self, matrix: Matrix, joint: Mapping[int, Rate], last: int) -> list[Row]:
        """The attacks that rotation is made against."""
        later, live = self.numbers[1:], self.numbers[-1]
        rotated = pooled([self.clean[k] for k in later])
        following = by_age(matrix)[1]
        rows = [self.row("stale single", "the next generation", rotated, following)]
        worst = max(self.numbers[:-1], key=lambda k: matrix[k, live].value)
        note = f"crafted on generation {worst}"
        asr = matrix[worst, live]
        rows.append(self.row("stale worst", f"generation {live}", self.clean[live], asr, note))
        clean, asr = pooled([self.clean[k] for k in joint]), pooled(list(joint.values()))
        target = f"the next generation, mean of {len(joint)}"
        rows.append(self.row("stale joint", target, clean, asr, f"the last {last} exposed"))
        return rows

    def adaptive(self, draws: int) -> Row:
        """The attacker owns the generator: joint attack on unguided samples and all exposures."""
        live, exposed = self.numbers[-1], [self.models[k] for k in self.numbers[:-1]]
        proposed = self.trial.craft([*self._samples(draws, "adaptive"), *exposed], "adaptive")
        asr = self.trial.score(self.models[live], proposed)
        note = f"{draws} samples and {len(exposed)} exposed"
        return self.row("owns generator", f"generation {live}", self.clean[live], asr, note)

    def white_box(self, matrix: Matrix) -> Row:
        """Crafted on the very parameters that answer."""
        later = self.numbers[1:]
        clean = pooled([self.clean[k] for k in later])
        asr = pooled([matrix[k, k] for k in later])
        return self.row("white-box", f"generations {later[0]} to {later[-1]}", clean, asr)
