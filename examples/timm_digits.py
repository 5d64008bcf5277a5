"""Defend a timm model by its norms and its head: here the smallest ResNet, on enlarged digits."""

import sys

import numpy as np
import timm
from sklearn.datasets import load_digits
from torch import nn

from g2d import Defence, Rotor, Task, split_dataset
from g2d.tasks.adapters import Adapted


def model() -> nn.Module:  # pretrained=True takes timm's weights
    return timm.create_model("test_resnet", num_classes=10, in_chans=1)


def task() -> Task:
    factory = Adapted(model, layers=[], train=["*bn*", "*fc.*"])
    x = np.kron(load_digits().images / 16, np.ones((4, 4)))[:, None]  # 32 x 32
    return Task("timm", factory, split_dataset(x, load_digits().target), classes=10, eps=0.1)


def main(vault: str = "runs/timm", **how) -> None:
    with Defence.build("timm_digits:task", vault, **how) as defence:
        print(f"generation {Rotor(defence).rotate()} is live; {defence.generator.codec.size} move")


if __name__ == "__main__":
    main(*sys.argv[1:])
