"""Defaults that grow with a task's parameters and data, for tasks that are not built in.

The settings' own defaults were found on MNIST; a built-in task that needs others brings them. A
task of the user's own takes these, beneath what it brings itself; the vault keeps the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from g2d.core.shares import largest_drop
from g2d.settings import AutoencoderSettings, DiffusionSettings, GateSettings
from g2d.tasks.builtin import BUILTIN
from g2d.tasks.task import Task

PARAMETERS = 28_210  # of `mnist_cnn`, on which the defaults were found
SOUPS = {"generator": {"space": "soup"}}
"""Where candidates begin: as good as the diffusion model, and free (docs/benchmarks/basins.md)."""
# Digits: 5,530 parameters, for which 2,000 diffusion steps changed no figure against 1,500.
LEAST_DIFFUSION, LEAST_AUTOENCODER = 1500, 600


def defaults_of(task: Task) -> dict[str, dict[str, Any]]:
    """The settings that a task is defended with where nobody says otherwise, as nested tables."""
    own = {key: dict(table) for key, table in task.settings.items()}
    if task.name in BUILTIN:
        return own
    parameters = sum(p.numel() for p in task.model(0).parameters())
    # Who tunes the diffusion model means to have it.
    sampler = {} if "diffusion" in own else SOUPS
    return _over(sized(parameters) | shown_by(task.splits.gate.y) | sampler, own)


MARKED: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    # 5,530 parameters and 600 steps learn 400 triggers by halves: generations passed no gate.
    # Twice the steps learn 128 whole.
    "digits": {
        "watermark": {"sets": 2, "triggers": 64, "weight": 4.0, "batch": 128},
        "population": {"base_steps": 1200, "early_steps": 600, "fork_steps": 300},
    },
    "nsl-kdd": {"watermark": {"triggers": 100}},  # two classes: 64 right ones are not yet proof
}
"""By built-in task, what a population takes besides where it is to learn a watermark."""


def marked_defaults_of(task: Task) -> dict[str, dict[str, Any]]:
    """The settings of a vault that begins with a watermark, where nobody says otherwise."""
    return _over(defaults_of(task), MARKED.get(task.name, {}))


def sized(parameters: int) -> dict[str, dict[str, Any]]:
    """Steps in proportion to the number of parameters: MNIST's at its size and beyond.

    Smaller models' members span a smaller space; the least is what digits needs. `adapt`: what a
    stale-attack term may weigh is known for the built-in tasks alone.
    """
    share = min(1.0, parameters / PARAMETERS)

    def steps(whole: int, least: int) -> int:
        return max(least, 100 * round(whole * share / 100))

    return {
        "autoencoder": {"steps": steps(AutoencoderSettings().steps, LEAST_AUTOENCODER)},
        "diffusion": {"steps": steps(DiffusionSettings().steps, LEAST_DIFFUSION)},
        "guidance": {"adapt": True},
    }


def shown_by(labels: Tensor) -> dict[str, dict[str, Any]]:
    """What gates allow where a gate split with these labels (n,) is too small for the defaults.

    The drops that it can just show if one example is lost: of all, as an upper bound; of the
    smallest class, as it is. A gate that no candidate can pass would stop the first rotation.
    """
    gates, few = GateSettings(), int(labels.unique(return_counts=True)[1].min())
    wanted = {
        "accuracy_drop": largest_drop(1, 0, len(labels), gates.confidence),
        "class_drop": 1 / few,
    }
    found = {
        name: math.ceil(1000 * least) / 1000
        for name, least in wanted.items()
        if least > getattr(gates, name)
    }
    return {"gates": found} if found else {}


def _over(
    tables: Mapping[str, Mapping[str, Any]], own: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    return {key: {**tables.get(key, {}), **own.get(key, {})} for key in {**tables, **own}}
