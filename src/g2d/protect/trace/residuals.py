"""Likeness of residuals: the cosine of what is left of two networks when the others explain theirs.

With unit residuals r_i about the mean of all, their Gram matrix G and a ridge λ, the inverse
Ω = (G + λI)⁻¹ holds for each pair the cosine of what no other network explains, the partial
correlation -Ω_ij / √(Ω_ii Ω_jj) (Whittaker 1990, chapter 5; with a ridge Schäfer & Strimmer 2005).
A neighbour of the culprit is like the suspect only through the culprit, and so is left alone; a
soup is like each of its parts. As λ grows it becomes the plain cosine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from g2d.core.types import Array

RIDGE = 0.1
"""λ, as a share of a residual's square: directions that many networks share count little."""

_PRUNED = 0.02
"""From this share of exact zeros on a suspect was pruned: where it is zero it is no evidence."""


@dataclass(frozen=True, eq=False)
class Likeness:
    """A suspect and n known networks, in one frame.

    Attributes:
        plain: cosine of the suspect's residual with each network's, (n,). partial: the same once
            the other networks have explained theirs, (n,): what is tested.
        between: partial cosines of the networks with each other, (n, n); NaN on the diagonal.
        gram, onto, sizes, size: products of unit residuals (n, n), with the suspect's (n,), and the
            norms of residuals, for `shares`.
    """

    plain: Array
    partial: Array
    between: Array
    gram: Array
    onto: Array
    sizes: Array
    size: float


def compare(networks: Tensor, suspect: Tensor, tensor_of: Tensor) -> Likeness:
    """Compare a suspect (P,) with networks (n, P), n at least 2; they are changed in place.

    Each tensor counts by what varies in it: coordinates are divided by the root mean square of the
    residuals in their tensor. The direction of the mean is left out, so that shrunk weights count
    as the same; so are coordinates that were pruned.

    Args:
        tensor_of: the tensor that each coordinate is of, (P,), as `Frame` has it.
    """
    networks, suspect, tensor_of = _seen(networks, suspect, tensor_of)
    mean = networks.mean(0)
    left, rest = networks.sub_(mean), suspect - mean
    weights = _weights(left, tensor_of)
    left.mul_(weights)
    rest = rest * weights
    middle = mean * weights
    middle = middle / middle.norm().clamp_min(1e-30)
    left.sub_(torch.outer(left @ middle, middle))
    rest = rest - (rest @ middle) * middle
    sizes, size = left.norm(dim=1).clamp_min(1e-30), rest.norm().clamp_min(1e-30)
    left.div_(sizes[:, None])
    gram, onto = (left @ left.T).double(), (left @ (rest / size)).double()
    inverse = torch.linalg.inv(gram + RIDGE * torch.eye(len(gram), dtype=torch.float64))
    scale = inverse.diagonal().sqrt()
    between = -inverse / torch.outer(scale, scale)
    between.fill_diagonal_(float("nan"))  # nobody is a null of himself
    # The suspect joins the matrix as one more row, whose inverse follows by the Schur complement.
    solved = inverse @ onto
    apart = (1 + RIDGE - onto @ solved).clamp_min(1e-12)
    partial = solved / (apart * inverse.diagonal() + solved.square()).sqrt()
    found = (onto, partial, between, gram, onto, sizes.double())
    return Likeness(*(tensor.numpy() for tensor in found), float(size))


def shares(likeness: Likeness, parts: list[int]) -> list[float]:
    """How much of each of `parts` is in the suspect: non-negative least squares of residuals.

    1.0 is the network itself; an even soup of two has 0.5 and 0.5.
    """
    from scipy.linalg import cholesky, solve_triangular
    from scipy.optimize import nnls

    # ‖r - R a‖² = ‖U a - U⁻ᵀ Rᵀ r‖² + constant, where UᵀU = RᵀR: small, whatever P is.
    upper = cholesky(likeness.gram[np.ix_(parts, parts)] + 1e-9 * np.eye(len(parts)))
    target = solve_triangular(upper, likeness.onto[parts], trans="T")
    found, _ = nnls(upper, target)
    return [float(a * likeness.size / likeness.sizes[i]) for a, i in zip(found, parts, strict=True)]


def _seen(networks: Tensor, suspect: Tensor, tensor_of: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Only coordinates that tell something: none that were pruned away."""
    pruned = (suspect == 0) & (networks != 0).any(0)
    if float(pruned.double().mean()) < _PRUNED:
        return networks, suspect, tensor_of
    return networks[:, ~pruned], suspect[~pruned], tensor_of[~pruned]


def _weights(left: Tensor, tensor_of: Tensor) -> Tensor:
    """One over the root mean square of residuals (n, P) in each coordinate's tensor, (P,)."""
    square = left.square().mean(0)
    count = torch.bincount(tensor_of).clamp_min(1)
    each = torch.bincount(tensor_of, square.double()) / count
    inverse = torch.where(each > 1e-20, each.clamp_min(1e-20).rsqrt(), torch.zeros_like(each))
    return inverse[tensor_of].float()
