"""An ONNX file's graph as a torch module that trains, and as the factory of a task.

What becomes of each operator is in `operators`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from g2d.core.files import read_plain
from g2d.errors import CheckpointError, TaskError
from g2d.interop.network import Network
from g2d.interop.onnx.export import WITHIN, distance, require
from g2d.interop.onnx.folding import ROOM
from g2d.interop.wording import legible, short
from g2d.tasks.building import seeded
from g2d.tasks.inference import predict
from g2d.tasks.one_logit import TwoClasses
from g2d.tasks.splits import Splits
from g2d.tasks.task import Task

_TRIED = 64  # examples that a model which was read is tried on
_TOLD = 8  # kinds of operators that a message names
_MOST = 1 << 31  # bytes: what protobuf holds
_WIDE = 1 << 27  # numbers that a value may have for each example: half a gigabyte


@dataclass
class Reading:
    """A graph as far as it has been read.

    Attributes:
        constants: tensors that are known, by name. steps: which step gives a name; 0: the input.
        shapes: of what has a known rank, by name; None where a size is not known.
        uses: how often a name is taken. opsets: the file's. room: numbers that may be computed of
            constants. weights: the file's values, by the module's names.
        uncovered: operators that are not known, and of known ones what is not.
        head: a last softmax or sigmoid that was left out.
    """

    constants: dict[str, Tensor]
    shapes: dict[str, tuple[int | None, ...]]
    uses: Counter[str]
    opsets: Any
    room: int
    steps: dict[str, int] = field(default_factory=dict)
    modules: list[tuple[str, nn.Module]] = field(default_factory=list)
    plan: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    uncovered: list[str] = field(default_factory=list)
    head: str = ""

    def add(self, node: Any, module: nn.Module, given: list[str], **weights: Tensor | None) -> None:
        """Put a step behind the others, with the file's values for the module's tensors."""
        name = f"{node.op_type.lower()}_{len(self.modules)}"
        self.modules.append((name, module))
        self.plan.append((name, tuple(self.steps[one] for one in given)))
        self.steps[node.output[0]] = len(self.plan)
        self.weights |= {f"{name}.{key}": t for key, t in weights.items() if t is not None}

    def rank(self, name: str) -> int:
        """How many axes a value has, the first with the examples; 0: that is not known."""
        return len(self.shapes.get(name, ()))


@dataclass(frozen=True)
class OnnxFactory:
    """Builds the module of a file, initialised by torch from its generator.

    Attributes:
        path: of the file, which has to stay as it is.
    """

    path: Path

    def __call__(self) -> nn.Module:
        """Build the module."""
        return built(self.path)[0]


def model(path: Path | str) -> nn.Module:
    """Read an ONNX file as a torch module with the file's weights; a last softmax is left out.

    Raises:
        TaskError: onnx is missing, the file is none, or it has operators that are not covered.
    """
    module, reading = built(Path(path))
    module.load_state_dict(reading.weights, strict=False)
    return module.eval()


def weights(made: Task, path: Path | str) -> dict[str, Tensor]:
    """Read a file's weights as the state dict of an ONNX task, for `Defence.adopt_base`.

    Raises:
        TaskError: the file cannot be read. CheckpointError: it is of another model, or the task's
            model answers otherwise with its weights than onnxruntime does.
    """
    path, factory = Path(path).absolute(), made.factory
    plain = factory.factory if isinstance(factory, TwoClasses) else factory
    with seeded(0):
        network = plain()
    state, read = network.state_dict(), model(path).state_dict()
    if {n: t.shape for n, t in read.items()} != {n: t.shape for n, t in state.items()}:
        raise CheckpointError(f"{path} is of another model than task {made.name!r}")
    network.load_state_dict(read)
    far = _away(path, network.eval(), made.splits.guide.x[:_TRIED])
    if not far <= WITHIN:
        raise CheckpointError(
            f"{path} is of another model than task {made.name!r}: with its weights the task's"
            f" answers are {far:.1e} away from the file's"
        )
    return read


def task(
    path: Path | str, splits: Splits, *, name: str = "onnx", classes: int = 0, **more: Any
) -> Task:
    """Make a task of an ONNX file's architecture; its weights are what `weights` reads.

    The module is tried on examples against onnxruntime before it counts.

    Args:
        splits: x (N, ...) as the file takes it. classes: 0: as many as the model answers.
        more: what else a `Task` takes.

    Raises:
        TaskError: the file cannot be read, answers otherwise than onnxruntime, or does not fit.
    """
    path = Path(path).absolute()
    module, x = model(path), splits.guide.x[:_TRIED]
    far = _away(path, module, x)
    if not far <= WITHIN:
        raise TaskError(
            f"{path} was read as a module whose answers are {far:.1e} away from onnxruntime's, "
            f"more than {WITHIN:g}: it has something that is not covered"
        )
    found = predict(module, x[:2])
    width = found.shape[1] if found.dim() == 2 else 0
    count = classes or len(splits.labels) or (2 if width == 1 else width)
    return Task(name, OnnxFactory(path), splits, classes=count, **more)


def _away(path: Path, module: nn.Module, x: Tensor) -> float:
    """How far a module's answers are from those of a file, in onnxruntime.

    Raises:
        TaskError: one of the two cannot run on x.
    """
    _, runtime = require()
    head = built(path)[1].head
    try:
        found = predict(module, x)
        said = {"softmax": found.softmax(-1), "sigmoid": found.sigmoid()}.get(head, found)
        return distance(runtime, _data(path), said, x)
    except Exception as error:  # torch's, or onnxruntime's own kinds
        raise TaskError(
            f"{path} cannot run on the examples, which are {tuple(x.shape[1:])} {x.dtype}: "
            f"{short(error)}"
        ) from error


def built(path: Path) -> tuple[nn.Module, Reading]:
    """A fresh module of a file, and what was read.

    Raises:
        TaskError: it cannot be read, or not as a module.
    """
    reading = _read(_parsed(_data(path), path), path)
    return Network(reading.modules, reading.plan, len(reading.plan)), reading


def _data(path: Path) -> bytes:
    try:
        return read_plain(path, _MOST, follow=True)
    except OSError as error:
        raise TaskError(f"cannot read {path}: {error.strerror}") from error


@lru_cache(maxsize=2)
def _parsed(data: bytes, path: Path) -> Any:
    """The file's model, checked, with the shapes that onnx infers."""
    onnx, _ = require()
    try:
        made = onnx.load_from_string(data)
        inside = not _refers(made)
        if inside:
            onnx.checker.check_model(made)
            return onnx.shape_inference.infer_shapes(made)
    except Exception as error:  # protobuf's, the checker's
        raise TaskError(f"{path} is no whole ONNX model ({short(error)})") from error
    raise TaskError(
        f"{path} has weights in files beside it, which are not read; save it as one file"
        " (onnx.save_model(model, path, save_as_external_data=False))"
    )


