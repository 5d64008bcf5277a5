"""Controls: what stands beside generations in a table, so that a figure means something.

Each is a function of states and a seed; `chains` keeps what they make in files, the overview and
the novelty table take it as it is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from g2d.core.seeds import seed_of
from g2d.core.types import Logits, State
from g2d.defence.defence import Defence
from g2d.defence.members import fitted_members
from g2d.generator import hidden_units
from g2d.settings import Settings
from g2d.tasks.inference import load_model
from g2d.tasks.source import TaskSource, resolve
from g2d.tasks.task import Task
from g2d.training.loop import Batches
from g2d.training.population import TrainingJob, run_job
from g2d.training.recipes import HardenedTraining, Teacher, fgsm_light
from g2d.weights.checkpoints import unpack
from g2d.weights.layout import add_noise, differing, mean_of
from g2d.weights.symmetry import permute


@dataclass(frozen=True)
class FittedMembers:
    """The members that a vault's generator was fitted on, and the basin of each, (members,)."""

    states: tuple[State, ...]
    basins: Tensor

    @classmethod
    def of(cls, defence: Defence) -> FittedMembers:
        """Read them from a vault, oldest first."""
        entries = fitted_members(
            defence.vault.entries("member"), defence.settings.autoencoder.newest_share
        )
        states = tuple(unpack(defence.vault.read(entry)) for entry in entries)
        return cls(states, torch.tensor([int(entry.info["basin"]) for entry in entries]))

    def take(self, places: Sequence[int]) -> FittedMembers:
        """Some of them, by place."""
        return FittedMembers(tuple(self.states[i] for i in places), self.basins[list(places)])


def soups(members: FittedMembers, count: int, seed: int) -> list[State]:
    """Means of four random members of one basin (model soup, arXiv 2203.05482).

    What is no number, or the same in all, is the first one's. None where there is just one member.
    """
    states, basins = members.states, members.basins
    generator = torch.Generator().manual_seed(seed_of(seed, "soup"))
    known = basins.unique()
    made: list[State] = []
    for _ in range(count if len(states) > 1 else 0):
        basin = known[int(torch.randint(len(known), (1,), generator=generator))]
        inside = (basins == basin).nonzero().flatten()
        chosen = inside[torch.randperm(len(inside), generator=generator)[:4]].tolist()
        made.append(mean_of([states[i] for i in chosen]))
    return made


def noised(members: FittedMembers, count: int, seed: int) -> list[State]:
    """Random members plus Gaussian noise of a tenth of each tensor's root mean square.

    What is the same in all of them (frozen, constant) stays.
    """
    states = members.states
    names = differing(states)
    generator = torch.Generator().manual_seed(seed_of(seed, "noise"))
    made: list[State] = []
    for _ in range(count if states else 0):
        state = states[int(torch.randint(len(states), (1,), generator=generator))]
        made.append(add_noise(state, names, generator))
    return made


def permuted(task: Task, state: State, count: int, seed: int) -> list[State]:
    """The same function with its hidden units in random order: the negative control.

    None where the architecture has no chain of hidden units that could be permuted.
    """
    chain = hidden_units(task)
    generator = torch.Generator().manual_seed(seed_of(seed, "permutation"))
    return [
        permute(state, chain, [torch.randperm(c.units, generator=generator) for c in chain])
        for _ in range(count if chain else 0)
    ]


def retraining(
    source: TaskSource,
    settings: Settings,
    index: int,
    teacher: Teacher | None = None,
    stays: bytes | None = None,
) -> TrainingJob:
    """The training of a network from a fresh seed, hardened as the base.

    Args:
        stays: as in `TrainingJob`: frozen parameters of the base, that a seed would draw anew.
    """
    # Far from the population's own indices, so that its seed is nobody else's.
    return TrainingJob(
        source, "member", 10**6 + index, 0, "seeds", settings.population, None, (), (),
        settings.harden, teacher, stays,
    )  # fmt: skip


def hardened(source: TaskSource, settings: Settings, index: int = 0) -> State:
    """The base's own training once more (seed, data, steps), with a light FGSM beside it.

    What half a line of adversarial training would have given in the place of any rotation; at half
    the budget it costs next to no clean accuracy (Goodfellow et al. 2015, arXiv 1412.6572).
    """
    task, s = resolve(source), settings.population
    # The base's very seed (training.population), so that only the hardening differs.
    seed = seed_of(s.seed, "base", index)
    draws = torch.Generator().manual_seed(seed)
    model = task.placed(task.model(seed))
    training = HardenedTraining(
        task, replace(settings.harden, recipe=(), checks=0, patience=0),
        Batches(task, task.splits.train, s.batch, draws), s.base_steps, seed=seed,
        extra=(partial(fgsm_light, task.eps / 2),),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout and the like draw from torch's own generator
        training.run(model, s.rate)
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def retrained(task: Task, settings: Settings, index: int) -> tuple[Logits, float]:
    """Train a network from a fresh seed, hardened as the base: the ordinary rival of a rotation.

    Returns:
        the model, and its CPU seconds (its own attacks included, as a generation's are).
    """
    began = time.process_time()
    weights = run_job(retraining(task, settings, index)).weights
    return load_model(task, unpack(weights)), time.process_time() - began
