"""What a basin will be: its number, its seed, how many members; kept before anything is trained.

A run that is killed goes on by the plan that it finds, as long as that is for what the vault holds.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from dataclasses import dataclass
from typing import Any, Self

from g2d.core.types import Progress, Say, silent, unsaid
from g2d.defence.defence import Defence
from g2d.errors import PopulationError, PrivacyError, SettingsError, VaultError
from g2d.protect.watermark.mark import Mark
from g2d.settings import Settings
from g2d.training.population import fingerprint
from g2d.training.recipes.distil import teacher_of
from g2d.vault.basins import GROWN, GROWN_MEMBER, stock_of
from g2d.vault.federated import is_federated
from g2d.vault.records import RENEWAL
from g2d.vault.vault import Entry, Vault

_SEED_BITS, _FINGERPRINT = 31, 16


@dataclass
class Grow:
    """How a basin is to be grown.

    Attributes:
        members: how many; 0: as many as `[growth] members` says. seed: for reproduction only; None
            draws a secret one, which the vault keeps. anew: drop what an unfinished run has left.
    """

    progress: Progress = silent
    say: Say = unsaid
    members: int = 0
    seed: int | None = None
    anew: bool = False


@dataclass(frozen=True)
class Plan:
    """One basin that is to be.

    Attributes:
        id: random, and of this plan alone. basin: its number, which its early checkpoint has, too.
            first: index of its first member. members: how many. seed: of everything it draws.
            about: what the vault was when it was made; another one it does not fit.
    """

    id: str
    basin: int
    first: int
    members: int
    seed: int
    about: dict[str, Any]

    @classmethod
    def make(cls, defence: Defence, how: Grow) -> Self:
        """Plan the next basin of a vault.

        Raises:
            PopulationError: it has as many members as a vault can have.
        """
        vault, seed = defence.vault, how.seed
        members = how.members or members_of(defence.settings)
        known = [
            *stock_of(vault).basins, *(entry.index for entry in vault.entries("early"))
        ]  # fmt: skip
        indices = [entry.index % RENEWAL for entry in vault.entries("member")]
        place = max(GROWN_MEMBER, 1 + max(indices, default=0))
        basin = max(GROWN, 1 + max(known, default=0))
        if place + members > RENEWAL or basin >= RENEWAL:
            raise PopulationError(
                f"{vault.path} has no room for more basins: a vault has at most {RENEWAL} members."
                " Make a new vault"
            )
        seed = secrets.randbits(_SEED_BITS) if seed is None else seed
        first = vault.source * RENEWAL + place
        return cls(secrets.token_hex(16), basin, first, members, seed, about(defence))

    @classmethod
    def read(cls, entry: Entry | None) -> Self | None:
        """The plan of a folder where a basin is grown; None: it holds none."""
        if entry is None:
            return None
        try:
            found = cls(**entry.info["plan"])
        except (KeyError, TypeError):
            return None
        whole = (found.basin, found.first, found.members, found.seed)
        sound = all(type(n) is int and n >= 0 for n in whole) and isinstance(found.about, dict)
        return found if sound and isinstance(found.id, str) else None

    @property
    def fingerprint(self) -> str:
        """What members are noted to be trained with, as the population's are."""
        return str(self.about.get("training", ""))[:_FINGERPRINT]

    def tell_kept(self, how: Grow) -> None:
        """Say what was asked for and is not done, for an unfinished basin goes on as planned."""
        asked = [f"--members {how.members}"] if how.members not in (0, self.members) else []
        asked += ["--seed"] if how.seed not in (None, self.seed) else []
        if asked:
            how.say(
                f"the unfinished basin {self.basin} goes on as it was planned, with"
                f" {self.members} members and its own seed; without {' and '.join(asked)}. --anew"
                " drops it, and begins as you say"
            )

    def note(self) -> dict[str, Any]:
        """What the folder keeps of it."""
        return {"plan": vars(self), "begun": time.time()}


def members_of(settings: Settings) -> int:
    """How many members a grown basin has: as many as each of the population's, two at least."""
    p = settings.population
    return settings.growth.members or max(2, p.members // p.basins)


def about(defence: Defence) -> dict[str, Any]:
    """What a basin is grown for: this vault, its source, its base, and how it trains."""
    vault, s = defence.vault, defence.settings
    base = vault.entry("base")
    assert base is not None, "it was looked for"
    mark = Mark.of(s.watermark, defence.task, vault.path)
    trained = fingerprint(s.population, s.harden, teacher_of(vault, s.harden), mark)
    scope = json.dumps(s.autoencoder.scope).encode()
    return {
        "vault": vault.identity,
        "source": vault.source,
        "base": base.files["weights"],
        "training": trained + hashlib.sha256(scope).hexdigest()[:8],
    }


def check(defence: Defence, how: Grow) -> None:
    """Refuse a vault in which no basin can be grown; everything is said before any training.

    Raises:
        SettingsError: the population has no basins of its own, or the latent space cannot be told
            where candidates are to begin.
        PrivacyError: the vault is private.
        PopulationError, VaultError: it has no whole population or generator yet.
    """
    vault, s = defence.vault, defence.settings
    if s.privacy.enabled:
        raise PrivacyError(
            f"{vault.path} is private, and each training of it is paid for out of its budget;"
            " charging basins that are grown later is not built. Plan the population with as many"
            " basins as it will need ([population] basins)"
        )
    if vault.entry("generator") is None or vault.live() is None:
        raise VaultError(f"{vault.path} has no generator yet; run `g2d fit {vault.path}` first")
    members = vault.entries("member")
    if any(entry.info.get("recipe") == "adopted" for entry in members):
        raise PopulationError(
            f"{vault.path} holds checkpoints that were adopted, and nothing says how to train more"
            " of them: train the next ones as you did those, and adopt all in a new vault"
        )
    if is_federated(vault):
        raise PopulationError(
            f"{vault.path} holds what clients have trained, and they keep their records: a basin"
            " grown here would be of the server's alone. Have them train a population with as many"
            " basins as it will need (`g2d federated`)"
        )
    if s.population.recipe == "seeds":
        raise SettingsError(
            "[population] recipe = 'seeds' makes each member a basin of its own: more of those come"
            f" by `g2d population {vault.path} --members N`, and `g2d fit {vault.path}`"
        )
    if s.population.early_steps == 0:
        raise SettingsError(
            "[population] early_steps = 0 makes the base the one basin that there is: no other can"
            " be grown from it. A new vault whose early checkpoints have steps of their own can"
        )
    if not defence.generator.space.basins():
        raise SettingsError(
            f"[generator] space = {s.generator.space!r} cannot be told in which basin a candidate"
            " is to begin, and a diffusion model would have to be trained anew for each basin: put"
            f" space = 'soup' there and run `g2d fit {vault.path}`. Soups need no training and"
            " are as good (docs/benchmarks/basins.md)"
        )
    if how.members == 1 or s.growth.members == 1:
        raise SettingsError(
            "a basin of 1 member has one start for all its generations: give it 2 members or more"
        )


def given_base(vault: Vault) -> bool:
    """Whether basins begin at a base that was given, as the population's do then."""
    base = vault.entry("base")
    return base is not None and bool(base.info.get("starts"))
