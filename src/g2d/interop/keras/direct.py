"""Common layers called as torch's functions, in a model that Keras runs; the rest is left to Keras.

What Keras does around the call of a layer takes longer than most small layers do. A layer that can
be translated by itself, and was seen to be called with one shape alone, is called without that. It
has its variables from where Keras would have them, and whatever is unusual about a call (another
shape, a mask, an option, a symbol in place of a tensor) goes to Keras as before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g2d.interop.keras.graph import Reading, Untranslated, Value, nodes_of, tensors_of
from g2d.interop.keras.moves import Move
from g2d.interop.keras.network import KerasBatchNorm1d, KerasBatchNorm2d, SameConv1d, SameConv2d

Kind = tuple[tuple[tuple[int, ...], torch.dtype], ...]
"""What a layer is called with: of each input the shape of an example, and the type."""

Held = Mapping[str, Tensor | None]
Run = Callable[[Any, Held, bool, Tensor], Tensor]


class Bound(dict[int, Tensor]):
    """The values that variables have within one call, by identity, as `StatelessScope` asks.

    What is written is kept here; what is only read is looked up when it is.

    Attributes:
        calls: of each layer that may be called directly, how. seen: None, or what layers were
            called with, by identity.
    """

    def __init__(
        self,
        value_of: Callable[[int], Tensor | None],
        calls: Mapping[int, Call],
        seen: dict[int, set[Kind | None]] | None = None,
    ) -> None:
        super().__init__()
        self._value_of, self.calls, self.seen = value_of, calls, seen

    def get(self, key: int, default: Any = None) -> Any:
        """The value of the variable whose identity is `key`; None: its own."""
        found = super().get(key)
        return self._value_of(key) if found is None else found


class Step(NamedTuple):
    """One module of a layer's translation: what runs it, and which variables it holds."""

    run: Run | None
    module: nn.Module
    held: tuple[tuple[str, int, Move], ...]
    given: tuple[int, ...]


class Call(Protocol):
    """What a layer does if it is called with `kind`."""

    @property
    def kind(self) -> Kind:
        """What it has to be called with."""

    def __call__(self, bound: Bound, given: Sequence[Tensor], training: bool) -> Tensor:
        """What the layer gives, of the order in which Keras has it."""


class InTorch(NamedTuple):
    """What a layer does, in torch."""

    kind: Kind
    steps: tuple[Step, ...]
    out: int

    def __call__(self, bound: Bound, given: Sequence[Tensor], training: bool) -> Tensor:
        """What the layer gives, of the order in which Keras has it."""
        values = {-place: x for place, x in enumerate(given)}
        for place, (run, module, held, took) in enumerate(self.steps, 1):
            if run is None:
                values[place] = module(*[values[one] for one in took])
            else:
                tensors = {name: move.seen(bound.get(key)) for name, key, move in held}
                values[place] = run(module, tensors, training, values[took[0]])
        return values[self.out]


class Through(NamedTuple):
    """What a chain or graph of layers does: each is called, in order, on what others gave.

    Attributes:
        nodes: a layer or operation, the values that it takes and whether as a list, whether it is
            told of training, and the value that it gives.
    """

    kind: Kind
    nodes: tuple[tuple[Any, tuple[int, ...], bool, bool, int], ...]
    source: int
    out: int

    def __call__(self, bound: Bound, given: Sequence[Tensor], training: bool) -> Tensor:
        """What the last one gives."""
        values: dict[int, Any] = {self.source: given[0]}
        for operation, took, listed, told, gives in self.nodes:
            args: list[Any] = [values[one] for one in took]
            more = {"training": training} if told else {}
            values[gives] = operation(args, **more) if listed else operation(*args, **more)
        found: Tensor = values[self.out]
        return found


def _linear(module: nn.Linear, held: Held, training: bool, x: Tensor) -> Tensor:
    return F.linear(x, _weight(held), held.get("bias"))


def _convolve(module: nn.Conv1d | nn.Conv2d, held: Held, training: bool, x: Tensor) -> Tensor:
    x = module.padded(x) if isinstance(module, SameConv1d | SameConv2d) else x
    return module._conv_forward(x, _weight(held), held.get("bias"))


