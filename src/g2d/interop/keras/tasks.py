"""A task whose factory is a Keras builder, and which way its model runs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from g2d.errors import DataWarning, TaskError
from g2d.interop.keras.adapter import Adapter, beheaded
from g2d.interop.keras.building import Builder, build, names, require, variables
from g2d.interop.keras.graph import Untranslated, read
from g2d.interop.keras.moves import Move, as_state
from g2d.interop.keras.trial import WITHIN, difference, still
from g2d.tasks.building import seeded
from g2d.tasks.one_logit import TwoClasses
from g2d.tasks.splits import Splits
from g2d.tasks.task import Task

__all__ = ["WITHIN", "KerasFactory", "factory_of", "task", "way"]

_TRIED = 64  # examples that a translation is tried on


@dataclass(frozen=True)
class KerasFactory:
    """Builds a module that does what the builder's Keras model does, from torch's seed.

    Attributes:
        builder: the user's. shape, dtype: of one example, channels last. classes: of the logits.
        native: whether the model is translated to torch; else Keras runs it. why: why it is not.
        head: what was taken off its end, so that it answers logits: "softmax", "sigmoid" or "".
        direct: whether common layers of what Keras runs are called directly, by torch.
    """

    builder: Builder
    shape: tuple[int, ...]
    dtype: torch.dtype
    classes: int
    native: bool = True
    why: str = ""
    head: str = ""
    probe: Tensor | None = field(default=None, repr=False, compare=False)
    direct: bool = False

    def __call__(self) -> nn.Module:
        """Build the module."""
        model = self.keras_model()
        if self.native:
            return translated(model)
        if self.head and self.probe is not None:
            beheaded(model, self.probe, self.classes)
        return self.adapter(model)

    def adapter(self, model: Any) -> Adapter:
        """A model that answers logits, run by Keras; it is used for this alone."""
        return Adapter(
            model, torch.zeros(2, *self.shape, dtype=self.dtype) if self.direct else None
        )

    def keras_model(self) -> Any:
        """Build the Keras model as it is."""
        return build(self.builder, self.shape, self.dtype)

    def moves(self, model: Any) -> Sequence[Move]:
        """Which tensor of the module each variable of a model is."""
        if self.native:
            return read(model)[1]
        return [Move(index, name) for index, name in enumerate(names(model))]


def translated(model: Any) -> nn.Module:
    """The torch module of a Keras model that can be translated, with its values."""
    network, moves, _ = read(model)
    values = [one.value.detach() for one in variables(model)]
    state = as_state(moves, values)
    network.load_state_dict(state, strict=False)
    assert set(state) <= set(network.state_dict())
    return network


def task(
    builder: Builder,
    splits: Splits,
    *,
    name: str = "keras",
    classes: int = 0,
    native: bool | None = None,
    **more: Any,
) -> Task:
    """Make a task of a Keras model: x stays as Keras has it, channels last, in the service, too.

    Common layers are translated to torch, and the translation is tried on examples before it
    counts; whatever is not known is run by Keras, more slowly. `way` says which of the two it is. A
    last softmax (or sigmoid of one number) is taken off: G2D works with logits. `save` puts it
    back.

    Args:
        builder: a function without arguments that builds a `keras.Model`; or a `.keras` file, whose
            architecture is taken (its weights by `weights`, as a base).
        splits: x (N, ...) in the model's own order. classes: 0: as many as the model answers.
        native: True: to translate or to refuse; False: Keras runs it. None: as is possible.
        more: what else a `Task` takes.

    Raises:
        TaskError: Keras is missing or on another backend, the builder fails, the examples do not
            fit the model, it has Lambda layers, or it does not fit as any other `Task`.
    """
    x = splits.guide.x[:_TRIED]
    with seeded(0):
        model = build(builder, tuple(x.shape[1:]), x.dtype)
    _tell_losses(model)
    width = _width(model, x)
    count = classes or len(splits.labels) or (2 if width == 1 else width)
    factory = KerasFactory(builder, tuple(x.shape[1:]), x.dtype, count)
    head, why = "", "you asked for it"
    if native is not False:
        head, why = _try_translation(model, x)
        if why and native:
            raise TaskError(f"the Keras model cannot be translated to torch: {why}")
    if why or native is False:
        with seeded(0):
            model = build(builder, factory.shape, x.dtype)
        head = beheaded(model, x, count)
        factory = KerasFactory(
            builder, factory.shape, x.dtype, count, False, why, head, x[:8].clone(), True
        )
        if not _is_right(factory, model, x):
            factory = replace(factory, direct=False)
    else:
        factory = KerasFactory(builder, factory.shape, x.dtype, count, head=head)
    return Task(name, factory, splits, classes=count, **more)


def way(made: Task) -> str:
    """How a task's Keras model runs, in a line.

    Raises:
        TaskError: it is no task of a Keras model.
    """
    factory = factory_of(made)
    head = f"; its last {factory.head} is taken off" if factory.head else ""
    if factory.native:
        return f"translated to torch{head}"
    how = "its common layers by torch" if factory.direct else "more slowly"
    return f"run by Keras, {how}, for {factory.why}{head}"


def factory_of(made: Task) -> KerasFactory:
    """The factory of a Keras task.

    Raises:
        TaskError: it is another's.
    """
    factory = made.factory.factory if isinstance(made.factory, TwoClasses) else made.factory
    if not isinstance(factory, KerasFactory):
        raise TaskError(
            f"task {made.name!r} is no task of a Keras model; make it by g2d.interop.keras.task"
        )
    return factory


def _width(model: Any, x: Tensor) -> int:
    """How many numbers the model answers for an example."""
    with require().device("cpu"), torch.no_grad():
        out = model(x[:2], training=False)
    if not isinstance(out, Tensor) or out.dim() != 2:
        given = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise TaskError(f"the Keras model answers {given} for 2 examples, expected (2, classes)")
    return out.shape[1]


def _try_translation(model: Any, x: Tensor) -> tuple[str, str]:
    """What a translation takes off the model's end, and why there is none; "": it is right."""
    still(model)
    try:
        network, moves, head = read(model)
    except Untranslated as error:
        return "", str(error)
    why = difference(model, network, moves, x, head)
    return ("", why) if why else (head, "")


def _is_right(factory: KerasFactory, model: Any, x: Tensor) -> bool:
    """Whether layers of a model that answers logits can be called directly."""
    still(model)
    try:
        adapter = factory.adapter(model)
        return adapter.direct > 0 and not difference(model, adapter, factory.moves(model), x)
    except Exception:  # whatever a user's model makes of it: Keras calls all of its layers
        return False


def _tell_losses(model: Any) -> None:
    """Say what of a model's training is Keras' own, and not done here."""
    kinds = ("kernel_regularizer", "bias_regularizer", "activity_regularizer",
             "kernel_constraint", "bias_constraint")  # fmt: skip
    found = [
        f"{layer.name} has a {kind}"
        for layer in model._flatten_layers()
        for kind in kinds
        if getattr(layer, kind, None) is not None
    ]
    if found:
        warnings.warn(
            f"the Keras model's regularizers and constraints are not used here ({found[0]}): put "
            "them into the task's loss, or [harden]",
            DataWarning,
            stacklevel=3,
        )
