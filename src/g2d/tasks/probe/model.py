"""What a task's factory builds, and what the model, its loss and the augmentation give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from g2d.core.imports import words
from g2d.errors import TaskError
from g2d.tasks.attack import with_vocabulary
from g2d.tasks.building import seeded
from g2d.tasks.one_logit import TwoClasses, adapted, is_one_logit

if TYPE_CHECKING:
    from g2d.tasks.task import Task


def check_model(task: Task) -> None:
    """Check factory, a forward pass in eval mode, loss and augmentation on two guide examples."""
    batch = task.splits.guide.take(range(min(2, len(task.splits.guide))))
    model, again = _built(task), _built(task)  # as they come from the factory: nothing is tried yet
    if model is again:
        raise TaskError(
            f"task {task.name!r}: the factory gives the same module each time, expected a fresh "
            "one; build the module inside the factory"
        )
    if not _equal_states(model, again):
        raise TaskError(
            f"task {task.name!r}: the factory gives other parameters for the same seed; draw them "
            "from torch's global generator alone"
        )
    with_vocabulary(task, task.model(0))
    _make_pair(task, batch.x)
    logits = _logits(task, task.model(0), batch.x)
    _check_loss(task, logits, batch.y)
    _check_augment(task, batch.x)


_UNWRAP = {
    "DataParallel": "spreads batches over whatever GPUs a machine has; return the module inside "
    "it, its `.module`",
    "DistributedDataParallel": "needs a process group in every process; return the module inside "
    "it, its `.module`",
    "OptimizedModule": "is a compiled module, whose parameters cannot be exchanged for others; "
    "return the module that you gave to torch.compile",
    "ScriptModule": "is scripted or traced, and its parameters cannot be exchanged for others; "
    "return the module that you gave to torch.jit",
}
"""What cannot be defended as it is, by the name of a class (the base class of many), and why."""


def _refuse_wrappers(task: Task, model: nn.Module) -> None:
    for name, part in model.named_modules():
        kinds = {kind.__name__ for kind in type(part).__mro__}
        if getattr(part, "_compiled_call_impl", None) is not None:  # of `module.compile()`
            kinds.add("OptimizedModule")
        if found := [kind for kind in _UNWRAP if kind in kinds]:
            what = f"its part {name!r}" if name else "the factory's module"
            raise TaskError(
                f"task {task.name!r}: {what}, a {type(part).__name__}, {_UNWRAP[found[0]]}"
            )


def _check_array(task: Task, logits: Tensor) -> None:
    """Check that logits become a NumPy array, which is what a service answers with."""
    try:
        # NumPy has no bfloat16: such logits are widened before they are sent.
        plain = logits.float() if logits.dtype == torch.bfloat16 else logits
        np.asarray(plain.numpy())
    except Exception as error:
        raise TaskError(
            f"task {task.name!r}: logits cannot become a NumPy array, which a service answers "
            f"with ({words(error)}); return a dense tensor on the CPU"
        ) from error


def _built(task: Task) -> nn.Module:
    try:
        with seeded(0):
            model = task.factory()
    except (Exception, SystemExit) as error:
        raise TaskError(f"task {task.name!r}: the factory raised {words(error)}") from error
    if not isinstance(model, nn.Module):
        raise TaskError(
            f"task {task.name!r}: the factory gives {type(model).__name__}, expected a "
            "torch.nn.Module; pass a function that builds one"
        )
    _refuse_wrappers(task, model)
    parameters = list(model.parameters())
    if not parameters or any(is_lazy(parameter) for parameter in parameters):
        raise TaskError(
            f"task {task.name!r}: the model has no parameters, or lazy ones without a shape; "
            "expected parameters that exist once the factory returns"
        )
    return model


def _equal_states(model: nn.Module, other: nn.Module) -> bool:
    first, second = model.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) for key, value in first.items() if torch.is_tensor(value)
    )


def _make_pair(task: Task, x: Tensor) -> None:
    """Make a task of one logit one of two classes."""
    try:
        with seeded(0), torch.no_grad():
            logits = task.model(0).eval()(x.clone())
    except Exception:  # `_logits` tells of it
        return
    if not is_one_logit(logits, len(x)):
        return
    if task.classes != 2:
        raise TaskError(
            f"task {task.name!r}: the model gives one number for each example, and classes is "
            f"{task.classes}; one logit is two classes (classes=2, labels 0 and 1). A number that "
            "is no class (regression) is not defended: success of an attack is a changed class"
        )
    # Once it is known to be right, so that a task that is refused was not changed.
    loss = adapted(task.name, task.loss, tuple(logits.shape[1:]))
    object.__setattr__(task, "factory", TwoClasses(task.factory))
    object.__setattr__(task, "loss", loss)


def _logits(task: Task, model: nn.Module, x: Tensor) -> Tensor:
    """Return the model's logits (N, classes) on `x` in eval mode, checked."""
    try:
        with seeded(0), torch.no_grad():
            logits = model.eval()(x)
    except Exception as error:
        raise TaskError(
            f"task {task.name!r}: the model fails on inputs {tuple(x.shape)} {x.dtype}: "
            f"{words(error)}"
        ) from error
    expected = (len(x), task.classes)
    given = f"{tuple(logits.shape)} {logits.dtype}" if isinstance(logits, Tensor) else type(logits)
    if not isinstance(logits, Tensor) or logits.shape != expected or not logits.is_floating_point():
        raise TaskError(
            f"task {task.name!r}: the model gives {given} for {len(x)} examples, expected "
            f"float logits {expected}; correct the model's last layer or `classes`"
        )
    _check_array(task, logits)
    if not bool(torch.isfinite(logits).all()):
        raise TaskError(f"task {task.name!r}: a fresh model's logits are not finite: {logits}")
    return logits


def _check_loss(task: Task, logits: Tensor, y: Tensor) -> None:
    try:
        with seeded(0):
            loss = task.loss_of(logits, y)
    except Exception as error:
        raise TaskError(f"task {task.name!r}: the loss raised {words(error)}") from error
    if not isinstance(loss, Tensor) or loss.dim() != 0 or not bool(torch.isfinite(loss)):
        raise TaskError(f"task {task.name!r}: the loss gives {loss}, expected a finite scalar")


def _check_augment(task: Task, x: Tensor) -> None:
    if task.augment is None:
        return
    try:
        with seeded(0):
            out = task.augment(x.clone(), torch.Generator().manual_seed(0))
    except Exception as error:
        raise TaskError(f"task {task.name!r}: the augmentation raised {words(error)}") from error
    if not isinstance(out, Tensor) or out.shape != x.shape or out.dtype != x.dtype:
        given = f"{tuple(out.shape)} {out.dtype}" if isinstance(out, Tensor) else type(out)
        raise TaskError(
            f"task {task.name!r}: the augmentation gives {given}, expected {tuple(x.shape)} "
            f"{x.dtype} as it was given"
        )
