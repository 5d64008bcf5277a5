"""What the pages and examples/ show of other worlds runs as it stands, in at most twenty lines."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from keras_models import splits  # which has Keras run on torch
from places import ROOT, example


def block(heading: str) -> str:
    code = example(heading, "docs/models.md")
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    return code


def test_the_pages_keras_is_a_task():
    pytest.importorskip("keras", reason="g2d[keras] is not installed")
    space: dict = {}
    exec(block("Keras"), space)
    made = space["task"](torch.rand(60, 28, 28, 1), torch.arange(60) % 10)
    assert space["worlds"].way(made).startswith("translated")


def test_the_pages_onnx_is_a_task(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="g2d[onnx] is not installed")
    from g2d import Task
    from g2d.interop import onnx

    monkeypatch.chdir(tmp_path)
    own = splits((5,))
    made = Task("linear", lambda: torch.nn.Sequential(torch.nn.Linear(5, 3)), own, classes=3)
    onnx.save(made, made.model(0).state_dict(), "deployed.onnx")
    space: dict = {}
    exec(block("ONNX"), space)
    assert space["task"](own).classes == 3


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_keras_example_rotates_and_exports(tmp_path):
    pytest.importorskip("keras", reason="g2d[keras] is not installed")
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "keras_digits.py", tmp_path / "vault"], cwd=tmp_path,
        capture_output=True, text=True, timeout=1100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "generation 2 is live; translated to torch; its last softmax is taken off" in done.stdout
    assert "rotated.keras: 50890 parameters, the softmax in place" in done.stdout


def test_the_usual_small_cnn_of_mnist_is_translated():
    keras = pytest.importorskip("keras", reason="g2d[keras] is not installed")
    from g2d.interop import keras as worlds

    space: dict = {"__name__": "example"}
    exec((ROOT / "examples" / "keras_digits.py").read_text(), space)
    assert keras.backend.backend() == "torch"
    made = worlds.task(space["mnist_cnn"], splits((28, 28, 1), 8), classes=10)
    assert worlds.way(made) == "translated to torch; its last softmax is taken off"
