"""What of a suspect each known network explains that no other one does: least squares.

    s = Σ a_i v_i + ε

with the known networks v_i of one frame. The coefficient a_i depends only on the residual of v_i,
what is left of it when all that the others have in common with it is taken away: for
a_i / √(G⁻¹)_ii is the suspect's product with that residual at unit length (Frisch-Waugh-Lovell). So
what a basin, its members or their polish share accuses nobody, a neighbour of the culprit is left
alone, and a soup is explained by its parts. Each tensor counts by one over its noise, which is
measured (feasible generalised least squares), for a quantised suspect has as many steps as tensors;
and within a tensor each direction does, for fine-tuning moves along few of them (`structure`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from g2d.core.types import Array
from g2d.protect.trace.scales import Scales
from g2d.protect.trace.structure import Basis, Matrix

_PRUNED = 0.02
"""From this share of exact zeros on a suspect was pruned: where it is zero it is no evidence."""

_ROUNDS = 3  # of noise by tensor
_TURNS = 2  # of noise by direction
_STEPS = 3  # of Gauss and Newton's, for scales
_SAMPLES = 64  # networks whose own differences tell the directions, at most
_WIDE = 8192  # coordinates that are in memory as float64 at once
_FLOOR = 1e-5  # least noise, as a share of a tensor's root mean square: float16 has 5e-4


@dataclass(frozen=True, eq=False)
class Likeness:
    """A suspect and n known networks, in one frame.

    Attributes:
        cosine: of residuals about the mean of the known networks, (n,); for people.
        coefficient: a, (n,). score: a over its standard error if noise were white, (n,).
        between: the same score of each network j (columns) for each network i (rows) as if i were
            the suspect, and not among the known ones, (n, n); NaN on the diagonal.
        gram, onto: weighted products of networks (n, n), and of the suspect with each (n,).
        unexplained: share of the suspect's square that no network explains.
    """

    cosine: Array
    coefficient: Array
    score: Array
    between: Array
    gram: Array
    onto: Array
    unexplained: float


def compare(
    networks: Tensor,
    suspect: Tensor,
    tensor_of: Tensor,
    drift: Tensor | None = None,
    matrices: Sequence[Matrix] | None = None,
    scales: Scales | None = None,
) -> Likeness:
    """Explain a suspect (P,) by networks (n, P) of one frame.

    Args:
        tensor_of: the tensor that each coordinate is of, (P,) and ascending, as `Frame` has it.
        drift: directions (k, P) in which a suspect may have moved, of whomever it is; they explain
            what they can, and nobody is told of them.
        matrices: of each tensor: the noise is then measured by direction, not by tensor alone.
            What was pruned is compared by tensor in any case: its matrices have holes.
        scales: of hidden units, which are fitted, too.
    """
    n = len(networks)
    known = networks if drift is None else torch.cat([networks, drift])
    moved, kept = len(known), _seen(networks, suspect)
    if not kept.all():
        known, suspect, tensor_of = known[:, kept], suspect[kept], tensor_of[kept]
        scales = None if scales is None else scales.seen(kept)
    products = _Products.of(known, suspect, torch.bincount(tensor_of))
    if scales is not None:
        products, known, suspect = _settled(n, products, known, suspect, tensor_of, scales)
    free = max(1.0, len(suspect) - len(known))
    fit = _by_tensor(products, free)
    if matrices is not None and kept.all():
        fit = _by_direction(fit, (n, moved), known, suspect, tensor_of, matrices, free)
    score = fit.a / np.sqrt(np.maximum(np.diag(fit.inverse), 1e-300))
    between = _between(fit.inverse, free)[:n, :n]
    gram, onto = fit.gram[:n, :n], fit.onto[:n]
    cosine = _cosines(gram, onto, fit.energy)
    return Likeness(cosine, fit.a[:n], score[:n], between, gram, onto, fit.unexplained)


@dataclass(frozen=True, eq=False)
class _Products:
    """Products in each of T tensors: of k vectors (T, k, k), with the suspect (T, k), its square.

    `counts`: coordinates of each tensor, (T,).
    """

    gram: Array
    onto: Array
    energy: Array
    counts: Array

    @classmethod
    def of(cls, vectors: Tensor, suspect: Tensor, sizes: Tensor) -> _Products:
        grams, ontos, squares = [], [], []
        for part, found in zip(
            vectors.split(sizes.tolist(), 1), suspect.split(sizes.tolist()), strict=True
        ):
            wide, target = part.double(), found.double()
            grams.append((wide @ wide.T).numpy())
            ontos.append((wide @ target).numpy())
            squares.append(float(target.square().sum()))
        return cls(np.stack(grams), np.stack(ontos), np.array(squares), sizes.numpy())

    def with_ways(
        self, own: Tensor, cross: Tensor, suspect: Tensor, tensor_of: Tensor
    ) -> _Products:
        """With further vectors, and another suspect, by what `Scales.products` gives.

        The last column of `cross` is of the suspect, the others are of the vectors that are here.
        """
        square = torch.bincount(tensor_of, suspect.double().square(), minlength=len(self.counts))
        both, onto = cross[:, :, :-1].numpy(), cross[:, :, -1].numpy()
        gram = np.concatenate([
            np.concatenate([self.gram, both.transpose(0, 2, 1)], 2),
            np.concatenate([both, own.numpy()], 2),
        ], 1)  # fmt: skip
        return replace(
            self, gram=gram, onto=np.concatenate([self.onto, onto], 1), energy=square.numpy()
        )

    def about(self, vectors: Tensor, suspect: Tensor) -> _Products:
        """The same of another suspect."""
        parts = zip(
            *(x.split(self.counts.tolist(), -1) for x in (vectors, suspect)),
            strict=True,
        )
        onto = [(part.double() @ found.double()).numpy() for part, found in parts]
        return replace(self, onto=np.stack(onto))


def _settled(
    n: int,
    products: _Products,
    known: Tensor,
    suspect: Tensor,
    tensor_of: Tensor,
    scales: Scales,
) -> tuple[_Products, Tensor, Tensor]:
    """A suspect with the scales that explain it best by n networks; what is known, and directions.

    Directions in which scales move it stay among the known: they are found no better than that.
    A unit that was pruned away has none.
    """
    at, tensors = scales.reference, len(products.counts)
    alive = scales.directions().norm(dim=1) > 0
    for last in (*[False] * _STEPS, True):
        vectors = torch.cat([known, suspect[None]])
        own, cross = scales.products(at, vectors, tensor_of, tensors)
        joined = products.with_ways(own[:, alive][:, :, alive], cross[:, alive], suspect, tensor_of)
        if last:
            break
        a = _by_tensor(joined, max(1.0, len(suspect) - joined.gram.shape[1])).a
        found = np.zeros(scales.units)
        found[alive.numpy()] = a[len(known) :]
        suspect = scales.undone(suspect, found)
        products = products.about(known, suspect)
        explained = torch.from_numpy(a[:n]).float() @ known[:n]
        at = explained if bool(explained.any()) else at
    return joined, torch.cat([known, scales.directions(at)[alive]]), suspect


@dataclass(frozen=True, eq=False)
class _Fit:
    """A weighted least squares: products, the inverse of `gram`, coefficients `a`.

    `energy`: the suspect's own weighted square. `noise`: of each tensor, (T,).
    """

    gram: Array
    onto: Array
    inverse: Array
    a: Array
    energy: float
    unexplained: float
    noise: Array


def _by_tensor(products: _Products, free: float) -> _Fit:
    """Each tensor counts by one over its noise, which is measured in turn with coefficients."""
    G, b, energy = products.gram, products.onto, products.energy
    counts = np.maximum(products.counts, 1)
    floor = np.square(_FLOOR) * energy / counts + 1e-30
    noise = np.maximum(energy / counts, floor)
    for _ in range(_ROUNDS):
        a = _inverse(np.tensordot(1 / noise, G, 1)) @ ((1 / noise) @ b)
        left = energy - 2 * b @ a + (G @ a) @ a
        noise = np.maximum(left / counts * counts.sum() / free, floor)
    gram, onto = np.tensordot(1 / noise, G, 1), (1 / noise) @ b
    inverse = _inverse(gram)
    unexplained = float(left.sum() / max(energy.sum(), 1e-30))
    return _Fit(
        gram, onto, inverse, inverse @ onto, float(energy @ (1 / noise)), unexplained, noise
    )


def _by_direction(
    first: _Fit,
    upto: tuple[int, int],
    known: Tensor,
    suspect: Tensor,
    tensor_of: Tensor,
    matrices: Sequence[Matrix],
    free: float,
) -> _Fit:
    """Each direction counts by one over its noise, which the suspect itself tells.

    Of `known` the first are networks, up to the next drifts: these tell how noise lies.
    """
    (n, moved), sizes = upto, torch.bincount(tensor_of)
    weight = torch.from_numpy(1 / first.noise)[tensor_of]
    samples = _differences(first.gram[:moved, :moved], known[:moved], n, weight)
    basis = Basis.of(samples, matrices, sizes.tolist())
    known, suspect = basis.turned(known), basis.turned(suspect)
    energy = torch.bincount(tensor_of, suspect.double().square(), minlength=len(sizes))
    floor = (np.square(_FLOOR) * energy / sizes.clamp_min(1) + 1e-30)[tensor_of]
    a = first.a
    for _ in range(_TURNS):
        left = _residual(known, suspect, a)
        variance = torch.maximum(basis.variance(left) * (len(left) / free), floor)
        gram, onto = _products(known, suspect, 1 / variance)
        inverse = _inverse(gram)
        a = inverse @ onto
    whole = float((suspect.double().square() / variance).sum())
    left = _residual(known, suspect, a)
    unexplained = float(left.square().sum() / energy.sum().clamp_min(1e-30))
    return _Fit(gram, onto, inverse, a, whole, unexplained, first.noise)


def _differences(gram: Array, known: Tensor, n: int, weight: Tensor) -> Tensor:
    """Examples (m, P) of how the like of a suspect's noise lies: by them directions are found.

    Half of their weight is of drifts, without what the n networks explain of them; half of what
    each network has that no other one has, for that was trained, too.
    """
    inverse = _inverse(gram[:n, :n])
    rows = np.unique(np.linspace(0, n - 1, _SAMPLES).astype(int))
    own = torch.from_numpy((inverse / np.diag(inverse)[:, None])[rows]).float() @ known[:n]
    explained = torch.from_numpy(gram[n:, :n] @ inverse).float()
    found = []
    for some in (own, known[n:] - explained @ known[:n]):
        length = (some.double() * weight.sqrt()).norm(dim=1, keepdim=True).clamp_min(1e-150)
        found.append(some / length / max(1, len(some)) ** 0.5)
    return torch.cat(found)


def _products(known: Tensor, suspect: Tensor, weight: Tensor) -> tuple[Array, Array]:
    """Weighted products of networks (n, n), and of the suspect with each (n,), in float64."""
    gram = torch.zeros(len(known), len(known), dtype=torch.float64)
    onto = torch.zeros(len(known), dtype=torch.float64)
    for wide, target, by in zip(
        *(x.split(_WIDE, -1) for x in (known, suspect, weight)), strict=True
    ):
        weighted = wide.double() * by
        gram += weighted @ wide.double().T
        onto += weighted @ target.double()
    return gram.numpy(), onto.numpy()


def _residual(known: Tensor, suspect: Tensor, a: Array) -> Tensor:
    """What `a` networks leave of a suspect, (P,) float64."""
    by = torch.from_numpy(a)
    parts = zip(known.split(_WIDE, 1), suspect.split(_WIDE), strict=True)
    return torch.cat([target.double() - by @ wide.double() for wide, target in parts])


def shares(likeness: Likeness, parts: Sequence[int]) -> list[float]:
    """How much of each of `parts` is in the suspect: non-negative least squares on these alone.

    1.0 is the network itself; an even soup of two has 0.5 and 0.5.
    """
    from scipy.linalg import cholesky, solve_triangular
    from scipy.optimize import nnls

    # ‖s - V a‖² = ‖U a - U⁻ᵀ Vᵀ s‖² + constant, where UᵀU = VᵀV: small, whatever P is.
    gram = likeness.gram[np.ix_(parts, parts)]
    upper = cholesky(gram + 1e-9 * np.trace(gram) / len(gram) * np.eye(len(gram)))
    target = solve_triangular(upper, likeness.onto[list(parts)], trans="T")
    return [float(share) for share in nnls(upper, target)[0]]


def _inverse(gram: Array) -> Array:
    """The inverse; networks that are mixtures of one another are kept apart, and score nothing."""
    size = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    scaled = gram / np.outer(size, size)
    return np.linalg.inv(scaled + 1e-10 * np.eye(len(gram))) / np.outer(size, size)


def _between(inverse: Array, free: float) -> Array:
    """Scores of networks for one another: what leaving one out does to the inverse is known."""
    own = np.diag(inverse)
    without = np.maximum(own[None, :] - np.square(inverse) / own[:, None], 1e-300)
    np.fill_diagonal(without, 1.0)
    coefficient, noise = -inverse / own[:, None], 1 / (own[:, None] * free)
    found = coefficient / np.sqrt(noise * without)
    np.fill_diagonal(found, np.nan)
    return found


def _cosines(gram: Array, onto: Array, energy: float) -> Array:
    """Cosines of residuals about the networks' mean, by their products alone."""
    middle = gram.mean(0)
    whole = gram.mean()
    rest = onto - middle - onto.mean() + whole  # (v_i - m) · (s - m)
    own = np.maximum(np.diag(gram) - 2 * middle + whole, 1e-30)
    size = max(energy - 2 * onto.mean() + whole, 1e-30)
    return np.clip(rest / np.sqrt(own * size), -1.0, 1.0)


def _seen(networks: Tensor, suspect: Tensor) -> Tensor:
    """Which coordinates (P,) tell something: none that were pruned away."""
    pruned = (suspect == 0) & (networks != 0).any(0)
    if float(pruned.double().mean()) < _PRUNED:
        return torch.ones_like(pruned)
    return ~pruned
