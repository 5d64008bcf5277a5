"""The gradient of each record: of its own loss alone, by `torch.func` or by Opacus' hooks.

Clipping and noise are the optimiser's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from g2d.core.imports import words
from g2d.errors import SettingsError
from g2d.tasks.task import Task

RecordGradients = Callable[[nn.Module, Tensor, Tensor], list[Tensor]]
"""Model, views (n, k, ...) of n records and their labels (n,), to gradients (n, ...), one tensor
for each trainable parameter in the order of the model's."""

_ROOM = 4_000_000
"""Numbers of gradients at a time: 128 records of MNIST's network. On one core twice and half as
many took 2 to 6 % longer there, an eighth half as long again."""


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def pick(model: nn.Module, task: Task) -> RecordGradients:
    """Choose how gradients of records are found: vectorised, unless the model does not allow it.

    `vmap` took 0.6 to 0.8 times as long as Opacus' hooks for convolutions, less for linear layers.
    It is tried on two inputs of zeros, so that no record decides.

    Raises:
        SettingsError: neither works on this model.
    """
    known = task.splits.train.x
    x = torch.zeros(2, 2, *known.shape[1:], dtype=known.dtype)
    y = torch.zeros(2, dtype=torch.long)
    for found in (by_vmap(task), by_hooks(task)):
        try:
            found(model, x, y)
        except Exception as error:
            failure = error
        else:
            return found
    raise SettingsError(
        "private training needs the gradient of each record, and that of this model cannot be "
        f"found: {words(failure)}. Use layers that take each example by itself, without loops of "
        "their own over time (opacus.layers has DPLSTM)"
    ) from failure


def by_vmap(task: Task) -> RecordGradients:
    """Vectorised over records with `torch.func` (Subramani et al. 2020, arXiv 2010.09063)."""

    def gradients(model: nn.Module, views: Tensor, y: Tensor) -> list[Tensor]:
        def loss(parameters: dict[str, Tensor], own: Tensor, label: Tensor) -> Tensor:
            logits = functional_call(model, parameters, (own,))
            return task.loss_of(logits, label.expand(len(own)))

        known = {name: p.detach() for name, p in trainable(model).items()}
        with torch.enable_grad():
            found = vmap(grad(loss), (None, 0, 0), randomness="different")(known, views, y)
        return [found[name] for name in known]

    return gradients


def by_hooks(task: Task) -> RecordGradients:
    """By the hooks of Opacus' `GradSampleModule`, which leave the model as they found it."""
    from opacus.grad_sample import GradSampleModule

    def gradients(model: nn.Module, views: Tensor, y: Tensor) -> list[Tensor]:
        n, k = views.shape[:2]
        watched = GradSampleModule(model, loss_reduction="sum")
        try:
            with torch.enable_grad(), warnings.catch_warnings():
                # Torch's, of the first layer: its input needs no gradient.
                warnings.filterwarnings("ignore", "Full backward hook is firing")
                logits = watched(views.flatten(0, 1)).view(n, k, -1)
                each = [task.loss_of(z, y[i].expand(k)) for i, z in enumerate(logits)]
                torch.stack(each).sum().backward()
            rows: list[Tensor] = [vars(p)["grad_sample"] for p in trainable(model).values()]
            return [row.view(n, k, *row.shape[1:]).sum(1) for row in rows]
        finally:
            watched.to_standard_module()
            model.zero_grad()

    return gradients


def pieces(model: nn.Module, views: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut records into pieces whose gradients fit into memory; no record is cut."""
    width = sum(p.numel() for p in trainable(model).values())
    size = max(1, _ROOM // max(1, width))
    return zip(views.split(size), y.split(size), strict=True)


def sound(gradients: list[Tensor]) -> list[Tensor]:
    """Set to zero the gradient of every record in which a number, or a sum, is not finite.

    Clipping cannot shorten it, and one such record would show in every parameter.
    """
    fine = torch.stack([g.flatten(1).sum(1) for g in gradients]).isfinite().all(0)
    if bool(fine.all()):
        return gradients
    return [torch.where(fine.view(-1, *[1] * (g.dim() - 1)), g, 0) for g in gradients]
