"""What is exported of Keras models answers in TensorFlow as the generation does; `make tensorflow`.

A state is what training, and twenty rotations after it, might leave: every tensor moved.
"""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest
import torch

from g2d.tasks.inference import load_model, predict
from keras_models import SHAPE, TRANSLATED, shaken, splits
from places import ROOT
from small_models import source

PYTHON = ROOT / ".venv-tf" / "bin" / "python"
GENERATIONS = 20

pytest.importorskip("keras", reason="g2d[keras] is not installed")
pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="TensorFlow has an environment of its own: make tensorflow"
)


@pytest.mark.parametrize("native", [None, False], ids=["translated", "by Keras"])
def test_tensorflow_answers_as_every_generation(native, tmp_path):
    from g2d.interop import keras as worlds

    x = torch.rand(1000, *SHAPE, generator=source(0))
    np.save(tmp_path / "inputs.npy", x.numpy())
    wanted = {}
    for builder in TRANSLATED:
        task = worlds.task(builder, splits(), native=native)
        for number in range(1 if native is False else GENERATIONS // len(TRANSLATED)):
            state, name = shaken(task.model(0), number), f"{builder.__name__}-{number}"
            worlds.save(task, state, tmp_path / f"{name}.keras")
            logits = predict(load_model(task, state), x)
            wanted[name] = logits.softmax(-1) if task.factory.head else logits
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [PYTHON, ROOT / "tests" / "keras_elsewhere.py", tmp_path], env=environment,
        capture_output=True, text=True, timeout=550, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tensorflow")
    for name, answers in wanted.items():
        said = torch.from_numpy(np.load(tmp_path / f"{name}.npy"))
        assert float((said - answers).abs().max()) <= 1e-5 * max(1, float(answers.abs().max()))
