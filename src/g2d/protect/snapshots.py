"""How a generation becomes a snapshot that answers: loaded, held in its ranges, watched in memory.

The one way, for a service and for one's own code. Where its weights come from, and whether they
may be trusted, is decided by whoever calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from g2d.core.types import State
from g2d.errors import CheckpointError, VaultError
from g2d.protect.integrity import MemoryWatch
from g2d.protect.ranges import Ranges, hold_in_ranges
from g2d.rotation.snapshot import Snapshot
from g2d.weights.layout import is_number, same_bits

__all__ = ["Inference", "build_snapshot"]


class Inference:
    """A frozen model as a function of tensors, (n, ...) to logits (n, classes), no gradients."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Answer a batch."""
        return self._model(x)


def _infinite(model: nn.Module, state: State) -> set[str]:
    """Names of tensors that are infinite by design: in a fresh model as in the state."""
    return {
        name
        for name, fresh in model.state_dict().items()
        if name in state and is_number(fresh) and bool(fresh.isinf().any())
        if same_bits(fresh, state[name])
    }


def build_snapshot(
    number: int,
    model: nn.Module,
    state: State,
    expires: float = math.inf,
    predict: Callable[[nn.Module], Callable[[Any], Any]] = Inference,
) -> Snapshot:
    """Load a verified state into a model and return it ready to answer; the model is frozen.

    Its memory is watched (`Snapshot.check`), and between two looks of the watch a bit that flipped
    before a forward pass began acts inside its layer's range.

    Args:
        model: built for this snapshot alone. predict: makes the forward pass of the model.

    Raises:
        VaultError: the state is not one of this model, or changed while it was loaded.
    """
    try:
        infinite = _infinite(model, state)
        model.load_state_dict(state)
        watch = MemoryWatch(model.eval().requires_grad_(False), state)
        hold_in_ranges(model, Ranges.of(state, infinite))
    except (RuntimeError, CheckpointError) as error:
        raise VaultError(
            f"generation {number} does not fit the task's model: {' '.join(str(error).split())}"
        ) from error
    if changed := watch.check():
        raise VaultError(f"generation {number} changed while it was loaded: {changed}.")
    return Snapshot(number, predict(model), watch.check, watch.interval, expires)
