"""What tests of the red team share: a vault with generations, networks that were trained once."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

import g2d
from g2d.core.engine import SerialEngine
from g2d.redteam import attack
from g2d.redteam.context import AttackContext
from g2d.redteam.threat import CONTROLS, Threat
from g2d.tasks.task import Task
from sites import IDS, generate, site_of, small, trained

# Asks for networks, and for nothing to be done to them.
NETWORKS = Threat(
    "networks", "Networks", "Are they there?", IDS, lambda spec: [], lambda case, bench: [],
    chains=CONTROLS | {"draws", "rival"},
)  # fmt: skip


@pytest.fixture(scope="session")
def exposed(tiny_vault, once):
    """A tiny vault with three generations beside the base, and the networks of a quick run: those
    of the controls, and of `test_redteam`'s own threat."""

    def build(path):
        shutil.copytree(tiny_vault, path)
        with g2d.Defence.open(path) as defence:
            generate(defence, 3)
        attack(path, threats=["universal", NETWORKS], quick=True, engine=SerialEngine())
        shutil.rmtree(path / "redteam" / "rows")
        (path / "redteam" / "results.json").unlink()

    return once.copy("attacked", build)


@pytest.fixture
def vault(exposed, tmp_path):
    path = tmp_path / "vault"
    shutil.copytree(exposed, path)
    return path


@pytest.fixture(scope="session")
def digits_task():
    splits = g2d.load_task("digits").splits
    return Task("evasion", small, splits, classes=10, eps=0.1)


@pytest.fixture(scope="session")
def spec(digits_task, tmp_path_factory, once):
    def build(path):
        path.mkdir()
        for seed in range(6):
            save_file(trained(digits_task, seed), path / f"{seed}.safetensors")

    folder = once.path("evasion", build)
    states = [load_file(folder / f"{seed}.safetensors") for seed in range(6)]
    return site_of(digits_task, tmp_path_factory.mktemp("nets"), states)


@pytest.fixture(scope="session")
def context(spec):
    return AttackContext(spec)
