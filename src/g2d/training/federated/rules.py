"""Aggregation: pure functions of the clients' updates, a matrix X (n, P) of finite floats.

Each returns a vector (P,) of float32; sums are taken in float64, row by row, so that the same rows
give the same bytes on any number of threads. Knows no torch. Which rule may be used with how many
malicious clients is in `aggregation`. They are our own and tested against ByzFL 0.0.11, which
cannot be imported without torchvision and matplotlib.
"""

from __future__ import annotations

import numpy as np

from g2d.core.types import Array

TOLERANCE = 1e-7
"""Of the geometric median: the last step, as a share of the median distance to it."""
MOST_STEPS = 500
"""Of Weiszfeld's algorithm."""


def _narrow(vector: Array) -> Array:
    with np.errstate(over="ignore"):  # what leaves float32's range is infinite, and not taken
        return np.asarray(vector, np.float32)


def _wide(X: Array) -> Array:
    return np.asarray(X, np.float64)


def norms(X: Array) -> Array:
    """Euclidean norms (n,) of the rows of X (n, P), float64."""
    wide = _wide(X)
    return np.sqrt(np.einsum("ij,ij->i", wide, wide))


def distances(X: Array) -> Array:
    """Euclidean distances (n, n) between rows, float64; from differences, which cancel nothing."""
    wide, n = _wide(X), len(X)
    found = np.zeros((n, n))
    for i in range(n - 1):
        found[i, i + 1 :] = found[i + 1 :, i] = norms(wide[i + 1 :] - wide[i])
    return found


def clip_norms(X: Array, times: float) -> Array:
    """Rows (n, P) whose norm is at most `times` the median norm; longer ones are scaled down."""
    lengths = norms(X)
    most = times * float(np.median(lengths))
    factors = np.minimum(1.0, most / np.maximum(lengths, np.finfo(np.float64).tiny))
    found, long = np.array(X, np.float32), factors < 1  # few are: the others stay as they are
    found[long] = _narrow(_wide(X[long]) * factors[long, None])
    return found


def mean(X: Array) -> Array:
    """The mean of the rows: federated averaging (McMahan et al. 2017), all clients alike."""
    return _narrow(X.mean(0, dtype=np.float64))


def median(X: Array) -> Array:
    """The median of each coordinate (Yin et al. 2018, arXiv 1803.01498)."""
    return _narrow(np.median(_wide(X), axis=0))


def trimmed_mean(X: Array, f: int) -> Array:
    """The mean of each coordinate without its f largest and f smallest values (Yin et al. 2018)."""
    return _narrow(np.sort(_wide(X), axis=0)[f : len(X) - f].mean(0))


def geometric_median(X: Array, tolerance: float = TOLERANCE) -> Array:
    """The point with the least sum of distances to the rows (Pillutla et al. 2022, Weiszfeld).

    Ends once a step is shorter than `tolerance` times the median distance, or after `MOST_STEPS`.
    Distances are at least a billionth of the median one: at a row itself the weight is not
    infinite. (Of the largest, one row of 1e38 made all others weigh alike, and moved the result.)
    """
    wide = _wide(X)
    z = np.median(wide, axis=0)
    for _ in range(MOST_STEPS):
        away = norms(wide - z)
        middle = float(np.median(away))
        if not middle:  # half of the rows lie at z: no point has a lesser sum
            break
        weights = 1.0 / np.maximum(away, 1e-9 * middle)
        step = np.einsum("i,ij->j", weights / weights.sum(), wide) - z
        z += step
        if np.sqrt((step * step).sum()) <= tolerance * middle:
            break
    return _narrow(z)


def krum_scores(X: Array, neighbours: int) -> Array:
    """Sum of squared distances (n,) of each row to its nearest `neighbours` others."""
    near = np.sort(distances(X) ** 2, axis=1)
    return np.asarray(near[:, 1 : 1 + max(1, neighbours)].sum(1))


