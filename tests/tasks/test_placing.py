"""A task on a device: what is said where its model has no room there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fake_device import NAME, There, fake_device
from g2d import Task
from g2d.errors import DeviceError
from g2d.tasks.placing import placed
from keras_models import splits


class Full(nn.Linear):
    """Fits, and has no room for what it computes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(x, There):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().forward(x)


def test_memory_that_ends_at_once_is_told_as_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task("full", lambda: Full(5, 3), splits((5,)), classes=3)
    with (
        fake_device(monkeypatch),
        pytest.raises(DeviceError, match=r"a step of two examples does not fit on 'lazy'.*G2D_DEV"),
    ):
        placed(task, NAME)
