"""A generation as Keras' own files, and Keras' files as a checkpoint.

What was written is read again by Keras, and asked, before it is put where it was wanted.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from g2d.core.files import write_bytes
from g2d.core.types import State
from g2d.errors import CheckpointError, TaskError
from g2d.interop.keras.archives import extract_weights
from g2d.interop.keras.building import names, require, variables
from g2d.interop.keras.moves import as_state, as_values
from g2d.interop.keras.tasks import WITHIN, KerasFactory, factory_of
from g2d.interop.wording import short
from g2d.tasks.building import seeded
from g2d.tasks.inference import load_model, predict
from g2d.tasks.task import Task

ENDINGS = (".keras", ".weights.h5")
_ASKED = 256  # examples that a file is asked about before it counts


def save(task: Task, state: State, path: Path | str) -> None:
    """Write a state dict of a Keras task as `.keras` (all of the model) or `.weights.h5`.

    TensorFlow, JAX and PyTorch load it, the model's last softmax in its place.

    Raises:
        TaskError: it is no Keras task; the file's name says neither format; or what Keras reads
            from the file does not answer as the state does, in which case nothing is written.
    """
    path = Path(path)
    if not path.name.endswith(ENDINGS):
        raise TaskError(f"{path} is named neither .keras nor .weights.h5; name it so")
    factory = factory_of(task)
    with seeded(0):
        model = factory.keras_model()
        again = factory.keras_model()
    _fill(factory, model, state)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model" + next(e for e in ENDINGS if path.name.endswith(e)))
        if file.suffix == ".h5":
            model.save_weights(file)
            again.load_weights(file)
        else:
            model.save(file)
            again = _loaded(file, model)
        _compare(task, factory, state, again, path)
        data = file.read_bytes()
    write_bytes(path, data)


def weights(task: Task, path: Path | str) -> dict[str, Tensor]:
    """Read a `.keras` or `.weights.h5` file of a Keras task's model as its state dict.

    For `Defence.adopt_base`. Of a `.keras` file the weights alone are read, and no code is run.

    Raises:
        CheckpointError: it is no such file, is cut off, is of another model, or lacks weights.
    """
    path, factory = Path(path), factory_of(task)
    with seeded(0):
        model = factory.keras_model()
    if not path.is_file() or not path.name.endswith(ENDINGS):
        raise CheckpointError(f"{path} is no file named .keras or .weights.h5")
    _empty(model)
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            # Keras warns of what a file lacks, and keeps what was drawn; here it is found missing.
            warnings.simplefilter("ignore")
            model.load_weights(extract_weights(path, Path(folder), _room(model)))
    except Exception as error:  # whatever a file makes Keras, zipfile or h5py raise
        raise CheckpointError(
            f"{path} cannot be read as weights of this model: it is cut off, of another kind, or "
            f"of another model ({short(error)})"
        ) from error
    own = zip(names(model), variables(model), strict=True)
    if lacking := [name for name, one in own if bool(one.value.isnan().all())]:
        raise CheckpointError(f"{path} has no numbers for {lacking[0]!r} of this model")
    values = [one.value.detach().clone() for one in variables(model)]
    return {**task.model(0).state_dict(), **as_state(factory.moves(model), values)}  # and counters


def _empty(model: Any) -> None:
    """Put NaN wherever a file should have numbers."""
    for one in variables(model):
        if one.value.is_floating_point():
            one.assign(torch.full_like(one.value, torch.nan))


def _room(model: Any) -> int:
    """Bytes that a file of a model may hold: an optimizer's state beside it, in float64."""
    return 16 * sum(one.value.nbytes for one in variables(model)) + (1 << 24)


def _fill(factory: KerasFactory, model: Any, state: State) -> None:
    own = variables(model)
    values = as_values(factory.moves(model), state, [tuple(one.shape) for one in own])
    with require().device("cpu"):
        for one, value in zip(own, values, strict=True):
            one.assign(value)


def _loaded(file: Path, model: Any) -> Any:
    """What Keras reads from a file, with the user's own layers, which it cannot hold."""
    keras = require()
    own = {
        type(part).__name__: type(part)
        for part in (model, *model._flatten_layers())
        if not type(part).__module__.startswith("keras.")
    }
    try:
        return keras.saving.load_model(file, custom_objects=own, compile=False, safe_mode=True)
    except Exception as error:
        raise TaskError(
            f"Keras does not load what it saved of this model ({short(error)}): a class of yours "
            "has to take **kwargs in __init__ and say the rest in get_config; or export .weights.h5"
        ) from error


def _compare(task: Task, factory: KerasFactory, state: State, model: Any, path: Path) -> None:
    """Refuse a file whose model answers otherwise than the state does."""
    x = task.splits.guide.x[:_ASKED]
    found = predict(load_model(task, dict(state)), x)
    with require().device("cpu"), torch.no_grad():
        said = model(x, training=False)
    if said.shape[1] == 1:  # one logit is a pair (0, z) here
        found = found[:, 1:] - found[:, :1]
    if factory.head:
        found = found.softmax(-1) if factory.head == "softmax" else found.sigmoid()
    far = float((found - said).abs().max() / said.abs().max().clamp_min(1))
    if not far <= WITHIN:
        raise TaskError(
            f"what Keras reads from {path.name} is {far:.1e} away from the generation's answers, "
            f"more than {WITHIN:g}; nothing was written"
        )
