"""A network as an ONNX file: made by torch.onnx, and asked by onnxruntime before it counts."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from g2d.core.files import write_bytes
from g2d.core.types import State
from g2d.errors import TaskError
from g2d.interop.wording import short
from g2d.tasks.inference import load_model, predict
from g2d.tasks.task import Task

WITHIN = 1e-5
"""How far onnxruntime's logits may be from torch's, in units of the largest, or of 1."""
_ASKED = 256  # examples that a file is asked about before it counts


def require() -> tuple[Any, Any]:
    """Return the modules `onnx` and `onnxruntime`.

    Raises:
        TaskError: one is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise TaskError(f"ONNX needs more ({error}): pip install 'g2d[onnx]'") from error
    return onnx, onnxruntime


def save(
    task: Task, state: State, path: Path | str, about: Mapping[str, str] | None = None
) -> None:
    """Write a task's network with a state dict as ONNX: input `x` (n, ...), output `logits`.

    Args:
        about: kept in the file as metadata.

    Raises:
        TaskError: onnx is missing, torch.onnx cannot export the network, or onnxruntime does not
            answer as torch does, in which case nothing is written.
    """
    onnx, runtime = require()
    path = Path(path)
    if path.suffix != ".onnx":
        raise TaskError(f"{path} is not named .onnx; name it so")
    network, x = load_model(task, dict(state)), task.splits.guide.x[:_ASKED]
    made = exported(network, x[:3])
    for key, value in (about or {}).items():
        entry = made.metadata_props.add()
        entry.key, entry.value = key, value
    try:
        onnx.checker.check_model(made, full_check=True)
        data = made.SerializeToString()
        far = distance(runtime, data, predict(network, x), x)
    except Exception as error:  # onnx's, protobuf's beyond 2 GiB, onnxruntime's
        raise TaskError(
            f"onnxruntime cannot run what torch.onnx made of this network ({short(error)}); nothing"
            " was written"
        ) from error
    if not far <= WITHIN:  # NaN, too
        raise TaskError(
            f"onnxruntime's answers are {far:.1e} away from torch's for {path.name}, more than "
            f"{WITHIN:g}; nothing was written"
        )
    write_bytes(path, data)


def exported(network: nn.Module, x: Tensor) -> Any:
    """The `onnx.ModelProto` of a network, for any number of inputs like x (n, ...).

    Raises:
        TaskError: torch.onnx cannot export it.
    """
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # of torch's own future
            program = torch.onnx.export(
                network, (x,), dynamo=True, input_names=["x"], output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False, external_data=False,
            )  # fmt: skip
        assert program is not None
        return program.model_proto
    except Exception as error:  # whatever a user's forward() makes torch.export raise
        raise TaskError(f"torch.onnx cannot export this network: {short(error)}") from error


def distance(runtime: Any, data: bytes, wanted: Tensor, x: Tensor) -> float:
    """How far onnxruntime's answers (n, classes) are from those wanted, by the largest of these."""
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    (found,) = session.run(None, {name: np.ascontiguousarray(x.numpy())})
    found = torch.from_numpy(np.asarray(found))
    if found.shape != wanted.shape:
        return float("inf")
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1))