def _normalise(
    module: KerasBatchNorm1d | KerasBatchNorm2d, held: Held, training: bool, x: Tensor
) -> Tensor:
    mean, variance = held["running_mean"], held["running_var"]
    assert mean is not None
    assert variance is not None
    # What Keras itself has written to them before, in the same call, may have a gradient.
    mean, variance = mean.detach(), variance.detach()
    return module.normalised(x, mean, variance, held.get("weight"), held.get("bias"), training)


def _layer_norm(module: nn.LayerNorm, held: Held, training: bool, x: Tensor) -> Tensor:
    shape = tuple(module.normalized_shape)
    return F.layer_norm(x, shape, held.get("weight"), held.get("bias"), module.eps)


def _embed(module: nn.Embedding, held: Held, training: bool, x: Tensor) -> Tensor:
    return F.embedding(x.int() if x.is_floating_point() else x, _weight(held))


def _weight(held: Held) -> Tensor:
    weight = held["weight"]
    assert weight is not None
    return weight


_RUNS: dict[type[nn.Module], Run] = {
    nn.Linear: _linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, SameConv1d, SameConv2d), _convolve),
    **dict.fromkeys((KerasBatchNorm1d, KerasBatchNorm2d), _normalise),
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embed,
    nn.Dropout: lambda m, _, training, x: F.dropout(x, m.p, training),
    nn.Dropout1d: lambda m, _, training, x: F.dropout1d(x, m.p, training),
    nn.Dropout2d: lambda m, _, training, x: F.dropout2d(x, m.p, training),
}


def candidates(model: Any) -> list[Any]:
    """Layers of Keras' own kinds that may be called directly, as deep as they lie; itself, too."""
    from g2d.interop.keras import layers

    return [
        layer
        for layer in model._flatten_layers()
        if (layers.known(type(layer)) or _is_graph(layer)) and "call" not in vars(layer)
    ]


def _is_graph(layer: Any) -> bool:
    own = type(layer).__module__.startswith("keras.src.models.")
    return own and type(layer).__name__ in ("Sequential", "Functional")


def calls(model: Any, seen: Mapping[int, set[Kind | None]]) -> dict[int, Call]:
    """How layers can be called directly, by their identity: those that were seen in one way."""
    found = {}
    for layer in candidates(model):
        kinds = seen.get(id(layer), set())
        kind = next(iter(kinds), None)
        if len(kinds) == 1 and kind is not None:
            try:
                found[id(layer)] = (_through if _is_graph(layer) else _call)(layer, kind)
            except Untranslated:
                continue  # Keras calls it
    return found


def _through(model: Any, kind: Kind) -> Call:
    """How a chain or graph of layers runs on what it was called with, which it takes as it is.

    Raises:
        Untranslated: it would convert that, or takes or gives several values.
    """
    graph = getattr(model, "_functional", None) or model
    if not hasattr(graph, "_nodes_by_depth") or len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise Untranslated("it has no graph with one input and one output")
    if isinstance(graph._outputs_struct, dict):
        raise Untranslated("it gives a dictionary")
    wanted = graph.inputs[0]
    same = len(kind) == 1 and len(kind[0][0]) + 1 == len(wanted.shape)
    if not same or str(kind[0][1]) != f"torch.{wanted.dtype}" or not _is_float32(model):
        raise Untranslated("Keras converts what it is called with")
    nodes = []
    for node in nodes_of(graph):
        took, args = tensors_of(node), list(node.arguments.args)
        if len(node.outputs) != 1:
            raise Untranslated("a layer gives several results")
        listed = len(args) == 1 and isinstance(args[0], list | tuple)
        told = "training" in getattr(node.operation, "_call_context_args", ())
        places = tuple(id(one) for one in took)
        nodes.append((node.operation, places, listed, told, id(node.outputs[0])))
    return Through(kind, tuple(nodes), id(wanted), id(graph.outputs[0]))


def _is_float32(layer: Any) -> bool:
    policy = layer.dtype_policy
    return policy.compute_dtype == policy.variable_dtype == "float32"


