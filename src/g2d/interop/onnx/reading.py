"""An ONNX file's graph as a torch module that trains, and as the factory of a task.

What becomes of each operator is in `operators`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from g2d.core.imports import words
from g2d.errors import CheckpointError, TaskError
from g2d.interop.network import Network
from g2d.interop.onnx.export import WITHIN, distance, require
from g2d.tasks.inference import predict
from g2d.tasks.splits import Splits
from g2d.tasks.task import Task

_TRIED = 64  # examples that a model which was read is tried on


@dataclass
class Reading:
    """A graph as far as it has been read.

    Attributes:
        constants: tensors that are known, by name. steps: which step gives a name; 0: the input.
        shapes: of what has a known rank, by name; None where a size is not known.
        uses: how often a name is taken. weights: the file's values, by the module's names.
        uncovered: operators that are not known, and of known ones what is not.
        head: a last softmax or sigmoid that was left out.
    """

    constants: dict[str, Tensor]
    shapes: dict[str, tuple[int | None, ...]]
    uses: Counter[str]
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
        TaskError: the file cannot be read. CheckpointError: it is of another model.
    """
    state = made.model(0).state_dict()
    read = model(path).state_dict()
    if {n: t.shape for n, t in read.items()} != {n: t.shape for n, t in state.items()}:
        raise CheckpointError(f"{path} is of another model than task {made.name!r}")
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
    _, runtime = require()
    module, x = model(path), splits.guide.x[:_TRIED]
    head = built(path)[1].head
    try:
        found = predict(module, x)
        said = {"softmax": found.softmax(-1), "sigmoid": found.sigmoid()}.get(head, found)
        far = distance(runtime, path.read_bytes(), said, x)
    except Exception as error:  # torch's, or onnxruntime's own kinds
        raise TaskError(
            f"{path} cannot run on the examples, which are {tuple(x.shape[1:])} {x.dtype}: "
            f"{words(error)}"
        ) from error
    if not far <= WITHIN:
        raise TaskError(
            f"{path} was read as a module whose answers are {far:.1e} away from onnxruntime's, "
            f"more than {WITHIN:g}: it has something that is not covered"
        )
    width = found.shape[1] if found.dim() == 2 else 0
    count = classes or len(splits.labels) or (2 if width == 1 else width)
    return Task(name, OnnxFactory(path), splits, classes=count, **more)


def built(path: Path) -> tuple[nn.Module, Reading]:
    """A fresh module of a file, and what was read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TaskError(f"cannot read {path}: {error.strerror}") from error
    reading = _read(_parsed(data, path), path)
    return Network(reading.modules, reading.plan, len(reading.plan)), reading


@lru_cache(maxsize=2)
def _parsed(data: bytes, path: Path) -> Any:
    """The file's model, checked, with the shapes that onnx infers."""
    onnx, _ = require()
    try:
        made = onnx.load_from_string(data)
        onnx.checker.check_model(made)
        return onnx.shape_inference.infer_shapes(made)
    except Exception as error:  # protobuf's, the checker's
        said = words(error)
        raise TaskError(
            f"{path} is no whole ONNX model ({said if len(said) < 160 else said[:157]}); weights in"
            " a file beside it are not read"
        ) from error


def _read(made: Any, path: Path) -> Reading:
    from g2d.interop.onnx.operators import COVERED, translate

    graph, reading = made.graph, _begun(made.graph, path)
    for node in graph.node:
        if not translate(reading, node):
            known = " (as it is used here)" if node.op_type in COVERED else ""
            reading.uncovered.append(node.op_type + known)
        if reading.uncovered and node.output[0] not in reading.steps:
            reading.steps[node.output[0]] = 0  # go on, to tell of all at once
    if reading.uncovered:
        kinds = ", ".join(dict.fromkeys(reading.uncovered))
        raise TaskError(
            f"{path} has operators that are not covered: {kinds}. Covered are "
            f"{', '.join(sorted(COVERED))}"
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
    return reading


def _begun(graph: Any, path: Path) -> Reading:
    onnx, _ = require()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        constants = {
            one.name: torch.from_numpy(np.array(onnx.numpy_helper.to_array(one)))
            for one in graph.initializer
        }
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
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    return Reading(constants, shapes, uses, {inputs[0]: 0})
