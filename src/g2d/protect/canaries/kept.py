"""Canaries as they are kept with a generation, and what answers to them tell. Knows no torch.

Made elsewhere (`making`). A file of a generation like its attacks: its digest stands in the
manifest, and is signed with it. Whoever has it can answer canaries rightly and all else wrongly,
so it is as secret as the weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from g2d.core.types import Array
from g2d.errors import DAMAGE, CheckpointError, VaultError

if TYPE_CHECKING:
    from g2d.vault.reading import VaultReader

CANARIES = "canaries"
"""The name that a generation keeps them under."""

How = Literal["logits", "probabilities", "labels"]

_FINEST = 7  # decimals from which on rounding is finer than float32 itself
_UNIT = 2.0**-23  # relative step of float32
_SUMS = 0.05  # that shares may miss 1 by, however many were rounded


@dataclass(frozen=True, eq=False)
class Canaries:
    """Inputs, and what the sound generation answers to each.

    Attributes:
        x: (n, ...) in the task's dtype. logits: (n, classes) float32. labels: (n,) int64, the
            class of the highest logit. tolerance: by how much a logit of a sound generation may
            differ, on another machine, in another batch, permuted or rescaled.
    """

    x: Array
    logits: Array
    labels: Array
    tolerance: float

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def from_bytes(cls, data: bytes) -> Canaries:
        """Read what `making.make_canaries` made, as safetensors.

        Raises:
            CheckpointError: it is anything else.
        """
        try:
            found = load(data)
            x, logits, labels, tolerance = (
                found.pop(name) for name in ("x", "logits", "labels", "tolerance")
            )
            n, classes = logits.shape
            whole = not found and n == len(x) == len(labels) > 0 and labels.shape == (n,)
            sound = whole and np.isfinite(logits).all() and np.isfinite(tolerance).all()
            right = sound and bool(((labels >= 0) & (labels < classes)).all()) and classes >= 2
            made = cls(x, logits.astype(np.float32), labels.astype(np.int64), float(tolerance[0]))
        except (SafetensorError, *DAMAGE):
            right = False
        if not right:
            raise CheckpointError("these are no canaries: take the file as g2d wrote it")
        return made

    @property
    def margins(self) -> Array:
        """By how much the highest logit of each leads, (n,)."""
        second, best = np.sort(self.logits.astype(np.float64), axis=1)[:, -2:].T
        return best - second


def read_canaries(
    vault: VaultReader, number: int, signed: Mapping[str, str] | None = None
) -> Canaries | None:
    """Read a generation's canaries; None: it keeps none.

    Args:
        signed: digests of its files by name, where its signature was verified; else the ledger's.

    Raises:
        VaultError: there is no such generation, or the file is not what was accepted.
        CheckpointError: it holds no canaries.
    """
    digest = (signed or vault.generation(number).files).get(CANARIES)
    if digest is None:
        return None
    data = vault.read_generation(number, CANARIES)
    if hashlib.sha256(data).hexdigest() != digest:
        raise VaultError(f"the canaries of generation {number} are not those that were signed")
    return Canaries.from_bytes(data)


@dataclass(frozen=True)
class Changed:
    """A canary that was not answered as the sound generation does.

    Attributes:
        place: which, from 0. expected, label: the class that it has, and the one answered. off:
            largest difference of a score; None where only labels were compared.
    """

    place: int
    expected: int
    label: int
    off: float | None = None

    def __str__(self) -> str:
        far = "" if self.off is None else f", scores off by {self.off:.3g}"
        return f"canary {self.place}: class {self.label}, expected {self.expected}{far}"


@dataclass(frozen=True)
class Verdict:
    """What answers to canaries tell: those changed, what was compared, and how scores were rounded.

    Attributes:
        decimals: places after the point that scores were rounded to; None: they were not. compared:
            how many canaries could have shown a change: not those whose highest scores tie and
            whose rounding hides more than their scores differ by.
    """

    changed: tuple[Changed, ...]
    how: How
    decimals: int | None = None
    compared: int = 0


def judge_labels(canaries: Canaries, labels: Array) -> Verdict:
    """Compare classes (n,) alone; a class below 0 is not known, and is not compared."""
    wrong = np.flatnonzero((labels != canaries.labels) & (labels >= 0)).tolist()
    found = (Changed(i, int(canaries.labels[i]), int(labels[i])) for i in wrong)
    return Verdict(tuple(found), "labels", compared=int((labels >= 0).sum()))


def judge_classes(canaries: Canaries, scores: Array) -> Verdict:
    """Compare the classes that scores (n, classes) name; where several are highest, none is."""
    labels = np.where(_tied(scores), -1, scores.argmax(1))
    # NaN names no class at all: that is not the one expected, whichever that is.
    nowhere = np.isnan(scores).any(1)
    return judge_labels(canaries, np.where(nowhere, canaries.logits.shape[1], labels))


def judge_scores(
    canaries: Canaries, scores: Array, how: How | None = None, rounded: bool = True
) -> Verdict:
    """Compare scores (n, classes), which may be the logits, or their softmax, and be rounded.

    A canary has changed if a score is farther from the sound one than `tolerance` and rounding
    explain, or its class is not among the highest.

    Args:
        how: "logits" or "probabilities", where that is known; None: the answers are looked at.
            rounded: whether scores may be rounded. Whoever knows that they are logits, and whole,
            must say so: what was changed could pass for something rounded.
    """
    scores, expected = scores.astype(np.float64), canaries.logits.astype(np.float64)
    slack = canaries.tolerance
    decimals = _decimals(scores) if rounded else None
    if how is None:
        shares = _probable(scores, decimals) and not _probable(expected, None)
        how = "probabilities" if shares else "logits"
    if how == "probabilities":
        # No score moves by more than half of what the logits do; float32 sums leave 1e-6.
        expected, slack = _softmax(expected), slack / 2 + 1e-6
    if decimals is not None:
        slack += 0.5 * 10.0**-decimals
    off = np.abs(scores - expected).max(1)
    own = np.take_along_axis(scores, canaries.labels[:, None], 1)[:, 0]
    wrong = ~(off <= slack * (1 + 1e-6)) | ~(own >= scores.max(1))  # NaN fails both
    # What answers the same to all comes no nearer to them than half of this: it must not pass.
    spread = np.maximum(np.ptp(expected, axis=1), np.ptp(expected, axis=0).max())
    shown = (slack < spread / 2) | ~_tied(scores)
    best = scores.argmax(1)
    found = (
        Changed(i, int(canaries.labels[i]), int(best[i]), float(off[i]))
        for i in np.flatnonzero(wrong).tolist()
    )
    return Verdict(tuple(found), how, decimals, int(shown.sum()))


def _tied(scores: Array) -> Array:
    """Where several scores are the highest, (n,) bool."""
    return (scores == scores.max(1, keepdims=True)).sum(1) > 1


def _probable(scores: Array, decimals: int | None) -> bool:
    """Whether rows are shares that sum to 1, as far as rounding allows."""
    room = 1e-3 if decimals is None else scores.shape[1] * 0.5 * 10.0**-decimals
    sums = scores.sum(1)
    whole = (np.abs(sums - 1) <= min(max(room, 1e-3), _SUMS) + 1e-9) & (sums > 0.5)
    return bool((scores >= 0).all() and (scores <= 1).all() and whole.all())


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _decimals(scores: Array) -> int | None:
    """To how many decimals scores were rounded, as far as float32 can tell."""
    for places in range(_FINEST):
        scaled = scores * 10.0**places
        if (np.abs(scaled - np.rint(scaled)) <= np.abs(scaled) * _UNIT + 1e-12).all():
            return places
    return None
