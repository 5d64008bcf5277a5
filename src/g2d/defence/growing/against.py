"""What a new basin is repelled from: attacks on what was exposed, and on members of other basins.

Attacks on an exposed generation are crafted anew, on examples to train on: those that it keeps are
of the splits that guidance and gates judge by, which no member may learn.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from g2d.attacks.pools import craft_pool, pack_pool
from g2d.core.seeds import seed_of
from g2d.core.types import Say
from g2d.errors import CheckpointError, UnavailableError, VaultError
from g2d.settings import PopulationSettings
from g2d.tasks.inference import load_model
from g2d.tasks.task import Task
from g2d.vault.basins import BASIN
from g2d.vault.vault import Entry, Vault
from g2d.weights.checkpoints import unpack

Source = int | Entry
"""Where attacks come from: the number of an exposed generation, or a member."""


@dataclass
class Against:
    """The pools of one basin's trainings; each is a pure function of vault, seed and training.

    Attributes:
        seed: of what is drawn and crafted. say: hears of an exposed generation that cannot be read.
    """

    task: Task
    vault: Vault
    settings: PopulationSettings
    seed: int
    say: Say
    crafted: dict[int, bytes] = field(default_factory=dict)

    def sources(self) -> list[Source]:
        """Where attacks may come from: the newest member of every basin, and what was exposed.

        Of each basin the newest generation that was exposed, and the newest others, up to as many
        as there are basins or a training takes; those that have their weights yet.
        """
        newest = {int(entry.info[BASIN]): entry for entry in self.vault.entries("member")}
        return [*newest.values(), *self._exposed(max(self.settings.sources, len(newest)))]

    def _exposed(self, most: int) -> list[int]:
        retired, first, others = self.vault.retired, dict[object, int](), list[int]()
        for number in reversed(self.vault.exposures()):
            manifest = self.vault.generation(number).manifest
            if number <= retired or manifest.get("origin") == "base":
                continue  # the base's own attacks are always learned
            basin = manifest.get(BASIN)
            if basin is not None and basin not in first:
                first[basin] = number
            else:
                others.append(number)
        return sorted([*first.values(), *others][:most])

    def pools(self, *training: object) -> tuple[bytes, ...]:
        """The pools of one training: the base's, and of random sources so many that it takes."""
        sources = self.sources()
        generator = torch.Generator().manual_seed(seed_of(self.seed, "sources", *training))
        order = torch.randperm(len(sources), generator=generator).tolist()
        base, found = self.vault.entry("base"), list[bytes]()
        assert base is not None, "it was looked for"
        for place in order:
            if len(found) + 1 >= self.settings.sources:
                break
            if pool := self._pool(sources[place]):
                found.append(pool)
        return self.vault.read(base, "attacks"), *found

    def _pool(self, source: Source) -> bytes:
        """The attacks of a source; b"": it cannot be read, which is said once."""
        if isinstance(source, Entry):
            return self.vault.read(source, "attacks")
        if source not in self.crafted:
            try:
                self.crafted[source] = self._craft(source)
            except UnavailableError:
                raise
            except (VaultError, CheckpointError) as error:
                self.say(f"nothing is learned against generation {source}: {error}")
                self.crafted[source] = b""
        return self.crafted[source]

    def _craft(self, number: int) -> bytes:
        """Attacks on an exposed generation, as many and as strong as on a member."""
        model = load_model(self.task, unpack(self.vault.read_generation(number)))
        s, split = self.settings, self.task.splits.pooled
        seed = seed_of(self.seed, "exposed", number)
        return pack_pool(
            *craft_pool(self.task, model, split, s.pool, s.pool_steps, seed), self.task
        )
