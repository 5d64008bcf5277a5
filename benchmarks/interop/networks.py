"""The networks of the Keras benchmark: each as a Keras user and as a torch user writes it."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "torch")

from collections.abc import Callable

import keras
from keras import layers
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE = (28, 28, 1)  # channels last


def dense() -> Any:
    """Keras' usual first example: 50,890 parameters, a `Sequential`."""
    inner = [layers.Flatten(), layers.Dense(64, "relu"), layers.Dense(10, "softmax")]
    return keras.Sequential([keras.Input(IMAGE), *inner])


def torch_dense() -> nn.Module:
    """The same in torch."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def convolutions() -> Any:
    """Keras' example for MNIST: 34,826 parameters with dropout, a functional model."""
    given = keras.Input(IMAGE)
    x = layers.MaxPooling2D()(layers.Conv2D(32, 3, activation="relu")(given))
    x = layers.MaxPooling2D()(layers.Conv2D(64, 3, activation="relu")(x))
    return keras.Model(given, layers.Dense(10)(layers.Dropout(0.5)(layers.Flatten()(x))))


def torch_convolutions() -> nn.Module:
    """The same in torch."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(1600, 10),
    )  # fmt: skip


class Block(layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Two convolutions with batch norm, and a way around them."""

    def __init__(self, width: int, **more: Any) -> None:
        super().__init__(**more)
        self.first = layers.Conv2D(width, 3, padding="same", use_bias=False)
        self.second = layers.Conv2D(width, 3, padding="same", use_bias=False)
        self.norms = [layers.BatchNormalization(), layers.BatchNormalization()]

    def call(self, x: Any) -> Any:
        """x (N, H, W, width) to the same shape."""
        found = keras.ops.relu(self.norms[0](self.first(x)))
        return keras.ops.relu(x + self.norms[1](self.second(found)))


class Residual(keras.Model):  # type: ignore[misc]
    """A residual network as a class with a `call()` of its own: 29,978 parameters."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.stem = layers.Conv2D(32, 3, strides=2, padding="same", activation="relu")
        self.block = Block(32)
        self.pool, self.drop = layers.GlobalAveragePooling2D(), layers.Dropout(0.2)
        self.middle, self.head = layers.Dense(256, "relu"), layers.Dense(10)

    def call(self, x: Any) -> Any:
        """x (N, 28, 28, 1) to logits (N, 10)."""
        return self.head(self.drop(self.middle(self.pool(self.block(self.stem(x))))))


class TorchResidual(nn.Module):
    """The same in torch, padded as TensorFlow pads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, stride=2)
        self.first = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.second = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(32), nn.BatchNorm2d(32)])
        self.middle, self.head = nn.Linear(32, 256), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 1, 28, 28) to logits (N, 10)."""
        x = F.relu(self.stem(F.pad(x, (0, 1, 0, 1))))
        found = F.relu(self.norms[0](self.first(x)))
        x = F.relu(x + self.norms[1](self.second(found))).mean((2, 3))
        return self.head(F.dropout(F.relu(self.middle(x)), 0.2, self.training))


class Pair(NamedTuple):
    """A network in both worlds; whether it can be translated."""

    keras: Callable[[], Any]
    torch: Callable[[], nn.Module]
    translated: bool = True


PAIRS = {
    "Dense-64": Pair(dense, torch_dense),
    "MNIST's small CNN": Pair(convolutions, torch_convolutions),
    "residual, with batch norm, a class": Pair(Residual, TorchResidual, False),
}
