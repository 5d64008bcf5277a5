"""Which embeddings of a model read its token ids, found by forward hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Reading:
    """One call of an `nn.Embedding` on the ids: its output (n, ..., d), a leaf; its weight (V, d).

    Under `functional_call` the weight is the one that the call put in.
    """

    output: Tensor
    weight: Tensor


@contextmanager
def watch(model: nn.Module, x: Tensor) -> Iterator[list[Reading]]:
    """Note every embedding that reads exactly the ids x (n, ...) while the context is open.

    Embeddings of positions or segments read other numbers and are left alone. What an embedding
    gives becomes a leaf that a gradient can be asked for.
    """
    found: list[Reading] = []

    def note(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor | None:
        ids = given[0] if given else None
        if not isinstance(ids, Tensor) or ids.shape != x.shape or not torch.equal(ids.to(x), x):
            return None
        leaf = output.detach().requires_grad_(True)
        weight = module.weight
        assert isinstance(weight, Tensor)
        found.append(Reading(leaf, weight.detach()))
        return leaf

    handles = [
        m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Embedding)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