def multi_krum(X: Array, f: int, neighbours: int | None = None) -> Array:
    """The mean of the n - f rows with the least Krum score (Blanchard et al. 2017).

    Args:
        neighbours: how many others a score counts; None: n - f - 2, as in the paper.
    """
    n = len(X)
    scores = krum_scores(X, n - f - 2 if neighbours is None else neighbours)
    chosen = np.sort(np.argsort(scores, kind="stable")[: n - f])
    return mean(X[chosen])


def bulyan(X: Array, f: int) -> Array:
    """Bulyan over Krum (El Mhamdi et al. 2018, arXiv 1802.07927, algorithm 2).

    Krum chooses n - 2f rows, one after the other, each among those that are left; of their values
    in each coordinate the n - 4f nearest to the median are averaged.
    """
    left, n = list(range(len(X))), len(X)
    chosen: list[int] = []
    squared = distances(X) ** 2
    while len(chosen) < n - 2 * f:
        inside = np.sort(squared[np.ix_(left, left)], axis=1)
        count = max(1, len(left) - f - 2)
        best = int(np.argmin(inside[:, 1 : 1 + count].sum(1)))
        chosen.append(left.pop(best))
    rows = np.sort(_wide(X)[sorted(chosen)], axis=0)
    away = np.abs(rows - np.median(rows, axis=0))
    nearest = np.argsort(away, axis=0, kind="stable")[: n - 4 * f]
    return _narrow(np.take_along_axis(rows, nearest, axis=0).mean(0))


def centred_clipping(X: Array, centre: Array, radius: float = 0.0, steps: int = 3) -> Array:
    """Centred clipping (Karimireddy et al. 2021, arXiv 2012.10333, algorithm 2).

        v <- v + mean_i (x_i - v) min(1, radius / |x_i - v|)

    Args:
        centre: where v begins (P,): the aggregate of the last round. radius: 0: in each step the
            median distance of the rows to v, so that no scale has to be known.
    """
    wide, v = _wide(X), _wide(centre).copy()
    for _ in range(steps):
        apart = wide - v
        away = norms(apart)
        most = radius or float(np.median(away))
        factors = np.minimum(1.0, most / np.maximum(away, np.finfo(np.float64).tiny))
        v += np.einsum("i,ij->j", factors / len(X), apart)
    return _narrow(v)


def mixed(X: Array, f: int) -> Array:
    """Nearest-neighbour mixing: each row (n, P) is the mean of the n - f nearest to it, itself too.

    What is put before a rule where clients' data differ (Allouah et al. 2023, arXiv 2302.01772).
    """
    wide, away = _wide(X), distances(X)
    np.fill_diagonal(away, -1.0)
    near = np.sort(np.argsort(away, axis=1, kind="stable")[:, : len(X) - f], axis=1)
    # Many rows have the same neighbours: of 20 with f = 4 far ones all honest rows have.
    means: dict[bytes, Array] = {}
    for row in near:
        if row.tobytes() not in means:
            means[row.tobytes()] = _narrow(_sum(wide, row) / len(row))
    return np.stack([means[row.tobytes()] for row in near])


def _sum(wide: Array, rows: Array) -> Array:
    """The sum (P,) of some rows, one after the other, as numpy adds them, but with no copy."""
    total = wide[rows[0]].copy()
    for row in rows[1:]:
        total += wide[row]
    return np.asarray(total)


def fltrust(X: Array, root: Array) -> Array:
    """FLTrust (Cao et al. 2021, arXiv 2012.13995, equations 2 to 4).

    Rows are scaled to the norm of `root` (P,), the server's own update, and weighted by the
    positive part of their cosine to it; zeros where no row points its way.
    """
    wide, own = _wide(X), _wide(root)
    length, tiny = float(np.sqrt((own * own).sum())), np.finfo(np.float64).tiny
    lengths = np.maximum(norms(X), tiny)
    cosines = np.einsum("ij,j->i", wide, own) / (lengths * max(length, tiny))
    trust = np.maximum(0.0, cosines)
    if not trust.sum():
        return np.zeros(X.shape[1], np.float32)
    return _narrow(np.einsum("i,ij->j", trust * length / lengths / trust.sum(), wide))
