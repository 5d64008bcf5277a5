"""How networks of one basin differ, and what is fine-tuned from them: not alike in all directions.

What training leaves in a matrix is a sum of outer products, so its rows are correlated with one
another, and its columns (the Kronecker structure of Martens & Grosse 2015, ICML, and of Shampoo:
Gupta et al. 2018, ICML). Products of two such differences lie in few directions, and a standard
error that counts every coordinate as one more draw is far too small. In the eigenvectors of both
sides coordinates are nearly uncorrelated; each can then count by one over its own variance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Matrix = tuple[int, int] | None
"""Rows and columns of a tensor, all of whose coordinates are compared; None: it has none."""

_WIDEST = 1024  # a side with more has its coordinates left as they are: eigenvectors cost n^3
_CHUNK = 64  # vectors that are in memory as float64 at once
_PRIOR = 4.0  # samples that the product of a row's and a column's mean counts for
_LEAST = 1e-4  # of a tensor's mean square: no direction is free of noise
_SHARES = (0, 0.003, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97, 0.99, 0.997, 0.9999)


@dataclass(frozen=True, eq=False)
class Basis:
    """Orthogonal directions of P coordinates, tensor by tensor, in which differences lie.

    Attributes:
        matrices: of each tensor. sizes: coordinates of each. turns: eigenvectors of its rows and
            of its columns; None: they stay. spread: the expected square of a difference along each
            direction, (P,); its mean over a tensor is 1.
    """

    matrices: Sequence[Matrix]
    sizes: Sequence[int]
    turns: Sequence[tuple[Tensor | None, Tensor | None]]
    spread: Tensor

    @classmethod
    def of(cls, samples: Tensor, matrices: Sequence[Matrix], sizes: Sequence[int]) -> Basis:
        """Learn it from differences (m, P), each of them at unit length, say."""
        blocks = samples.double().split(list(sizes), 1)
        turns, spread = [], []
        for block, matrix in zip(blocks, matrices, strict=True):
            turn = _eigenvectors(block, matrix)
            square = _turned(block, matrix, turn).square().mean(0)
            turns.append(turn)
            spread.append(_shrunk(square, matrix, len(samples)))
        return cls(matrices, sizes, turns, torch.cat(spread))

    def turned(self, vectors: Tensor) -> Tensor:
        """Coordinates of vectors (..., P) along the directions, float32; lengths stay."""
        flat = vectors.reshape(-1, vectors.shape[-1])
        made = torch.empty(flat.shape, dtype=torch.float32)
        for some, into in zip(flat.split(_CHUNK), made.split(_CHUNK), strict=True):
            blocks, places = some.split(list(self.sizes), 1), into.split(list(self.sizes), 1)
            for block, out, matrix, turn in zip(
                blocks, places, self.matrices, self.turns, strict=True
            ):
                out.copy_(_turned(block.double(), matrix, turn))
        return made.view(vectors.shape)

    def variance(self, residual: Tensor) -> Tensor:
        """The variance of noise along each direction, (P,), given one draw of it, (P,) turned.

        In each tensor a share of it is as wide as differences are, and the rest as wide in all
        directions (a quantised or noisy copy's): the share with the greatest likelihood.
        """
        parts = []
        for square, spread in self._split(residual.double().square(), self.spread):
            best, found = -np.inf, square
            for share in _SHARES:
                shape = 1 - share + share * spread
                scale = float((square / shape).mean().clamp_min(1e-300))
                likelihood = -float(shape.log().sum()) - len(square) * np.log(scale)
                if likelihood > best:
                    best, found = likelihood, scale * shape
            parts.append(found)
        return torch.cat(parts)

    def _split(self, *vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        return zip(*(v.split(list(self.sizes)) for v in vectors), strict=True)


def _eigenvectors(block: Tensor, matrix: Matrix) -> tuple[Tensor | None, Tensor | None]:
    """Of the rows' and of the columns' second moments of samples (m, size)."""
    if matrix is None:
        return None, None
    wide = block.view(len(block), *matrix)
    rows = torch.einsum("moi,mpi->op", wide, wide) if 1 < matrix[0] <= _WIDEST else None
    columns = torch.einsum("moi,moj->ij", wide, wide) if 1 < matrix[1] <= _WIDEST else None
    left, right = (
        None if moment is None else torch.linalg.eigh(moment)[1] for moment in (rows, columns)
    )
    return left, right


def _turned(block: Tensor, matrix: Matrix, turn: tuple[Tensor | None, Tensor | None]) -> Tensor:
    left, right = turn
    if matrix is None or (left is None and right is None):
        return block
    wide = block.reshape(*block.shape[:-1], *matrix)
    wide = wide if left is None else left.T @ wide
    wide = wide if right is None else wide @ right
    return wide.reshape(block.shape)


def _shrunk(square: Tensor, matrix: Matrix, samples: int) -> Tensor:
    """Mean squares (size,) drawn to what rows and columns say, or the whole tensor's mean."""
    mean = square.mean().clamp_min(1e-300)
    if matrix is None:
        return torch.ones_like(square)
    wide = square.view(matrix)
    if min(matrix) > 1:
        prior = (wide.mean(1, keepdim=True) * wide.mean(0) / mean).flatten()
    else:
        prior = torch.full_like(square, float(mean))
    drawn = (samples * square + 2 * _PRIOR * prior) / (samples + 2 * _PRIOR) / mean + _LEAST
    return drawn / drawn.mean()
