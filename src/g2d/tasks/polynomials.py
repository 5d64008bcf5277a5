"""Activations that are polynomials: what networks for encrypted inference have in place of ReLU.

CKKS adds and multiplies; it compares nothing, so that ReLU and max pooling do not exist there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from g2d.core.polynomial import Polynomial


class Square(Polynomial):
    """x², element by element, of any shape (CryptoNets: Gilad-Bachrach et al. 2016)."""

    def fixed(self) -> tuple[float, float, float]:
        """(1, 0, 0)."""
        return 1.0, 0.0, 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Square each number of `x`, any shape."""
        return x * x


class Quadratic(Polynomial):
    """a·x² + b·x + c, element by element, of any shape, with one a, b and c for the whole layer.

    Fixed coefficients are floats and belong to the architecture, as a leaky ReLU's slope does.
    Learned ones are scalar parameters, in the state dict as `a`, `b` and `c`, and belong to a
    network's weights.

    Args:
        a: coefficient of x². b: coefficient of x. c: what is added.
        learned: whether training adapts them.
    """

    a: Tensor | float
    b: Tensor | float
    c: Tensor | float

    def __init__(self, a: float, b: float, c: float = 0.0, *, learned: bool = False) -> None:
        super().__init__()
        for name, value in (("a", a), ("b", b), ("c", c)):
            number = float(value)
            setattr(self, name, nn.Parameter(torch.tensor(number)) if learned else number)

    @property
    def learned(self) -> bool:
        """Whether the coefficients are parameters, in the state dict."""
        return isinstance(self.a, Tensor)

    @property
    def values(self) -> tuple[float, float, float]:
        """a, b and c as numbers."""
        return _number(self.a), _number(self.b), _number(self.c)

    def fixed(self) -> tuple[float, float, float] | None:
        """(a, b, c), unless they are learned."""
        return None if self.learned else self.values

    def forward(self, x: Tensor) -> Tensor:
        """Apply the polynomial to each number of `x`, any shape (Horner's scheme)."""
        return (self.a * x + self.b) * x + self.c

    def extra_repr(self) -> str:
        """The coefficients, for `print(network)`."""
        return ", ".join(f"{n}={v:g}" for n, v in zip("abc", self.values, strict=True))


def _number(value: Tensor | float) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else value
