"""Keras files that were made to harm, or lack what they should have: a line each, no code."""

from __future__ import annotations

import io
import json
import os
import zipfile

import numpy as np
import pytest

from g2d.errors import CheckpointError, TaskError
from keras_models import splits

keras = pytest.importorskip("keras", reason="g2d[keras] is not installed")
h5py = pytest.importorskip("h5py", reason="g2d[keras] is not installed")
worlds = pytest.importorskip("g2d.interop.keras")
if keras.backend.backend() != "torch":
    pytest.skip("Keras runs on another backend here", allow_module_level=True)


def dense():
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(3)])


@pytest.fixture(scope="module")
def task():
    return worlds.task(dense, splits((8,)))


@pytest.fixture
def saved(task, tmp_path):
    """A whole file of weights."""
    path = tmp_path / "whole.weights.h5"
    worlds.save(task, task.model(0).state_dict(), path)
    return path


def test_code_in_a_file_is_not_run_whatever_the_process_allows(tmp_path, monkeypatch):
    from keras.src.backend.common import global_state

    monkeypatch.chdir(tmp_path)
    inner = [keras.layers.Lambda(lambda x: __import__("pathlib").Path("ran").touch() or x)]
    keras.Sequential([keras.Input((8,)), *inner, keras.layers.Dense(3)]).save("m.keras")
    (tmp_path / "ran").unlink(missing_ok=True)
    keras.config.enable_unsafe_deserialization()
    try:
        with pytest.raises(TaskError, match="Lambda layer: Python code inside of a file") as told:
            worlds.task("m.keras", splits((8,)))
    finally:
        global_state.set_global_attribute("safe_mode_saving", None)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "ran").exists()


def nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(("config", "said"), [
    ('{"class_name": "__lambda__", "config": {}}', "__lambda__ layer"),
    ('{"module": "torch.hub", "class_name": "x", "config": {}}', "Keras does not build"),
    ('{"module": "keras.utils", "class_name": "function", "config": "get_file"}', "Keras"),
    ("[]", "Keras does not build"), (nested(100_000), "cut off"), ("{", "cut off"),
    (" " * (1 << 24) + "{}", "more than 16777216"),
])  # fmt: skip
def test_an_architecture_that_is_none_is_a_line(config, said, tmp_path):
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", config)
    with pytest.raises(TaskError, match=said) as told:
        worlds.task(path, splits((8,)))
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 500


def packed(data):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", json.dumps({}))
        archive.writestr("model.weights.h5", data)
    return file.getvalue()


def test_weights_that_would_fill_the_memory_are_a_line(task, saved, tmp_path):
    bomb = tmp_path / "bomb.keras"
    bomb.write_bytes(packed(bytes(1 << 25)))
    with pytest.raises(CheckpointError, match="takes 33554432 bytes, more than"):
        worlds.weights(task, bomb)
    with h5py.File(saved, "a") as file:
        del file["layers/dense/vars/0"]
        file.create_dataset("layers/dense/vars/0", (1 << 20, 1 << 20), "f4", chunks=(16, 16),
                            compression="gzip")  # fmt: skip
    with pytest.raises(CheckpointError, match=r"take 43980465\d+ bytes, more than"):
        worlds.weights(task, saved)
    bomb.write_bytes(packed(saved.read_bytes()))
    with pytest.raises(CheckpointError, match=r"take 43980465\d+ bytes, more than"):
        worlds.weights(task, bomb)


def test_weights_in_another_file_are_refused(task, saved, tmp_path):
    (tmp_path / "secret").write_bytes(np.ones((8, 4), np.float32).tobytes())
    with h5py.File(saved, "a") as file:
        del file["layers/dense/vars/0"]
        file.create_dataset("layers/dense/vars/0", (8, 4), "f4",
                            external=[(str(tmp_path / "secret"), 0, 128)])  # fmt: skip
    with pytest.raises(CheckpointError, match="'layers/dense/vars/0' lies in another file"):
        worlds.weights(task, saved)


def test_a_file_that_lacks_weights_is_no_base(task, saved):
    with h5py.File(saved, "a") as file:
        del file["layers/dense"]
        file.create_group("layers/dense")
    with pytest.raises(CheckpointError, match=r"0_kernel|of another model"):
        worlds.weights(task, saved)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(task, tmp_path):
    os.mkfifo(tmp_path / "m.keras")
    with pytest.raises(TaskError):
        worlds.task(tmp_path / "m.keras", splits((8,)))
    with pytest.raises(CheckpointError):
        worlds.weights(task, tmp_path / "m.keras")
