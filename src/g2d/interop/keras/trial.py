"""Whether a torch module does as a Keras model does: weights are shaken, and both are asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from g2d.interop.keras.building import SEEDS, require, variables
from g2d.interop.keras.moves import Move, as_state, as_values
from g2d.tasks.building import seeded

WITHIN = 1e-5
"""How far a module's logits may be from Keras' own, in units of the largest, or of 1."""

_TRAINED = 1e-4
"""The same in training mode, of logits and statistics: batch norm divides by a batch's variance."""


def still(model: Any) -> None:
    """Have no dropout of a model drop anything, so that training mode can be compared."""
    for layer in model._flatten_layers():
        if "Dropout" in type(layer).__name__ and hasattr(layer, "rate"):
            layer.rate = 0.0


@torch.no_grad()
def difference(
    model: Any, module: nn.Module, moves: Sequence[Move], x: Tensor, head: str = ""
) -> str:
    """What a module of a Keras model does otherwise than it; "": nothing.

    In evaluation, and, where the model draws nothing at random, in training mode: then its
    statistics have to move alike, too.

    Args:
        model: its weights are changed; it is `still`. head: what is behind the module's logits in
            the model: "softmax", "sigmoid" or "". x: a few examples.
    """
    with seeded(1), require().device("cpu"):
        # What a fresh model has at 0 or 1 would hide a tensor in the wrong place.
        values = [_shaken(one) for one in variables(model)]
        for one, value in zip(variables(model), values, strict=True):
            one.assign(value)
        module.load_state_dict(as_state(moves, values), strict=False)
        wanted = model(x, training=False)
        if (found := _headed(module.eval()(x), head)).shape != wanted.shape:
            return "a translation answered another shape"
        far = _far([found], [wanted])
        if not far <= WITHIN:  # NaN, too
            return f"a translation was {far:.1e} away from what Keras answers"
        if (trained := _trained(model, x)) is None:
            return ""
        wanted, after = trained
        found = _headed(module.train()(x), head)
        state = module.eval().state_dict()
        moved = as_values(moves, state, [tuple(one.shape) for one in variables(model)])
        far = _far([found, *moved], [wanted, *after])
    if not far <= _TRAINED:
        return f"a translation was {far:.1e} away in training mode from what Keras gives"
    return ""


def _trained(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]] | None:
    """What a model answers in training mode, and its weights after it; None: it draws at random."""
    keras, found = require(), []
    for moved in (0, 1):
        seeds = [one for one in model.non_trainable_variables if one.path.endswith(SEEDS)]
        with keras.StatelessScope([(one, one.value + moved) for one in seeds]) as scope:
            out = model(x, training=True)
        found.append(out)
    if not torch.equal(*found):
        return None
    after = [scope.get_current_value(one) for one in variables(model)]
    own = [one.value for one in variables(model)]
    return out, [mine if got is None else got for mine, got in zip(own, after, strict=True)]


def _far(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """How far tensors are from others at most, in units of the largest of each, or of 1."""
    each = [
        (one - other).abs().max() / other.abs().max().clamp_min(1)
        for one, other in zip(found, wanted, strict=True)
        if one.numel()
    ]
    return float(torch.stack(each).double().max())  # NaN if one is


def _headed(logits: Tensor, head: str) -> Tensor:
    if head:
        return logits.softmax(-1) if head == "softmax" else logits.sigmoid()
    return logits


def _shaken(variable: Any) -> Tensor:
    value: Tensor = variable.value.detach()
    if not value.is_floating_point():
        return value.clone()
    value = value + 0.1 * torch.randn(value.shape, dtype=value.dtype)
    return value.abs() if variable.path.endswith("variance") else value
