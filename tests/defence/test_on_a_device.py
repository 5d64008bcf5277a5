"""A defence on a device, from population to service: same numbers, nothing made elsewhere.

The device is `fake_device`'s: there is no GPU where these tests run.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import g2d
from fake_device import NAME, There, fake_device
from g2d.core.engine import SerialEngine
from g2d.settings import Settings, build

SIZES = {
    "population": {
        "members": 3, "basins": 1, "base_steps": 6, "early_steps": 4, "fork_steps": 4, "batch": 8,
        "pool": 12, "pool_steps": 2,
    },
    "harden": {"recipe": ["adversarial"], "steps": 2, "checks": 1, "clean": 0.5},
    "autoencoder": {"steps": 3, "width": 8, "behaviour_every": 2},
    "diffusion": {"steps": 3, "width": 8, "depth": 1, "timesteps": 20, "sampler_steps": 3,
                  "distance_weight": 0.1},
    "guidance": {"pool": 12, "pool_steps": 2, "latent_steps": 2, "polish_steps": 3, "batch": 8,
                 "robust_weight": 0.5, "robust_steps": 1, "joint_weight": 0.5, "joint_pool": 8,
                 "joint_steps": 2, "bank_weight": 0.5, "particles": 2, "reverse_steps": 1},
    "gates": {"accuracy_drop": 1.0, "class_drop": 1.0, "stale_asr": 1.0, "pool": 8,
              "pool_steps": 2, "distance": 0.0, "attempts": 1},
}  # fmt: skip


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1),
        nn.Linear(3 * 16, 2),
    )  # fmt: skip


def task() -> g2d.Task:
    x = torch.rand(80, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0, 0].mean(1) > 0.5).long()
    return g2d.Task("bright", network, g2d.split_dataset(x, y), classes=2, eps=0.1)


def defended(path: Path, device: str, space: str) -> tuple[dict[str, object], g2d.Defence]:
    tables = {**SIZES, "generator": {"space": space, "bank": 10}}
    if space == "soup":
        tables.pop("diffusion")
    settings = build(Settings, {**tables, "task": {"device": device}}, "tests")
    defence = g2d.Defence.build(task(), path, settings, engine=SerialEngine())
    found = defence.generate(2, seed=1)
    entries = [e for kind in ("base", "member", "generator") for e in defence.vault.entries(kind)]
    made: dict[str, object] = {f"{e.kind} {e.index}": e.files for e in entries}
    made |= {str(g.number): defence.vault.read_generation(g.number) for g in found}
    return made, defence


@pytest.mark.parametrize("space", ["diffusion", "soup"])
def test_a_defence_on_a_device_gives_the_very_bytes_of_the_cpu(
    space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, one = defended(tmp_path / "cpu", "cpu", space)
    one.close()
    with fake_device(monkeypatch):
        found, other = defended(tmp_path / "there", "cuda", space)
        with other:
            assert other.task.device == NAME
            model = other.generation().model()
            assert all(isinstance(p, There) for p in model.parameters())
            rotor = g2d.Rotor(other)
            x = other.task.splits.test.x[:5]
            answers = rotor(x)
            assert not isinstance(answers, There)
            assert isinstance(rotor(x.to(NAME)), There)
            rotor.rotate()
            assert rotor.check() == []
    assert found == wanted
