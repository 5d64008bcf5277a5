"""How a task's module is built: from a seed, and so that it only ever gets copies of inputs.

What it is built for is in `task`; whether it fits in `probe`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from g2d.core.devices import is_crossing


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator for a while; its state is restored afterwards."""
    # Not torch.manual_seed: that reseeds the accelerators too, and nothing would restore them.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def build_model(factory: Callable[[], nn.Module]) -> nn.Module:
    """Build a module that is given copies of inputs, whoever calls it and how.

    A model that changes its input in place would change data, attacks and requests of ours; and in
    place nothing may change a leaf of the graph, which an attacked input is. The hook runs under
    `functional_call` as well, and a copy of an input costs little beside a forward pass.
    """
    model = factory()
    if _copy_inputs not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_copy_inputs)
    return model


def is_hooked(model: nn.Module) -> bool:
    """Whether anything but the copying of inputs happens around the module's forward pass."""
    before = [hook for hook in model._forward_pre_hooks.values() if hook is not _copy_inputs]
    hooks = (*before, *model._forward_hooks.values())
    return not all(is_crossing(hook) for hook in hooks)


def _copy_inputs(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one.clone() if isinstance(one, Tensor) else one for one in given)
