"""One generation's weights as CKKS plaintexts, ready before the generation is due."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from g2d.protect.homomorphic.errors import HomomorphicError
from g2d.protect.homomorphic.matrices import Affine, State, affines
from g2d.protect.homomorphic.packing import Program
from g2d.protect.homomorphic.plan import Plan
from g2d.protect.homomorphic.seal import Level, levels

__all__ = ["Encoded", "encode"]

_MOST_WEIGHT = 2.0**18
"""Beyond it a product with 1 would not fit into the primes that are left behind the last step."""

_MOST_NUMBERS = 1 << 21
"""Of the vectors of a step that are laid out at a time: 16 MB."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """A generation's plaintexts; they depend on no client.

    Attributes:
        digest: of the plan. products: for each step, a plaintext a term, None where all is zero.
        biases: for each step, what is added behind it, None where that is zero. nbytes: of all.
        affines: in the packing "batch", instead of both: its constants are encoded on their way.
    """

    digest: str
    products: tuple[tuple[Any, ...], ...]
    biases: tuple[Any, ...]
    nbytes: int
    affines: tuple[Affine, ...] = ()

    def __repr__(self) -> str:
        return f"Encoded({self.digest[:12]}, {self.nbytes >> 20} MB)"


def encode(plan: Plan, state_dict: State) -> Encoded:
    """Encode a state dict for a plan.

    What is zero everywhere is left out, so that a pruned network's time tells so.

    Raises:
        HomomorphicError: an array is missing, foreign, of another shape or not finite; or all
            weights of a step are zero, which would make its answers readable by anybody.
    """
    if plan.packing == "batch":
        return _encode_batch(plan, affines(plan.steps, state_dict))
    here, parameters = levels(plan.parameters), plan.parameters
    products, biases, count = [], [], 0
    scales = parameters.scales()
    for i, affine in enumerate(affines(plan.steps, state_dict)):
        program, (_, weights, made) = plan.programs[i], scales[i]
        level, below = here[plan.level(i)], here[plan.level(i) - 1]
        found = tuple(_products(program, affine, level, weights, parameters.slots))
        if all(one is None for one in found):
            raise _all_zero(plan, i)
        products.append(found)
        biases.append(_bias(program, affine, below, made, parameters.slots))
        count += sum(one is not None for one in found) * level.primes + below.primes
    nbytes = count * parameters.degree * 8
    return Encoded(plan.digest, tuple(products), tuple(biases), nbytes)


def _encode_batch(plan: Plan, found: list[Affine]) -> Encoded:
    """Check what `run_batch` encodes later."""
    for i, affine in enumerate(found):
        for values in (affine.matrix.data, affine.bias):
            _check_size(values)
        if not affine.matrix.data.any():
            raise _all_zero(plan, i)
    nbytes = sum(one.matrix.data.nbytes + one.matrix.indices.nbytes for one in found)
    return Encoded(plan.digest, (), (), nbytes, tuple(found))


def _all_zero(plan: Plan, step: int) -> HomomorphicError:
    name = plan.steps[step].name
    return HomomorphicError(f"all weights of the step at {name!r} are zero: nothing to infer")


def _products(
    program: Program, affine: Affine, level: Level, scale: float, slots: int
) -> Iterator[Any]:
    """A plaintext for each term."""
    entries = program.entries
    values = np.asarray(affine.matrix[entries.row, entries.column]).ravel()
    _check_size(values)
    order = np.argsort(entries.term, kind="stable")
    term, slot, values = entries.term[order], entries.slot[order], values[order]
    many = max(1, _MOST_NUMBERS // entries.period)
    for start in range(0, len(program.terms), many):
        stop = min(start + many, len(program.terms))
        first, last = np.searchsorted(term, (start, stop))
        laid = np.zeros((stop - start, entries.period))
        laid[term[first:last] - start, slot[first:last]] = values[first:last]
        for row in laid:
            yield _plain(row, level, scale, slots)


def _bias(program: Program, affine: Affine, level: Level, scale: float, slots: int) -> Any:
    made = program.made
    row = np.zeros(made.period)
    _check_size(affine.bias)
    row[made.slots] = affine.bias
    return _plain(row, level, scale, slots)


def _check_size(values: np.ndarray) -> None:
    if (largest := np.abs(values).max(initial=0.0)) >= _MOST_WEIGHT:
        raise HomomorphicError(f"a weight of {largest:.3g} is too large: {_MOST_WEIGHT:g} at most")


def _plain(row: np.ndarray, level: Level, scale: float, slots: int) -> Any:
    """A plaintext of `row`, repeated; None where it would be zero: SEAL multiplies by no zero."""
    if not row.any():
        return None
    found = level.encode(row.tolist() * (slots // len(row)), scale)
    return None if found.is_zero() else found
