"""An audit from inside: who sees every noised gradient of a private training guesses its canaries.

    python -m benchmarks.privacy.inside --data FOLDER                        # MNIST, an hour
    python -m benchmarks.privacy.inside --data FOLDER --seeds 0 --cases sound "no clipping"

What the ledger claims covers every step's noised gradient, not the networks alone that a vault
releases (`audit`): the strongest auditor of the same claim knows all people's records, all canaries
and each step's network, and lacks coins, samples and noise. For each seed and each case
(`faults`) a base is trained on --people records with canaries among them, by few steps of nearly
all records, so that nothing hides in the sampling. The score is the mean of the coins given all
gradients, were sampling and noise Gaussian (`Inside.seen`). Where a seed is known its noise is
taken away; where members are claimed as one, gradients of --members trainings are seen, and one is
claimed. Kept case by case in results/privacy-inside-TASK-seedN.json: an interrupted run goes on.
"""

from __future__ import annotations

import hashlib
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from benchmarks.common.command import Result
from benchmarks.common.tables import NOTHING, TARGETS, markdown
from benchmarks.privacy import audit
from benchmarks.privacy.audit import MEMBERS, SEED, Audits, audit_flags, measure
from benchmarks.privacy.faults import FAULTS, Repeated
from benchmarks.privacy.vaults import People, calibrated, flags, settings_of
from g2d import Settings
from g2d.core.types import Array
from g2d.defence.privacy import charging
from g2d.defence.privacy.mode import apart
from g2d.protect.privacy.accounting import Spending
from g2d.protect.privacy.audit_bounds import guess, judge, lower_bound, power
from g2d.protect.privacy.audit_curves import gaussian_lower_bound, of_pairs, tail
from g2d.redteam.privacy_audit import Audit, claim_of
from g2d.tasks.inference import load_model
from g2d.tasks.planted import Planting, draw, plant
from g2d.tasks.splits import Split, Splits
from g2d.tasks.task import Task
from g2d.training.jobs import TrainingJob, run_job
from g2d.training.recipes.private_gradients import by_vmap
from g2d.training.recipes.private_optimizer import SecretNoise

OWN = ("epsilon", "canaries", "guesses", "kind", "people", "clip", "rate", "spread", "alpha")
ELSEWHERE = 50  # records that the task's other splits keep: they are people, too, in private mode
PIECE = 100  # records whose gradients are found at once


class Inside:
    """The guesses of an auditor who sees the gradients of trainings, one after the other.

    Args:
        task: a private one, whose train split has the planted canaries. people: records that are in
            it for certain. spread: how many of the people stand for the spread of all.

    Attributes:
        known: the noise's source, where the auditor can make it again. steps: gradients seen.
    """

    def __init__(
        self, task: Task, settings: Settings, planting: Planting, people: Split, spread: int
    ) -> None:
        self.task, self.privacy, self.people = task, settings.privacy, people
        self.canaries = planting.canaries
        m, order = len(planting.coins), torch.Generator().manual_seed(0)
        self.some = torch.randperm(len(people), generator=order)[:spread]
        self.known: Repeated | None = None
        self.steps = 0
        self._precision = torch.zeros(m, m, dtype=torch.float64)
        self._weighted = torch.zeros(m, dtype=torch.float64)

    def watched(self, job: TrainingJob) -> None:
        """Train, and see every noised gradient."""
        before = SecretNoise.add_noise

        def noised(optimizer: SecretNoise) -> None:
            before(optimizer)
            self.seen(optimizer)

        with mock.patch.object(SecretNoise, "add_noise", noised):
            run_job(job)

    def seen(self, optimizer: SecretNoise) -> None:
        """Take in one step: y = rate G'b + what people give + noise, all in units of the clip.

        With G (m, P) the canaries' gradients and b their coins, what is left of y after its mean is
        Gaussian of covariance a I + U'U: a, of the noise, is what lies outside the span of U; U are
        the gradients of some people and canaries, weighed as their sampling spreads all. Gradients
        are taken as clipped or as they are, whichever leaves less of y: no coin is asked for that.
        """
        p, parts = self.privacy, list(optimizer.params)
        y = torch.cat([part.grad.flatten() for part in parts]) / p.clip
        if self.known is not None:
            noise = np.concatenate([self.known.noise(part.numel()) for part in parts])
            y = y - p.noise * torch.from_numpy(noise).to(y)
        rate = p.batch / p.records
        raw = [self._gradients(parts, split) for split in (self.canaries, self.people)]
        left = []
        for G, own in ([_clipped(one) for one in raw], raw):
            left.append((y - rate * own.sum(0) - rate / 2 * G.sum(0), G, own))
        rest, G, own = min(left, key=lambda one: float(one[0].norm()))
        times = len(own) / len(self.some) * rate * (1 - rate)
        U = torch.cat([own[self.some] * times**0.5, G * (rate * (1 - rate) / 2) ** 0.5])
        self._add(rate, G, U, rest)
        self.steps += 1

    def _add(self, rate: float, G: Tensor, U: Tensor, rest: Tensor) -> None:
        """Precision and weighted sum of a step, by the inverse of a I + U'U (Woodbury)."""
        K, one = (U @ U.T).double(), torch.eye(len(U), dtype=torch.float64)
        along, Ur = (U @ G.T).double(), (U @ rest).double()
        tiny = 1e-6 * float(K.trace()) / len(K) * one
        outside = float(rest.double() @ rest.double() - Ur @ torch.linalg.solve(K + tiny, Ur))
        a = max(outside / max(1, rest.numel() - len(U)), 1e-6)
        solved = torch.linalg.solve(K + a * one, torch.cat([along, Ur[:, None]], 1))
        self._precision += rate**2 * ((G @ G.T).double() - along.T @ solved[:, :-1]) / a
        self._weighted += rate * ((G @ rest).double() - along.T @ solved[:, -1]) / a

    def scores(self) -> Array:
        """The coins' mean given everything that was seen, less a half, (m,); they vary by 1/4."""
        eye = torch.eye(len(self._weighted), dtype=torch.float64)
        found: Array = torch.linalg.solve(self._precision + 4 * eye, self._weighted).numpy()
        return found

    def _gradients(self, parts: Sequence[Tensor], split: Split) -> Tensor:
        """Each record's own gradient at the step's network, in units of the clip, (n, P)."""
        like = self.task.model(0)
        names = [name for name, _ in like.named_parameters()]
        state = dict(like.state_dict())
        state |= {name: part.detach().clone() for name, part in zip(names, parts, strict=True)}
        model = load_model(self.task, state).requires_grad_(True)
        found = []
        for x, y in zip(split.x[:, None].split(PIECE), split.y.split(PIECE), strict=True):
            rows = by_vmap(self.task)(model, x, y)
            found.append(torch.cat([row.flatten(1) for row in rows], 1))
        return torch.cat(found) / self.privacy.clip


