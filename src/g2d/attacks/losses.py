"""What an attack maximises, one value an example, from logits (n, classes) and labels (n,).

All are higher where the example is closer to being misclassified, or farther beyond it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from g2d.errors import SettingsError, nearest

Loss = Callable[[Tensor, Tensor], Tensor]

CLIP = 1.0  # logits beyond the boundary from which on a margin counts no more


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y. It goes on growing on a network that errs already, and so drowns the others."""
    return F.cross_entropy(logits, y, reduction="none")


def probability(logits: Tensor, y: Tensor) -> Tensor:
    """-p_y: over several networks, the expected probability of an error less a constant."""
    return -logits.softmax(1).gather(1, y.view(-1, 1))[:, 0]


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y, clipped beyond the boundary (Carlini & Wagner 2017, equation 6)."""
    return _margin(logits, y).clamp(max=CLIP)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, arXiv 2003.01690, equation 6).

    Blind to a factor on the logits. Needs three classes; with two it is the plain margin.
    """
    if logits.shape[1] < 3:
        return _margin(logits, y)
    top = logits.topk(3, 1).values
    return _margin(logits, y) / (top[:, 0] - top[:, 2]).clamp_min(1e-12)


def towards(logits: Tensor, target: Tensor) -> Tensor:
    """log p_target: for a targeted attack, whose labels are where it leads."""
    return -F.cross_entropy(logits, target, reduction="none")


LOSSES: Mapping[str, Loss] = {
    "cross-entropy": cross_entropy,
    "probability": probability,
    "margin": margin,
    "dlr": dlr,
    "towards": towards,
}


def find_loss(name: str) -> Loss:
    """Return a loss by its name.

    Raises:
        SettingsError: there is none of that name.
    """
    if name not in LOSSES:
        known = ", ".join(LOSSES)
        raise SettingsError(f"the loss is one of {known}, not {name!r}.{nearest(name, LOSSES)}")
    return LOSSES[name]


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    own = logits.gather(1, y.view(-1, 1))
    others = logits.scatter(1, y.view(-1, 1), -torch.inf)
    return others.amax(1) - own[:, 0]
