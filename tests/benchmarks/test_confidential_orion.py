"""The comparison with Orion: what is compared, and, where `make orion` was run, Orion itself."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
import torch

pytest.importorskip("psutil")

from benchmarks.confidential import orion
from g2d.protect.homomorphic import HomomorphicError
from g2d.protect.homomorphic.parameters import check_security
from g2d.tasks.networks import mnist_he_cnn


def side(evaluate: float, error: float, **more: float) -> dict[str, object]:
    cpu = {"evaluate": evaluate, "encrypt": 0.01, "decrypt": 0.02, **more}
    return {
        "cpu": cpu, "error": error, "same": 50, "query": 4e6, "answer": 1e6, "upload": 5e7,
        "degree": 16384, "bits": 430.4, "version": "1.0.2",
    }  # fmt: skip


def against(evaluate: float, error: float) -> dict[str, object]:
    ours, theirs = side(0.25, 1e-4, encode=0.1), side(evaluate, error, compile=41.0)
    return {"images": 50, "ours": ours, "orion": theirs}


def test_the_fastest_ring_counts_whose_logits_are_near_enough(tmp_path):
    result = {
        "rings": {"a": against(2.5, 1e-4), "b": against(1.0, 2e-3), "c": against(2.0, 9e-4)},
        "arguments": {"seed": 0}, "commit": "abc",
    }  # fmt: skip
    (tmp_path / f"{orion.NAME}.json").write_text(json.dumps(result))
    (text,) = orion.made(tmp_path).values()
    assert "| one image, CPU s | ≤ 1.5 | 0.25 | 2.00 |" in text
    assert "| times as fast | ≥ 1.5 | 8.0 |  |" in text
    assert "| a network encoded, or compiled, CPU s |  | 0.10 | 41.0 |" in text
    assert "a: 2.50 CPU s, error 1.0e-04; b: 1.00 CPU s, error 2.0e-03" in text
    del result["rings"]["a"], result["rings"]["c"]
    assert orion.compared(result)["orion"]["error"] == 2e-3
    assert "not measured yet" in orion.made(tmp_path / "absent")[orion.NAME]


def test_every_ring_is_as_secure_as_ours_and_deep_enough():
    network = mnist_he_cnn()
    steps = sum(kind != "flatten" for kind, _ in orion.layers(network))
    for ring in orion.RINGS.values():
        check_security(2 ** ring["LogN"], sum(ring["LogQ"]) + sum(ring["LogP"]))
        assert len(ring["LogQ"]) == 1 + steps
    with pytest.raises(HomomorphicError):
        check_security(8192, 219)
    with pytest.raises(AssertionError, match="ReLU"):
        orion.layers(torch.nn.Sequential(torch.nn.ReLU()))


def test_where_there_is_no_orion_the_command_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(orion, "PYTHON", tmp_path / "python")
    with pytest.raises(SystemExit, match="make orion"):
        orion.Orion(tmp_path, torch.nn.Sequential(), torch.zeros(1).numpy(), {})


@pytest.mark.slow  # 15 CPU seconds
@pytest.mark.skipif(not orion.PYTHON.exists(), reason="Orion has an environment: make orion")
def test_orion_answers_as_torch_does(tmp_path):
    pytest.importorskip("tenseal", reason="needs TenSEAL: pip install 'g2d[he]'")
    given = Namespace(
        task="digits", data="MNIST's folder", images=1, steps=100, seed=0, rings=["40 bits"]
    )
    found = orion.measure(given, tmp_path)
    one = found["rings"]["40 bits"]["orion"]
    assert one["same"] == 1
    assert one["error"] < 1e-3
    assert orion.rows(found)[0][0] == "one image, CPU s"
