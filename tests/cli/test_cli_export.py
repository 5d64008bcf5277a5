"""`g2d export`: each format by its name, checked by its own reader; one line for what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import g2d
from commands import fail, invoke, succeed
from places import ROOT

os.environ.setdefault("KERAS_BACKEND", "torch")  # before any test imports Keras


@pytest.fixture(scope="module")
def vault(tiny_vault, tmp_path_factory):
    return shutil.copytree(tiny_vault, tmp_path_factory.mktemp("export") / "vault")


def test_a_generation_goes_to_onnx_and_mlflow(vault, tmp_path, monkeypatch):
    pytest.importorskip("onnx", reason="g2d[onnx] is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="g2d[onnx] is not installed")
    mlflow = pytest.importorskip("mlflow", reason="g2d[mlflow] is not installed")
    with g2d.Defence.open(vault, write=False) as defence:
        x, model = defence.task.splits.test.x, defence.generation().model()
    out = tmp_path / "m.onnx"
    said = succeed("export", vault, "--to", out).stdout
    assert "onnxruntime answered as torch does" in " ".join(said.split())
    session = runtime.InferenceSession(out)
    (logits,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(x), atol=1e-5, rtol=1e-5)
    assert session.get_modelmeta().custom_metadata_map["g2d.generation"] == "1"
    assert "exists" in fail("export", vault, out)

    store = tmp_path / "mlruns"
    for version in (1, 2):
        said = succeed("export", vault, "--to", f"mlflow:{store}", "--name", "digits").stdout
        assert f"version {version} of the registered model 'digits'" in " ".join(said.split())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(store.as_uri(), store.as_uri())
    found = client.get_model_version("digits", "2")
    assert found.tags["g2d.generation"] == "1"
    folder = mlflow.artifacts.download_artifacts(found.source, tracking_uri=store.as_uri())
    kept = load_file(f"{folder}/weights.safetensors")
    assert all(torch.equal(kept[name], t) for name, t in model.state_dict().items())
    with open(f"{folder}/manifest.json") as file:
        assert json.load(file)["origin"] == "base"
    with open(f"{folder}/MLmodel") as file:
        assert set(json.load(file)["flavors"]) == {"g2d", "onnx", "python_function"}


@pytest.mark.parametrize(("arguments", "said"), [
    (["--to", "m.keras"], "no task of a Keras model"),
    (["m.weights.h5"], "no task of a Keras model"),
    (["--to", "mlflow", "--sign", "key"], "drop --sign"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(vault, tmp_path, monkeypatch, arguments, said):
    pytest.importorskip("keras", reason="g2d[keras] is not installed")
    monkeypatch.chdir(tmp_path)
    assert said in " ".join(fail("export", vault, *arguments).split())
    assert list(tmp_path.iterdir()) == []


def test_one_target_is_named(vault):
    for arguments in ([], ["a", "--to", "b"]):
        assert invoke("export", vault, *arguments).exit_code == 2


def test_examples_of_onnx_and_mlflow_run(vault, tmp_path):
    pytest.importorskip("onnxruntime", reason="g2d[onnx] is not installed")
    pytest.importorskip("mlflow", reason="g2d[mlflow] is not installed")
    for example, said in (
        ("onnx_digits", "agrees on 100.0%"),
        ("mlflow_digits", "is generation 1"),
    ):
        done = subprocess.run(
            [sys.executable, ROOT / "examples" / f"{example}.py", vault], cwd=tmp_path,
            capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
