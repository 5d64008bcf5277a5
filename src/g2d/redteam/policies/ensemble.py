"""A vote as one model, with gradients: what a white-box attacker of a vote descends."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from g2d.core.types import Logits


class Vote(nn.Module):
    """Several networks' scores as `protect.answers.combined` makes them one: log mean softmax."""

    def __init__(self, models: Sequence[Logits]) -> None:
        super().__init__()
        self._models = list(models)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (n, ...) to scores (n, classes)."""
        chances = torch.stack([model(x).log_softmax(1) for model in self._models])
        return chances.logsumexp(0) - math.log(len(self._models))
