"""Devices: which one is meant, what is said where it is not there or full; no GPU is needed."""

from __future__ import annotations

import multiprocessing
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fake_device import NAME, There, fake_device
from g2d.attacks.pgd import pgd
from g2d.core import devices
from g2d.errors import DeviceError, SettingsError
from g2d.settings import Settings
from g2d.tasks.inference import predict
from g2d.training.loop import train


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(devices.OVERRIDE, raising=False)
    monkeypatch.setattr(devices, "count", {"cuda": 2, "mps": 0, "cpu": 1}.__getitem__)


def test_auto_takes_a_gpu_that_is_there_and_the_cpu_else(
    gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert devices.resolve("auto") == "cuda"
    assert devices.resolve("cuda:1") == "cuda:1"
    monkeypatch.setattr(devices, "count", lambda kind: int(kind == "cpu"))
    assert devices.resolve("auto") == "cpu"


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("cuda:2", DeviceError, "finds 2 of 'cuda'"),
        ("mps", DeviceError, "G2D_DEVICE=cpu for this machine"),
        ("tpu", SettingsError, "must be one of auto, cpu, cuda"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(
    gpus: None, name: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as told:
        devices.resolve(name)
    assert "\n" not in str(told.value)


def test_a_machine_without_the_device_is_told_another(
    gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(devices.OVERRIDE, "cpu")
    assert devices.resolve("cuda") == "cpu"


def test_each_worker_process_takes_the_gpu_of_its_number(
    gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing, "parent_process", object)
    for number, wanted in ((1, "cuda:0"), (2, "cuda:1"), (3, "cuda:0")):
        worker = SimpleNamespace(_identity=(number,))
        monkeypatch.setattr(multiprocessing, "current_process", lambda worker=worker: worker)
        assert devices.resolve("cuda") == wanted


def test_the_device_is_in_digests_only_where_it_is_not_the_cpu() -> None:
    assert "device" not in Settings().to_toml(former=True)
    assert 'device = "mps"' in Settings().override(task__device="mps").to_toml(former=True)
    with pytest.raises(SettingsError, match="must be one of auto, cpu, cuda, mps"):
        Settings().override(task__device="gpu")


def test_a_model_on_the_cpu_is_left_as_it_is() -> None:
    model = nn.Linear(3, 2)
    assert devices.place(model, "cpu") is model
    assert not model._forward_pre_hooks


def test_a_model_elsewhere_answers_where_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Linear(3, 2), torch.rand(4, 3)
    wanted = model(x)
    with fake_device(monkeypatch):
        devices.place(model, NAME)
        found, there = model(x), model(x.to(NAME))
        assert not isinstance(found, There)
        assert isinstance(there, There)
        (slope,) = torch.autograd.grad(model(x.requires_grad_()).sum(), x)
        with pytest.raises(RuntimeError, match="two devices"):
            there + wanted
        assert torch.equal(found, wanted)
        assert slope.shape == x.shape


class Small(nn.Module):
    """A device whose memory holds `room` examples."""

    def __init__(self, room: int, x: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.room, self.asked = nn.Parameter(torch.ones(3, 2)), room, [len(x)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return x @ self.weight


def test_memory_that_ends_makes_batches_smaller_then_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = torch.rand(8, 3), torch.zeros(8, dtype=torch.long)
    with fake_device(monkeypatch):
        small = devices.place(Small(3, x), NAME)
        assert predict(small, x, batch=8).shape == (8, 2)
        assert small.asked[-4:] == [2, 2, 2, 2]
        source = torch.Generator().manual_seed(0)
        found = pgd(small, x, y, eps=0.1, steps=1, generator=source, batch=8)
        again = torch.Generator().manual_seed(0)
        assert torch.equal(found, pgd(small, x, y, eps=0.1, steps=1, generator=again, batch=2))
        small.room = 0
        with pytest.raises(DeviceError, match=r"one example at a time.*smaller batches"):
            predict(small, x)
        with pytest.raises(DeviceError, match=r"a training step does not fit.*task. device"):
            train(small, lambda model: model(x).sum(), steps=1, rate=0.1)
    with pytest.raises(torch.OutOfMemoryError):  # the CPU's own errors stay as they are
        predict(Small(0, x), x)
