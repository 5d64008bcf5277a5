"""Which networks share a basin: those whose midpoint is as accurate as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from g2d.core.types import State
from g2d.errors import CheckpointError
from g2d.tasks.inference import accuracy
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.weights.layout import is_number, same_bits

BARRIER = 0.05  # forks lose under a point at the midpoint, independent seeds 35 to 70 points


def basins_of(
    task: Task,
    states: Sequence[State],
    scores: Sequence[float] | None = None,
    split: Split | None = None,
) -> list[int]:
    """Number the basins of states by linear mode connectivity (Frankle et al. 2020).

    Each joins the first basin whose founder it is connected to: the accuracy at the midpoint is at
    most `BARRIER` below the less accurate of the two. (arXiv 1912.05671, there as a loss.)

    Args:
        scores: their accuracies on `split`, where those are known. split: guide, if None.
    """
    model = task.placed(task.model(0).eval().requires_grad_(False))
    if scores is None:
        scores = [score(task, model, state, split) for state in states]
    founders: list[int] = []
    basins = []
    for index, state in enumerate(states):
        for basin, founder in enumerate(founders):
            middle = midpoint(state, states[founder])
            barrier = min(scores[index], scores[founder]) - score(task, model, middle, split)
            if barrier <= BARRIER:
                basins.append(basin)
                break
        else:
            basins.append(len(founders))
            founders.append(index)
    return basins


def midpoint(one: State, other: State) -> State:
    """The mean of two states; what is no number, or the same in both, is the first one's."""
    return {
        name: (tensor + other[name]) / 2
        if is_number(tensor) and not same_bits(tensor, other[name])
        else tensor
        for name, tensor in one.items()
    }


def score(task: Task, model: torch.nn.Module, state: State, split: Split | None = None) -> float:
    """Accuracy of a state on a split (guide, if None); `model` is loaded with it.

    Raises:
        CheckpointError: it does not fit.
    """
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise CheckpointError(f"a checkpoint does not fit the model: {error}") from error
    return accuracy(model, task.splits.guide if split is None else split)
