"""A watch over the weights of a live model in memory: which tensors changed, and healing them.

An attacker who writes to memory, or a failing chip, flips single bits; nothing else notices. When
to check is the caller's schedule; `MemoryWatch.interval` says how often that costs one per cent of
a core.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from g2d.core.types import State
from g2d.errors import CheckpointError
from g2d.weights.layout import is_extra

__all__ = ["MemoryWatch"]

_SHARE = 0.01  # of a core
_LONGEST = 0.5  # seconds: a change is found within one, if a check costs no more than 5 ms


class MemoryWatch:
    """SHA-256 of every parameter and buffer of a model, and what has changed since.

    With a `state`, digests are of the state dict and not of the model: its first `check()` tells
    whether what was loaded is what was verified. Safe to use from one thread at a time, while
    others run the model.

    Args:
        state: in the model's own dtypes, as `load_state_dict` took it. Extra state is not watched.

    Raises:
        CheckpointError: `state` has a tensor that the model lacks.
    """

    def __init__(self, model: nn.Module, state: State | None = None) -> None:
        self._model = model
        state = {name: tensor for name, tensor in (state or {}).items() if not is_extra(name)}
        self._digests = {name: _digest(tensor) for name, tensor in _tensors(model)}
        if foreign := sorted(state.keys() - self._digests.keys()):
            raise CheckpointError(f"the model has no tensor {foreign[0]!r}: another task's state?")
        self._digests |= {name: _digest(tensor) for name, tensor in state.items()}

    @cached_property
    def interval(self) -> float:
        """Seconds between checks: 0.5, or longer where a model is so large that it costs more."""
        return max(_LONGEST, min(self._cost() for _ in range(3)) / _SHARE)

    def _cost(self) -> float:
        began = time.thread_time()
        self.check()
        return time.thread_time() - began

    def check(self) -> list[str]:
        """Hash every tensor again; return the names of those changed, gone or new, sorted."""
        now = {name: _digest(tensor) for name, tensor in _tensors(self._model)}
        names = self._digests.keys() | now.keys()
        return sorted(name for name in names if now.get(name) != self._digests.get(name))

    @torch.no_grad()
    def restore(self, state: State) -> list[str]:
        """Write the tensors that changed back, in place, and return their names.

        A request that runs meanwhile may see some tensors healed and others not yet: to keep every
        answer of one generation, build a model from the vault and swap it in.

        Raises:
            CheckpointError: `state` is not what the watch began with, or the model was rebuilt:
                nothing is written; load the generation from the vault anew.
        """
        tensors, changed = dict(_tensors(self._model)), self.check()
        for name in changed:
            fits = name in tensors and name in state and name in self._digests
            if not fits or _digest(state[name]) != self._digests[name]:
                raise CheckpointError(
                    f"tensor {name!r} cannot be restored: the state given is not the one watched, "
                    "or the model was rebuilt. Load the generation from the vault anew"
                )
            if tensors[name].shape != state[name].shape or tensors[name].dtype != state[name].dtype:
                raise CheckpointError(
                    f"tensor {name!r} has another shape or type now. Load the generation from the "
                    "vault anew"
                )
        for name in changed:
            tensors[name].copy_(state[name])
        return changed


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer by name, shared ones under each of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _digest(tensor: Tensor) -> bytes:
    """SHA-256 of a tensor's type, shape and bytes; no copy is made of a contiguous CPU tensor."""
    sha = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    sha.update(flat.view(torch.uint8).numpy().data)
    return sha.digest()
