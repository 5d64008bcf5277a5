"""A Keras model's graph, read into torch modules; what is not known stops it, and says why.

What becomes of each kind of layer is in `layers`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from g2d.interop.keras.building import variables
from g2d.interop.keras.moves import Move
from g2d.interop.network import Network, Permute, Reorder


class Untranslated(Exception):  # noqa: N818 (no error: the adapter takes over)
    """A model cannot be translated; the message says what of it."""


@dataclass(frozen=True, eq=False)
class Value:
    """What a step gives.

    Attributes:
        step: which. shape: of one example, in Keras' order.
        first: whether its channels come first in torch. order: of flattened features, where torch
            has them with channels first: torch's feature j is Keras' feature order[j].
    """

    step: int
    shape: tuple[int | None, ...]
    first: bool = False
    order: Tensor | None = None

    @property
    def width(self) -> int:
        """The number of channels, or features."""
        width = self.shape[-1]
        if width is None:
            raise Untranslated("a layer's number of channels is not known beforehand")
        return width

    def same_layout(self, other: Value) -> bool:
        """Whether both lie alike."""
        alike = self.order is other.order or (
            self.order is not None
            and other.order is not None
            and torch.equal(self.order, other.order)
        )
        return self.first == other.first and alike and len(self.shape) == len(other.shape)


@dataclass
class Reading:
    """A graph as far as it has been read."""

    index: dict[int, int]  # place of each variable, by its identity
    modules: list[tuple[str, nn.Module]] = field(default_factory=list)
    plan: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)

    def add(self, kind: str, module: nn.Module, given: Sequence[Value], result: Value) -> Value:
        """Put a step behind the others; `kind` names it, with its place."""
        name = f"{kind}_{len(self.modules)}"
        self.modules.append((name, module))
        self.plan.append((name, tuple(value.step for value in given)))
        return replace(result, step=len(self.plan))

    def hold(self, variable: Any, name: str, **how: Any) -> None:
        """Say that a variable is a tensor of the module that was added last."""
        self.moves.append(Move(self.index[id(variable)], f"{self.modules[-1][0]}.{name}", **how))

    def plain(self, value: Value) -> Value:
        """The value as Keras has it."""
        result = replace(value, first=False, order=None)
        if value.first:
            axes = (0, *range(2, len(value.shape) + 1), 1)
            return self.add("channels_last", Permute(*axes), [value], result)
        if value.order is not None:
            return self.add("reorder", Reorder(value.order.argsort()), [value], result)
        return value

    def first(self, value: Value) -> Value:
        """The value with its channels first."""
        if value.first:
            return value
        axes = (0, len(value.shape), *range(1, len(value.shape)))
        result = replace(value, first=True)
        return self.add("channels_first", Permute(*axes), [value], result)


def read(model: Any) -> tuple[Network, list[Move], str]:
    """Translate a built model; its own weights are not put into the network.

    Returns:
        The network, where its variables are, and what was left out of its end: "softmax",
        "sigmoid" or "".

    Raises:
        Untranslated: something in it is not known.
    """
    from g2d.interop.keras import layers

    weights = variables(model)
    reading = Reading({id(one): place for place, one in enumerate(weights)})
    graph = _graph(model)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise Untranslated("it has several inputs or outputs")
    shape = tuple(graph.inputs[0].shape[1:])
    if not shape:
        raise Untranslated("its inputs have no shape")
    out = _run(reading, graph, Value(0, shape), layers)
    out = reading.plain(out)
    head = _cut_head(reading, out)
    if len(reading.moves) != len(weights):
        raise Untranslated("some of its variables belong to no layer that is known")
    return Network(reading.modules, reading.plan, len(reading.plan)), reading.moves, head


def _graph(model: Any) -> Any:
    """The graph of a functional model, or of a chain of layers."""
    graph = getattr(model, "_functional", None) or model
    if type(model).__name__ not in ("Sequential", "Functional"):
        raise Untranslated(
            f"{type(model).__name__} is a class of its own, with a call() of its own"
        )
    if not hasattr(graph, "_nodes_by_depth"):
        raise Untranslated(f"{type(model).__name__} has no graph of layers")
    return graph


def nodes_of(graph: Any) -> list[Any]:
    """The calls of layers and operations in a graph, each behind those whose results it takes."""
    return [
        node
        for depth in sorted(graph._nodes_by_depth, reverse=True)
        for node in graph._nodes_by_depth[depth]
        if not node.is_input
    ]


def _run(reading: Reading, graph: Any, given: Value, layers: Any) -> Value:
    nodes = nodes_of(graph)
    uses = Counter(id(node.operation) for node in nodes)
    values = {id(graph.inputs[0]): given}
    for node in nodes:
        operation = node.operation
        if type(operation).__name__ == "InputLayer":
            continue
        if uses[id(operation)] > 1:
            raise Untranslated(f"layer {operation.name!r} is shared: it is used in several places")
        took = tensors_of(node)
        if any(id(tensor) not in values for tensor in took):
            raise Untranslated(f"layer {operation.name!r} takes what is no layer's result")
        result = _step(reading, operation, [values[id(t)] for t in took], layers)
        if len(node.outputs) != 1:
            raise Untranslated(f"layer {operation.name!r} gives several results")
        if tuple(node.outputs[0].shape[1:]) != result.shape:
            raise Untranslated(f"layer {operation.name!r} gives another shape than was expected")
        values[id(node.outputs[0])] = result
    return values[id(graph.outputs[0])]


def _step(reading: Reading, operation: Any, given: list[Value], layers: Any) -> Value:
    """What one layer gives, or a model within the model."""
    if type(operation).__name__ in ("Sequential", "Functional"):
        graph = _graph(operation)
        if len(given) != 1 or len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise Untranslated(f"the model {operation.name!r} in it has several inputs or outputs")
        return _run(reading, graph, reading.plain(given[0]), layers)
    return layers.translate(reading, operation, given)


def tensors_of(node: Any) -> list[Any]:
    """What a node takes, in order.

    Raises:
        Untranslated: numbers or options beside tensors.
    """
    args = list(node.arguments.args)
    if len(args) == 1 and isinstance(args[0], list | tuple):
        args = list(args[0])
    wanted = list(node.input_tensors)
    # How the model is called goes before a `training` that a layer was called with.
    extra = {k for k, v in node.arguments.kwargs.items() if v is not None} - {"training"}
    if len(args) != len(wanted) or any(a is not b for a, b in zip(args, wanted, strict=True)):
        raise Untranslated(f"operation {node.operation.name!r} takes more than layers' results")
    if extra:
        raise Untranslated(
            f"layer {node.operation.name!r} is called with {', '.join(sorted(extra))}"
        )
    return args


def _cut_head(reading: Reading, out: Value) -> str:
    """Take off a last step that makes probabilities of logits, and say which it was."""
    if out.step != len(reading.plan):
        raise Untranslated("its result is not what its last layer gives")
    module = reading.modules[-1][1]
    head = "softmax" if isinstance(module, nn.Softmax) else ""
    if isinstance(module, nn.Sigmoid) and out.shape == (1,):
        head = "sigmoid"
    if head:
        reading.modules.pop()
        reading.plan.pop()
    return head
