"""Does a model answer with what its state dict holds, all of it and nothing else?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from g2d.core.imports import words
from g2d.errors import TaskError
from g2d.tasks.building import seeded

if TYPE_CHECKING:
    from g2d.tasks.task import Task


def check_state(task: Task) -> None:
    """Check that a model with another's state answers as the other does.

    Generations are state dicts: what a model keeps elsewhere would stay behind, silently.

    Raises:
        TaskError: the state cannot be put in place, or is not all that the model computes with.
    """
    x = task.splits.guide.x[:1]
    model, other = task.model(0).eval(), task.model(1).eval()
    # With `keep_vars` a tied tensor is one object under both its names, as functional_call wants.
    state = {n: t for n, t in other.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    try:
        with seeded(0), torch.no_grad():
            given = functional_call(model, state, (x,))
    except Exception as error:
        raise TaskError(
            f"task {task.name!r}: the model cannot run with other parameters put in place "
            f"(torch.func.functional_call: {words(error)}), as every generation is tried; expected "
            "a module that reads its parameters from itself each time"
        ) from error
    with seeded(0), torch.no_grad():
        expected = other(x)
    scale = 1e-4 * (1 + float(expected.abs().max()))
    if not torch.allclose(given, expected, rtol=1e-3, atol=scale):
        raise TaskError(
            f"task {task.name!r}: with the state dict of another seed the model does not answer as "
            f"that one does: it computes with more than its state dict{_outside(model)}; make such "
            "tensors buffers (register_buffer), or the same for every seed"
        )


def _outside(model: nn.Module) -> str:
    """Name the first tensors that modules keep as plain attributes."""
    found = [
        f"{prefix}.{name}" if prefix else name
        for prefix, part in model.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, Tensor)
    ]
    return f" (as {', '.join(found[:3])})" if found else ""
