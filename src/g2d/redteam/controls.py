"""Controls: what stands beside generations in every table, so that a figure means something."""

from __future__ import annotations

import time

import torch

from g2d.core.seeds import seed_of
from g2d.core.types import Logits, State
from g2d.generator import hidden_units
from g2d.settings import Settings
from g2d.tasks.inference import load_model
from g2d.tasks.source import TaskSource
from g2d.tasks.task import Task
from g2d.training.population import TrainingJob, run_job
from g2d.training.recipes import Teacher
from g2d.weights.checkpoints import unpack
from g2d.weights.symmetry import permute


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
) -> TrainingJob:
    """The training of a network from a fresh seed, hardened as the base."""
    # Far from the population's own indices, so that its seed is nobody else's.
    return TrainingJob(
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
