"""The small CNN of Keras' MNIST example goes through the commands of every other task."""

from __future__ import annotations

import os

import pytest
import torch

import g2d
import states
from commands import settings_file, succeed
from g2d.core.engine import SerialEngine
from places import ROOT

os.environ.setdefault("KERAS_BACKEND", "torch")  # before any test imports Keras

FEW = """
import numpy as np
from keras_digits import load_digits, mnist_cnn, split_dataset, worlds

def task():  # the example's own network, on 240 of its images
    x = np.pad(np.kron(load_digits().images[:240] / 16, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))
    splits = split_dataset(x[..., None].astype("float32"), load_digits().target[:240])
    return worlds.task(mnist_cnn, splits, eps=0.1)
"""


def test_from_a_population_to_a_keras_file_that_answers_alike(tmp_path, monkeypatch):
    keras = pytest.importorskip("keras", reason="g2d[keras] is not installed")
    monkeypatch.setattr("g2d.cli.main.make_engine", lambda *_: SerialEngine())
    (tmp_path / "few_digits.py").write_text(FEW)
    short = states.settings(
        population__members=2, population__base_steps=8, population__early_steps=2,
        population__fork_steps=2, generator__space="soup",
    )  # fmt: skip
    file = settings_file(tmp_path, short.to_toml())
    vault = tmp_path / "vault"
    path = ["--task-path", tmp_path, "--task-path", ROOT / "examples"]
    succeed("population", vault, "--task", "few_digits:task", "--settings", file, *path)
    succeed("fit", vault, *path)
    succeed("generate", vault, *path)
    out = tmp_path / "rotated.keras"
    succeed("export", vault, "--to", out, *path)
    with g2d.Defence.open(vault, write=False) as defence:
        generation = defence.generation()
        assert generation.number == 2
        x = defence.task.splits.test.x[:50]
        found = generation.model()(x).softmax(1)
    said = keras.saving.load_model(out)(x, training=False).detach()
    torch.testing.assert_close(found, said, atol=1e-5, rtol=0)
