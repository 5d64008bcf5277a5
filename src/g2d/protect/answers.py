"""What an answer tells of a network's scores: all, rounded ones, the label, or as AAA says.

Also how several networks' scores become one answer. Pure numpy; services and the red team use it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from g2d.core.types import Array
from g2d.settings.serve import ServeSettings

LABEL = "label"
"""What `ServeSettings.answers` says where only classes are told."""

# The reference's defaults for its linear and its sine design: width of a period, size of a step.
_PERIOD = {"linear": 4.0, "sine": 6.0}
_STEP = {"linear": 1.0, "sine": 0.7}
_WEIGHT = 5.0  # of a confidence that is off against a margin that is off
_LEAST = 1e-3  # of a margin, so that the label stays the label in float32
_TRIED, _HALVINGS = 65, 40
_APART = 1e-3  # of classes that are as high as the next one
_FAR = 30.0  # beyond it a softmax is 0 or 1 in float32


def answers_of(settings: ServeSettings) -> Callable[[Array], Array] | None:
    """Return what makes an answer of logits (n, classes) float32; None: they are the answer.

    All keep the label. "label" gives int64 of shape (n,), the others (n, classes) float32.
    """
    match settings.answers:
        case "rounded":
            return lambda logits: rounded(logits, settings.decimals)
        case "label":
            return lambda logits: logits.argmax(1).astype(np.int64)
        case "aaa":
            return lambda logits: attack_the_attacker(logits, settings.aaa)
    return None


def combined(answers: Sequence[Array], labels: bool = False) -> Array:
    """Make one answer of several networks' logits, each (n, classes).

    Scores are the log of the mean softmax: as a network's logits they have a softmax, and no
    network outvotes others because its logits are large. With `labels` they are the share of the
    networks that say a class, among equals more for the class with the higher mean softmax, so
    that the highest is what the majority says.
    """
    if len(answers) == 1:
        return answers[0]
    chances = [_softmax(each.astype(np.float64)) for each in answers]
    mean = np.mean(chances, axis=0)
    if not labels:
        return np.log(np.maximum(mean, np.finfo(np.float32).tiny)).astype(np.float32)
    votes = np.mean([each == each.max(1, keepdims=True) for each in chances], axis=0)
    return (votes + mean / (2.0 * len(answers))).astype(np.float32)


def rounded(logits: Array, decimals: int) -> Array:
    """Round scores; where that ties the label with another class, the label is a step above it."""
    label = logits.argmax(1)
    coarse = np.round(logits.astype(np.float64), decimals)
    at = np.arange(len(logits))
    own = coarse[at, label].copy()
    coarse[at, label] = -np.inf
    other = coarse.max(1) if coarse.shape[1] > 1 else np.full(len(coarse), -np.inf)
    coarse[at, label] = np.where(other >= own, other + 10.0**-decimals, own)
    return coarse.astype(np.float32) + np.float32(0.0)  # -0.0 would tell a sign


def attack_the_attacker(logits: Array, design: str) -> Array:
    """Mislead whoever follows the margin: it falls where the network's own rises, and back.

    "Adversarial Attack on Attackers: Post-Process to Mitigate Black-Box Score-Based Query Attacks"
    (Chen et al. 2022, arXiv 2205.12134). With l the margin of the label over the next class, and
    tau the width of a period, a = (floor(l / tau) + 1/2) tau is the attractor; wanted is the margin

        a - alpha (l - a)                                       linear
        l - alpha tau sin(pi (1 - 2 (l - a) / tau))             sine

    and the confidence that the network has. Scores u minimise |margin(u) - wanted| + beta
    |confidence(u) - p|, as there; where the paper takes 100 steps of Adam, here it is solved: of
    margins between the wanted one and the network's own the best one of a grid, and for each the
    other classes are spread so that the confidence is p, as nearly as that margin allows.

    Args:
        logits: (n, classes), classes at least 2; else they are returned as they are.
    """
    if logits.shape[1] < 2:
        return logits
    z = logits.astype(np.float64)
    at, label = np.arange(len(z)), z.argmax(1)
    z = z - z[at, label][:, None]
    z[at, label] = -np.inf
    margin = -z.max(1)
    # Of the others to the next class: below 0, also of its equals, which are spread with the rest;
    # -inf: the label itself.
    rest = np.minimum(z + margin[:, None], -_APART)
    rest[at, z.argmax(1)] = 0.0
    p = 1.0 / (1.0 + np.exp(z).sum(1))
    wanted = np.maximum(_wanted(margin, design), _LEAST)
    tried = wanted[:, None] + (margin - wanted)[:, None] * np.linspace(0.0, 1.0, _TRIED)
    tried = np.maximum(tried, _LEAST)
    highest = 1.0 / (1.0 + np.exp(-tried))  # the next class alone beside the label
    lowest = 1.0 / (1.0 + np.exp(-tried) * (z.shape[1] - 1))  # all others are as high as it
    off = np.maximum(0.0, p[:, None] - highest) + np.maximum(0.0, lowest - p[:, None])
    best = (np.abs(tried - wanted[:, None]) + _WEIGHT * off).argmin(1)
    chosen = tried[at, best]
    return _spread(rest, label, chosen, p).astype(np.float32)


def _wanted(margin: Array, design: str) -> Array:
    tau, alpha = _PERIOD[design], _STEP[design]
    attractor = (np.floor(margin / tau) + 0.5) * tau
    if design == "linear":
        return attractor - alpha * (margin - attractor)
    return margin - alpha * tau * np.sin(np.pi * (1.0 - 2.0 * (margin - attractor) / tau))


def _spread(rest: Array, label: Array, margin: Array, p: Array) -> Array:
    """Scores with a margin whose confidence is as near to p as it can be: others are `t rest`.

    The confidence rises with t, from all others as high as the next class to that one alone.
    """
    low, high = np.zeros(len(rest)), np.full(len(rest), 1e6)
    others = np.isfinite(rest)
    rest = np.where(others, rest, 0.0)
    for step in range(_HALVINGS):
        t = 0.5 * (low + high) if step else np.ones(len(rest))
        mass = np.where(others, np.exp(np.maximum(t[:, None] * rest, -700.0)), 0.0).sum(1)
        below = 1.0 / (1.0 + np.exp(-margin) * mass) < p
        low, high = np.where(below, t, low), np.where(below, high, t)
    spread = np.maximum(high[:, None] * rest, -_FAR) - margin[:, None]
    spread[np.arange(len(rest)), label] = 0.0
    return spread


def _softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)
