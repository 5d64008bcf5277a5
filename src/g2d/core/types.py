"""Type aliases that several layers share, and nothing else.

Importing this file imports no torch: an alias names torch's types without loading them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]
"""A state dict: tensors by name."""

Logits = Callable[["Tensor"], "Tensor"]
"""A model as attacks and judges see it: inputs (n, ...) to logits (n, classes)."""

Bounds = tuple[float, float] | None
"""Least and largest value of an input; None: unbounded data."""

Progress = Callable[[str, int, int], None]
"""Called with a stage, what is done and the total."""

Say = Callable[[str], None]
"""Called with a line that the user should read; nothing is wrong."""

Tick = Callable[[int, int], None]
"""Called with what is done and the total."""

Values = Mapping[str, Any]
"""Plain values by name, as JSON has them."""

Array = NDArray[Any]


def silent(stage: str, done: int, total: int) -> None:
    """Report no progress."""


def unsaid(line: str) -> None:
    """Keep a line to oneself."""
