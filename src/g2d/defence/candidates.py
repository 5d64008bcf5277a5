"""One candidate: drawn from a secret, guided, judged by every gate; here or where an engine runs.

A candidate is a pure function of its job, so the same secret gives the same bytes on any machine.
What becomes of one that passed is decided in `defence`.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from g2d.core.engine import Engine
from g2d.core.polynomial import largest_inputs
from g2d.core.seeds import seed_of
from g2d.core.types import State, Tick, Values
from g2d.defence.gates import CandidateView, GateResult, Reference, run_gates
from g2d.generator import Exposure, Generator, hidden_units
from g2d.protect.watermark.mark import Mark
from g2d.settings import GateSettings, Settings
from g2d.tasks.inference import load_model, predict
from g2d.tasks.source import TaskSource, resolve
from g2d.tasks.task import Task
from g2d.training.layouts import layout_of
from g2d.vault.basins import BASIN
from g2d.weights.checkpoints import unpack


@dataclass(frozen=True)
class Draw:
    """What a candidate is drawn from; `private`: all bits of the secret count, not 32 of a seed."""

    attempt: int
    secret: bytes
    private: bool

    @property
    def seed(self) -> int:
        """Seed of what else is drawn for this candidate."""
        return seed_of(self.secret, self.attempt)

    def source(self) -> torch.Generator:
        """Return a generator in the state that the draw gives."""
        source = torch.Generator().manual_seed(self.seed)
        if self.private:
            scramble(source, self.secret)
        return source


def draws_of(
    number: int, seed: int | None, attempts: int, rejections: Sequence[Values]
) -> list[Draw]:
    """What a generation's candidates are drawn from: 256 fresh bits each, or a seed's.

    A number that was given up before is drawn anew, not the same candidates again.

    Args:
        seed: for reproduction; None: fresh bits. rejections: what the vault says of all candidates
            that were rejected.
    """
    if seed is None:
        return [Draw(attempt, secrets.token_bytes(32), True) for attempt in range(attempts)]
    before = sum(rejected.get("number") == number for rejected in rejections)
    given_up = before // attempts
    parts = (seed, "generation", number - 1, *([given_up] if given_up else []))
    secret = seed_of(*parts).to_bytes(8, "big")
    return [Draw(attempt, secret, False) for attempt in range(attempts)]


@dataclass(frozen=True, eq=False)
class Candidate:
    """Proposed parameters and every gate's verdict on them; seconds of CPU that both took.

    `mu` is what guidance was made with, where that adapts; `basin` where it began, if that is
    to be noted; `polish_steps` how long it was polished, where that depends on those before it.
    """

    draw: Draw
    state: dict[str, Tensor]
    results: list[GateResult]
    began: float
    cpu: float
    mu: float | None = None
    basin: int | None = None
    polish_steps: int | None = None

    @property
    def passed(self) -> bool:
        """Whether every gate passed it."""
        return all(result.passed for result in self.results)

    @property
    def reasons(self) -> list[str]:
        """Why it was rejected: a reason from every gate that it failed."""
        return [result.reason for result in self.results if not result.passed]

    def rejection(self, number: int) -> dict[str, Any]:
        """What the vault keeps of it, had it been meant for this generation and was rejected."""
        attempt = self.draw.attempt
        return {"number": number, "attempt": attempt, "reasons": self.reasons, "at": self.began}

    def manifest(self, exposed: Sequence[int], generator: str) -> dict[str, Any]:
        """What a manifest says of its making.

        Args:
            exposed: numbers of the generations it was guided away from. generator: the digest of
                what it was drawn from.
        """
        return {
            "origin": "generated",
            "gates": [result.entry() for result in self.results],
            "exposed": list(exposed),
            "seed_commitment": hashlib.sha256(self.draw.secret).hexdigest(),
            "attempt": self.draw.attempt,
            "generator": generator,
            "began": self.began,
        } | {name: value for name, value in self._optional.items() if value is not None}

    @property
    def _optional(self) -> dict[str, float | int | None]:
        return {"mu": self.mu, BASIN: self.basin, "polish_steps": self.polish_steps}


class Judge:
    """Runs every gate on a state dict, against the base of the task.

    Args:
        scope: name patterns, as in `[autoencoder]`; what lies outside counts in no distance. mark:
            the triggers of the vault's watermark, if it has one; what is made keeps them.
    """

    def __init__(
        self, task: Task, base: State, scope: Sequence[str] = (), mark: Mark | None = None
    ) -> None:
        split = task.splits.gate
        model = load_model(task, base)
        correct = predict(model, split.x).argmax(1) == split.y
        self.reference = Reference(
            split, correct, task.classes, task.eps, task.reach, task, task.splits.added("gate"),
            largest_inputs(model, split.x),
        )  # fmt: skip
        self.scope = layout_of(task).in_scope(scope)
        self._task, self.chain = task, hidden_units(task, self.scope)
        self.mark, self.base = mark, model

    def __call__(
        self,
        state: State,
        recent: Sequence[Exposure],
        states: Mapping[int, State],
        gates: GateSettings,
    ) -> list[GateResult]:
        """Judge; `recent`: exposures with their attacks, `states`: those that distance counts."""
        model = load_model(self._task, state)
        view = CandidateView(
            state, model, self.reference, recent, states, self.chain, gates, self.scope, self.mark
        )
        return run_gates(view)


@dataclass(frozen=True, eq=False)
class CandidateJob:
    """Everything that one candidate needs; picklable."""

    task: TaskSource
    settings: Settings
    generator: bytes
    base: bytes
    recent: tuple[Exposure, ...]
    states: Mapping[int, State]
    draw: Draw
    mark: Mark | None = None
    begin: tuple[int, ...] = ()


def run_job(job: CandidateJob) -> Candidate:
    """Make one candidate in a worker process."""
    task = resolve(job.task)
    generator = Generator.from_bytes(job.generator, job.settings.generator.space)
    judge = Judge(task, unpack(job.base), job.settings.autoencoder.scope, job.mark)
    return make(
        task, job.settings, generator, judge, job.recent, job.states, job.draw, begin=job.begin
    )


def make(
    task: Task,
    settings: Settings,
    generator: Generator,
    judge: Judge,
    recent: Sequence[Exposure],
    states: Mapping[int, State],
    draw: Draw,
    tick: Tick = lambda *_: None,
    begin: Sequence[int] = (),
) -> Candidate:
    """Propose, guided away from `recent` and in one of the basins `begin`, if any; and judge."""
    began, cpu, s = time.time(), time.process_time(), settings
    v = generator.propose(
        task, recent, s.guidance, draw.source(), tick, judge.mark, begin, judge.base
    )
    state = generator.to_state(v)
    results = judge(state, recent, states, s.gates)
    renewed = task.splits.added("gate") > 0
    mu = s.guidance.mu if s.guidance.adapt or renewed else None
    basin = generator.space.basin_of(v) if s.guidance.resting or s.growth.unseen else None
    steps = s.guidance.polish_steps if renewed else None
    return Candidate(draw, state, results, began, time.process_time() - cpu, mu, basin, steps)


def make_many(engine: Engine, job: CandidateJob, draws: Sequence[Draw]) -> Iterator[Candidate]:
    """Make candidates on an engine, all at once; they come in the order of their draws.

    Whoever takes the first that passed takes the one that would have been made alone.
    """
    waiting: dict[int, Candidate] = {}
    following = 0
    for position, candidate in engine.run(run_job, [replace(job, draw=draw) for draw in draws]):
        waiting[position] = candidate
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def scramble(generator: torch.Generator, secret: bytes) -> None:
    """Fill a generator's whole state (Mersenne twister, 624 words) from a secret.

    `manual_seed` uses 32 bits of its seed: an attacker who owns everything else could try them all.
    """
    state = generator.get_state()
    words = np.frombuffer(hashlib.shake_256(secret).digest(624 * 4), np.uint32).astype(np.uint64)
    raw = state.numpy().copy()
    raw[24 : 24 + 624 * 8] = words.view(np.uint8)  # after seed, left, seeded and next
    generator.set_state(torch.from_numpy(raw))