def _refers(message: Any) -> bool:
    """Whether a tensor, wherever it is in a model, has its numbers in another file."""
    if message.DESCRIPTOR.name == "TensorProto":
        return bool(message.external_data) or message.data_location == message.EXTERNAL
    return any(
        _refers(part)
        for field, value in message.ListFields()
        if field.message_type is not None
        for part in (value if hasattr(value, "__len__") else (value,))
    )


def _read(made: Any, path: Path) -> Reading:
    from g2d.interop.onnx.operators import COVERED, translate

    graph, reading = made.graph, _begun(made, path)
    for node in graph.node:
        if not translate(reading, node):
            known = " (as it is used here)" if node.op_type in COVERED else ""
            reading.uncovered.append(legible(node.op_type) + known)
        for name in node.output:  # go on, to tell of all at once
            if reading.uncovered and name not in reading.constants:
                reading.steps.setdefault(name, 0)
    if reading.uncovered:
        kinds = list(dict.fromkeys(reading.uncovered))
        more = ", …" if len(kinds) > _TOLD else ""
        raise TaskError(
            f"{path} has operators that are not covered: {', '.join(kinds[:_TOLD])}{more}. Covered"
            f" are {', '.join(sorted(COVERED))}"
        )
    (out,) = [value.name for value in graph.output]
    if reading.steps.get(out) != len(reading.plan) or not reading.plan:
        raise TaskError(f"{path} answers what its last operator does not give")
    last = reading.modules[-1][1]
    width = reading.shapes.get(out, ())[-1:]
    if isinstance(last, nn.Softmax) or (isinstance(last, nn.Sigmoid) and width == (1,)):
        reading.head = type(last).__name__.lower()
        reading.modules.pop()
        reading.plan.pop()
    if not reading.plan:
        raise TaskError(f"{path} has nothing before its last {reading.head}")
    return reading


def _begun(made: Any, path: Path) -> Reading:
    onnx, _ = require()
    graph = made.graph
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            constants = {
                one.name: torch.from_numpy(np.array(onnx.numpy_helper.to_array(one)))
                for one in graph.initializer
            }
        except Exception as error:  # bfloat16, text, numbers of four bits
            raise TaskError(f"{path} has weights that are no numbers of NumPy's ({short(error)})"
                            ) from error  # fmt: skip
    inputs = [value.name for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise TaskError(f"{path} has {len(inputs)} inputs and {len(graph.output)} outputs, not one")
    shapes = {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else None
            for dim in value.type.tensor_type.shape.dim
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    if (most := max((prod(n or 1 for n in s[1:]) for s in shapes.values()), default=0)) > _WIDE:
        raise TaskError(f"{path} has a value of {most} numbers for each example, expected {_WIDE}"
                        " at most")  # fmt: skip
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    room = ROOM + 4 * sum(value.numel() for value in constants.values())
    return Reading(constants, shapes, uses, made.opset_import, room, {inputs[0]: 0})
