"""Type aliases that several layers share, and nothing else.

Importing this file loads neither torch nor numpy: aliases name their types only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

State = Mapping[str, "Tensor"]
"""A state dict: tensors by name."""

Logits = Callable[["Tensor"], "Tensor"]
"""A model as attacks and judges see it: inputs (n, ...) to logits (n, classes)."""


class Region(Protocol):
    """What an attacker may make of an input x (n, features), where that is no ball in a range.

    `eps` is the attack budget, whatever that means to each feature. `project` is exact and the one
    thing that judges trust; the others are for searches.
    """

    def project(self, proposed: Tensor, x: Tensor, eps: float) -> Tensor:
        """The nearest inputs that the attacker of `x` can send."""

    def clip(self, latent: Tensor, x: Tensor, eps: float) -> Tensor:
        """Clip what a search keeps between its steps."""

    def radius(self, eps: float, like: Tensor) -> Tensor:
        """Largest change of each feature (features,)."""

    def direction(self, gradient: Tensor) -> Tensor:
        """The steepest move of at most one radius in each feature."""


Bounds = tuple[float, float] | Region | None
"""Least and largest value of an input; a region; None: unbounded data."""

Progress = Callable[[str, int, int], None]
"""Called with a stage, what is done and the total."""

Say = Callable[[str], None]
"""Called with a line that the user should read; nothing is wrong."""

Tick = Callable[[int, int], None]
"""Called with what is done and the total."""

Values = Mapping[str, Any]
"""Plain values by name, as JSON has them."""

if TYPE_CHECKING:
    Array = NDArray[Any]
else:
    Array = Any  # numpy takes a fifth of a second, and the command line's help needs none of it


def silent(stage: str, done: int, total: int) -> None:
    """Report no progress."""


def unsaid(line: str) -> None:
    """Keep a line to oneself."""
