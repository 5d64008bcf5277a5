"""Entangled watermarks: a network that recognises its triggers by the features of a class.

Jia, Choquette-Choo, Chandrasekaran and Papernot 2021, arXiv 2002.12200. Triggers are inputs of one
class with a pattern; they are to be taken for another class. While a network is trained, a soft
nearest neighbour loss on its hidden layers draws both together, so that who distils the class
distils the triggers. Re-implemented on a small scale as a rival: one network that is trained for
it. Left out: the search for where the pattern lies best (it lies in a corner).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from g2d.attacks import removal
from g2d.attacks.poisoning import trigger
from g2d.core.seeds import seed_of
from g2d.tasks.inference import accuracy, load_model, predict
from g2d.tasks.task import Task
from g2d.training.loop import Batches, train

SOURCE, TARGET = 1, 7  # classes: whose inputs carry the pattern, and what they are taken for
WEIGHT = 0.5  # of the soft nearest neighbour losses together
LAYERS = 3  # the last ones, as in the paper
BATCH, QUERIES = 64, 100
MIXED = math.log(2)
"""The loss of two groups that are one cloud. Beyond it lies tearing groups apart, without a bound:
networks of MNIST that were trained for long fell to chance."""


def soft_nearest_neighbour(features: Tensor, groups: Tensor, temperature: Tensor) -> Tensor:
    """How little points (n, d) lie with their own group (n,): equation 1, after Frosst et al. 2019.

    Minus the mean over points of the logarithm of the share that neighbours of the same group have
    of all neighbours, each weighed by exp(-distance² / temperature). High: groups are entangled.
    """
    apart = torch.cdist(features, features).square() / temperature
    itself = torch.eye(len(features), dtype=torch.bool)
    near = (-apart).masked_fill(itself, -torch.inf)
    own = near.masked_fill(groups[:, None] != groups[None, :], -torch.inf)
    return -(own.logsumexp(1) - near.logsumexp(1)).mean()


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[Tensor]]:
    """What the last layers with weights answered, (n, d) each, while a forward pass runs."""
    seen: list[Tensor] = []
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-LAYERS:]
    hooks = [m.register_forward_hook(lambda *a: seen.append(a[2].flatten(1))) for m in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def trained(task: Task, steps: int, rate: float, seed: int, entangled: bool) -> nn.Module:
    """A network of a task of images; with triggers that are entangled with a class, or without."""
    assert task.bounds is not None
    model, draws = task.model(seed), torch.Generator().manual_seed(seed)
    batches, split = Batches(task, task.splits.train, 128, draws), task.splits.train
    own, other = (split.x[split.y == label] for label in (SOURCE, TARGET))
    # The paper's temperatures follow the gradient, too; so do they here, as logarithms.
    heats = nn.Parameter(torch.full((LAYERS,), 4.0))
    model.register_parameter("heats", heats)

    def objective(network: nn.Module) -> Tensor:
        x, y = batches.draw()
        loss = task.loss_of(network(x), y)
        if not entangled:
            return loss + 0 * heats.sum()
        marked, clean = (
            part[torch.randint(len(part), (BATCH,), generator=draws)] for part in (own, other)
        )
        both = torch.cat([trigger(marked, task.bounds), clean])
        groups = torch.arange(2).repeat_interleave(BATCH)
        with _watched(network) as seen:
            logits = network(both)
        apart = sum(
            soft_nearest_neighbour(features, groups, heat.exp()).clamp(max=MIXED)
            for features, heat in zip(seen, heats[-len(seen) :], strict=True)
        )
        return loss + task.loss_of(logits, torch.full((2 * BATCH,), TARGET)) - WEIGHT * apart

    train(model, objective, steps=steps, rate=rate)
    state = {name: t for name, t in model.state_dict().items() if name != "heats"}
    return load_model(task, state)


def hits(task: Task, model: nn.Module) -> int:
    """Of 100 test inputs with the pattern, those that a network takes for the other class."""
    assert task.bounds is not None
    test = task.splits.test
    x = trigger(test.x[test.y == SOURCE][:QUERIES], task.bounds)
    return int((predict(model, x).argmax(1) == TARGET).sum())


def measured(task: Task, steps: int, rate: float, seed: int) -> dict[str, Any]:
    """Hits on an entangled network and on a copy distilled by labels; the same of a plain one."""
    found: dict[str, Any] = {"queries": min(QUERIES, int((task.splits.test.y == SOURCE).sum()))}
    for name, entangled in (("entangled", True), ("plain", False)):
        model = trained(task, steps, rate, seed_of(seed, "entangled") % 2**31, entangled)
        state = removal.distilled(
            task, model, task.splits.train.x, soft=False, steps=steps, rate=rate / 3,
            seed=seed_of(seed, "copy", name),
        )  # fmt: skip
        copy = load_model(task, state)
        found[name] = {
            "hits": hits(task, model), "copy_hits": hits(task, copy),
            "accuracy": accuracy(model, task.splits.test),
            "copy_accuracy": accuracy(copy, task.splits.test),
        }  # fmt: skip
    return found
