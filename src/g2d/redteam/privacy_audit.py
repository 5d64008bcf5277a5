"""An audit of a vault's privacy: guesses about planted canaries from everything that it released.

How canaries are planted is in `defence.planting`; what guesses prove in `protect.privacy`. Scores
are settled before anything is looked at, so that one run is one test.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from g2d.attacks.inference import logit_confidence
from g2d.core.types import Array, Progress, silent
from g2d.defence.privacy import shield_of
from g2d.errors import KeyFileError, PrivacyError, SettingsError
from g2d.protect.privacy import accounting
from g2d.protect.privacy.accounting import Spending
from g2d.protect.privacy.audit_bounds import Guesses, guess, judge, lower_bound, power
from g2d.protect.privacy.audit_curves import gaussian_lower_bound, of_pairs, tail
from g2d.protect.privacy.canary_key import CanaryKey
from g2d.protect.privacy.ledger import PrivacyLedger
from g2d.protect.privacy.releases import Release, releases
from g2d.settings import Settings
from g2d.tasks.inference import load_model, predict
from g2d.tasks.planted import Planting, draw, plant
from g2d.tasks.source import data_digest, find
from g2d.tasks.task import Task
from g2d.training.jobs import TrainingJob, run_job
from g2d.training.recipes.distil import teacher_of
from g2d.vault.ledger import sha256
from g2d.vault.records import PLANTED
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import unpack

_TRAINED = ("base", "early", "member")
_PROFILE = 24  # pairs of epsilon and delta that a claim's curve is read at


_NOTHING = (
    "the vault has released no network yet: run `g2d population`, `g2d fit` and `g2d generate`"
    " first"
)


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        guesses: of the combined score, which is what is judged. by_kind: right guesses by the
            networks of one kind alone; for the reader, not a test. networks: how many of each kind
            were scored. delta: of all epsilons. alpha: how often a sound claim is refuted, at most:
            both tests count the same right guesses, so that together they are the one that asks for
            fewer.
        bound: epsilon is above it, whatever the mechanism. gaussian: it is, if the trade-off is a
            Gaussian's. most: what so many guesses could certify; most_canaries: if all were made.
        claim: epsilon by the ledger; inf where something is not covered (`uncovered` says what).
        p: chance of such guesses by the whole curve of the claim; None: it has none.
    """

    guesses: Guesses
    by_kind: Mapping[str, Guesses]
    networks: Mapping[str, int]
    delta: float
    alpha: float
    bound: float
    gaussian: float
    most: float
    most_canaries: float
    claim: float
    p: float | None = None
    uncovered: tuple[str, ...] = ()

    @property
    def refuted(self) -> bool:
        """Whether the claim is less than what the vault gives away."""
        return self.bound > self.claim or (self.p is not None and self.p < self.alpha)

    def as_json(self) -> dict[str, Any]:
        """Plain values; an infinite claim is null."""
        claim = self.claim if math.isfinite(self.claim) else None
        return {**asdict(self), "claim": claim, "refuted": self.refuted}


def audit(
    path: Path,
    key: CanaryKey,
    *,
    task: Task | None = None,
    data: str = "",
    alpha: float = 0.05,
    references: int = 2,
    progress: Progress = silent,
) -> Audit:
    """Guess the coins of a vault's canaries, and hold the guesses against its claim.

    Args:
        task: needed only if the vault was made from a `Task` object that has no name. data: where
            the data lies now. references: networks that are trained as the base is, without any
            canary, to know how hard each one is; 0: none, and the audit is weaker.

    Raises:
        KeyFileError: the key is another vault's. PrivacyError: there are no canaries, or nothing
            was trained, or not with them, or the ledger was changed. DataError: the data are not
            those of the vault. SettingsError: alpha is no share.
    """
    if not 0 < alpha < 1:
        raise SettingsError(f"alpha is {alpha}, expected a share of wrong alarms between 0 and 1")
    with Vault.open(path) as vault:
        settings = Settings.from_vault(vault.settings_text, str(vault.path / "task.toml"))
        raw = task or find(settings.task, data)
        planting = _planting(vault, raw, key)
        known = releases(vault)
        _check_learned(vault, raw, planting, settings)
        logs = dict(_confidences(vault, raw, planting, known, progress))
        reference = _reference(vault, raw, planting, settings, references, progress)
        claim = _claim(vault, settings, known)
    return judged(planting, logs, reference, key.guesses, claim, raw.classes, alpha)


