"""A population that clients train together, kept in a vault as any other: `fit` goes on from it.

What a round is, is in `training.federated`; which members a repelled one flees, and where it
begins, in `training.population`. Base and members are judged on the server's own gate split before
they are kept.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from g2d.attacks.pools import craft_pool, pack_pool
from g2d.core.files import make_folder, read_text, write_bytes
from g2d.core.seeds import seed_of
from g2d.core.types import Array, Progress, Say
from g2d.defence.backdoors import scan
from g2d.defence.populating import note_of
from g2d.errors import PopulationError, SealingError, SettingsError, VaultError
from g2d.settings import Settings
from g2d.tasks.inference import accuracy, load_model
from g2d.tasks.task import Task
from g2d.training.federated.aggregation import Aggregation
from g2d.training.federated.bases import train_base
from g2d.training.federated.private import check_private
from g2d.training.federated.server import Server
from g2d.training.federated.side import ServerSide
from g2d.training.federated.simulate import Hostile, Simulation
from g2d.training.population import fingerprint, fork_start, source_entries, wave_of
from g2d.training.recipes import check
from g2d.vault.federated import FEDERATED, is_federated
from g2d.vault.vault import Entry, Vault
from g2d.weights.checkpoints import pack, unpack


def check_settings(task: Task, settings: Settings, own: bool = True) -> None:
    """Refuse settings that clients cannot train by, before anything is trained.

    Args:
        own: whether a client trains in this process; how others keep their records private is
            theirs to check.

    Raises:
        SettingsError: a recipe needs what clients have not; the rule does not bear f.
    """
    s = settings
    Aggregation.of(s.federated)
    check(task, s.harden)
    if s.privacy.enabled:
        raise SettingsError(
            "[privacy] enabled = true keeps one ledger for one trainer's records, and clients keep"
            " theirs: set it to false, and [federated] private = true, by which each client trains"
            " its records privately with a ledger of its own. (It covers single records: noise for"
            " whole clients drowns what 20 of them learn)"
        )
    if s.federated.private and own:
        check_private(task, s)
    if s.watermark.key:
        raise SettingsError(
            "[watermark] key: clients would have to be sent the secret triggers. Train without, "
            "and mark the complete population with `g2d watermark add`"
        )
    if taken := [name for name in s.harden.recipe if name in ("distil", "watermark")]:
        raise SettingsError(
            f"[harden] recipe {taken[0]!r} needs what clients are not given; leave it out"
        )
    if s.autoencoder.scope:
        raise SettingsError(
            "[autoencoder] scope: clients send all that moves; leave the scope empty"
        )
    if s.population.recipe == "seeds":
        raise SettingsError(
            "[population] recipe = 'seeds' would train every member from nothing with all clients; "
            "take 'repelled' or 'forks'"
        )
    if (missing := s.federated.dropout + s.federated.stragglers) > 1:
        raise SettingsError(
            f"[federated] dropout and stragglers are {missing:g} of all answers together, and more"
            " than all can be neither lost nor late: lower one of them"
        )
    if s.federated.early_rounds == 0 and s.population.basins > 1:
        raise SettingsError(
            "[federated] early_rounds = 0 makes the base the start of all "
            f"{s.population.basins} basins; set basins = 1, or give early checkpoints rounds"
        )


def simulation(
    task: Task, settings: Settings, hostile: Hostile | None, say: Say, vault: Vault | None = None
) -> Simulation:
    """Clients of one process; beside a vault they keep what they know, until it is complete."""
    folder = None if vault is None else folder_of(vault)
    return Simulation(task, settings, begin_at(task, settings), folder, say, hostile)


def folder_of(vault: Vault) -> Path:
    """Where server and clients keep what they know until a vault is complete: beside it."""
    return vault.path.with_name(f"{vault.path.name}.federated")


def begin_at(task: Task, settings: Settings) -> dict[str, Tensor]:
    """The state that the base begins at, the same wherever it is made."""
    return task.model(seed_of(settings.population.seed, "base", 0)).state_dict()


def federate(
    task: Task,
    vault: Vault,
    settings: Settings,
    hostile: Hostile | None,
    progress: Progress,
    say: Say,
    clients: ServerSide | None = None,
) -> None:
    """Have clients make the population of a vault, or what is missing of it.

    Args:
        clients: None: those of one process, of whom `hostile` attack.

    Raises:
        SettingsError: settings do not fit. VaultError: it holds another population.
        PopulationError: the base is worse than the server's records alone, or a member stands
            too far below it; what is complete is kept.
    """
    check_settings(task, settings, own=clients is None)
    work = _Federation(task, vault, settings, hostile, progress, say, clients)
    work.check_vault()
    work.base()
    work.early()
    s = settings.population
    for first in range(0, s.members, wave_of(s)):
        work.members(range(first, min(first + wave_of(s), s.members)))
    shutil.rmtree(work.folder, ignore_errors=True)


@dataclass(frozen=True)
class _Federation:
    """One run that makes, or finishes, a federated population."""

    task: Task
    vault: Vault
    settings: Settings
    hostile: Hostile | None
    progress: Progress
    say: Say
    clients: ServerSide | None = None

    @cached_property
    def sim(self) -> ServerSide:
        return self.clients or simulation(
            self.task, self.settings, self.hostile, self.say, self.vault
        )

    @property
    def folder(self) -> Path:
        """Where server and clients keep what they know until the population is whole."""
        assert self.sim.folder is not None, "beside a vault there is a folder"
        return self.sim.folder

    @cached_property
    def fingerprint(self) -> str:
        """Of what members depend on: another run goes on only where it is the same."""
        s, hostile = self.settings, self.hostile
        whole = {
            "population": fingerprint(s.population, s.harden, None),
            "federated": s.federated.of_training,
            "hostile": [hostile.attack.name, hostile.count] if hostile else [],
        }
        if self.clients is not None:  # a simulation's other names draw other attacks
            whole["clients"] = sorted(self.clients.identities)
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]

    def check_vault(self) -> None:
        """Refuse to go on with what other settings have begun."""
        if self.vault.sealing.record is not None:
            raise SealingError(
                f"{self.vault.path} is sealed, and clients keep what they know in plaintext, in "
                f"{self.folder.name} beside it: train in a plain vault, and seal it afterwards"
            )
        base = self.vault.entry("base")
        if base is not None and not is_federated(self.vault):
            raise VaultError(
                f"{self.vault.path} has a base that no clients trained; use a new folder"
            )
        if base is not None and base.info.get("settings") != self.fingerprint:
            raise VaultError(
                f"{self.vault.path} holds a population that clients trained with other settings "
                "(rule, f, rounds, split, attack, seed): use a new folder, or those"
            )
        self._check_begun()

    def _check_begun(self) -> None:
        """Hold the folder beside the vault to the settings that it was begun with."""
        mark = make_folder(self.folder, 0o700) / "begun"
        try:
            known = read_text(mark) if mark.exists() else ""
        except (OSError, UnicodeDecodeError):
            known = "damaged"
        if known not in ("", self.fingerprint):
            raise VaultError(
                f"{self.folder} was begun with other settings (rule, f, rounds, split, attack, "
                "seed): go on with those, or remove it"
            )
        write_bytes(mark, self.fingerprint.encode(), 0o600)

    # --- what is made ----------------------------------------------------------------------------

    def base(self) -> None:
        if self.vault.entry("base") is not None:
            return
        began = time.process_time()
        found, s = train_base(self.sim, self.progress), self.settings.federated
        self._scan("the base", found.state)
        if found.alone is not None and found.accuracy < found.alone:
            shutil.rmtree(self.folder, ignore_errors=True)  # it is of no use with other settings
            raise PopulationError(
                f"the federated base is right on {found.accuracy:.2%} of the gate split, and a "
                f"network of the server's own {len(self.sim.root)} records alone on "
                f"{found.alone:.2%}: under rule {s.rule!r} with f = {s.f} the clients add nothing. "
                "Train on those records, give it more rounds, or ask clients who can be trusted"
            )
        notes = {**note_of(self.task), FEDERATED: self._notes(found.server, found.alone)}
        self._keep("base", 0, 0, "base", found.state, notes, began)

    def early(self) -> None:
        s, base = self.settings.population, self._vector("base", 0)
        for basin in range(s.basins):
            if self.vault.entry("early", basin) is not None:
                continue
            began, rounds = time.process_time(), self.settings.federated.early_rounds
            if rounds == 0:
                self._keep("early", basin, basin, s.recipe, self._state(base), {}, began)
                continue
            fresh = self.task.model(seed_of(s.seed, "early", basin)).state_dict()
            start = self.sim.networks.vector(fresh)
            repelled = self._sent([("base", 0)]) if s.recipe == "repelled" else ()
            server = self.sim.train(f"early-{basin}", start, rounds, repelled, self.progress)
            notes = {FEDERATED: self._notes(server)}
            state = self._state(server.vector)
            self._keep("early", basin, basin, s.recipe, state, notes, began)

    def members(self, indices: range) -> None:
        s, have = self.settings.population, {e.index for e in self.vault.entries("member")}
        self.progress("population", len(have), s.members)
        for index in (k for k in indices if k not in have):
            began, basin = time.process_time(), index % s.basins
            start = fork_start(self.vault, s, index, basin)
            fled = source_entries(self.vault, s, index) if s.recipe == "repelled" else []
            repelled = self._sent([(entry.kind, entry.index) for entry in fled])
            server = self.sim.train(
                f"member-{index}", self._vector(start.kind, start.index),
                self.settings.federated.fork_rounds, repelled,
            )  # fmt: skip
            state = self._state(server.vector)
            self._judge(index, state)
            notes = {FEDERATED: self._notes(server)}
            self._keep("member", index, basin, s.recipe, state, notes, began)
            have.add(index)
            self.progress("population", len(have), s.members)

    # --- parts of it -----------------------------------------------------------------------------

    def _sent(self, which: Sequence[tuple[str, int]]) -> tuple[str, ...]:
        """Have every client craft its attacks on networks of the vault; their names."""
        names = []
        for kind, index in which:
            self.sim.send(f"{kind}-{index}", self._vector(kind, index))
            names.append(f"{kind}-{index}")
        return tuple(names)

    def _vector(self, kind: str, index: int) -> Array:
        entry = self.vault.entry(kind, index)
        assert entry is not None, "what others begin at is made first"
        return self.sim.networks.vector(unpack(self.vault.read(entry)))

    def _state(self, vector: Array) -> dict[str, Tensor]:
        return self.sim.networks.state(vector, self.sim.like)

    def _judge(self, index: int, state: dict[str, Tensor]) -> None:
        """Refuse a member that stands too far below the base on the server's gate split."""
        self._scan(f"member {index}", state)
        base = self.vault.entry("base")
        assert base is not None, "the base is made first"
        found = accuracy(load_model(self.task, state), self.task.splits.gate)
        most = self.settings.federated.member_drop
        if float(base.info["accuracy"]) - found > most:
            raise PopulationError(
                f"member {index} is right on {found:.2%} of the gate split, the base on "
                f"{float(base.info['accuracy']):.2%}, and {most:.2%} may be lost: it is not kept. "
                "Raise [federated] member_drop to keep it, or begin a new vault with more "
                "early_rounds and fork_rounds, or a smaller local_rate"
            )

    def _scan(self, name: str, state: dict[str, Tensor]) -> None:
        """Refuse what a trigger as small as a backdoor's sends to a class, if that is asked for."""
        least, task = self.settings.gates.backdoor, self.task
        if least == 0:
            return
        found = scan(load_model(task, state), task.splits.gate, task.classes, task.bounds)
        if found.ratio < least:
            raise PopulationError(
                f"{name} is sent to class {found.target} by a pattern of "
                f"{found.triggers[found.target].size:.1f} pixels, {found.ratio:.2f} of what the "
                f"median class needs, and [gates] backdoor = {least:g} is the least: that looks "
                "like a backdoor, and it is not kept. Raise f, or look at who the clients are"
            )

    def _notes(self, server: Server, alone: float | None = None) -> dict[str, Any]:
        """What was federated, for entries and manifests."""
        s, hostile = self.settings.federated, self.hostile
        counted = [closed for closed in server.closed if not closed.skipped]
        notes: dict[str, Any] = {
            "simulated": self.sim.simulated, "clients": s.clients, "f": s.f, "rule": s.rule,
            "mix": s.mix, "clip": s.clip, "rounds": len(server.closed),
            "skipped": len(server.closed) - len(counted),
            "answers": sum(closed.answered for closed in counted),
            "late": sum(closed.late for closed in counted),
            "refused": dict(sorted(server.refusals.counts.items())),
        }  # fmt: skip
        if s.private:
            notes["private"] = True
            if (spent := self.sim.spent) is not None:
                notes |= {"epsilon": round(spent, 4), "delta": self.settings.privacy.delta}
        if alone is not None:
            notes["server_alone"] = round(alone, 6)
        if hostile is not None:
            notes |= {"attack": hostile.attack.name, "malicious": hostile.count}
        return notes

    def _keep(
        self,
        kind: str,
        index: int,
        basin: int,
        recipe: str,
        state: dict[str, Tensor],
        notes: dict[str, Any],
        began: float,
    ) -> Entry:
        """Craft the server's own attacks on a network, and keep both."""
        s, split = self.settings.population, self.task.splits.pooled
        model = load_model(self.task, state)
        seed = seed_of(s.seed, kind, index)
        pool = craft_pool(self.task, model, split, s.pool, s.pool_steps, seed)
        info = {
            "index": index, "basin": basin, "recipe": recipe,
            "accuracy": accuracy(model, self.task.splits.gate),
            "examples": len(self.task.splits.gate), "settings": self.fingerprint,
            "cpu_seconds": round(time.process_time() - began, 2), **notes,
        }  # fmt: skip
        files = {"weights": pack(state), "attacks": pack_pool(*pool, self.task)}
        return self.vault.put(kind, index, files, info)
