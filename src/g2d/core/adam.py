"""Adam as torch has it, without the import of torch's compiler.

The first optimiser of a process imports `torch._dynamo`: 800 modules and two CPU seconds, which a
worker that lives for one job pays in vain. torch needs it only to keep its compiler away from these
very methods, and nothing is compiled here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

_step = inspect.unwrap(torch.optim.Adam.step)


class Adam(torch.optim.Adam):
    """`torch.optim.Adam`, bit for bit (Kingma & Ba 2015); not for code that is compiled."""

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)

    @torch.no_grad()  # as torch's own, which is not `differentiable` unless asked
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step along the gradients that the parameters have."""
        return _step(self, closure)