@dataclass(frozen=True)
class Claim:
    """What a vault says that it gives away: `pairs` of epsilon and delta are its whole curve."""

    delta: float
    epsilon: float
    pairs: tuple[tuple[float, float], ...] = ()
    uncovered: tuple[str, ...] = ()


def judged(
    planting: Planting,
    logs: Mapping[str, Array],
    reference: Array | None,
    made: int,
    claim: Claim,
    classes: int,
    alpha: float,
) -> Audit:
    """Judge the confidences (k, m) of networks of each kind in the canaries' labels.

    Raises:
        PrivacyError: there is no network.
    """
    if not logs:
        raise PrivacyError(_NOTHING)
    coins, y = planting.coins.numpy(), planting.canaries.y.numpy()
    scores = {kind: surplus(phi, reference, y, classes) for kind, phi in logs.items()}
    told = judge(guess(combined(scores), made), coins)
    by_kind = {kind: judge(guess(own, made), coins) for kind, own in scores.items()}
    p = tail(told, of_pairs(claim.pairs)) if claim.pairs else None
    return Audit(
        told, by_kind, {kind: len(phi) for kind, phi in logs.items()}, claim.delta, alpha,
        lower_bound(told, claim.delta, alpha),
        gaussian_lower_bound(told, claim.delta, alpha),
        power(told.canaries, made, claim.delta, alpha),
        power(told.canaries, told.canaries, claim.delta, alpha),
        claim.epsilon, p, claim.uncovered,
    )  # fmt: skip


def surplus(phi: Array, reference: Array | None, y: Array, classes: int) -> Array:
    """By how much networks are surer of a canary than its label and difficulty explain, (m,).

    The mean confidence of networks phi (k, m) is regressed on the reference's (m,) and on the
    labels y (m,); what is left is scaled to variance 1. A function of what was released alone.
    """
    mean = phi.mean(0)
    labels = np.eye(classes)[y] if len(y) > 10 * classes else np.ones((len(y), 1))
    columns = labels if reference is None else np.column_stack([labels, reference])
    left = mean - columns @ np.linalg.lstsq(columns, mean, rcond=None)[0]
    return left / max(float(left.std()), 1e-12)


def combined(scores: Mapping[str, Array]) -> Array:
    """One score of all kinds: their sum, for each kind's has variance 1."""
    return np.sum(list(scores.values()), axis=0)


def _planting(vault: Vault, task: Task, key: CanaryKey) -> Planting:
    """All canaries; the key has to be the one that the vault was planted by."""
    entry = vault.entry(PLANTED)
    if entry is None:
        raise PrivacyError(
            f"{vault.path} has no canaries, so nothing can be guessed: `g2d privacy plant` plants"
            " them in a new vault of the same settings, before `g2d population`"
        )
    if key.vault != vault.identity or key.commitment != entry.info.get("key"):
        raise KeyFileError(
            f"this is not the key by which the canaries of {vault.path} were planted: give the file"
            " that `g2d privacy plant` wrote for it"
        )
    planting = draw(task, key.secret, key.canaries, key.kind)
    if sha256(planting.pack()) != entry.files["weights"]:
        raise PrivacyError(
            f"the canaries in {vault.path} are not those of its key and of these data: point --data"
            " at the data that it was made from"
        )
    return planting


def _check_learned(vault: Vault, raw: Task, planting: Planting, settings: Settings) -> None:
    """Refuse a vault that was trained without its canaries, which would seem to remember nothing.

    Raises:
        PrivacyError: that is so, or nothing was trained at all.
    """
    base = vault.entry("base", source=0)
    if base is None:
        raise PrivacyError(_NOTHING)
    if base.info.get("data") != data_digest(_as_trained(vault, raw, planting, settings)):
        raise PrivacyError(
            f"the base of {vault.path} was not trained on the records that its canaries were"
            " planted in, so guesses prove nothing: plant in a new vault, and open it anew before"
            " anything is trained"
        )


