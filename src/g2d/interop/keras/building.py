"""A user's builder is called: the Keras model that comes of it, from torch's seed, and built."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from g2d.core.imports import words
from g2d.errors import TaskError
from g2d.interop.keras.archives import architecture
from g2d.interop.wording import short

Builder = Callable[[], Any] | Path | str
"""Builds a fresh `keras.Model`; or a `.keras` file, whose architecture is taken."""

SEEDS = "seed_generator_state"
"""The last part of the path of what is no weight: the state of a layer's own randomness."""


def require() -> Any:
    """Return the module `keras`, on its torch backend.

    Raises:
        TaskError: it is not installed, or another backend was chosen.
    """
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import keras
    except ImportError as error:
        chosen = os.environ.get("KERAS_BACKEND", "")
        if getattr(error, "name", "") == "keras":
            raise TaskError("Keras models need Keras 3: pip install 'g2d[keras]'") from error
        raise TaskError(
            f"Keras cannot be imported with KERAS_BACKEND={chosen}: {words(error)}. G2D needs its "
            "torch backend: set KERAS_BACKEND=torch"
        ) from error
    if (backend := keras.backend.backend()) != "torch":
        raise TaskError(
            f"Keras runs on {backend} in this process, and G2D needs its torch backend: set "
            "KERAS_BACKEND=torch before Keras is imported. What is exported loads in any of them"
        )
    return keras


def build(builder: Builder, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Any:
    """Build a Keras model on the CPU, initialised by torch's global generator.

    Args:
        shape, dtype: of one example, in Keras' order (channels last); what is unbuilt is built.

    Raises:
        TaskError: the builder fails, or gives what cannot be defended.
    """
    keras = require()
    make = _from_file(Path(builder)) if isinstance(builder, str | Path) else builder
    with keras.device("cpu"):
        try:
            with _seeded():
                model = make()
        except TaskError:
            raise
        except (Exception, SystemExit) as error:
            raise TaskError(f"the Keras builder raised {words(error)}") from error
        if not isinstance(model, keras.Model):
            raise TaskError(
                f"the Keras builder gives {type(model).__name__}, expected a keras.Model; pass a "
                "function that builds one and returns it"
            )
        _build_with(keras, model, shape, dtype)
    _check(keras, model)
    return model


@contextmanager
def _seeded() -> Iterator[None]:
    """Have Keras' initialisers draw from Python's generator, seeded by torch's, and put it back.

    An initialiser without a seed asks Python's global generator for one.
    """
    seed = int(torch.randint(2**31, (1,)))
    python, array = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


def _from_file(path: Path) -> Callable[[], Any]:
    """Builds the architecture of a file, initialised anew; nothing in it is run as code."""
    keras = require()
    text = architecture(path)

    def make() -> Any:
        from keras.src.saving import serialization_lib as reading

        try:
            config = {**json.loads(text), "compile_config": None}
            # A scope, too: what a process has set by enable_unsafe_deserialization() goes before
            # the argument.
            with reading.SafeModeScope(True), reading.ObjectSharingScope():
                return keras.saving.deserialize_keras_object(config, safe_mode=True)
        except Exception as error:  # whatever a file makes Keras raise
            raise TaskError(
                f"{path} holds a model that Keras does not build ({short(error)}); pass the"
                " function that builds the model instead"
            ) from error

    return make


def _build_with(keras: Any, model: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Build what has no variables yet, and check the shape of what it takes."""
    expected = getattr(model, "input_shape", None) if model.built else None
    if expected is not None:
        _check_shape(tuple(expected[1:]) if isinstance(expected, tuple) else expected, shape)
        return
    try:
        with _seeded(), torch.no_grad():
            model(torch.zeros(2, *shape, dtype=dtype))
    except Exception as error:
        advice = _advice(None, shape)
        raise TaskError(
            f"the Keras model cannot be built on inputs {shape}: {short(error)}. Give it an "
            f"Input of one example's shape{advice}"
        ) from error
    if not model.built or not model.weights:
        raise TaskError(
            "the Keras model is unbuilt: it has no variables after a call; give it an Input of one "
            "example's shape, and create its layers in __init__"
        )


def _check_shape(expected: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(expected, tuple) or not all(n is None or type(n) is int for n in expected):
        raise TaskError(f"the Keras model takes several inputs ({expected}); one is expected")
    same = len(expected) == len(shape) and all(
        wanted in (None, given) for wanted, given in zip(expected, shape, strict=True)
    )
    if not same:
        raise TaskError(
            f"the Keras model takes inputs {expected}, and the examples are {shape}"
            f"{_advice(expected, shape)}"
        )


def _advice(expected: tuple[int | None, ...] | None, shape: tuple[int, ...]) -> str:
    """What to do about examples whose channels come first; "": they seem not to."""
    moved = (*shape[1:], shape[0]) if len(shape) > 1 else shape
    fits = expected is not None and len(expected) == len(moved) and all(
        wanted in (None, given) for wanted, given in zip(expected, moved, strict=True)
    )  # fmt: skip
    if fits or (expected is None and len(shape) == 3 and shape[0] in (1, 3) and shape[2] > 4):
        return ": their channels come first, and Keras has them last: x.movedim(1, -1)"
    return ""


def _check(keras: Any, model: Any) -> None:
    """Refuse what Keras itself could not save and load elsewhere."""
    layers = list(model._flatten_layers())
    if found := [layer.name for layer in layers if isinstance(layer, keras.layers.Lambda)]:
        raise TaskError(
            f"the Keras model has a Lambda layer, {found[0]!r}: Python code inside of a file, which"
            " no reader should run; write it with keras.ops, or as a layer of its own"
        )


def variables(model: Any) -> list[Any]:
    """A model's weights in Keras' order, without the states of layers' own randomness."""
    return [one for one in model.weights if not one.path.endswith(SEEDS)]


def names(model: Any) -> list[str]:
    """A name for each weight that is the same in every build: place and kind, no counters."""
    return [f"{i}_{one.path.rpartition('/')[2]}" for i, one in enumerate(variables(model))]
