"""Large frames: a span of members fitted piece by piece, in files where memory would end.

Below `PIECEWISE` bytes of members nothing here is used; what lies above differs from it by
rounding alone. Beyond `MAPPED` bytes, vectors and basis lie in temporary files that are mapped
into memory: the system keeps of them what fits.
"""

from __future__ import annotations

import os
import tempfile

import torch
from torch import Tensor

PIECEWISE = 1 << 28
"""Bytes of members from which on a span is fitted in pieces: 24 of 2.8 million parameters."""
MAPPED = 1 << 31
"""Bytes of a matrix from which on it lies in a file: 24 members of 22 million parameters."""
PIECE = 1 << 20
"""Columns that are worked on together."""


def room(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A matrix (rows, columns) to fill, in memory or in a file that goes with the last use.

    The file lies in the system's folder for temporary files (`TMPDIR`).
    """
    size = rows * columns
    if size * dtype.itemsize < MAPPED:
        return torch.empty(rows, columns, dtype=dtype)
    handle, path = tempfile.mkstemp(prefix="g2d-")
    try:
        os.close(handle)
        return torch.from_file(path, shared=True, size=size, dtype=dtype).view(rows, columns)
    finally:
        if os.name == "posix":  # what is mapped stays until the mapping goes
            os.unlink(path)


def is_large(members: Tensor) -> bool:
    """Whether a span of members (K, P) is fitted in pieces."""
    return members.nbytes >= PIECEWISE


def gram_of(members: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (P,) of members (K, P), and the products (K, K), float64, of what is left."""
    mean = torch.empty(members.shape[1], dtype=members.dtype)
    gram = torch.zeros(len(members), len(members), dtype=torch.float64)
    for begin in range(0, members.shape[1], PIECE):
        columns = slice(begin, begin + PIECE)
        part = members[:, columns]
        mean[columns] = part.mean(0)
        centred = part - mean[columns]
        gram += (centred @ centred.T).double()
    return mean, gram


def combined(weights: Tensor, members: Tensor, mean: Tensor) -> Tensor:
    """`weights` (r, K) times members less their mean (K, P): shape (r, P)."""
    found = room(len(weights), members.shape[1], members.dtype)
    for begin in range(0, members.shape[1], PIECE):
        columns = slice(begin, begin + PIECE)
        found[:, columns] = weights @ (members[:, columns] - mean[columns])
    return found
