"""How a generation becomes a snapshot that answers: loaded, hidden, held in ranges, watched.

The one way, for a service and for one's own code. Where its weights come from, and whether they
may be trusted, is decided by whoever calls.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from g2d.core.devices import CPU, place
from g2d.core.types import Array, State
from g2d.errors import CheckpointError, VaultError
from g2d.protect.integrity import MemoryWatch
from g2d.protect.layout import PLAIN, Concealed, conceal
from g2d.protect.ranges import Ranges, hold_in_ranges
from g2d.protect.turns import TURNS
from g2d.rotation.snapshot import Snapshot
from g2d.weights.layout import is_number, same_bits

__all__ = ["ArrayInference", "Inference", "build_snapshot"]


class Inference:
    """A frozen model as a function of tensors, (n, ...) to logits (n, classes), no gradients.

    One call at a time, from whichever thread, and none while a network that is being loaded is
    probed (`protect.turns`). A model may keep what it computes on itself: two calls at once would
    mix their answers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._calls = model, threading.RLock()

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Answer a batch."""
        with self._calls, TURNS.answering():
            return self._model(x)


class ArrayInference:
    """A frozen model as a function of arrays; one call at a time, as `Inference`."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._calls = model, threading.Lock()

    @torch.inference_mode()
    def __call__(self, x: Array) -> Array:
        """Answer a batch."""
        # float(): NumPy has no bfloat16, and answers are float32 whatever the model computes in.
        with self._calls, TURNS.answering():
            return np.asarray(self._model(torch.from_numpy(x)).float().numpy())


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
    probe: Tensor | None = None,
    warn: Callable[[str], None] = lambda _: None,
    device: str = CPU,
) -> Snapshot:
    """Load a verified state into a model and return it ready to answer; the model is frozen.

    What was loaded is compared with what was verified, and only then gets a secret layout of its
    own (`protect.layout`), which is the last step: from then on the hidden form is what is watched
    (`Snapshot.check`), and what a bit that flips between two looks is held in the ranges of.

    Args:
        model: built for this snapshot alone. predict: makes the forward pass of the model.
        probe: inputs (n, ...) on which hiding must leave the logits; None: the layout stays plain.
        warn: called with a line where units could be hidden and were not. device: where it answers.

    Raises:
        VaultError: the state is not one of this model, or changed while it was loaded.
        DeviceError: the device's memory is too small.
    """
    try:
        infinite = _infinite(model, state)
        model.load_state_dict(state)
        watch = MemoryWatch(model.eval().requires_grad_(False), state)
        hidden, changed = Concealed(PLAIN, state), watch.check()
        if probe is not None and not changed:
            hidden = conceal(model, state, probe)
            if hidden.state is state:  # else it was compared with what was hidden
                changed = [name for name in watch.check() if name in state]
            watch = MemoryWatch(model, hidden.state)
            changed = changed or watch.check()
        hold_in_ranges(model, Ranges.of(hidden.state, infinite))
        if device != CPU:
            place(model, device)
            changed = changed or watch.check()
    except (RuntimeError, CheckpointError) as error:
        raise VaultError(
            f"generation {number} does not fit the task's model: {' '.join(str(error).split())}"
        ) from error
    if changed:
        raise VaultError(f"generation {number} changed while it was loaded: {changed}.")
    if hidden.failed:
        warn(f"generation {number} is served with its units in plain order: {hidden.failed}")
    return Snapshot(number, predict(model), watch.check, watch.interval, expires, hidden.layout)
