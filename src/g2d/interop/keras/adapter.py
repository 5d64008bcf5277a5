"""A Keras model that is run by Keras itself, inside a torch module whose state is plain tensors.

A bare `keras.Model` would not do: its state dict names tensors twice and by global counters, batch
norm's statistics are parameters there, and `.train()` changes nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from g2d.errors import TaskError
from g2d.interop.keras.building import SEEDS, names, require, variables
from g2d.interop.keras.direct import Bound, Call, Kind, calls, open_to_calls, watched

_HEADS = {"softmax": 1e-5, "sigmoid": 1e-5}


class Held:
    """A Keras model that is no part of the module: its own weights are never read nor written.

    Attributes:
        names: of its variables that are parameters or buffers, by identity. others: those of them
            that a call may write. seeds, foreign: the states of layers' own randomness, drawn anew
            for each call, and what else is no weight; by identity.
        calls: layers that are called without Keras' own checks (`direct`), by identity.
    """

    def __init__(self, model: Any) -> None:
        self.keras, self.model = require(), model
        own = list(zip(names(model), variables(model), strict=True))
        self.names = {id(one): (name, one.value.dtype) for name, one in own}
        trains = {id(one) for one in model.trainable_variables}
        self.others = {id(one): name for name, one in own if id(one) not in trains}
        strange = [one for one in model.non_trainable_variables if id(one) not in self.names]
        self.seeds = {id(one) for one in strange if one.path.endswith(SEEDS)}
        self.foreign = {
            id(one): one.value.detach().clone() for one in strange if id(one) not in self.seeds
        }
        self.calls: dict[int, Call] = {}

    def __deepcopy__(self, memo: object) -> Held:
        return self  # what differs between copies is given with each call

    def __call__(self, bound: Bound, x: Tensor, training: bool) -> Tensor:
        """Logits of x, with other values than the variables' own.

        As the model is called, and not its `call()` as `stateless_call` has it: that would have to
        take `training`, and layers in it that are not given it would never know.
        """
        scope = self.keras.StatelessScope()
        scope.state_mapping = bound
        with self.keras.device(str(x.device)), scope:
            context = self.model._get_call_context()
            context.set_value("training", training)
            try:
                logits: Tensor = self.model(x, training=training)
            finally:
                self.model._maybe_reset_call_context()
        return logits


class Adapter(nn.Module):
    """Runs a Keras model without its state. x (N, ...) in Keras' order to logits (N, classes).

    What trains is a parameter, everything else a buffer; each is named by its place and kind. In
    training mode layers behave so, and buffers that move are written. The randomness of layers
    comes from torch's global generator.

    Args:
        model: built for this alone. tried: a few examples, to see which layers of it can be called
            directly; None: none is.
    """

    def __init__(self, model: Any, tried: Tensor | None = None) -> None:
        super().__init__()
        self._held = Held(model)
        for name, one in zip(names(model), variables(model), strict=True):
            value = one.value.detach().clone()
            if id(one) in self._held.others:
                self.register_buffer(name, value)
            else:
                self.register_parameter(name, nn.Parameter(value))
        if tried is not None:
            self._call_directly(tried)

    @property
    def direct(self) -> int:
        """How many layers are called directly."""
        return len(self._held.calls)

    @torch.no_grad()
    def _call_directly(self, x: Tensor) -> None:
        seen: dict[int, set[Kind | None]] = {}
        model = self._held.model
        with watched(model):
            self._held(self._bound(x, False, seen), x, False)
        self._held.calls = calls(model, seen)
        for layer in model._flatten_layers():
            if id(layer) in self._held.calls:
                open_to_calls(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of x (N, ...)."""
        bound = self._bound(x, self.training)
        logits = self._held(bound, x, self.training)
        if self.training:
            self._write(bound)
        return logits

    def _bound(
        self, x: Tensor, training: bool, seen: dict[int, set[Kind | None]] | None = None
    ) -> Bound:
        """The values of all variables, as they are asked for."""
        held = self._held

        def value_of(key: int) -> Tensor | None:
            if (found := held.names.get(key)) is not None:
                name, dtype = found
                value: Tensor = getattr(self, name)
                return value if value.dtype == dtype else value.to(dtype)
            if key in held.seeds:
                bound[key] = self._seed(x, training)  # one for all of this call
                return bound[key]
            return held.foreign[key].to(x.device) if key in held.foreign else None

        bound = Bound(value_of, held.calls, seen)
        return bound

    def _seed(self, x: Tensor, training: bool) -> Tensor:
        if not training:
            return torch.zeros(2, dtype=torch.int32, device=x.device)
        return torch.randint(2**31 - 1, (2,), dtype=torch.int32).to(x.device)

    @torch.no_grad()
    def _write(self, bound: Bound) -> None:
        for key in bound.keys() & self._held.others.keys():
            getattr(self, self._held.others[key]).copy_(bound[key])


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
