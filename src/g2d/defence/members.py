"""The members of a population that a generator is fitted on: which, how they resist, its fit.

How members are trained is in `population`, how a generator learns from them in `generator`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import torch
from torch import Tensor

from g2d.attacks.pools import unpack_pool
from g2d.core.seeds import seed_of
from g2d.generator import FORMAT, Generator
from g2d.settings import Settings, stored
from g2d.tasks.inference import load_model, predict
from g2d.tasks.task import Task
from g2d.vault.vault import Entry, Vault
from g2d.weights.checkpoints import check_state, digest, unpack


def fitted_members(entries: list[Entry], newest_share: float) -> list[Entry]:
    """The members that a generator is fitted on: of a repelled trunk, each basin's newest.

    Early members of a trunk are less accurate and resist less; at least two of a basin are kept.
    """
    basins: dict[int, list[Entry]] = {}
    for entry in entries:
        basins.setdefault(int(entry.info["basin"]), []).append(entry)
    kept: list[Entry] = []
    for inside in basins.values():
        repelled = all(entry.info["recipe"] == "repelled" for entry in inside)
        count = max(2, math.ceil(newest_share * len(inside))) if repelled else len(inside)
        kept += inside[-count:]
    return sorted(kept, key=lambda entry: entry.index)


def identity_of(entries: list[Entry], settings: Settings) -> str:
    """What a generator depends on: members, settings of both fits, seed."""
    what = {
        "format": FORMAT,
        "members": [entry.files["weights"] for entry in entries],
        "autoencoder": stored(settings.autoencoder),
        "diffusion": stored(settings.diffusion),
        "seed": settings.population.seed,
    }
    return digest(json.dumps(what, sort_keys=True).encode())


def fit_generator(
    task: Task,
    vault: Vault,
    settings: Settings,
    entries: list[Entry],
    base: dict[str, Tensor],
    progress: Callable[[str, int, int], None],
) -> Generator:
    """Fit a generator on these members.

    Raises:
        CheckpointError: a member is not of the task's architecture.
        PopulationError: there is one member only.
    """
    states = [unpack(vault.read(entry)) for entry in entries]
    for entry, state in zip(entries, states, strict=True):
        check_state(task.model(0).state_dict(), state, f"member {entry.index}")
    return Generator.fit(
        task,
        states,
        [int(entry.info["basin"]) for entry in entries],
        settings.autoencoder,
        settings.diffusion,
        seed=seed_of(settings.population.seed, "fit"),
        resistance=_resistance(task, vault, entries, states) if len(entries) > 2 else None,
        base=base,
        progress=progress,
    )


def _resistance(
    task: Task, vault: Vault, entries: list[Entry], states: list[dict[str, Tensor]]
) -> Tensor:
    """Error of member j on attacks crafted on member i, (K, K), on the train split."""
    pools = [unpack_pool(vault.read(entry, "attacks"), task.splits.train) for entry in entries]
    each = min(128, *(len(pool) for pool in pools))
    x = torch.cat([pool.x[:each] for pool in pools])
    y = torch.cat([pool.y[:each] for pool in pools])
    wrong = [predict(load_model(task, s), x).argmax(1) != y for s in states]
    return torch.stack([w.float().view(len(pools), each).mean(1) for w in wrong], 1)
