"""An exposed generation as guidance and gates see it: its vector and the attacks on it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from g2d.tasks.splits import Split


@dataclass(frozen=True)
class Exposure:
    """A generation that has been live: its number, its vector (P,), its attacks on two splits."""

    number: int
    v: Tensor
    guide: Split
    gate: Split
    gate_clean: Split
