"""Verification: a suspect is asked for the labels of one set of triggers, and hits are counted.

Inputs and labels are drawn anew from the set's key, and only a key that was committed to draws any:
no other trigger set is ever looked at. What a suspect is, is in `suspects`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from g2d.errors import DAMAGE, ClaimError, SuspectError
from g2d.protect.watermark.chance import p_value
from g2d.protect.watermark.commitment import Commitment, check_numbers
from g2d.protect.watermark.triggers import repeated, triggers_of


class Suspect(Protocol):
    """A network, or a service, that may carry the mark.

    `name` is how people call it, `digest` what its weights are: "sha256:" and SHA-256; "": unknown.
    """

    @property
    def name(self) -> str:
        """Its file or address."""
        ...

    @property
    def digest(self) -> str:
        """What identifies its weights."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes; 0: it does not say."""
        ...

    def labels(self, x: Tensor) -> Tensor:
        """Its label for each input x (n, *shape), (n,) int64."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        place: the set. answers: a label for each trigger, in their order. hits: how many are the
            key's. needed: how many are enough. p: after Bonferroni over `pairs`, those of one of
            the `suspects` and a set that may be shown.
    """

    place: int
    answers: tuple[int, ...]
    hits: int
    needed: int
    p: float
    suspects: int
    pairs: int
    threshold: float

    @property
    def marked(self) -> bool:
        """Whether the suspect carries the mark."""
        return self.p < self.threshold


def draw(commitment: Commitment, place: int, set_key: bytes) -> tuple[Tensor, Tensor]:
    """Return triggers x (n, *shape) and labels y (n,) of a set that was committed to.

    Raises:
        ClaimError: there is no such set, it is the reserve, the key is not the one of it, or two
            triggers are the same.
    """
    if place == commitment.reserve:
        raise ClaimError(
            f"set {place} is the reserve, which is never queried: what it shows nobody can have"
            f" trained away. Choose one of sets 0 to {place - 1}"
        )
    if not 0 <= place < commitment.reserve:
        raise ClaimError(f"there is no set {place}: choose one of 0 to {commitment.reserve - 1}")
    if commitment.digest_of(set_key) != commitment.digests[place]:
        raise ClaimError(
            f"this key is not the one of set {place} that was committed to: it is of another vault"
            " or signer, or the key, the form, the number of triggers or the threshold was changed"
        )
    try:
        x, y = triggers_of(set_key, commitment.form, commitment.n)
    except DAMAGE as error:
        raise ClaimError(
            f"the commitment's form of inputs draws no triggers ({error}): it was not made by g2d"
        ) from error
    if repeated(x):
        raise ClaimError(
            "two triggers of this set are the same, so that one answer would count twice: the"
            " commitment was not made by g2d"
        )
    return x, y


def judge(
    commitment: Commitment, place: int, y: Tensor, answers: Tensor, suspects: int = 1
) -> Outcome:
    """Count hits of answers (n,) among the labels y (n,), and say what they are worth.

    Args:
        suspects: how many were, or could have been, accused. The p-value is multiplied by it, and
            by the number of sets that could have been shown in place of this one.

    Raises:
        SettingsError: with so many suspects not even all hits are enough.
    """
    form, pairs = commitment.form, suspects * commitment.reserve
    needed = check_numbers(commitment.n, form.classes, commitment.threshold, pairs)
    hits = int((answers == y).sum())
    p = p_value(hits, commitment.n, form.classes, pairs)
    told = tuple(int(label) for label in answers)
    return Outcome(place, told, hits, needed, p, suspects, pairs, commitment.threshold)


def verify(
    commitment: Commitment,
    place: int,
    set_key: bytes,
    suspect: Suspect,
    suspects: int = 1,
    before: Callable[[], None] = lambda: None,
) -> Outcome:
    """Ask a suspect about every trigger of one set, once, and judge its labels.

    Args:
        suspects: see `judge`. before: called once all is right, and nothing has been asked yet.

    Raises:
        ClaimError: as `draw`. SuspectError: it is of another form, or does not answer.
        SettingsError: as `judge`; before anything is asked.
    """
    x, y = draw(commitment, place, set_key)
    check_fit(commitment, suspect)
    pairs = suspects * commitment.reserve
    check_numbers(commitment.n, commitment.form.classes, commitment.threshold, pairs)
    before()
    answers = suspect.labels(x).to(torch.int64)
    if answers.shape != y.shape:
        raise SuspectError(f"{suspect.name} answered {len(answers)} labels, not {len(y)}")
    return judge(commitment, place, y, answers, suspects)


def check_fit(commitment: Commitment, suspect: Suspect) -> None:
    """Refuse a suspect that takes other inputs, or knows other classes.

    Raises:
        SuspectError: it does.
    """
    form = commitment.form
    if suspect.shape != form.shape:
        raise SuspectError(
            f"{suspect.name} takes inputs of shape {suspect.shape}, and the watermark is of inputs"
            f" {form.shape}: it cannot be asked about these triggers"
        )
    if suspect.classes not in (0, form.classes):
        raise SuspectError(
            f"{suspect.name} knows {suspect.classes} classes, and the watermark is of"
            f" {form.classes}: hits would mean something else"
        )
