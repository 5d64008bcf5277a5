"""What an activation that is a polynomial of degree two tells of itself, to whoever must know.

Which such activations there are is in `g2d.tasks.polynomials`.
"""

from __future__ import annotations

from torch import nn


class Polynomial(nn.Module):
    """a·x² + b·x + c, element by element, of any shape.

    Unlike ReLU it has no range of its own: far outside of what it was trained on it explodes. So
    whatever an input makes of its argument, the pre-activation, is bounded by a gate.
    """

    def fixed(self) -> tuple[float, float, float] | None:
        """(a, b, c) where they belong to the architecture; None: to the weights, in the state."""
        raise NotImplementedError
