"""The form of what is sent: names and shapes of the tensors that move, as one vector and back.

Knows no torch; how a form is read off a task's model is in `networks`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from g2d.core.types import Array


@dataclass(frozen=True)
class Form:
    """Names of tensors in order, and their shapes; all are float32."""

    shapes: Mapping[str, tuple[int, ...]]

    @cached_property
    def size(self) -> int:
        """P, the length of the vector."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @cached_property
    def described(self) -> int:
        """Bytes that a header takes at most to say which tensors there are."""
        return sum(2 * len(name) + 32 * len(shape) + 128 for name, shape in self.shapes.items())

    def join(self, tensors: Mapping[str, Array]) -> Array:
        """One vector (P,) float32 of the tensors."""
        return np.concatenate([
            np.asarray(tensors[name], np.float32).reshape(-1) for name in self.shapes
        ])  # fmt: skip

    def split(self, vector: Array) -> dict[str, Array]:
        """The tensors of a vector (P,): `join` undone."""
        assert vector.shape == (self.size,), "a vector of this form"
        found: dict[str, Array] = {}
        start = 0
        for name, shape in self.shapes.items():
            end = start + math.prod(shape)
            found[name] = vector[start:end].reshape(shape)
            start = end
        return found
