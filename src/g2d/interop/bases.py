"""The model that is deployed today, whatever file it lies in: a checkpoint, Keras' file, ONNX."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from g2d.tasks.task import Task
from g2d.weights.checkpoints import load_checkpoint

_KERAS = (".keras", ".weights.h5")


def read_base(task: Task, path: Path) -> dict[str, Tensor]:
    """Read a file as a state dict, for `Defence.adopt_base`.

    Raises:
        CheckpointError, TaskError: it cannot be read, or is of another kind than the task's model.
    """
    if path.name.endswith(_KERAS):
        from g2d.interop.keras import weights as of_keras

        return of_keras(task, path)
    if path.suffix == ".onnx":
        from g2d.interop.onnx import weights as of_onnx

        return of_onnx(task, path)
    return load_checkpoint(path)
