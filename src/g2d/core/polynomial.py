"""What an activation that is a polynomial of degree two tells of itself, and what is fed to it.

Which such activations there are is in `g2d.tasks.polynomials`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

PRE_ACTIVATIONS = "pre_activations"
"""Among a manifest's figures, what `largest_inputs` measured on the gate split."""


class Polynomial(nn.Module):
    """a·x² + b·x + c, element by element, of any shape.

    Unlike ReLU it has no range of its own: far outside of what it was trained on it explodes. So
    whatever an input makes of its argument, the pre-activation, is bounded by a gate.
    """

    def fixed(self) -> tuple[float, float, float] | None:
        """(a, b, c) where they belong to the architecture; None: to the weights, in the state."""
        raise NotImplementedError


@torch.no_grad()
def largest_inputs(model: nn.Module, x: Tensor, batch: int = 2000) -> dict[str, float]:
    """The largest magnitude that inputs (n, ...) bring to each polynomial of a model, by its name.

    One that is no number counts as infinite. A model without polynomials is not run at all.
    """
    layers = {name: one for name, one in model.named_modules() if isinstance(one, Polynomial)}
    found = dict.fromkeys(layers, 0.0)
    if not layers:
        return found

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def look(module: nn.Module, given: tuple[Tensor]) -> None:
            largest = given[0].abs().nan_to_num(torch.inf).amax()
            found[name] = max(found[name], float(largest))

        return look

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        for part in x.split(batch):
            model(part)
    finally:
        for hook in hooks:
            hook.remove()
    return found
