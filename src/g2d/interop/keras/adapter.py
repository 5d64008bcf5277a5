"""A Keras model that is run by Keras itself, inside a torch module whose state is plain tensors.

A bare `keras.Model` would not do: its state dict names tensors twice and by global counters, batch
norm's statistics are parameters there, and `.train()` changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from g2d.errors import TaskError
from g2d.interop.keras.building import SEEDS, names, require, variables

_HEADS = {"softmax": 1e-5, "sigmoid": 1e-5}


class Held:
    """A Keras model that is no part of the module: its own weights are never read nor written.

    Attributes:
        trained, others: its variables, which Keras would find anew for each call.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.trained = tuple(model.trainable_variables)
        self.others = tuple(model.non_trainable_variables)

    def __deepcopy__(self, memo: object) -> Held:
        return self  # what differs between copies is given with each call

    def __call__(
        self, trained: Sequence[Tensor], others: Sequence[Tensor], x: Tensor, training: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits of x, and what became of `others`, with other values than the variables' own.

        As the model is called, and not its `call()` as `stateless_call` has it: that would have to
        take `training`, and layers in it that are not given it would never know.
        """
        keras = require()
        values = [*zip(self.trained, trained, strict=True), *zip(self.others, others, strict=True)]
        with keras.device(str(x.device)), keras.StatelessScope(values) as scope:
            logits = self.model(x, training=training)
        return logits, [scope.get_current_value(one) for one in self.others]


class Adapter(nn.Module):
    """Runs a Keras model without its state. x (N, ...) in Keras' order to logits (N, classes).

    What trains is a parameter, everything else a buffer; each is named by its place and kind. In
    training mode layers behave so, and buffers that move are written. The randomness of layers
    comes from torch's global generator.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._held = Held(model)
        trains = {id(one) for one in self._held.trained}
        name_of = {}
        for name, one in zip(names(model), variables(model), strict=True):
            value = one.value.detach().clone()
            name_of[id(one)] = name
            if id(one) in trains:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self._trained = [name_of[id(one)] for one in self._held.trained]
        # None: the state of a layer's randomness, drawn anew for each call.
        self._others = [name_of.get(id(one)) for one in self._held.others]
        self._foreign = {
            place: one.value.detach().clone()
            for place, one in enumerate(self._held.others)
            if id(one) not in name_of and not one.path.endswith(SEEDS)
        }

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of x (N, ...)."""
        trained = [getattr(self, name) for name in self._trained]
        others = [
            self._foreign[place].to(x.device) if place in self._foreign else self._seed(x)
            if name is None
            else getattr(self, name)
            for place, name in enumerate(self._others)
        ]  # fmt: skip
        logits, after = self._held(trained, others, x, self.training)
        if self.training:
            self._write(after)
        return logits

    def _seed(self, x: Tensor) -> Tensor:
        if not self.training:
            return torch.zeros(2, dtype=torch.int32, device=x.device)
        return torch.randint(2**31 - 1, (2,), dtype=torch.int32).to(x.device)

    @torch.no_grad()
    def _write(self, after: Sequence[Tensor]) -> None:
        for name, value in zip(self._others, after, strict=True):
            if name is not None and (buffer := getattr(self, name)) is not value:
                buffer.copy_(value)


def beheaded(model: Any, x: Tensor, classes: int) -> str:
    """Have a model answer logits: a last softmax, or sigmoid of one number, is taken off.

    Which layer makes the probabilities is tried, not guessed: the function has to give them of
    what is left.

    Args:
        model: built for this alone; its layer is changed. x: a few examples.

    Returns:
        "softmax", "sigmoid", or "": it answers logits already.

    Raises:
        TaskError: it answers probabilities, made where they cannot be taken off.
    """
    keras = require()
    with keras.device("cpu"), torch.no_grad():
        before = model(x, training=False)
        head = _looks_like(before)
        if not head:
            return ""
        undo = {"softmax": lambda z: z.softmax(-1), "sigmoid": torch.sigmoid}[head]
        for layer in reversed(list(model._flatten_layers())):
            if (former := _switched_off(keras, layer, head)) is None:
                continue
            after = model(x, training=False)
            if not torch.equal(after, before) and _near(undo(after), before, _HEADS[head]):
                return head
            former()
    raise TaskError(
        f"the Keras model answers probabilities ({head}), and G2D needs logits ({classes} classes):"
        " leave the last activation out, or make it a layer's own"
    )


def _near(one: Tensor, other: Tensor, within: float) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= within)


def _looks_like(out: Any) -> str:
    """Which function answers look to be of, shape (N, classes)."""
    if not isinstance(out, Tensor) or out.dim() != 2 or bool((out < 0).any() | (out > 1).any()):
        return ""
    if out.shape[1] == 1:
        return "sigmoid"
    return "softmax" if _near(out.sum(1), torch.ones(len(out)), 1e-4) else ""


def _switched_off(keras: Any, layer: Any, head: str) -> Any:
    """Take a layer's activation off; a function that puts it back, or None: it has no such one."""
    if getattr(layer, "activation", None) is getattr(keras.activations, head):
        former = layer.activation
        layer.activation = keras.activations.linear
        return lambda: setattr(layer, "activation", former)
    if head == "softmax" and type(layer) is keras.layers.Softmax:
        layer.call = lambda inputs, mask=None: inputs
        return lambda: delattr(layer, "call")
    return None
