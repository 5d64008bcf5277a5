"""The networks of the built-in tasks, and how their training images are augmented."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g2d.tasks.polynomials import Square


def digits_cnn() -> nn.Module:
    """Build a CNN for (N, 1, 8, 8), 10 classes; 5,530 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 16),
        nn.ReLU(),
        nn.Linear(16, 10),
    )


def mnist_cnn() -> nn.Module:
    """Build a CNN for (N, 1, 28, 28), 10 classes; 28,210 parameters.

    Of four layouts near 29,000 parameters this one was the most accurate for its time: 99.0 %
    after 2,500 steps, where two 5x5 convolutions of 8 and 16 channels and a 784-32-10 head gave
    98.7 %.
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 24, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(216, 80),
        nn.ReLU(),
        nn.Linear(80, 10),
    )


def digits_he_cnn() -> nn.Module:
    """Build a CNN for (N, 1, 8, 8), 10 classes, of squares alone; 5,530 parameters.

    `digits_cnn` with squares: four sums and three squares deep, which encrypted inference pays for.
    With the first stride as a mean over 2x2 it was less robust by 7 points.
    """
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        Square(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        Square(),
        nn.Flatten(),
        nn.Linear(256, 16),
        Square(),
        nn.Linear(16, 10),
    )


def mnist_he_cnn(activation: Callable[[], nn.Module] = Square) -> nn.Module:
    """Build a CNN for (N, 1, 28, 28), 10 classes, of squares alone; 28,874 parameters.

    torch's own initialisation is the right one for squares: a weight's variance of 1 / (3 fan-in)
    keeps that of a sum of squares, whose second moment is 3, and the small first sums begin a
    training at almost nothing, from where it grows. Begun larger it learns worse: after 700 steps
    97.8 %, 97.6 with the first layer times 4, 93.5 times 6; ReLU's 96.9 (two seeds, gate split).

    Args:
        activation: makes what stands between its layers; `nn.ReLU` gives its ordinary twin.
    """
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2),
        activation(),
        nn.Conv2d(8, 16, 5, stride=2, padding=2),
        activation(),
        nn.Flatten(),
        nn.Linear(784, 32),
        activation(),
        nn.Linear(32, 10),
    )


class SoftThreshold(nn.Module):
    """tanh(steepness * (x - 0.5)): monotone, and never trained."""

    def __init__(self, steepness: float = 10.0) -> None:
        super().__init__()
        self.steepness = steepness

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs of any shape, value by value."""
        return torch.tanh(self.steepness * (x - 0.5))


class StridedStem(nn.Conv2d):
    """A first convolution, whose gradient with respect to its input is cheap at stride 2.

    oneDNN takes 48 us an image for the gradient of a 5x5 convolution of one channel, where it takes
    4 us forwards. The same convolution over the input's four phases, at stride 1, takes 15 us for
    its gradient and 8 us forwards: it is used where that gradient is asked for, by attacks.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) as the convolution does; what has no phases takes the usual way."""
        if not (x.requires_grad and torch.is_grad_enabled() and self._halves(x)):
            return super().forward(x)
        odd = self.kernel_size[0] % 2
        phases = F.pixel_unshuffle(F.pad(x, (int(self.padding[0]),) * 4), 2)
        weight = F.pixel_unshuffle(F.pad(self.weight, (0, odd, 0, odd)), 2)
        return F.conv2d(phases, weight, self.bias)

    def _halves(self, x: Tensor) -> bool:
        (height, width), pad = self.kernel_size, self.padding
        plain = self.stride == (2, 2) and self.dilation == (1, 1) and self.groups == 1
        square = height == width and not isinstance(pad, str) and pad[0] == pad[1]
        return (
            plain and square and self.padding_mode == "zeros" and x.dim() == 4
            and x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0
        )  # fmt: skip


def mnist_robust_cnn() -> nn.Module:
    """Build a CNN for (N, 1, 28, 28), 10 classes, to be trained adversarially; 97,994 parameters.

    Its front is one soft threshold, as robust MNIST networks learn thresholds in their first layer
    (Madry et al. 2018, appendix C). Trained, it steepened until gradients vanished and PGD saw
    less than Square; docs/benchmarks/robust.md has what harder thresholds hid.
    """
    return nn.Sequential(
        SoftThreshold(),
        StridedStem(1, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut (He et al. 2015, arXiv 1512.03385)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels_in, H, W) to (N, channels, H / stride, W / stride)."""
        return F.relu(self.residual(x) + self.shortcut(x))


def resnet18() -> nn.Module:
    """Build ResNet-18 with a 3x3 stem for (N, 3, 32, 32), 10 classes; 11,173,962 parameters."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
    ]
    channels_in = 64
    for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [
            ResidualBlock(channels_in, channels, stride),
            ResidualBlock(channels, channels, 1),
        ]
        channels_in = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift images (N, C, H, W) by up to one pixel: four chunks of the batch, one shift each.

    What leaves on one side enters on the other: meant for images with an empty border.
    """
    moves = torch.randint(-1, 2, (4, 2), generator=generator, device=generator.device).tolist()
    parts = x.chunk(4)
    return torch.cat([torch.roll(part, moves[i], (2, 3)) for i, part in enumerate(parts)])


def crop_and_flip(x: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Pad images (N, C, H, W) with zeros, crop each at random and flip half of them."""
    n, channels, height, width = x.shape

    def draw(limit: int) -> Tensor:
        drawn = torch.randint(limit, (n, 1), generator=generator, device=generator.device)
        return drawn.to(x.device)

    rows = draw(2 * padding + 1) + torch.arange(height, device=x.device)
    across = torch.arange(width, device=x.device)
    flipped = draw(2).bool()
    columns = draw(2 * padding + 1) + torch.where(flipped, across.flip(0), across)
    example = torch.arange(n, device=x.device).view(n, 1, 1, 1)
    channel = torch.arange(channels, device=x.device).view(1, channels, 1, 1)
    padded = F.pad(x, (padding,) * 4)
    return padded[example, channel, rows.view(n, 1, height, 1), columns.view(n, 1, 1, width)]
