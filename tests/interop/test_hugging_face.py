"""A Hugging Face classifier and a timm model: population, generation, and the service's loader."""

from __future__ import annotations

import subprocess

import pytest
import torch

from foreign_models import SETTINGS, defended_and_served
from g2d import Defence
from g2d.core.engine import SerialEngine
from places import ROOT

TIMM = ROOT / ".venv-timm" / "bin" / "python"


def test_a_hugging_face_classifier_is_defended_by_adapters_and_served(tmp_path):
    pytest.importorskip("transformers", reason="g2d[transformers] is not installed")
    name, moving = defended_and_served("hugging_face", tmp_path / "v")
    assert name == "vit"
    assert moving == 2 * 2 * 2 * (4 * 32) + 330  # adapters of rank 4 in two layers, and the head


def test_a_folder_of_save_pretrained_becomes_the_base(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="g2d[transformers] is not installed")
    from g2d.interop.bases import read_base

    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import hugging_face

    torch.manual_seed(5)
    deployed = hugging_face.Classifier().model
    deployed.save_pretrained(tmp_path / "deployed", save_original_format=False)
    task = hugging_face.task()
    with Defence.create(task, tmp_path / "v", SETTINGS) as defence:
        defence.adopt_base(read_base(task, tmp_path / "deployed"))
        defence.populate(engine=SerialEngine())
        defence.fit()
        (made,) = defence.generate(seed=1)
    plain = task.factory.merged(made.state)
    for key, tensor in deployed.state_dict().items():
        frozen = not ("q_proj" in key or "v_proj" in key or "classifier" in key)
        assert not frozen or torch.equal(plain[f"model.{key}"], tensor)
    deployed.load_state_dict({key.removeprefix("model."): t for key, t in plain.items()})
    x = task.splits.test.x[:4]
    torch.testing.assert_close(deployed.eval()(x).logits, made.model()(x), atol=1e-5, rtol=0)


@pytest.mark.skipif(
    not TIMM.exists(), reason="timm wants torchvision, in an environment of its own: make timm"
)
def test_a_timm_model_is_defended_by_its_norms_and_served(tmp_path):
    done = subprocess.run(
        [TIMM, ROOT / "tests" / "foreign_models.py", tmp_path / "v"],
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "timm: 4394 numbers move"
