"""The gate on the basin: a generation counts as new if its basin was not exposed lately."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from g2d.core.types import State
from g2d.defence.gates.view import CandidateView, GateResult
from g2d.tasks.inference import accuracy
from g2d.training.basins import BARRIER, midpoint

_LOOKED_AT = 500  # gate examples on which the accuracy at a midpoint is taken


def basin_gate(view: CandidateView) -> GateResult | None:
    """Rotations since a generation was exposed that is linearly connected to the candidate.

    Two networks share a basin if the midpoint of their parameters is about as accurate as they are
    (linear mode connectivity, Frankle et al. 2020, arXiv 1912.05671). Attacks on exposed networks
    of a candidate's own basin work several times better on it than those on other basins.
    `gates.history` exposed generations are looked at, the newest first.
    """
    limit = view.settings.basin_rest
    if limit == 0:
        return None
    met = _met(view)
    if met is None:
        return GateResult(
            "basin", True, float(max(limit, len(view.exposed_states) + 1)), float(limit)
        )
    number, rested = met
    passed = rested >= limit
    reason = (
        ""
        if passed
        else f"generation {number} is of the candidate's basin and was exposed {rested} rotations "
        f"ago; at least {limit} are required"
    )
    return GateResult("basin", passed, float(rested), float(limit), reason)


def _met(view: CandidateView) -> tuple[int, int] | None:
    """The newest exposed generation of the candidate's basin, and how many rotations back it is."""
    split = view.reference.split.sample(_LOOKED_AT, torch.Generator().manual_seed(0))
    own = accuracy(view.model, split)
    for back, number in enumerate(sorted(view.exposed_states, reverse=True), start=1):
        middle = midpoint(view.state, view.exposed_states[number])
        found = accuracy(partial(_answers, view.model, middle), split)
        if own - found <= BARRIER:
            return number, back
    return None


def _answers(model: nn.Module, state: State, x: Tensor) -> Tensor:
    return functional_call(model, dict(state), (x,), tie_weights=False)
