"""A task's attack, whatever it is: proposals crafted as the task says, and what of them counts.

Propose and judge apart: `craft` proposes and refuses what is malformed, `confine` undoes what the
task's limits do not allow, and whoever scores runs the models again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from g2d.attacks.pgd import pgd, project
from g2d.attacks.tokens import Draw, Search, substitute
from g2d.core.imports import words
from g2d.core.types import Logits
from g2d.errors import DataError, TaskError
from g2d.tasks.attack import BALL, NONE, OWN
from g2d.tasks.task import Task

_BATCH = 500  # inputs that an attack of the user's own is given at a time


class Functional(nn.Module):
    """A module run with other tensors: its own modules, and so their hooks, stay reachable."""

    def __init__(self, inner: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.inner, self._put_in = inner, dict(tensors)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes) of inputs (n, ...)."""
        return functional_call(self.inner, self._put_in, (x,), tie_weights=False)


class _Answers(nn.Module):
    """A function from inputs to logits as a module, which attacks are promised."""

    def __init__(self, run: Logits) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def craft(
    task: Task,
    models: Logits | Sequence[Logits],
    x: Tensor,
    y: Tensor,
    *,
    generator: torch.Generator,
    eps: float | None = None,
    how: str = "greedy",
    **ball: Any,
) -> Tensor:
    """Propose attacks on one model, or jointly on several, as the task is attacked.

    Args:
        x: inputs (n, ...). y: labels (n,), or probabilities (n, classes); an attack of the user's
            own is given the likeliest class.
        eps: budget in the ball; None: the task's. how: of token substitution, 'light', 'greedy' or
            'beam'. ball: what else `pgd` takes (steps, step_size, ...).

    Raises:
        TaskError: nothing attacks this task, or its own attack fails or proposes what it must not.
        SettingsError: as `pgd`.
    """
    if task.attack_kind == BALL:
        return pgd(
            models, x, y, eps=task.eps if eps is None else eps, generator=generator,
            bounds=task.reach, **ball,
        )  # fmt: skip
    each = [models] if callable(models) else list(models)
    return craft_drawn(task, lambda: each, x, y, generator=generator, how=how)


def craft_drawn(
    task: Task,
    draw: Draw,
    x: Tensor,
    y: Tensor,
    *,
    generator: torch.Generator,
    how: str = "greedy",
) -> Tensor:
    """Propose attacks by tokens, or by the task's own attack, on models that are drawn.

    Substitution draws anew for each edit; an attack of the user's own is given one draw.

    Raises:
        TaskError: nothing attacks this task, or its own attack fails or proposes what it must not.
    """
    if task.attack_kind == NONE:
        raise TaskError(f"task {task.name!r} says attack = 'none': there is nothing to craft")
    if task.attack_kind == OWN:
        return _proposed(task, draw(), x, y, generator)
    assert task.tokens is not None, "only tokens are left"
    return substitute(draw, x, y, task.tokens, Search.of(task.tokens, how))


def _proposed(
    task: Task, models: Sequence[Logits], x: Tensor, y: Tensor, generator: torch.Generator
) -> Tensor:
    """What the task's own attack proposes, checked."""
    modules = [m if isinstance(m, nn.Module) else _Answers(m) for m in models]
    y = y.argmax(1) if y.dim() > 1 else y
    assert callable(task.attack), "an attack of one's own can be called"
    parts = []
    for clean, label in zip(x.split(_BATCH), y.split(_BATCH), strict=True):
        try:
            made = task.attack(modules, clean.cpu().clone(), label.cpu().clone(), generator)
        except Exception as error:
            raise TaskError(f"task {task.name!r}: its attack raised {words(error)}") from error
        if wrong := _fault(task, made, clean.cpu()):
            raise TaskError(f"task {task.name!r}: its attack is wrong: {wrong}")
        parts.append(made.detach().clone().to(x.device))
    return torch.cat(parts) if parts else x.clone()


def _fault(task: Task, made: object, clean: Tensor) -> str:
    """What is wrong with proposals of the task's own attack; "" if nothing is."""
    if not isinstance(made, Tensor):
        return f"it gave {type(made).__name__}, expected a tensor of proposals"
    if made.shape != clean.shape or made.dtype != clean.dtype:
        return (
            f"it gave {tuple(made.shape)} {made.dtype}, expected {tuple(clean.shape)} "
            f"{clean.dtype}: one proposal for each example, in the same order"
        )
    if not bool(torch.isfinite(made).all()):
        return "it gave values that are NaN or infinite"
    return task.tokens.violation(made, clean) if task.tokens is not None else ""


def confine(task: Task, proposed: Tensor, x: Tensor, eps: float) -> Tensor:
    """Undo whatever in proposals (n, ...) for x (n, ...) the task's limits do not allow.

    In the ball: clipped to it and to the data's range. Tokens: substitutions that the budget rules
    out, and edits beyond it. An attack of the user's own sets its limits itself; the range of the
    data, where there is one, holds all the same.

    Raises:
        TaskError: nothing attacks this task. DataError: proposals for ids are no ids.
    """
    if task.attack_kind == NONE:
        raise TaskError(f"task {task.name!r} says attack = 'none': there is nothing to score")
    if not x.is_floating_point() and proposed.is_floating_point():
        raise DataError(f"proposals are {proposed.dtype}, and inputs are token ids of {x.dtype}")
    proposed = proposed.detach().to(x.dtype)
    if task.tokens is not None:
        return task.tokens.confine(proposed, x)
    if task.attack_kind == BALL:
        return project(torch.where(proposed.isnan(), x, proposed), x, eps, task.reach)
    proposed = torch.where(proposed.isfinite(), proposed, x)
    return proposed if task.bounds is None else proposed.clamp(*task.bounds)


def label_of(task: Task, steps: int, how: str = "greedy") -> str:
    """An attack's name as tables print it."""
    if task.attack_kind == BALL:
        return f"PGD-{steps}"
    if task.attack_kind == OWN:
        return "the task's own attack"
    assert task.tokens is not None, "only tokens are left"
    budget = task.tokens
    kept = f"beam of {budget.beam}" if how == "beam" else "greedy"
    return f"{budget.edits} substitution{'s' * (budget.edits > 1)}, {kept}"
