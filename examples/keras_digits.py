"""Defend your Keras models: the usual Dense-64 and the small CNN, on digits of MNIST's size."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import sys

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

from g2d import Defence, Rotor, Settings, Task, split_dataset
from g2d.interop import keras as worlds


def dense64() -> keras.Model:
    inner = [layers.Flatten(), layers.Dense(64, "relu"), layers.Dense(10, "softmax")]
    return keras.Sequential([keras.Input((28, 28, 1)), *inner])


def mnist_cnn() -> keras.Model:
    inner = [layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
             layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten(),
             layers.Dropout(0.5), layers.Dense(10, "softmax")]  # fmt: skip
    return keras.Sequential([keras.Input((28, 28, 1)), *inner])


def task(builder=dense64) -> Task:
    images = np.kron(load_digits().images / 16, np.ones((3, 3)))  # 24 x 24
    x = np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None].astype("float32")  # channels last
    return worlds.task(builder, split_dataset(x, load_digits().target), eps=0.1)


def cnn() -> Task:
    return task(mnist_cnn)


def main(vault: str = "runs/keras", out: str = "rotated.keras") -> None:
    small = {"base_steps": 200, "early_steps": 60, "fork_steps": 40, "members": 4, "basins": 2}
    settings = Settings().override(
        **{f"population__{name}": value for name, value in small.items()},
        generator__space="soup", population__pool=128, guidance__pool=64, gates__pool=64,
        guidance__polish_steps=10, gates__accuracy_drop=0.1, gates__class_drop=0.3,
        gates__stale_asr=1.0,
    )  # fmt: skip
    with Defence.build(task(), vault, settings) as defence:
        print(f"generation {Rotor(defence).rotate()} is live; {worlds.way(defence.task)}")
        worlds.save(defence.task, defence.generation().state, out)
    print(f"{out}: {keras.saving.load_model(out).count_params()} parameters, the softmax in place")


if __name__ == "__main__":
    main(*sys.argv[1:])
