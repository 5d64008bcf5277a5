"""Checkpoints that the user has: one as the base, or a folder of them as the population."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from g2d.attacks.pools import craft_pool, pack_pool
from g2d.core.seeds import seed_of
from g2d.core.types import Progress, Say, State, unsaid
from g2d.errors import PopulationError, VaultError
from g2d.protect.watermark.mark import Mark
from g2d.settings import PopulationSettings, Settings
from g2d.tasks.adapters import is_adapter
from g2d.tasks.inference import accuracy, load_model
from g2d.tasks.task import Task
from g2d.training.basins import basins_of, score
from g2d.training.layouts import layout_of
from g2d.training.population import fingerprint
from g2d.training.recipes.distil import keep_teacher
from g2d.vault.vault import Entry, Vault
from g2d.weights.checkpoints import find_checkpoints, load_checkpoint, pack
from g2d.weights.foreign import Fitted, fit_state
from g2d.weights.layout import whole_state

GIVEN = "adopted base"
"""The recipe of a base that the user has given."""
STARTS = {"starts": True}
"""Kept with a given base at which basins begin; earlier releases' vaults go on without."""


def adopt_base(
    task: Task,
    vault: Vault,
    settings: Settings,
    state: State,
    note: Mapping[str, Any],
    say: Say = unsaid,
) -> Entry:
    """Take a model that is deployed as the base; the population is then forked and trained anew.

    Basins begin at it and are repelled from it and from one another, unless `early_steps` is 0:
    then it is the one basin, and members begin at it. `say` is told of a prefix that names had.

    Raises:
        CheckpointError: it does not fit the task's model. VaultError: the vault has another base.
    """
    fitted = _fitted(task, state)
    for line in fitted.notes:
        say(line)
    weights, there = pack(fitted.state), vault.entry("base")
    if there is not None:
        if vault.read(there) != weights:
            raise VaultError(f"{vault.path} has another base already; use a new folder")
        return there
    model, s = load_model(task, fitted.state), settings.population
    mark = Mark.of(settings.watermark, task, vault.path)
    seed = seed_of(s.seed, "base", 0)
    pool = craft_pool(task, model, task.splits.pooled, s.pool, s.pool_steps, seed)
    harden = settings.harden
    info = {
        "index": 0,
        "basin": 0,
        "recipe": GIVEN,
        **STARTS,
        "accuracy": accuracy(model, task.splits.gate),
        "examples": len(task.splits.gate),
        "settings": fingerprint(s, harden, keep_teacher(vault, harden), mark),
        **note,
        **({} if mark is None else {"watermark": mark.share(model)}),
    }
    return vault.put("base", 0, {"weights": weights, "attacks": pack_pool(*pool, task)}, info)


def _fitted(task: Task, state: State) -> Fitted:
    """A state under the model's names; adapters that it lacks are fresh ones: no logit changes."""
    reference, ties = whole_state(task.model(0)), layout_of(task).ties
    without = not any(is_adapter(name) for name in state)
    fresh = {n: t for n, t in reference.items() if without and is_adapter(n)}
    bare = {n: t for n, t in reference.items() if n not in fresh}
    found = fit_state(bare, state, "the base", ties)
    return Fitted(found.state | fresh, found.notes)


def adopt_checkpoints(
    task: Task,
    vault: Vault,
    settings: PopulationSettings,
    folder: Path,
    progress: Progress,
    note: Mapping[str, Any] | None = None,
    say: Say = unsaid,
) -> list[Entry]:
    """Adopt a folder of checkpoints as the population: what `load_checkpoint` reads, each one.

    The checkpoint that is most accurate on the guide split becomes the base. Members share a basin
    if the midpoint of their parameters keeps the accuracy (linear mode connectivity).

    Raises:
        PopulationError: fewer than two checkpoints; CheckpointError: one does not fit the model.
    """
    files = find_checkpoints(folder)
    if len(files) < 2:
        raise PopulationError(
            f"{folder} holds {len(files)} checkpoint(s) (.safetensors, .pt, .pth, .ckpt, .bin, or "
            "folders of Hugging Face's); a population needs at least two"
        )
    model = task.model(0).eval().requires_grad_(False)
    reference, ties = whole_state(model), layout_of(task).ties
    task.placed(model)
    states: list[dict[str, Tensor]] = []
    for path in files:
        fitted = fit_state(reference, load_checkpoint(path), path.name, ties)
        states.append(fitted.state)
        for line in fitted.notes:
            say(line)
    scores = [score(task, model, state) for state in states]
    basins = basins_of(task, states, scores)
    best = max(range(len(files)), key=lambda i: scores[i])
    for index in [best, *range(len(files))]:
        kind = "base" if index == best and vault.entry("base") is None else "member"
        model.load_state_dict(states[index])
        seed = seed_of(settings.seed, "adopt", index)
        pool = craft_pool(task, model, task.splits.pooled, settings.pool, settings.pool_steps, seed)
        info = {
            "index": index,
            "basin": basins[index],
            "recipe": "adopted",
            "file": files[index].name,
            "of": len(files),
            "accuracy": accuracy(model, task.splits.gate),
            "examples": len(task.splits.gate),
            "settings": "adopted",
        } | (dict(note or {}) if kind == "base" else {})
        weights = pack(model.state_dict())
        number = 0 if kind == "base" else index
        vault.put(kind, number, {"weights": weights, "attacks": pack_pool(*pool, task)}, info)
        if kind == "member":
            progress("adopting checkpoints", index + 1, len(files))
    return vault.entries("member")