def _clipped(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1.0)


class Trials(Audits):
    """The cases of one seed."""

    name, own = "privacy-inside", OWN

    def __init__(self, given: Namespace, seed: int) -> None:
        super().__init__(given, seed)
        people = self.people
        splits = people.task.splits
        few = Splits(
            splits.train.take(torch.arange(given.people)),
            splits.guide.take(torch.arange(ELSEWHERE)), splits.gate.take(torch.arange(ELSEWHERE)),
            splits.test,
        )  # fmt: skip
        # Of a shifted record the auditor would have to guess the shift: it is the training's own.
        self.people = People(replace(people.task, splits=few, augment=None), people.public)

    def settings(self, case: str = "") -> Settings:
        """What every case trains by; its noise is what keeps one base within --epsilon."""
        given = self.given
        made = settings_of(self.people, given, self.seed, given.epsilon).override(
            privacy__records=given.people, privacy__clip=given.clip, privacy__rate=given.rate,
            population__recipe="seeds", population__members=2,
        )  # fmt: skip
        return calibrated(made, given.noise_ratio, _base_alone)

    def measured(self, case: str) -> Result:
        """Train under the fault, look on, guess."""
        given, s = self.given, self.settings()
        secret = hashlib.sha256(f"g2d inside {self.seed} {case}".encode()).digest()
        planting = draw(self.people.task, secret, given.canaries, given.kind)
        nobody = replace(planting, coins=torch.zeros_like(planting.coins))
        task, others = (
            apart(plant(self.people.task, one.pack()), s) for one in (planting, nobody)
        )  # fmt: skip
        watcher = Inside(task, s, planting, others.splits.train, given.spread)
        trainings = given.members if case == MEMBERS else 1
        with FAULTS[case]():
            for number in range(trainings):
                if case == SEED:
                    watcher.known = Repeated(20)
                    watcher.known.begin()
                p = replace(s.population, pool=1, seed=s.population.seed + 1000 * number)
                job = TrainingJob(
                    task, "base", 0, 0, "base", p, None, (), harden=s.harden, privacy=s.privacy
                )
                watcher.watched(job)
        return self._judged(watcher, planting.coins.numpy(), s).as_json()

    def _judged(self, watcher: Inside, coins: Array, s: Settings) -> Audit:
        given, delta = self.given, s.privacy.delta
        told = judge(guess(watcher.scores(), given.guesses), coins)
        claim = claim_of(_base_alone(s), delta)
        return Audit(
            told, {}, {"gradients": watcher.steps}, delta, given.alpha,
            lower_bound(told, delta, given.alpha),
            gaussian_lower_bound(told, delta, given.alpha),
            power(told.canaries, told.made, delta, given.alpha),
            power(told.canaries, told.canaries, delta, given.alpha),
            claim.epsilon, tail(told, of_pairs(claim.pairs)),
        )  # fmt: skip


def _base_alone(s: Settings) -> list[Spending]:
    """What one training costs, however many are seen."""
    return charging.cost_of("base", 0, s.privacy, s.population)


def rows(results: Sequence[Result]) -> list[tuple[str, str, str]]:
    """The table: every case over all seeds that have it."""
    seen = "noised gradients that were seen"
    return [
        (name.replace("networks that were guessed from", seen), wanted, told)
        for name, wanted, told in audit.rows(results)
    ]


def parser() -> ArgumentParser:
    """The flags."""
    made = ArgumentParser(description=(__doc__ or "").split("\n")[0])
    flags(made)
    made.set_defaults(
        seeds=[0, 1, 2, 3, 4], light_eps=0.0, public_steps=1000, steps=2, batch=1900, members=24
    )
    made.add_argument("--people", type=int, default=2000, help="records, canaries among them")
    made.add_argument("--clip", type=float, default=0.1, help="[privacy] clip")
    made.add_argument("--rate", type=float, default=3e-4, help="[privacy] rate")
    made.add_argument("--spread", type=int, default=700, help="people who stand for the spread")
    audit_flags(made)
    made.add_argument("--cases", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    return made


def main() -> None:
    """Measure what is missing, and print the table."""
    results = measure(parser().parse_args(), Trials)
    print(markdown(TARGETS, rows(results) or [(NOTHING, NOTHING, NOTHING)]))


if __name__ == "__main__":
    main()
