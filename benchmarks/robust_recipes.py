"""What benchmarks/robust.py trains that is not the product's: the blog's recipe, and a student."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from g2d.harden import Part, Step
from g2d.harden.step import frozen


def blog(step: Step) -> Step:
    """Train only on FGSM examples at eps = 1, without a random start, as the blog prints it."""
    with frozen(step.model), torch.enable_grad():
        x = step.x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(step.model(x), step.y), x)
    attacked = (step.x + 1.0 * gradient.sign()).clamp(0.0, 1.0)
    return step.replace(clean=0.0).add(Part(attacked, step.criterion))


def student() -> nn.Module:
    """Build a CNN for (N, 1, 28, 28), 10 classes; 8,850 parameters, 1/11 of the teacher's."""
    front = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        front.weight.fill_(2.0)
        front.bias.copy_(torch.tensor([-0.6, -1.4]))
    return nn.Sequential(
        front,
        nn.LeakyReLU(0.1),
        nn.Conv2d(2, 8, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 12, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 16),
        nn.ReLU(),
        nn.Linear(16, 10),
    )
