"""Packing "batch": one input a slot, one ciphertext a number, and so no rotations at all.

The cost of a request is that of a network whose every product is one of ciphertexts, whether one
input is asked for or all that fit (CryptoNets: Gilad-Bachrach et al. 2016): much for one, little
for each of thousands. Every value of the widest activation is a ciphertext in memory.

A query is filled up with inputs of zero, at least two, so that a client can see whether an answer
is one: there the network's output for zero stands twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from g2d.protect.homomorphic.errors import Unsupported
from g2d.protect.homomorphic.matrices import Affine, Step, pattern, summed
from g2d.protect.homomorphic.seal import Level, levels, sealapi

if TYPE_CHECKING:
    from g2d.protect.homomorphic.encoding import Encoded
    from g2d.protect.homomorphic.keys import EvaluationKeys
    from g2d.protect.homomorphic.plan import Plan

__all__ = ["SPARE", "batch_steps", "run_batch"]

SPARE = 2
"""Slots that no input may take."""

_MOST_CIPHERTEXTS = 2048
"""Of one activation: 2 GB, at N = 16384 and four primes."""


def batch_steps(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps, their pooling as sums: additions cost a third of products.

    Raises:
        Unsupported: an activation has too many numbers, or a step too many products.
    """
    first, *rest = steps
    found = (first, *(summed(step) for step in rest))
    for step in found:
        most = max(math.prod(step.shape), math.prod(step.output))
        if most > _MOST_CIPHERTEXTS:
            raise Unsupported(
                f"layer {step.name!r} has {most} numbers before or behind it, and in the packing"
                f" 'batch' {_MOST_CIPHERTEXTS} at most: 'latency' would do"
            )
        pattern(step)
    return found


def run_batch(plan: Plan, encoded: Encoded, keys: EvaluationKeys, sources: list[Any]) -> list[Any]:
    """All steps; the logits' ciphertexts, at level 1."""
    here = levels(plan.parameters)
    scales = plan.parameters.scales()
    for i, (step, affine) in enumerate(zip(plan.steps, encoded.affines, strict=True)):
        level, below = here[plan.level(i)], here[plan.level(i) - 1]
        _, weights, made = scales[i]
        if step.pooled > 1:
            sources = _windows(step, sources, level)
        found = []
        for row in range(affine.matrix.shape[0]):
            total = _row(affine, row, sources, level, weights)
            level.evaluator.rescale_to_next_inplace(total)
            bias = _constant(below, affine.bias[row], made)
            if not bias.is_zero():
                below.evaluator.add_plain_inplace(total, bias)
            if step.activation is not None:
                below.evaluator.square_inplace(total)
                below.evaluator.relinearize_inplace(total, keys.squares[below.primes])
            found.append(total)
        sources = found
    return sources


def _row(affine: Affine, row: int, sources: list[Any], level: Level, scale: float) -> Any:
    """One number of a step's result.

    A row of zeros becomes the least weight there is, since SEAL makes no ciphertext of zero that
    would not be readable.
    """
    start, stop = affine.matrix.indptr[row : row + 2]
    columns, values = affine.matrix.indices[start:stop], affine.matrix.data[start:stop]
    kept = np.abs(values) * scale >= 0.5
    if not kept.any():
        columns, values, kept = np.array([0]), np.array([1 / scale]), np.array([True])
    total = None
    for column, value in zip(columns[kept].tolist(), values[kept].tolist(), strict=True):
        product = sealapi().Ciphertext()
        plain = _constant(level, value, scale)
        level.evaluator.multiply_plain(sources[column], plain, product)
        if total is None:
            total = product
        else:
            level.evaluator.add_inplace(total, product)
    return total


def _constant(level: Level, value: float, scale: float) -> Any:
    """The same number in every slot."""
    found = sealapi().Plaintext()
    level.encoder.encode(float(value), level.id, scale, found)
    return found


def _windows(step: Step, sources: list[Any], level: Level) -> list[Any]:
    """Sums of the windows of a step's pooling."""
    channels, height, width = step.shape
    side = step.pooled
    grid = np.arange(len(sources)).reshape(channels, height, width)
    grid = grid[:, : height // side * side, : width // side * side]
    windows = grid.reshape(channels, height // side, side, width // side, side)
    found = []
    for window in windows.transpose(0, 1, 3, 2, 4).reshape(-1, side * side).tolist():
        total = sealapi().Ciphertext()
        level.evaluator.add_many([sources[one] for one in window], total)
        found.append(total)
    return found
