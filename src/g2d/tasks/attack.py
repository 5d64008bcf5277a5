"""How a task's inputs are attacked: in a ball, by substituting tokens, by its own code, not at all.

Checks what a `Task` says of it; attacks themselves are in `g2d.attacks`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from g2d.errors import DataError, TaskError
from g2d.tasks.embeddings import watch

if TYPE_CHECKING:
    from g2d.tasks.task import Task

Attack = Callable[[Sequence[nn.Module], Tensor, Tensor, torch.Generator], Tensor]
"""attack(models, x, y, generator): proposals in the shape and dtype of x, each to fool models."""

NONE = "none"
BALL, TOKENS, OWN = "ball", "tokens", "own"

_CHOICES = (
    "give tokens=TokenBudget(...) if they are token ids, an attack of your own (attack=…), or "
    "attack='none' to rotate without one"
)


def kind_of(task: Task) -> str:
    """How a task is attacked: 'none', 'own', 'tokens', or 'ball' (the L-infinity ball of eps)."""
    if task.attack is not None:
        return NONE if task.attack == NONE else OWN
    return BALL if task.tokens is None else TOKENS


def words_of(task: Task) -> str:
    """How a task is attacked, in words for results and pages; "" for the ball of eps."""
    budget = f", {task.tokens.words()}" if task.tokens is not None else ""
    if task.attack_kind == NONE:
        return "attack = 'none': nothing attacks"
    if task.attack_kind == OWN:
        return f"the task's own attack, {_name(task.attack)}{budget}"
    return f"substitution of tokens{budget}" if task.attack_kind == TOKENS else ""


def _name(attack: Any) -> str:
    return str(getattr(attack, "__qualname__", type(attack).__name__))


def note_of(task: Task) -> dict[str, str]:
    """What a vault remembers with its base of how the task is attacked; {} for the plain ball.

    `limits` is a digest of what the attacker may change: of a table's budget, or of a token budget.
    """
    note = {} if task.attack_kind == BALL else {"attack": task.attack_kind}
    limits = [one for one in (task.budget, task.tokens) if one is not None]
    if limits:
        note["limits"] = hashlib.sha256(repr(limits).encode()).hexdigest()
    return note


def check_attack(task: Task) -> None:
    """Check how a task says that it is attacked, against its data.

    Raises:
        TaskError: it is no attack, or does not fit the inputs.
        DataError: an id lies outside the vocabulary.
    """
    if task.attack is not None and task.attack != NONE and not callable(task.attack):
        raise TaskError(
            f"task {task.name!r}: attack is {task.attack!r}, expected a function "
            "attack(models, x, y, generator) that returns proposals in the shape of x, 'none', or "
            "None for the attack that fits the inputs"
        )
    x = task.splits.guide.x
    if x.is_floating_point():
        if task.tokens is not None:
            raise TaskError(
                f"task {task.name!r}: tokens are given, and inputs are {x.dtype}; ids have to be "
                "integers: convert them with x.long(), and the model casts nothing"
            )
        return
    if task.tokens is None and task.attack is None:
        raise TaskError(
            f"task {task.name!r}: inputs are {x.dtype}, which have no gradient: {_CHOICES}; if "
            "they are plain numbers, convert them with x.float()"
        )


def with_vocabulary(task: Task, model: nn.Module) -> None:
    """Fill in the vocabulary of a task's budget, from the embedding that reads its ids, and check.

    Raises:
        TaskError: no embedding reads the ids, places lie outside the inputs, or nothing can be
            replaced. DataError: an id lies outside the vocabulary.
    """
    budget = task.tokens
    if budget is None:
        return
    if (size := _embedded(task, model)) is None:
        return  # the model fails, and what is tried next says why
    vocabulary = budget.vocabulary or size
    if task.attack is None and not size:
        raise TaskError(
            f"task {task.name!r}: no nn.Embedding of the model reads the token ids as they are, so "
            "that substitutions have no gradient to follow; give an attack of your own "
            "(attack=…), or attack='none'"
        )
    if size and vocabulary > size:
        raise TaskError(
            f"task {task.name!r}: the vocabulary has {vocabulary} ids, and the model's embedding "
            f"{size}; correct TokenBudget(vocabulary=…) or the embedding"
        )
    places = task.splits.guide.x[:1].numel()
    if budget.fixed and max(budget.fixed) >= places:
        raise TaskError(
            f"task {task.name!r}: fixed place {max(budget.fixed)} lies outside an input of {places}"
            " tokens, which are counted from 0"
        )
    if not vocabulary and budget.candidates is None:
        raise TaskError(
            f"task {task.name!r}: how many ids there are is not known; give "
            "TokenBudget(vocabulary=…) or its candidates"
        )
    object.__setattr__(task, "tokens", replace(budget, vocabulary=vocabulary))
    check_ids(task, vocabulary)


def _embedded(task: Task, model: nn.Module) -> int | None:
    """How many ids the smallest embedding has that reads the inputs; 0: none does.

    Asked with ids 0 and 1 in turn: those of the data may lie outside the vocabulary. None where the
    model fails on those and on its own data.
    """
    own = task.splits.guide.x[:2]
    turns = (torch.arange(own.numel()) % 2).view(own.shape).to(own.dtype)
    for x in (turns, own):
        try:
            with torch.random.fork_rng(devices=[]), watch(model.eval(), x) as found:
                model(x)
        except Exception:  # noqa: S112 — tried again with its own data, which a user is told of
            continue
        return min((len(one.weight) for one in found), default=0)
    return None


def check_ids(task: Task, vocabulary: int = 0) -> None:
    """Refuse ids that the vocabulary does not hold.

    Raises:
        DataError: names the split and the first such id.
    """
    highest = vocabulary - 1 if vocabulary else None
    for item in fields(task.splits):
        x = getattr(task.splits, item.name).x
        least, largest = (int(end) for end in x.aminmax())
        if least < 0 or (highest is not None and largest > highest):
            wrong = least if least < 0 else largest
            raise DataError(
                f"task {task.name!r}: the {item.name} split holds token id {wrong}, outside the "
                f"vocabulary, whose ids are 0 to {highest if highest is not None else '…'}; enlarge"
                " the embedding, or map unknown words to an id that it has"
            )
