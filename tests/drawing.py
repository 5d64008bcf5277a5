"""What tests of the generator draw: a source of randomness, a population of points, an exposure."""

from __future__ import annotations

import torch

import g2d
from g2d.generator import Exposure
from g2d.tasks.splits import Split


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def members(K: int = 12, B: int = 3, P: int = 200) -> tuple[torch.Tensor, list[int]]:
    g = generator(1)
    centres = 3 * torch.randn(B, P, generator=g)
    basins = [k % B for k in range(K)]
    return centres[basins] + 0.2 * torch.randn(K, P, generator=g), basins


def exposure(task: g2d.Task, v: torch.Tensor, number: int = 1) -> Exposure:
    guide, gate = task.splits.guide.take(range(64)), task.splits.gate.take(range(64))
    noisy = Split((guide.x + 0.1).clamp(0, 1), guide.y)
    attacked = Split((gate.x + 0.1).clamp(0, 1), gate.y)
    return Exposure(number, v, noisy, attacked, gate)
