"""Distillation: what a student learns, which teachers fit, what a vault keeps of one."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import g2d
from g2d.core.engine import SerialEngine
from g2d.errors import CheckpointError, PopulationError, SettingsError, TaskError
from g2d.settings import HardenSettings
from g2d.tasks.inference import predict
from g2d.training.population import build_population
from g2d.training.recipes import Teacher, find_teacher
from g2d.training.recipes.distil import distil
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import pack
from hardening import robust, step_of, trained
from places import ROOT


def small() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


def seven() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))


def test_a_student_learns_its_teachers_predictions(digits, hardened):
    student = replace(digits, factory=small)
    model = trained(student, HardenSettings(recipe=("distil",)), teacher=hardened)
    agree = predict(model, digits.splits.gate.x).argmax(1) == predict(
        hardened, digits.splits.gate.x
    ).argmax(1)
    assert float(agree.double().mean()) > 0.88


def test_a_robust_student_is_more_robust_than_a_plain_one(digits, hardened):
    student = replace(digits, factory=small)
    settings = HardenSettings(recipe=("distil", "adversarial"), steps=4, clean=0.2)
    taught = trained(student, settings, teacher=hardened)
    naive = trained(student, HardenSettings(recipe=("distil",)), teacher=hardened)
    assert robust(student, taught) > robust(student, naive) + 0.08


def test_after_distil_attacks_lead_away_from_soft_labels(digits, hardened):
    settings = HardenSettings(temperature=2.0, soft=0.75)
    step = distil(step_of(digits, settings, teacher=hardened))
    own = hardened(step.x)
    assert torch.allclose(step.targets, own.softmax(1))
    logits = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
    heated = F.kl_div((logits / 2).log_softmax(1), (own / 2).softmax(1), reduction="batchmean")
    expected = 0.75 * 4 * heated + 0.25 * F.cross_entropy(logits, step.y)
    assert torch.isclose(step.criterion(logits), expected)


def test_a_teacher_is_read_from_a_vault_or_a_checkpoint(
    digits, hardened, tiny_vault, tmp_path, plain
):
    named = HardenSettings(recipe=("distil",), teacher=str(tiny_vault))
    assert isinstance(find_teacher(named).load(digits), nn.Module)
    torch.save(hardened.state_dict(), tmp_path / "teacher.pt")
    for model in ("digits", "g2d.networks:digits_cnn"):
        at = replace(named, teacher=str(tmp_path / "teacher.pt"), teacher_model=model)
        loaded = find_teacher(at).load(digits)
        x = digits.splits.gate.x[:4]
        assert torch.equal(loaded(x), hardened(x))
    assert find_teacher(HardenSettings(recipe=("l2",))) is None


def test_teachers_that_do_not_fit_are_refused(digits, hardened, tmp_path):
    wanting = HardenSettings(recipe=("distil",))
    with pytest.raises(SettingsError, match="needs a teacher"):
        find_teacher(wanting)
    with pytest.raises(SettingsError, match="does not exist"):
        find_teacher(replace(wanting, teacher=str(tmp_path / "nowhere")))
    with pytest.raises(SettingsError, match="does not use it"):
        find_teacher(HardenSettings(recipe=("l2",), teacher="somewhere"))
    (tmp_path / "t.safetensors").write_bytes(pack(hardened.state_dict()))
    with pytest.raises(SettingsError, match="teacher_model"):
        find_teacher(replace(wanting, teacher=str(tmp_path / "t.safetensors")))
    (tmp_path / "no.pt").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"not a complete PyTorch checkpoint|pickled"):
        find_teacher(replace(wanting, teacher=str(tmp_path / "no.pt"), teacher_model="digits"))
    weights = pack(hardened.state_dict())
    with pytest.raises(TaskError, match="knows 7 classes, task 'digits' has 10"):
        Teacher(pack(seven().state_dict()), f"{__name__}:seven").load(digits)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        Teacher(weights, f"{__name__}:small").load(digits)
    with pytest.raises(TaskError, match="there is no module"):
        Teacher(weights, "no_such_module:make").load(digits)
    with pytest.raises(TaskError, match="gives dict"):
        Teacher(weights, "builtins:dict").load(digits)
    with pytest.raises(TaskError, match=r"there is no task 'digit'\. Did you mean"):
        Teacher(weights, "digit").load(digits)
    with pytest.raises(TaskError, match="does not take inputs"):
        Teacher(pack(g2d.networks.mnist_cnn().state_dict()), "g2d.networks:mnist_cnn").load(digits)
    with pytest.raises(PopulationError, match="needs a teacher"):
        distil(step_of(digits, wanting))


def test_a_vault_keeps_the_teacher_of_its_first_run(tmp_path, tiny_settings, tiny_vault):
    """A served teacher rotates, or moves: members go on learning from the same one."""
    shutil.copytree(tiny_vault, tmp_path / "teacher")
    settings = tiny_settings.override(
        harden__recipe=["distil"], harden__teacher=str(tmp_path / "teacher"),
        population__members=2, population__base_steps=20, population__early_steps=5,
        population__fork_steps=5,
    )  # fmt: skip
    with Vault.create(tmp_path / "v", "") as vault:
        build = partial(build_population, ("digits", "", 0, 0.0), vault, settings.population,
                        SerialEngine(), harden=settings.harden)  # fmt: skip
        made = [entry.files for entry in build()]
        with g2d.Defence.open(tmp_path / "teacher") as teacher:
            teacher.generate(1, seed=0)
        assert [entry.files for entry in build()] == made
        shutil.rmtree(tmp_path / "teacher")
        assert [entry.files for entry in build()] == made


def test_a_teachers_vault_does_not_choose_what_code_is_loaded(tmp_path, tiny_vault):
    shutil.copytree(tiny_vault, tmp_path / "teacher")
    toml = tmp_path / "teacher" / "task.toml"
    toml.write_text(toml.read_text().replace('name = "digits"', 'name = "evil:make"'))
    wanting = HardenSettings(recipe=("distil",), teacher=str(tmp_path / "teacher"))
    with pytest.raises(SettingsError, match=r"If you trust it, set \[harden\] teacher_model"):
        find_teacher(wanting)
    assert find_teacher(replace(wanting, teacher_model="digits")).model == "digits"


def test_the_small_task_of_the_docs_is_one(digits):
    text = (ROOT / "docs" / "hardening.md").read_text()
    (code,) = re.findall(r"```python\n# my_package\.py\n(.*?)```", text, re.S)
    names: dict[str, object] = {}
    exec(code, names)
    task = names["small_task"]()
    assert task.model(0)(digits.splits.gate.x[:3]).shape == (3, 10)
    assert task.splits.train.x.shape == digits.splits.train.x.shape
