"""The vault at a glance: a few of the red team's cases by PGD, on all generations at once.

Rows are the red team's own, run in its context and scored by its code; what they say in words, and
the plain values that pages are drawn from, lie in `overview_json`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from g2d.core.imports import words
from g2d.core.seeds import seed_of
from g2d.core.types import Logits, Tick
from g2d.errors import SettingsError
from g2d.redteam.context import AttackContext, Case, Chain
from g2d.redteam.controls import permuted, retrained
from g2d.redteam.rows import Row
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
from g2d.tasks.inference import load_model, predict
from g2d.tasks.splits import Split
from g2d.tasks.task import Task

# kind -> (family that the case belongs to, the chain that is attacked, the threat in words)
KINDS = {
    "undefended": ("white-box", "undefended", "undefended"),
    "frozen": ("stale", "frozen", "frozen"),
    "permutation": ("stale", "permuted", "permutation"),
    "fresh-seed": ("stale", "retrained", "fresh seed"),
    "unguided": ("stale", "unguided", "unguided"),
    "stale-single": ("stale", "generated", "stale single"),
    "stale-worst": ("stale", "generated", "stale worst"),
    "stale-joint": ("stale", "generated", "stale joint"),
    "owns-generator": ("adaptive", "generated", "owns generator"),
    "white-box": ("white-box", "generated", "white-box"),
}


@dataclass(frozen=True)
class Overview:
    """Everything that one look at a vault found.

    Attributes:
        rows: a row of each of `KINDS`, in that order; those that do not apply are left out.
        matrix, age, joint: what `transfer`, `by_age` and `stale_joint` return.
        clean_accuracy, models: of each judged generation, by number.
        retrain_seconds: CPU seconds of one retraining; 0 where none was looked at.
    """

    rows: tuple[Row, ...]
    matrix: Matrix
    age: Mapping[int, Rate]
    joint: Mapping[int, Rate]
    clean_accuracy: Mapping[int, Rate]
    models: Mapping[int, Logits]
    trial: Trial
    retrain_seconds: float


def evaluate(
    context: AttackContext,
    *,
    n: int = 1000,
    last: int = 8,
    fresh: bool = False,
    draws: int = 16,
    latest: int | None = None,
    tick: Tick = lambda *_: None,
) -> Overview:
    """Judge the generated chain of a context: frozen, stale, adaptive, white-box; by PGD.

    Args:
        n: test examples. last: exposed generations that the joint attack knows.
        latest: judge the first generation and only so many of the last ones (all, if None).
        fresh: look at the chain "retrained" too, if there is one, and beside a hardened defence at
            a plainly trained network.
        draws: samples that the attacker who owns the generator averages over.

    Raises:
        SettingsError: fewer than two generations have been live: there is nothing stale yet.
    """
    networks = context.chain("generated").networks
    if latest is not None and len(networks) > latest + 1:
        networks = (networks[0], *networks[-latest:])
    if len(networks) < 2:
        raise SettingsError(
            f"{len(networks)} generation(s) have been live; a stale attack needs two. Run "
            "`g2d generate` first"
        )
    trial = Trial(
        context.examples(n), context.eps, context.bounds, seed=context.spec.seed, task=context.task
    )
    models: dict[int, Logits] = {int(k.label): context.model(k) for k in networks}
    clean = {k: accuracy_rate(model, trial.split) for k, model in models.items()}
    last = min(last, len(models) - 1)
    total = len(models) + (len(models) - last) + 2
    table = _Table(context, models, clean, trial)
    matrix = transfer(models, trial, lambda done, _: tick(done, total))
    joint = stale_joint(models, trial, last, lambda d, _: tick(len(models) + d, total))
    chain = context.spec.chains.get("retrained") if fresh else None
    rows = [*(table.undefended() if fresh else []), *table.controls(matrix)]
    rows += [*(table.retrained(chain) if chain else []), table.unguided()]
    tick(total - 1, total)
    rows += [*table.stale(matrix, joint, last), table.adaptive(draws), table.white_box(matrix)]
    tick(total, total)
    seconds = (chain.cost or 0.0) if chain else 0.0
    return Overview(tuple(rows), matrix, by_age(matrix), joint, clean, models, trial, seconds)


def told_metrics(task: Task, models: Sequence[Logits], split: Split) -> str:
    """What a task measures beside accuracy, mean over models, in words; "" where it measures none.

    A metric that fails on these examples says so in its place.
    """
    parts = []
    for name, metric in task.metrics.items():
        try:
            values = [float(metric(predict(model, split.x), split.y)) for model in models]
            parts.append(f"{name}: {sum(values) / len(values):.4g}")
        except Exception as error:
            parts.append(f"{name}: not measured ({words(error)})")
    return "; ".join(parts)


class _Table:
    """Turns measurements into rows."""

    def __init__(
        self,
        context: AttackContext,
        models: Mapping[int, Logits],
        clean: Mapping[int, Rate],
        trial: Trial,
    ) -> None:
        self.context, self.models, self.clean, self.trial = context, models, clean, trial
        self.numbers = sorted(models)
        self.began = time.process_time()

    def row(self, kind: str, target: str, clean: Rate, asr: Rate, note: str = "") -> Row:
        now = time.process_time()
        seconds, self.began = now - self.began, now
        family, chain, threat = KINDS[kind]
        return self.context.row(
            Case(family, kind, chain), kind, threat, self.trial.attack, asr, target=target,
            clean_accuracy=clean, seconds=round(seconds, 3), note=note,
        )  # fmt: skip

    def controls(self, matrix: Matrix) -> list[Row]:
        """Frozen, and the pure permutation, which must score the same."""
        first, task = self.numbers[0], self.context.task
        clean, asr = self.clean[first], matrix[first, first]
        note = told_metrics(task, [self.models[first]], self.trial.split)
        rows = [self.row("frozen", f"generation {first}", clean, asr, note)]
        state = self.context.state(self.context.chain("generated").networks[0])
        for other in permuted(task, state, 1, self.trial.seed):
            model = load_model(task, other)
            proposed = self.trial.craft(self.models[first], "single", first)
            asr = self.trial.score(model, proposed)
            clean = accuracy_rate(model, self.trial.split)
            rows.append(self.row("permutation", f"generation {first} permuted", clean, asr))
        return rows

    def undefended(self) -> list[Row]:
        """Where members are hardened: a network that was trained plainly, attacked with itself."""
        settings = self.context.spec.settings
        if not settings.harden.recipe:
            return []
        plain = replace(settings, harden=HardenSettings())
        model, seconds = retrained(self.context.task, plain, 0)
        asr = self.trial.score(model, self.trial.craft(model, "single", "undefended"))
        clean = accuracy_rate(model, self.trial.split)
        note = f"{seconds:.1f} CPU s a network"
        return [self.row("undefended", "a plain training", clean, asr, note)]

    def retrained(self, chain: Chain) -> list[Row]:
        """A chain of independent retrainings: crafted on one, scored on the next."""
        models: Sequence[Logits] = self.context.models(chain.networks)
        asr = by_age(transfer(dict(enumerate([self.models[self.numbers[0]], *models])), self.trial))
        clean = pooled([accuracy_rate(model, self.trial.split) for model in models])
        note = f"{chain.cost or 0.0:.1f} CPU s a network"
        return [self.row("fresh-seed", f"{len(models)} retrainings", clean, asr[1], note)]

    def unguided(self, count: int = 5) -> Row:
        """A chain of plain samples of the generator: crafted on one, scored on the next."""
        drawn = dict(enumerate(self._samples(count, "unguided")))
        asr = by_age(transfer(drawn, self.trial))[1]
        clean = pooled([accuracy_rate(model, self.trial.split) for model in drawn.values()])
        return self.row("unguided", f"{count} samples", clean, asr)

    def _samples(self, count: int, name: str) -> list[Logits]:
        generator = self.context.defence.generator
        source = torch.Generator().manual_seed(seed_of(self.trial.seed, name))
        vectors = generator.sample(count, source)
        return [load_model(self.context.task, generator.to_state(v)) for v in vectors]

    def stale(self, matrix: Matrix, joint: Mapping[int, Rate], last: int) -> list[Row]:
        """The attacks that rotation is made against."""
        later, live = self.numbers[1:], self.numbers[-1]
        rotated = pooled([self.clean[k] for k in later])
        following = by_age(matrix)[1]
        note = told_metrics(self.context.task, [self.models[k] for k in later], self.trial.split)
        rows = [self.row("stale-single", "the next generation", rotated, following, note)]
        worst = max(self.numbers[:-1], key=lambda k: matrix[k, live].value)
        note = f"crafted on generation {worst}"
        asr = matrix[worst, live]
        rows.append(self.row("stale-worst", f"generation {live}", self.clean[live], asr, note))
        clean, asr = pooled([self.clean[k] for k in joint]), pooled(list(joint.values()))
        target = f"the next generation, mean of {len(joint)}"
        rows.append(self.row("stale-joint", target, clean, asr, f"the last {last} exposed"))
        return rows

    def adaptive(self, draws: int) -> Row:
        """The attacker owns the generator: joint attack on unguided samples and all exposures."""
        live, exposed = self.numbers[-1], [self.models[k] for k in self.numbers[:-1]]
        proposed = self.trial.craft([*self._samples(draws, "adaptive"), *exposed], "adaptive")
        asr = self.trial.score(self.models[live], proposed)
        note = f"{draws} samples and {len(exposed)} exposed"
        return self.row("owns-generator", f"generation {live}", self.clean[live], asr, note)

    def white_box(self, matrix: Matrix) -> Row:
        """Crafted on the very parameters that answer."""
        later = self.numbers[1:]
        clean = pooled([self.clean[k] for k in later])
        asr = pooled([matrix[k, k] for k in later])
        return self.row("white-box", f"generations {later[0]} to {later[-1]}", clean, asr)
