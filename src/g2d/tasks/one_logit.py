"""A binary model of one logit, as everything else knows models: two classes, [0, z].

softmax([0, z]) is (1 - sigmoid(z), sigmoid(z)), so cross-entropy on the pair is binary
cross-entropy on z. Names of the state dict stay: the pair is made by a hook, not by a layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from g2d.errors import TaskError

Loss = Callable[[Tensor, Tensor], Tensor]


class TwoClasses:
    """A factory whose models answer (N,) or (N, 1), made to answer (N, 2)."""

    def __init__(self, factory: Callable[[], nn.Module]) -> None:
        self.factory = factory
        # What asks where a factory comes from (workers, the red team's cache) means the user's.
        functools.update_wrapper(self, factory, updated=())

    def __call__(self) -> nn.Module:
        """Build the model; its logits become pairs."""
        return as_pairs(self.factory())

    def __reduce__(self) -> tuple[Any, ...]:
        return TwoClasses, (self.factory,)


def as_pairs(model: nn.Module) -> nn.Module:
    """Make a model that answers (N,) or (N, 1) answer (N, 2), from now on; the same module."""
    model.register_forward_hook(_pair)
    return model


def _pair(model: nn.Module, inputs: Any, logits: Tensor) -> Tensor:
    z = logits.reshape(-1)
    return torch.stack([torch.zeros_like(z), z], 1)


class OnOneLogit:
    """A loss that was written for one logit (N, *shape), as a function of pairs (N, 2).

    Labels become floats of the logit's shape, as `nn.BCEWithLogitsLoss` wants them.
    """

    def __init__(self, loss: Loss, shape: tuple[int, ...]) -> None:
        self.loss, self.shape = loss, shape

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """The scalar loss of pairs and integer labels (N,)."""
        z = (logits[:, 1] - logits[:, 0]).reshape(-1, *self.shape)
        return self.loss(z, y.to(z.dtype).reshape(z.shape))


def is_one_logit(logits: Any, n: int) -> bool:
    """Whether a model gives one float an example."""
    shapes = ((n,), (n, 1))
    return isinstance(logits, Tensor) and logits.is_floating_point() and logits.shape in shapes


def adapted(task: str, loss: Loss, shape: tuple[int, ...]) -> Loss:
    """The loss as a function of pairs: as it is, or fed the one logit that it was written for.

    Whichever it is must pull every logit towards its label: a loss that runs is not yet one that
    teaches (cross-entropy on a batch of single logits is a softmax over the batch).

    Args:
        task: its name, for messages. shape: of one example's logit, () or (1,).

    Raises:
        TaskError: neither reading does.
    """
    raised: Exception | None = None
    for candidate in (loss, OnOneLogit(loss, shape)):
        try:
            if _teaches(candidate):
                return candidate
        except Exception as error:  # whatever the user's loss raises on what it was not made for
            raised = error
    why = f" ({raised})" if raised else ""
    raise TaskError(
        f"task {task!r}: the model gives one logit, and its loss does not pull it towards labels "
        f"0 and 1{why}; use F.cross_entropy (it gets [0, z], and may weigh classes or smooth "
        "labels) or nn.BCEWithLogitsLoss"
    )


def _teaches(loss: Loss) -> bool:
    """Whether descending it raises z where y is 1 and lowers it where y is 0."""
    z = torch.tensor([-3.0, 0.5, 3.0, -0.5], requires_grad=True)
    y = torch.tensor([1, 1, 0, 0])
    (gradient,) = torch.autograd.grad(loss(torch.stack([torch.zeros_like(z), z], 1), y), z)
    return bool(((gradient < 0) == (y == 1)).all() and (gradient != 0).all())
