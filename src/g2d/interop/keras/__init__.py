"""Keras 3 on PyTorch: a task from a builder of Keras models, and a generation back as Keras' files.

    from g2d.interop import keras as worlds
    task = worlds.task(builder, split_dataset(x, y))

`graph` and `layers` translate common layers to torch, `adapter` runs what they do not know by Keras
itself; `building` calls the builder, `files` reads and writes. Importing this file imports no
Keras, and chooses torch as its backend where nobody has chosen one.
"""

from __future__ import annotations

import os

from g2d.interop.keras.files import save, weights
from g2d.interop.keras.tasks import task, way

os.environ.setdefault("KERAS_BACKEND", "torch")

__all__ = ["save", "task", "way", "weights"]
