"""Randomness that nobody can repeat: from the operating system, never from a seed that is kept.

What hides a record must not be known to whoever reads `[population] seed`, nor be worked out from
what a generator gave out: noise, and which records a step saw (else sampling amplifies nothing).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from g2d.core.types import Array
from g2d.tasks.splits import Split
from g2d.tasks.task import Task

_WORDS, _BEFORE = 624, 24  # of Mersenne Twister's state; bytes before them in torch's


def uniforms(count: int) -> Array:
    """Return numbers (count,) in [0, 1), multiples of 2^-53, each of 53 fresh random bits."""
    words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
    return (words >> np.uint64(11)) * 2.0**-53


def gaussians(count: int) -> Array:
    """Return standard normal numbers (count,), each the sum of four fresh ones, halved; float64.

    A single floating-point Gaussian betrays what it was added to: of the numbers near a result not
    all can be reached (Mironov 2012, doi 10.1145/2382196.2382264, for Laplace noise; Jin et al.
    2021, arXiv 2112.05307, for DP-SGD). Four make the search hopeless (Holohan & Braghin 2021,
    arXiv 2107.10138, section 5.1, n = 2, as Opacus' `secure_mode`), and whoever adds them in
    float64 and rounds to float32 drops 29 more bits. That is a hardening, no proof: a proof needs
    discrete noise (Canonne et al. 2020, arXiv 2004.00010).
    """
    half = 2 * count  # Box & Muller 1958: two numbers of two
    radius = np.sqrt(-2.0 * np.log(1.0 - uniforms(half)))
    angle = 2.0 * np.pi * uniforms(half)
    each = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return each.reshape(4, count).sum(0) / 2.0


def secret_generator() -> torch.Generator:
    """Return a generator whose whole state of 19,937 bits is fresh.

    For random starts of attacks and for augmentation, which are not given out. `manual_seed` would
    do with 32 bits: torch's generator on the CPU takes no more of a seed.
    """
    generator = torch.Generator()
    state = generator.get_state()
    words = np.frombuffer(os.urandom(4 * _WORDS), dtype=np.uint32).astype(np.uint64)
    raw = torch.from_numpy(np.frombuffer(words.tobytes(), dtype=np.uint8).copy())
    state[_BEFORE : _BEFORE + len(raw)] = raw
    generator.set_state(state)
    return generator


@dataclass(frozen=True)
class PoissonSample:
    """Draws each record by itself, with the same chance; a batch may have any size, and none.

    Attributes:
        rate: that chance, a public constant: never a share of how many records there are.
    """

    task: Task
    split: Split
    rate: float
    generator: torch.Generator  # a secret one

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return inputs (n, ...) and labels (n,), each input augmented as if it were alone.

        An augmentation of a whole batch may move one record by what is known of another, as that of
        MNIST, which shifts the batch in four parts.
        """
        drawn = torch.from_numpy(uniforms(len(self.split)) < self.rate).nonzero()[:, 0]
        x, y = self.split.x[drawn], self.split.y[drawn]
        if self.task.augment is not None and len(x):
            x = torch.cat([self.task.augment(one, self.generator) for one in x.split(1)])
        return x, y
