"""The generator in its vault: fitted on which members, how those resist, read back.

How members are trained is in `population`, how a generator learns from them in `generator`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from g2d.attacks.pools import compact, unpack_pool
from g2d.core.seeds import seed_of
from g2d.core.types import Progress
from g2d.defence.privacy.stamps import stamp
from g2d.errors import PopulationError, VaultError
from g2d.generator import FORMAT, Generator
from g2d.generator.latent_space import DEFAULT, find_space
from g2d.protect.watermark.mark import Mark
from g2d.settings import Settings, stored
from g2d.tasks.inference import load_model, predict
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.vault.basins import RETIRED, retired_of, stock_of
from g2d.vault.vault import Entry, Vault
from g2d.weights.checkpoints import check_state, digest, unpack
from g2d.weights.layout import whole_state


def fitted_members(entries: list[Entry], newest: float) -> list[Entry]:
    """The members that a generator is fitted on: of a repelled trunk, each basin's newest.

    Early members of a trunk are less accurate and resist less; at least two of a basin are kept.
    """
    basins: dict[int, list[Entry]] = {}
    for entry in entries:
        basins.setdefault(int(entry.info["basin"]), []).append(entry)
    kept: list[Entry] = []
    for inside in basins.values():
        repelled = all(entry.info["recipe"] == "repelled" for entry in inside)
        count = max(2, math.ceil(newest * len(inside))) if repelled else len(inside)
        kept += inside[-count:]
    return sorted(kept, key=lambda entry: entry.index)


def identity_of(entries: list[Entry], settings: Settings, retired: Collection[int] = ()) -> str:
    """What a generator depends on: members, settings of both fits, seed, latent space."""
    what = {
        "format": FORMAT,
        "members": [entry.files["weights"] for entry in entries],
        "autoencoder": stored(settings.autoencoder),
        "diffusion": stored(settings.diffusion),
        "seed": settings.population.seed,
    }
    if settings.generator.space != DEFAULT:
        what["space"] = settings.generator.space
    if settings.generator.bank:
        what["bank"] = settings.generator.bank
    if retired:
        what[RETIRED] = sorted(retired)
    return digest(json.dumps(what, sort_keys=True).encode())


def begin_in(vault: Vault, settings: Settings) -> tuple[int, ...]:
    """The basins that the next candidate is to begin in: those that nobody has seen, then the one
    that was seen longest ago; (): in any.

    Manifests say which these are, however far back guidance remembers: by its memory alone more
    basins than that would not take turns, and some would never be used again.
    """
    return stock_of(vault).rested if settings.guidance.resting else ()


class Readable(Protocol):
    """Where members are read; a `Vault` is one."""

    def read(self, entry: Entry, name: str = "weights") -> bytes:
        """Return a file's bytes, verified by the entry's digest."""
        ...


def read_base(vault: Vault) -> dict[str, Tensor]:
    """The base's state dict: the model to defend.

    Raises:
        VaultError: there is none yet.
    """
    base = vault.entry("base")
    if base is None:
        raise VaultError(f"{vault.path} has no base yet; run `g2d population` first")
    return unpack(vault.read(base))


def read_generator(vault: Vault, settings: Settings) -> Generator:
    """The generator that the vault holds.

    Raises:
        VaultError: there is none yet. CheckpointError: it is of another version or latent space.
    """
    entry = vault.entry("generator")
    if entry is None:
        raise VaultError(f"{vault.path} has no generator yet; run `g2d fit` first")
    return Generator.from_bytes(vault.read(entry), settings.generator.space)


def fit_if_needed(
    task: Task, vault: Vault, settings: Settings, progress: Progress, again: bool
) -> Generator | None:
    """Fit a generator on the population and keep it; None if the vault holds this very one.

    Args:
        again: fit even so.

    Raises:
        PopulationError: the vault has no population, or one of a single member.
        KeyFileError: the watermark's key is lost, and generations could not be made.
    """
    Mark.of(settings.watermark, task, vault.path)
    entries = fitted_members(vault.entries("member"), settings.autoencoder.newest_share)
    if not entries:
        raise PopulationError(f"{vault.path} holds no population yet; run `g2d population` first")
    retired = retired_of(vault)
    identity = identity_of(entries, settings, retired)
    kept = vault.entry("generator")
    if kept is not None and not again and kept.info.get("identity") == identity:
        return None
    generator = fit_generator(task, vault, settings, entries, read_base(vault), progress, retired)
    info = {"identity": identity} | stamp(vault, settings) | noted(retired)
    vault.put("generator", 0, {"weights": generator.to_bytes()}, info)
    return generator


def noted(retired: Collection[int]) -> dict[str, list[int]]:
    """What a generator's entry says of basins that are retired; {}: none is."""
    return {RETIRED: sorted(retired)} if retired else {}


def fit_generator(
    task: Task,
    vault: Readable,
    settings: Settings,
    entries: list[Entry],
    base: dict[str, Tensor],
    progress: Progress,
    retired: Collection[int] = (),
) -> Generator:
    """Fit a generator on these members; nothing begins in the basins `retired`.

    Raises:
        CheckpointError: a member is not of the task's architecture.
        PopulationError: there is one member only.
    """
    states = [unpack(vault.read(entry)) for entry in entries]
    for entry, state in zip(entries, states, strict=True):
        check_state(whole_state(task.model(0)), state, f"member {entry.index}")
    weighed = find_space(settings.generator.space).weighs_resistance and len(entries) > 2
    fitted = Generator.fit(
        task,
        states,
        [int(entry.info["basin"]) for entry in entries],
        settings.autoencoder,
        settings.diffusion,
        seed=seed_of(settings.population.seed, "fit"),
        resistance=_resistance(task, vault, entries, states) if weighed else None,
        base=base,
        progress=progress,
        kind=settings.generator.space,
        retired=retired,
    )
    return replace(fitted, bank=bank_of(task, vault, settings, entries))


def bank_of(task: Task, vault: Readable, settings: Settings, entries: list[Entry]) -> Split | None:
    """About `[generator] bank` attacks, as many of each member's pool; None for none at all."""
    if not settings.generator.bank:
        return None
    each = math.ceil(settings.generator.bank / len(entries))
    source = torch.Generator().manual_seed(seed_of(settings.population.seed, "bank"))
    pools = [unpack_pool(vault.read(entry, "attacks"), task.splits.pooled) for entry in entries]
    taken = [pool.sample(each, source) for pool in pools]
    if not sum(map(len, taken)):
        return None  # nothing attacks this task
    x = compact(torch.cat([split.x for split in taken]), task)
    return Split(x, torch.cat([split.y for split in taken]))


def _resistance(
    task: Task, vault: Readable, entries: list[Entry], states: list[dict[str, Tensor]]
) -> Tensor | None:
    """Error of member j on attacks crafted on member i, (K, K), on the train split; None: none."""
    pools = [unpack_pool(vault.read(entry, "attacks"), task.splits.pooled) for entry in entries]
    each = min(128, *(len(pool) for pool in pools))
    if not each:
        return None
    x = torch.cat([pool.x[:each] for pool in pools])
    y = torch.cat([pool.y[:each] for pool in pools])
    wrong = [predict(load_model(task, s), x).argmax(1) != y for s in states]
    return torch.stack([w.float().view(len(pools), each).mean(1) for w in wrong], 1)
