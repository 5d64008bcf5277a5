"""Opacus' optimiser with noise of the operating system; imported where training is private alone.

Needs the package opacus: `private.require_opacus` says so.
"""

from __future__ import annotations

import torch
from opacus.optimizers import DPOptimizer

from g2d.training.recipes.private_entropy import gaussians


class SecretNoise(DPOptimizer):  # type: ignore[misc]
    """Clips and sums as `DPOptimizer` does; its noise comes from no generator."""

    def add_noise(self) -> None:
        """Put into each `.grad` the clipped sum with noise of `noise_multiplier` clips.

        Both are added in float64 and rounded to the parameter's type: see `gaussians`.
        """
        std = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            noise = torch.from_numpy(gaussians(parameter.numel())).view(parameter.shape)
            noised = parameter.summed_grad.double() + std * noise.to(parameter.device)
            parameter.grad = noised.to(parameter.dtype)
