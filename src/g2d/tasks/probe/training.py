"""Does a model learn, and can it be attacked: gradients to its input and to its parameters."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from g2d.core.imports import words
from g2d.errors import TaskError
from g2d.tasks.building import seeded

if TYPE_CHECKING:
    from g2d.tasks.splits import Split
    from g2d.tasks.task import Task

SECONDS = 0.3
"""What a step of the check may take: a network that is slow tries fewer examples than a batch."""
_EXAMPLES = 16  # an input by itself may well have no gradient: all its first units are off
_DRAWS = 3

_WITHOUT = (
    "Attacks that follow gradients are what G2D trains against and measures; hand in a model that "
    "is differentiable from its input on, or say attack='none' if nothing is to attack it"
)


def check_gradient(task: Task) -> None:
    """Check that the loss has a gradient with respect to the input, and not zero everywhere.

    A head that starts at zero gives a fresh network no gradient, and a trained one all: parameters
    are moved at random before zero counts.

    Raises:
        TaskError: there is none, or zero by construction.
    """
    model = task.model(0).eval()
    state = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    for draw in range(1 + _DRAWS):
        examples = min(_EXAMPLES if draw else 1, len(task.splits.guide))
        split = task.splits.guide.take(range(examples))
        gradient = _input_gradient(task, model, state if draw == 0 else _moved(state, draw), split)
        if gradient is None:
            raise TaskError(
                f"task {task.name!r}: no gradient reaches the model's input: it is cast to "
                "integers (token ids), detached, or computed on under torch.no_grad (a frozen "
                f"backbone: freeze its parameters instead). {_WITHOUT}"
            )
        if bool((gradient != 0).any()):
            return
    raise TaskError(
        f"task {task.name!r}: the gradient to the model's input is zero, whatever the parameters: "
        f"it is rounded, thresholded or compared before anything is learned from it. {_WITHOUT}"
    )


def check_training(task: Task, batch: int) -> None:
    """Check a forward and a backward pass in training mode on a batch, as far as time allows.

    Args:
        batch: examples a training step. A split of fewer gives all its examples; a network that
            would take more than `SECONDS` as many as it can.

    Raises:
        TaskError: the model gives other things than in evaluation mode, or nothing is learned.
    """
    wanted = min(batch, len(task.splits.train))
    first = min(2, wanted)
    seconds = step_seconds(task, first)
    affordable = int(SECONDS * first / max(seconds, 1e-9))
    if first < wanted and affordable > first:
        step_seconds(task, min(wanted, affordable))


def step_seconds(task: Task, count: int) -> float:
    """Take the gradient of the loss of `count` training examples; return how long that took.

    Raises:
        TaskError: it fails, or is not one that can be followed.
    """
    model = task.model(0).train()
    split = task.splits.train.take(range(count))
    began = time.process_time()
    try:
        with seeded(0), torch.enable_grad():
            logits = model(split.x)
    except Exception as error:
        raise TaskError(
            f"task {task.name!r}: in training mode the model fails on a batch of {count}: "
            f"{words(error)}{_more_examples(count)}"
        ) from error
    _check_logits(task, logits, count)
    try:
        with seeded(0), torch.enable_grad():
            loss = task.loss_of(logits, split.y)
        if loss.requires_grad:
            loss.backward()
    except Exception as error:
        raise TaskError(
            f"task {task.name!r}: in training mode the backward pass of the loss fails on a batch "
            f"of {count}: {words(error)}"
        ) from error
    seconds = time.process_time() - began
    _check_gradients(task, model, loss)
    return seconds


def _more_examples(count: int) -> str:
    """What to do where one example is too few, as for batch norm."""
    return "; set [population] batch to 2 or more" if count == 1 else ""


def _check_logits(task: Task, logits: object, count: int) -> None:
    expected = (count, task.classes)
    if isinstance(logits, Tensor) and logits.shape == expected:
        return
    if isinstance(logits, Tensor):
        given = f"a tensor {tuple(logits.shape)}"
    else:
        given = f"{type(logits).__name__}, as models with auxiliary heads do"
    raise TaskError(
        f"task {task.name!r}: in training mode the model gives {given}, expected logits {expected} "
        "as in evaluation mode; switch other outputs off (aux_logits=False), or wrap the model in "
        "one that returns its logits alone"
    )


def _check_gradients(task: Task, model: nn.Module, loss: Tensor) -> None:
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    if not gradients:
        raise TaskError(
            f"task {task.name!r}: no parameter gets a gradient from the loss: all are frozen "
            "(requires_grad=False), or the model computes under torch.no_grad; leave free what is "
            "to be trained"
        )
    wild = [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())]
    if wild or not bool(torch.isfinite(loss.detach())):
        what = f"the gradient of {wild[0]!r}" if wild else f"the loss ({float(loss.detach())})"
        raise TaskError(
            f"task {task.name!r}: {what} of a fresh model is not finite in training mode; expected "
            "finite numbers: look for a division by zero, a log or a root of zero"
        )


def _input_gradient(
    task: Task, model: nn.Module, state: dict[str, Tensor], split: Split
) -> Tensor | None:
    """Gradient of the summed cross-entropy with respect to the input (n, ...); None: no path."""
    x = split.x.clone()
    if not x.is_floating_point():
        return None
    x.requires_grad_(True)
    try:
        with seeded(0), torch.enable_grad():
            logits = functional_call(model, state, (x,), tie_weights=False)
            if not logits.requires_grad:
                return None
            loss = F.cross_entropy(logits, split.y, reduction="sum")
            return torch.autograd.grad(loss, x, allow_unused=True)[0]
    except Exception as error:
        raise TaskError(
            f"task {task.name!r}: the gradient to the model's input cannot be taken: "
            f"{words(error)}. {_WITHOUT}"
        ) from error


def _moved(state: dict[str, Tensor], draw: int) -> dict[str, Tensor]:
    """The state with its matrices (and what has more axes) moved by a tenth of a unit and more."""
    generator = torch.Generator().manual_seed(draw)

    def near(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dim() < 2:
            return tensor
        noise = torch.randn(tensor.shape, generator=generator)
        return tensor + 0.1 * noise.to(tensor.dtype)

    return {name: near(tensor) for name, tensor in state.items()}
