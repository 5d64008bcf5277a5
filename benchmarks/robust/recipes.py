"""What benchmarks/robust/ trains that is not the product's: the blog's recipe, and a student."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from g2d.tasks.networks import SoftThreshold, StridedStem, mnist_robust_cnn
from g2d.training.recipes import Part, Step
from g2d.training.recipes.step import frozen


def blog(step: Step) -> Step:
    """Train only on FGSM examples at eps = 1, without a random start, as the blog prints it."""
    with frozen(step.model), torch.enable_grad():
        x = step.x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(step.model(x), step.y), x)
    attacked = (step.x + 1.0 * gradient.sign()).clamp(0.0, 1.0)
    return step.replace(clean=0.0).add(Part(attacked, step.criterion))


def hot(step: Step) -> Step:
    """Train at a temperature of 20: the teacher of defensive distillation (Papernot et al. 2016).

    At the temperature of 1 its logits, and its student's, are twenty times as large: gradients
    vanish, and that is all that the defence is.
    """
    return step.replace(criterion=lambda logits: F.cross_entropy(logits / 20.0, step.y))


def plain() -> nn.Module:
    """Build the network of `mnist-robust` without its soft threshold: an ordinary CNN."""
    return nn.Sequential(*list(mnist_robust_cnn())[1:])


def wide() -> nn.Module:
    """Build the network of `mnist-robust` with twice its channels; 257,738 parameters."""
    return _of_width(32, 64, 128, 64)


def student() -> nn.Module:
    """Build a CNN for (N, 1, 28, 28), 10 classes; 9,376 parameters, 1/10.5 of the teacher's."""
    return _of_width(8, 12, 18, 16)


def _of_width(a: int, b: int, c: int, hidden: int) -> nn.Module:
    """The layers of `mnist-robust` with other widths."""
    return nn.Sequential(
        SoftThreshold(),
        StridedStem(1, a, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(a, b, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(b, c, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * c, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )
