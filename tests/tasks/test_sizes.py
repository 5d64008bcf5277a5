"""Defaults grow with a task's own size; built-in tasks keep theirs."""

import dataclasses

import pytest
import torch
from torch import nn

import g2d
from g2d.core.shares import largest_drop
from g2d.errors import SettingsError
from g2d.settings import Settings
from g2d.tasks.networks import mnist_cnn
from g2d.tasks.sizes import PARAMETERS, defaults_of, shown_by, sized
from g2d.tasks.splits import ENOUGH


def task_of(rows, **more):
    x = torch.rand(rows, 3, generator=torch.Generator().manual_seed(0))
    splits = g2d.split_dataset(x, torch.arange(rows) % 2)
    return g2d.Task("mine", lambda: nn.Linear(3, 2), splits, classes=2, eps=0.1, **more)


def test_steps_grow_with_the_parameters_up_to_todays_values():
    assert sum(p.numel() for p in mnist_cnn().parameters()) == PARAMETERS
    now = Settings()
    assert (now.diffusion.steps, now.autoencoder.steps) == (12_000, 1500)
    for parameters in (PARAMETERS, 11_173_962):
        assert sized(parameters)["diffusion"]["steps"] == now.diffusion.steps
        assert sized(parameters)["autoencoder"]["steps"] == now.autoencoder.steps
    assert sized(547)["diffusion"]["steps"] == 1500
    assert sized(547)["autoencoder"]["steps"] == 600
    assert sized(14_105)["diffusion"]["steps"] == 6000
    assert isinstance(
        sized(5_530)["diffusion"]["steps"], int
    )  # 2,400: more than the least, no float


def test_built_in_tasks_keep_their_values(digits):
    assert defaults_of(digits) == digits.settings
    big = dataclasses.replace(digits, name="cifar10", settings={}, factory=lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 10)))  # fmt: skip
    assert defaults_of(big) == {}


def test_a_task_of_ones_own_keeps_what_it_says_itself(tmp_path):
    own = task_of(200, settings={"diffusion": {"steps": 77}, "gates": {"attempts": 2}})
    with g2d.Defence.create(own, tmp_path / "vault") as defence:
        s = defence.settings
        assert (s.diffusion.steps, s.autoencoder.steps, s.gates.attempts) == (77, 600, 2)
        assert s.guidance.adapt
    with g2d.Defence.create(own, tmp_path / "other", Settings()) as defence:
        assert defence.settings.diffusion.steps == 12_000  # settings that are given are taken


def test_new_tasks_begin_with_soups_unless_they_tune_the_diffusion_model(digits):
    assert defaults_of(task_of(200))["generator"] == {"space": "soup"}
    tuned = task_of(200, settings={"diffusion": {"steps": 77}})
    assert "generator" not in defaults_of(tuned)
    chosen = task_of(200, settings={"generator": {"space": "diffusion"}})
    assert defaults_of(chosen)["generator"] == {"space": "diffusion"}
    assert Settings().generator.space == "diffusion", "what an older vault's silence means"


def test_what_soups_cannot_do_is_refused(tmp_path):
    settings = Settings().override(generator__space="soup", diffusion__distance_weight=0.5)
    with pytest.raises(SettingsError, match=r"distance_weight .* set space to 'diffusion'"):
        g2d.Defence.create(task_of(200), tmp_path / "vault", settings)
    assert not (tmp_path / "vault").exists()


def test_gates_allow_what_a_small_gate_split_can_show_and_no_less():
    """28 of 28 right leave a drop of 10 %: the default of 1 % would let no candidate pass."""
    few, many = torch.arange(28) % 3, torch.arange(6000) % 3
    gates = shown_by(few)["gates"]
    assert gates["class_drop"] == 0.112  # one of nine
    n = len(few)
    assert largest_drop(0, 0, n) < largest_drop(1, 0, n) <= gates["accuracy_drop"]
    assert gates["accuracy_drop"] < largest_drop(2, 0, n)
    assert shown_by(many) == {}
    own = task_of(60, settings={"gates": {"accuracy_drop": 0.4}})
    assert defaults_of(own)["gates"]["accuracy_drop"] == 0.4
    assert defaults_of(own)["gates"]["class_drop"] > 0.05


@pytest.mark.parametrize("rows", [100, 4000])
def test_a_small_guide_split_is_joined_by_training_data(rows):
    splits = task_of(rows).splits
    small = len(splits.guide) < ENOUGH
    assert torch.equal(splits.guiding.x[: len(splits.guide)], splits.guide.x)
    assert len(splits.guiding) == len(splits.guide) + len(splits.train) * small
    assert splits.guiding is splits.guiding
    gate = {tuple(row) for row in splits.gate.x.tolist()}
    assert not gate & {tuple(row) for row in splits.guiding.x.tolist()}


def test_digits_guides_by_its_guide_split_alone(digits):
    assert digits.splits.guiding is digits.splits.guide
