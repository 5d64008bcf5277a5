"""A network for flows that learns privately: its inputs are standardised by declared public data.

`tasks.nslkdd.FlowScale` divides by what a number can reach at most, so that a count of one or two,
which is all that some attacks leave, arrives as a twentieth: without noise weights grow to that,
with the noise of DP-SGD they do not. What a public flow usually holds is known to all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from g2d.tasks.nslkdd import FlowScale, nslkdd_mlp

LEAST, MOST = 0.01, 3.0
"""Least standard deviation that is divided by, and the range that is clipped to. Tried on
`nslkdd.held_out`: docs/privacy.md, "What was tried"."""


class PublicScale(nn.Module):
    """`FlowScale`, then mean 0 and standard deviation 1 over public flows, within +-`MOST`.

    Args:
        public: flows (N, WIDTH) that anybody may know.
    """

    def __init__(self, public: Tensor) -> None:
        super().__init__()
        self.log = FlowScale()
        known = self.log(public)
        self.register_buffer("mean", known.mean(0), persistent=False)
        self.register_buffer("std", known.std(0).clamp_min(LEAST), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map flows (N, WIDTH) to the same shape."""
        assert isinstance(self.mean, Tensor)
        assert isinstance(self.std, Tensor)
        return ((self.log(x) - self.mean) / self.std).clamp(-MOST, MOST)


def public_mlp(public: Tensor) -> Callable[[], nn.Module]:
    """The factory of the task's own MLP, its inputs standardised by public flows."""
    return partial(_made, torch.as_tensor(public))


def _made(public: Tensor) -> nn.Module:
    own = list(nslkdd_mlp().children())
    return nn.Sequential(PublicScale(public), *own[1:])