def _call(layer: Any, kind: Kind) -> Call:
    """Translate one layer by itself.

    Raises:
        Untranslated: it has no translation, or one that holds tensors that no variable is.
    """
    from g2d.interop.keras import layers

    if type(layer).__name__ != "Embedding" and any(kind is not torch.float32 for _, kind in kind):
        raise Untranslated("Keras converts what it is called with")
    own = list(layer.weights)
    reading = Reading({id(one): place for place, one in enumerate(own)})
    with torch.device("meta"):  # modules are asked what to do; their tensors are never used
        given = [Value(-place, shape) for place, (shape, _) in enumerate(kind)]
        out = reading.plain(layers.translate(reading, layer, given))
    steps = []
    for (name, module), (_, took) in zip(reading.modules, reading.plan, strict=True):
        run = _RUNS.get(type(module))
        if run is None and [*module.parameters(), *module.buffers()]:
            raise Untranslated(f"{type(module).__name__} holds tensors of its own")
        held = tuple(
            (move.name.partition(".")[2], id(own[move.index]), move)
            for move in reading.moves
            if move.name.partition(".")[0] == name
        )
        steps.append(Step(run, module, held, took))
    return InTorch(kind, tuple(steps), out.step)


def open_to_calls(layer: Any) -> None:
    """Have a layer look for its direct call wherever it is called."""
    kind: Any = type(layer)
    object.__setattr__(layer, "__class__", _quick(kind))


@contextmanager
def watched(model: Any) -> Iterator[None]:
    """Have the candidates of a model note what they are called with, in a scope that has `seen`."""
    kinds = [(layer, type(layer)) for layer in candidates(model)]
    for layer, _ in kinds:
        open_to_calls(layer)
    try:
        yield
    finally:
        for layer, kind in kinds:
            object.__setattr__(layer, "__class__", kind)


@functools.cache
def _quick(kind: Any) -> Any:
    """The same class, whose call is direct where it can be."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        found = _directly(self, args, kwargs)
        return kind.__call__(self, *args, **kwargs) if found is None else found

    names = {"__call__": __call__, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), names)


@functools.cache
def _asked() -> tuple[Callable[[str], Any], Callable[[Tensor], Any]]:
    """Keras' own: what holds within a call, and the mask of a tensor."""
    from keras.src.backend import get_keras_mask
    from keras.src.backend.common.global_state import get_global_attribute

    return get_global_attribute, get_keras_mask


def _directly(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """What a layer gives; None: Keras has to call it."""
    attribute, _ = _asked()
    scope = attribute("stateless_scope")
    bound = getattr(scope, "state_mapping", None)
    if not isinstance(bound, Bound):
        return None
    call = bound.calls.get(id(layer))
    if call is None and bound.seen is None:
        return None
    given = args[0] if len(args) == 1 and isinstance(args[0], list | tuple) else args
    kind = _kind(given)
    if bound.seen is not None:
        bound.seen.setdefault(id(layer), set()).add(kind)
    if call is None or kind != call.kind:
        return None
    training = _training(attribute("current_call_ctx"), kwargs)
    return None if training is None else call(bound, given, training)


def _kind(given: Sequence[Any]) -> Kind | None:
    """What a layer is given; None: no tensors alone, or one that has a mask."""
    _, mask_of = _asked()
    tensors = all(isinstance(x, Tensor) and x.dim() and mask_of(x) is None for x in given)
    if not given or not tensors:
        return None
    return tuple((tuple(x.shape[1:]), x.dtype) for x in given)


def _training(context: Any, kwargs: dict[str, Any]) -> bool | None:
    """Whether a layer trains, as Keras finds it; None: it is not said, or more is.

    What a call says holds for those behind it, too.
    """
    more = any(value is not None for name, value in kwargs.items() if name != "training")
    if context is None or more:  # Keras itself writes down a mask that is None
        return None
    if "training" not in kwargs:
        training = context.get_value("training")
        return None if training is None else bool(training)
    if kwargs["training"] is None:
        return None
    context.set_value("training", kwargs["training"])
    return bool(kwargs["training"])
