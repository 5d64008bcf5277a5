"""The vault at a glance: frozen, stale, adaptive and white-box rows by PGD, on the test split."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from g2d.core.seeds import seed_of
from g2d.core.types import Logits, Tick
from g2d.defence.defence import Defence
from g2d.errors import SettingsError
from g2d.redteam.controls import permuted, retrained
from g2d.redteam.scoring import (
    Matrix,
    Rate,
    Trial,
    accuracy_rate,
    by_age,
    pooled,
    stale_joint,
    transfer,
)
from g2d.settings import HardenSettings
from g2d.tasks.inference import load_model


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
        return [load_model(self.defence.task, generator.to_state(v)) for v in vectors]

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