def _as_trained(vault: Vault, raw: Task, planting: Planting, settings: Settings) -> Task:
    """The task as a vault has it whose canaries are these."""
    task, shield = plant(raw, planting.pack()), shield_of(settings, vault)
    return task if shield is None else shield.over(task)


def _confidences(
    vault: Vault, task: Task, planting: Planting, known: Sequence[Release], progress: Progress
) -> Iterator[tuple[str, Array]]:
    """phi of every released network in every canary's label, (k, m), by kind.

    A generator is not asked by itself: whatever it draws is made of the members alone. A
    generation that was retired has no weights any more.
    """
    found: dict[str, list[Array]] = {}
    for done, release in enumerate(known):
        progress("auditing", done, len(known))
        if release.kind == "generator" or (
            release.kind == "generation" and release.index <= vault.retired
        ):
            continue
        model = load_model(task, unpack(_weights(vault, release)))
        phi = logit_confidence(predict(model, planting.canaries.x), planting.canaries.y)
        kind = "trained" if release.kind in _TRAINED else release.kind
        found.setdefault(kind, []).append(phi.numpy())
    progress("auditing", len(known), len(known))
    for kind, each in found.items():
        yield kind, np.stack(each)


def _weights(vault: Vault, release: Release) -> bytes:
    if release.kind == "generation":
        return vault.read_generation(release.index)
    entry = vault.entry(release.kind, release.index, release.source)
    assert entry is not None, "it was listed"
    return vault.read(entry)


def _reference(
    vault: Vault, raw: Task, planting: Planting, settings: Settings, count: int, progress: Progress
) -> Array | None:
    """Mean phi of networks that have seen no canary, trained as the vault's base is, (m,).

    Private ones begin where the base did, for the seed of that is public; their noise is their own.
    """
    if count < 1:
        return None
    nobody = replace(planting, coins=torch.zeros_like(planting.coins))
    task = _as_trained(vault, raw, nobody, settings)
    s, found = replace(settings.population, pool=1), []
    privacy = settings.privacy if settings.privacy.enabled else None
    for index in range(count):
        progress("references", index, count)
        seed = s.seed if privacy else (s.seed + index) % 2**31
        job = TrainingJob(
            task, "base", 0, 0, "base", replace(s, seed=seed), None, (), harden=settings.harden,
            teacher=teacher_of(vault, settings.harden), privacy=privacy,
        )  # fmt: skip
        model = load_model(task, unpack(run_job(job).weights))
        phi = logit_confidence(predict(model, planting.canaries.x), planting.canaries.y)
        found.append(phi.numpy())
    progress("references", count, count)
    return np.mean(found, axis=0)


def _claim(vault: Vault, settings: Settings, known: Sequence[Release]) -> Claim:
    """The ledger's epsilon for all that was released, and its curve."""
    delta = settings.privacy.delta
    uncovered = tuple(f"{one.name}: {one.why}" for one in known if not one.covered)
    if uncovered:
        return Claim(delta, math.inf, (), uncovered)
    return claim_of(PrivacyLedger(vault, settings).spendings(), delta)


def claim_of_vault(path: Path) -> Claim:
    """What a vault claims of itself, by its ledger.

    Raises:
        PrivacyError: the ledger was changed. VaultError: the vault cannot be read.
    """
    with Vault.open(path) as vault:
        settings = Settings.from_vault(vault.settings_text, str(vault.path / "task.toml"))
        return _claim(vault, settings, releases(vault))


def claim_of(spendings: Sequence[Spending], delta: float) -> Claim:
    """The epsilon of spendings at delta, and the curve that they have together.

    A unit is in one block alone, so that the largest delta of any block is that of all.
    """
    epsilon = accounting.total(spendings, delta)
    if not math.isfinite(epsilon):
        return Claim(delta, epsilon, (), ("something was spent without a bound",))
    blocks = list(accounting.by_block(spendings).values())
    grid = np.linspace(0, 1.25 * epsilon, _PROFILE).tolist()
    pairs = tuple(
        (one, max((accounting.guaranteed_delta(own, one) for own in blocks), default=0.0))
        for one in grid
    )
    return Claim(delta, epsilon, pairs)
