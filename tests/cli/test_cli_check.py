"""`g2d check`: what a task is, in a second and before anything is trained."""

import re
import sys

import pytest

import g2d
from commands import fail, succeed
from g2d.defence import costs

MINE = """
import torch
from torch import nn
from g2d import Task, split_dataset

def make():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

def rounded():
    model = make()
    model.register_forward_pre_hook(lambda _, given: given[0].round())
    return model

def half_frozen():
    model = nn.Sequential(*make(), nn.Linear(3, 3))
    model[0].requires_grad_(False)
    model.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    return model

def two_names():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    model[2].weight, model[2].bias = model[0].weight, model[0].bias
    return model

def shake(x, generator):
    return x + 0.01 * torch.randn(x.shape, generator=generator)

def of(factory):
    x = torch.rand(300, 4, generator=torch.Generator().manual_seed(0))
    return Task("mine", factory, split_dataset(x, torch.arange(300) % 3), classes=3, bounds=None,
                eps=0.1, augment=shake)

def task():
    return of(make)

def partly():
    return of(half_frozen)

def tied():
    return of(two_names)

def blind():
    return of(rounded)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"checked_{id(tmp_path)}"
    (tmp_path / f"{name}.py").write_text(MINE)
    return name


def test_what_is_found_is_said(mine):
    said = succeed("check", f"{mine}:task", "--set", 'autoencoder.scope=["3.*"]').stdout
    for line in (
        "task         mine, 3 classes",
        "splits       train 144, guide 48, gate 48, test 60",
        "input        (4,) float32, no bounds, eps 0.1",
        "loss         cross_entropy",
        "augmentation shake",
        "parameters   83, in a state dict of 9 tensors",
        "in scope     3.weight, 3.bias: 27 values",
        "alignment    none: its units lie partly out of scope; distances are not aligned",
        "workers      it is found by its name in worker processes",
    ):
        assert line in said
    assert re.search(r"stays as is  0\.weight, .* and 1 more", said)
    for stage in ("population", "fit", "one generation"):
        assert re.search(rf"^ {stage} +.* s +.* s +.*(MB|GB) +.*(bytes|kB|MB) *$", said, re.M), said
    assert "Estimates" in said


def test_a_task_of_the_current_directory_is_found_with_a_task_path(mine, monkeypatch):
    """By its name alone it was found there, and went before what is installed."""
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry][1:])
    sys.modules.pop(mine, None)
    assert f"no module {mine!r} among the installed packages or on PYTHONPATH; it lies in the curr"\
        "ent directory: add --task-path .;" in fail("check", f"{mine}:task")  # fmt: skip
    said = succeed("check", f"{mine}:task", "--task-path", ".").stdout
    assert f"Next: g2d population VAULT --task {mine}:task --task-path ." in said
    assert "absent: there is no such folder" in fail("check", "digits", "--task-path", "absent")


def test_what_stays_is_what_will_stay(mine):
    """The check read only names and types: it listed frozen parameters as in scope, and a mask
    with infinity ended it with a trace."""
    said = succeed("check", f"{mine}:partly").stdout
    assert "in scope     1.weight, 1.bias, 1.running_mean, " in said
    assert ", 3.weight, 3.bias and 2 more: 71 values" in said
    assert "stays as is  mask, 0.weight, 0.bias\n" in said
    assert "alignment    works: hidden layers of 3 units" in said  # not of the frozen 8
    said = succeed("check", f"{mine}:tied").stdout
    assert "in scope     0.weight, 0.bias, 2.weight, 2.bias, 4.weight, 4.bias: 35 values" in said
    assert "stays as is  nothing\n" in said


def test_alignment_and_counters_without_a_scope(mine):
    said = succeed("check", f"{mine}:task").stdout
    assert "stays as is  nothing\n" in said  # the counter is a member's own
    assert "alignment    works: hidden layers of 8 units" in said


def test_a_task_that_cannot_work_is_one_line(mine):
    assert "the gradient to the model's input is zero" in fail("check", f"{mine}:blind")
    assert "set [population] batch to 2 or more" in fail(
        "check", f"{mine}:task", "--set", "population.batch=1"
    )
    assert "matches no tensor" in fail("check", f"{mine}:task", "--set", 'autoencoder.scope=["x"]')
    assert "there is no task 'digit'" in fail("check", "digit")


def test_estimates_are_a_step_times_the_settings(digits, monkeypatch):
    steps = costs.Steps(plain=1.0, base=2.0, member=3.0, forward=0.0, gradient=0.0)
    monkeypatch.setattr(costs, "measure", lambda *_: (steps, 1000))
    s = g2d.Settings().override(
        population__members=8, population__basins=2, population__batch=10, population__pool=1,
        population__base_steps=100, population__early_steps=50, population__fork_steps=20,
        population__workers=2,
    )  # fmt: skip
    population, _, generation = costs.estimate(digits, s, 5530)
    assert population.cpu == 100 * 10 * 2 + 2 * 50 * 10 * 3 + 8 * 20 * 10 * 3
    assert population.wall == 100 * 10 * 2 + 50 * 10 * 3 + 4 * 20 * 10 * 3
    assert population.disk > 11 * 1000
    guided = s.guidance.reverse_steps + s.guidance.latent_steps + s.guidance.polish_steps
    assert generation.cpu == pytest.approx(guided * 2 * s.guidance.batch, rel=0.01)
    seeds = costs.estimate(digits, s.override(population__recipe="seeds"), 5530)[0]
    assert seeds.cpu == 9 * 100 * 10 * 2
    own = costs.estimate(digits, s.override(generator__space="my:Space"), 5530)[1]
    assert own.cpu is None
    assert costs.estimate(digits, s.override(generator__space="soup"), 5530)[1].cpu == 0


def test_the_estimate_of_disk_is_what_a_vault_takes(tiny_vault, tiny_settings, digits):
    """Files of members and the generator, within a tenth; sizes have no clock in them."""
    population, fit, generation = costs.estimate(digits, tiny_settings, 5530)
    with g2d.Defence.open(tiny_vault, write=False) as defence:
        vault = defence.vault

        def size(kind):
            return sum(
                len(vault.read(entry, name))
                for entry in vault.entries(kind)
                for name in entry.files
            )

        made = size("base") + size("early") + size("member")
        assert population.disk == pytest.approx(made, rel=0.1)
        assert fit.disk == pytest.approx(size("generator"), rel=0.2)
    assert generation.disk > 0


def test_a_check_takes_a_few_steps_and_no_training(mine, digits, monkeypatch):
    """Time as a number of passes: a hundredth of the base's training."""
    passes = []
    forward = type(digits.model(0)).forward
    monkeypatch.setattr(
        "torch.nn.Sequential.forward", lambda self, x: passes.append(len(x)) or forward(self, x)
    )
    succeed("check", "digits")
    settings = g2d.Settings().override(**{
        f"population__{k}": v for k, v in digits.settings["population"].items()
    })  # fmt: skip
    population = settings.population
    assert sum(passes) < population.base_steps * population.batch / 4
